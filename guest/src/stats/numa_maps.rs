//! `/proc/PID/numa_maps` (numa_memory_policy.rst; SCHEMES.md, Q5 and Q7).

use super::answer::both;
use super::{Fill, Seen};
use crate::format::Attrs;
use crate::mapcount::{Accounting, Answer, PageAnswers};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, SpaceId, Vma};

/// The line of a vma, in pages. There is one node: its `N0=` is [`pages`](Self::pages).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaMap {
    /// `N0=`, and `mapped=` where there is no `anon=` of the same number: pages that are mapped.
    pub pages: u64,
    /// `anon=`: of these, the anonymous ones.
    pub anon: u64,
    /// `dirty=`: those that were stored to.
    pub dirty: u64,
    /// `active=`: those whose leaf was used. There are no LRU lists that could say more.
    pub active: u64,
    /// `mapmax=`: the most leaves over one of them, 0 when there is none.
    pub mapmax: Answer<u64>,
}

impl Default for NumaMap {
    fn default() -> Self {
        Self { pages: 0, anon: 0, dirty: 0, active: 0, mapmax: Answer::Exact(0) }
    }
}

impl NumaMap {
    pub(super) fn add_leaf(&mut self, seen: &Seen<'_>) {
        let pages_if = |condition| if condition { seen.pages } else { 0 };
        self.pages += seen.pages;
        self.anon += pages_if(seen.folio.is_anon());
        self.dirty += pages_if(seen.is_dirty());
        self.active += pages_if(seen.attrs.has(Attrs::ACCESSED));
    }

    pub(super) fn add_answer(&mut self, said: &PageAnswers) {
        self.mapmax = both(self.mapmax, said.page_count, u64::max);
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// numa_maps: calls `visit` for every vma of a space, in address order. What `visit` does happens while the space is held.
    pub fn numa_maps(&self, id: SpaceId, fill: Fill, mut visit: impl FnMut(Vma<'_>, &NumaMap)) {
        self.read_stats(id, fill, |vma, _, map| visit(vma, map));
    }
}
