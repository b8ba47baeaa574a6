//! `mm-owner`: mapcount, entire mapcount and two owner slots (SCHEMES.md, `mm-owner`; Linux v6.15, CONFIG_NO_PAGE_MAPCOUNT).
//!
//! M counts leaves of any order, `entire` those as large as the folio. What `total` keeps as T is made up of the two, as long as leaves are pages or whole folios;
//! Linux knows no others, and none gets in here. But a 1 GiB leaf that is split becomes 512 leaves between the two sizes, and so do
//! collapsed pages of a folio above order 9. Linux would take such a folio for partly mapped; `between` says how many there are.
//!
//! A batch takes one locked operation, the lock of the slots, under which all counts are. A folio of order 0 has one count, M.

use core::sync::atomic::Ordering::Relaxed;

use super::slots::{self, Known, Locked};
use super::{
    Accounting, Answer, Batch, Delta, Evidence, Needs, Neighbours, Refused, Target, Truth, answers_agree, ensure,
};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::Field;

// The word behind the slots.
const ENTIRE: Field<0, 32> = Field;
const BETWEEN: Field<32, 32> = Field;
const SIZES: usize = slots::WORDS;

/// M, `entire`, `between` and two owner slots: 32 bytes.
#[derive(Clone, Copy, Debug)]
pub struct MmOwner;

/// What [`MmOwner`] has counted: for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmOwnerCounters {
    /// M: leaves.
    pub leaves: u64,
    /// Of those, the ones as large as the folio.
    pub entire: u64,
    /// Of those, the ones larger than a page and smaller than the folio.
    pub between: u64,
    /// Two owners and how many of the leaves are known to be theirs; owner 0 for a free slot. A folio of order 0 has no slots.
    pub slots: [(u32, u64); 2],
    /// Somebody else than one owner may map it.
    pub shared: bool,
}

impl MmOwner {
    /// The counters, read together.
    #[must_use]
    pub fn counters<M: Memory>(t: &Target<'_, M>) -> MmOwnerCounters {
        if let Some(count) = t.small {
            let leaves = u64::from(count.get());
            return MmOwnerCounters { leaves, entire: 0, between: 0, slots: [(0, 0); 2], shared: leaves > 1 };
        }
        let locked = Locked::new(t.state);
        let (slots, sizes) = (locked.slots, Sizes::load(t));
        locked.unlock();
        let Sizes { entire, between } = sizes;
        MmOwnerCounters { leaves: slots.leaves, entire, between, slots: slots.pairs(), shared: slots.shared }
    }
}

/// How many leaves are larger than a page. Under the lock of the slots.
#[derive(Clone, Copy)]
struct Sizes {
    entire: u64,
    between: u64,
}

impl Sizes {
    fn load<M: Memory>(t: &Target<'_, M>) -> Self {
        let word = t.state[SIZES].load(Relaxed);
        Self { entire: ENTIRE.of(word), between: BETWEEN.of(word) }
    }

    fn store<M: Memory>(self, t: &Target<'_, M>) {
        t.state[SIZES].store(ENTIRE.bits(self.entire) | BETWEEN.bits(self.between), Relaxed);
    }

    /// The count that leaves of this order enter; pages enter none.
    fn of<M: Memory>(&mut self, t: &Target<'_, M>, leaf: Order) -> Option<&mut u64> {
        if leaf == Order::BASE {
            None
        } else if leaf == t.order {
            Some(&mut self.entire)
        } else {
            Some(&mut self.between)
        }
    }

    /// T of so many leaves.
    fn total<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> u64 {
        leaves + 511 * self.between + (t.pages() - 1) * self.entire
    }

    fn is_huge<M: Memory>(self, t: &Target<'_, M>) -> bool {
        t.order == Order::HUGE && self.entire > 0
    }
}

fn known<M: Memory>(t: &Target<'_, M>) -> Known {
    let locked = Locked::new(t.state);
    let (slots, sizes) = (locked.slots, Sizes::load(t));
    locked.unlock();
    Known { slots, pages: sizes.total(t, slots.leaves) }
}

fn leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
    match t.small {
        Some(count) => u64::from(count.get()),
        None => slots::leaves(t.state),
    }
}

/// Adds the batch.
fn add<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<Delta, Refused> {
    if let Some(count) = t.small {
        t.admit(u64::from(count.get()), b.pages)?;
        return Ok(Delta { mapped: i64::from(count.add(b.pages) == 0), ..Delta::default() });
    }
    let mut locked = Locked::new(t.state);
    let mut sizes = Sizes::load(t);
    // Admitting on T leaves room for every split that may come.
    if let Err(refused) = t.admit(sizes.total(t, locked.slots.leaves), b.pages) {
        locked.unlock();
        return Err(refused);
    }
    let pages = t.pages() as i64;
    let (first, huge_before) = (locked.slots.leaves == 0, sizes.is_huge(t));
    locked.slots.add(u64::from(b.leaves()), b.owner);
    if let Some(count) = sizes.of(t, b.leaf) {
        *count += u64::from(b.leaves());
        sizes.store(t);
    }
    locked.store();
    Ok(Delta {
        mapped: if first { pages } else { 0 },
        huge: if !huge_before && sizes.is_huge(t) { pages } else { 0 },
        maybe_partial: false,
    })
}

impl Accounting for MmOwner {
    const NAME: &'static str = "mm-owner";
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = slots::WORDS + 1;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        if Order::BASE < b.leaf && b.leaf < t.order {
            return Err(Refused::Shape);
        }
        add(t, b)
    }

    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        // What stands there already is copied, whatever its size. The pages are visible already: no statistics.
        add(t, b).map(|_| Delta::default())
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        if let Some(count) = t.small {
            return Delta { mapped: -i64::from(count.sub(b.pages) == b.pages), ..Delta::default() };
        }
        let mut locked = Locked::new(t.state);
        let mut sizes = Sizes::load(t);
        let huge_before = sizes.is_huge(t);
        locked.slots.sub(u64::from(b.leaves()), b.owner);
        if let Some(count) = sizes.of(t, b.leaf) {
            *count -= u64::from(b.leaves());
            sizes.store(t);
        }
        let left = locked.slots.leaves;
        locked.store();
        let pages = t.pages();
        Delta {
            mapped: if left == 0 { -(pages as i64) } else { 0 },
            huge: if huge_before && !sizes.is_huge(t) { -(pages as i64) } else { 0 },
            maybe_partial: t.anon && left > 0 && sizes.total(t, left) < pages,
        }
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut locked = Locked::new(t.state);
        let mut sizes = Sizes::load(t);
        let huge_before = sizes.is_huge(t);
        locked.slots.split(b.owner);
        if let Some(count) = sizes.of(t, b.leaf) {
            *count -= 1;
        }
        if b.leaf > Order::HUGE {
            sizes.between += 512;
        }
        sizes.store(t);
        locked.store();
        Delta { huge: if huge_before && !sizes.is_huge(t) { -512 } else { 0 }, ..Delta::default() }
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut locked = Locked::new(t.state);
        let mut sizes = Sizes::load(t);
        let huge_before = sizes.is_huge(t);
        locked.slots.collapse(b.owner);
        if b.leaf > Order::HUGE {
            sizes.between -= 512;
        }
        if let Some(count) = sizes.of(t, b.leaf) {
            *count += 1;
        }
        sizes.store(t);
        locked.store();
        Delta { huge: if !huge_before && sizes.is_huge(t) { 512 } else { 0 }, ..Delta::default() }
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
            // (M - entire) / P + entire, rounded, is T / P.
            None => Answer::Errs(known(t).average(t)),
        }
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Errs(if leaves(t) > 0 { t.pages() } else { 0 })
    }

    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        let huge = t.small.is_none() && Sizes::load(t).is_huge(t);
        Answer::Exact(if huge { t.pages() } else { 0 })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(_) => Answer::Exact(false),
            // No whole leaf, and fewer leaves than pages.
            None => Answer::Errs(known(t).is_partial(t)),
        }
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(leaves(t))
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        if t.small.is_none() {
            let locked = Locked::new(t.state);
            let (slots, sizes) = (locked.slots, Sizes::load(t));
            locked.unlock();
            slots.check(truth, seen)?;
            ensure(sizes.entire == truth.entire, "entire")?;
            ensure(sizes.total(t, slots.leaves) == truth.total, "T of M, entire and between")?;
        }
        answers_agree::<Self, M>(t, truth, seen)
    }
}
