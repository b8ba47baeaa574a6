//! `full-partial`: how many regions map all of the folio, how many map a part, and for those a count of every page (SCHEMES.md, `full-partial`; Zi Yan,
//! 7 Feb 2023).
//!
//! While every region maps the folio as a whole nothing is done per page. A region that loses its first page pushes its mapping down into
//! the counts of the pages that it keeps; one that gets its last page takes them back. What a region had before and has behind a batch
//! the caller counts, over all tables of the region's window on the folio.

use core::fmt;

use super::{
    Answer, Batch, ByLevel, Class, Countdown, Delta, Evidence, Large, Needs, Neighbours, Refused, Share, Sides, Target,
    Truth, ensure, show_runs,
};
use crate::memory::Memory;
use crate::sync::{Field, StateGuard, lock_state};

const FULL: Field<0, 31> = Field;
const PARTIAL: Field<31, 31> = Field;
const LOCK: u64 = 1 << 63;

/// *full*, *partial* and their lock: 8 bytes; and 4 for every page.
#[derive(Clone, Copy, Debug)]
pub struct FullPartial;

/// What [`FullPartial`] has counted for a folio as a whole: for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullPartialCounters {
    /// Regions that map every page.
    pub full: u64,
    /// Regions that map some.
    pub partial: u64,
}

impl FullPartialCounters {
    fn regions(self) -> u64 {
        self.full + self.partial
    }
}

impl FullPartial {
    /// The counters of the folio; a region maps one of order 0 in full.
    #[must_use]
    pub fn counters<M: Memory>(t: &Target<'_, M>) -> FullPartialCounters {
        match t.small {
            Some(count) => FullPartialCounters { full: count.get().into(), partial: 0 },
            None => FullPartialCounters { full: FULL.get(&t.state[0]), partial: PARTIAL.get(&t.state[0]) },
        }
    }

    /// The count of page `page`: regions that map it and not all of the folio.
    #[must_use]
    pub fn page<M: Memory>(t: &Target<'_, M>, page: u64) -> u32 {
        if t.small.is_some() { 0 } else { t.page(page).get() }
    }
}

/// Leaves over a page: a region has one at most.
fn cover<M: Memory>(t: &Target<'_, M>, page: u64) -> u64 {
    FullPartial::counters(t).full + u64::from(t.page(page).get())
}

/// The same with the counts standing still: a mapping that is pushed down is for a moment in neither.
fn settled_cover<M: Memory>(t: &Target<'_, M>, page: u64) -> u64 {
    let _guard = lock_state(&t.state[0], LOCK);
    cover(t, page)
}

/// Likewise of [`visible`].
fn settled_visible<M: Memory>(t: &Target<'_, M>) -> u64 {
    let _guard = lock_state(&t.state[0], LOCK);
    visible(t)
}

/// Pages with a leaf over them. Of one partial region alone nothing tells how many but its pages' counts.
fn visible<M: Memory>(t: &Target<'_, M>) -> u64 {
    match FullPartial::counters(t) {
        FullPartialCounters { full: 0, partial: 0 } => 0,
        FullPartialCounters { full: 0, .. } => (0..t.pages()).filter(|&page| t.page(page).get() > 0).count() as u64,
        _ => t.pages(),
    }
}

/// What a change of the visible pages is to the statistics.
fn became(before: u64, after: u64) -> Delta {
    Delta { mapped: after as i64 - before as i64, ..Delta::default() }
}

/// Holds the folio's counts still, to change them.
struct Change<'t, 'a, M> {
    t: &'t Target<'a, M>,
    _guard: StateGuard<'a>,
}

impl<'t, 'a, M: Memory> Change<'t, 'a, M> {
    fn begin(t: &'t Target<'a, M>) -> Self {
        Self { t, _guard: lock_state(&t.state[0], LOCK) }
    }

    /// Both change at once, so that nobody sees the folio unmapped in passing.
    fn count(&self, full: i64, partial: i64) {
        let word = &self.t.state[0];
        let FullPartialCounters { full: f, partial: p } = FullPartial::counters(self.t);
        let counts = FULL.bits(f.wrapping_add_signed(full)) | PARTIAL.bits(p.wrapping_add_signed(partial));
        word.store(counts | LOCK, core::sync::atomic::Ordering::Relaxed);
    }

    fn raise(&self, pages: impl Iterator<Item = u64>) {
        pages.for_each(|page| _ = self.t.page(page).add(1));
    }

    fn lower(&self, pages: impl Iterator<Item = u64>) {
        pages.for_each(|page| _ = self.t.page(page).sub(1));
    }

    /// A region that maps `before` pages gets those of the batch as well.
    fn enter(&self, b: &Batch, before: u64) {
        if b.class == Class::Nested {
            // Several composed leaves of a region may lie over a page: it never maps the folio as a whole, and each leaf is counted.
            self.raise(b.pages_of_folio());
            return self.count(0, i64::from(before == 0));
        }
        let whole = self.t.pages();
        match (before, before + u64::from(b.pages) == whole) {
            (0, true) => self.count(1, 0),
            (0, false) => {
                self.count(0, 1);
                self.raise(b.pages_of_folio());
            }
            (_, true) => {
                self.count(1, -1);
                self.lower(others(b, whole));
            }
            (_, false) => self.raise(b.pages_of_folio()),
        }
    }

    /// A region keeps `after` pages when those of the batch are gone.
    fn leave(&self, b: &Batch, after: u64) {
        if b.class == Class::Nested {
            self.lower(b.pages_of_folio());
            return self.count(0, -i64::from(after == 0));
        }
        let whole = self.t.pages();
        match (after, after + u64::from(b.pages) == whole) {
            (0, true) => self.count(-1, 0),
            (0, false) => {
                self.lower(b.pages_of_folio());
                self.count(0, -1);
            }
            (_, true) => {
                self.raise(others(b, whole));
                self.count(-1, 1);
            }
            (_, false) => self.lower(b.pages_of_folio()),
        }
    }
}

/// The pages of the folio beside the batch.
fn others(b: &Batch, whole: u64) -> impl Iterator<Item = u64> + use<> {
    (0..u64::from(b.first)).chain(u64::from(b.first + b.pages)..whole)
}

impl Large for FullPartial {
    const NAME: &'static str = "full-partial";
    const NEEDS: Needs = Needs { tuple: false, region: true };
    const STATE_WORDS: usize = 1;
    const PAGE_COUNTS: usize = 1;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        let change = Change::begin(t);
        if beside.region == 0 {
            t.admit(FullPartial::counters(t).regions(), 1)?;
        }
        let before = visible(t);
        change.enter(b, beside.region.into());
        Ok(became(before, visible(t)))
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, beside: Neighbours) -> Delta {
        let change = Change::begin(t);
        let before = visible(t);
        change.leave(b, beside.region.into());
        let left = visible(t);
        Delta { maybe_partial: 0 < left && left < t.pages() && t.is_anon(), ..became(before, left) }
    }

    // Neither changes what any region maps.
    fn split<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }
    fn collapse<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }

    fn moved<M: Memory>(
        t: &Target<'_, M>,
        from: &Batch,
        beside_from: Neighbours,
        to: &Batch,
        beside_to: Neighbours,
    ) -> Delta {
        let change = Change::begin(t);
        let before = visible(t);
        // There before here, so that the folio is never unmapped in passing.
        change.enter(to, beside_to.region.into());
        change.leave(from, beside_from.region.into());
        became(before, visible(t))
    }

    fn region_cut<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        let change = Change::begin(t);
        if u64::from(sides.below + sides.above) == t.pages() {
            change.raise(0..t.pages());
            change.count(-1, 2);
        } else {
            change.count(0, 1);
        }
    }

    fn region_merge<M: Memory>(t: &Target<'_, M>, sides: Sides) {
        let change = Change::begin(t);
        if u64::from(sides.below + sides.above) == t.pages() {
            change.count(1, -2);
            change.lower(0..t.pages());
        } else {
            change.count(0, -1);
        }
    }

    fn said_mapped(pages: u64) -> Answer<u64> {
        Answer::Exact(pages)
    }

    fn said_huge(_pages: u64) -> Answer<u64> {
        Answer::Cannot
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(FullPartial::counters(t).regions() > 0)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        // One region is the asker's; more may be another's or the asker's again.
        Answer::Errs(FullPartial::counters(t).regions() > 1)
    }

    fn may_reuse<M: Memory>(_t: &Target<'_, M>, _owner: u32, _refs: u64) -> Answer<bool> {
        // References count leaves, regions do not, so they cannot be compared (SCHEMES.md, references).
        Answer::Cannot
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64> {
        Answer::Exact(settled_cover(t, page))
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, _owner: u32) -> Answer<bool> {
        Answer::Exact(settled_cover(t, page) == 1)
    }

    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share> {
        Answer::Exact(Share::one_of(settled_cover(t, page)))
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(settled_visible(t))
    }

    fn huge_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Cannot
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let pages = settled_visible(t);
        Answer::Exact(0 < pages && pages < t.pages())
    }

    fn leaves<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Cannot
    }

    fn early_stop<M: Memory>(t: &Target<'_, M>) -> Answer<Countdown> {
        Answer::Exact(Countdown::Regions(FullPartial::counters(t).regions()))
    }

    fn by_level<M: Memory>(_t: &Target<'_, M>) -> Answer<ByLevel> {
        Answer::Cannot
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        let FullPartialCounters { full, partial } = Self::counters(t);
        write!(out, "full {full}, partial {partial}; pages")?;
        show_runs(t, out)
    }

    fn check_state<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        let counters = Self::counters(t);
        ensure(counters.regions() == truth.regions, "V")?;
        ensure(seen.whole_regions().is_none_or(|whole| whole == counters.full), "full")?;
        for page in 0..t.pages() {
            ensure(cover(t, page) == seen.cover(page), "full and the count of a page")?;
            ensure(counters.partial > 0 || t.page(page).get() == 0, "the count of a page that nobody maps alone")?;
        }
        Ok(())
    }
}
