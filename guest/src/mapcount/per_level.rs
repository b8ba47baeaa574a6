//! `per-level`: a count for every size of leaf instead of one for every page, with two owner slots (SCHEMES.md, `per-level`; our own).
//!
//! The counts of 2 MiB and of 1 GiB leaves beside M take the place of T, which they make up. So the leaves of each size are known at every
//! order, where T alone is ambiguous. The rest is what M, T and P allow to say: never more pages mapped than T; a page charged as min(1, P / T), so that the
//! parts of all owners sum to min(T, P); and an owner that came when both slots were taken gets one as soon as somebody counts its leaves.

use core::fmt;

use super::owned::{Extent, Owned, OwnedCounters};
use super::{Answer, Batch, ByLevel, Share, Target, Truth, ensure};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::Field;

/// M, leaves of 2 MiB, leaves of 1 GiB, and two owner slots: 32 bytes.
pub type PerLevel = Owned<Levels>;

/// What [`PerLevel`] has counted.
pub type PerLevelCounters = OwnedCounters<Levels>;

const TWO: Field<0, 32> = Field;
const THREE: Field<32, 32> = Field;

/// Leaves above order 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Of 2 MiB.
    pub two: u64,
    /// Of 1 GiB.
    pub three: u64,
}

impl Levels {
    /// Leaves of pages are what is left of M.
    fn of_order(&mut self, leaf: Order) -> Option<&mut u64> {
        match leaf {
            Order::HUGE => Some(&mut self.two),
            Order::GIGANTIC => Some(&mut self.three),
            _ => None,
        }
    }

    const fn pages(self, leaves: u64) -> u64 {
        leaves + (Order::HUGE.pages() - 1) * self.two + (Order::GIGANTIC.pages() - 1) * self.three
    }
}

impl Extent for Levels {
    const NAME: &'static str = "per-level";
    const GUESSES: bool = true;
    const RELEARNS: bool = true;

    fn of(word: u64) -> Self {
        Self { two: TWO.of(word), three: THREE.of(word) }
    }
    fn word(self) -> u64 {
        TWO.bits(self.two) | THREE.bits(self.three)
    }

    fn add<M: Memory>(&mut self, _t: &Target<'_, M>, b: &Batch) {
        if let Some(count) = self.of_order(b.leaf) {
            *count += u64::from(b.leaves());
        }
    }

    fn sub<M: Memory>(&mut self, _t: &Target<'_, M>, b: &Batch) {
        if let Some(count) = self.of_order(b.leaf) {
            *count -= u64::from(b.leaves());
        }
    }

    fn split<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        self.sub(t, b);
        if b.leaf == Order::GIGANTIC {
            self.two += 512;
        }
    }

    fn collapse<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        if b.leaf == Order::GIGANTIC {
            self.two -= 512;
        }
        self.add(t, b);
    }

    fn total<M: Memory>(self, _t: &Target<'_, M>, leaves: u64) -> u64 {
        self.pages(leaves)
    }

    fn is_huge<M: Memory>(self, t: &Target<'_, M>, _leaves: u64) -> bool {
        t.order == Order::HUGE && self.two > 0
    }

    fn mapped_pages<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> u64 {
        self.pages(leaves).min(t.pages())
    }

    fn by_level<M: Memory>(self, _t: &Target<'_, M>, leaves: u64) -> Answer<ByLevel> {
        Answer::Exact([leaves - self.two - self.three, self.two, self.three])
    }

    fn charge<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> Share {
        let total = self.pages(leaves);
        Share { pages: total.min(t.pages()), of: total.max(1) }
    }

    fn check(self, truth: &Truth) -> Result<(), &'static str> {
        ensure([self.two, self.three] == [truth.levels[1], truth.levels[2]], "leaves of a size")
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "2M {}, 1G {}", self.two, self.three)
    }
}
