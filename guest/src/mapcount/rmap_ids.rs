//! `rmap-ids`: sums of the owners' ids over all leaves (SCHEMES.md, `rmap-ids`; Hildenbrand, Nov 2023, never merged).
//!
//! Every leaf adds its owner's id to a sum, in a form in which no other mix of as many ids makes the same sum. A folio is one owner's when the sums are M times
//! its id: exact for any number of owners, as long as M is not above P.
//!
//! The form: an id's bits are dealt out to *sub-ids*, and bit k of a sub-id stands for (P + 1)^k. M leaves make at most M of every power, so with M <= P no power ever
//! carries into the next, and sums are equal only when each power is. That needs all powers to fit a word: as many sub-ids as [`SubIds`] says, which is
//! one more at order 9 than was proposed.
//!
//! M and the two sizes beside it are `mm-owner`'s, and so are the answers that do not ask for owners.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::owned::average;
use super::sizes::Sizes;
use super::{Answer, Batch, ByLevel, Delta, Evidence, Large, Neighbours, Refused, Share, Target, Truth, ensure};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::{Field, StateGuard, lock_state};

const LEAVES: Field<0, 32> = Field;
const LOCK: u64 = 1 << 63;
const SIZES: usize = 1;
const SUMS: usize = 2;

/// M, its sizes and eight sums, of which a folio uses as many as its order needs: 80 bytes.
#[derive(Clone, Copy, Debug)]
pub struct RmapIds;

/// How an owner's id is dealt out for folios of one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubIds {
    /// Pages of the folio, plus 1.
    base: u64,
    /// Bits of the id in each sub-id.
    bits: u32,
}

impl SubIds {
    /// Bits of an id: more owners than there can be address spaces.
    pub const ID_BITS: u32 = 24;
    /// Sub-ids at order 18, the most.
    pub const MOST: usize = 8;

    /// For folios of `order`: every change of a count asks.
    #[must_use]
    pub const fn of(order: Order) -> Self {
        Self::OF_ORDER[order.get() as usize]
    }

    const OF_ORDER: [Self; Order::GIGANTIC.get() as usize + 1] = {
        let mut all = [Self { base: 0, bits: 0 }; Order::GIGANTIC.get() as usize + 1];
        let mut order = 0;
        while order < all.len() {
            all[order] = Self::found(Order::new(order as u8));
            order += 1;
        }
        all
    };

    const fn found(order: Order) -> Self {
        let base = order.pages() + 1;
        // All digits are at most P, so the largest sum is base^bits - 1.
        let (mut bits, mut power) = (0, 1u128);
        while bits < Self::ID_BITS && power * base as u128 <= 1 << 64 {
            power *= base as u128;
            bits += 1;
        }
        Self { base, bits }
    }

    /// How many sub-ids there are.
    #[must_use]
    pub const fn count(self) -> usize {
        Self::ID_BITS.div_ceil(self.bits) as usize
    }

    /// Sub-id `nth` of `owner`.
    #[must_use]
    pub const fn get(self, owner: u32, nth: usize) -> u64 {
        let mut digits = owner >> (nth as u32 * self.bits) & ((1 << self.bits) - 1);
        let (mut sum, mut power) = (0u64, 1u64);
        while digits != 0 {
            if digits & 1 == 1 {
                sum += power;
            }
            digits >>= 1;
            // The last one may be the 2^64 that no digit needs.
            power = power.wrapping_mul(self.base);
        }
        sum
    }
}

const _: () = assert!(SubIds::of(Order::GIGANTIC).count() == SubIds::MOST);

/// What [`RmapIds`] has counted: for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RmapIdsCounters {
    /// M: leaves.
    pub leaves: u64,
    /// Of those, the ones larger than a page.
    pub sizes: Sizes,
    /// The sums; those behind what the order needs are 0.
    pub sums: [u64; SubIds::MOST],
}

impl RmapIdsCounters {
    /// Whether all leaves are `owner`'s; only an answer while M is not above P.
    fn are_all_of(&self, subs: SubIds, owner: u32) -> bool {
        (0..subs.count()).all(|nth| self.sums[nth] == self.leaves.wrapping_mul(subs.get(owner, nth)))
    }
}

impl RmapIds {
    /// The counters, read together.
    #[must_use]
    pub fn counters<M: Memory>(t: &Target<'_, M>) -> RmapIdsCounters {
        if let Some(count) = t.small {
            let leaves = count.get().into();
            return RmapIdsCounters { leaves, sizes: Sizes::unpack(0), sums: [0; SubIds::MOST] };
        }
        let _guard = lock_state(&t.state[0], LOCK);
        let sums = core::array::from_fn(|nth| t.state[SUMS + nth].load(Relaxed));
        RmapIdsCounters { leaves: leaves(t), sizes: Sizes::unpack(t.state[SIZES].load(Relaxed)), sums }
    }
}

fn leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
    LEAVES.get(&t.state[0])
}

fn total<M: Memory>(t: &Target<'_, M>) -> u64 {
    let RmapIdsCounters { leaves, sizes, .. } = RmapIds::counters(t);
    sizes.total(t, leaves)
}

/// Holds the folio's counts still, to change them and to say what the change came to.
struct Change<'t, 'a, M> {
    t: &'t Target<'a, M>,
    subs: SubIds,
    leaves: u64,
    sizes: Sizes,
    /// M and its sizes as they were.
    before: (u64, Sizes),
    guard: StateGuard<'a>,
}

impl<'t, 'a, M: Memory> Change<'t, 'a, M> {
    fn begin(t: &'t Target<'a, M>) -> Self {
        let guard = lock_state(&t.state[0], LOCK);
        let (leaves, sizes) = (leaves(t), Sizes::unpack(t.state[SIZES].load(Relaxed)));
        Self { t, subs: SubIds::of(t.order), leaves, sizes, before: (leaves, sizes), guard }
    }

    /// `owner` has so many leaves more. Beyond P the sums wrap, and come back right.
    fn leaves(&mut self, more: i64, owner: u32) {
        self.leaves = self.leaves.wrapping_add_signed(more);
        for (nth, sum) in self.t.state[SUMS..].iter().take(self.subs.count()).enumerate() {
            let change = more.cast_unsigned().wrapping_mul(self.subs.get(owner, nth));
            sum.store(sum.load(Relaxed).wrapping_add(change), Relaxed);
        }
    }

    fn end(self) -> Delta {
        let t = self.t;
        t.state[SIZES].store(self.sizes.pack(), Relaxed);
        t.state[0].store(LEAVES.bits(self.leaves) | LOCK, Relaxed);
        drop(self.guard);
        let (leaves, sizes) = self.before;
        let folios = |is: bool, was: bool| (i64::from(is) - i64::from(was)) * t.pages() as i64;
        Delta {
            mapped: folios(self.leaves > 0, leaves > 0),
            huge: folios(self.sizes.is_huge(t), sizes.is_huge(t)),
            maybe_partial: false,
        }
    }
}

fn add<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<Delta, Refused> {
    debug_assert!(b.owner < 1 << SubIds::ID_BITS, "an owner beyond the ids");
    let mut change = Change::begin(t);
    // Admitting on T leaves room for every split that may come.
    t.admit(change.sizes.total(t, change.leaves), b.pages)?;
    change.leaves(b.leaves().into(), b.owner);
    change.sizes.add(t, b);
    Ok(change.end())
}

impl Large for RmapIds {
    const NAME: &'static str = "rmap-ids";
    const STATE_WORDS: usize = SUMS + SubIds::MOST;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        Sizes::admit(t, b)?;
        add(t, b)
    }

    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        // What stands there already is copied, whatever its size.
        add(t, b)
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut change = Change::begin(t);
        change.leaves(-i64::from(b.leaves()), b.owner);
        change.sizes.sub(t, b);
        let left = change.sizes.total(t, change.leaves);
        Delta { maybe_partial: 0 < left && left < t.pages() && t.is_anon(), ..change.end() }
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut change = Change::begin(t);
        change.leaves(511, b.owner);
        change.sizes.split(t, b);
        change.end()
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let mut change = Change::begin(t);
        change.leaves(-511, b.owner);
        change.sizes.collapse(t, b);
        change.end()
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(leaves(t) > 0)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, owner: u32) -> Answer<bool> {
        let counters = Self::counters(t);
        if counters.leaves > t.pages() {
            // One owner that maps pages twice, or more than one.
            return Answer::Errs(true);
        }
        Answer::Exact(counters.leaves > 1 && !counters.are_all_of(SubIds::of(t.order), owner))
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, owner: u32, refs: u64) -> Answer<bool> {
        // A lone page of a large folio is copied all the same, so that the folio can go.
        let counters = Self::counters(t);
        let alone = counters.leaves <= t.pages() && counters.are_all_of(SubIds::of(t.order), owner);
        Answer::Errs(counters.sizes.total(t, counters.leaves) > 1 && alone && counters.leaves == refs)
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        Answer::About(average(t, total(t)))
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, _page: u64, owner: u32) -> Answer<bool> {
        // Of the folio it is exact; of this page it says too little.
        Answer::About(<Self as Large>::maybe_shared(t, owner).value() == Some(false))
    }

    fn charge<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<Share> {
        Answer::About(Share::one_of(average(t, total(t))))
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Errs(if leaves(t) > 0 { t.pages() } else { 0 })
    }

    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(if Self::counters(t).sizes.is_huge(t) { t.pages() } else { 0 })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let total = total(t);
        Answer::Errs(0 < total && total < t.pages())
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(leaves(t))
    }

    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel> {
        let RmapIdsCounters { leaves, sizes, .. } = Self::counters(t);
        Answer::Exact(sizes.by_level(t, leaves))
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        let counters = Self::counters(t);
        write!(out, "M {}, {}; sums", counters.leaves, counters.sizes)?;
        counters.sums[..SubIds::of(t.order).count()].iter().try_for_each(|sum| write!(out, " {sum:#x}"))
    }

    fn check_state<M: Memory>(t: &Target<'_, M>, truth: &Truth, _seen: &dyn Evidence) -> Result<(), &'static str> {
        let counters = Self::counters(t);
        ensure(counters.leaves == truth.leaves, "M")?;
        ensure(counters.sizes.entire == truth.entire, "entire")?;
        ensure(counters.sizes.total(t, counters.leaves) == truth.total, "T of M, entire and between")?;
        ensure(counters.leaves > 0 || counters.sums == [0; SubIds::MOST], "sums of an unmapped folio")?;
        let all = truth.owners != 1 || counters.are_all_of(SubIds::of(t.order), truth.owner);
        ensure(all, "sums of other ids than the only owner's")
    }
}
