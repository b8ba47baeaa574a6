//! `mm-owner`: mapcount, entire mapcount and two owner slots (SCHEMES.md, `mm-owner`; Linux v6.15, CONFIG_NO_PAGE_MAPCOUNT).
//!
//! M counts leaves of any order, *entire* those as large as the folio; what `total` keeps as T is made up of the two.

use super::owned::{Extent, Owned, OwnedCounters};
use super::sizes::Sizes;
use super::{Answer, Batch, ByLevel, Refused, Target, Truth, ensure};
use crate::memory::Memory;

/// M, *entire*, *between* and two owner slots: 32 bytes.
pub type MmOwner = Owned<Sizes>;

/// What [`MmOwner`] has counted.
pub type MmOwnerCounters = OwnedCounters<Sizes>;

impl Extent for Sizes {
    const NAME: &'static str = "mm-owner";

    fn admit<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<(), Refused> {
        Self::admit(t, b)
    }
    fn of(word: u64) -> Self {
        Self::unpack(word)
    }
    fn word(self) -> u64 {
        self.pack()
    }
    fn add<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        Self::add(self, t, b);
    }
    fn sub<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        Self::sub(self, t, b);
    }
    fn split<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        Self::split(self, t, b);
    }
    fn collapse<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        Self::collapse(self, t, b);
    }
    fn total<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> u64 {
        Self::total(self, t, leaves)
    }
    fn is_huge<M: Memory>(self, t: &Target<'_, M>, _leaves: u64) -> bool {
        Self::is_huge(self, t)
    }
    fn by_level<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> Answer<ByLevel> {
        Answer::Exact(Self::by_level(self, t, leaves))
    }
    fn check(self, truth: &Truth) -> Result<(), &'static str> {
        ensure(self.entire == truth.entire, "entire")
    }
}
