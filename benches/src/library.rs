//! map, fork, teardown and unmap for orders 2 to 9, each scheme, beside bare loops.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use quire::addr::{Gva, Level, Order, Pfn};
use quire::mapcount::{Accounting, None, PerPage, Total, Tuples};
use quire::space::{Access, Manager, Map, Policy, Prot};
use serde::Serialize;

use crate::machine::Frames;

/// Repetitions of which the median is taken.
pub(crate) const REPETITIONS: usize = 15;
const PAGES: u64 = 16384;
const FRAMES: u64 = 2 * PAGES;
const ORDERS: [u8; 5] = [2, 4, 6, 8, 9];
const WHAT: [&str; 4] = ["map", "fork", "teardown", "unmap"];

/// One measurement, in nanoseconds for each page of 4 KiB.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) order: u8,
    pub(crate) scheme: &'static str,
    pub(crate) quire: f64,
    pub(crate) floor: f64,
    pub(crate) unit: &'static str,
}

/// Everything, floor and schemes interleaved.
pub(crate) fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for order in ORDERS.map(Order::new) {
        let mut samples = Samples::default();
        for _ in 0..REPETITIONS {
            samples.floor.push(floor());
            samples.schemes[0].push(scheme::<None>(order));
            samples.schemes[1].push(scheme::<Total>(order));
            samples.schemes[2].push(scheme::<PerPage>(order));
            samples.schemes[3].push(scheme::<Tuples>(order));
        }
        for (i, name) in [None::NAME, Total::NAME, PerPage::NAME, Tuples::NAME].into_iter().enumerate() {
            for (j, what) in WHAT.into_iter().enumerate() {
                let median = |of: &[[f64; 4]]| {
                    let mut values: Vec<f64> = of.iter().map(|sample| sample[j]).collect();
                    values.sort_by(f64::total_cmp);
                    values[values.len() / 2]
                };
                rows.push(Row {
                    what,
                    order: order.get(),
                    scheme: name,
                    quire: median(&samples.schemes[i]),
                    floor: median(&samples.floor),
                    unit: "ns per 4 KiB page",
                });
            }
        }
    }
    rows
}

#[derive(Default)]
struct Samples {
    floor: Vec<[f64; 4]>,
    schemes: [Vec<[f64; 4]>; 4],
}

fn per_page(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / PAGES as f64
}

/// The same loads and stores without anything else: store an entry; load, narrow, store twice; load and clear, twice over.
fn floor() -> [f64; 4] {
    let words = || (0..PAGES).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (parent, child) = (words(), words());
    let since = Instant::now();
    let mut entry = 0x67;
    for word in black_box(&parent) {
        word.store(entry, Relaxed);
        entry += 4096;
    }
    let map = per_page(since);
    let since = Instant::now();
    for (from, to) in black_box(&parent).iter().zip(black_box(&child)) {
        let entry = from.load(Relaxed) & !2;
        to.store(entry, Relaxed);
        from.store(entry, Relaxed);
    }
    let fork = per_page(since);
    let clear = |words: &[AtomicU64]| {
        let since = Instant::now();
        let mut sum = 0;
        for word in black_box(words) {
            sum ^= word.load(Relaxed);
            word.store(0, Relaxed);
        }
        black_box(sum);
        per_page(since)
    };
    [map, fork, clear(&child), clear(&parent)]
}

/// The manager: 64 MiB mapped by faults, forked, the child ended, the parent's mapping removed.
fn scheme<A: Accounting>(order: Order) -> [f64; 4] {
    let policy = Policy { max_leaf: Level::ONE, ..Policy::only(order) };
    let frames = Pfn::new(0)..Pfn::new(FRAMES);
    let manager = Manager::<_, A>::new(Frames::new(FRAMES as usize), &[frames], true, policy).expect("enough frames");
    let at = Gva::new(0x10_0000_0000);
    let parent = manager.create_space().expect("a frame");
    manager.map(parent, at, PAGES, Prot { read: true, write: true, exec: false }, Map::Anon).expect("a free range");
    let since = Instant::now();
    for block in 0..PAGES >> order.get() {
        manager.fault(parent, at.add_pages(block << order.get()), Access::Write).expect("enough frames");
    }
    let map = per_page(since);
    let since = Instant::now();
    let child = manager.fork(parent).expect("enough frames");
    let fork = per_page(since);
    let since = Instant::now();
    manager.destroy_space(child);
    let teardown = per_page(since);
    let since = Instant::now();
    manager.unmap(parent, at, PAGES).expect("a mapped range");
    let unmap = per_page(since);
    manager.destroy_space(parent);
    assert!(manager.trim(), "frames are left");
    [map, fork, teardown, unmap]
}

#[cfg(test)]
mod tests {
    use super::{Order, Total, scheme};

    #[test]
    fn every_operation_takes_time() {
        assert!(scheme::<Total>(Order::new(4)).iter().all(|&ns| ns > 0.0 && ns.is_finite()));
    }
}
