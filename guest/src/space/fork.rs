//! fork: a copy-on-write copy of an address space, one pass per table and one accounting call per folio and table.

use super::fault::batch;
use super::vma::{Tracking, Vma};
use super::{Change, Manager, MapError, Removed, Space, SpaceId};
use crate::folio::Folio;
use crate::format::Attrs;
use crate::mapcount::{Accounting, Batch, Delta, Neighbours, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, Run};
use crate::sync::write_lock;
use core::sync::atomic::Ordering::Relaxed;

/// What a fork has copied of a vma.
#[derive(Default)]
struct Copied {
    /// Pages that are resident in the child.
    pages: u64,
    /// What the accounting calls came to, of anonymous folios and of others: where a scheme guesses how much is mapped.
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
            // Absent entries too: one range for all.
            flush.add_pages(first, part.page(range.end) - first);
            let batch = batch(copy, &child, 0, 0);
            let mut i = range.start;
            while i < range.end {
                let Some(leaf) = part.leaf(i) else {
                    i += 1;
                    continue;
                };
                if leaf.attrs.has(Attrs::UNTRACKED) {
                    part.copy_to(i, Run::ONE, &child, lost);
                    i += 1;
                    continue;
                }
                let (folio, first, most) = self.folio_of(&part, leaf);
                let pages = |run: Run| (run.leaves as u64) << part.level().page_shift();
                let batch = |run| Batch { first: first as u32, pages: pages(run) as u32, ..batch };
                let beside = |run: Run| self.beside(&child, copy, folio, i..i + run.leaves);
                // By the same function, once where it is known what the folio is.
                let (run, counted) = if folio.is_small() {
                    (Run::ONE, self.duplicate(folio, &batch(Run::ONE), beside(Run::ONE), copied))
                } else {
                    let run = part.run(i, most.min(range.end - i), Attrs::ALL);
                    (run, self.duplicate_large(folio, &batch(run), beside(run), copied))
                };
                counted.map_err(MapError::Refused)?;
                part.copy_to(i, run, &child, lost);
                i += run.leaves;
            }
        }
        Ok(())
    }

    /// Counts leaves of `folio` for the child.
    #[inline(always)]
    fn duplicate(
        &self,
        folio: Folio<'_>,
        batch: &Batch,
        beside: Neighbours,
        copied: &mut Copied,
    ) -> Result<(), Refused> {
        self.take(folio, batch.leaves())?;
        let delta = match self.tell(Change::Dup, folio, batch, beside) {
            Ok(delta) => delta,
            Err(refused) => {
                self.put(folio, batch.leaves());
                return Err(refused);
            }
        };
        if (delta.mapped, delta.huge) != (0, 0) {
            let sum = if folio.is_anon() { &mut copied.anon } else { &mut copied.other };
            (sum.mapped, sum.huge) = (sum.mapped + delta.mapped, sum.huge + delta.huge);
        }
        copied.pages += u64::from(batch.pages);
        Ok(())
    }

    /// As [`duplicate`](Self::duplicate), apart: where a folio is known to be a page, that is a few instructions.
    #[inline(never)]
    fn duplicate_large(
        &self,
        folio: Folio<'_>,
        batch: &Batch,
        beside: Neighbours,
        copied: &mut Copied,
    ) -> Result<(), Refused> {
        self.duplicate(folio, batch, beside, copied)
    }
}
