//! A vma: a range of pages with one protection and one backing.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::SpaceId;
use super::rights::Prot;
use crate::addr::{Gva, Pfn};
use crate::flags::flags;
use crate::folio::Record;
use crate::format::Attrs;
use crate::sync::{AtomicU64, Field};

/// Words of a record.
pub(super) const WORDS: usize = 16;

const LOW: Field<0, 32> = Field;
const HIGH: Field<32, 32> = Field;

/// Which kinds of memory a region maps: its tracking class (SCHEMES.md, Pfn regions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Folios only; every leaf is counted.
    Tracked,
    /// Frames without folios, in order from one on, never counted; and private copies of them, which are.
    Pfn,
    /// Folios of a driver, counted, and frames without folios, not counted, in any order.
    Mixed,
}

/// What a vma allows and is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmaFlags(u32);

flags!(VmaFlags);

impl VmaFlags {
    /// Loads.
    pub const READ: Self = Self(1);
    /// Stores.
    pub const WRITE: Self = Self(1 << 1);
    /// Fetches.
    pub const EXEC: Self = Self(1 << 2);
    /// Stores go to the object; else to private copies.
    pub const SHARED: Self = Self(1 << 3);
    /// Grows downwards on a fault below it.
    pub const STACK: Self = Self(1 << 4);
    /// `MADV_HUGEPAGE`.
    pub const HUGE: Self = Self(1 << 5);
    /// `MADV_NOHUGEPAGE`.
    pub const NO_HUGE: Self = Self(1 << 6);
    /// Tracking class [`Pfn`](Tracking::Pfn).
    pub const PFN: Self = Self(1 << 7);
    /// The heap.
    pub const HEAP: Self = Self(1 << 8);
    /// Tracking class [`Mixed`](Tracking::Mixed).
    pub const MIXED: Self = Self(1 << 9);

    /// As a number, for whoever has them shown elsewhere.
    pub(crate) const fn raw(self) -> u32 {
        self.0
    }
    /// The flags of a number.
    pub(crate) const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
    /// The flags of a protection.
    #[must_use]
    pub const fn of(prot: Prot) -> Self {
        Self(prot.read as u32 | (prot.write as u32) << 1 | (prot.exec as u32) << 2)
    }
    /// `self` with the protection replaced.
    #[must_use]
    pub const fn with_prot(self, prot: Prot) -> Self {
        self.without(Self(7)).or(Self::of(prot))
    }
    /// Whether any access is allowed.
    #[must_use]
    #[inline]
    pub const fn is_accessible(self) -> bool {
        self.0 & 7 != 0
    }
}

/// A vma, by its record.
#[derive(Clone, Copy)]
pub struct Vma<'a> {
    pub(super) record: Record,
    words: &'a [AtomicU64; WORDS],
}

impl fmt::Debug for Vma<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vma({:#x}..{:#x}, {:?})", self.start() << 12, self.end() << 12, self.flags())
    }
}

impl<'a> Vma<'a> {
    pub(super) fn new(record: Record, words: &'a [AtomicU64; WORDS]) -> Self {
        Self { record, words }
    }

    /// The first page.
    #[must_use]
    #[inline]
    pub fn start(&self) -> u64 {
        self.words[0].load(Relaxed)
    }
    /// One past the last page.
    #[must_use]
    #[inline]
    pub fn end(&self) -> u64 {
        self.words[1].load(Relaxed)
    }
    /// Length in pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.end() - self.start()
    }
    /// The first address.
    #[must_use]
    pub fn address(&self) -> Gva {
        Gva::from_page(self.start())
    }
    pub(super) fn set_range(&self, range: Range<u64>) {
        self.words[0].store(range.start, Relaxed);
        self.words[1].store(range.end, Relaxed);
    }
    /// What it allows and is.
    #[must_use]
    #[inline]
    pub fn flags(&self) -> VmaFlags {
        VmaFlags(LOW.get(&self.words[2]) as u32)
    }
    pub(super) fn set_flags(&self, flags: VmaFlags) {
        LOW.set(&self.words[2], u64::from(flags.0));
    }
    /// Whose it is.
    #[must_use]
    #[inline]
    pub fn space(&self) -> SpaceId {
        SpaceId(HIGH.get(&self.words[2]) as u32)
    }
    pub(super) fn set_space(&self, space: SpaceId) {
        HIGH.set(&self.words[2], u64::from(space.0));
    }
    /// Number of the object it maps, 0 for private anonymous memory.
    #[must_use]
    #[inline]
    pub fn object(&self) -> u32 {
        LOW.get(&self.words[3]) as u32
    }
    pub(super) fn set_object(&self, object: u32) {
        LOW.set(&self.words[3], u64::from(object));
    }
    /// Number of the anonymous object that its private pages belong to, 0 before the first.
    #[must_use]
    #[inline]
    pub fn family(&self) -> u32 {
        (self.words[3].load(Relaxed) >> 32) as u32
    }
    pub(super) fn set_family(&self, family: u32) {
        HIGH.set(&self.words[3], u64::from(family));
    }
    /// The index of its first page in its object, file or anonymous.
    #[must_use]
    #[inline]
    pub fn offset(&self) -> u64 {
        self.words[4].load(Relaxed)
    }
    pub(super) fn set_offset(&self, offset: u64) {
        self.words[4].store(offset, Relaxed);
    }
    pub(super) fn children(&self) -> &'a AtomicU64 {
        &self.words[5]
    }
    /// Links in the list of the vmas of the object (`anon`: of the anonymous object).
    pub(super) fn links(&self, anon: bool) -> &'a AtomicU64 {
        &self.words[if anon { 8 } else { 7 }]
    }
    /// Serialises the first anonymous faults of one vma, which run under a shared space lock.
    pub(super) fn family_lock(&self) -> &'a AtomicU64 {
        &self.words[9]
    }
    /// Serialises faults in one vma, for schemes that count regions.
    pub(super) fn region_lock(&self) -> &'a AtomicU64 {
        &self.words[10]
    }
    /// Its tracking class.
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        let flags = self.flags();
        if flags.has(VmaFlags::PFN) {
            Tracking::Pfn
        } else if flags.has(VmaFlags::MIXED) {
            Tracking::Mixed
        } else {
            Tracking::Tracked
        }
    }
    /// The first frame of a region of class Pfn.
    pub(super) fn device(&self) -> Pfn {
        Pfn::new(self.words[6].load(Relaxed))
    }
    /// The frame that a region of class Pfn has at `page`.
    pub(crate) fn frame_at(&self, page: u64) -> Pfn {
        self.device().add(page - self.start())
    }
    pub(super) fn set_device(&self, first: Pfn) {
        self.words[6].store(first.raw(), Relaxed);
    }
    /// Region id for the count layer.
    #[must_use]
    #[inline]
    pub fn region(&self) -> u32 {
        self.record.raw()
    }
    /// Copies everything but the tree and list links from `other`.
    pub(super) fn copy_from(&self, other: Self) {
        for i in [0, 1, 2, 3, 4, 6] {
            self.words[i].store(other.words[i].load(Relaxed), Relaxed);
        }
    }

    /// Whether stores go to private copies.
    #[must_use]
    #[inline]
    pub fn is_private(&self) -> bool {
        !self.flags().has(VmaFlags::SHARED)
    }
    /// Whether it is private memory without a file behind it.
    #[must_use]
    #[inline]
    pub fn is_anon(&self) -> bool {
        self.object() == 0 && !self.flags().has(VmaFlags::PFN)
    }
    /// The object index of page `page`.
    #[must_use]
    #[inline]
    pub fn index(&self, page: u64) -> u64 {
        self.offset() + (page - self.start())
    }

    /// The pages at which its linear mapping puts the folio of `pages` pages that starts at `index` of its object, within its range and `within`.
    #[inline]
    pub(super) fn window(&self, index: u64, pages: u64, within: Range<u64>) -> Range<u64> {
        let (start, end) = (self.start().max(within.start), self.end().min(within.end));
        // Page of the folio's first page; may lie below 0 in the vma's terms, so do it with sums.
        let first = (self.start() + index).saturating_sub(self.offset());
        let end_of_folio = (self.start() + index + pages).saturating_sub(self.offset());
        first.clamp(start, end.max(start))..end_of_folio.clamp(start, end.max(start))
    }

    /// What a leaf of memory that is not private to it may allow: as [`attrs`](Self::attrs), but for stores, which a private region copies.
    pub(super) fn attrs_of_common(&self) -> Attrs {
        self.attrs().without(if self.is_private() { Attrs::WRITE } else { Attrs::NONE })
    }

    /// What a leaf of it may allow at most.
    #[inline]
    pub(super) fn attrs(&self) -> Attrs {
        let flags = self.flags();
        Attrs::ACCESSED
            .with_if(flags.is_accessible(), Attrs::USER)
            .with_if(flags.has(VmaFlags::EXEC), Attrs::EXEC)
            .with_if(flags.has(VmaFlags::WRITE), Attrs::WRITE)
    }
}
