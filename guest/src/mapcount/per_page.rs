//! `per-page`: a count for every page, beside three for the folio (SCHEMES.md, A; Linux v6.10 and later).
//!
//! The precise scheme, and the one whose state and whose work grow with the folio. `entire` counts leaves as large as the
//! folio, `page[i]` those of order 0 over page i; `visible` is how many pages have one, plus [`ENTIRE_MAPPED`] while `entire` is not 0.

use core::sync::atomic::Ordering::Relaxed;

use super::{Accounting, Answer, Batch, Delta, Needs, Neighbours, Refused, Target};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::Count32;

/// Added to `visible` while a leaf maps the whole folio: above any number of pages.
const ENTIRE_MAPPED: u32 = 0x80_0000;

/// Counts per page: 12 bytes for the folio and 4 for every page.
#[derive(Clone, Copy, Debug)]
pub struct PerPage;

struct Counts<'a> {
    leaves: Count32<'a>,
    entire: Count32<'a>,
    visible: Count32<'a>,
}

fn counts<'a, M: Memory>(t: &Target<'a, M>) -> Counts<'a> {
    Counts {
        leaves: Count32::low(&t.state[0]),
        entire: Count32::high(&t.state[0]),
        visible: Count32::low(&t.state[1]),
    }
}

/// Whether the leaf is as large as the folio; leaves in between have no representation here.
fn is_entire<M: Memory>(t: &Target<'_, M>, leaf: Order) -> Result<bool, Refused> {
    if leaf == Order::BASE {
        Ok(false)
    } else if leaf == t.order {
        Ok(true)
    } else {
        Err(Refused::Shape)
    }
}

fn pages_of(b: &Batch) -> impl Iterator<Item = u64> {
    (b.first..b.first + b.pages).map(u64::from)
}

impl Accounting for PerPage {
    const NAME: &'static str = "per-page";
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = 2;
    const PAGE_COUNTS: usize = 1;
    // The first-page estimate misses folios of which two owners map other pages.
    const SOUND: bool = false;

    fn add<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        if let Some(count) = t.small {
            t.admit(u64::from(count.get()), b.pages)?;
            return Ok(Delta { mapped: i64::from(count.add(b.pages) == 0), ..Delta::default() });
        }
        let c = counts(t);
        let entire = is_entire(t, b.leaf)?;
        admit(t, b)?;
        let pages = t.pages() as i64;
        let mut delta = Delta::default();
        if entire {
            if c.entire.add(1) == 0 {
                let visible = c.visible.add(ENTIRE_MAPPED);
                delta.mapped = (pages - i64::from(visible)).max(0);
                delta.huge = if b.leaf == Order::HUGE { pages } else { 0 };
            }
            c.leaves.add(1);
        } else {
            let first = pages_of(b).filter(|&i| t.page(i).add(1) == 0).count() as u32;
            if first > 0 && c.visible.add(first) + first < ENTIRE_MAPPED {
                delta.mapped = i64::from(first);
            }
            c.leaves.add(b.pages);
        }
        Ok(delta)
    }

    fn dup<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        if let Some(count) = t.small {
            t.admit(u64::from(count.get()), b.pages)?;
            count.add(b.pages);
            return Ok(Delta::default());
        }
        // The pages are visible already.
        let c = counts(t);
        let entire = is_entire(t, b.leaf)?;
        admit(t, b)?;
        if entire {
            c.entire.add(1);
            c.leaves.add(1);
        } else {
            for i in pages_of(b) {
                t.page(i).add(1);
            }
            c.leaves.add(b.pages);
        }
        Ok(Delta::default())
    }

    fn sub<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        if let Some(count) = t.small {
            return Delta { mapped: -i64::from(count.sub(b.pages) == b.pages), ..Delta::default() };
        }
        let c = counts(t);
        let pages = t.pages() as i64;
        let mut delta = Delta::default();
        c.leaves.sub(b.leaves());
        if b.leaf == Order::BASE {
            let last = pages_of(b).filter(|&i| t.page(i).sub(1) == 1).count() as u32;
            if last > 0 {
                let visible = c.visible.sub(last) - last;
                if visible < ENTIRE_MAPPED {
                    delta.mapped = -i64::from(last);
                    delta.maybe_partial = t.anon && visible != 0;
                }
            }
        } else if c.entire.sub(1) == 1 {
            let visible = c.visible.sub(ENTIRE_MAPPED) - ENTIRE_MAPPED;
            let gone = (pages - i64::from(visible)).max(0);
            delta.mapped = -gone;
            delta.huge = if b.leaf == Order::HUGE { -pages } else { 0 };
            delta.maybe_partial = t.anon && 0 < gone && gone < pages;
        }
        delta
    }

    fn split<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        // Only leaves as large as the folio got in, and only those of 2 MiB split into leaves this scheme can count; a 1 GiB
        // leaf splits into 2 MiB leaves and is counted as the pages it maps until those are split in turn.
        let c = counts(t);
        let first = pages_of(b).filter(|&i| t.page(i).add(1) == 0).count() as u32;
        c.visible.add(first);
        c.leaves.add(511);
        let mut delta = Delta::default();
        if c.entire.sub(1) == 1 {
            c.visible.sub(ENTIRE_MAPPED);
            delta.huge = if b.leaf == Order::HUGE { -(t.pages() as i64) } else { 0 };
        }
        delta
    }

    fn collapse<M: Memory>(t: &Target<'_, M>, b: &Batch, _beside: Neighbours) -> Delta {
        let c = counts(t);
        let mut delta = Delta::default();
        if c.entire.add(1) == 0 {
            c.visible.add(ENTIRE_MAPPED);
            delta.huge = if b.leaf == Order::HUGE { t.pages() as i64 } else { 0 };
        }
        let last = pages_of(b).filter(|&i| t.page(i).sub(1) == 1).count() as u32;
        c.visible.sub(last);
        c.leaves.sub(511);
        delta
    }

    fn mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(leaves(t) > 0)
    }

    fn one_leaf<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        Answer::Exact(leaves(t) == 1)
    }

    fn maybe_shared<M: Memory>(t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        // The first-page estimate of before v6.15: may err either way, and "exclusive" may be wrong.
        if let Some(count) = t.small {
            return Answer::Errs(count.get() > 1);
        }
        let c = counts(t);
        let leaves = c.leaves.get();
        Answer::Errs(if leaves <= 1 {
            false
        } else if c.entire.get() > 0 || u64::from(leaves) > t.pages() {
            true
        } else {
            t.page(0).get() > 1
        })
    }

    fn may_reuse<M: Memory>(t: &Target<'_, M>, _owner: u32, refs: u64) -> Answer<bool> {
        // A folio mapped by small leaves is never reused but by its exclusive bit; one huge leaf when nobody else refers to it.
        Answer::Errs(refs == 1 && leaves(t) == 1 && (t.small.is_some() || counts(t).entire.get() == 1))
    }

    fn page_count<M: Memory>(t: &Target<'_, M>, page: u64) -> Answer<u64> {
        Answer::Exact(match t.small {
            Some(count) => u64::from(count.get()),
            None => u64::from(counts(t).entire.get()) + u64::from(t.page(page).get()),
        })
    }

    fn mapped_pages<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(match t.small {
            Some(count) => u64::from(count.get().min(1)),
            None if counts(t).entire.get() > 0 => t.pages(),
            None => u64::from(counts(t).visible.get()),
        })
    }

    fn partially_mapped<M: Memory>(t: &Target<'_, M>) -> Answer<bool> {
        let pages = Self::mapped_pages(t).value().unwrap_or(0);
        Answer::Exact(0 < pages && pages < t.pages())
    }

    fn leaves<M: Memory>(t: &Target<'_, M>) -> Answer<u64> {
        Answer::Exact(leaves(t))
    }
}

fn leaves<M: Memory>(t: &Target<'_, M>) -> u64 {
    match t.small {
        Some(count) => u64::from(count.get()),
        None => u64::from(Count32::low(&t.state[0]).get()),
    }
}

/// Admits on the pages mapped, so that splits always have room.
fn admit<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<(), Refused> {
    let word = t.state[0].load(Relaxed);
    let (leaves, entire) = (word & 0xffff_ffff, word >> 32);
    t.admit(leaves + entire * (t.pages() - 1), b.pages)
}
