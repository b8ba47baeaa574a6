//! A manager with a tenant in it, and how an operation is timed.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::bench::{Layer, Operation, Shape, batch, spare};
use quire::abi::sample::Sample;
use quire::abi::stamp;
use quire::addr::Gva;
use quire::mapcount::Accounting;
use quire::space::{Access, Fault, FaultError, FaultKind, Manager, Map, Prot, SpaceId};

use crate::machine::Machine;
use crate::touch::{self, Verdict, error};
use crate::{cpu, log};

/// Where the tenant's memory begins.
pub const AT: Gva = Gva::new(0x40_0000_0000);
/// Seed of what it stores.
pub const SEED: u64 = 0xbe4c;
const RW: Prot = Prot { read: true, write: true, exec: false };

/// Makes samples of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Whether anything is noted.
    pub runs: bool,
    /// What the samples are of.
    pub shape: Shape,
    /// Whether they are of the floor.
    pub is_floor: bool,
}

impl Clock {
    /// Times `work` as one `operation`.
    pub fn time<T>(self, operation: Operation, work: impl FnOnce() -> T) -> T {
        self.time_kind(operation as u8, work)
    }

    /// Does `work` for each of `all`, and times it as one `operation` for each whole [`batch`].
    ///
    /// # Errors
    /// The first of `work`.
    pub fn time_batches<T>(
        self,
        operation: Operation,
        all: impl ExactSizeIterator<Item = T>,
        work: impl Fn(T) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        let size = batch(all.len() as u64);
        let mut all = all;
        while all.len() > 0 {
            let whole = Self { runs: self.runs && all.len() as u64 >= size, ..self };
            whole.time(operation, || all.by_ref().take(size as usize).try_for_each(&work))?;
        }
        Ok(())
    }

    /// Times `work` as `layer`.
    pub fn time_layer<T>(self, layer: Layer, work: impl FnOnce() -> T) -> T {
        self.time_kind(layer as u8, work)
    }

    fn time_kind<T>(self, kind: u8, work: impl FnOnce() -> T) -> T {
        let since = cpu::tsc();
        let result = work();
        self.note(kind, cpu::tsc() - since);
        result
    }

    /// A sample of `ticks` that were counted elsewhere.
    fn note(self, kind: u8, ticks: u64) {
        if self.runs {
            touch::record(Sample {
                ticks: ticks.min(u64::from(u32::MAX)) as u32,
                order: self.shape.order,
                kind,
                spare: spare::of(self.shape.level, self.is_floor),
            });
        }
    }

    /// Tells the touch program that the fault it is about to resume from was one of `operation`.
    pub fn mark(self, operation: Operation) {
        if self.runs {
            touch::mark(self.shape.order, operation as u8, spare::of(self.shape.level, self.is_floor));
        }
    }
}

/// A manager, and what its tenant does.
#[derive(Debug)]
pub struct Stage<'a, 'm, A: Accounting> {
    /// The machine.
    pub machine: &'m Machine,
    /// The manager.
    pub manager: &'a Manager<&'m Machine, A>,
    /// Who notes the times.
    pub clock: Clock,
    /// Pages of folios.
    pub pages: u64,
    /// Whether the manager's part of each fault is timed as well.
    pub has_layers: bool,
}

impl<A: Accounting> Stage<'_, '_, A> {
    /// Folios of the tenant's memory.
    pub fn folios(&self) -> u64 {
        self.clock.shape.folios(self.pages)
    }

    /// Where folio `nth` begins.
    pub fn folio_at(&self, nth: u64) -> Gva {
        AT.add_pages(nth << self.clock.shape.order.get())
    }

    /// A space with memory that nobody has touched, whose tables are loaded.
    ///
    /// # Errors
    /// When frames ran out.
    pub fn space(&self) -> Result<SpaceId, &'static str> {
        let space = self.manager.create_space().map_err(|_| "benchmark: no frame for a space")?;
        self.manager.map(space, AT, self.pages, RW, Map::Anon).map_err(|_| "benchmark: mmap was refused")?;
        self.machine.load_root(self.manager.root(space));
        Ok(space)
    }

    /// A space with every folio faulted in, whose tables are loaded.
    ///
    /// # Errors
    /// What was wrong.
    pub fn full_space(&self) -> Result<SpaceId, &'static str> {
        let space = self.space()?;
        self.store_to_each(space, None, 0)?;
        Ok(space)
    }

    /// Stores to page `page` of each folio, one after the other; what was not of the kind that `operation` means.
    ///
    /// # Errors
    /// When a store did not fault just once, or found what it should not.
    pub fn store_to_each(&self, space: SpaceId, operation: Option<Operation>, page: u64) -> Result<u64, &'static str> {
        let mut faulting = Faulting { stage: self, space, operation, faults: 0, otherwise: 0 };
        for nth in 0..self.folios() {
            let at = self.folio_at(nth).add_pages(page);
            let sum = self.machine.touch(&mut faulting, at, 1, touch::Access::Store(SEED)).sum;
            // A page is zero until it is stored to, which the first of each folio was.
            let was_stored = page == 0 && matches!(operation, Some(Operation::Cow | Operation::Reuse));
            let expected = if was_stored { stamp(SEED, at.page()) } else { 0 };
            if faulting.faults != nth + 1 || sum != expected {
                log!("benchmark: {operation:?} at {at}: {} faults, read {sum:#x}", faulting.faults);
                return Err("benchmark: a store did not fault once, or found what it should not");
            }
        }
        Ok(faulting.otherwise)
    }

    /// Stores to every page, in order; no sample for the single faults.
    ///
    /// # Errors
    /// What was wrong.
    pub fn store_to_all(&self, space: SpaceId) -> Result<(), &'static str> {
        let mut faulting = Faulting { stage: self, space, operation: None, faults: 0, otherwise: 0 };
        let touched = self
            .clock
            .time(Operation::Touch, || self.machine.touch(&mut faulting, AT, self.pages, touch::Access::Store(SEED)));
        let right = touched == touch::Touched { sum: 0, aborted: None } && faulting.faults == self.folios();
        if right { Ok(()) } else { Err("benchmark: memory did not come folio by folio, or not clear") }
    }

    /// Ends a space that may be the loaded one.
    pub fn destroy(&self, space: SpaceId) {
        self.machine.load_no_tenant();
        self.manager.destroy_space(space);
    }

    /// Frames cleared so far, and taken as known to be zero.
    pub fn cleared(&self) -> (u64, u64) {
        let statistics = self.manager.statistics();
        (statistics.cleared.load(Relaxed), statistics.known_zero.load(Relaxed))
    }
}

/// Serves the faults of one touch.
struct Faulting<'a, 's, 'm, A: Accounting> {
    stage: &'a Stage<'s, 'm, A>,
    space: SpaceId,
    /// What samples are of; nothing for none.
    operation: Option<Operation>,
    faults: u64,
    otherwise: u64,
}

impl<A: Accounting> Faulting<'_, '_, '_, A> {
    #[cold]
    fn refuse(&self, address: Gva, error: FaultError) -> Verdict {
        log!("benchmark: access to {address}: {error}");
        Verdict::Abort(1)
    }
}

impl<A: Accounting> touch::Tenant for Faulting<'_, '_, '_, A> {
    fn fault(&mut self, address: Gva, code: u64) -> Verdict {
        let access = if code & error::WRITE != 0 { Access::Write } else { Access::Read };
        let manager = self.stage.manager;
        let layer = match self.operation {
            Some(Operation::Fault) => Some(Layer::FaultManager),
            Some(Operation::Cow) => Some(Layer::CowManager),
            _ => None,
        };
        let served = match layer {
            Some(layer) if self.stage.has_layers => {
                let Stage { machine, clock, .. } = self.stage;
                let before = machine.clear_ticks();
                let served = clock.time_layer(layer, || manager.fault(self.space, address, access));
                if layer == Layer::FaultManager {
                    clock.note(Layer::Zero as u8, machine.clear_ticks() - before);
                }
                served
            }
            _ => manager.fault(self.space, address, access),
        };
        match served {
            Ok(fault) => {
                if let Some(operation) = self.operation {
                    self.stage.clock.mark(operation);
                    self.otherwise += u64::from(!is_of(operation, fault));
                }
                self.faults += 1;
                Verdict::Resume
            }
            Err(error) => self.refuse(address, error),
        }
    }
}

/// Whether a fault is what `operation` means.
fn is_of(operation: Operation, fault: Fault) -> bool {
    let kind = match operation {
        Operation::Cow => FaultKind::Copy,
        Operation::Reuse => FaultKind::Reuse,
        _ => FaultKind::FirstTouch,
    };
    fault.kind == kind
}
