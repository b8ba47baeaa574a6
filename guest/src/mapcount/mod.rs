//! The count layer: who maps a folio, and how much of that a scheme still knows.
//!
//! [`Accounting`] is the door through which everything that maps, unmaps, splits or cuts must go; one scheme per file
//! stands behind it, chosen at compile time. The caller says what happened to which leaves as a [`Batch`]: leaves of one folio, consecutive
//! in input and output, in one table page. What a scheme must know about the leaves beside the batch it asks for in [`Accounting::NEEDS`];
//! a scheme that asks for nothing costs nothing.
//!
//! `SCHEMES.md` beside this crate is the law of every count; doc comments cite its sections by name.

mod batch;
mod classes;
mod first_last;
mod forward;
mod full_partial;
mod large;
mod mm_owner;
mod none;
mod observe;
mod oracle;
mod owned;
mod per_level;
mod per_page;
mod query;
mod rmap_ids;
mod scheme;
mod sizes;
mod slots;
mod total;
mod tuples;
mod vmas;
mod zero_one_two_many;

pub use batch::{Batch, COUNT_LIMIT, Class, Delta, Needs, Neighbours, Refused, Sides};
pub use classes::Classes;
pub use first_last::{FirstLast, Unit};
pub use full_partial::{FullPartial, FullPartialCounters};
pub use large::Large;
pub use mm_owner::{MmOwner, MmOwnerCounters};
pub use none::None;
pub use observe::Observe;
pub use oracle::{Evidence, Oracle, Truth};
pub use owned::{Extent, Owned, OwnedCounters};
pub use per_level::{Levels, PerLevel, PerLevelCounters};
pub use per_page::{PerPage, PerPageCounters};
pub use query::{Answer, Answers, ByLevel, Countdown, FolioAnswers, PageAnswers, Share};
pub use rmap_ids::{RmapIds, RmapIdsCounters, SubIds};
pub use scheme::{Everything, Scheme, UnderScheme, UnknownScheme};
pub use sizes::Sizes;
pub use total::{Total, TotalCounters, TotalMapped};
pub use tuples::{Tuple, Tuples};
pub use vmas::{Region, Vmas};
pub use zero_one_two_many::ZeroOneTwoMany;

use core::fmt;

use crate::addr::{Order, Pfn};
use crate::folio::{Folio, Frames, HEADER_WORDS, SMALL_HEADER_WORDS, Words, is_anon};
use crate::memory::Memory;
use crate::sync::{AtomicU64, Count32};
use query::{Asked, answers_agree, ensure, pages_of};

/// A folio as a scheme sees it: its state and nothing of the rest.
#[derive(Debug)]
pub struct Target<'a, M> {
    frames: &'a Frames<M>,
    head: Pfn,
    order: Order,
    /// The word with its flags, and what it has grown to.
    home: &'a AtomicU64,
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
    #[inline(always)]
    pub fn new(frames: &'a Frames<M>, folio: Folio<'a>, limit: u64) -> Self {
        if folio.is_small() { Self::small(frames, folio, limit) } else { Self::large(frames, folio, limit) }
    }

    /// As [`new`](Self::new), of a folio of order 0.
    #[inline(always)]
    pub(crate) fn small(frames: &'a Frames<M>, folio: Folio<'a>, limit: u64) -> Self {
        let small = Some(folio.small_count());
        Self { small, order: Order::BASE, ..Self::large(frames, folio, limit) }
    }

    /// As [`new`](Self::new), of a larger one.
    #[inline(always)]
    pub(crate) fn large(frames: &'a Frames<M>, folio: Folio<'a>, limit: u64) -> Self {
        Self {
            frames,
            head: folio.head(),
            order: folio.order(),
            home: folio.home(),
            small: Option::None,
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

    /// Whether it is private anonymous memory.
    fn is_anon(&self) -> bool {
        is_anon(self.home)
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
///
/// Most schemes differ only in large folios and implement [`Large`].
pub trait Accounting: Copy + fmt::Debug + Send + Sync + 'static {
    /// The scheme's name on the command line.
    const NAME: &'static str;
    /// What the caller must find out for it.
    const NEEDS: Needs;
    /// Words of state of a folio of order 1 and above.
    const STATE_WORDS: usize;
    /// Further words in a small folio's descriptor, behind the one 32-bit count that every scheme has there.
    const SMALL_EXTRA: usize = 0;
    /// 32-bit counts it keeps for every frame: 0 for all schemes of constant size.
    const PAGE_COUNTS: usize = 0;
    /// Words of an extension, of a small folio and of a larger one: what it gets beside on its first leaves of other classes than `process`. 0 where leaves of all
    /// classes are counted as one.
    const EXTENSION_WORDS: [usize; 2] = [0; 2];

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
    fn region_cut<M: Memory>(_t: &Target<'_, M>, _sides: Sides) {}

    /// Two regions that both map some of the folio became one.
    fn region_merge<M: Memory>(_t: &Target<'_, M>, _sides: Sides) {}

    /// A walk found that `regions` regions map the folio, while nothing changed: for schemes that lose count.
    fn repair<M: Memory>(_t: &Target<'_, M>, _regions: u64) {}

    /// `owner` maps the folio, and `leaves` can count its leaves, in all of its tables or in some: for schemes that lose sight of owners. They call it when it can
    /// teach them something, with the folio's counts standing still. It takes no lock, and never counts what is not there.
    fn relearn<M: Memory>(_t: &Target<'_, M>, _owner: u32, _leaves: impl FnOnce() -> u64) {}

    /// Whether stage-2 leaves may map the folio, which hold no references: it stays where it is then.
    fn mapped_at_stage2<M: Memory>(_t: &Target<'_, M>) -> bool {
        false
    }

    /// Whether leaves that were composed from stage-2 leaves may map the folio: they go before those do.
    fn is_composed<M: Memory>(_t: &Target<'_, M>) -> bool {
        false
    }

    /// Q1: does any leaf map the folio? Errs to yes.
    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    /// Q2: does exactly one leaf?
    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    /// Q3: may an owner other than `owner`, who maps it, map it too? Errs to yes.
    fn maybe_shared<M: Memory>(t: &Target<'_, M>, owner: u32) -> Answer<bool>;
    /// Q4: may a write fault of its only owner, who has lost the exclusive bit, reuse the folio? `refs` is its reference count. Errs to no.
    fn may_reuse<M: Memory>(t: &Target<'_, M>, owner: u32, refs: u64) -> Answer<bool>;
    /// How sure a sum of [`Delta::mapped`] is: what AnonPages and Mapped say (Q12). Errs to more.
    fn said_mapped(pages: u64) -> Answer<u64> {
        Answer::Errs(pages)
    }
    /// Likewise of [`Delta::huge`] (Q13).
    fn said_huge(pages: u64) -> Answer<u64> {
        Answer::Exact(pages)
    }
    /// Q5: how many leaves map page `page` (kpagecount)? Their largest over the pages of a range is numa_maps' mapmax (Q7).
    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64>;
    /// Q8, Q11: is page `page`, which `owner` maps, mapped by this one leaf only (pagemap's exclusive bit; Private_* of smaps and Uss)?
    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, owner: u32) -> Answer<bool>;
    /// Q10: what a leaf over page `page` is charged in Pss.
    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share>;
    /// Q12: how many pages of it are mapped (AnonPages, Mapped)? Errs to more.
    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    /// Q13: how many pages of it count as mapped by 2 MiB leaves (AnonHugePages, FilePmdMapped)?
    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    /// Q14: is it partly mapped? Errs to no.
    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool>;
    /// Q16: how many references are leaves'? What is beyond is somebody else's.
    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64>;
    /// Q15: after how much may an rmap walk stop?
    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown>;
    /// Q17: how many leaves of each size map it?
    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel>;
    /// T: how many pages do its leaves map, multiplicity counted?
    fn total<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Self::by_level(t).map(pages_of)
    }

    /// Writes the counters as text, in the words of SCHEMES.md; owners by their number.
    ///
    /// # Errors
    /// Those of `out`.
    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result;

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

    /// Shows the answers of this scheme, and of every one that observes.
    fn each<M: Memory>(t: &Target<'_, M>, visit: &mut dyn FnMut(&dyn Answers)) {
        visit(&Asked::<M, Self>::new(t));
    }
}

/// The counts of all pages, as `value x pages` for each run of equal ones.
fn show_runs<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
    let (mut value, mut pages) = (t.page(0).get(), 0);
    for page in 0..t.pages() {
        let count = t.page(page).get();
        if count != value {
            write!(out, " {value}x{pages}")?;
            (value, pages) = (count, 0);
        }
        pages += 1;
    }
    write!(out, " {value}x{pages}")
}

// The sizes that SCHEMES.md states.
const _: () = {
    assert!(None::STATE_WORDS == 0 && None::SMALL_EXTRA == 0);
    assert!(is_large_of_bytes::<Tuples>(8, 0));
    assert!(is_large_of_bytes::<Vmas>(8, 0));
    assert!(is_large_of_bytes::<FullPartial>(8, 1));
    assert!(is_large_of_bytes::<PerPage>(16, 1));
    assert!(is_large_of_bytes::<MmOwner>(32, 0));
    assert!(is_large_of_bytes::<Total>(32, 0));
    assert!(is_large_of_bytes::<PerLevel>(32, 0));
    assert!(is_large_of_bytes::<RmapIds>(80, 0));
    assert!(is_large_of_bytes::<ZeroOneTwoMany>(8, 0));
    assert!(small_descriptor_words::<Total>() * 8 == 16, "a small folio's slot");
    assert!(large_descriptor_words::<Total>() * 8 == 64, "a large folio's record under `total`: one cache line");
    assert!(large_descriptor_words::<PerLevel>() * 8 == 64, "and under our own");
    assert!(small_descriptor_words::<Classes<Total>>() * 8 == 16, "the same where leaves of VMs are counted too");
    assert!(large_descriptor_words::<Classes<Total>>() * 8 == 64, "likewise");
    assert!(Classes::<Total>::EXTENSION_WORDS[0] * 8 == 16, "what it grows by for all of its leaves of VMs");
    assert!(Classes::<Total>::EXTENSION_WORDS[1] * 8 == 40, "for those of one class");
};

const fn is_large_of_bytes<A: Accounting>(bytes: usize, page_counts: usize) -> bool {
    A::STATE_WORDS * 8 == bytes && A::SMALL_EXTRA == 0 && A::PAGE_COUNTS == page_counts
}

/// Words of descriptors under scheme `A`.
#[inline(always)]
pub(crate) const fn descriptor_words<A: Accounting>() -> Words {
    Words { slot: small_descriptor_words::<A>(), record: large_descriptor_words::<A>() }
}

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
