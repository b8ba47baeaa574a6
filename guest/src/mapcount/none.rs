//! `none`: no mapcount (SCHEMES.md, `none`; Torvalds, 19 Dec 2021).
//!
//! Nothing is counted but references, which every scheme has. Whether a folio is mapped or shared takes an rmap walk; a write fault
//! reuses a page only by its exclusive bit.

use core::fmt;

use super::{Accounting, Answer, Batch, ByLevel, Countdown, Delta, Needs, Neighbours, Refused, Share, Target};
use crate::memory::Memory;

/// No state at all.
#[derive(Clone, Copy, Debug)]
pub struct None;

impl Accounting for None {
    const NAME: &'static str = "none";
    const NEEDS: Needs = Needs::NOTHING;
    const STATE_WORDS: usize = 0;

    fn add<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Result<Delta, Refused> {
        Ok(Delta::default())
    }
    fn sub<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }
    fn split<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }
    fn collapse<M: Memory>(_t: &Target<'_, M>, _b: &Batch, _beside: Neighbours) -> Delta {
        Delta::default()
    }
    fn show<M: Memory>(_t: &Target<'_, M>, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str("nothing")
    }

    fn said_mapped(_pages: u64) -> Answer<u64> {
        Answer::Walk
    }
    fn said_huge(_pages: u64) -> Answer<u64> {
        Answer::Walk
    }
    fn mapped<M: Memory>(_t: &Target<'_, M>) -> Answer<bool> {
        Answer::Walk
    }
    fn one_leaf<M: Memory>(_t: &Target<'_, M>) -> Answer<bool> {
        Answer::Walk
    }
    fn maybe_shared<M: Memory>(_t: &Target<'_, M>, _owner: u32) -> Answer<bool> {
        Answer::Walk
    }
    fn may_reuse<M: Memory>(_t: &Target<'_, M>, _owner: u32, _refs: u64) -> Answer<bool> {
        // The exclusive bit of the leaf or nothing (SCHEMES.md, references).
        Answer::Cannot
    }
    fn page_count<M: Memory>(_t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        Answer::Walk
    }
    fn exclusive<M: Memory>(_t: &Target<'_, M>, _page: u64, _owner: u32) -> Answer<bool> {
        Answer::Walk
    }
    fn charge<M: Memory>(_t: &Target<'_, M>, _page: u64) -> Answer<Share> {
        Answer::Walk
    }
    fn mapped_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Walk
    }
    fn huge_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Walk
    }
    fn partially_mapped<M: Memory>(_t: &Target<'_, M>) -> Answer<bool> {
        Answer::Walk
    }
    fn leaves<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Walk
    }
    fn early_stop<M: Memory>(_t: &Target<'_, M>) -> Answer<Countdown> {
        // A walk has to go to its end.
        Answer::Cannot
    }
    fn by_level<M: Memory>(_t: &Target<'_, M>) -> Answer<ByLevel> {
        Answer::Walk
    }
}
