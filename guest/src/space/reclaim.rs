//! Reclaim: clean folios of files go, and come back from the file when they are wanted.
//!
//! There is no swap and nothing is written back, so what was stored to stays. Prior art: Linux's `shrink_folio_list`, `__remove_mapping`.

use core::ops::{ControlFlow, Range};
use core::sync::atomic::Ordering::Relaxed;

use super::object::{Object, ObjectId};
use super::reverse::SpaceBusy;
use super::{Manager, SpaceId, UnmapFailed};
use crate::folio::{Folio, FolioFlags};
use crate::format::Attrs;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::sync::{lock_word, read_lock};

/// What [`Manager::reclaim`] did, in folios unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimReport {
    /// Looked at.
    pub probed: u64,
    /// Gone.
    pub reclaimed: u64,
    /// Frames that were theirs.
    pub freed: u64,
    /// Kept, because they had been used since the last time they were looked at.
    pub used: u64,
    /// Kept, because only memory holds their contents.
    pub dirty: u64,
    /// Kept, because somebody held a reference: a pin, or another CPU at work on them.
    pub referenced: u64,
    /// Kept, because somebody held a space in which they may be mapped.
    pub busy: u64,
}

/// Why a folio was kept.
enum Kept {
    Used,
    Dirty,
    Referenced,
    Busy,
}

/// What the leaves of a folio tell of it.
#[derive(Default)]
struct Age {
    leaves: u64,
    attrs: Attrs,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Frees clean folios of a file until `frames` frames are free: unmaps them wherever they are mapped, and drops them from the page cache. With `spare_used` those
    /// stay that the MMU has used since the last time: what is mapped counts as used at first. Shared memory has no other place for its contents, and
    /// stays. Waits for nobody. The caller holds no lock, and the object may not be [destroyed](Self::destroy_object) meanwhile.
    pub fn reclaim(&self, id: ObjectId, frames: u64, spare_used: bool) -> ReclaimReport {
        let object = self.object(id.0);
        let mut report = ReclaimReport::default();
        let mut at = 0;
        while object.is_file() && report.freed < frames {
            let Some(folio) = self.cached_from(&object, at..object.pages.load(Relaxed)) else { break };
            at = self.mapping(folio).index + folio.pages();
            report.probed += 1;
            match self.reclaim_folio(folio, spare_used) {
                Ok(()) => {
                    report.reclaimed += 1;
                    report.freed += folio.pages();
                }
                Err(Kept::Used) => report.used += 1,
                Err(Kept::Dirty) => report.dirty += 1,
                Err(Kept::Referenced) => report.referenced += 1,
                Err(Kept::Busy) => report.busy += 1,
            }
            self.put(folio, 1);
        }
        report
    }

    /// Unmaps a cached folio and drops it from its page cache. The caller holds a reference, which is the last then.
    fn reclaim_folio(&self, folio: Folio<'_>, spare_used: bool) -> Result<(), Kept> {
        let is_dirty = || folio.flags().has(FolioFlags::DIRTY);
        let age = self.age(folio, spare_used).map_err(|SpaceBusy(_)| Kept::Busy)?;
        if is_dirty() || age.attrs.has(Attrs::DIRTY) {
            return Err(Kept::Dirty);
        }
        // No more than a hint, that spares a pinned folio its faults: the references are compared when all leaves are gone.
        if folio.refs() > age.leaves + 2 {
            return Err(Kept::Referenced);
        }
        if spare_used && age.attrs.has(Attrs::ACCESSED) {
            return Err(Kept::Used);
        }
        self.try_to_unmap(folio).map_err(|failed| match failed {
            UnmapFailed::Busy(_) => Kept::Busy,
            UnmapFailed::Mapped => Kept::Referenced,
        })?;
        // Leaves that went meanwhile, here or elsewhere, have said that they were dirty.
        if self.exchange_in_cache(folio, 1, None, || !is_dirty()) {
            Ok(())
        } else {
            Err(if is_dirty() { Kept::Dirty } else { Kept::Referenced })
        }
    }

    /// Takes the pages that a space has mapped shared at `pages` out of their objects, wherever they are mapped: whole folios only (MADV_REMOVE). Whether all of them are
    /// gone; what somebody else holds stays. Private memory is not looked at. The caller holds no lock.
    pub fn punch(&self, id: SpaceId, pages: Range<u64>) -> bool {
        let (mut at, mut all) = (pages.start, true);
        while at < pages.end {
            let (object, index, end) = {
                let space = self.space(id);
                let _guard = read_lock(space.lock());
                let Some(vma) = self.vma_at_or_above(&space, at).filter(|vma| vma.start() < pages.end) else { break };
                at = at.max(vma.start());
                let end = pages.end.min(vma.end());
                let indexes = vma.index(at)..vma.index(at) + (end - at);
                at = end;
                if vma.object() == 0 || vma.is_private() {
                    continue;
                }
                (vma.object(), indexes.start, indexes.end)
            };
            let object = self.object(object);
            let mut next = index;
            while let Some(folio) = self.cached_from(&object, next..end) {
                let first = self.mapping(folio).index;
                next = first + folio.pages();
                let whole = index <= first && next <= end;
                all &= whole && self.try_to_unmap(folio).is_ok() && self.exchange_in_cache(folio, 1, None, || true);
                self.put(folio, 1);
            }
        }
        all
    }

    /// Looks at all leaves of a folio; with `take` their accessed bits are taken. A CPU that has the translation cached sets the bit again only when it
    /// has lost it: no flush for a guess, as in Linux's `ptep_clear_flush_young` on x86.
    fn age(&self, folio: Folio<'_>, take: bool) -> Result<Age, SpaceBusy> {
        let mut age = Age::default();
        self.look(folio, |_, part, range| {
            age.leaves += range.len() as u64;
            for leaf in range.clone().filter_map(|i| part.held(i)) {
                age.attrs = age.attrs.or(leaf.attrs);
            }
            if take {
                part.change(range.start, range.len(), Attrs::ACCESSED, Attrs::NONE);
            }
            ControlFlow::Continue(())
        })?;
        Ok(age)
    }

    /// The first cached folio that holds one of `pages` of an object, with a reference for the caller.
    fn cached_from(&self, object: &Object<'_>, pages: Range<u64>) -> Option<Folio<'_>> {
        let _guard = lock_word(object.lock);
        let mut cursor = object.cache().cursor(self, pages.start, pages.end);
        while let Some(part) = cursor.next() {
            if let Some(leaf) = part.range().find_map(|i| part.leaf(i)) {
                let folio = self.folio(leaf.pfn).expect("a page cache maps folios");
                folio.get(1);
                return Some(folio);
            }
        }
        None
    }
}
