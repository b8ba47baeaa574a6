//! `/proc/PID/smaps` and `smaps_rollup` (proc.rst, 1.1; SCHEMES.md, Q8 to Q11).

use super::{Fill, Seen, sum};
use crate::addr::Level;
use crate::format::Attrs;
use crate::mapcount::{Accounting, Answer, PageAnswers, Share};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, SpaceId, Vma};

/// What is mapped in a vma, or in all of a space. In pages, but for [`pss`](Self::pss).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smaps {
    /// Size: pages of the range.
    pub size: u64,
    /// Rss: pages that its leaves map, by the leaves alone.
    pub rss: u64,
    /// Pss: of each page the share that a leaf over it is charged, in units of 2^-[`Share::SHIFT`] pages.
    pub pss: Answer<u64>,
    /// Shared_Clean: pages that not only this leaf maps, clean.
    pub shared_clean: Answer<u64>,
    /// Shared_Dirty: likewise dirty: stored to through the leaf, or in a folio that was stored to.
    pub shared_dirty: Answer<u64>,
    /// Private_Clean: pages that only this leaf maps, clean.
    pub private_clean: Answer<u64>,
    /// Private_Dirty: likewise dirty.
    pub private_dirty: Answer<u64>,
    /// Referenced: pages whose leaf was used. The manager sets that bit itself for what it maps ([`Attrs::ACCESSED`]), so it is all of them so far.
    pub referenced: u64,
    /// Anonymous: pages that do not belong to a file or shared memory.
    pub anonymous: u64,
    /// AnonHugePages: of these, the ones that 2 MiB leaves map. Like the next two it is read from the leaves, and leaves of 1 GiB are not in it.
    pub anon_huge: u64,
    /// ShmemPmdMapped: pages of shared memory that 2 MiB leaves map.
    pub shmem_pmd: u64,
    /// FilePmdMapped: likewise of files.
    pub file_pmd: u64,
}

impl Default for Smaps {
    fn default() -> Self {
        let none = Answer::Exact(0);
        Self {
            size: 0,
            rss: 0,
            pss: none,
            shared_clean: none,
            shared_dirty: none,
            private_clean: none,
            private_dirty: none,
            referenced: 0,
            anonymous: 0,
            anon_huge: 0,
            shmem_pmd: 0,
            file_pmd: 0,
        }
    }
}

impl Smaps {
    /// Uss: the pages that would be free if the tenant ended.
    #[must_use]
    pub fn uss(&self) -> Answer<u64> {
        sum(self.private_clean, self.private_dirty)
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            size: self.size + other.size,
            rss: self.rss + other.rss,
            pss: sum(self.pss, other.pss),
            shared_clean: sum(self.shared_clean, other.shared_clean),
            shared_dirty: sum(self.shared_dirty, other.shared_dirty),
            private_clean: sum(self.private_clean, other.private_clean),
            private_dirty: sum(self.private_dirty, other.private_dirty),
            referenced: self.referenced + other.referenced,
            anonymous: self.anonymous + other.anonymous,
            anon_huge: self.anon_huge + other.anon_huge,
            shmem_pmd: self.shmem_pmd + other.shmem_pmd,
            file_pmd: self.file_pmd + other.file_pmd,
        }
    }

    /// What follows from the leaf alone.
    pub(super) fn add_leaf(&mut self, seen: &Seen<'_>, is_shmem: impl FnOnce() -> bool) {
        self.rss += seen.pages;
        if seen.attrs.has(Attrs::ACCESSED) {
            self.referenced += seen.pages;
        }
        let huge = if seen.level == Level::TWO { seen.pages } else { 0 };
        if seen.folio.is_anon() {
            self.anonymous += seen.pages;
            self.anon_huge += huge;
        } else if huge > 0 {
            *if is_shmem() { &mut self.shmem_pmd } else { &mut self.file_pmd } += huge;
        }
    }

    /// What the scheme says of `pages` pages of a leaf.
    pub(super) fn add_answer(&mut self, said: &PageAnswers, pages: u64, dirty: bool) {
        self.pss = sum(self.pss, said.charge.map(|share| pages * share.fixed()));
        let (private, shared) = if dirty {
            (&mut self.private_dirty, &mut self.shared_dirty)
        } else {
            (&mut self.private_clean, &mut self.shared_clean)
        };
        *private = sum(*private, said.exclusive.map(|alone| if alone { pages } else { 0 }));
        *shared = sum(*shared, said.exclusive.map(|alone| if alone { 0 } else { pages }));
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// smaps: calls `visit` for every vma of a space, in address order. What `visit` does happens while the space is held.
    pub fn smaps(&self, id: SpaceId, fill: Fill, mut visit: impl FnMut(Vma<'_>, &Smaps)) {
        self.read_stats(id, fill, |vma, smaps, _| visit(vma, smaps));
    }

    /// smaps_rollup: the sum over a space.
    pub fn smaps_rollup(&self, id: SpaceId, fill: Fill) -> Smaps {
        let mut all = Smaps::default();
        self.smaps(id, fill, |_, smaps| all = all.plus(smaps));
        all
    }
}

// A space of as many pages as there are addresses, all its own, does not overflow Pss.
const _: () = assert!(crate::space::PAGES_END.leading_zeros() > Share::SHIFT);
