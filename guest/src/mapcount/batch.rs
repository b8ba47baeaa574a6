//! What a scheme is told: which leaves appear or go, and what stands beside them.

use core::fmt;

use crate::addr::{Order, Pfn};

/// The default limit of a folio's counts: far enough below 2^31 that no batch in flight can reach it (SCHEMES.md, overflow).
pub const COUNT_LIMIT: u64 = 1 << 30;

/// At which level a leaf reaches the folio, relative to the manager that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A stage-1 leaf of a tenant process.
    Process,
    /// A stage-2 leaf of a tenant VM.
    Vm,
    /// A leaf composed for a tenant's own tenant.
    Nested,
}

impl Class {
    /// All of them, in this order.
    pub const ALL: [Self; 3] = [Self::Process, Self::Vm, Self::Nested];
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Vm => "vm",
            Self::Nested => "nested",
        })
    }
}

/// Leaves of one folio, consecutive in input and in the folio, in one table page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The level they stand at.
    pub class: Class,
    /// The first page of the folio that they map.
    pub first: u32,
    /// Base pages that they map.
    pub pages: u32,
    /// Order of each leaf: 0, 9 or 18.
    pub leaf: Order,
    /// The vma or memslot they belong to.
    pub region: u32,
    /// The table page they stand in.
    pub table: Pfn,
    /// The trust domain that owns the tables.
    pub owner: u32,
}

impl Batch {
    /// Leaves in the batch.
    #[must_use]
    #[inline]
    pub fn leaves(&self) -> u32 {
        self.pages >> self.leaf.get()
    }

    /// The pages of the folio that they map.
    pub(super) fn pages_of_folio(&self) -> impl Iterator<Item = u64> + use<> {
        (self.first..self.first + self.pages).map(u64::from)
    }
}

/// What a scheme wants to know about the leaves of the folio beside the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// How many stand in the same (region, table).
    pub tuple: bool,
    /// How much of the folio is mapped in the same region, over all tables.
    pub region: bool,
}

impl Needs {
    /// Nothing.
    pub const NOTHING: Self = Self { tuple: false, region: false };

    /// What either wants.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self { tuple: self.tuple || other.tuple, region: self.region || other.region }
    }
}

/// What the caller found, if the scheme [needs](Needs) it: leaves of the folio beside the batch, before an add and after a sub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Neighbours {
    /// Leaves in the same (region, table).
    pub tuple: u32,
    /// Pages that leaves in the same region map, whatever their tables.
    pub region: u32,
}

/// How many pages of the folio are mapped on either side of a cut or a seam between two regions: some on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// In the region below.
    pub below: u32,
    /// In the region above.
    pub above: u32,
}

/// What an operation changed, as far as the scheme can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Delta {
    /// Pages by which the "mapped" statistic (AnonPages, Mapped) changes.
    pub mapped: i64,
    /// Pages by which the "mapped by huge leaves" statistic (AnonHugePages) changes.
    pub huge: i64,
    /// An anonymous folio looks partly mapped now: a candidate for the deferred-split queue.
    pub maybe_partial: bool,
}

/// Why a mapping was refused. Splits and removals are never refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A count would pass its limit.
    Overflow,
    /// The scheme has no representation for leaves of this order on a folio of this order.
    Shape,
    /// The scheme's state has no room for leaves of this class.
    Class,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overflow => "too many mappings of one folio",
            Self::Shape => "the scheme cannot count such leaves on such a folio",
            Self::Class => "the scheme keeps no counts of this class",
        })
    }
}
