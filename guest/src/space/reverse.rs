//! From a folio to its leaves: the vmas of its object, and in each the tables that its window touches. Steps per table, not per page.

use core::ops::ControlFlow;

use super::vma::Vma;
use super::{Manager, Space};
use crate::folio::Folio;
use crate::format::{Attrs, LongMode};
use crate::mapcount::{Accounting, Answer};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, Part};
use crate::sync::lock_word;

/// Leaves of the folio are left after everything was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapFailed;

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Calls `visit` for every stretch of consecutive leaves of `folio` (vma, table, indexes), until it breaks. Whether it did.
    ///
    /// The caller excludes changes of the vmas it reaches; here that is everybody who holds no space lock.
    pub(super) fn walk_folio<'a>(
        &'a self,
        folio: Folio<'a>,
        mut visit: impl FnMut(&Space<'_>, Vma<'a>, &Part<'a, LongMode, Self>, core::ops::Range<usize>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let object = self.object(folio.mapping().object);
        let _guard = lock_word(object.lock);
        for vma in self.vmas_of(&object, folio.is_anon()) {
            let window = vma.window(folio, 0..super::PAGES_END);
            if window.is_empty() {
                continue;
            }
            let space = self.space(vma.space());
            let mut cursor = space.table().cursor(self, window.start, window.end);
            while let Some(part) = cursor.next() {
                let range = part.range();
                let mut i = range.start;
                while i < range.end {
                    let leaf = part.held(i).filter(|leaf| {
                        !leaf.attrs.has(Attrs::UNTRACKED) && folio.head() <= leaf.pfn && leaf.pfn < folio.end()
                    });
                    if leaf.is_none() {
                        i += 1;
                        continue;
                    }
                    let (_, _, n) = self.batch_at(vma, &part, i, range.end, Attrs::ALL);
                    visit(&space, vma, &part, i..i + n)?;
                    i += n;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// How many leaves map the folio, by a walk: what a scheme without counts must do.
    pub fn count_leaves(&self, folio: Folio<'_>) -> u64 {
        let mut leaves = 0;
        let _ = self.walk_folio(folio, |_, _, _, range| {
            leaves += range.len() as u64;
            ControlFlow::Continue(())
        });
        leaves
    }

    /// Of those, the leaves in the tables of `owner`.
    pub(crate) fn count_leaves_of(&self, folio: Folio<'_>, owner: u32) -> u64 {
        let mut leaves = 0;
        let _ = self.walk_folio(folio, |space, _, _, range| {
            leaves += if space.id.0 == owner { range.len() as u64 } else { 0 };
            ControlFlow::Continue(())
        });
        leaves
    }

    /// Counts the regions that map the folio by a walk, and gives the number to a scheme that may have lost it. The caller excludes changes of the folio's
    /// mappings.
    pub fn repair(&self, folio: Folio<'_>) {
        let (mut regions, mut last) = (0, None);
        let _ = self.walk_folio(folio, |_, vma, _, _| {
            // The walk goes vma by vma.
            regions += u64::from(last.replace(vma.region()) != Some(vma.region()));
            ControlFlow::Continue(())
        });
        A::repair(&self.counts(folio), regions);
    }

    /// Whether two different owners map the folio, by a walk that stops at the second.
    pub fn is_shared_by_walk(&self, folio: Folio<'_>) -> bool {
        let mut first = None;
        self.walk_folio(folio, |space, _, _, _| match first {
            None => {
                first = Some(space.id);
                ControlFlow::Continue(())
            }
            Some(id) if id == space.id => ControlFlow::Continue(()),
            Some(_) => ControlFlow::Break(()),
        })
        .is_break()
    }

    /// Removes every leaf of `folio`, table by table, and stops early when the scheme says that none is left. The contents stay with whoever holds
    /// a reference.
    ///
    /// # Errors
    /// [`UnmapFailed`] when the scheme still counts leaves that no walk finds.
    pub fn try_to_unmap(&self, folio: Folio<'_>) -> Result<(), UnmapFailed> {
        folio.get(1);
        let known = A::leaves(&self.counts(folio)).value();
        let mut left = known.unwrap_or(u64::MAX);
        let _ = self.walk_folio(folio, |space, vma, part, range| {
            let leaves = range.len() as u64;
            let mut flush = Flush::new();
            // One folio in one table is one batch: the token cannot fill up.
            let rest = self.clear_part(space, vma, part, range, &mut flush);
            debug_assert!(rest.is_none(), "one batch fits a token");
            self.finish(space, &mut flush);
            left = left.saturating_sub(leaves);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // An answer that may be wrong is no reason to doubt the walk, which went to the end then.
        let mapped = A::mapped(&self.counts(folio)) == Answer::Exact(true);
        self.put(folio, 1);
        if mapped { Err(UnmapFailed) } else { Ok(()) }
    }
}
