//! Where the schemes differ: folios of order 1 and above. One of order 0 has leaves over one page, each of which is a leaf, a tuple and a region's at
//! once, so all schemes that count keep the same for it: one number.

use core::fmt;

use super::{
    Accounting, Answer, Batch, ByLevel, Countdown, Delta, Evidence, Needs, Neighbours, Refused, Share, Sides, Target,
    Truth, answers_agree, pages_of,
};
use crate::memory::Memory;
use crate::sync::Count32;

/// A scheme's way with folios of order 1 and above; what the functions are for is said at [`Accounting`].
#[expect(missing_docs, reason = "each item is the one of its name in `Accounting`")]
pub trait Large: Copy + fmt::Debug + Send + Sync + 'static {
    const NAME: &'static str;
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize;
    const PAGE_COUNTS: usize = 0;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused>;
    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        Self::add(t, b, beside)
    }
    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta;
    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta;
    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta;
    fn moved<M: Memory>(
        _t: &Target<'_, M>,
        _from: &Batch,
        _beside_from: Neighbours,
        _to: &Batch,
        _beside_to: Neighbours,
    ) -> Delta {
        Delta::default()
    }
    fn tuple_cut<M: Memory>(_t: &Target<'_, M>) {}
    fn tuple_merge<M: Memory>(_t: &Target<'_, M>) {}
    fn region_cut<M: Memory>(_t: &Target<'_, M>, _sides: Sides) {}
    fn region_merge<M: Memory>(_t: &Target<'_, M>, _sides: Sides) {}
    fn relearn<M: Memory>(_t: &Target<'_, M>, _owner: u32, _leaves: impl FnOnce() -> u64) {}

    fn said_mapped(pages: u64) -> Answer<u64> {
        Answer::Errs(pages)
    }
    fn said_huge(pages: u64) -> Answer<u64> {
        Answer::Exact(pages)
    }
    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Self::leaves(t).map(|leaves| leaves == 1)
    }
    fn maybe_shared<M: Memory>(t: &Target<'_, M>, owner: u32) -> Answer<bool>;
    fn may_reuse<M: Memory>(t: &Target<'_, M>, owner: u32, refs: u64) -> Answer<bool>;
    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64>;
    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, owner: u32) -> Answer<bool>;
    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share>;
    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
        Self::leaves(t).map(Countdown::Leaves)
    }
    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel>;
    fn total<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Self::by_level(t).map(pages_of)
    }

    /// The counters as text.
    ///
    /// # Errors
    /// Those of `out`.
    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result;

    /// What must hold of the state.
    ///
    /// # Errors
    /// The name of the first thing that is wrong.
    fn check_state<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str>;
}

#[inline(always)]
fn small_add(t: &Target<'_, impl Memory>, count: Count32<'_>, b: &Batch) -> Result<bool, Refused> {
    t.admit(u64::from(count.get()), b.pages)?;
    Ok(count.add(b.pages) == 0)
}

impl<S: Large> Accounting for S {
    const NAME: &'static str = <S as Large>::NAME;
    const NEEDS: Needs = <S as Large>::NEEDS;
    const STATE_WORDS: usize = <S as Large>::STATE_WORDS;
    const PAGE_COUNTS: usize = <S as Large>::PAGE_COUNTS;

    #[inline(always)]
    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        match t.small {
            Some(count) => Ok(Delta { mapped: i64::from(small_add(t, count, b)?), ..Delta::default() }),
            None => <S as Large>::add(t, b, beside),
        }
    }

    #[inline(always)]
    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        match t.small {
            // The page is mapped already.
            Some(count) => small_add(t, count, b).map(|_| Delta::default()),
            None => <S as Large>::dup(t, b, beside),
        }
    }

    #[inline(always)]
    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        match t.small {
            Some(count) => Delta { mapped: -i64::from(count.sub(b.pages) == b.pages), ..Delta::default() },
            None => <S as Large>::sub(t, b, beside),
        }
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        <S as Large>::split(t, b, beside)
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        <S as Large>::collapse(t, b, beside)
    }

    fn moved<M: Memory>(
        t: &Target<'_, M>,
        from: &Batch,
        beside_from: Neighbours,
        to: &Batch,
        beside_to: Neighbours,
    ) -> Delta {
        match t.small {
            Some(_) => Delta::default(),
            None => <S as Large>::moved(t, from, beside_from, to, beside_to),
        }
    }

    // A cut or a seam inside a folio: never of order 0.
    fn tuple_cut<M: Memory>(t: &Target<'_, M>) {
        <S as Large>::tuple_cut(t);
    }
    fn tuple_merge<M: Memory>(t: &Target<'_, M>) {
        <S as Large>::tuple_merge(t);
    }
    fn region_cut<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        <S as Large>::region_cut(t, sides);
    }
    fn region_merge<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        <S as Large>::region_merge(t, sides);
    }

    #[inline(always)]
    fn relearn<M: Memory>(t: &Target<'_, M>, owner: u32, leaves: impl FnOnce() -> u64) {
        if t.small.is_none() {
            <S as Large>::relearn(t, owner, leaves);
        }
    }

    fn said_mapped(pages: u64) -> Answer<u64> {
        <S as Large>::said_mapped(pages)
    }

    fn said_huge(pages: u64) -> Answer<u64> {
        <S as Large>::said_huge(pages)
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Exact(count.get() > 0),
            None => <S as Large>::mapped(t),
        }
    }

    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1),
            None => <S as Large>::one_leaf(t),
        }
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, owner: u32) -> Answer<bool> {
        match t.small {
            // One owner may map it twice.
            Some(count) => Answer::Errs(count.get() > 1),
            None => <S as Large>::maybe_shared(t, owner),
        }
    }

    #[inline(always)]
    fn may_reuse<M: Memory>(t: &Target<'_, M>, owner: u32, refs: u64) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1 && refs == 1),
            None => <S as Large>::may_reuse(t, owner, refs),
        }
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(u64::from(count.get())),
            None => <S as Large>::page_count(t, page),
        }
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, owner: u32) -> Answer<bool> {
        match t.small {
            Some(count) => Answer::Exact(count.get() == 1),
            None => <S as Large>::exclusive(t, page, owner),
        }
    }

    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share> {
        match t.small {
            Some(count) => Answer::Exact(Share::one_of(count.get().into())),
            None => <S as Large>::charge(t, page),
        }
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(count.get().min(1).into()),
            None => <S as Large>::mapped_pages(t),
        }
    }

    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        match t.small {
            Some(_) => Answer::Exact(0),
            None => <S as Large>::huge_pages(t),
        }
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        match t.small {
            Some(_) => Answer::Exact(false),
            None => <S as Large>::partially_mapped(t),
        }
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(count.get().into()),
            None => <S as Large>::leaves(t),
        }
    }

    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
        match t.small {
            Some(count) => Answer::Exact(Countdown::Leaves(count.get().into())),
            None => <S as Large>::early_stop(t),
        }
    }

    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel> {
        match t.small {
            Some(count) => Answer::Exact([count.get().into(), 0, 0]),
            None => <S as Large>::by_level(t),
        }
    }

    fn total<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        match t.small {
            Some(count) => Answer::Exact(count.get().into()),
            None => <S as Large>::total(t),
        }
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        match t.small {
            Some(count) => write!(out, "{}", count.get()),
            None => <S as Large>::show(t, out),
        }
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        if t.small.is_none() {
            <S as Large>::check_state(t, truth, seen)?;
        }
        answers_agree::<S, M>(t, truth, seen)
    }
}
