//! `none`: no mapcount (SCHEMES.md, D0; Torvalds, 19 Dec 2021).
//!
//! Nothing is counted but references, which every scheme has. Whether a folio is mapped or shared takes an rmap walk; a write fault
//! reuses a page only by its exclusive bit.

use super::{Accounting, Answer, Batch, Delta, Needs, Neighbours, Refused, Target};
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
        // D6: AnonExclusive only.
        Answer::Cannot
    }
    fn page_count<M: Memory>(_t: &Target<'_, M>, _page: u64) -> Answer<u64> {
        Answer::Walk
    }
    fn mapped_pages<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        Answer::Walk
    }
    fn partially_mapped<M: Memory>(_t: &Target<'_, M>) -> Answer<bool> {
        Answer::Walk
    }
    fn leaves<M: Memory>(_t: &Target<'_, M>) -> Answer<u64> {
        // A walk has to go to its end.
        Answer::Cannot
    }
}
