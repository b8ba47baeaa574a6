//! The dirty log of a slot: which guest pages were stored to since it was last read.
//!
//! While it is on the slot has leaves of 4 KiB only, and those that were not stored to since do not allow it: the fault that allows it notes the page. Leaves
//! that are larger when the log starts are split at once (eagerly), each into a table that is full before it is linked, so that T and the owners
//! of its folio stay as they are (R8). When it stops, what can be one leaf again becomes one.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::cut::Change;
use super::fault::leaf_attrs;
use super::slot::{Backing, SlotFlags, SlotRecord};
use super::zap::stage2_batch;
use super::{AsId, SlotId, Vm, VmId, in_format};
use crate::addr::{ENTRIES, Level, Order, Pfn};
use crate::folio::FolioFlags;
use crate::format::{Attrs, Format, Leaf};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, PageTable};
use crate::space::{Manager, Space};
use crate::sync::{AtomicU64, lock_word, read_lock};

/// Pages that one frame of bits has room for.
const BITS: u64 = 4096 * 8;

/// Why a log cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// It is on.
    On,
    /// The slot is longer than 64 GiB, or of a device.
    Slot,
    /// No frames for its bits, or for the tables of leaves that must be split.
    OutOfFrames,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "the log is on",
            Self::Slot => "no log of a slot of a device, or beyond 64 GiB",
            Self::OutOfFrames => "out of frames",
        })
    }
}

impl core::error::Error for LogError {}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// Starts the log of a slot: from now on stores are noted.
    ///
    /// # Errors
    /// [`LogError`]; the log is off then.
    ///
    /// # Panics
    /// When the VM has no such slot in that address space.
    pub fn start_log(&self, id: VmId, view: AsId, slot: SlotId) -> Result<(), LogError> {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        let entry = self.slot_of(&vm, view, slot);
        let now = entry.get();
        if now.flags.has(SlotFlags::LOGGING) {
            return Err(LogError::On);
        }
        let nr = now.pages.div_ceil(BITS);
        if nr > ENTRIES as u64 || matches!(now.backing, Backing::Device(_)) {
            return Err(LogError::Slot);
        }
        if self.make_log(entry, nr).is_none() {
            self.free_log(entry);
            return Err(LogError::OutOfFrames);
        }
        entry.set_flags(now.flags.or(SlotFlags::LOGGING));
        in_format!(vm.format(), F => self.protect_slot::<F>(&vm, view, entry, now.gfns()));
        Ok(())
    }

    /// Stops the log: what it had noted is forgotten, and blocks of 2 MiB or more that are one leaf of the host become one leaf again. Blocks that are only
    /// partly there are unmapped, so that the next fault maps them large.
    ///
    /// # Panics
    /// As [`start_log`](Self::start_log), or when the log is off.
    pub fn stop_log(&self, id: VmId, view: AsId, slot: SlotId) {
        let vm = self.vm(id);
        let space = self.space(vm.space());
        let _space = read_lock(space.lock());
        let _guard = self.write_vm(&vm);
        let entry = self.slot_of(&vm, view, slot);
        let now = entry.get();
        assert!(now.flags.has(SlotFlags::LOGGING), "the log is off");
        entry.set_flags(now.flags.without(SlotFlags::LOGGING));
        self.free_log(entry);
        in_format!(vm.format(), F => self.recover::<F>(&space, &vm, view, entry));
    }

    /// Reads the log and starts it anew: calls `visit` for each guest frame that was stored to since it was read last, when stores to it are noted again.
    ///
    /// # Panics
    /// As [`stop_log`](Self::stop_log).
    pub fn take_log(&self, id: VmId, view: AsId, slot: SlotId, mut visit: impl FnMut(u64)) {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        let entry = self.slot_of(&vm, view, slot);
        let now = entry.get();
        assert!(now.flags.has(SlotFlags::LOGGING), "the log is off");
        for first in (0..now.pages).step_by(64) {
            let word = self.log_word(entry, first).expect("a log that is on has bits");
            let mut bits = word.swap(0, Relaxed);
            if bits == 0 {
                continue;
            }
            // From the lowest to the highest: one pass over one table.
            let low = first + u64::from(bits.trailing_zeros());
            let end = first + 64 - u64::from(bits.leading_zeros());
            in_format!(vm.format(), F => self.protect_slot::<F>(&vm, view, entry, now.gfn + low..now.gfn + end));
            while bits != 0 {
                visit(now.gfn + first + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
    }

    /// Splits all leaves of `gfns` down to 4 KiB and takes the right to store away.
    fn protect_slot<F: Format>(&self, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>, gfns: Range<u64>) {
        let Some(root) = vm.root(view) else { return };
        let _region = A::NEEDS.region.then(|| lock_word(vm.region_lock()));
        let mut flush = Flush::new();
        let mut no_frames: Option<Range<u64>> = None;
        // Frames of the folio that was noted last.
        let mut noted = Pfn::new(0)..Pfn::new(0);
        let mut cursor = PageTable::<F>::new(root).cursor(self, gfns.start, gfns.end);
        while let Some(part) = cursor.next() {
            let mut i = part.range().start;
            while i < part.range().end {
                if part.leaf(i).is_none() {
                    i += 1;
                    continue;
                }
                if part.level() == Level::ONE {
                    let first = i;
                    let end = part.range().end;
                    while let Some(leaf) = (i < end).then(|| part.leaf(i)).flatten() {
                        if leaf.attrs.has(Attrs::DIRTY) && !noted.contains(&leaf.pfn) {
                            noted = self.note_folio_dirty(leaf);
                        }
                        i += 1;
                    }
                    part.change(first, i - first, Attrs::WRITE.or(Attrs::DIRTY), Attrs::NONE);
                    self.narrowed(root, &mut flush, part.page(first), (i - first) as u64);
                } else if self.split_stage2(vm, root, entry, &part, i, &mut flush) {
                    cursor.seek(part.page(i).max(gfns.start));
                    break;
                } else {
                    let slot = entry.get().gfns();
                    let span = part.page(i)..part.page(i) + part.level().entry_pages();
                    no_frames = Some(span.start.max(slot.start)..span.end.min(slot.end));
                    break;
                }
            }
            if let Some(span) = no_frames.take() {
                // Without a table the leaf goes: the log misses nothing, and faults bring the pages back one by one.
                drop(part);
                self.finish_stage2(vm, view, root, &mut flush, Change::Narrowed);
                self.drop_leaf::<F>(vm, view, root, entry, span.clone());
                cursor.seek(span.end.max(gfns.start));
            }
        }
        self.finish_stage2(vm, view, root, &mut flush, Change::Narrowed);
    }

    /// Removes the one leaf over `span`. The region lock is held.
    fn drop_leaf<F: Format>(&self, vm: &Vm<'_>, view: AsId, root: Pfn, entry: SlotRecord<'_>, span: Range<u64>) {
        let mut flush = Flush::new();
        let mut cursor = PageTable::<F>::new(root).cursor(self, span.start, span.end);
        if let Some(part) = cursor.next()
            && let i = part.range().start
            && part.leaf(i).is_some()
        {
            self.take_leaves(vm, root, entry, &part, i..i + 1, &mut flush);
        }
        self.finish_stage2(vm, view, root, &mut flush, Change::Gone);
    }

    /// Makes large leaves of what the log has split, block by block.
    fn recover<F: Format>(&self, space: &Space<'_>, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>) {
        let Some(root) = vm.root(view) else { return };
        let slot = entry.get();
        let Backing::Host(start) = slot.backing else { return };
        for level in [Level::TWO, Level::THREE].into_iter().filter(|&level| level <= self.policy().max_leaf) {
            let step = level.entry_pages();
            let mut block = slot.gfn.next_multiple_of(step);
            while block + step <= slot.gfns().end {
                let page = start + (block - slot.gfn);
                if self.is_one_leaf(space, page, level) {
                    self.recover_block::<F>(space, vm, view, root, entry, block, page, level);
                }
                block += step;
            }
        }
    }

    /// Whether the space has one leaf of `level` at `page`, the first of what it maps.
    fn is_one_leaf(&self, space: &Space<'_>, page: u64, level: Level) -> bool {
        space.table().lookup(self, page).is_some_and(|(place, leaf)| {
            place.level >= level
                && page.is_multiple_of(level.entry_pages())
                && !leaf.attrs.has(Attrs::UNTRACKED)
                && place.page <= page
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a block of either side")]
    fn recover_block<F: Format>(
        &self,
        space: &Space<'_>,
        vm: &Vm<'_>,
        view: AsId,
        root: Pfn,
        entry: SlotRecord<'_>,
        block: u64,
        page: u64,
        level: Level,
    ) {
        let step = level.entry_pages();
        let table = PageTable::<F>::new(root);
        let present = table.count_of(self, block..block + step, Pfn::new(0)..Pfn::new(u64::MAX >> 12)).pages;
        if present == 0 || table.lookup(self, block).is_some_and(|(place, _)| place.level >= level) {
            return;
        }
        if present < step {
            self.zap_stage2::<F>(vm, view, entry, block..block + step);
            self.prune_stage2_range::<F>(vm, view, block..block + step);
            return;
        }
        let _region = A::NEEDS.region.then(|| lock_word(vm.region_lock()));
        let shadows = vm.lock_shadows();
        if self.shadowed(vm, view, block..block + step) > 0 {
            // Tables of the guest there are tracked page by page.
            return;
        }
        // All leaves alike: a store is allowed where the host's leaf, which stays as the space is held and its table locked, allows it.
        let mut host = space.table().cursor(self, page, page + step);
        let Some(host) = host.next() else { return };
        let Some(host_leaf) = host.leaf(host.range().start) else { return };
        let writable = host_leaf.attrs.has(Attrs::WRITE) && !entry.get().flags.has(SlotFlags::READ_ONLY);
        let below = level.below().expect("not the lowest");
        let mut flush = Flush::new();
        {
            let mut cursor = table.cursor(self, block, block + step);
            while let Some(part) = cursor.next() {
                if part.level() != below {
                    return;
                }
                let range = part.range();
                part.change(range.start, range.len(), Attrs::NONE, leaf_attrs(writable));
            }
        }
        if let Some((_, leaf)) = table.cursor(self, block, block + step).collapse(level, &mut flush) {
            self.memory().owe_stage2(root);
            let folio = self.folio(leaf.pfn).expect("a slot with a log maps folios");
            vm.leaves(below).fetch_sub(512, Relaxed);
            vm.leaves(level).fetch_add(1, Relaxed);
            let mut cursor = table.cursor(self, block, block + step);
            let part = cursor.next().expect("the leaf is there");
            let i = part.range().start;
            let batch = stage2_batch(vm, entry, &part, leaf.pfn.raw() - folio.head().raw(), 1);
            let beside = self.beside_in_slot(root, &part, entry.get().gfns(), folio, i..i + 1);
            Classes::<A>::collapse(&self.counts(folio), &batch, beside);
        }
        drop(host);
        drop(shadows);
        self.finish_stage2(vm, view, root, &mut flush, Change::Narrowed);
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// A leaf is about to lose its dirty bit: the folio keeps it. The frames of that folio.
    fn note_folio_dirty(&self, leaf: Leaf) -> Range<Pfn> {
        let folio = (!leaf.attrs.has(Attrs::UNTRACKED)).then(|| self.folio(leaf.pfn)).flatten();
        if let Some(folio) = folio.filter(|folio| !folio.is_anon()) {
            folio.set_flags(FolioFlags::DIRTY);
        }
        folio.map_or(leaf.pfn..leaf.pfn, |folio| folio.head()..folio.end())
    }

    /// Notes that guest frame `gfn` of a slot with a log was stored to, or may be from now on.
    pub(super) fn note_dirty(&self, entry: SlotRecord<'_>, gfn: u64) {
        let page = gfn - entry.get().gfn;
        if let Some(word) = self.log_word(entry, page) {
            word.fetch_or(1 << (page % 64), Relaxed);
        }
    }

    /// The word that has the bit of page `page` of the slot.
    fn log_word(&self, entry: SlotRecord<'_>, page: u64) -> Option<&AtomicU64> {
        let index = entry.log().load(Relaxed);
        if index == 0 {
            return None;
        }
        let frame = self.memory().frame(Pfn::new(index)).0[(page / BITS) as usize].load(Relaxed);
        Some(&self.memory().frame(Pfn::new(frame)).0[(page % BITS / 64) as usize])
    }

    fn make_log(&self, entry: SlotRecord<'_>, nr: u64) -> Option<()> {
        let frame = || {
            let run = self.frames.alloc(Order::BASE, true)?;
            if !run.zeroed {
                self.memory().zero(run.pfn, 1);
            }
            Some(run.pfn)
        };
        let index = frame()?;
        entry.log().store(index.raw(), Relaxed);
        for i in 0..nr as usize {
            self.memory().frame(index).0[i].store(frame()?.raw(), Relaxed);
        }
        Some(())
    }

    pub(super) fn free_log(&self, entry: SlotRecord<'_>) {
        let index = entry.log().swap(0, Relaxed);
        if index == 0 {
            return;
        }
        for word in &self.memory().frame(Pfn::new(index)).0 {
            let frame = word.load(Relaxed);
            if frame != 0 {
                self.frames.free(Pfn::new(frame), Order::BASE, false);
            }
        }
        self.frames.free(Pfn::new(index), Order::BASE, false);
    }
}
