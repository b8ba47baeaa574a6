//! Stage-2 faults: the memory behind the guest frame is looked up in the VMM's space, made there if it must be, and every page of its folio that fits the slot, the
//! host's own mapping and one stage-2 table is mapped in one batch, by the largest leaves that both sides allow.
//!
//! The leaf is entered while the lock of the host's table is held over the entry that it is derived from. Whoever changes that entry does so under the same lock
//! and invalidates behind it: either the change is seen here, or the leaf is found there.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::slot::{Backing, Slot, SlotFlags, SlotRecord};
use super::zap::{fits_leaf, stage2_batch};
use super::{AsId, Vm, VmId, in_format};
use crate::addr::{Gva, Level, Order, Pfn};
use crate::folio::Folio;
use crate::format::{Attrs, Entry, Format, Leaf, LongMode};
use crate::mapcount::{Accounting, Class, Classes, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::{OpenError, PageTable, Part};
use crate::space::{Access, FaultError, Manager, Space, Vma, VmaFlags};
use crate::sync::{lock_word, read_lock};

/// What the guest tried, by guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmAccess {
    /// Address space.
    pub view: AsId,
    /// Guest frame.
    pub gfn: u64,
    /// What it tried there.
    pub access: Access,
}

/// What a stage-2 fault turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmFaultKind {
    /// Leaves were entered.
    Mapped,
    /// Leaves became writable: the host's had, or a store had to be logged.
    Upgraded,
    /// Nothing was missing.
    Spurious,
    /// Frames of a device were entered.
    Device,
}

/// A stage-2 fault that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmFault {
    /// What it was.
    pub kind: VmFaultKind,
    /// The level of the leaves.
    pub level: Level,
    /// Pages mapped or made writable.
    pub pages: u64,
    /// The order of the folio; order 0 for a device.
    pub order: Order,
    /// Faults that the VMM's space took on the way.
    pub host_faults: u32,
}

/// Why a stage-2 fault could not be served: it is for the VMM to handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmFaultError {
    /// No slot has the guest frame: an access to an emulated device.
    NoSlot,
    /// A store to a read-only slot.
    ReadOnly,
    /// What the VMM's space says of the page behind it.
    Host(FaultError),
    /// The folio has as many leaves as it may.
    Refused(Refused),
    /// No frame for a table, or for the counts of the folio.
    OutOfFrames,
    /// The VM is retired.
    Zombie,
}

impl fmt::Display for VmFaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot => f.write_str("no slot has the guest frame"),
            Self::ReadOnly => f.write_str("a store to a read-only slot"),
            Self::Host(error) => write!(f, "the page behind it: {error}"),
            Self::Refused(refused) => refused.fmt(f),
            Self::OutOfFrames => f.write_str("out of frames"),
            Self::Zombie => f.write_str("the VM is retired"),
        }
    }
}

impl core::error::Error for VmFaultError {}

/// What an attempt came to.
enum Attempt {
    Done(VmFault),
    /// The tables changed meanwhile.
    Again,
    /// The space must map this page first.
    Host(u64),
}

use Attempt::{Again, Done, Host};

/// What the host has around a page: consecutive memory of one folio with the same rights.
struct Behind<'a> {
    /// Pages of the space.
    pages: Range<u64>,
    /// The frame of the first of them.
    first: Pfn,
    /// The folio; `None` for memory that is not counted.
    folio: Option<Folio<'a>>,
    /// The largest leaf that may stand for it.
    level: Level,
    write: bool,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// Serves an access that the stage-2 tables do not allow.
    ///
    /// # Errors
    /// [`VmFaultError`].
    pub fn vm_fault(&self, id: VmId, at: VmAccess) -> Result<VmFault, VmFaultError> {
        self.serve_vm(id, at, false)
    }

    /// As [`vm_fault`](Self::vm_fault); `walker` says that a store is one of bits of the guest's own tables, which stay tracked.
    pub(super) fn serve_vm(&self, id: VmId, at: VmAccess, walker: bool) -> Result<VmFault, VmFaultError> {
        let vm = self.vm(id);
        let space = self.space(vm.space());
        let mut host_faults = 0;
        loop {
            let attempt = {
                let _space = read_lock(space.lock());
                let _vm = self.read_vm(&vm);
                if vm.is_zombie() {
                    return Err(VmFaultError::Zombie);
                }
                let _region = A::NEEDS.region.then(|| lock_word(vm.region_lock()));
                let entry = self.find_slot(&vm, at.view, at.gfn).ok_or(VmFaultError::NoSlot)?;
                let _shadows = vm.lock_shadows();
                if at.access == Access::Write && !walker && !entry.get().flags.has(SlotFlags::READ_ONLY) {
                    self.release_table(&vm, at.view, at.gfn);
                }
                in_format!(vm.format(), F => self.vm_fault_in::<F>(&space, &vm, entry, at, walker))?
            };
            match attempt {
                Done(fault) => return Ok(VmFault { host_faults, ..fault }),
                Again => {}
                Host(page) => {
                    // What a guest may fetch its own tables say: to its VMM it reads.
                    let access = if at.access == Access::Write { Access::Write } else { Access::Read };
                    self.fault(vm.space(), Gva::from_page(page), access).map_err(VmFaultError::Host)?;
                    host_faults += 1;
                }
            }
        }
    }

    fn vm_fault_in<F: Format>(
        &self,
        space: &Space<'_>,
        vm: &Vm<'_>,
        entry: SlotRecord<'_>,
        at: VmAccess,
        walker: bool,
    ) -> Result<Attempt, VmFaultError> {
        let slot = entry.get();
        let write = at.access == Access::Write;
        if write && slot.flags.has(SlotFlags::READ_ONLY) {
            return Err(VmFaultError::ReadOnly);
        }
        let root = vm.root(at.view).expect("an address space with a slot has a root");
        let (place, now) = PageTable::<F>::new(root).deepest(self, at.gfn);
        let present = match now {
            Entry::Leaf(leaf) if !write || leaf.attrs.has(if walker { HOST_WRITE } else { Attrs::WRITE }) => {
                return Ok(Done(fault(VmFaultKind::Spurious, place.level, 0, Order::BASE)));
            }
            Entry::Leaf(leaf) => Some(leaf),
            _ => None,
        };
        let page = match slot.backing {
            Backing::Device(first) => return self.map_device::<F>(vm, root, slot, first, at, place.level),
            Backing::Host(start) => start + (at.gfn - slot.gfn),
        };
        let Some(vma) = self.find_vma(space, page) else { return Ok(Host(page)) };
        if slot.flags.has(SlotFlags::UNMAPPED) && vma.object() != 0 && !vma.is_private() {
            let index = vma.index(page);
            let needed = if write { VmaFlags::WRITE } else { VmaFlags::READ };
            if !vma.flags().has(needed) {
                return Err(VmFaultError::Host(FaultError::Forbidden));
            }
            let (folio, _) = self.cached_folio(vma.object(), index).map_err(|out_of_frames| {
                VmFaultError::Host(if out_of_frames { FaultError::OutOfFrames } else { FaultError::BeyondEnd })
            })?;
            let window = self.window(vma, folio, 0..crate::space::PAGES_END);
            let first = vma.index(window.start) - self.mapping(folio).index;
            let behind = Behind {
                first: folio.head().add(first),
                pages: window,
                folio: Some(folio),
                level: Level::THREE,
                write: vma.flags().has(VmaFlags::WRITE),
            };
            let result = self.derive::<F>(vm, root, entry, slot, page, at, place.level, present, &behind);
            self.put(folio, 1);
            return result;
        }
        // The host's table stays locked until the leaf is in.
        let alone = slot.flags.has(SlotFlags::LOGGING);
        let Some((behind, _part)) = self.behind(space, vma, page, alone) else { return Ok(Host(page)) };
        if write && !behind.write {
            return Ok(Host(page));
        }
        self.derive::<F>(vm, root, entry, slot, page, at, place.level, present, &behind)
    }

    /// What the space maps around `page`, or there `alone`, with the lock of its table.
    fn behind<'a>(
        &'a self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        alone: bool,
    ) -> Option<(Behind<'a>, Part<'a, LongMode, Self>)> {
        let block = page & !(Level::ONE.table_pages() - 1);
        let within = vma.start().max(block)..vma.end().min(block + Level::ONE.table_pages());
        let mut cursor = space.table().cursor(self, within.start, within.end);
        let part = cursor.next()?;
        if !(part.page(part.range().start)..part.page(part.range().end)).contains(&page) {
            return None;
        }
        let i = part.index(page);
        let leaf = part.leaf(i).filter(|leaf| leaf.attrs.has(Attrs::USER))?;
        let level = part.level();
        let write = leaf.attrs.has(Attrs::WRITE);
        if leaf.attrs.has(Attrs::UNTRACKED) {
            let behind = Behind { pages: page..page + 1, first: leaf.pfn, folio: None, level: Level::ONE, write };
            return Some((behind, part));
        }
        let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
        let behind = if level > Level::ONE {
            let first = part.page(i);
            Behind { pages: first..first + level.entry_pages(), first: leaf.pfn, folio: Some(folio), level, write }
        } else {
            let run = if alone { i..i + 1 } else { self.run_around(vma, &part, folio, i) };
            let first = part.leaf(run.start).expect("the run consists of leaves").pfn;
            Behind { pages: part.page(run.start)..part.page(run.end), first, folio: Some(folio), level, write }
        };
        Some((behind, part))
    }

    /// Enters leaves for what the host has, or lets those that are there be stored to.
    #[expect(clippy::too_many_arguments, reason = "where the leaf goes, and what it is derived from")]
    fn derive<F: Format>(
        &self,
        vm: &Vm<'_>,
        root: Pfn,
        entry: SlotRecord<'_>,
        slot: Slot,
        page: u64,
        at: VmAccess,
        lowest: Level,
        present: Option<Leaf>,
        behind: &Behind<'_>,
    ) -> Result<Attempt, VmFaultError> {
        let gfn = at.gfn;
        let write = at.access == Access::Write;
        let logging = slot.flags.has(SlotFlags::LOGGING);
        let storable = behind.write && !slot.flags.has(SlotFlags::READ_ONLY);
        let writable = storable && (write || !logging);
        // The guest frames that the memory behind covers, within the slot. A slot's first page may lie inside of it.
        let start = gfn - (page - behind.pages.start).min(gfn - slot.gfn);
        let end = gfn + (behind.pages.end - page).min(slot.gfns().end - gfn);
        let frame = |gfn_of: u64| behind.first.add(page + gfn_of - gfn - behind.pages.start);
        let gfns = if logging { gfn..gfn + 1 } else { start..end };
        if present.is_some() {
            return self.upgrade::<F>(vm, root, entry, at, &gfns, frame, behind);
        }
        let max = if logging { Level::ONE } else { self.policy().max_leaf.min(behind.level).min(lowest) };
        let mut highest = max;
        loop {
            let level = [Level::THREE, Level::TWO]
                .into_iter()
                .find(|&level| {
                    let block = gfn & !(level.entry_pages() - 1);
                    level <= highest
                        && gfns.start <= block
                        && block + level.entry_pages() <= gfns.end
                        && self.shadowed(vm, at.view, block..block + level.entry_pages()) == 0
                        && behind.folio.is_some_and(|folio| fits_leaf(folio, frame(block), level))
                })
                .unwrap_or(Level::ONE);
            let attrs = leaf_attrs(writable).with_if(storable, HOST_WRITE);
            match self.enter::<F>(vm, root, entry, at, &gfns, frame, behind.folio, level, attrs) {
                // Smaller leaves may have a representation.
                Err(VmFaultError::Refused(Refused::Shape)) if level > Level::ONE => {
                    highest = level.below().unwrap_or(Level::ONE);
                }
                Ok(Done(fault)) => {
                    if logging && write {
                        self.note_dirty(entry, gfn);
                    }
                    return Ok(Done(fault));
                }
                result => return result,
            }
        }
    }

    /// The table of `level` at `gfn`, whose entry there holds nothing; `None` when something is there or on the way.
    fn open_absent<F: Format>(
        &self,
        root: Pfn,
        gfn: u64,
        level: Level,
    ) -> Result<Option<Part<'_, F, Self>>, VmFaultError> {
        match PageTable::<F>::new(root).cursor(self, gfn, gfn + 1).open(level) {
            Ok(part) => Ok(Some(part).filter(|part| part.is_absent(part.index(gfn)))),
            Err(OpenError::OutOfFrames) => Err(VmFaultError::OutOfFrames),
            Err(OpenError::InTheWay) => Ok(None),
        }
    }

    /// Enters leaves of `level` for the absent entries around `gfn`, within `gfns` and one table.
    #[expect(clippy::too_many_arguments, reason = "where the leaf goes, and what it leads to")]
    fn enter<F: Format>(
        &self,
        vm: &Vm<'_>,
        root: Pfn,
        entry: SlotRecord<'_>,
        VmAccess { view, gfn, .. }: VmAccess,
        gfns: &Range<u64>,
        frame: impl Fn(u64) -> Pfn,
        folio: Option<Folio<'_>>,
        level: Level,
        attrs: Attrs,
    ) -> Result<Attempt, VmFaultError> {
        let Some(part) = self.open_absent::<F>(root, gfn, level)? else { return Ok(Again) };
        let step = level.entry_pages();
        let span = part.span();
        let first = gfns.start.max(span.start).next_multiple_of(step);
        let end = gfns.end.min(span.end) / step * step;
        let range = part.absent_around(part.index(gfn), part.index(first)..part.index(end - 1) + 1);
        let pfn = frame(part.page(range.start));
        let pages = range.len() as u64 * step;
        let kind = if let Some(folio) = folio {
            let batch = stage2_batch(vm, entry, &part, pfn.raw() - folio.head().raw(), range.len());
            let beside = self.beside_in_slot(root, &part, entry.get().gfns(), folio, range.clone());
            if !self.make_room(folio, Class::Vm) {
                return Err(VmFaultError::OutOfFrames);
            }
            Classes::<A>::add(&self.counts(folio), &batch, beside).map_err(VmFaultError::Refused)?;
            self.install_tracked(vm, view, &part, range.clone(), Leaf { pfn, attrs });
            VmFaultKind::Mapped
        } else {
            let leaf = Leaf { pfn, attrs: attrs.or(Attrs::UNTRACKED) };
            self.install_tracked(vm, view, &part, range.clone(), leaf);
            VmFaultKind::Device
        };
        vm.leaves(level).fetch_add(range.len() as u64, Relaxed);
        Ok(Done(fault(kind, level, pages, folio.map_or(Order::BASE, |folio| folio.order()))))
    }

    /// Lets the leaves around `gfn`, within `gfns`, be stored to: they lead where the host's lead, which may be. What is made is never more than a table's worth.
    #[expect(clippy::too_many_arguments, reason = "where the leaf stands, and what it is derived from")]
    fn upgrade<F: Format>(
        &self,
        vm: &Vm<'_>,
        root: Pfn,
        entry: SlotRecord<'_>,
        VmAccess { view, gfn, .. }: VmAccess,
        gfns: &Range<u64>,
        frame: impl Fn(u64) -> Pfn,
        behind: &Behind<'_>,
    ) -> Result<Attempt, VmFaultError> {
        let mut cursor = PageTable::<F>::new(root).cursor(self, gfn, gfn + 1);
        let Some(part) = cursor.next() else { return Ok(Again) };
        let at = part.index(gfn);
        let level = part.level();
        let step = level.entry_pages();
        let note_store = || {
            if entry.get().flags.has(SlotFlags::LOGGING) {
                self.note_dirty(entry, gfn);
            }
        };
        let leads = |i: usize| {
            let first = part.page(i);
            gfns.start <= first
                && first + step <= gfns.end
                && part.leaf(i).is_some_and(|leaf| leaf.pfn == frame(first) && !leaf.attrs.has(Attrs::UNTRACKED))
        };
        if behind.folio.is_none() {
            if part.leaf(at).is_none_or(|leaf| leaf.pfn != frame(part.page(at))) {
                return Ok(Again);
            }
            let attrs = leaf_attrs(true);
            let attrs = if self.is_tracked(vm, view, gfn) { attrs.without(Attrs::WRITE) } else { attrs };
            part.change(at, 1, Attrs::NONE, attrs);
            note_store();
            return Ok(Done(fault(VmFaultKind::Upgraded, level, step, Order::BASE)));
        }
        debug_assert!((part.page(at)..part.page(at) + step).contains(&gfn), "the part is of this guest frame");
        if !leads(at) {
            // It leads elsewhere, or is larger than what may be stored to: whoever changed the host's leaf is about to remove it, or eager splitting is.
            return Ok(Again);
        }
        let end = part.span().end.min(gfns.end);
        let mut range = at..at + 1;
        if self.is_tracked(vm, view, gfn) {
            // For whoever walks the guest's tables.
            part.change(at, 1, Attrs::NONE, leaf_attrs(true).without(Attrs::WRITE));
        } else {
            let leads = |i: usize| leads(i) && !self.is_tracked(vm, view, part.page(i));
            while range.start > 0 && part.page(range.start) > gfns.start && leads(range.start - 1) {
                range.start -= 1;
            }
            while part.page(range.end - 1) + step < end && leads(range.end) {
                range.end += 1;
            }
            part.change(range.start, range.len(), Attrs::NONE, leaf_attrs(true));
        }
        note_store();
        let order = behind.folio.map_or(Order::BASE, |folio| folio.order());
        Ok(Done(fault(VmFaultKind::Upgraded, level, range.len() as u64 * step, order)))
    }

    fn map_device<F: Format>(
        &self,
        vm: &Vm<'_>,
        root: Pfn,
        slot: Slot,
        first: Pfn,
        VmAccess { view, gfn, .. }: VmAccess,
        lowest: Level,
    ) -> Result<Attempt, VmFaultError> {
        let writable = !slot.flags.has(SlotFlags::READ_ONLY);
        let frame = |gfn: u64| first.add(gfn - slot.gfn);
        let level = if lowest >= Level::TWO && self.policy().max_leaf >= Level::TWO {
            let block = gfn & !(Level::TWO.entry_pages() - 1);
            let whole = slot.gfn <= block && block + Level::TWO.entry_pages() <= slot.gfns().end;
            let whole = whole && self.shadowed(vm, view, block..block + Level::TWO.entry_pages()) == 0;
            let congruent = |block: u64| frame(block).raw().is_multiple_of(Level::TWO.entry_pages());
            if whole && congruent(block) { Level::TWO } else { Level::ONE }
        } else {
            Level::ONE
        };
        let Some(part) = self.open_absent::<F>(root, gfn, level)? else { return Ok(Again) };
        let i = part.index(gfn);
        let attrs = leaf_attrs(writable).or(Attrs::UNTRACKED);
        let attrs = attrs.with_if(slot.flags.has(SlotFlags::UNCACHED), Attrs::UNCACHED);
        self.install_tracked(vm, view, &part, i..i + 1, Leaf { pfn: frame(part.page(i)), attrs });
        vm.leaves(level).fetch_add(1, Relaxed);
        Ok(Done(fault(VmFaultKind::Device, level, level.entry_pages(), Order::BASE)))
    }
}

/// What a stage-2 leaf allows. The guest's own tables say what it may execute. Accessed is set by the fault that enters it; dirty where a store
/// is allowed, as only the log tells stores apart.
pub(super) fn leaf_attrs(writable: bool) -> Attrs {
    let attrs = Attrs::USER.or(Attrs::EXEC).or(Attrs::ACCESSED);
    attrs.with_if(writable, Attrs::WRITE.or(Attrs::DIRTY).or(HOST_WRITE))
}

/// Of a stage-2 or nested leaf: what stands below allows stores, though the leaf itself may not, because a log or the tracking of a table wants to see them. Whoever walks
/// the guest's tables sets their accessed and dirty bits by it. Leaves of VMs have no use for the bit of exclusive pages.
pub(super) const HOST_WRITE: Attrs = Attrs::EXCLUSIVE;

fn fault(kind: VmFaultKind, level: Level, pages: u64, order: Order) -> VmFault {
    VmFault { kind, level, pages, order, host_faults: 0 }
}
