//! mremap: move, grow, shrink.

use core::ops::{ControlFlow, Range};

use super::map::pages_of;
use super::vma::{Tracking, Vma, VmaFlags};
use super::{Manager, MapError, Removed, Space, SpaceId};
use crate::addr::{Gva, Level};
use crate::format::{Attrs, LongMode};
use crate::mapcount::{Accounting, Batch};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, OpenError, Part};
use crate::sync::tally::{Call, counting};
use crate::sync::write_lock;

/// What does not tell mappings apart here: advice, and whether it began as heap.
const ADVICE: VmaFlags = VmaFlags::HUGE.or(VmaFlags::NO_HUGE).or(VmaFlags::HEAP);

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The old range, which must be mapped in one piece, becomes the new one; what stood at the new place is unmapped first.
    ///
    /// # Errors
    /// [`MapError`]; what stood at the new place is gone then. On [`MapError::OutOfFrames`] no page is lost: of several vmas the first ones may have
    /// moved.
    pub fn remap(&self, id: SpaceId, from: Gva, pages: u64, to: Gva, new_pages: u64) -> Result<(), MapError> {
        let old = pages_of(from, pages)?;
        let new = pages_of(to, new_pages)?;
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        let mut flush = Flush::new();
        let result = if old.start == new.start {
            self.resize(&space, old, new)
        } else if old.start < new.end && new.start < old.end {
            Err(MapError::BadRange)
        } else {
            self.relocate(&space, old, new, &mut flush)
        };
        self.finish(&space, &mut flush);
        result
    }

    fn resize(&self, space: &Space<'_>, old: Range<u64>, new: Range<u64>) -> Result<(), MapError> {
        self.check_one_mapping(space, &old)?;
        if new.end <= old.end {
            return if new.end < old.end { self.unmap_locked(space, new.end..old.end) } else { Ok(()) };
        }
        let last = self.find_vma(space, old.end - 1).ok_or(MapError::NotMapped)?;
        let next = self.vma_at_or_above(space, old.end);
        if last.end() != old.end || next.is_some_and(|next| next.start() < new.end) {
            return Err(MapError::Occupied);
        }
        check_indexes(last, new.end - old.end)?;
        last.set_range(last.start()..new.end);
        self.merge_vma(space, last);
        Ok(())
    }

    fn relocate<'a>(
        &'a self,
        space: &Space<'_>,
        old: Range<u64>,
        new: Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        self.check_one_mapping(space, &old)?;
        let last = self.find_vma(space, old.end - 1).ok_or(MapError::NotMapped)?;
        check_indexes(last, (new.end - new.start).saturating_sub(old.end - old.start))?;
        self.unmap_locked(space, new.clone())?;
        // Shrinking is done first, so that only what stays is moved.
        let moved = old.start..old.end.min(old.start + (new.end - new.start));
        if moved.end < old.end {
            self.unmap_locked(space, moved.end..old.end)?;
        }
        let result = self.relocate_vmas(space, &moved, &new, flush);
        // The leaves are gone from the old place, and its tables were kept until all had arrived, or no more can. They must not stay: a larger leaf that is moved there
        // one day would find a table in its way. Vmas go in order, but the one at which it failed may be there again.
        let left = self.vma_at_or_above(space, moved.start).map_or(moved.end, |vma| vma.start().min(moved.end));
        if moved.start < left {
            self.prune_around(space, &(moved.start..left), flush);
        }
        result
    }

    fn relocate_vmas<'a>(
        &'a self,
        space: &Space<'_>,
        moved: &Range<u64>,
        new: &Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let mut at = moved.start;
        while at < moved.end {
            let vma = self.find_vma(space, at).ok_or(MapError::NotMapped)?;
            let vma = self.isolate(space, vma, moved, flush)?;
            at = vma.end();
            let first = vma.start() - moved.start + new.start;
            let end = if at == moved.end { new.end } else { first + vma.pages() };
            self.relocate_vma(space, vma, first..end, flush)?;
        }
        Ok(())
    }

    /// One mapping in the eyes of Linux, which may have merged what is several vmas here: each continues the one before.
    fn check_one_mapping(&self, space: &Space<'_>, range: &Range<u64>) -> Result<(), MapError> {
        let mut vma = self.find_vma(space, range.start).ok_or(MapError::NotMapped)?;
        while vma.end() < range.end {
            let next = self.find_vma(space, vma.end()).ok_or(MapError::NotMapped)?;
            let continues = next.flags().without(ADVICE) == vma.flags().without(ADVICE)
                && next.object() == vma.object()
                && (vma.object() == 0 || next.offset() == vma.index(vma.end()));
            if !continues {
                return Err(MapError::NotMapped);
            }
            vma = next;
        }
        Ok(())
    }

    fn relocate_vma<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        to: Range<u64>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let target = self.vma(self.vmas.alloc(&self.frames).ok_or(MapError::OutOfFrames)?);
        target.copy_from(vma);
        target.set_range(to);
        self.insert_in_tree(space.tree(), target);
        self.link_vma_all(target);
        let result = self.move_leaves(space, vma, target, flush);
        // Back again: the tables at the old place still stand, so that this takes no frame.
        if result.is_err() && self.move_leaves(space, target, vma, flush).is_ok() {
            let place = target.start()..target.end();
            self.remove_vma(space, target);
            self.prune_around(space, &place, flush);
            self.merge_vma(space, vma);
            return result;
        }
        self.zap(space, vma, vma.start(), vma.end(), flush);
        self.include_unmapped(space, vma, flush);
        self.remove_vma(space, vma);
        self.merge_vma(space, target);
        result
    }

    fn move_leaves<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        target: Vma<'a>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let congruent = |level: Level| (vma.start() ^ target.start()) & (level.entry_pages() - 1) == 0;
        let mut at = vma.start();
        while at < vma.end() {
            let step = self.for_parts(space, vma, at, vma.end(), flush, |part, range, flush| {
                if part.are_absent(range.clone()) {
                    return ControlFlow::Continue(());
                }
                if !congruent(part.level()) {
                    // Split the first large leaf and come again.
                    for i in range {
                        if part.leaf(i).is_some() {
                            return match self.split_leaf(vma, part, i, flush) {
                                Ok(()) => ControlFlow::Break(Ok(part.page(i))),
                                Err(_) => ControlFlow::Break(Err(MapError::OutOfFrames)),
                            };
                        }
                    }
                    return ControlFlow::Continue(());
                }
                match self.move_part(space, vma, target, part, range, flush) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => ControlFlow::Break(Err(error)),
                }
            });
            match step {
                ControlFlow::Continue(()) => break,
                ControlFlow::Break(Ok(page)) => at = page,
                ControlFlow::Break(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves the leaves of one part; they may come to lie in two tables.
    fn move_part<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'a>,
        target: Vma<'a>,
        part: &Part<'a, LongMode, Self>,
        range: Range<usize>,
        flush: &mut Flush<Removed<'a>>,
    ) -> Result<(), MapError> {
        let step = part.level().entry_pages();
        let new_page = |page: u64| page - vma.start() + target.start();
        let mut i = range.start;
        while i < range.end {
            if part.leaf(i).is_none() {
                i += 1;
                continue;
            }
            let first = new_page(part.page(i));
            // To the end of the table at the new place.
            let fit = ((part.level().table_pages() - (first & (part.level().table_pages() - 1))) / step) as usize;
            let end = range.end.min(i + fit);
            let mut cursor = space.table().cursor(self, first, first + (end - i) as u64 * step);
            // Two table locks of one space at once: nobody else holds any, the space lock is exclusive.
            let to = match cursor.open_beside(part) {
                Ok(to) => to,
                Err(OpenError::OutOfFrames | OpenError::InTheWay) => return Err(MapError::OutOfFrames),
            };
            while i < end {
                let Some(leaf) = part.leaf(i) else {
                    i += 1;
                    continue;
                };
                let j = to.index(new_page(part.page(i)));
                let n = if leaf.attrs.has(Attrs::UNTRACKED) {
                    1
                } else {
                    self.move_counts(vma, target, part, &to, i..end, j)
                };
                let attrs = part.clear(i, n);
                // The late bits of the MMU belong to the pages: they go along.
                let late = Leaf(leaf).with(attrs);
                to.install(j, n, late);
                flush.add_pages(part.page(i), n as u64 * step);
                i += n;
            }
        }
        Ok(())
    }

    /// Tells schemes that look at tables of the move of the leaves at the start of `range` to index `j` of `to`; how many leaves. Others see nothing: neither folio,
    /// owner, leaves nor pages change.
    fn move_counts<'a>(
        &'a self,
        vma: Vma<'_>,
        target: Vma<'_>,
        part: &Part<'a, LongMode, Self>,
        to: &Part<'_, LongMode, Self>,
        range: Range<usize>,
        j: usize,
    ) -> usize {
        let (folio, batch, n) = self.batch_at(vma, part, range.start, range.end, Attrs::ACCESSED_DIRTY);
        if A::NEEDS.tuple || A::NEEDS.region {
            let new = Batch { region: target.region(), table: to.table(), ..batch };
            let here = self.beside(part, vma, folio, range.start..range.start + n);
            let there = self.beside(to, target, folio, j..j + n);
            let delta = counting(Call::Moved, || A::moved(&self.counts(folio), &batch, here, &new, there));
            self.note(folio, delta);
        }
        n
    }
}

/// Whether `vma` may become `more` pages longer: the indexes of its pages must stay below those a descriptor can hold. Few mappings come near:
/// those of high addresses, moved down. Regions of device and driver memory do not grow: nobody has said that the memory behind is theirs.
fn check_indexes(vma: Vma<'_>, more: u64) -> Result<(), MapError> {
    let grows = more > 0 && vma.tracking() != Tracking::Tracked;
    if grows || vma.offset() + vma.pages() + more > super::PAGES_END { Err(MapError::BadRange) } else { Ok(()) }
}

/// A leaf with the bits that the MMU set late.
struct Leaf(crate::format::Leaf);

impl Leaf {
    fn with(self, attrs: Attrs) -> crate::format::Leaf {
        let late = Attrs::NONE
            .with_if(attrs.has(Attrs::ACCESSED), Attrs::ACCESSED)
            .with_if(attrs.has(Attrs::DIRTY), Attrs::DIRTY);
        crate::format::Leaf { attrs: self.0.attrs.or(late), ..self.0 }
    }
}
