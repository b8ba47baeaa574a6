//! One count that goes up with the first leaf of a unit and down with its last: what `tuples` and `vmas` have in common.
//!
//! Whether a batch is the first or the last does not follow from the count, so the caller looks at what else of the folio stands in the unit.

use core::fmt;
use core::marker::PhantomData;

use super::{
    Answer, Batch, ByLevel, Countdown, Delta, Evidence, Large, Needs, Neighbours, Refused, Share, Sides, Target, Truth,
    ensure,
};
use crate::memory::Memory;
use crate::sync::Count32;

/// What is counted.
pub trait Unit: Copy + fmt::Debug + Send + Sync + 'static {
    /// The scheme's name on the command line.
    const NAME: &'static str;
    /// What the caller must look at.
    const NEEDS: Needs;
    /// Whether the table page belongs to the unit, so that a split may make a new one.
    const BY_TABLE: bool;
    /// What else of the folio stands in the unit.
    fn beside(beside: Neighbours) -> u32;
    /// How many units a recount found.
    fn of(truth: &Truth) -> u64;
    /// Units left to visit.
    fn countdown(units: u64) -> Countdown;
    /// What a leaf is charged in Pss when so many units map the folio.
    fn charge(units: u64) -> Answer<Share>;
}

/// The number of `U` that hold a leaf of the folio: 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct FirstLast<U>(PhantomData<U>);

fn count<'a, M: Memory>(t: &Target<'a, M>) -> Count32<'a> {
    t.small.unwrap_or_else(|| Count32::low(&t.state[0]))
}

impl<U: Unit> FirstLast<U> {
    /// The count: for reports and tests.
    #[must_use]
    pub fn count<M: Memory>(t: &Target<'_, M>) -> u32 {
        count(t).get()
    }
}

impl<U: Unit> Large for FirstLast<U> {
    const NAME: &'static str = U::NAME;
    const NEEDS: Needs = U::NEEDS;
    const STATE_WORDS: usize = 1;

    fn add<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        if U::beside(beside) > 0 {
            return Ok(Delta::default());
        }
        let count = count(t);
        t.admit(u64::from(count.get()), 1)?;
        let first = count.add(1) == 0;
        Ok(Delta { mapped: if first { t.pages() as i64 } else { 0 }, ..Delta::default() })
    }

    fn sub<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        if U::beside(beside) > 0 {
            return Delta::default();
        }
        let last = count(t).sub(1) == 1;
        Delta { mapped: if last { -(t.pages() as i64) } else { 0 }, ..Delta::default() }
    }

    fn split<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        // The new table is a new unit; the old one stays while other leaves of the folio stand in it.
        if U::BY_TABLE && U::beside(beside) > 0 {
            count(t).add(1);
        }
        Delta::default()
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        if U::BY_TABLE && U::beside(beside) > 0 {
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
        if U::beside(beside_to) == 0 {
            count(t).add(1);
        }
        if U::beside(beside_from) == 0 {
            count(t).sub(1);
        }
        Delta::default()
    }

    fn tuple_cut<M: Memory>(t: &Target<'_, M>) {
        if U::BY_TABLE {
            count(t).add(1);
        }
    }

    fn tuple_merge<M: Memory>(t: &Target<'_, M>) {
        if U::BY_TABLE {
            count(t).sub(1);
        }
    }

    fn region_cut<M: Memory>(t: &Target<'_, M>, _sides: Sides) {
        if !U::BY_TABLE {
            count(t).add(1);
        }
    }

    fn region_merge<M: Memory>(t: &Target<'_, M>, _sides: Sides) {
        if !U::BY_TABLE {
            count(t).sub(1);
        }
    }

    fn said_huge(_pages: u64) -> Answer<u64> {
        Answer::Cannot
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(count(t).get() > 0)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        // One is the asker's; more may be another's or the asker's again.
        Answer::Errs(count(t).get() > 1)
    }

    fn may_reuse<M: Memory>(_t: &Target<'_, M>, _owner: u32, _refs: u64) -> Answer<bool> {
        // References count leaves, the count does not, so they cannot be compared (SCHEMES.md, references).
        Answer::Cannot
    }

    fn page_count<M: Memory>(_t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        Answer::Cannot
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, _page: u64, _owner: u32) -> Answer<bool> {
        Answer::About(count(t).get() == 1)
    }

    fn charge<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<Share> {
        U::charge(count(t).get().into())
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Errs(if count(t).get() > 0 { t.pages() } else { 0 })
    }

    fn huge_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Cannot
    }

    fn partially_mapped<M: Memory>(_t: &Target<'_, M>) -> Answer<bool> {
        Answer::Cannot
    }

    fn leaves<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        // One unit may hold 512 leaves.
        Answer::Cannot
    }

    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
        Answer::Exact(U::countdown(count(t).get().into()))
    }

    fn by_level<M: Memory>(_t: &Target<'_, M>) -> Answer<ByLevel> {
        Answer::Cannot
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{}", count(t).get())
    }

    fn check_state<M: Memory>(t: &Target<'_, M>, truth: &Truth, _seen: &dyn Evidence) -> Result<(), &'static str> {
        ensure(u64::from(count(t).get()) == U::of(truth), U::NAME)
    }
}
