//! Where the manager is plugged in.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::abi::{BootInfo, bell, flags};

use crate::audit::Audit;
use crate::cpu;
use crate::floor::{self, Floor};
use crate::log;
use crate::machine::Machine;
use crate::results::{self, Finish, Results};

/// The run, from the boot words to the results.
pub fn main(machine: &Machine, boot: &BootInfo, results: &Results) -> Finish {
    misbehave(boot, results);
    match measure_floor(machine, results) {
        Ok(()) => Finish::Pass,
        Err(what) => {
            log!("{what}");
            Finish::Fail
        }
    }
}

fn measure_floor(machine: &Machine, results: &Results) -> Result<(), &'static str> {
    let mut floor = Floor::new(machine);
    floor.run()?;
    floor::check_abort(machine)?;
    let mut audit = Audit::new(results);
    for index in 0..Audit::CAPACITY - 1 {
        let (gva, gpa) = floor.translation(index);
        audit.expect(gva, Some(gpa));
    }
    audit.expect(floor::WINDOW.add_pages(floor::PAGES), None);
    if results::speaks() {
        // Nobody there who could walk.
        return Ok(());
    }
    audit.compare().map(drop).map_err(|mismatch| {
        log!("{mismatch}");
        "floor: the VMM's walk differs"
    })
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
