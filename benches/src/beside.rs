//! What one operation on a folio takes, in instructions of the guest: our kernel at ring 0 beside a stock Linux 6.12, in the same emulated machine.
//!
//! Both times are shown as counted, and less what says nothing about page tables: clearing and copying pages on both sides, and what fork() takes of a
//! process that has nothing of ours.

use std::collections::BTreeMap;

use quire::abi::bench::{Operation, Shape, frames};
use quire::mapcount::Scheme;
use serde::Serialize;
use serde_json::{Value, json};

use crate::emulator::Failure;
use crate::kernel::{self, Kernel};
use crate::linux::{Cost, Linux};

/// The operations, and what Linux 6.12 does in them that we do not.
pub(crate) const OPERATIONS: [(Operation, &str); 6] = [
    (
        Operation::Fault,
        "finds the vma in a maple tree under RCU and locks it; asks which orders are allowed; has zones, watermarks and lists per CPU in its allocator; \
         puts the folio on the LRU; counts rss and vmstat; asks memcg (off here); at order 9 clears and deposits a page table",
    ),
    (
        Operation::Fork,
        "enters by a system call; copies the vma, its anon_vma chain and its maple tree node; clears the exclusive mark of each page; counts rss; at order 9 deposits \
         a page table for each leaf. Files, signals, credentials and the scheduler are subtracted, where corrected, as those of an empty process",
    ),
    (
        Operation::Cow,
        "does what it does in a fault, and asks whether the page is in the swap cache, notifies secondary MMUs, locks the entry again to compare it; at order 9 it splits \
         the leaf first",
    ),
    (
        Operation::Reuse,
        "copies the page at orders 2 to 8: 6.12 reuses none of a large folio mapped by pages. We reuse it, and the folio's other pages behind that table with it",
    ),
    (
        Operation::ZapOne,
        "enters by a system call; finds and checks the vma; drains the LRU's batches; notifies secondary MMUs; counts rss; queues the folio for splitting; at order 9 it \
         splits the leaf",
    ),
    (
        Operation::Unmap,
        "enters by a system call; takes the vma out of the maple tree and the anon_vma; gathers pages; takes folios off the LRU; counts rss and vmstat; checks flags of \
         every page that it frees",
    ),
];
/// The orders that both do, the last by one leaf; and those of a short run.
pub(crate) const ORDERS: &[u8] = &[0, 2, 4, 6, 8, 9];
pub(crate) const FEW_ORDERS: &[u8] = &[0, 4, 9];
/// What copying a page takes of us: a string move that counts one for each word.
const COPY: f64 = 512.0;
const SCHEME: Scheme = Scheme::Total;
const CORRECTED: &str = "linux-6.12 corrected";
const WHOLE: &str = "linux-6.12";

/// One operation at one order, in instructions for each.
#[derive(Clone, Debug, Serialize)]
struct Row {
    what: &'static str,
    order: u8,
    scheme: &'static str,
    /// On frames that are known to be zero, less copying.
    quire: f64,
    /// On frames that are cleared, with copying.
    quire_whole: f64,
    /// The same round trip and stores without a manager, on frames that are known to be zero.
    floor: f64,
    peers: BTreeMap<&'static str, f64>,
    /// How many times fewer ours must be.
    target: Option<f64>,
    unit: &'static str,
}

impl Row {
    fn ratio(&self, peer: &str) -> Option<f64> {
        let ours = if peer == WHOLE { self.quire_whole } else { self.quire };
        self.peers.get(peer).map(|peer| peer / ours)
    }
}

/// How many times fewer instructions than Linux are wanted.
fn target(operation: Operation, order: u8) -> Option<f64> {
    match operation {
        Operation::Reuse => None,
        Operation::Fault | Operation::ZapOne if order >= 4 => Some(20.0),
        _ => Some(10.0),
    }
}

/// What was measured, and what of it stands in a table.
#[derive(Debug)]
pub(crate) struct Beside {
    rows: Vec<Row>,
    linux: Result<Linux, Failure>,
}

impl Beside {
    /// Measures both sides, each twice.
    pub(crate) fn measure(orders: &[u8]) -> Result<Self, Failure> {
        let image = kernel::image()?;
        let zero = Kernel::measure(&image, SCHEME, orders, frames::KNOWN_ZERO)?;
        let cleared = Kernel::measure(&image, SCHEME, orders, frames::TO_CLEAR)?;
        let linux = match Linux::measure(orders) {
            Err(failure) if !failure.is_lack => return Err(failure),
            linux => linux,
        };
        let mut rows = Vec::new();
        for (operation, _) in OPERATIONS {
            for &order in orders {
                rows.push(row(operation, order, [&zero, &cleared], linux.as_ref().ok())?);
            }
        }
        Ok(Self { rows, linux })
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let (release, lacks) = match &self.linux {
            Ok(linux) => (Some(&linux.release), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        json!({ "rows": self.rows, "linux": release, "lacks": lacks })
    }

    /// Why Linux was not there.
    pub(crate) fn lack(&self) -> Option<&Failure> {
        self.linux.as_ref().err()
    }

    /// For people.
    pub(crate) fn show(&self) {
        println!(
            "{:<8} {:>5} {:>8} {:>8} {:>9} {:>7} {:>7}   {:>9} {:>9} {:>7}",
            "what", "order", "quire", "floor", "linux", "ratio", "target", "quire", "linux", "ratio"
        );
        println!("{:<8} {:>5} {:<44}   as counted", "", "", "corrected");
        for row in &self.rows {
            let number = |n: Option<f64>, digits| n.map_or_else(|| "-".to_owned(), |n: f64| format!("{n:.digits$}"));
            let peer = |name: &str| row.peers.get(name).copied();
            println!(
                "{:<8} {:>5} {:>8.1} {:>8.1} {:>9} {:>7} {:>7}   {:>9.1} {:>9} {:>7}",
                row.what,
                row.order,
                row.quire,
                row.floor,
                number(peer(CORRECTED), 1),
                number(row.ratio(CORRECTED), 1),
                number(row.target, 0),
                row.quire_whole,
                number(peer(WHOLE), 1),
                number(row.ratio(WHOLE), 1)
            );
        }
        println!(
            "\ninstructions for each folio, `{}` at ring 0; fork and unmap of 64 MiB, divided by its folios",
            SCHEME.name()
        );
        println!(
            "corrected: frames known to be zero, nothing for copying a page, fork() less that of an empty process"
        );
        match &self.linux {
            Ok(linux) => println!("Linux is {}; clearing a page takes it {} instructions", linux.release, linux.page),
            Err(failure) => println!("no Linux to stand beside: {failure}"),
        }
        println!("\nwhat Linux does there that we do not: it");
        for (operation, what) in OPERATIONS {
            println!("{:<8} {what}", operation.name());
        }
    }
}

fn row(operation: Operation, order: u8, [zero, cleared]: [&Kernel; 2], linux: Option<&Linux>) -> Result<Row, Failure> {
    // Order 9 behind one leaf, as Linux has it.
    let levels = if order == 9 { 0b100 } else { 0b010 };
    let shape = Shape::of_masks(1 << order, levels).next().expect("a shape of the benchmark");
    let of = |kernel: &Kernel, is_floor| {
        let missing = || Failure::wrong(format!("the kernel has no row {} at order {order}", operation.name()));
        kernel.cost(operation, shape, is_floor).filter(|cost| *cost > 0.0).ok_or_else(missing)
    };
    let copied = if operation == Operation::Cow { COPY } else { 0.0 };
    let mut peers = BTreeMap::new();
    if let Some(linux) = linux {
        let missing = || Failure::wrong(format!("Linux has no row {} at order {order}", operation.name()));
        let Cost { whole, corrected } = linux.cost(operation.name(), order).ok_or_else(missing)?;
        peers.extend([(WHOLE, whole), (CORRECTED, corrected)]);
    }
    Ok(Row {
        what: operation.name(),
        order,
        scheme: SCHEME.name(),
        quire: of(zero, false)? - copied,
        quire_whole: of(cleared, false)?,
        floor: of(zero, true)? - copied,
        peers,
        target: target(operation, order),
        unit: "instructions per folio",
    })
}
