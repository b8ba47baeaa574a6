//! fork: a copy-on-write copy of an address space, one pass per table and one accounting call per folio and table.

use super::fault::batch;
use super::vma::{Tracking, Vma};
use super::{Manager, MapError, Removed, Space, SpaceId};
use crate::format::{Attrs, Leaf, LongMode};
use crate::mapcount::{Accounting, Delta};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, Part, Run};
use crate::sync::tally::{Call, counting};
use crate::sync::write_lock;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

/// What a fork has copied of a vma.
#[derive(Default)]
struct Copied {
    /// Pages that are resident in the child.
    pages: u64,
    /// Accounting calls.
    batches: u64,
    /// What these came to, of anonymous folios and of others.
    anon: Delta,
    other: Delta,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// A new space that shares every private page of `parent` until one of the two stores to it. Pages of objects and devices that no
    /// private page was ever made of are not copied: faults bring them.
    ///
    /// # Errors
    /// [`MapError`]; nothing is left of the child then, and the parent has lost no more than its exclusive marks.
    pub fn fork(&self, parent: SpaceId) -> Result<SpaceId, MapError> {
        let child = self.create_space()?;
        let result = {
            let from = self.space(parent);
            let to = self.space(child);
            let _parent = write_lock(from.lock());
            let _child = write_lock(to.lock());
            let mut flush = Flush::new();
            let result = self.copy_vmas(&from, &to, &mut flush);
            to.brk().store(from.brk().load(Relaxed), Relaxed);
            // The parent must not store through a translation from before.
            self.finish(&from, &mut flush);
            result
        };
        match result {
            Ok(()) => Ok(child),
            Err(error) => {
                self.destroy_space(child);
                Err(error)
            }
        }
    }

    fn copy_vmas<'a>(
        &'a self,
        from: &Space<'a>,
        to: &Space<'a>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let mut at = 0;
        while let Some(vma) = self.vma_at_or_above(from, at) {
            at = vma.end();
            let copy = self.vma(self.vmas.alloc(&self.frames).ok_or(MapError::OutOfFrames)?);
            copy.copy_from(vma);
            copy.set_space(to.id);
            self.insert_in_tree(to.tree(), copy);
            self.link_vma_all(copy);
            // No fault brings what a driver inserted.
            if vma.family() != 0 || vma.tracking() == Tracking::Mixed {
                self.copy_leaves(from, to, vma, copy, flush)?;
            }
        }
        Ok(())
    }

    fn copy_leaves<'a>(
        &'a self,
        from: &Space<'a>,
        to: &Space<'a>,
        vma: Vma<'a>,
        copy: Vma<'a>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let mut copied = Copied::default();
        let result = self.copy_parts(from, to, vma, copy, flush, &mut copied);
        to.rss().fetch_add(copied.pages, Relaxed);
        self.statistics.adds.fetch_add(copied.batches, Relaxed);
        self.statistics.note(true, copied.anon);
        self.statistics.note(false, copied.other);
        result
    }

    /// As [`copy_leaves`](Self::copy_leaves); `copied` is what it has come to, also when it fails.
    fn copy_parts<'a>(
        &'a self,
        from: &Space<'a>,
        to: &Space<'a>,
        vma: Vma<'a>,
        copy: Vma<'a>,
        flush: &mut Flush<Removed<'a>>,
        copied: &mut Copied,
    ) -> Result<(), MapError> {
        let lost = if vma.is_private() { Attrs::WRITE.or(Attrs::EXCLUSIVE) } else { Attrs::NONE };
        let mut cursor = from.table().cursor(self, vma.start(), vma.end());
        while let Some(part) = cursor.next() {
            let range = part.range();
            if part.straddles() || part.are_absent(range.clone()) {
                // A leaf never reaches across the end of a vma.
                debug_assert!(!part.straddles(), "a leaf across the end of {vma:?}");
                continue;
            }
            let first = part.page(range.start);
            let child = to
                .table()
                .cursor(self, first, part.page(range.end))
                .open(part.level())
                .map_err(|_| MapError::OutOfFrames)?;
            let mut i = range.start;
            while i < range.end {
                let Some(leaf) = part.leaf(i) else {
                    i += 1;
                    continue;
                };
                let counted = self.duplicate(copy, (&part, leaf), &child, i..range.end, copied)?;
                let run = counted.unwrap_or(Run::ONE);
                let pages = run.leaves as u64 * part.level().entry_pages();
                part.copy_to(i, run, &child, lost);
                if counted.is_some() {
                    copied.pages += pages;
                }
                flush.add_pages(part.page(i), pages);
                i += run.leaves;
            }
        }
        Ok(())
    }

    /// Counts the leaves of `part` at the start of `range`, the first of which is `leaf`, for the child; which they are, or `None` for one that is not counted.
    #[inline]
    fn duplicate(
        &self,
        copy: Vma<'_>,
        (part, leaf): (&Part<'_, LongMode, Self>, Leaf),
        child: &Part<'_, LongMode, Self>,
        range: Range<usize>,
        copied: &mut Copied,
    ) -> Result<Option<Run>, MapError> {
        let i = range.start;
        if leaf.attrs.has(Attrs::UNTRACKED) {
            return Ok(None);
        }
        let (folio, first, most) = self.folio_of(part, leaf);
        let run = part.run(i, most.min(range.len()), Attrs::ALL);
        let batch = batch(copy, child, first, (run.leaves as u64) << part.level().page_shift());
        let beside = self.beside(child, copy, folio, i..i + run.leaves);
        self.take(folio, batch.leaves()).map_err(MapError::Refused)?;
        match counting(Call::Dup, || A::dup(&self.counts(folio), &batch, beside)) {
            Ok(delta) => {
                let sum = if folio.is_anon() { &mut copied.anon } else { &mut copied.other };
                (sum.mapped, sum.huge) = (sum.mapped + delta.mapped, sum.huge + delta.huge);
                copied.batches += 1;
                Ok(Some(run))
            }
            Err(refused) => {
                self.put(folio, batch.leaves());
                Err(MapError::Refused(refused))
            }
        }
    }
}
