//! `tuples`: how many (region, table page) pairs map any of the folio (SCHEMES.md, B-strict; Wilcox, 24 Jan 2023).
//!
//! One count. Whether a batch is the first or the last of its tuple does not follow from it, so the caller looks at
//! the at most 512 entries that the region's linear mapping gives this folio in the locked table. A cut or merge of regions inside a folio changes the count without touching any entry.

use super::{Accounting, Answer, Batch, Delta, Needs, Neighbours, Refused, Target, Truth, answers_agree};
use crate::memory::Memory;
use crate::sync::Count32;

/// K, the number of tuples: 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tuples;

fn count<'a, M: Memory>(t: &Target<'a, M>) -> Count32<'a> {
    t.small.unwrap_or_else(|| Count32::low(&t.state[0]))
}

impl Accounting for Tuples {
    const NAME: &'static str = "tuples";
    const NEEDS: Needs = Needs { tuple: true };
    const STATE_WORDS: usize = 1;

    fn add<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        if beside.tuple > 0 {
            return Ok(Delta::default());
        }
        let count = count(t);
        t.admit(u64::from(count.get()), 1)?;
        let first = count.add(1) == 0;
        Ok(Delta { mapped: if first { t.pages() as i64 } else { 0 }, ..Delta::default() })
    }

    fn sub<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        if beside.tuple > 0 {
            return Delta::default();
        }
        let last = count(t).sub(1) == 1;
        Delta { mapped: if last { -(t.pages() as i64) } else { 0 }, ..Delta::default() }
    }

    fn split<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        // The new table is a new tuple; the old one stays while other leaves of the folio stand in it.
        if beside.tuple > 0 {
            count(t).add(1);
        }
        Delta::default()
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        if beside.tuple > 0 {
            count(t).sub(1);
        }
        Delta::default()
    }

    fn region_cut<M: Memory>(t: &Target<'_, M>) {
        count(t).add(1);
    }

    fn region_merge<M: Memory>(t: &Target<'_, M>) {
        count(t).sub(1);
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(count(t).get() > 0)
    }

    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        // One tuple may be 512 leaves; a small folio has one leaf in each.
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1),
            None => Answer::Cannot,
        }
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        // One tuple is the asker's; more may be another's or the asker's again.
        Answer::Errs(count(t).get() > 1)
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        // D6: references count leaves, tuples do not, so they cannot be compared; small folios can.
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1 && refs == 1),
            None => Answer::Cannot,
        }
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(u64::from(count.get())),
            None => Answer::Cannot,
        }
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Errs(if count(t).get() > 0 { t.pages() } else { 0 })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(_) => Answer::Exact(false),
            None => Answer::Cannot,
        }
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        // Counts tables to visit, not leaves.
        match t.small {
            Some(count) => Answer::Exact(u64::from(count.get())),
            None => Answer::Cannot,
        }
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, cover: &dyn Fn(u64) -> u64) -> Result<(), &'static str> {
        if u64::from(count(t).get()) != truth.tuples {
            return Err("K");
        }
        answers_agree::<Self, M>(t, truth, cover)
    }
}
