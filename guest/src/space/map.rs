//! Making and removing mappings: mmap, munmap, brk.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::object::ObjectId;
use super::rights::Prot;
use super::vma::{Vma, VmaFlags};
use super::{Manager, PAGES_END, Removed, Space, SpaceId};
use crate::addr::{Gva, Level, Pfn};
use crate::mapcount::{Accounting, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::Flush;
use crate::sync::write_lock;

/// Why an operation on mappings was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table, a record or a copy.
    OutOfFrames,
    /// Empty, unaligned, or beyond the tenant's half or what an object can hold.
    BadRange,
    /// Something is mapped there.
    Occupied,
    /// Nothing, or not one mapping, is there.
    NotMapped,
    /// Memory of a kind that the region's tracking class does not take: a frame of the manager's own as a raw frame, a raw frame where only folios
    /// are mapped, a folio where none are or of another object.
    WrongKind,
    /// A folio has as many mappings as it may.
    Refused(Refused),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("out of frames"),
            Self::BadRange => f.write_str("not a range of a tenant's pages"),
            Self::Occupied => f.write_str("the range is not free"),
            Self::NotMapped => f.write_str("the range is not mapped"),
            Self::WrongKind => f.write_str("memory of a kind that the region does not map"),
            Self::Refused(refused) => refused.fmt(f),
        }
    }
}

impl core::error::Error for MapError {}

/// What a new mapping maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Private anonymous memory.
    Anon,
    /// Private anonymous memory that grows downwards.
    Stack,
    /// An object from page `offset` on; stores go to private copies.
    Private(ObjectId, u64),
    /// An object from page `offset` on; stores go to it.
    Shared(ObjectId, u64),
    /// Frames from this one on that have no folios: tracking class Pfn, never counted. Stores go to them.
    Device(Pfn),
    /// As `Device`; stores go to private copies, which are folios and counted.
    PrivateDevice(Pfn),
    /// What a driver [inserts](Manager::insert_page) of its object, from page `offset` on, and frames without folios: tracking class Mixed. Stores go
    /// to them.
    Mixed(ObjectId, u64),
    /// As `Mixed`; stores go to private copies.
    PrivateMixed(ObjectId, u64),
}

impl Map {
    /// The object that is mapped and the page it is mapped from.
    fn object(self) -> Option<(ObjectId, u64)> {
        match self {
            Self::Private(id, offset) | Self::Shared(id, offset) => Some((id, offset)),
            Self::Mixed(id, offset) | Self::PrivateMixed(id, offset) => Some((id, offset)),
            Self::Anon | Self::Stack | Self::Device(_) | Self::PrivateDevice(_) => None,
        }
    }

    /// The first of the frames that are mapped in order.
    fn device(self) -> Option<Pfn> {
        match self {
            Self::Device(first) | Self::PrivateDevice(first) => Some(first),
            _ => None,
        }
    }

    fn flags(self) -> VmaFlags {
        match self {
            Self::Anon | Self::Private(..) => VmaFlags::default(),
            Self::Stack => VmaFlags::STACK,
            Self::Shared(..) => VmaFlags::SHARED,
            Self::Device(_) => VmaFlags::PFN.or(VmaFlags::SHARED),
            Self::PrivateDevice(_) => VmaFlags::PFN,
            Self::Mixed(..) => VmaFlags::MIXED.or(VmaFlags::SHARED),
            Self::PrivateMixed(..) => VmaFlags::MIXED,
        }
    }
}

/// A range of pages, checked.
pub(super) fn pages_of(at: Gva, pages: u64) -> Result<core::ops::Range<u64>, MapError> {
    let first = at.page();
    match first.checked_add(pages) {
        Some(end) if at.is_page_aligned() && pages > 0 && end <= PAGES_END => Ok(first..end),
        _ => Err(MapError::BadRange),
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Maps `what` at `at`, in place of whatever is there.
    ///
    /// # Errors
    /// [`MapError`]; what was there may be gone then.
    pub fn map_fixed(&self, id: SpaceId, at: Gva, pages: u64, prot: Prot, what: Map) -> Result<(), MapError> {
        self.map_inner(id, at, pages, prot, what, true)
    }

    /// Maps `what` at `at`, where nothing may be mapped.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map(&self, id: SpaceId, at: Gva, pages: u64, prot: Prot, what: Map) -> Result<(), MapError> {
        self.map_inner(id, at, pages, prot, what, false)
    }

    fn map_inner(&self, id: SpaceId, at: Gva, pages: u64, prot: Prot, what: Map, fixed: bool) -> Result<(), MapError> {
        let range = pages_of(at, pages)?;
        if what.object().is_some_and(|(_, offset)| offset.checked_add(pages).is_none_or(|end| end > PAGES_END)) {
            return Err(MapError::BadRange);
        }
        let wrong = match what {
            // What the manager owns is mapped as folios, by whom it gives them to.
            Map::Device(first) | Map::PrivateDevice(first) => self.frames.owns_any(first..first.add(pages)),
            Map::Mixed(id, _) | Map::PrivateMixed(id, _) => !self.object(id.0).is_driver(),
            _ => false,
        };
        if wrong {
            return Err(MapError::WrongKind);
        }
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        if fixed {
            self.unmap_locked(&space, range.clone())?;
        } else if self.vma_at_or_above(&space, range.start).is_some_and(|vma| vma.start() < range.end) {
            return Err(MapError::Occupied);
        }
        let (object, offset) = what.object().map_or((0, range.start), |(id, offset)| (id.0, offset));
        let vma = self.add_vma(&space, range, what.flags().with_prot(prot), object, offset)?;
        if let Some(first) = what.device() {
            vma.set_device(first);
        }
        self.merge_vma(&space, vma);
        Ok(())
    }

    pub(super) fn add_vma<'a>(
        &'a self,
        space: &Space<'_>,
        range: core::ops::Range<u64>,
        flags: VmaFlags,
        object: u32,
        offset: u64,
    ) -> Result<Vma<'a>, MapError> {
        let vma = self.vma(self.vmas.alloc(&self.frames).ok_or(MapError::OutOfFrames)?);
        vma.set_range(range);
        vma.set_space(space.id);
        vma.set_flags(flags);
        vma.set_object(object);
        vma.set_offset(offset);
        self.insert_in_tree(space.tree(), vma);
        self.link_vma_all(vma);
        Ok(vma)
    }

    pub(super) fn remove_vma(&self, space: &Space<'_>, vma: Vma<'_>) {
        self.remove_from_tree(space.tree(), vma);
        self.unlink_vma_all(vma);
        self.vmas.free(&self.frames, vma.record);
    }

    /// Unmaps a range; holes are fine.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn unmap(&self, id: SpaceId, at: Gva, pages: u64) -> Result<(), MapError> {
        let range = pages_of(at, pages)?;
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        self.unmap_locked(&space, range)
    }

    pub(super) fn unmap_locked(&self, space: &Space<'_>, range: core::ops::Range<u64>) -> Result<(), MapError> {
        let mut flush = Flush::new();
        let result = self.unmap_into(space, range, &mut flush);
        self.finish(space, &mut flush);
        result
    }

    fn unmap_into<'a>(
        &'a self,
        space: &Space<'_>,
        range: core::ops::Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let mut at = range.start;
        let result = self.unmap_vmas(space, &range, &mut at, flush);
        // Also what went before it failed: nobody looks for tables where no vma is.
        if at > range.start {
            self.prune_around(space, &(range.start..at), flush);
        }
        result
    }

    /// Removes the vmas in `range`, of which all below `at` are gone.
    fn unmap_vmas<'a>(
        &'a self,
        space: &Space<'_>,
        range: &core::ops::Range<u64>,
        at: &mut u64,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        while let Some(vma) = self.vma_at_or_above(space, *at).filter(|vma| vma.start() < range.end) {
            let vma = self.isolate(space, vma, range, flush)?;
            *at = vma.end();
            self.zap(space, vma, vma.start(), vma.end(), flush);
            self.include_unmapped(space, vma, flush);
            self.remove_vma(space, vma);
        }
        Ok(())
    }

    /// Takes away the tables around `range`, in which nothing is mapped, that hold nothing any more: up to the neighbours, but no further than the tables that the
    /// range touches.
    pub(super) fn prune_around<'a>(
        &'a self,
        space: &Space<'_>,
        range: &core::ops::Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) {
        let floor = self.vma_below(space, range.start).map_or(0, |vma| vma.end());
        let ceiling = self.vma_at_or_above(space, range.end).map_or(PAGES_END, |vma| vma.start());
        let reach = Level::THREE.table_pages();
        let first = floor.max(range.start & !(reach - 1));
        let end = ceiling.min((range.end + reach - 1) & !(reach - 1));
        space.table().prune(self, first..end, range.clone(), flush);
    }

    /// The part of `vma` that lies in `range`, as a vma of its own.
    pub(super) fn isolate<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        range: &core::ops::Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<Vma<'a>, MapError> {
        let vma = if vma.start() < range.start { self.cut_vma(space, vma, range.start, flush)? } else { vma };
        if vma.end() > range.end {
            self.cut_vma(space, vma, range.end, flush)?;
        }
        Ok(vma)
    }

    /// Sets the heap to `start..end`: it grows as private read-write memory, or is cut.
    ///
    /// # Errors
    /// [`MapError::Occupied`] when something is in the way.
    pub fn brk(&self, id: SpaceId, start: Gva, end: Gva) -> Result<(), MapError> {
        if !start.is_page_aligned() || !end.is_page_aligned() || end < start {
            return Err(MapError::BadRange);
        }
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        let (start, end) = (start.page(), end.page());
        let now = match space.brk().load(Relaxed) {
            0 => start,
            now => now.max(start),
        };
        if end < now {
            self.unmap_locked(&space, end..now)?;
        } else if end > now {
            if self.vma_at_or_above(&space, now).is_some_and(|vma| vma.start() < end) {
                return Err(MapError::Occupied);
            }
            let flags = VmaFlags::HEAP.with_prot(Prot { read: true, write: true, exec: false });
            let vma = self.add_vma(&space, now..end, flags, 0, now)?;
            self.merge_vma(&space, vma);
        }
        space.brk().store(end, Relaxed);
        Ok(())
    }
}
