//! Removing leaves: one batch and one accounting call per folio and table.

use core::ops::ControlFlow;
use core::ops::Range;

use super::fault::batch;
use super::vma::Vma;
use super::{Manager, Removed, Space};
use crate::addr::Level;
use crate::folio::Folio;
use crate::format::{Attrs, Entry, Format, Leaf, LongMode};
use crate::mapcount::{Accounting, Batch};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, OpenError, Part};
use core::sync::atomic::Ordering::Relaxed;

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Clears the leaves of `vma` in pages `first..end`, which lie inside it. What they led to travels in `flush`; when that is
    /// full it is finished on the way, with no lock but the space's held.
    pub(super) fn zap<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        first: u64,
        end: u64,
        flush: &mut Flush<Removed<'a>>,
    ) {
        let mut cursor = space.table().cursor(self, first, end);
        while let Some(part) = cursor.next() {
            debug_assert!(!part.straddles(), "a leaf across an edge of {vma:?}");
            if let Some(i) = self.clear_part(space, vma, &part, part.range(), flush) {
                cursor.seek(part.page(i));
                drop(part);
                self.finish(space, flush);
            }
        }
    }

    /// As [`zap`](Self::zap); leaves that reach across an edge of the pages are split first.
    ///
    /// # Errors
    /// [`OpenError`] when there is no table for that.
    pub(super) fn zap_within<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        range: Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), OpenError> {
        let (mut place, entry) = space.table().deepest(self, range.start);
        let leaf = place.page..place.page + place.level.entry_pages();
        if matches!(entry, Entry::Leaf(_)) && range != leaf && range.end <= leaf.end {
            // Inside of one large leaf.
            let part = space.table().cursor(self, range.start, range.end).open_at(place);
            self.split_leaf(vma, &part, part.index(range.start), flush)?;
            drop(part);
            (place, _) = space.table().deepest(self, range.start);
        }
        if place.level == Level::ONE && range.end <= place.table_end() {
            // The smallest leaves, all in one table, which stays as long as the space is held.
            let mut cursor = space.table().cursor(self, range.start, range.end);
            loop {
                let part = cursor.open_at(place);
                let Some(i) = self.clear_part(space, vma, &part, part.range(), flush) else { return Ok(()) };
                cursor.seek(part.page(i));
                drop(part);
                self.finish(space, flush);
            }
        }
        // At the ends of a vma no leaf reaches across.
        for edge in [range.start, range.end] {
            if vma.start() < edge && edge < vma.end() {
                self.split_at(space, vma, edge, flush)?;
            }
        }
        self.zap(space, vma, range.start, range.end, flush);
        Ok(())
    }

    /// Clears the leaves of a part; the index to go on with when the token is full.
    pub(super) fn clear_part<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        part: &Part<'a, LongMode, Self>,
        range: Range<usize>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Option<usize> {
        if part.level() > LongMode::MAX_LEAF {
            // No leaf stands so high.
            return None;
        }
        let template = batch(vma, part, 0, 0);
        let (mut i, mut resident) = (range.start, 0);
        // The entries in which something was, first and last.
        let mut touched = range.end..range.start;
        while i < range.end {
            let Some(leaf) = part.held(i) else {
                i += 1;
                continue;
            };
            if flush.is_full() {
                break;
            }
            touched.start = touched.start.min(i);
            if leaf.attrs.has(Attrs::UNTRACKED) {
                part.clear(i, 1);
                i += 1;
                touched.end = i;
                continue;
            }
            let (folio, first, most) = self.folio_of(part, leaf);
            // How many there are shows as they go: one pass.
            let (n, attrs) = match most.min(range.end - i) {
                1 => (1, part.take_one(i, leaf)),
                most => part.take_run(i, most),
            };
            let pages = (n as u64) << part.level().page_shift();
            resident += pages;
            let batch = Batch { first: first as u32, pages: pages as u32, ..template };
            let beside = self.beside(part, vma, folio, i..i + n);
            flush.push(Removed { folio, batch, beside, dirty: attrs.has(Attrs::DIRTY) });
            i += n;
            touched.end = i;
        }
        if !touched.is_empty() {
            flush.add_pages(part.page(touched.start), part.page(touched.end) - part.page(touched.start));
            space.rss().fetch_sub(resident, Relaxed);
        }
        (i < range.end).then_some(i)
    }

    /// The folio of a tracked leaf of `part`, the page of it that the leaf maps first, and how many leaves may map the rest of it.
    #[inline(always)]
    pub(super) fn folio_of(&self, part: &Part<'_, LongMode, Self>, leaf: Leaf) -> (Folio<'_>, u64, usize) {
        let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
        let first = leaf.pfn.raw() - folio.head().raw();
        (folio, first, ((folio.pages() - first) >> part.level().page_shift()).max(1) as usize)
    }

    /// The leaves from the tracked leaf at `i` on, below `end`, that map consecutive pages of one folio and differ at most in `ignore`: the
    /// folio, the batch they form, and how many they are.
    pub(super) fn batch_at<'a>(
        &'a self,
        vma: Vma<'_>,
        part: &Part<'a, LongMode, Self>,
        i: usize,
        end: usize,
        ignore: Attrs,
    ) -> (Folio<'a>, Batch, usize) {
        let (folio, first, most) = self.folio_of(part, part.held(i).expect("the caller saw a leaf"));
        let n = part.run_length(i, most.min(end - i), ignore);
        (folio, batch(vma, part, first, (n as u64) << part.level().page_shift()), n)
    }

    /// Everything that the vma maps is about to lead elsewhere or to allow less: has what VMs have taken out of its object, without a leaf of the space (slots
    /// that are [`UNMAPPED`](crate::stage2::SlotFlags::UNMAPPED)), go with the leaves.
    pub(super) fn include_unmapped(&self, space: &Space<'_>, vma: Vma<'_>, flush: &mut Flush<Removed<'_>>) {
        if space.vms().load(Relaxed) != 0 && vma.object() != 0 && !vma.is_private() {
            flush.add_pages(vma.start(), vma.pages());
        }
    }

    /// Calls `f` for every part of pages `first..end`, with the indexes to work on. No leaf lies across an edge of the range: the caller has
    /// [split](Self::split_at) it.
    pub(super) fn for_parts<'a, B>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'_>,
        first: u64,
        end: u64,
        flush: &mut Flush<Removed<'a>>,
        mut f: impl FnMut(&Part<'a, LongMode, Self>, Range<usize>, &mut Flush<Removed<'a>>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut cursor = space.table().cursor(self, first, end);
        while let Some(part) = cursor.next() {
            let range = part.range();
            debug_assert!(!part.straddles(), "a leaf across an edge of {vma:?}");
            f(&part, range, flush)?;
        }
        ControlFlow::Continue(())
    }
}
