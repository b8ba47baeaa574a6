//! From a folio to its leaves: the vmas of its object, and in each the tables that its window touches. Steps per table, not per page.
//!
//! Tables stand only while the lock of their space is held, and a walk comes from the object, whose lock is taken inside that of a space: so
//! space locks are tried. Who only looks holds them shared and all of them, with the object's, to the end: what it saw was so at one moment.
//! Who removes leaves holds one space at a time, exclusively, and nothing else over a flush.

use core::mem::take;
use core::ops::{ControlFlow, Range};

use super::object::Object;
use super::vma::Vma;
use super::{Manager, Removed, Space, SpaceId};
use crate::folio::Folio;
use crate::format::{Attrs, LongMode};
use crate::mapcount::{Accounting, Answer, Countdown};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, Part};
use crate::sync::{WordGuard, end_read, end_write, lock_word, try_read, try_write};

/// Walks of [`Manager::try_to_unmap`] before it gives up: leaves may move to where a walk has been.
const ROUNDS: usize = 3;

/// The walk could not look into this space, which somebody else held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceBusy(pub SpaceId);

/// Why leaves of the folio may be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapFailed {
    /// Somebody held this space; what was found elsewhere is gone.
    Busy(SpaceId),
    /// Every space was walked, and the folio is still mapped: it was mapped again meanwhile, or another CPU has cleared leaves that it has not
    /// subtracted yet.
    Mapped,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The object of a folio, if any vma is in its list; locked.
    pub(super) fn lock_object_of<'a>(&'a self, folio: Folio<'_>) -> Option<(Object<'a>, WordGuard<'a>)> {
        // The object may be gone, if leaves and vmas have gone since, and its number name another one, in which no leaf of the folio is found.
        let _families = lock_word(&self.families);
        let number = self.mapping(folio).object;
        if !self.objects.is_in_use(&self.frames, number) {
            return None;
        }
        let object = self.object(number);
        let guard = lock_word(object.lock);
        // With a vma in its list, which cannot leave it now, it stays.
        (object.is_anon() == folio.is_anon() && self.first_vma(&object).is_some()).then_some((object, guard))
    }

    /// Calls `visit` for every stretch of consecutive leaves of `folio` in `vma`, until it breaks. What it puts into the token is finished without a
    /// table lock, and before this returns. The caller holds the space.
    fn walk_vma<'a>(
        &'a self,
        folio: Folio<'a>,
        space: &Space<'_>,
        vma: Vma<'a>,
        visit: &mut impl FnMut(
            &Space<'_>,
            Vma<'a>,
            &Part<'a, LongMode, Self>,
            Range<usize>,
            &mut Flush<Removed<'a>>,
        ) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let window = self.window(vma, folio, 0..super::PAGES_END);
        if window.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut flush = Flush::new();
        let mut cursor = space.table().cursor(self, window.start, window.end);
        let mut result = ControlFlow::Continue(());
        'parts: while let Some(part) = cursor.next() {
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
                if flush.is_full() {
                    cursor.seek(part.page(i));
                    drop(part);
                    self.finish(space, &mut flush);
                    continue 'parts;
                }
                let (_, _, n) = self.batch_at(vma, &part, i, range.end, Attrs::ALL);
                result = visit(space, vma, &part, i..i + n, &mut flush);
                if result.is_break() {
                    break 'parts;
                }
                i += n;
            }
        }
        self.finish(space, &mut flush);
        result
    }

    /// [`walk_vma`](Self::walk_vma) for all vmas. The caller holds all their spaces exclusively, or nobody else runs (audits).
    pub(super) fn walk_settled<'a>(
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
        self.walk_where(folio, |_| true, visit)
    }

    /// [`walk_vma`](Self::walk_vma) for the vmas of spaces that are `stable`: the caller holds them exclusively, or nobody else runs. Twice the same
    /// order while they are held.
    pub(super) fn walk_where<'a>(
        &'a self,
        folio: Folio<'a>,
        stable: impl Fn(&Space<'_>) -> bool,
        mut visit: impl FnMut(
            &Space<'_>,
            Vma<'a>,
            &Part<'a, LongMode, Self>,
            Range<usize>,
            &mut Flush<Removed<'a>>,
        ) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some((object, guard)) = self.lock_object_of(folio) else { return ControlFlow::Continue(()) };
        let stable = |vma: &Vma<'_>| stable(&self.space(vma.space()));
        let mut next = self.vmas_of(&object, folio.is_anon()).find(stable);
        drop(guard);
        while let Some(vma) = next {
            self.walk_vma(folio, &self.space(vma.space()), vma, &mut visit)?;
            // While its space is held the vma stays in the list. Others may come and go.
            let _guard = lock_word(object.lock);
            next = self.vmas_from(self.vma_behind(vma, folio.is_anon()), folio.is_anon()).find(stable);
        }
        ControlFlow::Continue(())
    }

    /// Calls `look` for every vma of the folio's object, until it breaks; whether it did. Their spaces are held shared, all of those that it has been called for, and
    /// the object is locked.
    fn look_at_vmas<'a>(
        &'a self,
        folio: Folio<'_>,
        mut look: impl FnMut(&Space<'a>, Vma<'a>) -> ControlFlow<()>,
    ) -> Result<bool, SpaceBusy> {
        let Some((object, _guard)) = self.lock_object_of(folio) else { return Ok(false) };
        let mut held = 0;
        let mut result = Ok(false);
        for vma in self.vmas_of(&object, folio.is_anon()) {
            let space = self.space(vma.space());
            if !try_read(space.lock()) {
                result = Err(SpaceBusy(space.id));
                break;
            }
            held += 1;
            if look(&space, vma).is_break() {
                result = Ok(true);
                break;
            }
        }
        // Under the object lock the list is the same as before.
        for vma in self.vmas_of(&object, folio.is_anon()).take(held) {
            end_read(self.space(vma.space()).lock());
        }
        result
    }

    /// Looks at every stretch of leaves of `folio`, with its owner, until `look` breaks. Whether it did.
    pub(super) fn look<'a>(
        &'a self,
        folio: Folio<'a>,
        mut look: impl FnMut(SpaceId, &Part<'a, LongMode, Self>, Range<usize>) -> ControlFlow<()>,
    ) -> Result<bool, SpaceBusy> {
        self.look_at_vmas(folio, |space, vma| {
            self.walk_vma(folio, space, vma, &mut |_, _, part, range, _| look(space.id, part, range))
        })
    }

    /// How many leaves map the folio, by a walk: what a scheme without counts must do. Exact at one moment of the call.
    ///
    /// # Errors
    /// [`SpaceBusy`]: not every space could be looked at.
    pub fn leaves_by_walk(&self, folio: Folio<'_>) -> Result<u64, SpaceBusy> {
        let mut leaves = 0;
        self.look(folio, |_, _, range| {
            leaves += range.len() as u64;
            ControlFlow::Continue(())
        })?;
        Ok(leaves)
    }

    /// How many leaves map page `page` of the folio, by a walk over the vmas of its object. Exact at one moment of the call.
    ///
    /// # Errors
    /// [`SpaceBusy`]: not every space could be looked at.
    pub fn page_leaves_by_walk(&self, folio: Folio<'_>, page: u64) -> Result<u64, SpaceBusy> {
        let index = self.mapping(folio).index + page;
        let mut leaves = 0;
        self.look_at_vmas(folio, |space, vma| {
            if (vma.offset()..vma.offset() + vma.pages()).contains(&index) {
                let at = vma.start() + (index - vma.offset());
                leaves += space.table().count_of(self, at..at + 1, folio.head()..folio.end()).leaves;
            }
            ControlFlow::Continue(())
        })?;
        Ok(leaves)
    }

    /// Whether two different owners map the folio, by a walk that stops at the second.
    ///
    /// # Errors
    /// [`SpaceBusy`]: fewer than two were found, and not every space could be looked at.
    pub fn is_shared_by_walk(&self, folio: Folio<'_>) -> Result<bool, SpaceBusy> {
        let mut first = None;
        self.look(folio, |owner, _, _| {
            if *first.get_or_insert(owner) == owner { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    /// How many leaves map the folio: for audits, while nothing else runs.
    pub(crate) fn count_leaves(&self, folio: Folio<'_>) -> u64 {
        let mut leaves = 0;
        let _ = self.walk_settled(folio, |_, _, _, range, _| {
            leaves += range.len() as u64;
            ControlFlow::Continue(())
        });
        leaves
    }

    /// Of those, the leaves in the tables of `owner`.
    pub(crate) fn count_leaves_of(&self, folio: Folio<'_>, owner: u32) -> u64 {
        let mut leaves = 0;
        let _ = self.walk_settled(folio, |space, _, _, range, _| {
            leaves += if space.id.0 == owner { range.len() as u64 } else { 0 };
            ControlFlow::Continue(())
        });
        leaves
    }

    /// How many regions map every page of it.
    pub(crate) fn count_whole_regions(&self, folio: Folio<'_>) -> u64 {
        let (mut regions, mut last) = (0, None);
        let _ = self.walk_settled(folio, |_, vma, _, _, _| {
            if last.replace(vma.region()) != Some(vma.region()) {
                let window = self.window(vma, folio, 0..super::PAGES_END);
                regions += u64::from(u64::from(self.pages_of(vma, folio.head()..folio.end(), window)) == folio.pages());
            }
            ControlFlow::Continue(())
        });
        regions
    }

    /// Counts the regions that map the folio by a walk, and gives the number to a scheme that may have lost it. The caller excludes changes of the folio's
    /// mappings.
    pub fn repair(&self, folio: Folio<'_>) {
        let (mut regions, mut last) = (0, None);
        let _ = self.walk_settled(folio, |_, vma, _, _, _| {
            // The walk goes vma by vma.
            regions += u64::from(last.replace(vma.region()) != Some(vma.region()));
            ControlFlow::Continue(())
        });
        A::repair(&self.counts(folio), regions);
    }

    /// Removes every leaf of `folio`, vma by vma, and stops early when the scheme says that none is left. The contents stay with whoever holds
    /// a reference; the caller holds one, and no lock.
    ///
    /// # Errors
    /// [`UnmapFailed`] when leaves may be left. What could be removed is gone all the same.
    pub fn try_to_unmap(&self, folio: Folio<'_>) -> Result<(), UnmapFailed> {
        folio.get(1);
        let mut result = Err(UnmapFailed::Mapped);
        for _ in 0..ROUNDS {
            let busy = self.unmap_round(folio);
            // An answer that may be wrong says no more than none.
            let mapped = match A::mapped(&self.counts(folio)) {
                Answer::Exact(mapped) => Ok(mapped),
                _ => self.leaves_by_walk(folio).map(|leaves| leaves > 0),
            };
            result = match (mapped, busy) {
                (Ok(false), _) => Ok(()),
                (Err(SpaceBusy(space)), _) | (_, Some(space)) => Err(UnmapFailed::Busy(space)),
                (Ok(true), None) => Err(UnmapFailed::Mapped),
            };
            if result != Err(UnmapFailed::Mapped) {
                break;
            }
        }
        self.put(folio, 1);
        result
    }

    /// One walk of [`try_to_unmap`](Self::try_to_unmap); a space that was busy.
    fn unmap_round(&self, folio: Folio<'_>) -> Option<SpaceId> {
        let (object, mut guard) = self.lock_object_of(folio)?;
        let mut left = A::early_stop(&self.counts(folio)).value();
        let mut busy = None;
        let mut next = self.first_vma(&object);
        while let Some(vma) = next.filter(|_| !is_over(left)) {
            let space = self.space(vma.space());
            // Not waited for: its holder may wait for the object.
            if try_write(space.lock()) {
                // While its space is held the vma stays in the list, and so the object stays.
                drop(guard);
                let (mut region, mut table) = (1, None);
                let _ = self.walk_vma(folio, &space, vma, &mut |space, vma, part, range, flush| {
                    match &mut left {
                        Some(Countdown::Leaves(leaves)) => *leaves = leaves.saturating_sub(range.len() as u64),
                        Some(Countdown::Tables(tables)) if table.replace(part.table()) != Some(part.table()) => {
                            *tables = tables.saturating_sub(1);
                        }
                        Some(Countdown::Regions(regions)) => *regions = regions.saturating_sub(take(&mut region)),
                        _ => {}
                    }
                    let rest = self.clear_part(space, vma, part, range, flush);
                    debug_assert!(rest.is_none(), "one batch fits a token");
                    // The last table or region is still to be gone through.
                    if left == Some(Countdown::Leaves(0)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                guard = lock_word(object.lock);
                next = self.vma_behind(vma, folio.is_anon());
                end_write(space.lock());
            } else {
                busy = Some(space.id);
                next = self.vma_behind(vma, folio.is_anon());
            }
        }
        drop(guard);
        busy
    }
}

/// Whether a walk has seen as much as it was told that there is.
fn is_over(left: Option<Countdown>) -> bool {
    matches!(left, Some(Countdown::Leaves(0) | Countdown::Tables(0) | Countdown::Regions(0)))
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use core::sync::atomic::AtomicU64;
    use core::sync::atomic::Ordering::Relaxed;

    use crate::addr::{Gva, Order, Pfn};
    use crate::folio::Folio;
    use crate::mapcount::{Accounting, MmOwner, None as NoCounts, PerPage, Total, Tuples, Vmas};
    use crate::memory::{FlushScope, Frame, Memory, Tlb};
    use crate::model::Machine;
    use crate::space::{
        Access, Advice, Manager, Map, MigrateFailed, ObjectId, ObjectKind, Policy, Prot, ReclaimReport, SpaceBusy,
        SpaceId, UnmapFailed,
    };
    use crate::sync::{read_lock, write_lock};

    const AT: Gva = Gva::new(0x4000_0000);

    fn manager<M: Memory + Tlb, A: Accounting>(machine: M) -> Manager<M, A> {
        Manager::new(machine, &[Pfn::new(0)..Pfn::new(4096)], true, Policy::up_to(Order::HUGE)).unwrap()
    }

    /// Two spaces that map one file, the second of them behind the first in the list of vmas, and the folio that both have mapped.
    fn shared<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>) -> ([SpaceId; 2], Folio<'_>) {
        let file = manager.create_object(ObjectKind::File, 1, 64, Order::new(4)).unwrap();
        let mut spaces = [0; 2].map(|_| manager.create_space().unwrap());
        for space in spaces {
            let prot = Prot { read: true, ..Prot::NONE };
            manager.map(space, AT, 64, prot, Map::Shared(file, 0)).unwrap();
            manager.fault(space, AT, Access::Read).unwrap();
        }
        // The last to map stands first.
        spaces.reverse();
        let (_, leaf) = manager.page_table(spaces[0]).lookup(manager, AT.page()).unwrap();
        (spaces, manager.folio(leaf.pfn).unwrap())
    }

    /// The space is held in every way that there is: by a fault in flight, by a change of its vmas.
    fn while_held<A: Accounting>(manager: &Manager<&Machine, A>, space: SpaceId, mut check: impl FnMut()) {
        let lock = manager.space(space).lock();
        let guard = read_lock(lock);
        check();
        drop(guard);
        let guard = write_lock(lock);
        check();
        drop(guard);
    }

    fn busy<A: Accounting>() {
        let machine = Machine::new(4096);
        let manager = manager::<_, A>(&machine);
        let ([first, second], folio) = shared(&manager);
        while_held(&manager, second, || {
            assert_eq!(manager.try_to_unmap(folio), Err(UnmapFailed::Busy(second)));
            assert_eq!((manager.rss(first), manager.rss(second)), (0, 16), "what could go is gone");
            assert_eq!(folio.refs(), 17, "the leaves that are left, and the page cache");
        });
        assert_eq!(manager.try_to_unmap(folio), Ok(()));
        assert_eq!((manager.rss(second), folio.refs()), (0, 1));
    }

    #[test]
    fn a_space_that_somebody_holds_is_not_waited_for() {
        busy::<Total>();
        busy::<PerPage>();
        busy::<MmOwner>();
        busy::<Tuples>();
        busy::<NoCounts>();
    }

    /// A machine that counts how often one frame is reached.
    struct Watched {
        machine: Machine,
        frame: AtomicU64,
        reached: AtomicU64,
    }

    impl Memory for &Watched {
        fn frame(&self, pfn: Pfn) -> &Frame {
            if pfn.raw() == self.frame.load(Relaxed) {
                self.reached.fetch_add(1, Relaxed);
            }
            self.machine.frame(pfn)
        }
    }

    impl Tlb for &Watched {
        fn flush(&self, root: Pfn, scope: FlushScope) {
            self.machine.flush(root, scope);
        }
    }

    /// Unmaps a folio of which the second space has no leaf left; whether its tables were walked.
    fn walks_on<A: Accounting>() -> bool {
        let watched =
            Watched { machine: Machine::new(4096), frame: AtomicU64::new(u64::MAX), reached: AtomicU64::new(0) };
        let manager: Manager<_, A> = manager(&watched);
        let ([first, second], folio) = shared(&manager);
        manager.advise(second, AT, 64, Advice::DontNeed).unwrap();
        watched.frame.store(manager.root(second).raw(), Relaxed);
        assert_eq!(manager.try_to_unmap(folio), Ok(()));
        assert_eq!((manager.rss(first), folio.refs()), (0, 1));
        watched.reached.load(Relaxed) > 0
    }

    #[test]
    fn a_walk_stops_when_all_that_was_counted_is_gone() {
        assert!(!walks_on::<Total>() && !walks_on::<PerPage>() && !walks_on::<MmOwner>());
        // Of tables or of regions, where those are counted.
        assert!(!walks_on::<Tuples>() && !walks_on::<Vmas>());
        // Who knows no number goes to the end.
        assert!(walks_on::<NoCounts>());
    }

    #[test]
    fn who_looks_shares_a_space_with_faults_but_not_with_changes() {
        let machine = Machine::new(4096);
        let manager = manager::<_, Total>(&machine);
        let ([_, second], folio) = shared(&manager);
        let lock = manager.space(second).lock();
        let guard = read_lock(lock);
        assert_eq!(manager.leaves_by_walk(folio), Ok(32));
        drop(guard);
        let guard = write_lock(lock);
        assert_eq!(manager.leaves_by_walk(folio), Err(SpaceBusy(second)));
        assert_eq!(manager.is_shared_by_walk(folio), Err(SpaceBusy(second)));
        drop(guard);
        assert_eq!(manager.is_shared_by_walk(folio), Ok(true));
    }

    #[test]
    fn what_takes_folios_away_leaves_those_of_a_space_that_somebody_holds() {
        let machine = Machine::new(4096);
        let manager = manager::<_, Total>(&machine);
        let ([first, second], folio) = shared(&manager);
        let file = ObjectId(manager.mapping(folio).object);
        let pin = manager.pin(first, AT, Access::Read).unwrap();
        while_held(&manager, second, || {
            assert_eq!(manager.migrate(folio), Err(MigrateFailed::Busy(second)));
            assert_eq!((manager.rss(first), manager.rss(second)), (16, 16));
        });
        manager.unpin(pin, false);
        let lock = manager.space(second).lock();
        let guard = write_lock(lock);
        let report = ReclaimReport { probed: 1, busy: 1, ..ReclaimReport::default() };
        assert_eq!(manager.reclaim(file, 99, false), report);
        drop(guard);
        let report = ReclaimReport { probed: 1, reclaimed: 1, freed: 16, ..ReclaimReport::default() };
        assert_eq!(manager.reclaim(file, 99, false), report);
    }
}
