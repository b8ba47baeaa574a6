//! Every operation by order, leaf and scheme, beside bare loops and beside the crates that one would take instead.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::Instant;

use quire::addr::Level;
use quire::mapcount::{Accounting, None, Scheme, Total, UnderScheme};
use serde::Serialize;

use crate::peers::{Peer, peers};
use crate::vm::VmWorld;
use crate::work::{Op, Probe, Shape, World};

/// Repetitions of which the median is taken, hot and cold.
pub(crate) const REPETITIONS: [usize; 2] = [21, 7];
pub(crate) const SHAPES: [Shape; 8] = [
    Shape::new(0, Level::ONE),
    Shape::new(2, Level::ONE),
    Shape::new(4, Level::ONE),
    Shape::new(6, Level::ONE),
    Shape::new(8, Level::ONE),
    Shape::new(9, Level::ONE),
    Shape::new(9, Level::TWO),
    Shape::new(18, Level::THREE),
];
/// The second measurement of `total`: what it differs from the first is noise.
const AGAIN: &str = "total again";
/// Locked operations that a call which changes one leaf cannot do without: the locks of space, table and frames, a count and a reference.
const LOCKED: u64 = 5;

/// One measurement, in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) order: u8,
    /// log2 of the pages that each leaf maps.
    pub(crate) leaf: u8,
    /// Tables and records in the caches, or not.
    pub(crate) caches: &'static str,
    pub(crate) scheme: &'static str,
    /// The median.
    pub(crate) quire: f64,
    /// The quartiles around it.
    pub(crate) quartiles: [f64; 2],
    pub(crate) floor: f64,
    /// Medians of those that have a counterpart; they count nothing.
    pub(crate) peers: BTreeMap<&'static str, f64>,
    pub(crate) unit: &'static str,
}

/// Everything; floor, schemes and peers take turns within every repetition.
pub(crate) fn measure() -> Vec<Row> {
    SHAPES.into_iter().flat_map(|shape| [measure_shape(shape, true), measure_shape(shape, false)].concat()).collect()
}

/// What takes turns.
trait Contender {
    fn turn(&self, probe: &mut Clock<'_>);
    fn finish(self: Box<Self>);
}

impl<A: Accounting> Contender for World<A> {
    fn turn(&self, probe: &mut Clock<'_>) {
        if probe.evict.is_some() { self.bulk(probe) } else { self.cycle(probe) }
    }
    fn finish(self: Box<Self>) {
        self.end();
    }
}

impl<A: Accounting> Contender for VmWorld<A> {
    fn turn(&self, probe: &mut Clock<'_>) {
        self.cycle(probe);
    }
    fn finish(self: Box<Self>) {
        self.end();
    }
}

struct Enter(Shape);

impl UnderScheme for Enter {
    type Output = Option<Box<dyn Contender>>;
    fn run<A: Accounting>(self) -> Self::Output {
        let world = World::<A>::new(self.0);
        world.is_possible().then(|| Box::new(world) as Box<dyn Contender>)
    }
}

/// Nanoseconds for each unit, by operation.
type Samples = BTreeMap<&'static str, Vec<f64>>;

/// Times operations; before each it drives everything out of the caches if it has something to do it with.
struct Clock<'a> {
    shape: Shape,
    evict: Option<&'a [u64]>,
    samples: &'a mut Samples,
}

impl Clock<'_> {
    fn note(&mut self, op: Op, units: u64, f: &mut dyn FnMut()) {
        if let Some(buffer) = self.evict {
            // One word of each line.
            black_box(buffer.iter().step_by(8).fold(0, |sum, word| sum ^ word));
        }
        let since = Instant::now();
        f();
        let each = since.elapsed().as_nanos() as f64 / units as f64;
        self.samples.entry(op.name()).or_default().push(each);
    }
}

impl Probe for Clock<'_> {
    fn probe(&mut self, op: Op, f: &mut dyn FnMut()) {
        self.note(op, self.shape.units(op), f);
    }
}

fn measure_shape(shape: Shape, hot: bool) -> Vec<Row> {
    // Cold runs are there for the loops over entries; every scheme has the same.
    if !hot && shape.leaf != Level::ONE {
        return Vec::new();
    }
    let schemes = if hot { Scheme::EACH.to_vec() } else { vec![Scheme::None, Scheme::Total] };
    let mut contenders: Vec<(&'static str, Box<dyn Contender>, Samples)> = schemes
        .into_iter()
        .map(|scheme| (scheme.name(), scheme))
        .chain(hot.then_some((AGAIN, Scheme::Total)))
        .filter_map(|(name, scheme)| Some((name, scheme.run(Enter(shape))?, Samples::new())))
        .collect();
    if shape.has(Op::Stage2) {
        let again = hot.then(|| (AGAIN, Box::new(VmWorld::<Total>::new(shape)) as Box<dyn Contender>));
        let vms: [(_, Box<dyn Contender>); 2] = [
            (None::NAME, Box::new(VmWorld::<None>::new(shape))),
            (Total::NAME, Box::new(VmWorld::<Total>::new(shape))),
        ];
        contenders.extend(vms.into_iter().chain(again).map(|(name, vm)| (name, vm, Samples::new())));
    }
    let mut peers: Vec<(Box<dyn Peer>, Samples)> =
        if hot { peers(shape).into_iter().map(|peer| (peer, Samples::new())).collect() } else { Vec::new() };
    let mut floor = Floor::new(shape);
    let mut floors = Samples::new();
    let buffer = vec![1_u64; if hot { 0 } else { 96 << 17 }];
    let evict = (!hot).then_some(&buffer[..]);
    // The first turn warms up.
    for turn in 0..=REPETITIONS[usize::from(!hot)] {
        let mut scrap = Samples::new();
        let mut on = |samples: &mut Samples, f: &mut dyn FnMut(&mut Clock<'_>)| {
            f(&mut Clock { shape, evict, samples: if turn == 0 { &mut scrap } else { samples } });
        };
        on(&mut floors, &mut |clock| floor.turn(clock));
        for (_, contender, samples) in &mut contenders {
            on(samples, &mut |clock| contender.turn(clock));
        }
        for (peer, samples) in &mut peers {
            on(samples, &mut |clock| peer.turn(clock));
        }
    }
    let mut rows = Vec::new();
    for (scheme, contender, samples) in contenders {
        for op in Op::EACH.into_iter().filter(|op| samples.contains_key(op.name())) {
            let [low, quire, high] = quartiles(&samples[op.name()]);
            rows.push(Row {
                what: op.name(),
                order: shape.order.get(),
                leaf: shape.leaf.leaf_order().get(),
                caches: if hot { "hot" } else { "cold" },
                scheme,
                quire,
                quartiles: [low, high],
                floor: quartiles(&floors[op.name()])[1],
                peers: peers
                    .iter()
                    .filter_map(|(peer, samples)| Some((peer.name(), quartiles(samples.get(op.name())?)[1])))
                    .collect(),
                unit: if Op::BULK.contains(&op) { "ns per leaf" } else { "ns per call" },
            });
        }
        contender.finish();
    }
    rows
}

fn quartiles(samples: &[f64]) -> [f64; 3] {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| samples[(samples.len() - 1) * quarter / 4])
}

/// The same loads and stores of entries without anything else; for calls, the locked operations they need.
struct Floor {
    shape: Shape,
    parent: Vec<AtomicU64>,
    child: Vec<AtomicU64>,
}

impl Floor {
    fn new(shape: Shape) -> Self {
        let words = || (0..shape.leaves()).map(|_| AtomicU64::new(0)).collect();
        Self { shape, parent: words(), child: words() }
    }

    fn turn(&mut self, clock: &mut Clock<'_>) {
        let (parent, child) = (&self.parent[..], &self.child[..]);
        let clear = |words: &[AtomicU64]| {
            let mut sum = 0;
            for word in black_box(words) {
                sum ^= word.load(Relaxed);
                word.store(0, Relaxed);
            }
            black_box(sum);
        };
        let by_entry = self.shape.leaf == Level::ONE;
        for op in Op::EACH.into_iter().filter(|&op| self.shape.has(op)) {
            if op == Op::Ask || (op == Op::Translate && !by_entry) {
                // What changes nothing takes no lock: it loads what it was asked for.
                clock.note(op, 1024, &mut || {
                    for _ in 0..1024 {
                        black_box(black_box(&parent[0]).load(Relaxed));
                    }
                });
                continue;
            }
            if !by_entry || !Op::BULK.contains(&op) {
                let each = if op == Op::Single { 2 * LOCKED } else { LOCKED };
                // Enough of them for the clock.
                clock.note(op, 64, &mut || {
                    for _ in 0..64 * each {
                        black_box(black_box(&parent[0]).swap(0, AcqRel));
                    }
                });
                continue;
            }
            clock.probe(op, &mut || match op {
                Op::Map | Op::Stage2 => {
                    let mut entry = 0x67;
                    for word in black_box(parent) {
                        word.store(entry, Relaxed);
                        entry += 4096;
                    }
                }
                Op::Translate => {
                    black_box(black_box(parent).iter().fold(0, |sum, word| sum ^ word.load(Relaxed)));
                }
                Op::Fork => {
                    for (from, to) in black_box(parent).iter().zip(black_box(child)) {
                        let entry = from.load(Relaxed) & !2;
                        to.store(entry, Relaxed);
                        from.store(entry, Relaxed);
                    }
                }
                Op::Teardown => clear(child),
                _ => clear(parent),
            });
        }
    }
}

/// The rows for people; `total` beside `none` last, as that is what counting costs.
pub(crate) fn show(rows: &[Row]) {
    println!(
        "{:<15} {:>5} {:>4} {:<4}  {:<18} {:>9} {:>19} {:>8} {:>7}  peers",
        "what", "order", "leaf", "", "scheme", "ns", "quartiles", "floor", "ratio"
    );
    for row in rows {
        let Row { what, order, leaf, caches, scheme, quire, quartiles: [low, high], floor, .. } = row;
        let ratio = quire / floor;
        print!(
            "{what:<15} {order:>5} {leaf:>4} {caches:<4}  {scheme:<18} {quire:>9.2} {low:>9.2}..{high:<8.2} {floor:>8.2} {ratio:>7.1}"
        );
        if *scheme == Total::NAME {
            for (name, ns) in &row.peers {
                print!("  {name} {ns:.2}");
            }
        }
        println!();
    }
    println!("\n{} beside {}, and beside itself", Total::NAME, None::NAME);
    for row in rows.iter().filter(|row| row.scheme == Total::NAME) {
        let of = |scheme| {
            rows.iter()
                .find(|other| {
                    let key = |row: &Row| (row.what, row.order, row.leaf, row.caches);
                    other.scheme == scheme && key(other) == key(row)
                })
                .map(|other| row.quire / other.quire)
        };
        print!(
            "{:<15} {:>5} {:>4} {:<4} {:>6.2}",
            row.what,
            row.order,
            row.leaf,
            row.caches,
            of(None::NAME).unwrap_or(1.0)
        );
        println!("  {}", of(AGAIN).map_or_else(String::new, |ratio| format!("{ratio:>6.2}")));
    }
}

#[cfg(test)]
mod tests {
    use super::{Level, Op, Shape, measure_shape};

    #[test]
    fn every_operation_takes_time() {
        for shape in [Shape::new(0, Level::ONE), Shape::new(9, Level::TWO), Shape::new(18, Level::THREE)] {
            let rows = measure_shape(shape, true);
            assert!(rows.len() >= 40, "{}", rows.len());
            let of_vms = rows.iter().filter(|row| row.what.starts_with("stage2")).count();
            assert_eq!(of_vms, if shape.has(Op::Stage2) { 6 } else { 0 });
            for row in rows {
                assert!([row.quire, row.floor].iter().all(|&ns| ns > 0.0 && ns.is_finite()), "{row:?}");
                assert!(row.peers.values().all(|&ns| ns > 0.0 && ns.is_finite()), "{row:?}");
            }
        }
    }
}
