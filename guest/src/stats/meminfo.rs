//! `/proc/meminfo` (proc.rst, 1.3; SCHEMES.md, Q12 and Q13).

use crate::folio::FrameStats;
use crate::mapcount::{Accounting, Answer};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, PAGES_END, Signed};

/// What the manager's frames are used for, in pages. The four that depend on mapcounts are statistics that the scheme keeps up as leaves come and
/// go: nothing is walked for them, so a scheme that would have to walk has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meminfo {
    /// MemTotal: frames managed.
    pub total: u64,
    /// MemFree: free ones.
    pub free: u64,
    /// AnonPages: anonymous pages that are mapped.
    pub anon_pages: Answer<u64>,
    /// Mapped: pages of files and shared memory that are mapped.
    pub mapped: Answer<u64>,
    /// AnonHugePages: pages of anonymous folios of order 9 that a 2 MiB leaf maps.
    pub anon_huge: Answer<u64>,
    /// ShmemPmdMapped and FilePmdMapped: likewise of files and shared memory.
    pub file_pmd: Answer<u64>,
    /// PageTables: table pages of all spaces.
    pub page_tables: u64,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// meminfo. A snapshot, in which numbers may be a fault apart; no space may come or go meanwhile.
    pub fn meminfo(&self) -> Meminfo {
        let FrameStats { total, free, .. } = self.frames().stats();
        let statistics = self.statistics();
        // A CPU may have counted what another is about to take off.
        let pages = |statistic: &Signed| statistic.get().max(0).cast_unsigned();
        let huge = pages(&statistics.huge_mapped);
        let file_huge = pages(&statistics.file_huge_mapped);
        Meminfo {
            total,
            free,
            anon_pages: A::said_mapped(pages(&statistics.anon_mapped)),
            mapped: A::said_mapped(pages(&statistics.file_mapped)),
            anon_huge: A::said_huge(huge.saturating_sub(file_huge)),
            file_pmd: A::said_huge(file_huge),
            page_tables: self
                .spaces()
                .map(|id| {
                    let _space = self.hold(id);
                    self.page_table(id).nr_tables(self, PAGES_END)
                })
                .sum(),
        }
    }
}
