//! `zero-one-two-many`: whether no, one, two or more regions map the folio (SCHEMES.md, `zero-one-two-many`; Wilcox, Dec 2021).
//!
//! Two bits. *Many* stays: from there it does not follow how many are left, and only a [repair](Accounting::repair) by an rmap walk leads
//! back. As for `vmas`, the caller looks for what else the region maps.

use core::fmt;

use super::{
    Accounting, Answer, Batch, ByLevel, Countdown, Delta, Evidence, Needs, Neighbours, Refused, Share, Sides, Target,
    Truth, answers_agree, ensure,
};
use crate::memory::Memory;
use crate::sync::Count32;

const MANY: u32 = ZeroOneTwoMany::MANY;

/// V up to two, and *many*: two bits.
#[derive(Clone, Copy, Debug)]
pub struct ZeroOneTwoMany;

fn state<'a, M: Memory>(t: &Target<'a, M>) -> Count32<'a> {
    t.small.unwrap_or_else(|| Count32::low(&t.state[0]))
}

/// One region more.
fn enter<M: Memory>(t: &Target<'_, M>) {
    if state(t).get() != MANY {
        state(t).update(|state| (state + 1).min(MANY));
    }
}

/// One region less.
fn leave<M: Memory>(t: &Target<'_, M>) {
    if state(t).get() != MANY {
        state(t).update(|state| if state == MANY { MANY } else { state.saturating_sub(1) });
    }
}

impl ZeroOneTwoMany {
    /// Three regions or more, now or since the last repair.
    pub const MANY: u32 = 3;

    /// The state: for reports and tests.
    #[must_use]
    pub fn state<M: Memory>(t: &Target<'_, M>) -> u32 {
        state(t).get()
    }
}

impl Accounting for ZeroOneTwoMany {
    const NAME: &'static str = "zero-one-two-many";
    const NEEDS: Needs = Needs { tuple: false, region: true };
    const STATE_WORDS: usize = 1;

    fn add<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        if beside.region == 0 || t.small.is_some() {
            enter(t);
        }
        // No statistics: a folio that is *many* may be freed with nobody to take its pages off them.
        Ok(Delta::default())
    }

    fn sub<M: Memory>(t: &Target<'_, M>, _b: &Batch, beside: Neighbours) -> Delta {
        if beside.region == 0 || t.small.is_some() {
            leave(t);
        }
        Delta::default()
    }

    fn split<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }

    fn collapse<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }

    fn moved<M: Memory>(
        t: &Target<'_, M>,
        _from: &Batch,
        beside_from: Neighbours,
        _to: &Batch,
        beside_to: Neighbours,
    ) -> Delta {
        match (beside_from.region == 0, beside_to.region == 0) {
            // The first leaves there, and others stay here: for now two regions.
            (false, true) => enter(t),
            (true, false) => leave(t),
            _ => {}
        }
        Delta::default()
    }

    fn region_cut<M: Memory>(t: &Target<'_, M>, _sides: Sides) {
        enter(t);
    }

    fn region_merge<M: Memory>(t: &Target<'_, M>, _sides: Sides) {
        leave(t);
    }

    fn repair<M: Memory>(t: &Target<'_, M>, regions: u64) {
        state(t).update(|_| regions.min(u64::from(MANY)) as u32);
    }

    fn said_mapped(_pages: u64) -> Answer<u64> {
        Answer::Cannot
    }

    fn said_huge(_pages: u64) -> Answer<u64> {
        Answer::Cannot
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match state(t).get() {
            MANY => Answer::Errs(true),
            regions => Answer::Exact(regions > 0),
        }
    }

    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match state(t).get() {
            MANY => Answer::Cannot,
            // One region may hold 512 leaves; of a small folio each holds one.
            1 if t.small.is_none() => Answer::Cannot,
            regions => Answer::Exact(regions == 1),
        }
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        Answer::Errs(state(t).get() > 1)
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        // References count leaves, the state does not (SCHEMES.md, references); small folios can be compared.
        match t.small {
            Some(_) => Answer::Errs(state(t).get() == 1 && refs == 1),
            None => Answer::Cannot,
        }
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        match (t.small, state(t).get()) {
            (Some(_), regions) if regions != MANY => Answer::Exact(u64::from(regions)),
            _ => Answer::Cannot,
        }
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, _owner: u32) -> Answer<bool> {
        Self::page_count(t, page).map(|leaves| leaves == 1)
    }

    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share> {
        Self::page_count(t, page).map(Share::one_of)
    }

    fn mapped_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Cannot
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
        Self::page_count(t, 0)
    }

    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
        match state(t).get() {
            MANY => Answer::Cannot,
            leaves if t.small.is_some() => Answer::Exact(Countdown::Leaves(leaves.into())),
            regions => Answer::Exact(Countdown::Regions(regions.into())),
        }
    }

    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel> {
        Self::page_count(t, 0).map(|leaves| [leaves, 0, 0])
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(["zero", "one", "two", "many"][state(t).get() as usize])
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        let state = state(t).get();
        ensure(state <= MANY, "a state of two bits")?;
        // A region has one leaf of a small folio, but for those that are composed: each counts.
        let units = if t.small.is_some() { truth.leaves } else { truth.regions };
        ensure(state == MANY || u64::from(state) == units, "the state beside V")?;
        answers_agree::<Self, M>(t, truth, seen)
    }
}
