//! Removing stage-2 leaves: clear, drop what was composed from them, flush, subtract (SCHEMES.md, nested levels, R5 and R7). No reference is dropped, as none is held.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::cut::Change;
use super::slot::{Backing, SlotRecord};
use super::{AsId, Vm, in_format};
use crate::addr::{Level, Pfn};
use crate::folio::{Folio, FolioFlags};
use crate::format::{Attrs, Format};
use crate::mapcount::{Accounting, Batch, Class};
use crate::memory::{FlushScope, Memory, Tlb};
use crate::page_table::{Flush, PageTable, Part};
use crate::space::{Manager, Removed};
use crate::sync::{AtomicU64, lock_word};

/// The flush of stage-2 tables, where [`Flush::finish`] expects that of a space.
struct Stage2Tlb<'a, M>(&'a M);

impl<M: Tlb> Tlb for Stage2Tlb<'_, M> {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        self.0.flush_stage2(root, scope);
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The pages `pages` of the space whose list of VMs starts at `first` are about to lead elsewhere, or to allow less: removes what VMs have derived from them. The caller holds
    /// the space, has changed its entries and not released what they led to, so that a stage-2 fault which looks them up again waits, or sees the change.
    pub(crate) fn invalidate(&self, first: &AtomicU64, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        for vm in self.vms_of(first) {
            let _guard = self.read_vm(&vm);
            for view in AsId::ALL {
                for entry in self.slot_records(&vm, view) {
                    let slot = entry.get();
                    let Backing::Host(start) = slot.backing else { continue };
                    let from = pages.start.max(start);
                    let end = pages.end.min(start + slot.pages);
                    if from < end {
                        let gfns = slot.gfn + (from - start)..slot.gfn + (end - start);
                        in_format!(vm.format(), F => self.zap_stage2::<F>(&vm, view, entry, gfns));
                    }
                }
            }
        }
    }

    /// Removes the leaves of guest frames `gfns`, which lie in the slot. A larger leaf across an edge is split, or goes as a whole when there is no frame for that: a
    /// fault brings it back.
    pub(super) fn zap_stage2<F: Format>(&self, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>, gfns: Range<u64>) {
        let Some(root) = vm.root(view) else { return };
        let _region = A::NEEDS.region.then(|| lock_word(vm.region_lock()));
        let mut flush = Flush::new();
        let mut cursor = PageTable::<F>::new(root).cursor(self, gfns.start, gfns.end);
        while let Some(part) = cursor.next() {
            if part.straddles() && self.split_stage2(vm, root, entry, &part, part.range().start, &mut flush) {
                cursor.seek(part.page(part.range().start).max(gfns.start));
                continue;
            }
            let range = part.range();
            let mut i = range.start;
            while i < range.end {
                if part.leaf(i).is_none() {
                    i += 1;
                    continue;
                }
                if flush.is_full() {
                    cursor.seek(part.page(i).max(gfns.start));
                    break;
                }
                i += self.take_leaves(vm, root, entry, &part, i..range.end, &mut flush);
            }
            drop(part);
            if flush.is_full() {
                self.finish_stage2(vm, view, root, &mut flush, Change::Gone);
            }
        }
        self.finish_stage2(vm, view, root, &mut flush, Change::Gone);
    }

    /// Clears the leaves at the start of `range` that map one folio in order, or one that is not counted, into the token, which has room: how many.
    pub(super) fn take_leaves<'a, F: Format>(
        &'a self,
        vm: &Vm<'_>,
        root: Pfn,
        entry: SlotRecord<'_>,
        part: &Part<'_, F, Self>,
        range: Range<usize>,
        flush: &mut Flush<Removed<'a>>,
    ) -> usize {
        let (i, level) = (range.start, part.level());
        let leaf = part.leaf(i).expect("the caller saw a leaf");
        let mut n = 1;
        if leaf.attrs.has(Attrs::UNTRACKED) {
            part.clear(i, 1);
        } else {
            let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
            let first = leaf.pfn.raw() - folio.head().raw();
            let most = ((folio.pages() - first) >> level.page_shift()).max(1) as usize;
            let attrs;
            (n, attrs) = part.take_run(i, most.min(range.len()));
            let batch = stage2_batch(vm, entry, part, first, n);
            let beside = self.beside_in_slot(root, part, entry.get().gfns(), folio, i..i + n);
            flush.push(Removed { folio, batch, beside, dirty: attrs.has(Attrs::DIRTY) });
        }
        self.narrowed(root, flush, part.page(i), n as u64 * level.entry_pages());
        vm.leaves(level).fetch_sub(n as u64, Relaxed);
        n
    }

    /// Splits the leaf at `i`, and tells the counts in one operation; false when there is no frame for the table.
    pub(super) fn split_stage2<F: Format>(
        &self,
        vm: &Vm<'_>,
        root: Pfn,
        entry: SlotRecord<'_>,
        part: &Part<'_, F, Self>,
        i: usize,
        flush: &mut Flush<Removed<'_>>,
    ) -> bool {
        let leaf = part.leaf(i).expect("the caller saw a leaf");
        self.memory().owe_stage2(root);
        let split = part.split(i, flush, || {
            if !leaf.attrs.has(Attrs::UNTRACKED) {
                let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
                let batch = stage2_batch(vm, entry, part, leaf.pfn.raw() - folio.head().raw(), 1);
                let beside = self.beside_in_slot(root, part, entry.get().gfns(), folio, i..i + 1);
                A::split(&self.counts(folio), &batch, beside);
            }
        });
        if split.is_err() {
            self.memory().flush_stage2(root, FlushScope::Pages { first: part.page(i), pages: 0 });
            return false;
        }
        let level = part.level();
        vm.leaves(level).fetch_sub(1, Relaxed);
        vm.leaves(level.below().expect("a leaf above level 1")).fetch_add(512, Relaxed);
        true
    }

    /// Leaves over `pages` pages from `first` on were narrowed or are gone.
    pub(super) fn narrowed(&self, root: Pfn, flush: &mut Flush<Removed<'_>>, first: u64, pages: u64) {
        self.memory().owe_stage2(root);
        flush.add_pages(first, pages);
    }

    /// Finishes a flush of stage-2 tables: what was composed from them goes first, what they led to is uncounted last.
    pub(super) fn finish_stage2(
        &self,
        vm: &Vm<'_>,
        view: AsId,
        root: Pfn,
        flush: &mut Flush<Removed<'_>>,
        change: Change,
    ) {
        let _shadows = vm.lock_shadows();
        self.finish_stage2_locked(vm, view, root, flush, change);
    }

    /// As [`finish_stage2`](Self::finish_stage2), with the shadow lock.
    pub(super) fn finish_stage2_locked(
        &self,
        vm: &Vm<'_>,
        view: AsId,
        root: Pfn,
        flush: &mut Flush<Removed<'_>>,
        change: Change,
    ) {
        if flush.is_empty() {
            return;
        }
        if vm.shadows().is_some() {
            // The folios know whether there is anything to look for, if it is about them alone.
            let (pages, items) = (flush.pages(), flush.items());
            let known: u64 = items.iter().map(|removed| u64::from(removed.batch.pages)).sum();
            let all_known = !pages.is_empty() && known == pages.end - pages.start;
            let is_composed = |removed: &Removed<'_>| A::is_composed(&self.counts(removed.folio));
            self.drop_composed(vm, view, pages, change, !all_known || items.iter().any(is_composed));
        }
        flush.finish(&Stage2Tlb(self.memory()), self, root, |removed| {
            removed.iter().for_each(|removed| self.uncount_stage2(*removed));
        });
    }

    /// Takes leaves that hold no reference out of the counts.
    pub(super) fn uncount_stage2(&self, removed: Removed<'_>) {
        let Removed { folio, batch, beside, dirty } = removed;
        if folio.is_anon() {
            A::sub(&self.counts(folio), &batch, beside);
            return;
        }
        // Where a VM alone maps what is cached, the leaf's count is all that keeps it: from then on that says 0 until the scheme is done with it, a reference does.
        folio.get(1);
        if dirty {
            folio.set_flags(FolioFlags::DIRTY);
        }
        A::sub(&self.counts(folio), &batch, beside);
        self.put(folio, 1);
    }

    /// Frees the tables of guest frames that have no leaves any more.
    pub(super) fn prune_stage2_range<F: Format>(&self, vm: &Vm<'_>, view: AsId, gfns: Range<u64>) {
        let Some(root) = vm.root(view) else { return };
        // Whole tables only, though those at the edges may be empty too: they stay until the VM goes.
        let mut flush = Flush::<Removed<'_>>::new();
        PageTable::<F>::new(root).prune(self, gfns.clone(), gfns, &mut flush);
        self.finish_stage2(vm, view, root, &mut flush, Change::Gone);
    }
}

/// The batch of `n` leaves of a folio, from its page `first` on, in the table of `part`.
pub(super) fn stage2_batch<F: Format, M: Memory + Tlb, A: Accounting>(
    vm: &Vm<'_>,
    entry: SlotRecord<'_>,
    part: &Part<'_, F, Manager<M, A>>,
    first: u64,
    n: usize,
) -> Batch {
    Batch {
        class: Class::Vm,
        first: first as u32,
        pages: (n as u32) << part.level().page_shift(),
        leaf: part.level().leaf_order(),
        region: entry.id().raw(),
        table: part.table(),
        owner: vm.owner(),
    }
}

/// Whether the folio, mapped from `first` on by leaves of `level`, is congruent with them.
pub(super) fn fits_leaf(folio: Folio<'_>, first: Pfn, level: Level) -> bool {
    level.leaf_order() <= folio.order() && first.raw() & (level.entry_pages() - 1) == 0
}
