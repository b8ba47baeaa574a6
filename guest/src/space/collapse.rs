//! Collapse: 512 leaves become one, of the folio that they map, or of a new one to which their pages are copied.

use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::fence;

use super::vma::{Vma, VmaFlags};
use super::{Manager, Removed, Space, SpaceId};
use crate::addr::{ENTRIES, Gva, Level, Order};
use crate::folio::{Folio, FolioFlags, Mapping};
use crate::format::{Attrs, Leaf, LongMode};
use crate::mapcount::{Accounting, Answer, Batch, Class, Neighbours, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, Part};
use crate::sync::tally::{Call, counting};
use crate::sync::write_lock;

/// Why [`Manager::collapse_by_copy`] left everything as it was. In brackets what Linux's khugepaged calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollapseRefused {
    /// The block does not lie in one vma of private anonymous memory (`SCAN_VMA_CHECK`, `SCAN_ADDRESS_RANGE`).
    NotAnon,
    /// Large leaves are advised against here, or by the policy (`SCAN_VMA_CHECK`).
    NoHuge,
    /// A large leaf stands there already (`SCAN_PMD_MAPPED`).
    Large,
    /// So many pages are absent: more than allowed, or all (`SCAN_EXCEED_NONE_PTE`, `SCAN_PMD_NONE`).
    Absent(u64),
    /// A page is, or may be, mapped by somebody else too (`SCAN_EXCEED_SHARED_PTE`).
    Shared,
    /// Somebody holds, or may hold, a reference that is not a leaf's (`SCAN_PAGE_COUNT`).
    Referenced,
    /// The count of the new folio refused its leaf.
    Refused(Refused),
    /// No frames for the new folio (`SCAN_ALLOC_HUGE_PAGE_FAIL`).
    OutOfFrames,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Turns 512 leaves that map one large folio in order, with the same rights, into one leaf. Whether it was possible.
    pub fn collapse(&self, id: SpaceId, at: Gva) -> bool {
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        let Some(vma) = self.find_vma(&space, at.page()) else { return false };
        let level = Level::TWO;
        let Some(Range { start: first, .. }) = block(vma, at).filter(|_| self.policy.max_leaf >= level) else {
            return false;
        };
        let Some((_, leaf)) = space.table().lookup(self, first) else { return false };
        let Some(folio) = self.folio(leaf.pfn) else { return false };
        if folio.pages() < level.entry_pages() {
            return false;
        }
        let mut flush = Flush::new();
        let mut cursor = space.table().cursor(self, first, first + level.entry_pages());
        let Some((place, leaf)) = cursor.collapse(level, &mut flush) else { return false };
        let batch = Batch {
            class: Class::Process,
            first: (leaf.pfn.raw() - folio.head().raw()) as u32,
            pages: level.entry_pages() as u32,
            leaf: level.leaf_order(),
            region: vma.region(),
            table: place.table,
            owner: id.0,
        };
        let mut cursor = space.table().cursor(self, first, first + level.entry_pages());
        let part = cursor.next().expect("the leaf is there");
        let i = part.index(first);
        let beside = self.beside_in_table(&part, vma, folio, i..i + 1);
        drop(part);
        // Flush first: until then an MMU may still reach the folio through the old table.
        self.finish(&space, &mut flush);
        let delta = counting(Call::Collapse, || A::collapse(&self.counts(folio), &batch, beside));
        self.note(folio, delta);
        self.put(folio, 511);
        true
    }

    /// Copies the 512 pages of the block around `at`, anonymous and this space's alone, to a folio of their own, and maps it by one leaf; how many pages were there. Pages
    /// that are absent, `max_absent` at most (Linux's `max_ptes_none`), are zero and present then. The policy's word on large folios is not asked, only
    /// the vma's, as in Linux's `MADV_COLLAPSE`.
    ///
    /// # Errors
    /// [`CollapseRefused`]; nothing has changed then.
    pub fn collapse_by_copy(&self, id: SpaceId, at: Gva, max_absent: u64) -> Result<u64, CollapseRefused> {
        let space = self.space(id);
        // Exclusively: whoever faults, pins or walks through rmap waits or goes away.
        let _guard = write_lock(space.lock());
        let vma = self.find_vma(&space, at.page()).filter(Vma::is_anon).ok_or(CollapseRefused::NotAnon)?;
        let block = block(vma, at).ok_or(CollapseRefused::NotAnon)?;
        if vma.flags().has(VmaFlags::NO_HUGE) || self.policy.max_leaf < Level::TWO {
            return Err(CollapseRefused::NoHuge);
        }
        let present = self.check_pages(&space, vma, &block)?;
        let absent = ENTRIES as u64 - present;
        if present == 0 || absent > max_absent {
            return Err(CollapseRefused::Absent(absent));
        }
        let mapping = Mapping { object: vma.family(), index: vma.index(block.start) };
        let new = self.new_folio(Order::HUGE, FolioFlags::ANON, mapping, false).ok_or(CollapseRefused::OutOfFrames)?;
        // Its leaf's.
        new.init_refs(1);

        let mut flush = Flush::new();
        let part = self.pages_in(&space, &block).expect("pages are there");
        for i in part.range().filter(|&i| part.leaf(i).is_some()) {
            part.freeze(i, 1);
        }
        drop(part);
        flush.add_pages(block.start, ENTRIES as u64);
        self.finish(&space, &mut flush);

        // Nobody stores to the pages through this space now, and nobody else has them, if there are no other references.
        let above = || space.table().cursor(self, block.start, block.end).open(Level::TWO).expect("the table above");
        let batch = Batch {
            class: Class::Process,
            first: 0,
            pages: ENTRIES as u32,
            leaf: Order::HUGE,
            region: vma.region(),
            table: above().table(),
            owner: id.0,
        };
        let part = self.pages_in(&space, &block).expect("the table stays with the space lock");
        let refused = if self.are_referenced(vma, &part) {
            Err(CollapseRefused::Referenced)
        } else {
            self.count(new, &batch, Neighbours::default()).map_err(CollapseRefused::Refused)
        };
        if refused.is_err() {
            part.thaw(0, ENTRIES);
            drop(part);
            self.put(new, 1);
            return refused.map(|()| 0);
        }
        self.copy_pages(&part, new);
        let mut i = 0;
        while i < ENTRIES {
            if part.held(i).is_none() {
                i += 1;
                continue;
            }
            let (folio, batch, n) = self.batch_at(vma, &part, i, ENTRIES, Attrs::ALL);
            part.clear(i, n);
            let beside = self.beside(&part, vma, folio, i..i + n);
            // Flushed when they were frozen.
            self.release(&[Removed { folio, batch, beside, dirty: false }]);
            i += n;
        }
        drop(part);
        space.table().prune(self, block.clone(), block.clone(), &mut flush);
        self.finish(&space, &mut flush);
        let part = above();
        let attrs = vma.attrs().or(Attrs::EXCLUSIVE).or(Attrs::DIRTY);
        part.install(part.index(block.start), 1, Leaf { pfn: new.head(), attrs });
        space.rss().fetch_add(absent, Relaxed);
        Ok(present)
    }

    /// The entries of a block, if it has a table of them.
    fn pages_in<'a>(&'a self, space: &Space<'_>, block: &Range<u64>) -> Option<Part<'a, LongMode, Self>> {
        space.table().cursor(self, block.start, block.end).next().filter(|part| part.level() == Level::ONE)
    }

    /// How many pages of a block are there; all of them must be this owner's alone.
    fn check_pages(&self, space: &Space<'_>, vma: Vma<'_>, block: &Range<u64>) -> Result<u64, CollapseRefused> {
        let Some(part) = self.pages_in(space, block) else {
            let is_large = space.table().lookup(self, block.start).is_some();
            return Err(if is_large { CollapseRefused::Large } else { CollapseRefused::Absent(ENTRIES as u64) });
        };
        let mut present = 0;
        for leaf in part.range().filter_map(|i| part.leaf(i)) {
            let is_ours = || {
                let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
                A::may_reuse(&self.counts(folio), vma.space().0, folio.refs()).value() == Some(true)
            };
            if !leaf.attrs.has(Attrs::EXCLUSIVE) && !is_ours() {
                return Err(CollapseRefused::Shared);
            }
            present += 1;
        }
        Ok(present)
    }

    /// Whether a folio with leaves in the table of `part` may have references that are not of leaves.
    fn are_referenced<'a>(&'a self, vma: Vma<'_>, part: &Part<'a, LongMode, Self>) -> bool {
        let mut i = 0;
        while i < ENTRIES {
            if part.held(i).is_none() {
                i += 1;
                continue;
            }
            let (folio, _, n) = self.batch_at(vma, part, i, ENTRIES, Attrs::ALL);
            let window = self.window(vma, folio, part.span());
            let window = part.index(window.start)..part.index(window.end - 1) + 1;
            let here = part.count_leaves_of(window, folio.head(), folio.end());
            if self.has_more_than(folio, u64::from(here)) {
                return true;
            }
            i += n;
        }
        false
    }

    /// Whether a folio may have other references than those of its leaves, `here` of which are known. Leaves elsewhere are believed to a scheme that
    /// counts them exactly.
    fn has_more_than(&self, folio: Folio<'_>, here: u64) -> bool {
        let counted = || match A::leaves(&self.counts(folio)) {
            Answer::Exact(leaves) => Some(leaves),
            _ => None,
        };
        let before = counted();
        let refs = folio.refs();
        // As in `has_only`.
        fence(Acquire);
        refs != here && (before != Some(refs) || counted() != before)
    }

    /// Fills a folio with the pages of a block, and with zeroes where there are none.
    fn copy_pages(&self, part: &Part<'_, LongMode, Self>, new: Folio<'_>) {
        for i in 0..ENTRIES {
            let to = new.head().add(i as u64);
            let counter = if let Some(leaf) = part.held(i) {
                self.memory().copy(leaf.pfn, to);
                &self.statistics.copied
            } else {
                self.memory().zero(to, 1);
                &self.statistics.cleared
            };
            counter.fetch_add(1, Relaxed);
        }
    }
}

/// The pages around `at` that one leaf of 2 MiB would map, if all of them belong to `vma`.
fn block(vma: Vma<'_>, at: Gva) -> Option<Range<u64>> {
    let pages = Level::TWO.entry_pages();
    let first = at.page() & !(pages - 1);
    (vma.start() <= first && first + pages <= vma.end()).then_some(first..first + pages)
}
