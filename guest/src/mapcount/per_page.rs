//! `per-page`: a count for every page, beside three for the folio (SCHEMES.md, `per-page`; Linux v6.10 and later).
//!
//! The precise scheme, and the one whose state and whose work grow with the folio. `entire` counts leaves as large as the
//! folio, `page[i]` all others over page i; `visible` is how many pages have one, plus [`PerPage::ENTIRE_MAPPED`] while `entire` is not 0.
//!
//! Linux knows no leaf between the two sizes, and none gets in here either. But a 1 GiB leaf that is split becomes 512 of them,
//! and so do collapsed pages of a folio above order 9: each counts as one leaf and on every page it maps, and `between` says how many there are.

use core::fmt;

use super::sizes::Sizes;
use super::{
    Answer, Batch, ByLevel, Delta, Evidence, Large, Neighbours, Refused, Share, Target, Truth, ensure, show_runs,
};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::Count32;

const ENTIRE_MAPPED: u32 = PerPage::ENTIRE_MAPPED;

/// Counts per page: 16 bytes for the folio and 4 for every page.
#[derive(Clone, Copy, Debug)]
pub struct PerPage;

/// What [`PerPage`] has counted for a folio as a whole: for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerPageCounters {
    /// Leaves as large as the folio.
    pub entire: u32,
    /// Pages with a count of their own, plus [`PerPage::ENTIRE_MAPPED`] while `entire` is not 0.
    pub visible: u32,
    /// M: leaves.
    pub leaves: u32,
    /// Of those, the ones larger than a page and smaller than the folio.
    pub between: u32,
}

impl PerPage {
    /// Added to the count of visible pages while a leaf maps the whole folio: above any number of pages.
    pub const ENTIRE_MAPPED: u32 = 0x80_0000;

    /// The counters of the folio. One of order 0 has but the count of its page, and is never mapped as a whole.
    #[must_use]
    pub fn counters<M: Memory>(t: &Target<'_, M>) -> PerPageCounters {
        if let Some(count) = t.small {
            let leaves = count.get();
            return PerPageCounters { entire: 0, visible: leaves.min(1), leaves, between: 0 };
        }
        let c = counts(t);
        PerPageCounters {
            entire: c.entire.get(),
            visible: c.visible.get(),
            leaves: c.leaves.get(),
            between: c.between.get(),
        }
    }

    /// The count of page `page`: leaves over it that are smaller than the folio.
    #[must_use]
    pub fn page<M: Memory>(t: &Target<'_, M>, page: u64) -> u32 {
        t.small.unwrap_or_else(|| t.page(page)).get()
    }
}

struct Counts<'a> {
    leaves: Count32<'a>,
    entire: Count32<'a>,
    visible: Count32<'a>,
    between: Count32<'a>,
}

fn counts<'a, M: Memory>(t: &Target<'a, M>) -> Counts<'a> {
    Counts {
        leaves: Count32::low(&t.state[0]),
        entire: Count32::high(&t.state[0]),
        visible: Count32::low(&t.state[1]),
        between: Count32::high(&t.state[1]),
    }
}

/// Whether the leaf is as large as the folio.
fn is_entire<M: Memory>(t: &Target<'_, M>, leaf: Order) -> bool {
    leaf > Order::BASE && leaf == t.order
}

/// Whether the leaf is larger than a page and smaller than the folio.
fn is_between<M: Memory>(t: &Target<'_, M>, leaf: Order) -> bool {
    leaf > Order::BASE && leaf < t.order
}

impl Large for PerPage {
    const NAME: &'static str = "per-page";
    const STATE_WORDS: usize = 2;
    const PAGE_COUNTS: usize = 1;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        if is_between(t, b.leaf) {
            return Err(Refused::Shape);
        }
        let c = counts(t);
        admit(t, b)?;
        let pages = t.pages() as i64;
        let mut delta = Delta::default();
        if is_entire(t, b.leaf) {
            if c.entire.add(1) == 0 {
                let visible = c.visible.add(ENTIRE_MAPPED);
                delta.mapped = (pages - i64::from(visible)).max(0);
                delta.huge = if b.leaf == Order::HUGE { pages } else { 0 };
            }
            c.leaves.add(1);
        } else {
            let first = b.pages_of_folio().filter(|&i| t.page(i).add(1) == 0).count() as u32;
            if first > 0 && c.visible.add(first) + first < ENTIRE_MAPPED {
                delta.mapped = i64::from(first);
            }
            c.leaves.add(b.pages);
        }
        Ok(delta)
    }

    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        // The pages are visible already.
        let c = counts(t);
        admit(t, b)?;
        if is_entire(t, b.leaf) {
            c.entire.add(1);
            c.leaves.add(1);
        } else {
            for i in b.pages_of_folio() {
                t.page(i).add(1);
            }
            c.leaves.add(b.leaves());
            if is_between(t, b.leaf) {
                c.between.add(b.leaves());
            }
        }
        Ok(Delta::default())
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let c = counts(t);
        let pages = t.pages() as i64;
        let mut delta = Delta::default();
        c.leaves.sub(b.leaves());
        if is_between(t, b.leaf) {
            c.between.sub(b.leaves());
        }
        if !is_entire(t, b.leaf) {
            let last = b.pages_of_folio().filter(|&i| t.page(i).sub(1) == 1).count() as u32;
            if last > 0 {
                let visible = c.visible.sub(last) - last;
                if visible < ENTIRE_MAPPED {
                    delta.mapped = -i64::from(last);
                    delta.maybe_partial = visible != 0 && t.is_anon();
                }
            }
        } else if c.entire.sub(1) == 1 {
            let visible = c.visible.sub(ENTIRE_MAPPED) - ENTIRE_MAPPED;
            let gone = (pages - i64::from(visible)).max(0);
            delta.mapped = -gone;
            delta.huge = if b.leaf == Order::HUGE { -pages } else { 0 };
            delta.maybe_partial = 0 < gone && gone < pages && t.is_anon();
        }
        delta
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let c = counts(t);
        c.leaves.add(511);
        if is_between(t, b.leaf) {
            // It counts on its pages already.
            c.between.sub(1);
            return Delta::default();
        }
        if b.leaf > Order::HUGE {
            c.between.add(512);
        }
        let first = b.pages_of_folio().filter(|&i| t.page(i).add(1) == 0).count() as u32;
        c.visible.add(first);
        let mut delta = Delta::default();
        if c.entire.sub(1) == 1 {
            c.visible.sub(ENTIRE_MAPPED);
            delta.huge = if b.leaf == Order::HUGE { -(t.pages() as i64) } else { 0 };
        }
        delta
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let c = counts(t);
        if is_between(t, b.leaf) {
            c.between.add(1);
            c.leaves.sub(511);
            return Delta::default();
        }
        if b.leaf > Order::HUGE {
            c.between.sub(512);
        }
        let mut delta = Delta::default();
        if c.entire.add(1) == 0 {
            c.visible.add(ENTIRE_MAPPED);
            delta.huge = if b.leaf == Order::HUGE { t.pages() as i64 } else { 0 };
        }
        let last = b.pages_of_folio().filter(|&i| t.page(i).sub(1) == 1).count() as u32;
        c.visible.sub(last);
        c.leaves.sub(511);
        delta
    }

    fn said_mapped(pages: u64) -> Answer<u64> {
        Answer::Exact(pages)
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(leaves(t) > 0)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        // The first-page estimate of before v6.15: "exclusive" may be wrong too.
        let c = counts(t);
        let leaves = c.leaves.get();
        Answer::About(if leaves <= 1 {
            false
        } else if c.entire.get() > 0 || u64::from(leaves) > t.pages() {
            true
        } else {
            t.page(0).get() > 1
        })
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        // A folio mapped by small leaves is never reused but by its exclusive bit; one huge leaf when nobody else refers to it.
        Answer::Errs(refs == 1 && leaves(t) == 1 && counts(t).entire.get() == 1)
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64> {
        Answer::Exact(cover(t, page))
    }

    fn exclusive<M: Memory>(t: &Target<'_, M>, page: u64, _owner: u32) -> Answer<bool> {
        Answer::Exact(cover(t, page) == 1)
    }

    fn charge<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<Share> {
        Answer::Exact(Share::one_of(cover(t, page)))
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(visible_pages(t))
    }

    fn huge_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        let huge = t.order == Order::HUGE && counts(t).entire.get() > 0;
        Answer::Exact(if huge { t.pages() } else { 0 })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let pages = visible_pages(t);
        Answer::Exact(0 < pages && pages < t.pages())
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(leaves(t))
    }

    fn by_level<M: Memory>(t: &Target<'_, M>) -> Answer<ByLevel> {
        let PerPageCounters { entire, leaves, between, .. } = Self::counters(t);
        let sizes = Sizes { entire: entire.into(), between: between.into() };
        Answer::Exact(sizes.by_level(t, leaves.into()))
    }

    fn show<M: Memory>(t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        let PerPageCounters { entire, visible, leaves, .. } = Self::counters(t);
        let (mark, visible) = if visible >= ENTIRE_MAPPED { ("EM+", visible - ENTIRE_MAPPED) } else { ("", visible) };
        write!(out, "entire {entire}, visible {mark}{visible}, leaves {leaves}; pages")?;
        show_runs(t, out)
    }

    fn check_state<M: Memory>(t: &Target<'_, M>, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        let PerPageCounters { entire, visible, leaves, between } = Self::counters(t);
        let (entire, between) = (u64::from(entire), u64::from(between));
        let (mut sum, mut pages) = (0, 0);
        for page in 0..t.pages() {
            let count = u64::from(t.page(page).get());
            ensure(entire + count == seen.cover(page), "the count of a page")?;
            sum += count;
            pages += u64::from(count > 0);
        }
        ensure(u64::from(leaves) == truth.leaves, "M")?;
        ensure(entire == truth.entire, "entire")?;
        ensure(sum + entire == truth.leaves + 511 * between, "entire and pages beside M")?;
        ensure(sum + entire * t.pages() == truth.total, "T of the pages")?;
        let mark = if entire > 0 { u64::from(ENTIRE_MAPPED) } else { 0 };
        ensure(u64::from(visible) == pages + mark, "visible pages")
    }
}

fn leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
    u64::from(counts(t).leaves.get())
}

/// Leaves over a page.
fn cover<M: Memory>(t: &Target<'_, M>, page: u64) -> u64 {
    u64::from(counts(t).entire.get()) + u64::from(t.page(page).get())
}

/// Pages with a leaf over them.
fn visible_pages<M: Memory>(t: &Target<'_, M>) -> u64 {
    let c = counts(t);
    if c.entire.get() > 0 { t.pages() } else { c.visible.get().into() }
}

/// Admits on the pages mapped, so that splits always have room.
fn admit<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<(), Refused> {
    let PerPageCounters { entire, leaves, between, .. } = PerPage::counters(t);
    t.admit(u64::from(leaves) + u64::from(entire) * (t.pages() - 1) + u64::from(between) * 511, b.pages)
}
