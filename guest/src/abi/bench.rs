//! What the words that the [contract](super) leaves to the manager mean in a benchmark, and how its samples say what they are of.
//!
//! The kernel goes through [shapes](Shape), folio order by folio order. For each it repeats rounds of the same operations on a few mebibytes of
//! anonymous memory, under one scheme, and times every operation by itself; beside each it times the least that any manager would have to
//! do in its place, the *floor*. The first round of a shape is recounted instead of timed, if that is asked for.
//!
//! Operations [on VMs](Operation::OF_VMS) come in runs of their own, whose manager counts VMs beside processes; the engine, which is [`nest::ENGINE`](super::nest::ENGINE), says how
//! their stage-2 tables are written.
//!
//! A [sample](super::sample) has the operation as its kind, the order of the folios, and in its spare bits the level of the leaves and
//! whether it is of the floor ([`spare`]).

use super::boot;
use super::replay::METADATA_WORDS;
use super::results::GENERAL_COUNT;
use crate::addr::{Level, Order};

/// Boot word: the [operations](Operation) that are wanted, as a mask; 0 when a replay is.
pub const OPERATIONS: usize = boot::OPTIONS + 18;
/// Boot word: the orders of folios, as a mask.
pub const ORDERS: usize = boot::OPTIONS + 19;
/// Boot word: the levels of leaves, as a mask: bit 1 for leaves of 4 KiB, bit 2 for those of 2 MiB where a folio fills one.
pub const LEVELS: usize = boot::OPTIONS + 20;
/// Boot word: what the frames are like, one of [`frames`].
pub const FRAMES: usize = boot::OPTIONS + 21;
/// Boot word: pages of folios in a round; a multiple of 512.
pub const PAGES: usize = boot::OPTIONS + 22;
/// Boot word: rounds that are timed at least.
pub const ROUNDS: usize = boot::OPTIONS + 23;
/// Boot word: rounds go on until an operation on one folio has so many samples.
pub const SAMPLES: usize = boot::OPTIONS + 24;
/// Boot word: 1 to recount all leaves in the round that is not timed.
pub const RECOUNTED: usize = boot::OPTIONS + 25;
/// Boot word: 1 to time [layers](Layer) too, and with them what the manager takes of each fault. That costs two more time stamps and a sample
/// inside of the fault, so such runs stand apart.
pub const LAYERS: usize = boot::OPTIONS + 26;

/// Values of [`FRAMES`].
pub mod frames {
    /// The host gave them before, and they are known to be zero.
    pub const KNOWN_ZERO: u64 = 0;
    /// The host gave them before, and whatever needs zeroes clears them first.
    pub const TO_CLEAR: u64 = 1;
    /// Nobody has touched them: the host gives them at the first access, if it was not told otherwise, and they are zero.
    pub const FRESH: u64 = 2;
}

/// Faults of the floor in a round, and folios that a sample of a [`Layer`] is of, at most.
pub const FLOOR_FAULTS: u64 = 64;

/// What is timed. The numbers are the kinds of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Operation {
    /// The first store to a folio: allocation, zeroing, mapping of all its pages. One folio.
    Fault = 32,
    /// Every page of the round's memory stored to once, faults included. All folios.
    Touch = 33,
    /// A fork. All folios.
    Fork = 34,
    /// The child's first store to a folio that the parent has too: one page is copied. One folio.
    Cow = 35,
    /// The parent's first store to a folio after the child is gone. One folio.
    Reuse = 36,
    /// `MADV_DONTNEED` of one page inside a folio. One folio.
    ZapOne = 37,
    /// munmap of everything. All folios.
    Unmap = 38,
    /// The end of an address space. All folios.
    Teardown = 39,
    /// mprotect of one page of a 2 MiB leaf, which is split. One folio.
    Split = 40,
    /// Stage-2 faults on folios that the VMM's space has mapped. A [`batch`] of folios.
    Stage2Fault = 41,
    /// Stage-2 faults on memory that the VMM's space must make first. A batch of folios.
    HostFault = 42,
    /// The first store of a process inside of a VM, through the MMU, on composed tables: the guest's own fault, that of the VMM's space, stage 2 and the composed leaf. One folio.
    NestedFault = 43,
    /// Faults of a tenant's own tenant on the root that is composed for it: nested leaves. A batch of folios.
    ComposeFault = 44,
    /// The dirty log starts: large leaves are split, and none can be stored to. All folios.
    LogStart = 45,
    /// The first stores to pages that are logged. A batch of pages.
    LogStore = 46,
    /// The log is read when every page was stored to, and starts anew. All folios.
    LogTake = 47,
    /// The log stops: large leaves come back. All folios.
    LogStop = 48,
    /// A copy of a VM is made. All folios.
    Clone = 49,
    /// The end of a VM: its stage-2 leaves and tables. All folios.
    VmTeardown = 50,
    /// The end of its VMM's space behind it: the memory itself. All folios.
    VmmTeardown = 51,
}

/// What a sample of an operation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One folio.
    Folio,
    /// A [`batch`] of folios, one after the other: what a time stamp is too coarse for.
    Folios,
    /// A batch of pages.
    Pages,
    /// All folios of the round.
    All,
}

/// Of `units` folios or pages, how many one sample of a batch is of.
#[must_use]
pub const fn batch(units: u64) -> u64 {
    if units < FLOOR_FAULTS { units } else { FLOOR_FAULTS }
}

impl Operation {
    /// Those of processes.
    pub const EACH: [Self; 9] = [
        Self::Fault,
        Self::Touch,
        Self::Fork,
        Self::Cow,
        Self::Reuse,
        Self::ZapOne,
        Self::Unmap,
        Self::Teardown,
        Self::Split,
    ];
    /// Those of VMs.
    pub const OF_VMS: [Self; 11] = [
        Self::Stage2Fault,
        Self::HostFault,
        Self::ComposeFault,
        Self::NestedFault,
        Self::LogStart,
        Self::LogStore,
        Self::LogTake,
        Self::LogStop,
        Self::Clone,
        Self::VmTeardown,
        Self::VmmTeardown,
    ];

    /// The operation of a sample.
    #[must_use]
    pub fn of_kind(kind: u8) -> Option<Self> {
        Self::EACH.into_iter().chain(Self::OF_VMS).find(|&operation| operation as u8 == kind)
    }

    /// Whether a mask of operations has any of a VM.
    #[must_use]
    pub fn is_of_vms(mask: u64) -> bool {
        Self::OF_VMS.into_iter().any(|operation| mask & operation.bit() != 0)
    }

    /// Its bit in [`OPERATIONS`].
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << (self as u8 - Self::Fault as u8)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Touch => "touch",
            Self::Fork => "fork",
            Self::Cow => "cow",
            Self::Reuse => "reuse",
            Self::ZapOne => "zap_one",
            Self::Unmap => "unmap",
            Self::Teardown => "teardown",
            Self::Split => "split",
            Self::Stage2Fault => "stage2_fault",
            Self::HostFault => "stage2_host_fault",
            Self::NestedFault => "nested_fault",
            Self::ComposeFault => "compose_fault",
            Self::LogStart => "log_start",
            Self::LogStore => "log_store",
            Self::LogTake => "log_take",
            Self::LogStop => "log_stop",
            Self::Clone => "vm_clone",
            Self::VmTeardown => "vm_teardown",
            Self::VmmTeardown => "vmm_teardown",
        }
    }

    /// What a sample is of.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::LogStore => Scope::Pages,
            Self::Stage2Fault | Self::HostFault | Self::ComposeFault => Scope::Folios,
            Self::Touch | Self::Fork | Self::Unmap | Self::Teardown => Scope::All,
            Self::LogStart | Self::LogTake | Self::LogStop => Scope::All,
            Self::Clone | Self::VmTeardown | Self::VmmTeardown => Scope::All,
            _ => Scope::Folio,
        }
    }

    /// Whether a sample is of all folios of the round, not of one.
    #[must_use]
    pub const fn is_bulk(self) -> bool {
        matches!(self.scope(), Scope::All)
    }
}

/// Parts of a fault, each timed by itself. The numbers are the kinds of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Layer {
    /// The manager's part of an [`Operation::Fault`]. One folio.
    FaultManager = 64,
    /// The manager's part of an [`Operation::Cow`]. One folio.
    CowManager = 65,
    /// The allocator finds the frames of a folio. A loop.
    Allocate = 66,
    /// The frames of a folio are cleared, and those of new tables, in an [`Operation::Fault`]. One folio.
    Zero = 67,
    /// The scheme is told of all leaves of a folio. A loop.
    Account = 68,
    /// The table is found and locked, and all leaves of a folio are stored. A loop.
    Store = 69,
    /// One page is copied. A loop.
    Copy = 70,
    /// One page is flushed. A loop.
    Flush = 71,
    /// Of an [`Operation::NestedFault`]: level 0 finds that the guest's own table lacks the page. One folio.
    Reflect = 72,
    /// The guest's manager serves its own fault. One folio.
    Guest = 73,
    /// The VMM's space makes the memory. One folio.
    Host = 74,
    /// The stage-2 leaves are entered. One folio.
    Stage2 = 75,
    /// The leaves of the composed table are entered. One folio.
    Compose = 76,
    /// The scheme is told of the leaves of one folio at three levels: those of the VMM's space, of stage 2, and nested ones. A loop.
    Ledger = 77,
}

impl Layer {
    /// Those of processes.
    pub const EACH: [Self; 8] = [
        Self::FaultManager,
        Self::CowManager,
        Self::Allocate,
        Self::Zero,
        Self::Account,
        Self::Store,
        Self::Copy,
        Self::Flush,
    ];
    /// Those of VMs.
    pub const OF_VMS: [Self; 6] = [Self::Reflect, Self::Guest, Self::Host, Self::Stage2, Self::Compose, Self::Ledger];

    /// The layer of a sample.
    #[must_use]
    pub fn of_kind(kind: u8) -> Option<Self> {
        Self::EACH.into_iter().chain(Self::OF_VMS).find(|&layer| layer as u8 == kind)
    }

    /// Folios that a sample is of, where a round has `folios`.
    #[must_use]
    pub const fn folios(self, folios: u64) -> u64 {
        match self {
            Self::FaultManager | Self::CowManager | Self::Zero => 1,
            Self::Reflect | Self::Guest | Self::Host | Self::Stage2 | Self::Compose => 1,
            _ => batch(folios),
        }
    }
}

/// Folios of one order, mapped by leaves of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// The order.
    pub order: Order,
    /// The level.
    pub level: Level,
}

/// How many [shapes](Shape) there are: orders 0 to 9 by 4 KiB leaves, order 9 by 2 MiB leaves.
pub const SHAPES: usize = 11;

impl Shape {
    /// The shapes of two masks, [`ORDERS`] and [`LEVELS`].
    pub fn of_masks(orders: u64, levels: u64) -> impl Iterator<Item = Self> {
        (0..SHAPES)
            .map(Self::nth)
            .filter(move |shape| orders >> shape.order.get() & 1 == 1 && levels >> shape.level.get() & 1 == 1)
    }

    /// Shape number `index`.
    ///
    /// # Panics
    /// From [`SHAPES`] on.
    #[must_use]
    pub const fn nth(index: usize) -> Self {
        assert!(index < SHAPES, "no such shape");
        if index < 10 {
            Self { order: Order::new(index as u8), level: Level::ONE }
        } else {
            Self { order: Order::HUGE, level: Level::TWO }
        }
    }

    /// Its number.
    #[must_use]
    pub const fn index(self) -> usize {
        self.order.get() as usize + self.level.get() as usize - 1
    }

    /// Folios in a round of `pages` pages.
    #[must_use]
    pub const fn folios(self, pages: u64) -> u64 {
        pages >> self.order.get()
    }
}

/// The memory of a VM in a round of `pages` pages of folios, in pages: what is mapped, and what a guest's manager needs beside it.
#[must_use]
pub const fn vm_pages(pages: u64, operations: u64) -> u64 {
    if operations & Operation::NestedFault.bit() != 0 { 2 * pages + 2048 } else { pages + pages / 512 + 512 }
}

/// Frames that a manager with such a VM needs: also slots, tables at every level, records, a copy's tables, its reserve, and what alignment loses, up to half where two folios
/// would fill a block that has slots in it.
#[must_use]
pub const fn vm_chunk(pages: u64, operations: u64) -> u64 {
    let memory = vm_pages(pages, operations);
    (2 * memory + memory / 32 + 4 * 512).next_multiple_of(512)
}

/// Pages of a round that warms up where frames that nobody has touched are short.
pub const WARM_PAGES: u64 = 512;

/// The spare bits of a sample.
pub mod spare {
    use crate::addr::Level;

    /// It is of the floor.
    pub const FLOOR: u16 = 1 << 15;

    /// The spare bits of a sample of leaves at `level`.
    #[must_use]
    pub const fn of(level: Level, is_floor: bool) -> u16 {
        level.get() as u16 | if is_floor { FLOOR } else { 0 }
    }
}

/// The general words of the results, counted from 0.
pub mod word {
    use super::{METADATA_WORDS, SHAPES};

    /// Rounds that were timed, by the number of the shape.
    pub const ROUNDS: usize = 0;
    /// Folios mapped when [`METADATA`] was read, by the number of the shape.
    pub const FOLIOS: usize = ROUNDS + SHAPES;
    /// Faults that were of another kind than their operation says (a copy for a reuse), by the number of the shape.
    pub const OTHERWISE: usize = FOLIOS + SHAPES;
    /// Comparisons of the recounts.
    pub const CHECKS: usize = OTHERWISE + SHAPES;
    /// Metadata with every folio of a round mapped, [`METADATA_WORDS`] for each shape; see
    /// [`metadata_of`](super::super::replay::metadata_of).
    pub const METADATA: usize = 64;

    /// The first word of the metadata of shape number `index`.
    #[must_use]
    pub const fn metadata(index: usize) -> usize {
        METADATA + index * METADATA_WORDS
    }

    /// The same of a manager of VMs, before its VM has mapped anything: no folio has grown.
    #[must_use]
    pub const fn compact(index: usize) -> usize {
        metadata(SHAPES + index)
    }
}

const _: () = assert!(word::CHECKS < word::METADATA && word::compact(SHAPES) <= GENERAL_COUNT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_numbers() {
        for index in 0..SHAPES {
            assert_eq!(Shape::nth(index).index(), index);
        }
        let of = |orders, levels| Shape::of_masks(orders, levels).map(Shape::index);
        assert!(of(0b10_0001_0001, 0b110).eq([0, 4, 9, 10]));
        assert!(of(0b10_0001_0001, 0b100).eq([10]));
        assert!(of(1 << 9, 0b010).eq([9]));
    }

    #[test]
    fn operations_have_kinds_and_bits_of_their_own() {
        let mut all = 0;
        for operation in Operation::EACH.into_iter().chain(Operation::OF_VMS) {
            assert_eq!(Operation::of_kind(operation as u8), Some(operation));
            assert_eq!(all & operation.bit(), 0);
            all |= operation.bit();
            assert_eq!(Operation::is_of_vms(operation.bit()), Operation::OF_VMS.contains(&operation));
        }
        assert_eq!(Operation::of_kind(super::super::sample::FLOOR), None);
    }
}
