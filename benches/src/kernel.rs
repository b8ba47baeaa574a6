//! Our side of the guest's instructions: the bare-metal kernel times its operations itself, at ring 0 of the machine that Linux has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quire::abi::bench::{self, Operation, Shape};
use quire::abi::{BootInfo, boot, ring};
use quire::addr::PAGE_SIZE;
use quire::mapcount::Scheme;

use crate::emulator::{self, Failure};
use crate::linux::{cache, output};

/// As much memory as Linux' program works on, in pages.
const PAGES: u64 = 16384;
/// Rounds that count.
const ROUNDS: u64 = 3;
/// Room for all samples of them.
const SAMPLES: u64 = 1 << 19;
const MEMORY_MIB: u64 = 256;

/// What was measured: the instructions of one operation, by operation, shape, and whether it is the floor.
#[derive(Debug, PartialEq)]
pub(crate) struct Kernel(BTreeMap<(Operation, Shape, bool), f64>);

impl Kernel {
    /// Runs it with folios of these `orders`, on frames that are known to be zero, or are not: one of [`bench::frames`].
    pub(crate) fn measure(image: &Path, scheme: Scheme, orders: &[u8], zeroes: u64) -> Result<Self, Failure> {
        let qemu = emulator::find().map_err(Failure::lack)?;
        let file = cache()?.join(format!("orders-{zeroes}"));
        let words = words(scheme, orders, zeroes);
        let mut bytes: Vec<u8> = words.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(PAGE_SIZE as usize, 0);
        fs::write(&file, bytes).map_err(Failure::wrong)?;
        emulator::twice(|| Self::run(qemu, image, &file))
    }

    fn run(qemu: &str, image: &Path, orders: &Path) -> Result<Self, Failure> {
        let mut command = Command::new(qemu);
        command.args(emulator::MACHINE).args(["-cpu", "max", "-m", &MEMORY_MIB.to_string(), "-debugcon", "stdio"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        command.arg("-kernel").arg(image).arg("-initrd").arg(orders);
        let text = emulator::run(&mut command).map_err(Failure::wrong)?;
        Self::parse(&text).map_err(|why| Failure::wrong(format!("the kernel: {why}; it said:\n{text}")))
    }

    fn parse(text: &str) -> Result<Self, String> {
        if !text.lines().any(|line| line == "quire: RESULT PASS") {
            return Err("it did not pass".to_owned());
        }
        let rows = text.lines().filter_map(|line| line.strip_prefix("quire: bench "));
        rows.map(|row| parse(row).ok_or_else(|| format!("no row of the benchmark: {row}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What `operation` takes of a folio of `shape`, or the floor in its place.
    pub(crate) fn cost(&self, operation: Operation, shape: Shape, is_floor: bool) -> Option<f64> {
        self.0.get(&(operation, shape, is_floor)).copied()
    }
}

/// `OPERATION order N level N floor 0|1 count N p50 N ...`
fn parse(row: &str) -> Option<((Operation, Shape, bool), f64)> {
    let words: Vec<&str> = row.split(' ').collect();
    let operation = Operation::EACH.into_iter().find(|operation| operation.name() == words[0])?;
    let number = |name: &str| -> Option<u64> {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse().ok()
    };
    let (order, level) = (number("order")?, number("level")?);
    let shape = Shape::of_masks(1 << order, 1 << level).next()?;
    let folios = if operation.is_bulk() { shape.folios(PAGES) } else { 1 };
    Some(((operation, shape, number("floor")? == 1), number("p50")? as f64 / folios as f64))
}

/// What the kernel is told.
fn words(scheme: Scheme, orders: &[u8], zeroes: u64) -> BootInfo {
    let mut words = BootInfo::new();
    words[boot::RING] = ring::ZERO;
    words[boot::SCHEME] = scheme as u64;
    words[boot::MEMORY_END] = MEMORY_MIB << 20;
    words[boot::SAMPLES_CAPACITY] = SAMPLES;
    words[bench::OPERATIONS] = super::beside::OPERATIONS.iter().fold(0, |mask, (operation, ..)| mask | operation.bit());
    words[bench::ORDERS] = orders.iter().fold(0, |mask, order| mask | 1 << order);
    words[bench::LEVELS] = 0b110;
    words[bench::FRAMES] = zeroes;
    words[bench::PAGES] = PAGES;
    words[bench::ROUNDS] = ROUNDS;
    words
}

/// The kernel's image, from the program that carries it; cargo makes that if need be.
pub(crate) fn image() -> Result<PathBuf, Failure> {
    let image = cache()?.join("quire-kernel");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../vmm/Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--release", "--manifest-path", manifest, "--bin", "quire", "--", "kernel", "-o"]);
    output(command.arg(&image)).map_err(Failure::wrong)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::{Kernel, Operation, Shape};
    use quire::addr::Order;

    const TEXT: &str = "quire: bench fault order 4 level 1 floor 0 count 1000 p50 900 p99 1000 max 2000\n\
                        quire: bench fork order 9 level 2 floor 1 count 3 p50 6400 p99 6400 max 6400\n\
                        quire: RESULT PASS\n";

    #[test]
    fn rows_are_told_by_folio() {
        let kernel = Kernel::parse(TEXT).unwrap();
        let shape = |order: u8, levels| Shape::of_masks(1 << order, levels).next().unwrap();
        assert_eq!(kernel.cost(Operation::Fault, shape(4, 2), false), Some(900.0));
        assert_eq!(kernel.cost(Operation::Fork, shape(9, 4), true), Some(200.0));
        assert_eq!(shape(9, 4).order, Order::HUGE);
        assert_eq!(kernel.cost(Operation::Fork, shape(9, 4), false), None);
    }

    #[test]
    fn a_run_that_did_not_pass_is_an_error() {
        assert!(Kernel::parse(&TEXT.replace("PASS", "FAIL")).is_err());
        assert!(Kernel::parse(&TEXT.replace("p50 900", "p50 x")).unwrap_err().contains("no row"));
    }
}
