//! Two schemes at once: the first answers, the second observes. Nest them to watch any number in one run.

use core::fmt;

use super::forward::answers_of;
use super::{
    Accounting, Answer, Answers, Batch, ByLevel, Countdown, Delta, Evidence, Needs, Neighbours, Refused, Share, Sides,
    Target, Truth,
};
use crate::memory::Memory;
use crate::sync::Count32;

/// `A` with `B` observing. For checking only: timing runs use one scheme.
#[derive(Clone, Copy, Debug)]
pub struct Observe<A, B>(core::marker::PhantomData<(A, B)>);

impl<A: Accounting, B: Accounting> Observe<A, B> {
    /// The folio as `A` sees it.
    pub fn first<'a, M: Memory>(t: &Target<'a, M>) -> Target<'a, M> {
        let words = if t.small.is_some() { A::SMALL_EXTRA } else { A::STATE_WORDS };
        Target { state: &t.state[..words], ..*t }
    }

    /// The folio as `B` sees it.
    pub fn second<'a, M: Memory>(t: &Target<'a, M>) -> Target<'a, M> {
        let nth = t.nth + A::PAGE_COUNTS;
        if t.small.is_some() {
            let (own, rest) = t.state[A::SMALL_EXTRA..].split_at(1);
            Target { small: Some(Count32::low(&own[0])), state: rest, nth, ..*t }
        } else {
            Target { state: &t.state[A::STATE_WORDS..], nth, ..*t }
        }
    }
}

impl<A: Accounting, B: Accounting> Accounting for Observe<A, B> {
    const NAME: &'static str = A::NAME;
    const NEEDS: Needs = A::NEEDS.or(B::NEEDS);
    const STATE_WORDS: usize = A::STATE_WORDS + B::STATE_WORDS;
    const SMALL_EXTRA: usize = A::SMALL_EXTRA + 1 + B::SMALL_EXTRA;
    const PAGE_COUNTS: usize = A::PAGE_COUNTS + B::PAGE_COUNTS;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        let delta = A::add(&Self::first(t), b, beside)?;
        if let Err(refused) = B::add(&Self::second(t), b, beside) {
            A::sub(&Self::first(t), b, beside);
            return Err(refused);
        }
        Ok(delta)
    }
    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        let delta = A::dup(&Self::first(t), b, beside)?;
        if let Err(refused) = B::dup(&Self::second(t), b, beside) {
            A::sub(&Self::first(t), b, beside);
            return Err(refused);
        }
        Ok(delta)
    }
    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        B::sub(&Self::second(t), b, beside);
        A::sub(&Self::first(t), b, beside)
    }
    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        B::split(&Self::second(t), b, beside);
        A::split(&Self::first(t), b, beside)
    }
    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        B::collapse(&Self::second(t), b, beside);
        A::collapse(&Self::first(t), b, beside)
    }
    fn moved<M: Memory>(
        t: &Target<'_, M>,
        from: &Batch,
        beside_from: Neighbours,
        to: &Batch,
        beside_to: Neighbours,
    ) -> Delta {
        B::moved(&Self::second(t), from, beside_from, to, beside_to);
        A::moved(&Self::first(t), from, beside_from, to, beside_to)
    }
    fn tuple_cut<M: Memory>(t: &Target<'_, M>) {
        A::tuple_cut(&Self::first(t));
        B::tuple_cut(&Self::second(t));
    }
    fn tuple_merge<M: Memory>(t: &Target<'_, M>) {
        A::tuple_merge(&Self::first(t));
        B::tuple_merge(&Self::second(t));
    }
    fn repair<M: Memory>(t: &Target<'_, M>, regions: u64) {
        A::repair(&Self::first(t), regions);
        B::repair(&Self::second(t), regions);
    }
    fn region_cut<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        A::region_cut(&Self::first(t), sides);
        B::region_cut(&Self::second(t), sides);
    }
    fn region_merge<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        A::region_merge(&Self::first(t), sides);
        B::region_merge(&Self::second(t), sides);
    }
    fn relearn<M: Memory>(t: &Target<'_, M>, owner: u32, leaves: impl FnOnce() -> u64) {
        // Only the first that wants to know is told.
        let mut leaves = Some(leaves);
        A::relearn(&Self::first(t), owner, || leaves.take().map_or(0, |count| count()));
        if let Some(count) = leaves {
            B::relearn(&Self::second(t), owner, count);
        }
    }
    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        A::show(&Self::first(t), out)
    }

    answers_of!(A, first);

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        A::check(&Self::first(t), truth, seen)?;
        B::check(&Self::second(t), truth, seen)
    }

    fn each<M: Memory>(t: &Target<'_, M>, visit: &mut dyn FnMut(&dyn Answers)) {
        A::each(&Self::first(t), visit);
        B::each(&Self::second(t), visit);
    }
}
