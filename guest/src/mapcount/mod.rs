//! The count layer: who maps a folio, and how much of that a scheme still knows.
//!
//! [`Accounting`] is the door through which everything that maps, unmaps, splits or cuts must go; one scheme per file
//! stands behind it, chosen at compile time. The caller says what happened to which leaves as a [`Batch`]: leaves of one folio, consecutive
//! in input and output, in one table page. What a scheme must know about the leaves beside the batch it asks for in [`Accounting::NEEDS`];
//! a scheme that asks for nothing costs nothing.
//!
//! `SCHEMES.md` beside this crate is the law of every count; doc comments cite its sections by name.

mod mm_owner;
mod none;
mod observe;
mod oracle;
mod per_page;
mod scheme;
mod slots;
mod total;
mod tuples;
mod vmas;
mod zero_one_two_many;

pub use mm_owner::{MmOwner, MmOwnerCounters};
pub use none::None;
pub use observe::Observe;
pub use oracle::{Evidence, Oracle, Truth};
pub use per_page::{PerPage, PerPageCounters};
pub use scheme::{Everything, Scheme, UnderScheme, UnknownScheme};
pub use total::{Total, TotalCounters};
pub use tuples::Tuples;
pub use vmas::Vmas;
pub use zero_one_two_many::ZeroOneTwoMany;

use core::fmt;
use core::sync::atomic::AtomicU64;

use crate::addr::{Order, Pfn};
use crate::folio::{Folio, Frames, HEADER_WORDS, SMALL_HEADER_WORDS};
use crate::memory::Memory;
use crate::sync::Count32;

/// The default limit of a folio's counts: far enough below 2^31 that no batch in flight can reach it (SCHEMES.md, overflow).
pub const COUNT_LIMIT: u64 = 1 << 30;

/// At which level a leaf reaches the folio, relative to the manager that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A stage-1 leaf of a tenant process.
    Process,
    /// A stage-2 leaf of a tenant VM.
    Vm,
    /// A leaf composed for a tenant's own tenant.
    Nested,
}

/// Leaves of one folio, consecutive in input and in the folio, in one table page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The level they stand at.
    pub class: Class,
    /// The first page of the folio that they map.
    pub first: u32,
    /// Base pages that they map.
    pub pages: u32,
    /// Order of each leaf: 0, 9 or 18.
    pub leaf: Order,
    /// The vma or memslot they belong to.
    pub region: u32,
    /// The table page they stand in.
    pub table: Pfn,
    /// The trust domain that owns the tables.
    pub owner: u32,
}

impl Batch {
    /// Leaves in the batch.
    #[must_use]
    pub fn leaves(&self) -> u32 {
        self.pages >> self.leaf.get()
    }
}

/// What a scheme wants to know about the leaves of the folio beside the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// How many stand in the same (region, table).
    pub tuple: bool,
    /// How much of the folio is mapped in the same region, over all tables.
    pub region: bool,
}

impl Needs {
    /// Nothing.
    pub const NOTHING: Self = Self { tuple: false, region: false };

    /// What either wants.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self { tuple: self.tuple || other.tuple, region: self.region || other.region }
    }
}

/// What the caller found, if the scheme [needs](Needs) it: leaves of the folio beside the batch, before an add and after a sub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Neighbours {
    /// In the same (region, table).
    pub tuple: u32,
    /// Pages that leaves in the same region map, whatever their tables.
    pub region: u32,
}

/// What an operation changed, as far as the scheme can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Delta {
    /// Pages by which the "mapped" statistic (AnonPages, Mapped) changes.
    pub mapped: i64,
    /// Pages by which the "mapped by huge leaves" statistic (AnonHugePages) changes.
    pub huge: i64,
    /// An anonymous folio looks partly mapped now: a candidate for the deferred-split queue.
    pub maybe_partial: bool,
}

/// Why a mapping was refused. Splits and removals are never refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A count would pass its limit.
    Overflow,
    /// The scheme has no representation for leaves of this order on a folio of this order.
    Shape,
    /// The scheme's state has no room for leaves of this class.
    Class,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overflow => "too many mappings of one folio",
            Self::Shape => "the scheme cannot count such leaves on such a folio",
            Self::Class => "the scheme keeps no counts of this class",
        })
    }
}

/// How a scheme answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// This is so.
    Exact(T),
    /// This may be wrong, to the side that the scheme's documentation names.
    Errs(T),
    /// Only a walk over the folio's mappings can tell.
    Walk,
    /// The state does not say.
    Cannot,
}

impl<T> Answer<T> {
    /// The answer, however sure.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Exact(value) | Self::Errs(value) => Some(value),
            Self::Walk | Self::Cannot => Option::None,
        }
    }
}

/// A folio as a scheme sees it: its state and nothing of the rest.
#[derive(Debug)]
pub struct Target<'a, M> {
    frames: &'a Frames<M>,
    head: Pfn,
    order: Order,
    anon: bool,
    /// Order 0: the scheme's one count.
    small: Option<Count32<'a>>,
    /// Order 1 and above: the scheme's state. Order 0: counts of the observers behind the first.
    state: &'a [AtomicU64],
    /// Which of a frame's per-page counts is the scheme's first.
    nth: usize,
    limit: u64,
}

impl<'a, M: Memory> Target<'a, M> {
    /// The counts of `folio`; mappings beyond `limit` are refused.
    pub fn new(frames: &'a Frames<M>, folio: Folio<'a>, limit: u64) -> Self {
        Self {
            frames,
            head: folio.head(),
            order: folio.order(),
            anon: folio.is_anon(),
            small: folio.small_count(),
            state: folio.state(),
            nth: 0,
            limit,
        }
    }

    /// Pages of the folio.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.order.pages()
    }

    /// The scheme's per-page count of page `page`.
    fn page(&self, page: u64) -> Count32<'a> {
        let (word, high) = self.frames.page_count(self.head.add(page), self.nth);
        if high { Count32::high(word) } else { Count32::low(word) }
    }

    /// Refuses when `now + more` passes the limit.
    fn admit(&self, now: u64, more: u32) -> Result<(), Refused> {
        if now + u64::from(more) > self.limit { Err(Refused::Overflow) } else { Ok(()) }
    }
}

/// A mapcount scheme. All functions are static: the state lies in the folio's descriptor.
///
/// Count changes of one folio are serialised by the scheme itself, with as few locked operations as its state allows. The caller holds the lock
/// of the table page, has taken the references before `add` and drops them after `sub`.
pub trait Accounting: Copy + fmt::Debug + Send + Sync + 'static {
    /// The scheme's name on the command line.
    const NAME: &'static str;
    /// What the caller must find out for it.
    const NEEDS: Needs;
    /// Words of state of a folio of order 1 and above.
    const STATE_WORDS: usize;
    /// Further words in a small folio's descriptor, behind the one 32-bit count that every scheme has there.
    const SMALL_EXTRA: usize = 0;
    /// Whether "exclusive" is never wrong.
    const SOUND: bool = true;
    /// 32-bit counts it keeps for every frame: 0 for all schemes of constant size.
    const PAGE_COUNTS: usize = 0;

    /// Leaves are about to appear.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused>;

    /// Leaves are about to be duplicated by fork into the table, region and owner that `b` names.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        Self::add(t, b, beside)
    }

    /// Leaves are gone, and flushed.
    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta;

    /// The one leaf of `b` has become 512 leaves a level below, in a new table page. `beside`: what stays in the old (region, table).
    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta;

    /// 512 leaves in a table page of their own have become the one leaf of `b`. `beside`: what else stands in its (region, table).
    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta;

    /// Leaves are about to move by mremap, from the (region, table) of `from` to that of `to`: same folio, owner and pages. `beside_from` and `beside_to`
    /// are what else stands there. Never refused: nothing is mapped that was not.
    fn moved<M: Memory>(
        _t: &Target<'_, M>,
        _from: &Batch,
        _beside_from: Neighbours,
        _to: &Batch,
        _beside_to: Neighbours,
    ) -> Delta {
        Delta::default()
    }

    /// A region was cut in two inside the folio, and the table page at the cut holds leaves of it on both sides.
    fn tuple_cut<M: Memory>(_t: &Target<'_, M>) {}

    /// Two regions became one inside the folio, and the table page at the seam holds leaves of it on both sides.
    fn tuple_merge<M: Memory>(_t: &Target<'_, M>) {}

    /// A region was cut in two inside the folio, and both halves map some of it.
    fn region_cut<M: Memory>(_t: &Target<'_, M>) {}

    /// Two regions that both map some of the folio became one.
    fn region_merge<M: Memory>(_t: &Target<'_, M>) {}

    /// A walk found that `regions` regions map the folio, while nothing changed: for schemes that lose count.
    fn repair<M: Memory>(_t: &Target<'_, M>, _regions: u64) {}

    /// Q1: does any leaf map the folio?
    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    /// Q2: does exactly one leaf?
    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    /// Q3: may an owner other than `owner`, who maps it, map it too? Errs to yes.
    fn maybe_shared<M: Memory>(t: &Target<'_, M>, owner: u32) -> Answer<bool>;
    /// Q4: may a write fault of its only owner, who has lost the exclusive bit, reuse the folio? `refs` is its reference count. Errs to no.
    fn may_reuse<M: Memory>(t: &Target<'_, M>, owner: u32, refs: u64) -> Answer<bool>;
    /// Q5: how many leaves map page `page` (kpagecount)?
    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64>;
    /// Q12: how many pages of it are mapped (AnonPages, Mapped)? Errs to more.
    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    /// Q13: how many pages of it count as mapped by 2 MiB leaves (AnonHugePages, FilePmdMapped)?
    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    /// Q14: is it partly mapped? Errs to no.
    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    /// Q15: after how many leaves may an rmap walk stop?
    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;

    /// Compares the scheme's state and answers with what a recount found; what is wrong, by name.
    ///
    /// All of the state that follows from the leaves must be what the leaves say (SCHEMES.md, invariants). An exact answer must be the
    /// truth; one that errs must err to the side that the query names.
    ///
    /// # Errors
    /// The name of the first thing that is wrong.
    fn check<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        answers_agree::<Self, M>(t, truth, seen)
    }
}

fn ensure(good: bool, what: &'static str) -> Result<(), &'static str> {
    if good { Ok(()) } else { Err(what) }
}

// The sizes that SCHEMES.md states.
const _: () = {
    assert!(None::STATE_WORDS == 0 && None::SMALL_EXTRA == 0 && None::PAGE_COUNTS == 0);
    assert!(Tuples::STATE_WORDS * 8 == 8 && Tuples::SMALL_EXTRA == 0 && Tuples::PAGE_COUNTS == 0);
    assert!(PerPage::STATE_WORDS * 8 == 16 && PerPage::SMALL_EXTRA == 0 && PerPage::PAGE_COUNTS == 1);
    assert!(Total::STATE_WORDS * 8 == 32 && Total::SMALL_EXTRA == 0 && Total::PAGE_COUNTS == 0);
    assert!(MmOwner::STATE_WORDS * 8 == 32 && MmOwner::SMALL_EXTRA == 0 && MmOwner::PAGE_COUNTS == 0);
    assert!(Vmas::STATE_WORDS * 8 == 8 && Vmas::SMALL_EXTRA == 0 && Vmas::PAGE_COUNTS == 0);
    assert!(
        ZeroOneTwoMany::STATE_WORDS * 8 == 8 && ZeroOneTwoMany::SMALL_EXTRA == 0 && ZeroOneTwoMany::PAGE_COUNTS == 0
    );
    assert!(small_descriptor_words::<Total>() * 8 == 16, "a small folio's slot");
    assert!(large_descriptor_words::<Total>() * 8 == 64, "a large folio's record under `total`: one cache line");
};

/// Words of the descriptor of a folio of order 0 under scheme `A`.
#[must_use]
pub const fn small_descriptor_words<A: Accounting>() -> usize {
    (SMALL_HEADER_WORDS + A::SMALL_EXTRA).next_power_of_two()
}

/// Words of the descriptor of a larger folio under scheme `A`.
#[must_use]
pub const fn large_descriptor_words<A: Accounting>() -> usize {
    let words = (HEADER_WORDS + A::STATE_WORDS).next_power_of_two();
    if words < 8 { 8 } else { words }
}

/// The part of [`Accounting::check`] that follows from the answers alone.
fn answers_agree<A: Accounting, M: Memory>(
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
    match A::maybe_shared(t, 0) {
        Answer::Exact(said) => ensure(said == (truth.owners > 1), "shared")?,
        Answer::Errs(said) => ensure(said || truth.owners <= 1 || !A::SOUND, "exclusive, though two owners map it")?,
        _ => {}
    }
    if let Answer::Exact(said) = A::leaves(t) {
        ensure(said == truth.leaves, "number of leaves")?;
    }
    match A::mapped_pages(t) {
        Answer::Exact(said) => ensure(said == truth.distinct, "mapped pages")?,
        Answer::Errs(said) => ensure(said >= truth.distinct, "mapped pages, to the wrong side")?,
        _ => {}
    }
    let huge = if t.order == Order::HUGE && truth.entire > 0 { t.pages() } else { 0 };
    if let Answer::Exact(said) | Answer::Errs(said) = A::huge_pages(t) {
        ensure(said == huge, "pages mapped by huge leaves")?;
    }
    let partial = 0 < truth.distinct && truth.distinct < t.pages();
    match A::partially_mapped(t) {
        Answer::Exact(said) => ensure(said == partial, "partly mapped")?,
        Answer::Errs(said) => ensure(!said || partial, "partly mapped, to the wrong side")?,
        _ => {}
    }
    for page in 0..t.pages() {
        match A::page_count(t, page) {
            Answer::Exact(said) => ensure(said == seen.cover(page), "leaves over a page")?,
            // Any other answer is the same for all pages.
            _ => break,
        }
    }
    Ok(())
}
