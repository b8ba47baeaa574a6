//! Splitting leaves, cutting and joining vmas inside a folio.

use core::sync::atomic::Ordering::Relaxed;

use super::fault::batch;
use super::vma::Vma;
use super::{Manager, MapError, Removed, Space};
use crate::addr::Level;
use crate::folio::Folio;
use crate::format::{Attrs, LongMode};
use crate::mapcount::{Accounting, Sides};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, OpenError, Part, Tables};
use crate::sync::tally::{Call, counting};

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Splits the leaf at `i` of `part` into a table of its own, and tells the counts in one operation.
    pub(super) fn split_leaf(
        &self,
        vma: Vma<'_>,
        part: &Part<'_, LongMode, Self>,
        i: usize,
        flush: &mut Flush<Removed<'_>>,
    ) -> Result<(), OpenError> {
        let leaf = part.leaf(i).expect("the caller saw a leaf");
        if leaf.attrs.has(Attrs::UNTRACKED) {
            return part.split(i, flush, || ()).map(|_| ());
        }
        let (folio, first, _) = self.folio_of(part, leaf);
        let batch = batch(vma, part, first, part.level().entry_pages());
        // References before counts, counts before entries: 511 more of each. Who walks without the table's lock finds at most what is counted.
        folio.get(511);
        let split = part.split(i, flush, || {
            let beside = self.beside_in_table(part, vma, folio, i..i + 1);
            let delta = counting(Call::Split, || A::split(&self.counts(folio), &batch, beside));
            self.note(folio, delta);
        });
        if let Err(error) = split {
            let last = folio.put(511);
            debug_assert!(!last, "the leaf holds a reference");
            return Err(error);
        }
        self.statistics.splits.fetch_add(1, Relaxed);
        Ok(())
    }

    // --- vmas ------------------------------------------------------------------------------------------------

    /// Cuts `vma` at `page`, which lies inside it; the upper half. Leaves across the cut are split, and schemes that count regions are told of every folio that is mapped on both sides of it in one table.
    pub(super) fn cut_vma<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        page: u64,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<Vma<'a>, MapError> {
        debug_assert!(vma.start() < page && page < vma.end());
        let upper = self.vma(self.vmas.alloc_from_reserve(&self.frames).ok_or(MapError::OutOfFrames)?);
        if self.split_at(space, vma, page, flush).is_err() {
            self.vmas.free(&self.frames, upper.record);
            return Err(MapError::OutOfFrames);
        }
        self.for_straddling(space, vma, page, A::tuple_cut);
        self.for_divided(space, vma, page, A::region_cut);
        upper.copy_from(vma);
        upper.set_range(page..vma.end());
        upper.set_offset(vma.index(page));
        if vma.flags().has(super::VmaFlags::PFN) {
            upper.set_device(vma.frame_at(page));
        }
        vma.set_range(vma.start()..page);
        self.insert_in_tree(space.tree(), upper);
        self.link_vma_all(upper);
        Ok(upper)
    }

    /// Splits whatever leaf reaches across `page`, so that a table boundary of the lowest level lies there.
    pub(super) fn split_at(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        flush: &mut Flush<Removed<'_>>,
    ) -> Result<(), OpenError> {
        loop {
            // Mostly there is none, and no lock is taken: who else would change these tables has no hold of the space.
            let (place, _) = space.table().deepest(self, page);
            if place.page == page {
                return Ok(());
            }
            let mut cursor = space.table().cursor(self, page, page + 1);
            match cursor.next() {
                Some(part) if part.straddles() && part.page(part.range().start) < page => {
                    self.split_leaf(vma, &part, part.range().start, flush)?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Joins `vma` with its neighbours where they continue each other; the one it became part of.
    pub(super) fn merge_vma<'a>(&'a self, space: &Space<'_>, vma: Vma<'a>) -> Vma<'a> {
        let mut vma = vma;
        if let Some(below) = self.vma_below(space, vma.start()).filter(|&below| can_merge(below, vma)) {
            self.join_vmas(space, below, vma);
            vma = below;
        }
        if let Some(above) = self.find_vma(space, vma.end()).filter(|&above| can_merge(vma, above)) {
            self.join_vmas(space, vma, above);
        }
        vma
    }

    fn join_vmas(&self, space: &Space<'_>, below: Vma<'_>, above: Vma<'_>) {
        let seam = above.start();
        if below.family() == 0 && above.family() != 0 {
            // Not both: the family lives on with the vma that stays.
            below.set_family(above.family());
            self.link_vma(below, true);
        }
        self.remove_from_tree(space.tree(), above);
        self.unlink_vma_all(above);
        below.set_range(below.start()..above.end());
        self.vmas.free(&self.frames, above.record);
        self.for_straddling(space, below, seam, A::tuple_merge);
        self.for_divided(space, below, seam, A::region_merge);
    }

    /// Calls `tell` for every folio that `vma` maps on both sides of `page` within one table page: once per such table.
    fn for_straddling(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        tell: impl Fn(&crate::mapcount::Target<'_, M>),
    ) {
        if !A::NEEDS.tuple {
            return;
        }
        for level in [Level::ONE, Level::TWO, Level::THREE] {
            let base = page & !(level.table_pages() - 1);
            if base == page {
                // No table of this level holds entries on both sides, nor does one above unless larger leaves meet there.
                continue;
            }
            let Some(table) = self.table_at(space, page, level) else { continue };
            let entries = self.entries(table);
            let leaf_at = |page: u64| match <LongMode as crate::format::Format>::decode(
                entries[level.index(page)].load(Relaxed),
                level,
            ) {
                crate::format::Entry::Leaf(leaf) if !leaf.attrs.has(Attrs::UNTRACKED) => Some(leaf.pfn),
                _ => None,
            };
            let step = level.entry_pages();
            let span = base..base + level.table_pages();
            let count = |folio: Folio<'_>, range: core::ops::Range<u64>| {
                range
                    .step_by(step as usize)
                    .filter(|&page| leaf_at(page).is_some_and(|pfn| folio.head() <= pfn && pfn < folio.end()))
                    .count()
            };
            let mut at = vma.start().max(base) & !(step - 1);
            while at < page {
                if let Some(folio) = leaf_at(at).and_then(|pfn| self.folio(pfn)) {
                    let window = self.window(vma, folio, span.clone());
                    if window.end > page && count(folio, window.start..at) == 0 && count(folio, page..window.end) > 0 {
                        counting(Call::Cut, || tell(&self.counts(folio)));
                    }
                }
                at += step;
            }
        }
    }

    /// Calls `tell` for every folio that `vma` maps on both sides of `page`, in whatever tables: once. The space lock is held exclusively, so the leaves stay.
    fn for_divided(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        tell: impl Fn(&crate::mapcount::Target<'_, M>, Sides),
    ) {
        if !A::NEEDS.region {
            return;
        }
        // No folio reaches further down than the largest there ever was.
        let reach = 1 << self.largest.load(Relaxed);
        let mut cursor = space.table().cursor(self, vma.start().max(page.saturating_sub(reach)), page);
        while let Some(part) = cursor.next() {
            let range = part.range();
            let mut i = range.start;
            while i < range.end {
                if part.held(i).is_none_or(|leaf| leaf.attrs.has(Attrs::UNTRACKED)) {
                    i += 1;
                    continue;
                }
                let (folio, _, n) = self.batch_at(vma, &part, i, range.end, Attrs::ALL);
                let window = self.window(vma, folio, 0..super::PAGES_END);
                let frames = folio.head()..folio.end();
                let is_first = || self.pages_of(vma, frames.clone(), window.start..part.page(i)) == 0;
                if window.end > page && is_first() {
                    let below = self.pages_of(vma, frames.clone(), window.start..page);
                    let above = self.pages_of(vma, frames.clone(), page..window.end);
                    if above > 0 {
                        counting(Call::Cut, || tell(&self.counts(folio), Sides { below, above }));
                    }
                }
                i += n;
            }
        }
    }

    /// The table of `level` on the way to `page`.
    fn table_at(&self, space: &Space<'_>, page: u64, level: Level) -> Option<crate::addr::Pfn> {
        use crate::format::{Entry, Format};
        let mut at = LongMode::ROOT;
        let mut table = space.table().root();
        while at > level {
            match LongMode::decode(self.entries(table)[at.index(page)].load(Relaxed), at) {
                Entry::Table(next) => table = next,
                _ => return None,
            }
            at = at.below()?;
        }
        Some(table)
    }
}

/// Whether `above` continues `below`.
fn can_merge(below: Vma<'_>, above: Vma<'_>) -> bool {
    let device = below.flags().has(super::VmaFlags::PFN);
    below.end() == above.start()
        && below.flags() == above.flags()
        && below.object() == above.object()
        && (below.family() == above.family() || below.family() == 0 || above.family() == 0)
        && below.offset() + below.pages() == above.offset()
        && (!device || below.device().add(below.pages()) == above.device())
}
