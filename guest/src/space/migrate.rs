//! Moving what a folio holds to other frames, under everybody who maps it.
//!
//! A move holds the locks of all spaces with vmas of the folio's object, so that nobody faults there, maps, unmaps or forks. Then:
//!
//! 1. every leaf is frozen, which makes it a migration entry, and flushed: nobody reaches the folio through a leaf any more;
//! 2. the leaves-to-be are counted on the new folios;
//! 3. if nobody else holds a reference the contents are copied, and the page cache is told;
//! 4. the frozen leaves thaw, with all their attributes, as leaves of the new folios, and leave the counts and references of the old one.
//!
//! To the counts this is an unmap and a map (SCHEMES.md, events), in the other order: as only a map can be refused, everything up to the third step can be
//! undone by thawing. Prior art: Linux's `migrate_folio`, `folio_migrate_mapping`, `remove_migration_ptes`.

use core::ops::{ControlFlow, Range};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::fence;

use super::object::Object;
use super::reverse::SpaceBusy;
use super::vma::Vma;
use super::{Manager, PAGES_END, Removed, Space, SpaceId};
use crate::addr::Pfn;
use crate::folio::{Folio, FolioFlags};
use crate::format::{Attrs, LongMode};
use crate::mapcount::{Accounting, Batch, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, Part};
use crate::sync::{end_write, lock_word, try_write};

/// Why a folio stays where it is. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateFailed {
    /// Somebody held this space, in which the folio may be mapped.
    Busy(SpaceId),
    /// Somebody holds a reference that is not a leaf's, the page cache's or the caller's: a pin, or another CPU at work on it.
    Referenced,
    /// Nothing leads to it: no leaf, no page cache.
    Unused,
    /// A count would not take the leaves of the new folio.
    Refused(Refused),
    /// No frames for the new folio.
    OutOfFrames,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Moves a folio, anonymous or of a page cache, to other frames; the first of them. The caller holds one reference, which is the last to the old frames when
    /// this succeeds, and no lock. Waits for nobody. No object may be [destroyed](Self::destroy_object) meanwhile.
    ///
    /// # Errors
    /// [`MigrateFailed`]; everything is as before then.
    pub fn migrate(&self, folio: Folio<'_>) -> Result<Pfn, MigrateFailed> {
        let _one_at_a_time = lock_word(&self.moving);
        let is_anon = folio.is_anon();
        let flags = if is_anon { FolioFlags::ANON } else { FolioFlags::NONE };
        let new = self.new_folio(folio.order(), flags, self.mapping(folio), false).ok_or(MigrateFailed::OutOfFrames)?;
        // Ours, until others have it.
        new.init_refs(1);
        let copy = || {
            for page in 0..folio.pages() {
                self.memory().copy(folio.head().add(page), new.head().add(page));
            }
            self.statistics.copied.fetch_add(folio.pages(), Relaxed);
            true
        };
        let commit = |leaves| {
            let good = if is_anon {
                if leaves == 0 {
                    return Err(MigrateFailed::Unused);
                }
                has_only(folio, leaves + 1) && copy()
            } else {
                if !folio.flags().has(FolioFlags::CACHE) {
                    return Err(MigrateFailed::Unused);
                }
                self.exchange_in_cache(folio, leaves + 1, Some(new), copy)
            };
            if good { Ok(()) } else { Err(MigrateFailed::Referenced) }
        };
        let held = self.with_spaces_held(folio, || self.exchange_leaves(folio, |_| new, commit));
        let result = match held {
            Ok(Some(result)) => result,
            Ok(None) => commit(0),
            Err(SpaceBusy(space)) => Err(MigrateFailed::Busy(space)),
        };
        if result.is_ok() {
            if folio.flags().has(FolioFlags::DIRTY) {
                new.set_flags(FolioFlags::DIRTY);
            }
            if folio.flags().has(FolioFlags::QUEUED) {
                self.deferred.remove(&self.frames, &self.folios, folio);
                self.defer(new);
            }
        }
        let head = new.head();
        self.put(new, 1);
        result.map(|()| head)
    }

    /// Runs `work` with the locks of all spaces held that have vmas of the folio's object; `None` if there is no such vma. A file may get vmas in
    /// further spaces meanwhile. Under the move lock.
    pub(super) fn with_spaces_held<R>(
        &self,
        folio: Folio<'_>,
        work: impl FnOnce() -> R,
    ) -> Result<Option<R>, SpaceBusy> {
        let Some((object, guard)) = self.lock_object_of(folio) else { return Ok(None) };
        for vma in self.vmas_of(&object, folio.is_anon()) {
            let space = self.space(vma.space());
            if is_held(&space) {
                continue;
            }
            // Not waited for: its holder may wait for the object.
            if !try_write(space.lock()) {
                self.release_spaces(&object);
                return Err(SpaceBusy(space.id));
            }
            space.held().store(1, Relaxed);
        }
        drop(guard);
        let result = work();
        // Nobody whose space is released takes its vmas from the list before the last one is. Till then the object stays.
        let _guard = lock_word(object.lock);
        self.release_spaces(&object);
        Ok(Some(result))
    }

    /// Under the lock of the object.
    fn release_spaces(&self, object: &Object<'_>) {
        for vma in self.vmas_of(object, object.is_anon()) {
            let space = self.space(vma.space());
            if is_held(&space) {
                space.held().store(0, Relaxed);
                end_write(space.lock());
            }
        }
    }

    /// A walk over the leaves of `folio` in all spaces that are held.
    pub(super) fn walk_held<'a>(
        &'a self,
        folio: Folio<'a>,
        visit: impl FnMut(
            &Space<'_>,
            Vma<'a>,
            &Part<'a, LongMode, Self>,
            Range<usize>,
            &mut Flush<Removed<'a>>,
        ) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.walk_where(folio, is_held, visit)
    }

    /// Puts leaves of other folios in the place of all leaves of `folio`, while its spaces are held: `to` says which folio page n of it moves to. `commit` is called
    /// with the number of leaves when nobody reaches the folio through them: it checks the references, and copies. The new folios stay the caller's, and
    /// are mapped by nobody when this fails.
    pub(super) fn exchange_leaves<'a>(
        &'a self,
        folio: Folio<'a>,
        to: impl Fn(u64) -> Folio<'a>,
        commit: impl FnOnce(u64) -> Result<(), MigrateFailed>,
    ) -> Result<(), MigrateFailed> {
        let frames = folio.head()..folio.end();
        // The leaves from `i` on that move to one folio: it, their batch there, and how many they are.
        let piece = |vma: Vma<'a>, part: &Part<'a, LongMode, Self>, i: usize, end: usize| {
            let (_, batch, n) = self.batch_at(vma, part, i, end, Attrs::ALL);
            let new = to(u64::from(batch.first));
            let first = u64::from(batch.first) - (self.mapping(new).index - self.mapping(folio).index);
            let shift = part.level().page_shift();
            let n = n.min(((new.pages() - first) >> shift) as usize);
            (new, Batch { first: first as u32, pages: (n as u32) << shift, ..batch }, n)
        };

        let mut leaves = 0;
        let _ = self.walk_held(folio, |_, _, part, range, flush| {
            part.freeze(range.start, range.len());
            flush.add_pages(part.page(range.start), range.len() as u64 * part.level().entry_pages());
            leaves += range.len() as u64;
            ControlFlow::Continue(())
        });

        // Where counting was refused.
        let mut refused = None;
        let _ = self.walk_held(folio, |_, vma, part, range, _| {
            let mut i = range.start;
            while i < range.end {
                let (new, batch, n) = piece(vma, part, i, range.end);
                // What has been counted of the new folio is what stands before these leaves.
                let beside = self.beside_among(part, vma, new, frames.clone(), i..i + n, 0..part.page(i));
                new.get(batch.leaves());
                if let Err(why) = self.count(new, &batch, beside) {
                    drop_references(new, batch.leaves());
                    refused = Some((vma.region(), part.page(i), why));
                    return ControlFlow::Break(());
                }
                i += n;
            }
            ControlFlow::Continue(())
        });

        let result = match refused {
            Some((_, _, why)) => Err(MigrateFailed::Refused(why)),
            None => commit(leaves),
        };
        if result.is_ok() {
            let _ = self.walk_held(folio, |_, vma, part, range, _| {
                let (_, batch, _) = self.batch_at(vma, part, range.start, range.end, Attrs::ALL);
                let mut i = range.start;
                while i < range.end {
                    let (new, moved, n) = piece(vma, part, i, range.end);
                    part.thaw_to(i, n, new.head().add(u64::from(moved.first)));
                    i += n;
                }
                // Of the folio there stays in this table what is still frozen.
                let beside = self.beside(part, vma, folio, range);
                self.uncount(folio, &batch, beside);
                ControlFlow::Continue(())
            });
            return result;
        }
        let mut counted = true;
        let _ = self.walk_held(folio, |_, vma, part, range, _| {
            let mut i = range.start;
            while i < range.end && counted {
                let (new, batch, n) = piece(vma, part, i, range.end);
                let end = refused.filter(|&(region, ..)| region == vma.region()).map_or(PAGES_END, |(_, page, _)| page);
                counted = part.page(i) != end;
                if counted {
                    let behind = part.page(i) + u64::from(batch.pages)..end;
                    let beside = self.beside_among(part, vma, new, frames.clone(), i..i + n, behind);
                    self.uncount(new, &batch, beside);
                }
                i += n;
            }
            part.thaw(range.start, range.len());
            ControlFlow::Continue(())
        });
        result
    }

    /// Takes leaves off the counts of a folio that has other references. It is no candidate for a split: what goes on is no unmap to its owners.
    fn uncount(&self, folio: Folio<'_>, batch: &Batch, beside: crate::mapcount::Neighbours) {
        let delta = A::sub(&self.counts(folio), batch, beside);
        self.note(folio, delta);
        drop_references(folio, batch.leaves());
    }
}

fn is_held(space: &Space<'_>) -> bool {
    space.held().load(Relaxed) == 1
}

/// Whether a folio that nobody can find now has these references and no more.
pub(super) fn has_only(folio: Folio<'_>, refs: u64) -> bool {
    let good = folio.refs() == refs;
    // Pairs with the Release of dropped references: what their holders stored before is seen.
    fence(Acquire);
    good
}

/// Drops references of a folio that the caller frees or holds.
fn drop_references(folio: Folio<'_>, n: u32) {
    let _ = folio.put(n);
}
