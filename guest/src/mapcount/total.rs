//! `total`: mapcount and total mapped pages, with two owner slots (SCHEMES.md, F; Hildenbrand, 12 Apr 2026).
//!
//! M counts leaves of any order, T the pages they map; T never changes when a leaf is split. The slots hold how many leaves each of
//! two owners has; a third makes the folio *maybe shared* until it drains. "Exclusive" is never wrong; "shared" may be.
//!
//! One locked operation per batch, whatever its length and level: taking the lock, which lives beside the owner ids; the
//! new ids are stored with the lock released. A folio of order 0 has one count, M, and is shared when that is above 1.

use core::hint::spin_loop;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{Accounting, Answer, Batch, Delta, Needs, Neighbours, Refused, Target, Truth, answers_agree};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::Field;

// Word 0: both owner ids, the maybe-shared bit, the lock. Word 1: M, leaves of slot 0. Word 2: leaves of slot 1. Word 3: T.
const ID0: Field<0, 31> = Field;
const SHARED: u64 = 1 << 31;
const ID1: Field<32, 31> = Field;
const LOCK: u64 = 1 << 63;
const LOW: Field<0, 32> = Field;
const HIGH: Field<32, 32> = Field;
const WORDS: usize = 4;

/// M, T and two owner slots: 32 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Total;

/// The state, taken out under the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    ids: [u64; 2],
    counts: [u64; 2],
    shared: bool,
    leaves: u64,
    pages: u64,
}

/// Holds the folio's lock; [`Locked::store`] writes the state back and releases it.
struct Locked<'a> {
    words: &'a [AtomicU64],
    state: State,
}

impl<'a> Locked<'a> {
    fn new(words: &'a [AtomicU64]) -> Self {
        let words = &words[..WORDS];
        let mut ids = words[0].fetch_or(LOCK, Acquire); // pairs with the Release in `store`
        while ids & LOCK != 0 {
            spin_loop();
            ids = words[0].fetch_or(LOCK, Acquire);
        }
        let one = words[1].load(Relaxed);
        let state = State {
            ids: [ID0.of(ids), ID1.of(ids)],
            counts: [HIGH.of(one), LOW.get(&words[2])],
            shared: ids & SHARED != 0,
            leaves: LOW.of(one),
            pages: words[3].load(Relaxed),
        };
        Self { words, state }
    }

    fn store(self) {
        let s = self.state;
        self.words[1].store(LOW.bits(s.leaves) | HIGH.bits(s.counts[0]), Relaxed);
        self.words[2].store(LOW.bits(s.counts[1]), Relaxed);
        self.words[3].store(s.pages, Relaxed);
        let shared = if s.shared { SHARED } else { 0 };
        self.words[0].store(ID0.bits(s.ids[0]) | ID1.bits(s.ids[1]) | shared, Release);
    }

    fn unlock(self) {
        let ids = self.words[0].load(Relaxed);
        self.words[0].store(ids & !LOCK, Release);
    }
}

/// A consistent pair of M and T, and the slots.
fn snapshot(words: &[AtomicU64]) -> State {
    let locked = Locked::new(words);
    let state = locked.state;
    locked.unlock();
    state
}

impl State {
    fn add(&mut self, leaves: u64, pages: u64, owner: u64) {
        self.leaves += leaves;
        self.pages += pages;
        self.add_to_slot(leaves, owner);
    }

    fn add_to_slot(&mut self, leaves: u64, owner: u64) {
        if self.ids[0] == owner {
            self.counts[0] += leaves;
        } else if self.ids[1] == owner {
            self.counts[1] += leaves;
        } else if self.ids[0] == 0 {
            (self.ids[0], self.counts[0]) = (owner, leaves);
            // Somebody without a slot, or the other one, holds the rest.
            self.shared |= self.leaves != leaves;
        } else if self.ids[1] == 0 {
            (self.ids[1], self.counts[1]) = (owner, leaves);
            self.shared = true;
        }
        // Else: an owner without a slot; shared is set already.
    }

    fn sub(&mut self, leaves: u64, pages: u64, owner: u64) {
        self.leaves -= leaves;
        self.pages -= pages;
        for slot in 0..2 {
            if self.ids[slot] == owner {
                if self.counts[slot] > leaves {
                    self.counts[slot] -= leaves;
                    // The owner still maps it, so who else does has not changed.
                    return;
                }
                // Also when it would underflow: leaves from before the owner got its slot.
                (self.ids[slot], self.counts[slot]) = (0, 0);
            }
        }
        if self.counts[0] == self.leaves || self.counts[1] == self.leaves {
            self.shared = false;
        }
    }
}

impl Accounting for Total {
    const NAME: &'static str = "total";
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = WORDS;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        add(t, b).map(|(delta, _)| delta)
    }

    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        // The pages are visible already: no statistics.
        add(t, b).map(|_| Delta::default())
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        if let Some(count) = t.small {
            let before = count.sub(b.pages);
            return Delta { mapped: if before == b.pages { -1 } else { 0 }, ..Delta::default() };
        }
        let mut locked = Locked::new(t.state);
        let huge_before = pmd_leaves(t, &locked.state);
        locked.state.sub(u64::from(b.leaves()), u64::from(b.pages), u64::from(b.owner));
        let state = locked.state;
        locked.store();
        let pages = t.pages();
        Delta {
            mapped: if state.leaves == 0 { -(pages as i64) } else { 0 },
            huge: if huge_before > 0 && pmd_leaves(t, &state) == 0 { -(pages as i64) } else { 0 },
            maybe_partial: t.anon && 0 < state.pages && state.pages < pages,
        }
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut locked = Locked::new(t.state);
        // T stays. The slot's count grows with M: were it left behind, its owner would never read as exclusive again.
        locked.state.leaves += 511;
        for slot in 0..2 {
            if locked.state.ids[slot] == u64::from(b.owner) {
                locked.state.counts[slot] += 511;
            }
        }
        let state = locked.state;
        locked.store();
        Delta { huge: if is_huge_folio(t) && pmd_leaves(t, &state) == 0 { -512 } else { 0 }, ..Delta::default() }
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut locked = Locked::new(t.state);
        let huge_before = pmd_leaves(t, &locked.state);
        locked.state.leaves -= 511;
        for slot in 0..2 {
            if locked.state.ids[slot] == u64::from(b.owner) {
                // An owner whose older leaves never reached the slot keeps the one that is there now.
                locked.state.counts[slot] = locked.state.counts[slot].saturating_sub(511).max(1);
            }
        }
        locked.store();
        Delta { huge: if is_huge_folio(t) && huge_before == 0 { 512 } else { 0 }, ..Delta::default() }
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(leaves(t) > 0)
    }

    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(leaves(t) == 1)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Errs(count.get() > 1),
            None => {
                let state = snapshot(t.state);
                // A folio with one leaf has one owner, whatever the bit remembers.
                Answer::Errs(state.leaves > 1 && state.shared)
            }
        }
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1 && refs == 1),
            None => {
                // A lone page of a large folio is copied, so that the folio can go.
                let state = snapshot(t.state);
                Answer::Errs(state.leaves > 1 && !state.shared && state.leaves == refs)
            }
        }
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(u64::from(count.get())),
            None => {
                let pages = snapshot(t.state).pages;
                let average = (pages + t.pages() / 2) >> t.order.get();
                Answer::Errs(if pages == 0 { 0 } else { average.max(1) })
            }
        }
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Errs(if leaves(t) > 0 { t.pages() } else { 0 })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(_) => Answer::Exact(false),
            None => {
                let pages = snapshot(t.state).pages;
                Answer::Errs(0 < pages && pages < t.pages())
            }
        }
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(leaves(t))
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, cover: &dyn Fn(u64) -> u64) -> Result<(), &'static str> {
        if t.small.is_none() {
            let state = snapshot(t.state);
            if state.pages != truth.total {
                return Err("T");
            }
            if state.leaves == 0 && (state.ids != [0, 0] || state.shared) {
                return Err("slots of an unmapped folio");
            }
            if state.counts[0] + state.counts[1] > state.leaves {
                return Err("slots beyond M");
            }
        }
        answers_agree::<Self, M>(t, truth, cover)
    }
}

/// Adds the batch; whether the folio was unmapped before.
fn add<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<(Delta, bool), Refused> {
    if let Some(count) = t.small {
        t.admit(u64::from(count.get()), b.pages)?;
        let before = count.add(b.pages);
        return Ok((Delta { mapped: i64::from(before == 0), ..Delta::default() }, before == 0));
    }
    let mut locked = Locked::new(t.state);
    // Admitting on T leaves room for every split that may come: M never passes T.
    if let Err(refused) = t.admit(locked.state.pages, b.pages) {
        locked.unlock();
        return Err(refused);
    }
    let before = locked.state;
    locked.state.add(u64::from(b.leaves()), u64::from(b.pages), u64::from(b.owner));
    let state = locked.state;
    locked.store();
    let pages = t.pages() as i64;
    let first = before.leaves == 0;
    let first_huge = pmd_leaves(t, &before) == 0 && pmd_leaves(t, &state) > 0;
    Ok((
        Delta {
            mapped: if first { pages } else { 0 },
            huge: if first_huge { pages } else { 0 },
            maybe_partial: false,
        },
        first,
    ))
}

fn leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
    match t.small {
        Some(count) => u64::from(count.get()),
        None => LOW.get(&t.state[1]),
    }
}

fn is_huge_folio<M: Memory>(t: &Target<'_, M>) -> bool {
    t.order == Order::HUGE
}

/// Leaves of 2 MiB on a folio of 2 MiB: (T - M) / 511. Other orders do not enter the statistic.
fn pmd_leaves<M: Memory>(t: &Target<'_, M>, state: &State) -> u64 {
    if is_huge_folio(t) { (state.pages - state.leaves) / 511 } else { 0 }
}
