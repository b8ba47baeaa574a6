//! Operations on VMs: what is booted for them, and what their samples say of layers and of the ledger.

use std::fs;

use quire::abi::bench::{Layer, Operation, Shape};
use quire::mapcount::Scheme;

use super::measure::{Collection, Key, Options};
use super::plan::{Frames, Plan};
use super::rows::{Ledger, NestedLayers, Row};
use crate::error::Error;
use crate::replay::Stage2;

/// Memory of the VM whose end is timed, where the host has room for what it takes.
const MEMORY: u64 = 1 << 30;
/// Pages of folios in a round of what takes no exceptions, and rounds of it.
const PAGES: u64 = 4096;
const ROUNDS: u64 = 4;
/// The least.
pub const LEAST_MEMORY: u64 = 4 << 20;
/// The schemes that count VMs in the kernel's benchmark.
pub(super) const SCHEMES: [Scheme; 2] = [Scheme::None, Scheme::Total];
/// Those of the operations that are about the end of a VM.
const END: [Operation; 2] = [Operation::VmTeardown, Operation::VmmTeardown];

/// How operations on VMs are measured.
#[derive(Clone, Debug)]
pub struct Vms {
    /// The schemes: `none` and `total` are there.
    pub schemes: Vec<Scheme>,
    /// How stage-2 tables are written.
    pub stage2: Stage2,
    /// Bytes of the VM whose end is timed. Nobody touches them: what the host gives are tables and descriptors.
    pub memory: u64,
}

impl Vms {
    /// With `memory` bytes for the VM whose end is timed, or as many as the host has room for.
    ///
    /// # Errors
    /// When no VM can be counted by a scheme, the size is none of whole folios, or the host lacks the engine.
    pub fn new(schemes: Vec<Scheme>, stage2: Stage2, memory: Option<u64>) -> Result<Self, Error> {
        if let Some(scheme) = schemes.iter().find(|scheme| !SCHEMES.contains(scheme)) {
            return Err(Error::Usage(format!("--scheme {scheme}: VMs are benchmarked under `none` and `total`")));
        }
        let memory = memory.unwrap_or_else(default_memory);
        if memory < LEAST_MEMORY || !memory.is_multiple_of(2 << 20) {
            return Err(Error::Usage(format!("--vm-memory {memory}: a multiple of 2M, from 4M up")));
        }
        if stage2 == Stage2::None {
            return Err(Error::Usage("--stage2 none: there is no VM to benchmark then".to_owned()));
        }
        stage2.require()?;
        Ok(Self { schemes, stage2, memory })
    }
}

/// [`MEMORY`], or as much of it as has room in what is available: tables, descriptors and the recount take up to a sixteenth.
fn default_memory() -> u64 {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    });
    let room = available.map_or(MEMORY, |available| available.saturating_mul(8));
    let mut memory = MEMORY;
    while memory > room && memory > LEAST_MEMORY {
        memory /= 2;
    }
    memory
}

/// Whether an operation is done to VMs.
pub(super) fn is_of_vms(operation: Operation) -> bool {
    Operation::OF_VMS.contains(&operation)
}

/// A row as it is shown: what is done to a whole VM by page, and where folios are what it is done to by folio too.
pub(super) fn in_units(row: Row, operation: Operation, shape: Shape) -> Vec<Row> {
    if !is_of_vms(operation) || !operation.is_bulk() {
        return vec![row];
    }
    let by_page = row.scaled(1.0 / shape.order.pages() as f64, "ns per page");
    match operation {
        Operation::Clone | Operation::VmTeardown | Operation::VmmTeardown => vec![by_page, row],
        _ => vec![by_page],
    }
}

impl Collection {
    /// One turn of operations on VMs.
    pub(super) fn turn_of_vms(&mut self, options: &Options, vms: &Vms, is_first: bool) -> Result<(), Error> {
        let mut small = options.among(&Operation::OF_VMS);
        small.retain(|operation| !END.contains(operation) && *operation != Operation::NestedFault);
        // In guest mode processes do not come by composed tables.
        let nested = if vms.stage2 == Stage2::Shadow { options.among(&[Operation::NestedFault]) } else { Vec::new() };
        for &scheme in &vms.schemes {
            let plan = Plan {
                scheme,
                shapes: options.shapes.clone(),
                ring: options.ring,
                stage2: vms.stage2,
                frames: Frames::KnownZero,
                rounds: 2,
                samples: options.samples.div_ceil(options.turns),
                is_recounted: is_first,
                ..Plan::default()
            };
            self.boot(&Plan { operations: small.clone(), pages: PAGES, rounds: ROUNDS, ..plan.clone() }, options)?;
            self.boot(&Plan { operations: nested.clone(), ..plan.clone() }, options)?;
            for &shape in &options.shapes {
                let end = Plan {
                    operations: options.among(&END),
                    shapes: vec![shape],
                    frames: Frames::Fresh,
                    pages: vms.memory >> 12,
                    rounds: 2,
                    samples: 0,
                    ..plan.clone()
                };
                self.boot(&end, options)?;
            }
            let layers = Plan { operations: nested.clone(), has_layers: true, is_recounted: false, ..plan };
            self.boot(&layers, options)?;
        }
        Ok(())
    }

    /// The layers of nested faults.
    pub(super) fn nested_layers(&self, options: &Options, vms: &Vms) -> Vec<NestedLayers> {
        let mut all = Vec::new();
        for (scheme, name) in self.schemes.iter().enumerate().filter(|(_, name)| vms.schemes.contains(name)) {
            for &shape in &options.shapes {
                let key = |kind: u8, in_layers: bool| Key { scheme, kind, shape, frames: Frames::KnownZero, in_layers };
                let Some(whole) = self.series.get(&key(Operation::NestedFault as u8, false)) else { continue };
                let layer =
                    |layer: Layer| self.series.get(&key(layer as u8, true)).map_or(0.0, |series| series.quire.at(0.5));
                let (total, exception_and_return) = (whole.quire.at(0.5), whole.floor.at(0.5));
                let [reflect, guest, host, stage2, compose, accounting] = Layer::OF_VMS.map(layer);
                let levels = reflect + guest + host + stage2 + compose;
                all.push(NestedLayers {
                    order: shape.order.get(),
                    leaf: shape.level.leaf_order().get(),
                    scheme: name.name(),
                    total,
                    exception_and_return,
                    reflect,
                    guest,
                    host,
                    stage2,
                    compose,
                    residue: total - exception_and_return - levels,
                    accounting,
                    part_of_fault: accounting / total,
                    part_of_levels: accounting / levels,
                });
            }
        }
        all
    }

    /// `total` beside `none`, where both were measured.
    pub(super) fn ledger(&self, options: &Options) -> Vec<Ledger> {
        let of = |scheme: Scheme| self.schemes.iter().position(|&found| found == scheme);
        let (Some(none), Some(total)) = (of(Scheme::None), of(Scheme::Total)) else { return Vec::new() };
        let mut all = Vec::new();
        for operation in Operation::OF_VMS {
            for &shape in &options.shapes {
                let frames = if END.contains(&operation) { Frames::Fresh } else { Frames::KnownZero };
                let turns = |scheme: usize| {
                    let key = Key { scheme, kind: operation as u8, shape, frames, in_layers: false };
                    self.series.get(&key).map(|series| series.turns.iter().map(|turn| turn.quire))
                };
                let (Some(none), Some(total)) = (turns(none), turns(total)) else { continue };
                let mut ratios: Vec<f64> = total.zip(none).map(|(total, none)| total / none).collect();
                ratios.sort_by(f64::total_cmp);
                let [low, to_none, high] = [1, 2, 3].map(|quarter| ratios[(ratios.len() - 1) * quarter / 4]);
                all.push(Ledger {
                    what: operation.name(),
                    order: shape.order.get(),
                    leaf: shape.level.leaf_order().get(),
                    to_none,
                    quartiles: [low, high],
                });
            }
        }
        all
    }
}
