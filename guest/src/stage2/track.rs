//! Tracking of the guest's tables: those that something is composed from are write-protected in stage 2, and so in all that is composed from it.
//!
//! A store to such a table faults. One of the last level becomes *unsync*: stores are allowed from then on, and what was composed from it is stale until the guest flushes, as
//! in a TLB. The shadow page of one above dies, for its entries stand for whole tables; a root, which an MMU may have loaded, is emptied instead. Tracking goes by
//! guest frame: a store by another way, of the VMM or through another slot over the same memory, is not seen.
//!
//! A block with tables that something was composed from has no larger leaf in stage 2 (SCHEMES.md, nested levels, N7).

use core::ops::Range;

use super::cut::{Change, Cut};
use super::{AsId, Vm, in_format};
use crate::addr::Level;
use crate::format::{Attrs, Format, Leaf};
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, PageTable, Part};
use crate::space::{Manager, Removed};

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Whether stores to guest frame `gfn` are wanted to fault. With the shadow lock.
    pub(super) fn is_tracked(&self, vm: &Vm<'_>, view: AsId, gfn: u64) -> bool {
        self.shadow_pages_near(vm, gfn).any(|page| {
            let role = page.role();
            page.gfn() == gfn && !role.direct && role.view == view && page.is_tracked()
        })
    }

    /// Shadow pages of tables in guest frames `gfns`.
    pub(super) fn shadowed(&self, vm: &Vm<'_>, view: AsId, gfns: Range<u64>) -> usize {
        if vm.shadows().is_none() {
            return 0;
        }
        let (first, last) = (gfns.start >> 9, (gfns.end - 1) >> 9);
        let blocks = first..=last;
        blocks
            .flat_map(|block| self.shadow_pages_near(vm, block << 9).filter(move |page| page.gfn() >> 9 == block))
            .filter(|page| {
                let role = page.role();
                !role.direct
                    && role.view == view
                    && gfns.contains(&page.gfn())
                    && (page.is_tracked() || !page.is_root())
            })
            .count()
    }

    /// Installs leaves of consecutive memory; those of tracked guest frames do not allow stores.
    pub(super) fn install_tracked<F: Format>(
        &self,
        vm: &Vm<'_>,
        view: AsId,
        part: &Part<'_, F, Self>,
        range: Range<usize>,
        leaf: Leaf,
    ) {
        let step = part.level().entry_pages();
        let has_tables = |i: usize| self.shadowed(vm, view, part.page(i)..part.page(i) + step) > 0;
        if vm.shadows().is_none() || self.shadowed(vm, view, part.page(range.start)..part.page(range.end)) == 0 {
            return part.install(range.start, range.len(), leaf);
        }
        debug_assert!(
            part.level() == Level::ONE || !range.clone().any(has_tables),
            "a large leaf over a guest's table"
        );
        for i in range.clone() {
            let attrs =
                if self.is_tracked(vm, view, part.page(i)) { leaf.attrs.without(Attrs::WRITE) } else { leaf.attrs };
            part.install(i, 1, Leaf { pfn: leaf.pfn.add((i - range.start) as u64 * step), attrs });
        }
    }

    /// Takes the right to store away from guest frame `gfn`, in stage 2 and in all that is composed. A larger leaf is split, or is gone, with all
    /// that was composed from it, when there is no frame for that. What has changed, if anything had to. With the shadow lock, and that of regions.
    pub(super) fn protect_table(&self, vm: &Vm<'_>, view: AsId, gfn: u64) -> Option<Change> {
        in_format!(vm.format(), F => self.protect_table_in::<F>(vm, view, gfn))
    }

    fn protect_table_in<F: Format>(&self, vm: &Vm<'_>, view: AsId, gfn: u64) -> Option<Change> {
        let (Some(root), Some(entry)) = (vm.root(view), self.find_slot(vm, view, gfn)) else { return None };
        let mut flush = Flush::<Removed<'_>>::new();
        let mut change = None;
        let mut cursor = PageTable::<F>::new(root).cursor(self, gfn, gfn + 1);
        while let Some(part) = cursor.next() {
            let i = part.range().start;
            let Some(leaf) = part.leaf(i) else { break };
            if part.level() == Level::ONE {
                if leaf.attrs.has(Attrs::WRITE) {
                    part.change(i, 1, Attrs::WRITE, Attrs::NONE);
                    self.narrowed(root, &mut flush, gfn, 1);
                    change = Some(Change::Narrowed);
                }
                break;
            }
            if self.split_stage2(vm, root, entry, &part, i, &mut flush) {
                change = Some(Change::Narrowed);
                cursor.seek(gfn);
                continue;
            }
            change = Some(Change::Gone);
            self.take_leaves(vm, root, entry, &part, i..i + 1, &mut flush);
        }
        if let Some(change) = change {
            self.finish_stage2_locked(vm, view, root, &mut flush, change);
        }
        change
    }

    /// The guest stores to `gfn`: if it is a table, it is no longer tracked. With the shadow lock.
    pub(super) fn release_table(&self, vm: &Vm<'_>, view: AsId, gfn: u64) {
        if vm.shadows().is_none() {
            return;
        }
        let mut cut = Cut::new();
        while let Some(page) = self.shadow_pages_near(vm, gfn).find(|page| {
            let role = page.role();
            page.gfn() == gfn && !role.direct && role.view == view && page.is_tracked()
        }) {
            if page.is_root() {
                self.empty_root(vm, page, &mut cut);
            } else if page.role().level == Level::ONE {
                page.set_tracked(false);
            } else {
                self.kill_shadow(vm, page, &mut cut);
            }
        }
        self.finish_cut(vm, &mut cut);
    }
}
