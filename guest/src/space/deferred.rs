//! Folios that are only partly mapped, and their split: the queue of candidates, and the move of what is still mapped to folios of
//! order 0, so that the rest is freed.
//!
//! A split is a [migration](super::migrate) of every mapped page to a folio of its own.

use core::ops::ControlFlow;
use core::sync::atomic::Ordering::Relaxed;

use super::migrate::has_only;
use super::{Manager, MigrateFailed, SpaceBusy};
use crate::addr::{ENTRIES, Level, Order, Pfn};
use crate::folio::{Folio, FolioFlags, Frames, Mapping, Record, Slab};
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::sync::{AtomicU64, lock_word};

/// What [`Manager::split_deferred`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitReport {
    /// Candidates looked at.
    pub probed: u64,
    /// Those that were split.
    pub split: u64,
    /// Those that turned out to be mapped whole, or no longer at all; the queue forgets them.
    pub not_partial: u64,
    /// Those that stay in the queue: a space was busy, somebody held a reference, a count refused, or frames ran out.
    pub postponed: u64,
    /// Pages moved to folios of order 0.
    pub moved: u64,
    /// Frames free again that held pages nobody mapped.
    pub freed: u64,
}

/// What became of a candidate.
enum Outcome {
    Split { moved: u64 },
    NotPartial,
    Postponed,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Folios that wait for [`split_deferred`](Self::split_deferred).
    pub fn deferred_len(&self) -> u64 {
        self.deferred.len()
    }

    /// Probes at most `most` candidates of the deferred-split queue, oldest first, by a walk over their leaves. Of those that are really partly mapped the
    /// mapped pages move to folios of order 0, and all their frames return. Waits for nobody: what is in use stays in the queue, behind the others.
    pub fn split_deferred(&self, most: u64) -> SplitReport {
        let _one_at_a_time = lock_word(&self.moving);
        let mut report = SplitReport::default();
        for _ in 0..most.min(self.deferred.len()) {
            let Some(folio) = self.deferred.first(&self.frames, &self.folios) else { break };
            report.probed += 1;
            // Out of the queue: a leaf that goes from now on enters it again.
            self.deferred.remove(&self.frames, &self.folios, folio);
            match self.split_candidate(folio) {
                Outcome::Split { moved } => {
                    report.split += 1;
                    report.moved += moved;
                    report.freed += folio.pages() - moved;
                }
                Outcome::NotPartial => report.not_partial += 1,
                Outcome::Postponed => {
                    report.postponed += 1;
                    self.defer(folio);
                }
            }
            self.put(folio, 1);
        }
        report
    }

    /// Enters a folio in the queue, if it is not there. The caller holds a reference.
    pub(super) fn defer(&self, folio: Folio<'_>) {
        if !folio.set_flags(FolioFlags::QUEUED).has(FolioFlags::QUEUED) {
            self.deferred.push(&self.frames, &self.folios, folio);
        }
    }

    fn split_candidate(&self, folio: Folio<'_>) -> Outcome {
        match self.with_spaces_held(folio, || self.split_held(folio)) {
            Ok(outcome) => outcome.unwrap_or(Outcome::NotPartial),
            Err(SpaceBusy(_)) => Outcome::Postponed,
        }
    }

    /// Splits the folio while all its spaces are held.
    fn split_held(&self, folio: Folio<'_>) -> Outcome {
        let Some(moves) = Moves::new(self, folio) else { return Outcome::Postponed };
        let (mut leaves, mut has_large) = (0, false);
        let _ = self.walk_held(folio, |_, _, part, range, _| {
            for i in range {
                let leaf = part.held(i).expect("the walk found a leaf");
                let first = leaf.pfn.raw() - folio.head().raw();
                for page in first..first + part.level().entry_pages() {
                    moves.set(page, MAPPED);
                }
                leaves += 1;
                has_large |= part.level() > Level::ONE;
            }
            ControlFlow::Continue(())
        });
        let moved = moves.count();
        let outcome = if moved == 0 || moved == folio.pages() {
            Outcome::NotPartial
        } else if folio.refs() != leaves + 1
            || !moves.allocate()
            || has_large && !self.split_leaves(folio)
            || !self.move_pages(folio, &moves)
        {
            moves.give_back();
            Outcome::Postponed
        } else {
            Outcome::Split { moved }
        };
        moves.free();
        outcome
    }

    /// Splits every large leaf of the folio down to level 1. Whether there were tables for that; leaves already split stay so.
    fn split_leaves(&self, folio: Folio<'_>) -> bool {
        loop {
            let (mut any, mut done) = (false, true);
            let _ = self.walk_held(folio, |_, vma, part, range, flush| {
                if part.level() == Level::ONE {
                    return ControlFlow::Continue(());
                }
                any = true;
                for i in range {
                    done = done && self.split_leaf(vma, part, i, flush).is_ok();
                }
                if done { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            if !any || !done {
                return done;
            }
        }
    }

    /// Moves every leaf of the folio to the copy of its page. Whether nothing stood against it; else everything is as before.
    fn move_pages(&self, folio: Folio<'_>, moves: &Moves<'_, M, A>) -> bool {
        let copy_of = |page| moves.copy_at(page).expect("a mapped page has a copy");
        let copy = |leaves| {
            // Nobody reaches the folio through a leaf now: who has a reference has it for other reasons.
            if !has_only(folio, leaves + 1) {
                return Err(MigrateFailed::Referenced);
            }
            moves.copy();
            Ok(())
        };
        self.exchange_leaves(folio, copy_of, copy).is_ok()
    }
}

// What a word of `Moves` says of its page.
const UNMAPPED: u64 = 0;
const MAPPED: u64 = 1;
/// Words above are the frame of the copy, plus this.
const COPY: u64 = 2;

/// What becomes of every page of a folio, in frames of its own: a word for each page.
struct Moves<'m, M, A> {
    manager: &'m Manager<M, A>,
    folio: Folio<'m>,
    run: Pfn,
    order: Order,
}

impl<'m, M: Memory + Tlb, A: Accounting> Moves<'m, M, A> {
    /// All pages unmapped; `None` when there are no frames.
    fn new(manager: &'m Manager<M, A>, folio: Folio<'m>) -> Option<Self> {
        let order = Order::new(folio.order().get().saturating_sub(ENTRIES.ilog2() as u8));
        let run = manager.frames.alloc(order, true)?;
        if !run.zeroed {
            manager.memory().zero(run.pfn, order.pages());
        }
        Some(Self { manager, folio, run: run.pfn, order })
    }

    fn word(&self, page: u64) -> &AtomicU64 {
        let entries = ENTRIES as u64;
        &self.manager.memory().frame(self.run.add(page / entries)).0[(page % entries) as usize]
    }

    fn set(&self, page: u64, what: u64) {
        self.word(page).store(what, Relaxed);
    }

    /// Pages that are mapped.
    fn count(&self) -> u64 {
        (0..self.folio.pages()).filter(|&page| self.word(page).load(Relaxed) != UNMAPPED).count() as u64
    }

    /// Makes a folio without references for every mapped page; whether there were frames for all.
    fn allocate(&self) -> bool {
        let Mapping { object, index } = self.manager.mapping(self.folio);
        (0..self.folio.pages()).all(|page| {
            if self.word(page).load(Relaxed) == UNMAPPED {
                return true;
            }
            let mapping = Mapping { object, index: index + page };
            let copy = self.manager.new_folio(Order::BASE, FolioFlags::ANON, mapping, false);
            if let Some(copy) = copy {
                self.set(page, COPY + copy.head().raw());
            }
            copy.is_some()
        })
    }

    fn copies(&self) -> impl Iterator<Item = (u64, Folio<'m>)> + '_ {
        (0..self.folio.pages()).filter_map(|page| Some((page, self.copy_at(page)?)))
    }

    fn copy_at(&self, page: u64) -> Option<Folio<'m>> {
        let pfn = Pfn::new(self.word(page).load(Relaxed).checked_sub(COPY)?);
        Some(self.manager.folio(pfn).expect("a folio was made there"))
    }

    /// Copies the contents of all mapped pages.
    fn copy(&self) {
        for (page, copy) in self.copies() {
            self.manager.memory().copy(self.folio.head().add(page), copy.head());
            self.manager.statistics.copied.fetch_add(1, Relaxed);
        }
    }

    /// Frees the copies, which nobody maps.
    fn give_back(&self) {
        for (_, copy) in self.copies() {
            self.manager.free_folio(copy);
        }
    }

    fn free(self) {
        self.manager.frames.free(self.run, self.order, false);
    }
}

/// Anonymous folios that looked partly mapped when one of their leaves went: candidates for splitting, oldest first.
#[derive(Debug, Default)]
pub(super) struct DeferredQueue {
    lock: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    length: AtomicU64,
}

impl DeferredQueue {
    fn len(&self) -> u64 {
        self.length.load(Relaxed)
    }

    /// Enters a folio whose QUEUED flag the caller has just set. Small folios are never partly mapped.
    pub(super) fn push<M: Memory>(&self, frames: &Frames<M>, folios: &Slab, folio: Folio<'_>) {
        let Some(record) = folio.record() else { return };
        let _guard = lock_word(&self.lock);
        let last = self.last.load(Relaxed) as u32;
        folio.set_links(last, 0);
        match at(frames, folios, last) {
            Some(before) => before.set_links(before.links().0, record.raw()),
            None => self.first.store(u64::from(record.raw()), Relaxed),
        }
        self.last.store(u64::from(record.raw()), Relaxed);
        self.length.fetch_add(1, Relaxed);
    }

    /// Takes a folio out.
    pub(super) fn remove<M: Memory>(&self, frames: &Frames<M>, folios: &Slab, folio: Folio<'_>) {
        let _guard = lock_word(&self.lock);
        if !folio.clear_flags(FolioFlags::QUEUED).has(FolioFlags::QUEUED) {
            return;
        }
        let (prev, next) = folio.links();
        match at(frames, folios, prev) {
            Some(before) => before.set_links(before.links().0, next),
            None => self.first.store(u64::from(next), Relaxed),
        }
        match at(frames, folios, next) {
            Some(behind) => behind.set_links(prev, behind.links().1),
            None => self.last.store(u64::from(prev), Relaxed),
        }
        self.length.fetch_sub(1, Relaxed);
    }

    /// The oldest candidate, with a reference for the caller.
    fn first<'a, M: Memory>(&self, frames: &'a Frames<M>, folios: &Slab) -> Option<Folio<'a>> {
        let _guard = lock_word(&self.lock);
        let mut folio = at(frames, folios, self.first.load(Relaxed) as u32)?;
        // One whose last reference is gone waits for this lock, to be taken out.
        while !folio.try_get() {
            folio = at(frames, folios, folio.links().1)?;
        }
        Some(folio)
    }
}

fn at<'a, M: Memory>(frames: &'a Frames<M>, folios: &Slab, record: u32) -> Option<Folio<'a>> {
    (record != 0).then(|| {
        let record = Record::from_raw(record);
        Folio::large(record, frames.record(record, folios.words()))
    })
}
