//! `/proc/PID/pagemap` and `/proc/kpagecount` (pagemap.rst; SCHEMES.md, Q5 and Q8).

use core::ops::Range;

use super::Fill;
use crate::addr::Pfn;
use crate::format::{Attrs, Entry};
use crate::mapcount::{Accounting, Answer};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, SpaceId, Tracking, Vma};

/// What pagemap says of one page that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagemapEntry {
    /// Bits 0 to 54: the frame.
    pub pfn: Pfn,
    /// Bit 56, PM_MMAP_EXCLUSIVE: whether it is mapped by this leaf only.
    pub exclusive: Answer<bool>,
    /// Bit 61, PM_FILE: whether it belongs to a file or shared memory.
    pub is_file: bool,
}

impl PagemapEntry {
    /// PM_MMAP_EXCLUSIVE.
    pub const EXCLUSIVE: u64 = 1 << 56;
    /// PM_FILE.
    pub const FILE: u64 = 1 << 61;
    /// PM_PRESENT.
    pub const PRESENT: u64 = 1 << 63;

    /// The word of the file; a bit that nobody knows is 0 there. Of a page that is not present the whole word is.
    #[must_use]
    pub fn word(&self) -> u64 {
        let bit = |condition, bit| if condition { bit } else { 0 };
        Self::PRESENT
            | self.pfn.raw()
            | bit(self.exclusive.value() == Some(true), Self::EXCLUSIVE)
            | bit(self.is_file, Self::FILE)
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// pagemap: calls `visit` for every page of `pages` that is present, in address order within a vma. What `visit` does happens while the space is held, and
    /// unless `fill` walks a table too.
    pub fn pagemap(&self, id: SpaceId, pages: Range<u64>, fill: Fill, mut visit: impl FnMut(u64, PagemapEntry)) {
        let _space = self.hold(id);
        for vma in self.vmas(id).filter(|vma| vma.start() < pages.end && pages.start < vma.end()) {
            self.pagemap_of_device(vma, &pages, &mut visit);
            self.each_leaf(vma, fill == Fill::Walk, |seen| {
                for page in (seen.page..seen.page + seen.pages).filter(|page| pages.contains(page)) {
                    let of_folio = seen.first + (page - seen.page);
                    let exclusive = self.ask(seen.folio, of_folio, id.raw(), fill).exclusive;
                    let pfn = seen.folio.head().add(of_folio);
                    visit(page, PagemapEntry { pfn, exclusive, is_file: !seen.folio.is_anon() });
                }
            });
        }
    }

    /// Frames without folios: present, and nothing else.
    fn pagemap_of_device(&self, vma: Vma<'_>, pages: &Range<u64>, visit: &mut impl FnMut(u64, PagemapEntry)) {
        let table = self.page_table(vma.space());
        if vma.tracking() == Tracking::Tracked {
            return;
        }
        for page in vma.start().max(pages.start)..vma.end().min(pages.end) {
            if let (_, Entry::Leaf(leaf)) = table.deepest(self, page)
                && leaf.attrs.has(Attrs::UNTRACKED)
            {
                visit(page, PagemapEntry { pfn: leaf.pfn, exclusive: Answer::Cannot, is_file: false });
            }
        }
    }

    /// kpagecount: how many leaves map frame `pfn`; 0 for a frame without a folio. The caller sees to it that the folio stays: it holds a reference, a space that
    /// maps it, or everything. With [`Fill::Walk`] it holds no table.
    pub fn kpagecount(&self, pfn: Pfn, fill: Fill) -> Answer<u64> {
        match self.folio(pfn) {
            // No owner asks.
            Some(folio) => self.ask(folio, pfn.raw() - folio.head().raw(), 0, fill).page_count,
            None => Answer::Exact(0),
        }
    }
}
