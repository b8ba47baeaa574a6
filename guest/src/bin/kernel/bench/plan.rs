//! What was asked for, checked.

use core::ops::Range;

use quire::abi::bench::{self, FLOOR_FAULTS, Operation, Shape, frames};
use quire::abi::nest::{ENGINE, engine};
use quire::addr::{ENTRIES, Order, Pfn};
use quire::memory::Memory;
use quire::stage2::Stage2Format;

use super::bare::Bare;
use super::vm;
use crate::manager::Run;

/// What a manager needs beside the pages of two regions: slots, tables, records, its reserve, and what alignment loses.
const OVERHEAD: u64 = 4 * ENTRIES as u64;

/// The benchmark, from the boot words.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    operations: u64,
    orders: u64,
    levels: u64,
    engine: u64,
    /// One of [`frames`].
    pub frames: u64,
    /// Pages of folios in a round.
    pub pages: u64,
    rounds: u64,
    samples: u64,
    /// Whether the round that is not timed is recounted.
    pub is_recounted: bool,
    /// Whether layers are timed too.
    pub has_layers: bool,
    /// Where the floor's frames begin.
    pub bare: Pfn,
    /// Where the managers' frames begin.
    first: Pfn,
    /// How many there are.
    count: u64,
}

impl Plan {
    /// The plan of this run; clears the frames that are not to be fresh, which also makes the host give them.
    ///
    /// # Errors
    /// What cannot be done.
    pub fn new(run: &Run<'_>) -> Result<Self, &'static str> {
        let boot = run.boot;
        let pages = boot[bench::PAGES];
        if pages == 0 || !pages.is_multiple_of(Order::HUGE.pages()) {
            return Err("benchmark: the pages of a round are no multiple of 512");
        }
        let is_of_vms = Operation::is_of_vms(boot[bench::OPERATIONS]);
        let bare_frames = if is_of_vms { vm::Floor::frames(pages) } else { Bare::frames(pages) };
        let bare = run.room.managed.start;
        let first = bare.add(bare_frames).raw().next_multiple_of(Order::HUGE.pages());
        let count = run.room.managed.end.raw().saturating_sub(first);
        let plan = Self {
            operations: boot[bench::OPERATIONS],
            orders: boot[bench::ORDERS],
            levels: boot[bench::LEVELS],
            engine: boot[ENGINE],
            frames: boot[bench::FRAMES],
            pages,
            rounds: boot[bench::ROUNDS].max(1),
            samples: boot[bench::SAMPLES],
            is_recounted: boot[bench::RECOUNTED] == 1,
            has_layers: boot[bench::LAYERS] == 1,
            bare,
            first: Pfn::new(first),
            count,
        };
        if count < plan.chunk() {
            return Err("benchmark: too few frames");
        }
        run.machine.zero(bare, bare_frames);
        if plan.frames != frames::FRESH {
            run.machine.zero(plan.first, plan.chunk());
        }
        Ok(plan)
    }

    /// Whether `operation` is wanted.
    pub fn wants(&self, operation: Operation) -> bool {
        self.operations & operation.bit() != 0
    }

    /// The shapes that are wanted.
    pub fn shapes(&self) -> impl Iterator<Item = Shape> + use<> {
        Shape::of_masks(self.orders, self.levels)
    }

    /// Rounds of `shape`, the one that is not timed left out.
    pub fn rounds(&self, shape: Shape) -> u64 {
        self.rounds.max(self.samples.div_ceil(shape.folios(self.pages)))
    }

    /// Faults of the floor in a round.
    pub fn floor_faults(&self, shape: Shape) -> u64 {
        shape.folios(self.pages).min(FLOOR_FAULTS)
    }

    /// The same with `pages` in a round, no more than before.
    pub fn of_pages(&self, pages: u64) -> Self {
        Self { pages, ..*self }
    }

    /// Whether VMs are what is timed.
    pub fn is_of_vms(&self) -> bool {
        Operation::is_of_vms(self.operations)
    }

    /// How stage-2 tables are written.
    ///
    /// # Errors
    /// When no engine has that number.
    pub fn format(&self) -> Result<Stage2Format, &'static str> {
        match self.engine {
            engine::NONE | engine::SHADOW => Ok(Stage2Format::LongMode),
            engine::EPT => Ok(Stage2Format::Ept),
            engine::NPT => Ok(Stage2Format::Npt),
            _ => Err("no engine has this number"),
        }
    }

    /// Frames of one manager.
    fn chunk(&self) -> u64 {
        if self.is_of_vms() { bench::vm_chunk(self.pages, self.operations) } else { 2 * self.pages + OVERHEAD }
    }

    /// The frames of the next round's manager; `None` when those that nobody has touched are used up, but for the first `used`.
    pub fn managed(&self, used: &mut u64) -> Option<Range<Pfn>> {
        let at = if self.frames == frames::FRESH { *used } else { 0 };
        let end = at + self.chunk();
        if end > self.count {
            return None;
        }
        *used = end;
        Some(self.first.add(at)..self.first.add(end))
    }
}
