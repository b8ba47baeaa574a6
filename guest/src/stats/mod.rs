//! What a kernel tells of its memory: the numbers of `/proc/PID/{smaps,smaps_rollup,numa_maps,pagemap}`, `/proc/meminfo` and
//! `/proc/kpagecount`, for any tenant and under any scheme.
//!
//! Names and rules are Linux's (Documentation/filesystems/proc.rst, admin-guide/mm/pagemap.rst, admin-guide/mm/numa_memory_policy.rst;
//! `fs/proc/task_mmu.c`); what depends on mapcounts is what the scheme answers (SCHEMES.md, answers), with how sure it is: an [`Answer`](crate::mapcount::Answer)
//! whose value is missing where the scheme cannot tell. All amounts are pages of 4 KiB.
//!
//! A reader holds the space shared: faults go on meanwhile, so that vmas, and tables of one vma, are seen one after the other. Where the scheme has
//! lost sight of an owner, it learns from the walk again (SCHEMES.md, [`Accounting::relearn`]).

mod answer;
mod meminfo;
mod numa_maps;
mod pagemap;
mod smaps;

pub use answer::{Fill, sum};
pub use meminfo::Meminfo;
pub use numa_maps::NumaMap;
pub use pagemap::PagemapEntry;
pub use smaps::Smaps;

use crate::addr::Level;
use crate::folio::{Folio, FolioFlags};
use crate::format::Attrs;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, SpaceId, Vma};

/// A leaf that a reader has come to. Its folio stays until the reader goes on.
struct Seen<'a> {
    /// The first page of the space that it translates, and how many.
    page: u64,
    pages: u64,
    level: Level,
    attrs: Attrs,
    folio: Folio<'a>,
    /// The page of the folio that it maps first.
    first: u64,
}

impl Seen<'_> {
    /// Whether what it maps differs from what its file holds, or would have to be written to swap.
    fn is_dirty(&self) -> bool {
        self.attrs.has(Attrs::DIRTY) || self.folio.flags().has(FolioFlags::DIRTY)
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Calls `visit` for every leaf of `vma` that maps a folio, and has the scheme relearn what the vma holds of it: once for each large folio, unless
    /// others stand between its leaves. The caller holds the space.
    ///
    /// The leaf is shown under the lock of its table, so that its folio stays; with `walks`, by a reference instead, so that `visit` may walk.
    fn each_leaf<'a>(&'a self, vma: Vma<'a>, walks: bool, mut visit: impl FnMut(&Seen<'a>)) {
        let mut cursor = self.page_table(vma.space()).cursor(self, vma.start(), vma.end());
        let mut learnt = None;
        'parts: while let Some(part) = cursor.next() {
            for i in part.range() {
                // Frozen leaves too: whoever froze one has not taken it off the counts.
                let Some(leaf) = part.held(i).filter(|leaf| !leaf.attrs.has(Attrs::UNTRACKED)) else { continue };
                let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
                if folio.pages() > 1 && learnt.replace(folio.head()) != Some(folio.head()) {
                    self.relearn(vma, folio);
                }
                let seen = Seen {
                    page: part.page(i),
                    pages: part.level().entry_pages(),
                    level: part.level(),
                    attrs: leaf.attrs,
                    folio,
                    first: leaf.pfn.raw() - folio.head().raw(),
                };
                if walks {
                    // An rmap walk starts at the object, whose lock comes before those of tables.
                    folio.get(1);
                    cursor.seek(part.page(i + 1));
                    drop(part);
                    visit(&seen);
                    self.put(folio, 1);
                    continue 'parts;
                }
                visit(&seen);
            }
        }
    }

    /// smaps and numa_maps in one reading: calls `visit` for every vma of a space, in address order. What `visit` does happens while the space is held.
    pub fn read_stats(&self, id: SpaceId, fill: Fill, mut visit: impl FnMut(Vma<'_>, &Smaps, &NumaMap)) {
        let _space = self.hold(id);
        for vma in self.vmas(id) {
            let mut smaps = Smaps { size: vma.pages(), ..Smaps::default() };
            let mut numa = NumaMap::default();
            self.each_leaf(vma, fill == Fill::Walk, |seen| {
                smaps.add_leaf(seen, || self.is_shmem(vma.object()));
                numa.add_leaf(seen);
                // Without counts for pages a scheme says the same of each, and only a walk could tell them apart.
                let same = if A::PAGE_COUNTS == 0 && fill == Fill::Scheme { seen.pages } else { 1 };
                for page in (seen.first..seen.first + seen.pages).step_by(same as usize) {
                    let said = self.ask(seen.folio, page, id.raw(), fill);
                    smaps.add_answer(&said, same, seen.is_dirty());
                    numa.add_answer(&said);
                }
            });
            visit(vma, &smaps, &numa);
        }
    }
}
