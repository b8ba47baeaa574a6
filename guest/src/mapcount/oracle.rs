//! The oracle (SCHEMES.md, the oracle): an observer that keeps what no scheme of constant size can, and the [`Truth`] that a recount of the tables finds.
//!
//! As an observer it counts what it is *told*: leaves, and how many of them cover each page. A recount counts what is *there*. A
//! difference means that somebody changed entries without saying so.

use core::fmt;

use super::{
    Accounting, Answer, Batch, ByLevel, Countdown, Delta, Needs, Neighbours, Refused, Share, Target, show_runs,
};
use crate::memory::Memory;
use crate::sync::Count32;

/// The quantities of SCHEMES.md, ground truth, of one folio, as found in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Truth {
    /// M: leaves.
    pub leaves: u64,
    /// T: pages they map, multiplicity counted.
    pub total: u64,
    /// E: leaves of the folio's own order, 9 or above.
    pub entire: u64,
    /// U: distinct pages mapped.
    pub distinct: u64,
    /// K: (region, table page) pairs.
    pub tuples: u64,
    /// V: regions.
    pub regions: u64,
    /// O: owners.
    pub owners: u64,
    /// Of M, the leaves of order 0, 9 and 18.
    pub levels: ByLevel,
    /// One of the owners; 0 when there is none.
    pub owner: u32,
}

impl Truth {
    /// Whether the quantities of a folio of `pages` pages fit together, as they always must.
    #[must_use]
    pub fn is_coherent(&self, pages: u64) -> bool {
        let Self { leaves, total, entire, distinct, tuples, regions, owners, levels, owner } = *self;
        let ordered = total >= leaves && leaves >= tuples && tuples >= regions && regions >= owners;
        let none_or_all =
            (leaves == 0) == (distinct == 0) && (leaves == 0) == (owners == 0) && (owners == 0) == (owner == 0);
        ordered
            && none_or_all
            && levels.iter().sum::<u64>() == leaves
            && entire <= leaves
            && distinct <= total.min(pages)
            && (total - leaves).is_multiple_of(511)
    }
}

/// What a recount can be asked about one folio beyond its [`Truth`].
pub trait Evidence {
    /// Leaves over page `page` of the folio.
    fn cover(&self, page: u64) -> u64;
    /// Regions that map every page of the folio; `None` where the recount did not look that closely.
    fn whole_regions(&self) -> Option<u64>;
    /// Leaves of the folio in the tables of `owner`; `None` where the recount did not look that closely.
    fn leaves_of(&self, owner: u32) -> Option<u64>;
}

/// Exact counts of what it was told: M for the folio, and the leaves over each page.
#[derive(Clone, Copy, Debug)]
pub struct Oracle;

impl Oracle {
    /// M as told.
    #[must_use]
    pub fn told_leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
        match t.small {
            Some(count) => u64::from(count.get()),
            None => u64::from(Count32::low(&t.state[0]).get()),
        }
    }

    /// Leaves over page `page` as told.
    #[must_use]
    pub fn told_page<M: Memory>(t: &Target<'_, M>, page: u64) -> u64 {
        match t.small {
            Some(count) => u64::from(count.get()),
            None => u64::from(t.page(page).get()),
        }
    }
}

impl Accounting for Oracle {
    const NAME: &'static str = "oracle";
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = 1;
    const PAGE_COUNTS: usize = 1;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        let first = match t.small {
            Some(count) => usize::from(count.add(b.pages) == 0),
            None => {
                Count32::low(&t.state[0]).add(b.leaves());
                (b.first..b.first + b.pages).filter(|&page| t.page(u64::from(page)).add(1) == 0).count()
            }
        };
        Ok(Delta { mapped: first as i64, ..Delta::default() })
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let last = match t.small {
            Some(count) => usize::from(count.sub(b.pages) == b.pages),
            None => {
                Count32::low(&t.state[0]).sub(b.leaves());
                (b.first..b.first + b.pages).filter(|&page| t.page(u64::from(page)).sub(1) == 1).count()
            }
        };
        Delta { mapped: -(last as i64), ..Delta::default() }
    }

    fn split<M: Memory>(t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Count32::low(&t.state[0]).add(511);
        Delta::default()
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Count32::low(&t.state[0]).sub(511);
        Delta::default()
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "M {}; pages", Self::told_leaves(t))?;
        match t.small {
            Some(count) => write!(out, " {}x1", count.get()),
            None => show_runs(t, out),
        }
    }

    fn said_mapped(pages: u64) -> Answer<u64> {
        Answer::Exact(pages)
    }

    fn said_huge(_pages: u64) -> Answer<u64> {
        Answer::Cannot
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(Self::told_leaves(t) > 0)
    }
    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(Self::told_leaves(t) == 1)
    }
    fn maybe_shared<M: Memory>(_t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        Answer::Walk
    }
    fn may_reuse<M: Memory>(_t: &Target<'_, M>, _owner: u32, _refs: u64) -> Answer<bool> {
        Answer::Walk
    }
    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64> {
        Answer::Exact(Self::told_page(t, page))
    }
    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, _owner: u32) -> Answer<bool> {
        Answer::Exact(Self::told_page(t, page) == 1)
    }
    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share> {
        Answer::Exact(Share::one_of(Self::told_page(t, page)))
    }
    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact((0..t.pages()).filter(|&page| Self::told_page(t, page) > 0).count() as u64)
    }
    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let pages = (0..t.pages()).filter(|&page| Self::told_page(t, page) > 0).count() as u64;
        Answer::Exact(0 < pages && pages < t.pages())
    }
    fn huge_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Walk
    }
    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(Self::told_leaves(t))
    }
    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
        Answer::Exact(Countdown::Leaves(Self::told_leaves(t)))
    }
    fn by_level<M: Memory>(_t: &Target<'_, M>) -> Answer<ByLevel> {
        Answer::Walk
    }
}
