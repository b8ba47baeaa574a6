//! `tuples`: how many (region, table page) pairs map any of the folio (SCHEMES.md, `tuples`; Wilcox, 24 Jan 2023).
//!
//! One count. Whether a batch is the first or the last of its tuple does not follow from it, so the caller looks at
//! the at most 512 entries that the region's linear mapping gives this folio in the locked table. A cut or merge of regions inside a folio changes the count without touching any entry.

use super::{
    Accounting, Answer, Batch, Delta, Evidence, Needs, Neighbours, Refused, Target, Truth, answers_agree, ensure,
};
use crate::memory::Memory;
use crate::sync::Count32;

/// K, the number of tuples: 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tuples;

fn count<'a, M: Memory>(t: &Target<'a, M>) -> Count32<'a> {
    t.small.unwrap_or_else(|| Count32::low(&t.state[0]))
}

impl Tuples {
    /// K as the scheme has it: for reports and tests.
    #[must_use]
    pub fn count<M: Memory>(t: &Target<'_, M>) -> u32 {
        count(t).get()
    }
}

impl Accounting for Tuples {
    const NAME: &'static str = "tuples";
    const NEEDS: Needs = Needs { tuple: true, region: false };
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

    fn moved<M: Memory>(
        t: &Target<'_, M>,
        _from: &Batch,
        beside_from: Neighbours,
        _to: &Batch,
        beside_to: Neighbours,
    ) -> Delta {
        // There before here, so that the folio is never unmapped in passing.
        if beside_to.tuple == 0 {
            count(t).add(1);
        }
        if beside_from.tuple == 0 {
            count(t).sub(1);
        }
        Delta::default()
    }

    fn tuple_cut<M: Memory>(t: &Target<'_, M>) {
        count(t).add(1);
    }

    fn tuple_merge<M: Memory>(t: &Target<'_, M>) {
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
        // References count leaves, tuples do not, so they cannot be compared (SCHEMES.md, references); small folios can.
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

    fn huge_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Cannot
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

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        ensure(u64::from(count(t).get()) == truth.tuples, "K")?;
        answers_agree::<Self, M>(t, truth, seen)
    }
}
