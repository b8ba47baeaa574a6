//! `total`: mapcount and total mapped pages, with two owner slots (SCHEMES.md, `total`; Hildenbrand, 12 Apr 2026).
//!
//! M counts leaves of any order, T the pages they map; T never changes when a leaf is split. The slots hold how many leaves each of
//! two owners has; a third makes the folio *maybe shared* until it drains. "Exclusive" is never wrong; "shared" may be.

use core::fmt;

use super::owned::{Extent, Owned, OwnedCounters};
use super::{Answer, Batch, ByLevel, Target, Truth, ensure};
use crate::addr::Order;
use crate::memory::Memory;

/// M, T and two owner slots: 32 bytes.
pub type Total = Owned<TotalMapped>;

/// What [`Total`] has counted.
pub type TotalCounters = OwnedCounters<TotalMapped>;

/// T: the pages that all leaves map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TotalMapped(u64);

impl Extent for TotalMapped {
    const NAME: &'static str = "total";

    fn of(word: u64) -> Self {
        Self(word)
    }
    fn word(self) -> u64 {
        self.0
    }
    fn add<M: Memory>(&mut self, _t: &Target<'_, M>, b: &Batch) {
        self.0 += u64::from(b.pages);
    }
    fn sub<M: Memory>(&mut self, _t: &Target<'_, M>, b: &Batch) {
        self.0 -= u64::from(b.pages);
    }
    // Neither changes it.
    fn split<M: Memory>(&mut self, _t: &Target<'_, M>, _b: &Batch) {}
    fn collapse<M: Memory>(&mut self, _t: &Target<'_, M>, _b: &Batch) {}

    fn total<M: Memory>(self, _t: &Target<'_, M>, _leaves: u64) -> u64 {
        self.0
    }

    fn is_huge<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> bool {
        // Of other orders Linux keeps no such statistic.
        t.order == Order::HUGE && self.0 > leaves
    }

    fn by_level<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> Answer<ByLevel> {
        // Each leaf of 2 MiB adds 511 to T - M, and each of 1 GiB 513 times that: which, is only clear when one mix fits.
        let more = (self.0 - leaves) / 511;
        let most = if t.order >= Order::GIGANTIC { more / 513 } else { 0 };
        let least = more.saturating_sub(leaves).div_ceil(512);
        if least < most {
            return Answer::Cannot;
        }
        let two = more - 513 * most;
        Answer::Exact([leaves - two - most, two, most])
    }

    fn check(self, truth: &Truth) -> Result<(), &'static str> {
        ensure((self.0 - truth.leaves).is_multiple_of(511), "T - M")
    }
}

impl fmt::Display for TotalMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T {}", self.0)
    }
}
