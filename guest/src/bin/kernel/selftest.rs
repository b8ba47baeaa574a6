//! The machine's own run, for tests: its checks, the floor, the audit, and the ways in which a kernel can go wrong.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::abi::{BootInfo, OP_WORDS, bell, checksum, flags};

use crate::audit::Audit;
use crate::checks;
use crate::cpu;
use crate::floor::{Floor, PAGES};
use crate::log;
use crate::machine::Machine;
use crate::nested;
use crate::results::{self, Results};
use crate::window;

/// The checks, then the floor, in the manager's frames. General words: what the doorbell added up to, the trace's
/// length, and its checksum.
///
/// # Errors
/// The first thing that was wrong.
pub fn run(
    machine: &Machine,
    boot: &BootInfo,
    trace: &[[u64; OP_WORDS]],
    results: &Results,
) -> Result<(), &'static str> {
    misbehave(boot, results);
    if boot.has(flags::NESTED) {
        return nested::check::run(machine, boot, results);
    }
    let sum = trace.as_flattened().iter().fold(0, |sum, word| checksum(sum, *word));
    results.general(1).store(trace.len() as u64, Relaxed);
    results.general(2).store(sum, Relaxed);
    let (first, count) = machine.frames();
    if count < checks::FRAMES {
        return Err("too few frames for the checks");
    }
    checks::run(machine, first)?;
    let mut floor = Floor::new(machine, first, PAGES)?;
    floor.run()?;
    audit(&floor, results)
}

/// Compares the floor's translations with the VMM's walk.
fn audit(floor: &Floor<'_>, results: &Results) -> Result<(), &'static str> {
    if results::speaks() {
        // Nobody there who could walk.
        return Ok(());
    }
    let mut audit = Audit::new(results);
    for index in 0..Audit::CAPACITY - 1 {
        let (gva, gpa) = floor.translation(index);
        audit.expect(gva, Some(gpa));
    }
    audit.expect(window::BASE.add_pages(PAGES), None);
    audit.compare().map(drop).map_err(|mismatch| {
        log!("{mismatch}");
        "floor: the VMM's walk differs"
    })?;
    let mut wrong = Audit::new(results);
    wrong.expect(window::BASE, None);
    match wrong.compare() {
        Err(mismatch) if mismatch.count == 1 && mismatch.found == Some(floor.translation(0).1) => Ok(()),
        _ => Err("the VMM's walk agrees with anything"),
    }
}

/// What tests ask for: the ways in which a kernel can go wrong.
fn misbehave(boot: &BootInfo, results: &Results) {
    assert!(!boot.has(flags::PANIC), "asked to panic");
    if boot.has(flags::STRAY) {
        cpu::stray_load();
    }
    if boot.has(flags::OVERFLOW) {
        overflow(&[0; 64]);
    }
    if boot.has(flags::ASK) {
        let answers = results.ring(bell::FIRST_FREE, [20]);
        results.general(0).store(answers[0] + answers[1], Relaxed);
    }
    while boot.has(flags::HANG) {
        static ROUNDS: AtomicU64 = AtomicU64::new(0);
        ROUNDS.fetch_add(1, Relaxed);
    }
}

/// Calls itself until the stack ends.
#[inline(never)]
#[expect(unconditional_recursion, reason = "that is its task")]
fn overflow(above: &[u64; 64]) -> u64 {
    let here = core::hint::black_box([above[0] + 1; 64]);
    overflow(&here) + here[63]
}
