//! The kernel's benchmark under KVM and under QEMU.

mod needs;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use quire::abi::bench::{Operation, SHAPES, Shape, spare, word};
use quire::abi::{bell, boot};
use quire_vmm::bench::{Frames, Plan};
use quire_vmm::replay::Ring;
use quire_vmm::{MachineConfig, NoHost, Outcome, Status, flat, kernel, run};

/// A short one of everything.
fn short() -> Plan {
    Plan { rounds: 2, samples: 0, ..Plan::default() }
}

fn under_kvm(plan: &Plan, memory: u64) -> Outcome {
    let machine = MachineConfig { memory, boot: plan.boot_words(), ..MachineConfig::default() };
    run(kernel::ELF, &machine, &[], &mut NoHost).unwrap()
}

/// How many samples there are of an operation on a shape, and of the floor in its place.
fn counts(outcome: &Outcome, operation: Operation, shape: Shape) -> [u64; 2] {
    [false, true].map(|is_floor| {
        let spare = spare::of(shape.level, is_floor);
        let same = |sample: &&quire::abi::sample::Sample| {
            sample.kind == operation as u8 && sample.order == shape.order && sample.spare == spare
        };
        outcome.samples.iter().filter(same).count() as u64
    })
}

#[test]
fn every_operation_is_timed_on_every_shape() {
    if !needs::kvm() {
        return;
    }
    for frames in [Frames::KnownZero, Frames::ToClear] {
        let plan = Plan { frames, ..short() };
        let outcome = under_kvm(&plan, 64 << 20);
        assert_eq!(outcome.status, Status::Pass, "{} {:?}", outcome.log, outcome.panic);
        assert!(outcome.general()[word::CHECKS] > 1000);
        for shape in plan.shapes.iter().copied() {
            let folios = shape.folios(plan.pages);
            for operation in plan.operations.iter().copied() {
                let expected = match operation {
                    Operation::Split if shape.level.get() == 1 => [0, 0],
                    Operation::Split => [2 * folios; 2],
                    _ if operation.is_bulk() => [2, 2],
                    _ => [2 * folios, 2 * folios.min(64)],
                };
                assert_eq!(counts(&outcome, operation, shape), expected, "{operation:?} {shape:?}");
            }
            assert_eq!(outcome.general()[word::OTHERWISE + shape.index()], 0, "{shape:?}");
            assert_eq!(outcome.general()[word::FOLIOS + shape.index()], folios);
        }
    }
}

#[test]
fn the_benchmark_runs_under_qemu_at_ring_0() {
    let Some(program) = needs::qemu() else { return };
    let mut words = Plan { ring: Ring::Zero, frames: Frames::KnownZero, ..short() }.boot_words();
    words[boot::MEMORY_END] = 256 << 20;
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (elf, orders) = (scratch.join("bench.elf"), scratch.join("bench.orders"));
    fs::write(&elf, kernel::ELF).unwrap();
    fs::write(&orders, flat::orders(&words, &[])).unwrap();
    let output = Command::new(program)
        .args(["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-icount", "shift=0,sleep=off", "-m", "256", "-debugcon", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-kernel", elf.to_str().unwrap(), "-initrd", orders.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2 * bell::QEMU_PASS as i32 + 1), "{text}");
    for shape in (0..SHAPES).map(Shape::nth) {
        for floor in [0, 1] {
            let row =
                format!("quire: bench fault order {} level {} floor {floor} count ", shape.order, shape.level.get());
            let rest = text.lines().find_map(|line| line.strip_prefix(&row)).unwrap_or_else(|| panic!("{row}: {text}"));
            let words: Vec<_> = rest.split(' ').collect();
            assert_eq!((words[1], words[3], words[5]), ("p50", "p99", "max"), "{rest}");
            let [p50, p99, max] = [2, 4, 6].map(|i| words[i].parse::<u64>().unwrap());
            assert!(0 < p50 && p50 <= p99 && p99 <= max, "{rest}");
            // A tick is an instruction: the floor's handler has a few dozen of them.
            assert_eq!(p50 < 200, floor == 1, "{rest}");
        }
    }
}
