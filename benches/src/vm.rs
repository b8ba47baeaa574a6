//! Stage-2 faults and the end of a VM, on a manager that counts VMs beside processes.

use quire::addr::{Gva, Pfn};
use quire::mapcount::{Accounting, Classes};
use quire::space::{Access, Manager, Map, Policy, Prot, SpaceId};
use quire::stage2::{AsId, Backing, Slot, SlotFlags, Stage2Format, VmAccess};

use crate::machine::Frames;
use crate::work::{Op, PAGES, Probe, Shape};

/// Where the VMM has its VM's memory.
const AT: Gva = Gva::new(0x10_0000_0000);
const RW: Prot = Prot { read: true, write: true, exec: false };

/// A manager with the space of a VMM.
pub(crate) struct VmWorld<A: Accounting> {
    manager: Manager<Frames, Classes<A>>,
    vmm: SpaceId,
    shape: Shape,
}

impl<A: Accounting> VmWorld<A> {
    pub(crate) fn new(shape: Shape) -> Self {
        let policy = Policy { max_leaf: shape.leaf, ..Policy::only(shape.order) };
        let frames = Frames::new(3 * PAGES as usize, false, quire::mapcount::small_descriptor_words::<Classes<A>>());
        let manager = Manager::new(frames, &[Pfn::new(0)..Pfn::new(3 * PAGES)], true, policy).expect("enough frames");
        let vmm = manager.create_space().expect("a frame");
        Self { manager, vmm, shape }
    }

    /// A VM whose VMM has all of its memory: faults for each folio, and its end.
    pub(crate) fn cycle(&self, probe: &mut impl Probe) {
        let Self { manager, vmm, shape } = self;
        manager.map(*vmm, AT, PAGES, RW, Map::Anon).expect("a free range");
        let folios = || (0..PAGES).step_by(shape.order.pages() as usize);
        for gfn in folios() {
            manager.fault(*vmm, AT.add_pages(gfn), Access::Write).expect("enough frames");
        }
        let vm = manager.create_vm(*vmm, Stage2Format::Ept).expect("a frame");
        let slot = Slot { gfn: 0, pages: PAGES, backing: Backing::Host(AT.page()), flags: SlotFlags::default() };
        manager.add_slot(vm, AsId::NORMAL, slot).expect("a frame");
        probe.probe(Op::Stage2, &mut || {
            for gfn in folios() {
                let at = VmAccess { view: AsId::NORMAL, gfn, access: Access::Write };
                manager.vm_fault(vm, at).expect("memory behind it");
            }
        });
        assert_eq!(manager.vm_pages(vm), PAGES);
        probe.probe(Op::VmEnd, &mut || manager.destroy_vm(vm));
        manager.unmap(*vmm, AT, PAGES).expect("a mapped range");
    }

    /// Ends it; every frame must have come back.
    pub(crate) fn end(self) {
        self.manager.destroy_space(self.vmm);
        assert!(self.manager.trim(), "frames are left");
    }
}
