//! A scheme kept once for each class of leaves: those of processes, of VMs, and composed for tenants' own tenants (SCHEMES.md, nested levels, rule R3).

use core::fmt;

use super::forward::answers_of;
use super::{
    Accounting, Answer, Answers, Batch, ByLevel, Class, Countdown, Delta, Evidence, Needs, Neighbours, Refused, Share,
    Sides, Target, Truth,
};
use crate::folio::MOST_WORDS;
use crate::memory::Memory;
use crate::sync::{AtomicU64, Count32};

/// Scheme `A` for each [`Class`]: a manager of VMs counts with it. What it is asked without a class, it answers for processes, so that everything
/// which only knows of address spaces stays right; [`class`](Self::class) gives the others.
///
/// The counts of processes stand where `A` alone has them. Those of the other classes stand in extensions, which a folio has from its first leaf of such a class on.
#[derive(Clone, Copy, Debug)]
pub struct Classes<A>(core::marker::PhantomData<A>);

/// Classes.
const NR: usize = Class::ALL.len();

impl<A: Accounting> Classes<A> {
    /// What has no state counts nothing: folios need not grow for it.
    const GROWS: bool = A::STATE_WORDS > 0;

    /// How many extensions a folio must have before leaves of `class` are counted: for all of a small one's one will do.
    pub(crate) const fn extensions(is_small: bool, class: Class) -> usize {
        match class {
            Class::Vm | Class::Nested if !Self::GROWS => 0,
            Class::Nested if !is_small => 2,
            Class::Vm | Class::Nested => 1,
            Class::Process => 0,
        }
    }

    /// The folio as `A` sees it in one class.
    pub fn class<'a, M: Memory>(t: &Target<'a, M>, class: Class) -> Target<'a, M> {
        Self::grown(t, class).unwrap_or_else(|| Self::within(t, t.frames.never_grown(t.small.is_some()), class))
    }

    /// The same, unless the folio never had a leaf of the class.
    fn grown<'a, M: Memory>(t: &Target<'a, M>, class: Class) -> Option<Target<'a, M>> {
        if class == Class::Process || !Self::GROWS {
            return Some(Target { nth: Self::nth(t, class), ..*t });
        }
        Some(Self::within(t, Self::words(t, class)?, class))
    }

    /// The words of its extension for a class of VMs.
    #[inline(always)]
    fn words<'a, M: Memory>(t: &Target<'a, M>, class: Class) -> Option<&'a [AtomicU64]> {
        match t.small {
            Some(_) => t.frames.grown_small(t.home),
            None => t.frames.grown_large(t.home, class == Class::Nested),
        }
    }

    /// The same in the words of its extension.
    #[inline(always)]
    fn within<'a, M: Memory>(t: &Target<'a, M>, words: &'a [AtomicU64], class: Class) -> Target<'a, M> {
        let nth = Self::nth(t, class);
        if t.small.is_none() {
            return Target { state: &words[..A::STATE_WORDS], nth, ..*t };
        }
        let (count, extra) = match class {
            Class::Nested => (Count32::high(&words[0]), 1 + A::SMALL_EXTRA),
            _ => (Count32::low(&words[0]), 1),
        };
        Target { small: Some(count), state: &words[extra..][..A::SMALL_EXTRA], nth, ..*t }
    }

    const fn nth<M>(t: &Target<'_, M>, class: Class) -> usize {
        t.nth + class as usize * A::PAGE_COUNTS
    }

    /// A scheme that cannot tell errs to yes, as for any question of this kind; but not of a folio that never grew.
    fn may_be_mapped<M: Memory>(t: &Target<'_, M>, class: Class) -> bool {
        Self::grown(t, class).is_some_and(|t| A::mapped(&t).value() != Some(false))
    }

    /// As the leaves of `b` are counted: whoever entered the first of their class has made the folio grow.
    #[inline(always)]
    fn of<'a, M: Memory>(t: &Target<'a, M>, b: &Batch) -> Target<'a, M> {
        if b.class == Class::Process || !Self::GROWS {
            return Target { nth: Self::nth(t, b.class), ..*t };
        }
        Self::within(t, Self::words(t, b.class).expect("a folio grows before such leaves are counted"), b.class)
    }

    #[inline(always)]
    fn process<'a, M: Memory>(t: &Target<'a, M>) -> Target<'a, M> {
        Target { ..*t }
    }
}

impl<A: Accounting> Accounting for Classes<A> {
    const NAME: &'static str = A::NAME;
    const NEEDS: Needs = A::NEEDS;
    const STATE_WORDS: usize = A::STATE_WORDS;
    const SMALL_EXTRA: usize = A::SMALL_EXTRA;
    const PAGE_COUNTS: usize = NR * A::PAGE_COUNTS;
    const EXTENSION_WORDS: [usize; 2] = {
        // The first is the folio's home as it was.
        let words = [1 + 1 + (NR - 1) * A::SMALL_EXTRA, 1 + A::STATE_WORDS];
        assert!(words[0] <= MOST_WORDS[0] && words[1] <= MOST_WORDS[1]);
        if Self::GROWS { words } else { [0; 2] }
    };

    #[inline]
    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        A::add(&Self::of(t, b), b, beside)
    }
    #[inline]
    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        A::dup(&Self::of(t, b), b, beside)
    }
    #[inline]
    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        A::sub(&Self::of(t, b), b, beside)
    }
    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        A::split(&Self::of(t, b), b, beside)
    }
    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        A::collapse(&Self::of(t, b), b, beside)
    }
    fn moved<M: Memory>(
        t: &Target<'_, M>,
        from: &Batch,
        beside_from: Neighbours,
        to: &Batch,
        beside_to: Neighbours,
    ) -> Delta {
        A::moved(&Self::of(t, from), from, beside_from, to, beside_to)
    }
    // Memslots are never cut nor joined: what leaves one is unmapped.
    fn tuple_cut<M: Memory>(t: &Target<'_, M>) {
        A::tuple_cut(&Self::process(t));
    }
    fn tuple_merge<M: Memory>(t: &Target<'_, M>) {
        A::tuple_merge(&Self::process(t));
    }
    fn region_cut<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        A::region_cut(&Self::process(t), sides);
    }
    fn region_merge<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        A::region_merge(&Self::process(t), sides);
    }
    fn repair<M: Memory>(t: &Target<'_, M>, regions: u64) {
        A::repair(&Self::process(t), regions);
    }
    fn relearn<M: Memory>(t: &Target<'_, M>, owner: u32, leaves: impl FnOnce() -> u64) {
        A::relearn(&Self::process(t), owner, leaves);
    }
    fn mapped_at_stage2<M: Memory>(t: &Target<'_, M>) -> bool {
        [Class::Vm, Class::Nested].into_iter().any(|class| Self::may_be_mapped(t, class))
    }

    fn is_composed<M: Memory>(t: &Target<'_, M>) -> bool {
        Self::may_be_mapped(t, Class::Nested)
    }

    answers_of!(A, process);

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        for class in Class::ALL {
            write!(out, "{}{class}: ", if class == Class::Process { "" } else { "; " })?;
            A::show(&Self::class(t, class), out)?;
        }
        Ok(())
    }

    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        A::check(&Self::process(t), truth, seen)
    }

    fn each<M: Memory>(t: &Target<'_, M>, visit: &mut dyn FnMut(&dyn Answers)) {
        A::each(&Self::process(t), visit);
    }
}
