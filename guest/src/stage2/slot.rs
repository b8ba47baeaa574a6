//! Memslots: the regions of stage 2. Each is a run of guest frames with one backing.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::{AsId, Vm, VmId, in_format};
use crate::addr::Pfn;
use crate::flags::flags;
use crate::folio::Record;
use crate::format::Format;
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::page_table::Tables;
use crate::space::{Manager, PAGES_END};
use crate::sync::{AtomicU64, Field};

/// Words of a record.
pub(crate) const WORDS: usize = 8;

const FLAGS: Field<0, 8> = Field;
const NEXT: Field<32, 32> = Field;

/// What a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotFlags(u8);

flags!(SlotFlags);

impl SlotFlags {
    /// The guest may not store to it.
    pub const READ_ONLY: Self = Self(1);
    /// Its memory is taken out of the object that the VMM has mapped there, without a leaf in the VMM's own tables, as guest_memfd does: what the guest has mapped
    /// stays where it is. Only memory that is mapped shared can be had like that.
    pub const UNMAPPED: Self = Self(1 << 1);
    /// Stores are being logged; set by [`Manager::start_log`].
    pub const LOGGING: Self = Self(1 << 2);
    /// Accesses of the guest are not cached, as registers of a device want it. Of device slots.
    pub const UNCACHED: Self = Self(1 << 4);
    const DEVICE: Self = Self(1 << 3);
}

/// What stands behind a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Pages of the VMM's space from this page number on: the slot is Tracked.
    Host(u64),
    /// Frames of a device from this one on, none of them the manager's: the slot is of class Pfn, and never counted.
    Device(Pfn),
}

/// A slot, as it is given and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The first guest frame.
    pub gfn: u64,
    /// Pages.
    pub pages: u64,
    /// What stands behind them.
    pub backing: Backing,
    /// What it is.
    pub flags: SlotFlags,
}

impl Slot {
    /// Its guest frames.
    #[must_use]
    pub const fn gfns(&self) -> Range<u64> {
        self.gfn..self.gfn + self.pages
    }
}

/// Names a slot: the region that the counts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u32);

impl SlotId {
    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// Why a slot cannot be as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// It has no pages, or reaches beyond what stage 2 or the space can address.
    Range,
    /// Another slot has some of these guest frames.
    Overlaps,
    /// A device slot names frames that the manager manages.
    Managed,
    /// The VM is retired.
    Zombie,
    /// No frame for a record.
    OutOfFrames,
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Range => "the slot is empty or reaches too far",
            Self::Overlaps => "another slot has some of these guest frames",
            Self::Managed => "a device slot over frames of the manager",
            Self::Zombie => "the VM is retired",
            Self::OutOfFrames => "out of frames",
        })
    }
}

impl core::error::Error for SlotError {}

/// A slot, by its record.
#[derive(Clone, Copy)]
pub(crate) struct SlotRecord<'a> {
    record: Record,
    words: &'a [AtomicU64],
}

impl<'a> SlotRecord<'a> {
    pub(super) fn new(record: Record, words: &'a [AtomicU64]) -> Self {
        Self { record, words }
    }

    pub(crate) fn id(&self) -> SlotId {
        SlotId(self.record.raw())
    }

    pub(crate) fn get(&self) -> Slot {
        let flags = SlotFlags(FLAGS.get(&self.words[3]) as u8);
        let behind = self.words[2].load(Relaxed);
        Slot {
            gfn: self.words[0].load(Relaxed),
            pages: self.words[1].load(Relaxed),
            backing: if flags.has(SlotFlags::DEVICE) {
                Backing::Device(Pfn::new(behind))
            } else {
                Backing::Host(behind)
            },
            flags: flags.without(SlotFlags::DEVICE),
        }
    }

    fn set(&self, slot: Slot) {
        let (behind, device) = match slot.backing {
            Backing::Host(page) => (page, SlotFlags::default()),
            Backing::Device(pfn) => (pfn.raw(), SlotFlags::DEVICE),
        };
        self.words[0].store(slot.gfn, Relaxed);
        self.words[1].store(slot.pages, Relaxed);
        self.words[2].store(behind, Relaxed);
        FLAGS.set(&self.words[3], u64::from(slot.flags.or(device).0));
    }

    pub(super) fn set_flags(&self, flags: SlotFlags) {
        self.set(Slot { flags, ..self.get() });
    }

    /// The frame of the dirty log's frames, 0 for none.
    pub(super) fn log(&self) -> &'a AtomicU64 {
        &self.words[4]
    }

    fn next(&self) -> u64 {
        NEXT.get(&self.words[3])
    }

    fn set_next(&self, next: u64) {
        NEXT.set(&self.words[3], next);
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// Gives a VM memory.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn add_slot(&self, id: VmId, view: AsId, slot: Slot) -> Result<SlotId, SlotError> {
        let vm = self.vm(id);
        let slot = Slot { flags: slot.flags.without(SlotFlags::LOGGING), ..slot };
        self.check_backing(&vm, &slot)?;
        let _guard = self.write_vm(&vm);
        if vm.is_zombie() {
            return Err(SlotError::Zombie);
        }
        if self.overlaps(&vm, view, &slot.gfns(), None) {
            return Err(SlotError::Overlaps);
        }
        if vm.root(view).is_none() {
            let root = self.alloc_table().ok_or(SlotError::OutOfFrames)?;
            vm.root_word(view).store(root.raw(), Relaxed);
        }
        let record = self.slots.alloc(&self.frames).ok_or(SlotError::OutOfFrames)?;
        let entry = self.slot_record(record);
        entry.words.iter().for_each(|word| word.store(0, Relaxed));
        entry.set(slot);
        self.link_slot(&vm, view, entry);
        Ok(entry.id())
    }

    /// Takes memory away from a VM.
    ///
    /// # Panics
    /// When the VM has no such slot in that address space.
    pub fn remove_slot(&self, id: VmId, view: AsId, slot: SlotId) {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        self.remove_slot_locked(&vm, view, self.slot_of(&vm, view, slot));
    }

    /// Moves a slot to other guest frames. What the guest has mapped is unmapped, and comes back by faults.
    ///
    /// # Errors
    /// [`SlotError`]; the slot is where it was then.
    ///
    /// # Panics
    /// As [`remove_slot`](Self::remove_slot).
    pub fn move_slot(&self, id: VmId, view: AsId, slot: SlotId, gfn: u64) -> Result<(), SlotError> {
        self.replace_slot(id, view, slot, |now| Slot { gfn, ..now }, |now| now.gfns())
    }

    /// Gives a slot another length. What lies behind its new end is unmapped.
    ///
    /// # Errors
    /// [`SlotError`], also while its stores are logged ([`SlotError::Range`]); the slot is as it was then.
    ///
    /// # Panics
    /// As [`remove_slot`](Self::remove_slot).
    pub fn resize_slot(&self, id: VmId, view: AsId, slot: SlotId, pages: u64) -> Result<(), SlotError> {
        self.replace_slot(
            id,
            view,
            slot,
            |now| Slot { pages, ..now },
            |now| now.gfn + pages.min(now.pages)..now.gfns().end,
        )
    }

    fn replace_slot(
        &self,
        id: VmId,
        view: AsId,
        slot: SlotId,
        new: impl FnOnce(Slot) -> Slot,
        gone: impl FnOnce(Slot) -> Range<u64>,
    ) -> Result<(), SlotError> {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        let entry = self.slot_of(&vm, view, slot);
        let now = entry.get();
        let new = new(now);
        if new.pages != now.pages && now.flags.has(SlotFlags::LOGGING) {
            return Err(SlotError::Range);
        }
        self.check_backing(&vm, &new)?;
        if self.overlaps(&vm, view, &new.gfns(), Some(slot)) {
            return Err(SlotError::Overlaps);
        }
        in_format!(vm.format(), F => self.clear_slot::<F>(&vm, view, entry, gone(now)));
        self.unlink_slot(&vm, view, entry);
        entry.set(new);
        self.link_slot(&vm, view, entry);
        Ok(())
    }

    /// The slots of a VM in an address space, in the order of their guest frames. A snapshot: for reports, and for whoever lets nobody change them.
    pub fn slots(&self, id: VmId, view: AsId) -> impl Iterator<Item = Slot> {
        self.slot_records(&self.vm(id), view).map(|entry| entry.get())
    }

    /// As [`slots`](Self::slots), with their names.
    pub fn slots_named(&self, id: VmId, view: AsId) -> impl Iterator<Item = (SlotId, Slot)> {
        self.slot_records(&self.vm(id), view).map(|entry| (entry.id(), entry.get()))
    }

    /// The slot that has guest frame `gfn`.
    pub fn slot_at(&self, id: VmId, view: AsId, gfn: u64) -> Option<(SlotId, Slot)> {
        let vm = self.vm(id);
        let _guard = self.read_vm(&vm);
        self.find_slot(&vm, view, gfn).map(|entry| (entry.id(), entry.get()))
    }

    pub(super) fn remove_slot_locked(&self, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>) {
        in_format!(vm.format(), F => self.clear_slot::<F>(vm, view, entry, entry.get().gfns()));
        self.free_log(entry);
        self.unlink_slot(vm, view, entry);
        self.slots.free(&self.frames, entry.record);
    }

    /// Unmaps guest frames of a slot that is about to lose them, and frees their tables.
    fn clear_slot<F: Format>(&self, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>, gfns: Range<u64>) {
        if !gfns.is_empty() {
            self.zap_stage2::<F>(vm, view, entry, gfns.clone());
            self.prune_stage2_range::<F>(vm, view, gfns);
        }
    }

    pub(super) fn slot_of(&self, vm: &Vm<'_>, view: AsId, slot: SlotId) -> SlotRecord<'_> {
        self.slot_records(vm, view).find(|entry| entry.id() == slot).expect("the VM has this slot")
    }

    pub(super) fn first_slot(&self, vm: &Vm<'_>, view: AsId) -> Option<SlotRecord<'_>> {
        self.slot_records(vm, view).next()
    }

    fn check_backing(&self, vm: &Vm<'_>, slot: &Slot) -> Result<(), SlotError> {
        let fits =
            |first: u64, end: u64| slot.pages > 0 && first.checked_add(slot.pages).is_some_and(|last| last <= end);
        let good = match slot.backing {
            Backing::Host(page) => fits(page, PAGES_END),
            Backing::Device(pfn) => {
                fits(pfn.raw(), 1 << 40) && {
                    if self.frames.owns_any(pfn..pfn.add(slot.pages)) {
                        return Err(SlotError::Managed);
                    }
                    true
                }
            }
        };
        let reach = in_format!(vm.format(), F => F::ROOT.table_pages());
        if good && fits(slot.gfn, reach) { Ok(()) } else { Err(SlotError::Range) }
    }

    fn overlaps(&self, vm: &Vm<'_>, view: AsId, gfns: &Range<u64>, but: Option<SlotId>) -> bool {
        self.slot_records(vm, view).any(|entry| {
            let other = entry.get().gfns();
            Some(entry.id()) != but && other.start < gfns.end && gfns.start < other.end
        })
    }

    fn link_slot(&self, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>) {
        let behind = |other: &SlotRecord<'_>| other.get().gfn > entry.get().gfn;
        let below = self.slot_records(vm, view).take_while(|other| !behind(other)).last();
        let number = u64::from(entry.record.raw());
        match below {
            Some(below) => {
                entry.set_next(below.next());
                below.set_next(number);
            }
            None => {
                entry.set_next(vm.slots(view).load(Relaxed));
                vm.slots(view).store(number, Relaxed);
            }
        }
    }

    fn unlink_slot(&self, vm: &Vm<'_>, view: AsId, entry: SlotRecord<'_>) {
        let number = u64::from(entry.record.raw());
        match self.slot_records(vm, view).find(|other| other.next() == number) {
            Some(below) => below.set_next(entry.next()),
            None => vm.slots(view).store(entry.next(), Relaxed),
        }
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The slots of an address space in the order of their guest frames. Under the VM's lock.
    pub(crate) fn slot_records(&self, vm: &Vm<'_>, view: AsId) -> impl Iterator<Item = SlotRecord<'_>> + use<'_, M, A> {
        let slot = |number: u64| (number != 0).then(|| self.slot_record(Record::from_raw(number as u32)));
        core::iter::successors(slot(vm.slots(view).load(Relaxed)), move |last| slot(last.next()))
    }

    /// The slot that has guest frame `gfn`. Under the VM's lock.
    pub(crate) fn find_slot(&self, vm: &Vm<'_>, view: AsId, gfn: u64) -> Option<SlotRecord<'_>> {
        self.slot_records(vm, view).find(|entry| entry.get().gfns().contains(&gfn))
    }
}
