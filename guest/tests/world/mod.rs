//! A machine with a manager that every scheme observes, and tenants that touch their memory through the emulated MMU.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod cpus;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::addr::{Gva, Level, Order, Pfn};
use quire::audit::{Audit, Recount};
pub use quire::mapcount::Everything;
use quire::mapcount::{Accounting, Classes};
use quire::memory::{FlushScope, Frame, Memory, Tlb};
use quire::model::walk2d::{self, Layout, Stopped, Tree};
use quire::model::{EmulatedMemory, Machine};
use quire::space::{Access, Fault, FaultError, Manager, Map, ObjectId, Policy, Prot, SpaceId};
use quire::stage2::{AsId, Backing, Slot, SlotFlags, SlotId, Stage2Format, VmAccess, VmFault, VmFaultError, VmId};

pub const R: Prot = Prot { read: true, write: false, exec: false };
pub const RW: Prot = Prot { read: true, write: true, exec: false };
/// Frames of a plain world.
pub const FRAMES: u64 = 8 * 1024;
/// Device frames behind the others.
pub const DEVICE_FRAMES: u64 = 64;

/// Where tests map, unless they say otherwise: a multiple of 1 GiB.
pub const BASE: u64 = 1 << 18;

pub fn at(page: u64) -> Gva {
    Gva::from_page(page)
}

/// A machine with `frames` frames for the manager, and what a recount and a device take.
pub fn machine_of(frames: u64) -> Machine {
    Machine::new(frames + Recount::scratch_frames(frames) + DEVICE_FRAMES)
}

/// The memory of several CPUs on which nobody touches what is mapped: there is nothing to flush.
pub struct Untouched(pub EmulatedMemory);

impl Memory for Untouched {
    fn frame(&self, pfn: Pfn) -> &Frame {
        self.0.frame(pfn)
    }
}

impl Tlb for Untouched {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {}
}

pub struct World<'m, A: Accounting = Everything> {
    pub manager: Manager<&'m Machine, A>,
    pub machine: &'m Machine,
    pub recount: Recount,
    frames: u64,
}

pub fn huge() -> Policy {
    Policy::up_to(Order::HUGE)
}

/// Folios of order 9, mapped by leaves of order 0.
pub fn huge_by_pages() -> Policy {
    Policy { max_leaf: Level::ONE, ..Policy::up_to(Order::HUGE) }
}

impl<'m> World<'m> {
    pub fn new(machine: &'m Machine, policy: Policy) -> Self {
        Self::with_scheme(machine, policy, FRAMES)
    }
}

impl<'m, A: Accounting> World<'m, A> {
    pub fn with_scheme(machine: &'m Machine, policy: Policy, frames: u64) -> Self {
        let manager = Manager::new(machine, &[Pfn::new(0)..Pfn::new(frames)], true, policy).expect("enough frames");
        Self { manager, machine, recount: Recount::new(Pfn::new(frames), Pfn::new(0), frames), frames }
    }

    pub fn device(&self) -> Pfn {
        Pfn::new(self.frames + Recount::scratch_frames(self.frames))
    }

    pub fn space(&self) -> SpaceId {
        self.manager.create_space().expect("a space")
    }

    /// A space with `pages` anonymous pages at [`BASE`].
    pub fn anon(&self, pages: u64) -> SpaceId {
        let space = self.space();
        self.manager.map(space, at(BASE), pages, RW, Map::Anon).expect("room");
        space
    }

    pub fn map(&self, space: SpaceId, page: u64, pages: u64, prot: Prot, what: Map) {
        self.manager.map(space, at(page), pages, prot, what).expect("room");
    }

    /// One access, faults served; the word before, and the last fault.
    pub fn access(&self, space: SpaceId, page: u64, store: Option<u64>) -> Result<(u64, Option<Fault>), FaultError> {
        let access = if store.is_some() { Access::Write } else { Access::Read };
        let mut last = None;
        loop {
            if let Some(word) = self.machine.word(self.manager.root(space), at(page), access) {
                let before = word.load(Relaxed);
                if let Some(value) = store {
                    word.store(value, Relaxed);
                }
                return Ok((before, last));
            }
            last = Some(self.manager.fault(space, at(page), access)?);
        }
    }

    pub fn read(&self, space: SpaceId, page: u64) -> u64 {
        self.access(space, page, None).expect("readable").0
    }

    pub fn write(&self, space: SpaceId, page: u64, value: u64) -> Option<Fault> {
        self.access(space, page, Some(value)).expect("writable").1
    }

    /// Stores a number of `tag` in every page.
    pub fn fill(&self, space: SpaceId, pages: Range<u64>, tag: u64) {
        for page in pages {
            self.write(space, page, tag << 40 | page);
        }
    }

    /// The numbers of [`fill`](Self::fill) are there; `from` is where the first page was when they were stored.
    pub fn expect(&self, space: SpaceId, pages: Range<u64>, from: u64, tag: u64) {
        for page in pages.clone() {
            assert_eq!(self.read(space, page), tag << 40 | (page - pages.start + from), "page {page:#x}");
        }
    }

    pub fn expect_zero(&self, space: SpaceId, pages: Range<u64>) {
        for page in pages {
            assert_eq!(self.read(space, page), 0, "page {page:#x}");
        }
    }

    /// A recount, whatever it finds.
    pub fn recount(&self) -> Audit {
        self.recount.run(&self.manager)
    }

    pub fn audit(&self) -> Audit {
        let audit = self.recount();
        assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
        assert_eq!(self.machine.stale(), None, "a flush is missing");
        audit
    }

    /// Frame, order and level of the leaf at `page`.
    pub fn leaf(&self, space: SpaceId, page: u64) -> Option<(Pfn, Level)> {
        let (place, leaf) = self.manager.page_table(space).lookup(&self.manager, page)?;
        Some((leaf.pfn, place.level))
    }

    pub fn folio_order(&self, space: SpaceId, page: u64) -> Order {
        let (pfn, _) = self.leaf(space, page).expect("a leaf");
        self.manager.folio(pfn).expect("a folio").order()
    }

    pub fn free(&self) -> u64 {
        let stats = self.manager.frames().stats();
        stats.free + stats.slots
    }

    pub fn leave(&self, space: SpaceId) {
        self.machine.leave(self.manager.root(space));
        self.manager.destroy_space(space);
    }

    /// Ends all that is left; every frame must be free then and every statistic zero.
    pub fn end(self, objects: &[ObjectId]) {
        for space in self.manager.spaces().collect::<Vec<_>>() {
            self.leave(space);
        }
        for &object in objects {
            self.manager.destroy_object(object);
        }
        self.audit();
        assert_eq!(self.manager.deferred_len(), 0);
        assert!(self.manager.trim(), "frames are lost: {:?}", self.manager.frames().stats());
        let statistics = self.manager.statistics();
        assert_eq!(statistics.anon_mapped.get(), 0);
        assert_eq!(statistics.file_mapped.get(), 0);
        assert_eq!(statistics.huge_mapped.get(), 0);
    }
}

impl<A: Accounting> World<'_, Classes<A>> {
    /// A recount of all classes; nothing may be wrong.
    pub fn audit_classes(&self) -> Audit {
        let audit = self.recount.run_classes(&self.manager);
        assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
        assert_eq!(self.machine.stale(), None, "a flush is missing");
        audit
    }

    /// One access of a guest to its frame `gfn`, stage-2 faults served; the word before, and the last fault.
    pub fn guest_access(&self, vm: VmId, gfn: u64, store: Option<u64>) -> Result<(u64, Option<VmFault>), VmFaultError> {
        let access = if store.is_some() { Access::Write } else { Access::Read };
        let mut last = None;
        loop {
            let root = self.manager.stage2_root(vm, AsId::NORMAL).ok_or(VmFaultError::NoSlot)?;
            if let Some(word) = self.guest_word(self.manager.vm_format(vm), root, gfn, access) {
                let before = word.load(Relaxed);
                if let Some(value) = store {
                    word.store(value, Relaxed);
                }
                return Ok((before, last));
            }
            last = Some(self.manager.vm_fault(vm, VmAccess { view: AsId::NORMAL, gfn, access })?);
        }
    }

    /// The first word of guest frame `gfn`, if stage 2 allows the access: by the machine's MMU, with its TLB, where it can walk the format, else by the walk of the
    /// model that reads all formats.
    pub fn guest_word(&self, format: Stage2Format, root: Pfn, gfn: u64, access: Access) -> Option<&AtomicU64> {
        let tree = match format {
            Stage2Format::LongMode => return self.machine.word(root, at(gfn), access),
            Stage2Format::Ept => Tree { root, levels: 4, layout: Layout::Ept { accessed_dirty: true } },
            Stage2Format::Ept5 => Tree { root, levels: 5, layout: Layout::Ept { accessed_dirty: false } },
            Stage2Format::Npt => Tree { root, levels: 4, layout: Layout::Npt },
            Stage2Format::Npt5 => Tree { root, levels: 5, layout: Layout::Npt },
        };
        match walk2d::translate(self.machine, tree, gfn << 12, access) {
            Ok(address) => Some(&self.machine.frame(Pfn::from_address(address)).0[0]),
            Err(Stopped::Violation { guest_physical, .. }) if guest_physical == gfn << 12 => None,
            Err(stopped) => panic!("{gfn:#x} in {format:?}: {stopped:?}"),
        }
    }

    pub fn guest_read(&self, vm: VmId, gfn: u64) -> u64 {
        self.guest_access(vm, gfn, None).expect("readable").0
    }

    pub fn guest_write(&self, vm: VmId, gfn: u64, value: u64) -> Option<VmFault> {
        self.guest_access(vm, gfn, Some(value)).expect("writable").1
    }

    /// A slot of `pages` pages of the VMM's space from `page` on, at guest frame `gfn`.
    pub fn slot(&self, vm: VmId, gfn: u64, page: u64, pages: u64, flags: SlotFlags) -> SlotId {
        let slot = Slot { gfn, pages, backing: Backing::Host(page), flags };
        self.manager.add_slot(vm, AsId::NORMAL, slot).expect("room")
    }

    /// The level of the stage-2 leaf at `gfn`.
    pub fn stage2_level(&self, vm: VmId, gfn: u64) -> Option<Level> {
        Some(self.manager.stage2_lookup(vm, AsId::NORMAL, gfn)?.0.level)
    }

    /// Ends all VMs, and then all else.
    pub fn end_vms(self, objects: &[ObjectId]) {
        for vm in self.manager.vms().collect::<Vec<_>>() {
            for root in AsId::ALL.into_iter().filter_map(|view| self.manager.stage2_root(vm, view)) {
                self.machine.leave(root);
            }
            self.manager.destroy_vm(vm);
        }
        self.audit_classes();
        self.end(objects);
    }
}
