//! The kernel's benchmark under KVM and under QEMU, and what `quire bench` makes of it.

mod needs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use quire::abi::bench::{Operation, SHAPES, Shape, spare, word};
use quire::abi::{bell, boot};
use quire_vmm::bench::{Frames, Plan};
use quire_vmm::replay::Ring;
use quire_vmm::{MachineConfig, NoHost, Outcome, Status, flat, kernel, run};
use serde_json::Value;

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

fn quire(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quire")).arg("bench").args(arguments).output().unwrap()
}

/// The JSON of a benchmark that goes well.
fn bench(arguments: &[&str]) -> Value {
    let output = quire(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A file of this test's own, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn rows<'a>(json: &'a Value, what: &str, frames: &str) -> Vec<&'a Value> {
    let rows = json["rows"].as_array().unwrap();
    rows.iter().filter(|row| row["what"] == what && row["frames"] == frames).collect()
}

#[test]
fn every_fault_stands_with_each_kind_of_frames() {
    if !needs::kvm() {
        return;
    }
    let html = Scratch::new("bench.html");
    let json = bench(&[
        "fault",
        "cow",
        "--order",
        "0,9",
        "--scheme",
        "none,total",
        "--turns",
        "1",
        "--samples",
        "4",
        "--html",
        html.path(),
    ]);
    let shapes = 3 * 2;
    for (what, frames, expected) in [
        ("fault", "to clear", shapes),
        ("fault", "known zero", shapes),
        ("fault", "fresh", shapes),
        ("touch", "to clear", shapes),
        ("touch", "known zero", shapes),
        ("touch", "fresh", 0),
        ("cow", "to clear", shapes),
        ("reuse", "to clear", shapes),
        ("fork", "to clear", 0),
    ] {
        let found = rows(&json, what, frames);
        assert_eq!(found.len(), expected, "{what}, {frames}");
        for row in found {
            assert_eq!(row["headline"], frames == "to clear");
            let at = |key: &str| row["percentiles"][key].as_f64().unwrap();
            assert!(0.0 < at("p50") && at("p50") <= at("p90") && at("p90") <= at("p99"), "{row}");
            assert!(at("p99") <= at("p999") && at("p999") <= at("max"), "{row}");
            assert_eq!(row["quire"], row["percentiles"]["p50"]);
            assert!(row["floor"].as_f64().unwrap() > 0.0, "{row}");
            let samples: u64 =
                row["histogram"].as_array().unwrap().iter().map(|bucket| bucket[1].as_u64().unwrap()).sum();
            assert_eq!(Some(samples), row["percentiles"]["count"].as_u64());
        }
    }
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2 * shapes);
    for layers in layers {
        let of = |key: &str| layers[key].as_f64().unwrap();
        let manager =
            ["allocation", "zeroing", "accounting", "table_stores", "flush", "residue"].map(of).iter().sum::<f64>();
        assert!((manager - of("manager")).abs() < 1.0 && of("manager") > 0.0, "{layers}");
        assert!((of("exception_and_return") + manager - of("total")).abs() < 1.0, "{layers}");
        assert_eq!(layers["stage2"].is_null(), layers["what"] == "cow");
    }
    let page = fs::read_to_string(&html.0).unwrap();
    assert!(page.matches("<svg").count() > 6 && !page.contains("http") && !page.contains("NaN"), "{page}");
}

#[test]
fn metadata_is_told_by_frame_and_folio() {
    if !needs::kvm() {
        return;
    }
    let json = bench(&["metadata", "--order", "0,2,4,8,9", "--turns", "1"]);
    let found = |order: u64, unit: &str| {
        let rows = json["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["order"] == order && row["unit"] == unit && row["what"] == "metadata");
        row.unwrap_or_else(|| panic!("{json}"))["quire"].as_f64().unwrap()
    };
    // A slot of 16 bytes is the descriptor of a folio of order 0.
    assert!(
        (16.0..18.0).contains(&found(0, "bytes per frame"))
            && found(0, "bytes per folio") == found(0, "bytes per frame")
    );
    // The look-up is by folio: with its record a larger one costs the same whatever the order, but for whole frames.
    for order in [2, 4, 8] {
        assert!(found(order, "bytes per folio") < 150.0 + 16.0 * f64::from(1 << order) / 16.0, "order {order}");
    }
    assert!(found(9, "bytes per frame") <= 0.25 && found(9, "bytes per folio") == 512.0 * found(9, "bytes per frame"));
}

#[test]
fn a_launch_is_the_sum_of_its_parts() {
    if !needs::kvm() {
        return;
    }
    let json = bench(&["boot", "--launches", "1"]);
    let rows: Vec<_> = json["rows"].as_array().unwrap().iter().map(|row| row["quire"].as_f64().unwrap()).collect();
    assert_eq!(rows.len(), 9, "{json}");
    let parts: f64 = rows[1..8].iter().sum();
    // Each is told to three digits.
    assert!((parts / rows[0] - 1.0).abs() < 0.01, "{rows:?}");
}

#[test]
fn a_benchmark_is_compared_with_itself_and_with_what_is_none() {
    if !needs::kvm() {
        return;
    }
    let (good, bad) = (Scratch::new("bench.json"), Scratch::new("bad.json"));
    let json = format!("--json={}", good.path());
    let output = quire(&["fork", "--order", "4", "--turns", "3", "--samples", "1", &json]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("fork"));
    let same: Value =
        serde_json::from_slice(&quire(&["--compare", good.path(), good.path(), "--json"]).stdout).unwrap();
    assert_eq!(same["rows"].as_array().unwrap().len(), 1);
    assert_eq!((&same["rows"][0]["verdict"], &same["rows"][0]["ratio"]), (&"same".into(), &1.0.into()));

    for content in ["", "{}", "{\"rows\":[{\"what\":1}]}"] {
        fs::write(&bad.0, content).unwrap();
        let output = quire(&["--compare", good.path(), bad.path()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(error.lines().count() == 1 && error.contains(bad.path()), "{error}");
    }
}

#[test]
fn what_makes_no_sense_is_usage() {
    for arguments in [
        &[][..],
        &["nothing"],
        &["fault", "--order", "10"],
        &["fault", "--scheme", "nobody"],
        &["fault", "--turns", "0"],
        &["fault", "--compare", "a", "b"],
        &["--compare", "a"],
    ] {
        let output = quire(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
