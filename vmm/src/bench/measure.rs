//! The benchmark in turns: each turn measures everything once, in VMs of their own, so that what drifts on the host falls on all rows.

use std::collections::BTreeMap;
use std::time::Duration;

use quire::abi::bench::{Layer, Operation, Scope, Shape, batch, spare, word};
use quire::abi::replay::metadata_of;
use quire::abi::results;
use quire::abi::sample::Sample;
use quire::addr::{Level, Order};
use quire::mapcount::Scheme;

use super::launch;
use super::plan::{Frames, Plan};
use super::rows::{Bench, Distribution, Layers, METADATA, Recording, Row, Turn};
use super::vms::{self, Vms};
use crate::doctor::Host;
use crate::error::Error;
use crate::memory::{Backing, Populate};
use crate::replay::Ring;
use crate::run::{MachineConfig, NoHost, Outcome, Status};
use crate::{kernel, progress, run};

/// How long the guest may work without an exit.
const WATCHDOG: Duration = Duration::from_secs(120);
/// Pages that are mapped where metadata is read, below order 9 and from there on: so many folios that what there is one of does not count.
const METADATA_PAGES: [u64; 2] = [1 << 14, 1 << 18];

/// What a copy on write makes.
const BASE: Shape = Shape { order: Order::BASE, level: Level::ONE };

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The operations.
    pub operations: Vec<Operation>,
    /// Where the time of faults goes, too.
    pub layers: bool,
    /// What metadata takes, too.
    pub metadata: bool,
    /// How often this program is started, to see what a launch takes; 0 for not at all.
    pub launches: u64,
    /// The shapes.
    pub shapes: Vec<Shape>,
    /// The schemes.
    pub schemes: Vec<Scheme>,
    /// How the operations on VMs are measured, if any are wanted.
    pub vms: Option<Vms>,
    /// The ring of the manager.
    pub ring: Ring,
    /// The host's memory behind the guest's.
    pub guest_memory: Backing,
    /// How often.
    pub turns: u64,
    /// Samples of an operation on one folio, at least, over all turns.
    pub samples: u64,
}

/// The orders that are measured when none is named.
pub const ORDERS: [u8; 6] = [0, 2, 4, 6, 8, 9];

impl Options {
    /// Those of the operations that are among `wanted`.
    pub(super) fn among(&self, wanted: &[Operation]) -> Vec<Operation> {
        self.operations.iter().copied().filter(|operation| wanted.contains(operation)).collect()
    }
}

impl Default for Options {
    fn default() -> Self {
        let mask = ORDERS.iter().fold(0, |mask, order| mask | 1 << order);
        Self {
            operations: Operation::EACH.to_vec(),
            layers: true,
            metadata: true,
            launches: 30,
            shapes: Shape::of_masks(mask, u64::MAX).collect(),
            schemes: vec![Scheme::Total],
            vms: None,
            ring: Ring::Auto,
            guest_memory: Backing::Anon,
            turns: 10,
            samples: 400,
        }
    }
}

/// What samples are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// In the collection's list.
    pub(super) scheme: usize,
    pub(super) kind: u8,
    pub(super) shape: Shape,
    pub(super) frames: Frames,
    /// From a run that times layers.
    pub(super) in_layers: bool,
}

/// The samples of a key and their floor.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) quire: Distribution,
    pub(super) floor: Distribution,
    pub(super) turns: Vec<Turn>,
}

/// Everything collected.
#[derive(Debug, Default)]
pub(super) struct Collection {
    pub(super) series: BTreeMap<Key, Series>,
    pub(super) schemes: Vec<Scheme>,
    ring: Option<u64>,
    stamps_ns: f64,
    otherwise: u64,
    checks: u64,
}

/// Measures.
///
/// # Errors
/// When the host lacks KVM, or the kernel found something wrong.
pub fn measure(options: &Options) -> Result<Bench, Error> {
    let mut all = Collection::default();
    for turn in 0..options.turns {
        let what = format!("benchmark, turn {} of {}", turn + 1, options.turns);
        progress::during(&what, || all.turn(options, turn == 0))?;
    }
    let mut rows = all.rows();
    if options.metadata {
        for &scheme in &options.schemes {
            rows.extend(progress::during("metadata", || metadata(options, scheme))?);
        }
    }
    if options.launches > 0 {
        rows.extend(progress::during("launches", || launch::rows(options.launches))?);
    }
    let is_fault = |row: &&Row| [Operation::Fault, Operation::NestedFault].iter().any(|fault| fault.name() == row.what);
    let fastest = rows.iter().filter(is_fault).map(|row| row.quire);
    let fastest = fastest.fold(f64::INFINITY, f64::min);
    let bench = Bench {
        quire: env!("CARGO_PKG_VERSION"),
        backend: "kvm",
        ring: all.ring,
        host: Host::here(),
        guest_memory: options.guest_memory.name(),
        turns: options.turns,
        pages: Plan::default().pages,
        otherwise: all.otherwise,
        checks: all.checks,
        recording: fastest
            .is_finite()
            .then(|| Recording { stamps_ns: all.stamps_ns, part_of_fault: all.stamps_ns / fastest }),
        layers: if options.layers { all.layers(options) } else { Vec::new() },
        stage2: options.vms.as_ref().map(|vms| vms.stage2.name()),
        vm_memory: options.vms.as_ref().map(|vms| vms.memory),
        nested_layers: options.vms.as_ref().map(|vms| all.nested_layers(options, vms)).unwrap_or_default(),
        ledger: all.ledger(options),
        rows,
    };
    match bench.nonsense() {
        None => Ok(bench),
        Some(row) => Err(Error::Exit(format!("{} of order {} was measured as {}", row.what, row.shape(), row.quire))),
    }
}

/// Runs one plan in a VM.
fn boot(plan: &Plan, options: &Options) -> Result<Outcome, Error> {
    let machine = MachineConfig {
        memory: plan.memory(),
        backing: options.guest_memory,
        populate: if plan.frames == Frames::Fresh { Populate::Lazy } else { Populate::Before },
        samples: plan.room(),
        watchdog: WATCHDOG,
        boot: plan.boot_words(),
        ..MachineConfig::default()
    };
    let outcome = run(kernel::ELF, &machine, &[], &mut NoHost)?;
    log::debug!("{:?} of {} shapes: {:?}", plan.frames, plan.shapes.len(), outcome.timings);
    let lost = outcome.words[results::SAMPLES_LOST];
    match (outcome.status, &outcome.panic) {
        (_, Some(panic)) => Err(Error::Panic(panic.clone())),
        (Status::Pass, None) if lost == 0 => Ok(outcome),
        (Status::Pass, None) => Err(Error::Exit(format!("{lost} samples found no room"))),
        _ => Err(Error::Exit(outcome.log.lines().collect::<Vec<_>>().join("; "))),
    }
}

impl Collection {
    /// One turn: every scheme with every kind of frames.
    fn turn(&mut self, options: &Options, is_first: bool) -> Result<(), Error> {
        let among = |wanted: &[Operation]| options.among(wanted);
        for &name in &options.schemes {
            let plan = Plan {
                scheme: name,
                shapes: options.shapes.clone(),
                ring: options.ring,
                rounds: 2,
                samples: options.samples.div_ceil(options.turns),
                is_recounted: is_first,
                ..Plan::default()
            };
            let cleared = Plan { operations: among(&Operation::EACH), ..plan.clone() };
            self.boot(&cleared, options)?;
            let known = Plan {
                operations: among(&[Operation::Fault, Operation::Touch]),
                frames: Frames::KnownZero,
                ..plan.clone()
            };
            self.boot(&known, options)?;
            for &shape in &options.shapes {
                // A VM for each: none may find what another has touched.
                let fresh = Plan {
                    operations: among(&[Operation::Fault]),
                    frames: Frames::Fresh,
                    shapes: vec![shape],
                    samples: 0,
                    ..plan.clone()
                };
                self.boot(&fresh, options)?;
            }
            if options.layers {
                let mut shapes = options.shapes.clone();
                if !shapes.contains(&BASE) {
                    shapes.push(BASE);
                }
                let layers = Plan {
                    shapes,
                    operations: among(&[Operation::Fault, Operation::Cow]),
                    has_layers: true,
                    is_recounted: false,
                    ..plan
                };
                self.boot(&layers, options)?;
            }
        }
        if let Some(vms) = &options.vms {
            self.turn_of_vms(options, vms, is_first)?;
        }
        Ok(())
    }

    /// Runs one plan and keeps its samples.
    pub(super) fn boot(&mut self, plan: &Plan, options: &Options) -> Result<(), Error> {
        if plan.operations.is_empty() || plan.shapes.is_empty() {
            return Ok(());
        }
        let scheme = self.schemes.iter().position(|&scheme| scheme == plan.scheme).unwrap_or_else(|| {
            self.schemes.push(plan.scheme);
            self.schemes.len() - 1
        });
        let outcome = boot(plan, options)?;
        let tick_ns = outcome.nanoseconds_per_tick();
        self.ring = Some(outcome.words[results::RING]);
        self.stamps_ns = outcome.words[results::STAMP_PAIR] as f64 * tick_ns;
        let general = outcome.general();
        self.otherwise += plan.shapes.iter().map(|shape| general[word::OTHERWISE + shape.index()]).sum::<u64>();
        self.checks += general[word::CHECKS];

        let mut values: BTreeMap<Key, [Vec<f64>; 2]> = BTreeMap::new();
        for sample in &outcome.samples {
            let Some((shape, is_floor)) = shape_of(sample) else { continue };
            let key = Key { scheme, kind: sample.kind, shape, frames: plan.frames, in_layers: plan.has_layers };
            let value = f64::from(sample.ticks) * tick_ns / units(sample.kind, shape, plan.pages);
            values.entry(key).or_default()[usize::from(is_floor)].push(value);
        }
        for (key, [quire, floor]) in values {
            let series = self.series.entry(key).or_default();
            quire.iter().for_each(|&value| series.quire.record(value));
            floor.iter().for_each(|&value| series.floor.record(value));
            if let Some(quire) = median(quire) {
                series.turns.push(Turn { quire, floor: median(floor) });
            }
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let rows = self.series.iter().filter(|(key, _)| !key.in_layers).filter_map(|(key, series)| {
            let operation = Operation::of_kind(key.kind)?;
            let percentiles = series.quire.percentiles()?;
            let floor = series.floor.percentiles();
            let row = Row {
                what: operation.name().to_owned(),
                order: Some(key.shape.order.get()),
                leaf: Some(key.shape.level.leaf_order().get()),
                frames: Some(key.frames.name().to_owned()),
                scheme: Some(self.schemes[key.scheme].name().to_owned()),
                headline: key.frames == Frames::ToClear || vms::is_of_vms(operation),
                quire: percentiles.p50,
                floor: floor.map(|floor| floor.p50),
                peers: BTreeMap::new(),
                unit: match operation.scope() {
                    Scope::All if !vms::is_of_vms(operation) => "ns per page",
                    Scope::Pages => "ns per page",
                    _ => "ns per folio",
                }
                .to_owned(),
                percentiles: Some(percentiles),
                floor_percentiles: floor,
                turns: series.turns.clone(),
                histogram: series.quire.buckets(),
            };
            Some(vms::in_units(row, operation, key.shape))
        });
        let mut rows: Vec<_> = rows.flatten().collect();
        let each = || Operation::EACH.into_iter().chain(Operation::OF_VMS);
        rows.sort_by_key(|row: &Row| each().position(|operation| operation.name() == row.what));
        rows
    }

    /// The layers of faults: what each of them is, is said at [`Layers`].
    fn layers(&self, options: &Options) -> Vec<Layers> {
        let mut all = Vec::new();
        for (scheme, name) in self.schemes.iter().enumerate().filter(|(_, name)| options.schemes.contains(name)) {
            for (operation, manager) in [(Operation::Fault, Layer::FaultManager), (Operation::Cow, Layer::CowManager)] {
                for &shape in &options.shapes {
                    let median = |kind: u8, frames: Frames, in_layers: bool| {
                        let series = self.series.get(&Key { scheme, kind, shape, frames, in_layers })?;
                        (series.quire.count() > 0).then(|| series.quire.at(0.5))
                    };
                    let of = |kind: u8| median(kind, Frames::ToClear, true);
                    let layer = |layer: Layer| of(layer as u8).unwrap_or(0.0);
                    let (Some(total), Some(manager)) = (of(operation as u8), of(manager as u8)) else { continue };
                    let is_fault = operation == Operation::Fault;
                    // What a copy allocates, counts and stores is one page of its own.
                    let of_base = |layer: Layer| {
                        let key =
                            Key { scheme, kind: layer as u8, shape: BASE, frames: Frames::ToClear, in_layers: true };
                        self.series.get(&key).map_or(0.0, |series| series.quire.at(0.5))
                    };
                    let part = |kind: Layer| if is_fault { layer(kind) } else { of_base(kind) };
                    let [allocation, accounting, table_stores] =
                        [Layer::Allocate, Layer::Account, Layer::Store].map(part);
                    let zeroing = layer(if is_fault { Layer::Zero } else { Layer::Copy });
                    let flush = if is_fault { 0.0 } else { layer(Layer::Flush) };
                    let fresh = median(operation as u8, Frames::Fresh, false);
                    let known = median(operation as u8, Frames::KnownZero, false);
                    all.push(Layers {
                        what: operation.name(),
                        order: shape.order.get(),
                        leaf: shape.level.leaf_order().get(),
                        scheme: name.name(),
                        total,
                        exception_and_return: total - manager,
                        manager,
                        allocation,
                        zeroing,
                        accounting,
                        table_stores,
                        flush,
                        residue: manager - allocation - zeroing - accounting - table_stores - flush,
                        stage2: fresh.zip(known).map(|(fresh, known)| fresh - known),
                    });
                }
            }
        }
        all
    }
}

/// The shape of a sample, and whether it is of the floor.
fn shape_of(sample: &Sample) -> Option<(Shape, bool)> {
    let level = (sample.spare & !spare::FLOOR) as u8;
    let level = (1..=2).contains(&level).then(|| Level::new(level))?;
    Some((Shape { order: sample.order, level }, sample.spare & spare::FLOOR != 0))
}

/// What the ticks of a sample are divided by: pages for what is done to all of them, else folios. What is done to a whole VM is kept by folio too, as a page of a large one takes too
/// little.
fn units(kind: u8, shape: Shape, pages: u64) -> f64 {
    let folios = shape.folios(pages);
    let units = match (Operation::of_kind(kind), Layer::of_kind(kind)) {
        (Some(operation), _) => match operation.scope() {
            Scope::Folio => 1,
            Scope::Folios => batch(folios),
            Scope::Pages => batch(pages),
            Scope::All if vms::is_of_vms(operation) => folios,
            Scope::All => pages,
        },
        (_, Some(layer)) => layer.folios(folios),
        _ => 1,
    };
    units as f64
}

/// The middle one.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What the manager keeps for 64 MiB that are mapped whole, or for 1 GiB at order 9, by shape: where there are processes alone; where VMs are counted too, but none has mapped any
/// of it; and where one has mapped all of it.
fn metadata(options: &Options, scheme: Scheme) -> Result<Vec<Row>, Error> {
    let (huge, small): (Vec<_>, Vec<_>) = options.shapes.iter().partition(|shape| shape.order >= Order::HUGE);
    let mut rows = Vec::new();
    for (shapes, pages) in [(small, METADATA_PAGES[0]), (huge, METADATA_PAGES[1])] {
        rows.extend(metadata_with(options, scheme, &shapes, pages, Operation::Fault)?);
        if vms::SCHEMES.contains(&scheme) {
            rows.extend(metadata_with(options, scheme, &shapes, pages, Operation::Stage2Fault)?);
        }
    }
    rows.sort_by_key(|row| METADATA.iter().position(|&what| what == row.what));
    Ok(rows)
}

fn metadata_with(
    options: &Options,
    scheme: Scheme,
    shapes: &[Shape],
    pages: u64,
    operation: Operation,
) -> Result<Vec<Row>, Error> {
    if shapes.is_empty() {
        return Ok(Vec::new());
    }
    let plan = Plan {
        operations: vec![operation],
        shapes: shapes.to_vec(),
        scheme,
        ring: options.ring,
        frames: Frames::KnownZero,
        pages,
        rounds: 0,
        samples: 0,
        ..Plan::default()
    };
    let outcome = boot(&plan, options)?;
    let general = outcome.general();
    let mut rows = Vec::new();
    for &shape in shapes {
        let index = shape.index();
        let found: &[_] = if vms::is_of_vms(operation) {
            &[(METADATA[1], word::compact(index)), (METADATA[2], word::metadata(index))]
        } else {
            &[(METADATA[0], word::metadata(index))]
        };
        let folios = shape.folios(pages) as f64;
        for &(what, first) in found {
            let found = metadata_of(&general[first..]);
            let bytes = (found.carved_bytes + found.slot_bytes + found.folio_bytes) as f64;
            for (value, unit) in [(bytes / pages as f64, "bytes per frame"), (bytes / folios, "bytes per folio")] {
                rows.push(Row {
                    what: what.to_owned(),
                    order: Some(shape.order.get()),
                    leaf: Some(shape.level.leaf_order().get()),
                    frames: None,
                    scheme: Some(scheme.name().to_owned()),
                    headline: true,
                    quire: value,
                    floor: None,
                    peers: BTreeMap::new(),
                    unit: unit.to_owned(),
                    percentiles: None,
                    floor_percentiles: None,
                    turns: Vec::new(),
                    histogram: Vec::new(),
                });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::{BASE, Collection, Frames, Key, Layer, Operation, Options, Scheme, Series};

    #[test]
    fn layers_are_those_of_the_scheme_they_are_named_after() {
        let mut all = Collection { schemes: vec![Scheme::Total, Scheme::PerPage], ..Collection::default() };
        for (scheme, nanoseconds) in [(0, 100.0), (1, 200.0)] {
            for kind in [Operation::Fault as u8, Layer::FaultManager as u8] {
                let mut series = Series::default();
                series.quire.record(nanoseconds);
                all.series.insert(Key { scheme, kind, shape: BASE, frames: Frames::ToClear, in_layers: true }, series);
            }
        }
        let schemes = vec![Scheme::Total, Scheme::Total, Scheme::PerPage];
        let layers = all.layers(&Options { schemes, shapes: vec![BASE], ..Options::default() });
        let found: Vec<_> = layers.iter().map(|layers| (layers.scheme, layers.total.round())).collect();
        assert_eq!(found, [("total", 100.0), ("per-page", 200.0)]);
    }
}
