//! The oracle: an observer that keeps what no scheme of constant size can, and the [`Truth`] that a recount of the tables finds.
//!
//! As an observer it counts what it is *told*: leaves, and how many of them cover each page. A recount counts what is *there*. A
//! difference means that somebody changed entries without saying so.

use super::{Accounting, Answer, Batch, Delta, Needs, Neighbours, Refused, Target};
use crate::memory::Memory;
use crate::sync::Count32;

/// The quantities of SCHEMES.md, section 1, of one folio, as found in the tables.
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
        match t.small {
            Some(count) => {
                count.add(b.pages);
            }
            None => {
                Count32::low(&t.state[0]).add(b.leaves());
                for page in b.first..b.first + b.pages {
                    t.page(u64::from(page)).add(1);
                }
            }
        }
        Ok(Delta::default())
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        match t.small {
            Some(count) => {
                count.sub(b.pages);
            }
            None => {
                Count32::low(&t.state[0]).sub(b.leaves());
                for page in b.first..b.first + b.pages {
                    t.page(u64::from(page)).sub(1);
                }
            }
        }
        Delta::default()
    }

    fn split<M: Memory>(t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Count32::low(&t.state[0]).add(511);
        Delta::default()
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Count32::low(&t.state[0]).sub(511);
        Delta::default()
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
    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact((0..t.pages()).filter(|&page| Self::told_page(t, page) > 0).count() as u64)
    }
    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let pages = (0..t.pages()).filter(|&page| Self::told_page(t, page) > 0).count() as u64;
        Answer::Exact(0 < pages && pages < t.pages())
    }
    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(Self::told_leaves(t))
    }
}
