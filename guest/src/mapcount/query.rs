//! What a scheme is asked, and how sure it is (SCHEMES.md, questions).

use core::fmt;

use super::{Accounting, Evidence, Target, Truth};
use crate::addr::Order;
use crate::memory::Memory;

/// How a scheme answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// This is so.
    Exact(T),
    /// This may be wrong, to the side that the question names.
    Errs(T),
    /// This may be wrong to either side.
    About(T),
    /// Only a walk over the folio's mappings can tell.
    Walk,
    /// The state does not say.
    Cannot,
}

impl<T> Answer<T> {
    /// The answer, however sure.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Exact(value) | Self::Errs(value) | Self::About(value) => Some(value),
            Self::Walk | Self::Cannot => None,
        }
    }

    /// The same sureness about what `f` makes of the answer.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Exact(value) => Answer::Exact(f(value)),
            Self::Errs(value) => Answer::Errs(f(value)),
            Self::About(value) => Answer::About(f(value)),
            Self::Walk => Answer::Walk,
            Self::Cannot => Answer::Cannot,
        }
    }

    /// What `f` makes of two answers, as sure as the less sure of them. Two that err do so to one side.
    pub fn join<U, V>(self, other: Answer<U>, f: impl FnOnce(T, U) -> V) -> Answer<V> {
        use Answer::{About, Cannot, Errs, Exact, Walk};
        match (self, other) {
            (Exact(a), Exact(b)) => Exact(f(a, b)),
            (Walk, _) | (_, Walk) => Walk,
            (Cannot, _) | (_, Cannot) => Cannot,
            (About(a), About(b) | Errs(b) | Exact(b)) | (Errs(a) | Exact(a), About(b)) => About(f(a, b)),
            (Errs(a), Errs(b) | Exact(b)) | (Exact(a), Errs(b)) => Errs(f(a, b)),
        }
    }
}

impl Answer<bool> {
    /// Whether one of two things is so; either may be said to be so by mistake. What is surely so needs no other answer.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Exact(true), _) | (_, Self::Exact(true)) => Self::Exact(true),
            (Self::Errs(true), _) | (_, Self::Errs(true)) => Self::Errs(true),
            _ => self.join(other, |a, b| a || b),
        }
    }
}

/// After how much a walk from the folio to its leaves has seen all, unless mappings come and go meanwhile: a hint, never a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Countdown {
    /// So many leaves.
    Leaves(u64),
    /// So many (region, table) pairs with leaves.
    Tables(u64),
    /// So many regions with leaves.
    Regions(u64),
}

/// A part of a page: what one leaf over it is charged in Pss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// So many...
    pub pages: u64,
    /// ...of so many.
    pub of: u64,
}

impl Share {
    /// Pages in units of 2^-[`SHIFT`](Self::SHIFT), rounded down.
    #[must_use]
    pub const fn fixed(self) -> u64 {
        (self.pages << Self::SHIFT) / self.of
    }

    /// Bits behind the point of [`fixed`](Self::fixed): twice those of Linux's Pss, so that what a scheme errs by is not what rounding does.
    pub const SHIFT: u32 = 24;

    /// The share of one of `mappings` leaves over a page.
    #[must_use]
    pub const fn one_of(mappings: u64) -> Self {
        Self { pages: 1, of: if mappings == 0 { 1 } else { mappings } }
    }
}

/// Leaves of order 0, 9 and 18.
pub type ByLevel = [u64; 3];

/// Pages that leaves map.
pub(super) fn pages_of([pages, huge, gigantic]: ByLevel) -> u64 {
    pages + huge * Order::HUGE.pages() + gigantic * Order::GIGANTIC.pages()
}

/// What a scheme says about a folio as a whole; see the methods of [`Accounting`] of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the answer of the method of its name")]
pub struct FolioAnswers {
    pub mapped: Answer<bool>,
    pub one_leaf: Answer<bool>,
    pub maybe_shared: Answer<bool>,
    pub may_reuse: Answer<bool>,
    pub mapped_pages: Answer<u64>,
    pub huge_pages: Answer<u64>,
    pub partially_mapped: Answer<bool>,
    pub leaves: Answer<u64>,
    pub early_stop: Answer<Countdown>,
    pub by_level: Answer<ByLevel>,
}

/// What a scheme says about one page of a folio; see the methods of [`Accounting`] of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the answer of the method of its name")]
pub struct PageAnswers {
    pub page_count: Answer<u64>,
    pub exclusive: Answer<bool>,
    pub charge: Answer<Share>,
}

/// The answers of one scheme about one folio, whichever scheme it is: for reports, where many are asked alike.
pub trait Answers {
    /// The scheme.
    fn scheme(&self) -> &'static str;
    /// About the folio, as `owner` would ask; `refs` are its references.
    fn folio(&self, owner: u32, refs: u64) -> FolioAnswers;
    /// Its counters as text.
    ///
    /// # Errors
    /// Those of `out`.
    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result;
    /// About its page `page`.
    fn page(&self, page: u64, owner: u32) -> PageAnswers;
}

/// The answers of scheme `A`.
pub(super) struct Asked<'t, 'a, M, A> {
    target: &'t Target<'a, M>,
    scheme: core::marker::PhantomData<A>,
}

impl<'t, 'a, M, A> Asked<'t, 'a, M, A> {
    pub(super) fn new(target: &'t Target<'a, M>) -> Self {
        Self { target, scheme: core::marker::PhantomData }
    }
}

impl<M: Memory, A: Accounting> Answers for Asked<'_, '_, M, A> {
    fn scheme(&self) -> &'static str {
        A::NAME
    }

    fn folio(&self, owner: u32, refs: u64) -> FolioAnswers {
        let t = self.target;
        FolioAnswers {
            mapped: A::mapped(t),
            one_leaf: A::one_leaf(t),
            maybe_shared: A::maybe_shared(t, owner),
            may_reuse: A::may_reuse(t, owner, refs),
            mapped_pages: A::mapped_pages(t),
            huge_pages: A::huge_pages(t),
            partially_mapped: A::partially_mapped(t),
            leaves: A::leaves(t),
            early_stop: A::early_stop(t),
            by_level: A::by_level(t),
        }
    }

    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        A::show(self.target, out)
    }

    fn page(&self, page: u64, owner: u32) -> PageAnswers {
        let t = self.target;
        PageAnswers {
            page_count: A::page_count(t, page),
            exclusive: A::exclusive(t, page, owner),
            charge: A::charge(t, page),
        }
    }
}

pub(super) fn ensure(good: bool, what: &'static str) -> Result<(), &'static str> {
    if good { Ok(()) } else { Err(what) }
}

/// The part of [`Accounting::check`] that follows from the answers alone: an exact one is the truth, one that errs does so to its side.
pub(super) fn answers_agree<A: Accounting, M: Memory>(
    t: &Target<'_, M>,
    truth: &Truth,
    seen: &dyn Evidence,
) -> Result<(), &'static str> {
    let mapped = truth.leaves > 0;
    match A::mapped(t) {
        Answer::Exact(said) => ensure(said == mapped, "mapped")?,
        Answer::Errs(said) => ensure(said || !mapped, "mapped, to the wrong side")?,
        _ => {}
    }
    if let Answer::Exact(said) = A::one_leaf(t) {
        ensure(said == (truth.leaves == 1), "exactly one leaf")?;
    }
    match A::maybe_shared(t, truth.owner) {
        Answer::Exact(said) => ensure(said == (truth.owners > 1), "shared")?,
        Answer::Errs(said) => ensure(said || truth.owners <= 1, "exclusive, though two owners map it")?,
        _ => {}
    }
    // As many references as leaves: nobody else holds it.
    if let Some(true) = A::may_reuse(t, truth.owner, truth.leaves).value() {
        ensure(truth.owners <= 1, "reused, though two owners map it")?;
    }
    if let Answer::Exact(said) = A::leaves(t) {
        ensure(said == truth.leaves, "number of leaves")?;
    }
    if let Answer::Exact(said) = A::early_stop(t) {
        let expected = match said {
            Countdown::Leaves(_) => Countdown::Leaves(truth.leaves),
            Countdown::Tables(_) => Countdown::Tables(truth.tuples),
            Countdown::Regions(_) => Countdown::Regions(truth.regions),
        };
        ensure(said == expected, "where a walk may stop")?;
    }
    if let Answer::Exact(said) = A::by_level(t) {
        ensure(said == truth.levels, "leaves by level")?;
    }
    if let Answer::Exact(said) = A::total(t) {
        ensure(said == truth.total, "pages of all leaves")?;
    }
    match A::mapped_pages(t) {
        Answer::Exact(said) => ensure(said == truth.distinct, "mapped pages")?,
        Answer::Errs(said) => ensure(said >= truth.distinct, "mapped pages, to the wrong side")?,
        _ => {}
    }
    let huge = if t.order == Order::HUGE && truth.entire > 0 { t.pages() } else { 0 };
    if let Some(said) = A::huge_pages(t).value() {
        ensure(said == huge, "pages mapped by huge leaves")?;
    }
    let partial = 0 < truth.distinct && truth.distinct < t.pages();
    match A::partially_mapped(t) {
        Answer::Exact(said) => ensure(said == partial, "partly mapped")?,
        Answer::Errs(said) => ensure(!said || partial, "partly mapped, to the wrong side")?,
        _ => {}
    }
    for page in 0..t.pages() {
        let count = seen.cover(page);
        let (said, charge, exclusive) =
            (A::page_count(t, page), A::charge(t, page), A::exclusive(t, page, truth.owner));
        if let Answer::Exact(said) = said {
            ensure(said == count, "leaves over a page")?;
        }
        if let (Answer::Exact(said), true) = (charge, count > 0) {
            ensure(said == Share::one_of(count), "what a leaf over a page is charged")?;
        }
        if let Answer::Exact(said) = exclusive {
            ensure(said == (count == 1), "a page of exactly one leaf")?;
        }
        if !matches!(
            (said, charge, exclusive),
            (Answer::Exact(_), ..) | (_, Answer::Exact(_), _) | (.., Answer::Exact(_))
        ) {
            // The same for all pages.
            break;
        }
    }
    Ok(())
}
