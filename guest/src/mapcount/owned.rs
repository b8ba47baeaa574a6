//! M and the [owner slots](super::slots), and beside them whatever tells how much the leaves map: what `mm-owner`, `total` and `per-level` have in common.
//!
//! One locked operation per batch, whatever its length and level: taking the lock, which lives beside the owner ids; the
//! new ids are stored with the lock released. A folio of order 0 has one count, M, and is shared when that is above 1.

use core::fmt;
use core::marker::PhantomData;

use super::slots::{self, Locked, Slots};
use super::{Answer, Batch, ByLevel, Delta, Evidence, Large, Needs, Neighbours, Refused, Share, Target, Truth, ensure};
use crate::memory::Memory;

/// What a scheme keeps beside M and the slots: one word behind them, under their lock. `leaves` is M everywhere.
pub trait Extent: Copy + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The scheme's name on the command line.
    const NAME: &'static str;
    /// Whether an owner without a slot, whose leaves were counted, gets one.
    const RELEARNS: bool = false;

    /// Whether [`mapped_pages`](Self::mapped_pages) is a guess that grows with every leaf: also when what is mapped is mapped once more.
    const GUESSES: bool = false;

    /// Refuses leaves that have no representation.
    ///
    /// # Errors
    /// [`Refused::Shape`].
    fn admit<M: Memory>(_t: &Target<'_, M>, _b: &Batch) -> Result<(), Refused> {
        Ok(())
    }
    /// Out of its word.
    fn of(word: u64) -> Self;
    /// Its word.
    fn word(self) -> u64;
    /// Leaves appear.
    fn add<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch);
    /// Leaves go.
    fn sub<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch);
    /// A leaf becomes 512 of the next level.
    fn split<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch);
    /// 512 leaves become one.
    fn collapse<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch);
    /// T.
    fn total<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> u64;
    /// Whether a folio of 2 MiB is mapped by a leaf of 2 MiB.
    fn is_huge<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> bool;
    /// Pages that the statistics take as mapped: all of the folio, from its first leaf to its last.
    fn mapped_pages<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> u64 {
        if leaves > 0 { t.pages() } else { 0 }
    }
    /// Leaves by their size.
    fn by_level<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> Answer<ByLevel>;
    /// What a leaf over a page is charged: by the average of all pages.
    fn charge<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> Share {
        Share::one_of(average(t, self.total(t, leaves)))
    }
    /// What must hold of it beyond T.
    ///
    /// # Errors
    /// The name of the first thing that is wrong.
    fn check(self, truth: &Truth) -> Result<(), &'static str>;
}

/// M, two owner slots and `X`: 32 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Owned<X>(PhantomData<X>);

/// What an [`Owned`] scheme has counted: for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedCounters<X> {
    /// M: leaves.
    pub leaves: u64,
    /// T: pages they map.
    pub pages: u64,
    /// What stands beside M.
    pub extent: X,
    /// Two owners and how many of the leaves are known to be theirs; owner 0 for a free slot. A folio of order 0 has no slots.
    pub slots: [(u32, u64); 2],
    /// Somebody else than one owner may map it.
    pub shared: bool,
}

/// The word of `X`.
const EXTENT: usize = slots::WORDS;

/// The state, under the lock.
struct State<'a, X> {
    locked: Locked<'a>,
    extent: X,
}

impl<'a, X: Extent> State<'a, X> {
    #[inline(always)]
    fn lock<M: Memory>(t: &Target<'a, M>) -> Self {
        let locked = Locked::new(t.state);
        let extent = X::of(t.state[EXTENT].load(core::sync::atomic::Ordering::Relaxed));
        Self { locked, extent }
    }

    #[inline(always)]
    fn store<M: Memory>(self, t: &Target<'_, M>) -> Known<X> {
        t.state[EXTENT].store(self.extent.word(), core::sync::atomic::Ordering::Relaxed);
        let known = self.known();
        self.locked.store();
        known
    }

    #[inline(always)]
    fn known(&self) -> Known<X> {
        Known { slots: self.locked.slots, extent: self.extent }
    }
}

/// The state, read together.
#[derive(Clone, Copy)]
struct Known<X> {
    slots: Slots,
    extent: X,
}

impl<X: Extent> Known<X> {
    fn read<M: Memory>(t: &Target<'_, M>) -> Self {
        let state = State::lock(t);
        let known = state.known();
        state.locked.unlock();
        known
    }

    fn total<M: Memory>(&self, t: &Target<'_, M>) -> u64 {
        self.extent.total(t, self.slots.leaves)
    }

    fn is_maybe_shared(&self) -> bool {
        // A folio with one leaf has one owner, whatever the bit remembers.
        self.slots.leaves > 1 && self.slots.shared
    }

    /// What has changed since `before`.
    #[inline(always)]
    fn since<M: Memory>(&self, t: &Target<'_, M>, before: &Self) -> Delta {
        let mapped = |known: &Self| known.extent.mapped_pages(t, known.slots.leaves) as i64;
        let huge = |known: &Self| i64::from(known.extent.is_huge(t, known.slots.leaves));
        Delta {
            mapped: mapped(self) - mapped(before),
            huge: (huge(self) - huge(before)) * t.pages() as i64,
            maybe_partial: false,
        }
    }
}

/// T / P, rounded, at least 1 while anything is mapped: for every page the same.
pub(super) fn average<M: Memory>(t: &Target<'_, M>, total: u64) -> u64 {
    if total == 0 { 0 } else { ((total + t.pages() / 2) >> t.order.get()).max(1) }
}

impl<X: Extent> Owned<X> {
    /// The counters, read together.
    #[must_use]
    pub fn counters<M: Memory>(t: &Target<'_, M>) -> OwnedCounters<X> {
        if let Some(count) = t.small {
            let leaves = u64::from(count.get());
            return OwnedCounters { leaves, pages: leaves, extent: X::of(0), slots: [(0, 0); 2], shared: leaves > 1 };
        }
        let known = Known::<X>::read(t);
        let Slots { leaves, shared, .. } = known.slots;
        OwnedCounters { leaves, pages: known.total(t), extent: known.extent, slots: known.slots.pairs(), shared }
    }

    #[inline(always)]
    fn add_leaves<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<Delta, Refused> {
        let mut state = State::<X>::lock(t);
        let before = state.known();
        // Admitting on T leaves room for every split that may come: M never passes T.
        if let Err(refused) = t.admit(before.total(t), b.pages) {
            state.locked.unlock();
            return Err(refused);
        }
        state.locked.slots.add(u64::from(b.leaves()), b.owner);
        state.extent.add(t, b);
        Ok(state.store(t).since(t, &before))
    }
}

impl<X: Extent> Large for Owned<X> {
    const NAME: &'static str = X::NAME;
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = slots::WORDS + 1;

    #[inline(always)]
    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        X::admit(t, b)?;
        Self::add_leaves(t, b)
    }

    #[inline(always)]
    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        // What stands there already is copied, whatever its size.
        Self::add_leaves(t, b).map(|delta| if X::GUESSES { delta } else { Delta::default() })
    }

    #[inline(always)]
    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut state = State::<X>::lock(t);
        let before = state.known();
        state.locked.slots.sub(u64::from(b.leaves()), b.owner);
        state.extent.sub(t, b);
        let after = state.store(t);
        let total = after.total(t);
        Delta { maybe_partial: 0 < total && total < t.pages() && t.is_anon(), ..after.since(t, &before) }
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut state = State::<X>::lock(t);
        let before = state.known();
        state.locked.slots.split(b.owner);
        state.extent.split(t, b);
        state.store(t).since(t, &before)
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut state = State::<X>::lock(t);
        let before = state.known();
        state.locked.slots.collapse(b.owner);
        state.extent.collapse(t, b);
        state.store(t).since(t, &before)
    }

    fn relearn<M: Memory>(t: &Target<'_, M>, owner: u32, leaves: impl FnOnce() -> u64) {
        // Without the lock first: most folios have nothing to teach.
        if !X::RELEARNS || !slots::is_shared(t.state) {
            return;
        }
        let mut state = State::<X>::lock(t);
        state.locked.slots.relearn(owner, leaves);
        state.locked.store();
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(slots::leaves(t.state) > 0)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        Answer::Errs(Known::<X>::read(t).is_maybe_shared())
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        // Every reference is a leaf's and every leaf the asker's. A lone page of a large folio is copied all the same, so that the folio can go.
        let known = Known::<X>::read(t);
        Answer::Errs(known.total(t) > 1 && !known.is_maybe_shared() && known.slots.leaves == refs)
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        Answer::About(average(t, Known::<X>::read(t).total(t)))
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, _page: u64, _owner: u32) -> Answer<bool> {
        Answer::About(!Known::<X>::read(t).is_maybe_shared())
    }

    fn charge<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<Share> {
        let known = Known::<X>::read(t);
        Answer::About(known.extent.charge(t, known.slots.leaves))
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        let known = Known::<X>::read(t);
        Answer::Errs(known.extent.mapped_pages(t, known.slots.leaves))
    }

    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        let known = Known::<X>::read(t);
        Answer::Exact(if known.extent.is_huge(t, known.slots.leaves) { t.pages() } else { 0 })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let total = Known::<X>::read(t).total(t);
        Answer::Errs(0 < total && total < t.pages())
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(slots::leaves(t.state))
    }

    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel> {
        let known = Known::<X>::read(t);
        known.extent.by_level(t, known.slots.leaves)
    }

    fn total<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(Known::<X>::read(t).total(t))
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        let counters = Self::counters(t);
        write!(out, "M {}, {};", counters.leaves, counters.extent)?;
        for (owner, leaves) in counters.slots.iter().filter(|slot| slot.0 != 0) {
            write!(out, " {owner}:{leaves}")?;
        }
        out.write_str(if counters.shared { " shared" } else { " one owner" })
    }

    fn check_state<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        let known = Known::<X>::read(t);
        known.slots.check(truth, seen)?;
        ensure(known.total(t) == truth.total, "T")?;
        known.extent.check(truth)
    }
}
