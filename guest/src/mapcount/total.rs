//! `total`: mapcount and total mapped pages, with two owner slots (SCHEMES.md, `total`; Hildenbrand, 12 Apr 2026).
//!
//! M counts leaves of any order, T the pages they map; T never changes when a leaf is split. The slots hold how many leaves each of
//! two owners has; a third makes the folio *maybe shared* until it drains. "Exclusive" is never wrong; "shared" may be.
//!
//! One locked operation per batch, whatever its length and level: taking the lock, which lives beside the owner ids; the
//! new ids are stored with the lock released. A folio of order 0 has one count, M, and is shared when that is above 1.

use core::sync::atomic::Ordering::Relaxed;

use super::slots::{self, Known, Locked};
use super::{
    Accounting, Answer, Batch, Delta, Evidence, Needs, Neighbours, Refused, Target, Truth, answers_agree, ensure,
};
use crate::addr::Order;
use crate::memory::Memory;

/// Where T stands, behind the slots.
const PAGES: usize = slots::WORDS;

/// M, T and two owner slots: 32 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Total;

/// What [`Total`] has counted: for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TotalCounters {
    /// M: leaves.
    pub leaves: u64,
    /// T: pages they map.
    pub pages: u64,
    /// Two owners and how many of the leaves are known to be theirs; owner 0 for a free slot. A folio of order 0 has no slots.
    pub slots: [(u32, u64); 2],
    /// Somebody else than one owner may map it.
    pub shared: bool,
}

impl Total {
    /// The counters, read together.
    #[must_use]
    pub fn counters<M: Memory>(t: &Target<'_, M>) -> TotalCounters {
        if let Some(count) = t.small {
            let leaves = u64::from(count.get());
            return TotalCounters { leaves, pages: leaves, slots: [(0, 0); 2], shared: leaves > 1 };
        }
        let Known { slots, pages } = known(t);
        TotalCounters { leaves: slots.leaves, pages, slots: slots.pairs(), shared: slots.shared }
    }
}

/// The state, read together.
fn known<M: Memory>(t: &Target<'_, M>) -> Known {
    let locked = Locked::new(t.state);
    let known = Known { slots: locked.slots, pages: t.state[PAGES].load(Relaxed) };
    locked.unlock();
    known
}

impl Accounting for Total {
    const NAME: &'static str = "total";
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = slots::WORDS + 1;

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
        let total = t.state[PAGES].load(Relaxed);
        let huge_before = pmd_leaves(t, locked.slots.leaves, total);
        locked.slots.sub(u64::from(b.leaves()), b.owner);
        let (leaves, total) = (locked.slots.leaves, total - u64::from(b.pages));
        t.state[PAGES].store(total, Relaxed);
        locked.store();
        let pages = t.pages();
        Delta {
            mapped: if leaves == 0 { -(pages as i64) } else { 0 },
            huge: if huge_before > 0 && pmd_leaves(t, leaves, total) == 0 { -(pages as i64) } else { 0 },
            maybe_partial: t.anon && 0 < total && total < pages,
        }
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut locked = Locked::new(t.state);
        // T stays.
        locked.slots.split(b.owner);
        let huge = pmd_leaves(t, locked.slots.leaves, t.state[PAGES].load(Relaxed));
        locked.store();
        Delta { huge: if is_huge_folio(t) && huge == 0 { -512 } else { 0 }, ..Delta::default() }
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut locked = Locked::new(t.state);
        let huge_before = pmd_leaves(t, locked.slots.leaves, t.state[PAGES].load(Relaxed));
        locked.slots.collapse(b.owner);
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
        Answer::Errs(match t.small {
            Some(count) => count.get() > 1,
            None => known(t).is_maybe_shared(),
        })
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1 && refs == 1),
            None => Answer::Errs(known(t).may_reuse(refs)),
        }
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(u64::from(count.get())),
            None => Answer::Errs(known(t).average(t)),
        }
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Errs(if leaves(t) > 0 { t.pages() } else { 0 })
    }

    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(match t.small {
            Some(_) => 0,
            None => {
                let Known { slots, pages } = known(t);
                if pmd_leaves(t, slots.leaves, pages) > 0 { t.pages() } else { 0 }
            }
        })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(_) => Answer::Exact(false),
            None => Answer::Errs(known(t).is_partial(t)),
        }
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(leaves(t))
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        if t.small.is_none() {
            let Known { slots, pages } = known(t);
            slots.check(truth, seen)?;
            ensure(pages == truth.total, "T")?;
            ensure((pages - slots.leaves).is_multiple_of(511), "T - M")?;
        }
        answers_agree::<Self, M>(t, truth, seen)
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
    let total_before = t.state[PAGES].load(Relaxed);
    // Admitting on T leaves room for every split that may come: M never passes T.
    if let Err(refused) = t.admit(total_before, b.pages) {
        locked.unlock();
        return Err(refused);
    }
    let before = locked.slots.leaves;
    locked.slots.add(u64::from(b.leaves()), b.owner);
    let (leaves, total) = (locked.slots.leaves, total_before + u64::from(b.pages));
    t.state[PAGES].store(total, Relaxed);
    locked.store();
    let pages = t.pages() as i64;
    let first = before == 0;
    let first_huge = pmd_leaves(t, before, total_before) == 0 && pmd_leaves(t, leaves, total) > 0;
    Ok((
        Delta { mapped: if first { pages } else { 0 }, huge: if first_huge { pages } else { 0 }, maybe_partial: false },
        first,
    ))
}

fn leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
    match t.small {
        Some(count) => u64::from(count.get()),
        None => slots::leaves(t.state),
    }
}

fn is_huge_folio<M: Memory>(t: &Target<'_, M>) -> bool {
    t.order == Order::HUGE
}

/// Leaves of 2 MiB on a folio of 2 MiB: (T - M) / 511. Other orders do not enter the statistic.
fn pmd_leaves<M: Memory>(t: &Target<'_, M>, leaves: u64, pages: u64) -> u64 {
    if is_huge_folio(t) { (pages - leaves) / 511 } else { 0 }
}
