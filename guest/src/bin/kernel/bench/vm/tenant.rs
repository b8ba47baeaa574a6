//! A VM and the space of its VMM, which has its memory.

use quire::abi::bench::Operation;
use quire::addr::Gva;
use quire::mapcount::Accounting;
use quire::space::{Access, Map, Prot, SpaceId};
use quire::stage2::{AsId, Backing, Slot, SlotFlags, SlotId, VmAccess, VmFault, VmFaultKind, VmId};

use super::Scene;
use crate::log;

/// Where the VMM has its VM's memory.
pub(super) const BASE: Gva = Gva::new(1 << 30);

/// A VM.
pub(super) struct Tenant<'s, 'a, 'm, A: Accounting> {
    pub(super) scene: &'s Scene<'a, 'm, A>,
    pub(super) vmm: SpaceId,
    pub(super) vm: VmId,
    pub(super) slot: SlotId,
}

impl<'s, 'a, 'm, A: Accounting> Tenant<'s, 'a, 'm, A> {
    /// A VM with `pages` pages of memory that nobody has touched.
    ///
    /// # Errors
    /// When frames ran out.
    pub(super) fn new(scene: &'s Scene<'a, 'm, A>, pages: u64) -> Result<Self, &'static str> {
        const FULL: &str = "benchmark: no frames for a VM";
        let host = scene.host;
        let vmm = host.create_space().map_err(|_| FULL)?;
        let all = Prot { read: true, write: true, exec: true };
        host.map(vmm, BASE, pages, all, Map::Anon).map_err(|_| FULL)?;
        let vm = host.create_vm(vmm, scene.format).map_err(|_| FULL)?;
        let slot = Slot { gfn: 0, pages, backing: Backing::Host(BASE.page()), flags: SlotFlags::default() };
        let slot = host.add_slot(vm, AsId::NORMAL, slot).map_err(|_| FULL)?;
        Ok(Self { scene, vmm, vm, slot })
    }

    /// The same with the round's folios mapped by the VMM and at stage 2.
    ///
    /// # Errors
    /// What was wrong.
    pub(super) fn full(scene: &'s Scene<'a, 'm, A>, pages: u64) -> Result<Self, &'static str> {
        let tenant = Self::new(scene, pages)?;
        tenant.host_faults()?;
        tenant.stage2_faults(None, 0)?;
        Ok(tenant)
    }

    /// The first guest frames of the round's folios.
    pub(super) fn folios(&self) -> impl ExactSizeIterator<Item = u64> + use<A> {
        let order = self.scene.clock.shape.order;
        // 32 bits: such a range knows its length.
        (0..self.scene.clock.shape.folios(self.scene.plan.pages) as u32).map(move |nth| u64::from(nth) << order.get())
    }

    /// Has the VMM map every folio.
    ///
    /// # Errors
    /// When frames ran out.
    pub(super) fn host_faults(&self) -> Result<(), &'static str> {
        self.folios().try_for_each(|gfn| self.host_fault(gfn))
    }

    /// Has the VMM map the folio behind `gfn`.
    ///
    /// # Errors
    /// As [`host_faults`](Self::host_faults).
    pub(super) fn host_fault(&self, gfn: u64) -> Result<(), &'static str> {
        let fault = self.scene.host.fault(self.vmm, BASE.add_pages(gfn), Access::Write);
        fault.map(drop).map_err(|_| "benchmark: no frames for the VMM")
    }

    /// Takes a stage-2 fault for each folio, timed as `operation`, with `host_faults` of the VMM each.
    ///
    /// # Errors
    /// When one was not of one whole folio.
    pub(super) fn stage2_faults(&self, operation: Option<Operation>, host_faults: u32) -> Result<(), &'static str> {
        let clock = self.scene.clock;
        let expected = VmFault {
            kind: VmFaultKind::Mapped,
            level: clock.shape.level,
            pages: clock.shape.order.pages(),
            order: clock.shape.order,
            host_faults,
        };
        let fault = |gfn: u64| {
            let fault = self.stage2_fault(gfn)?;
            if fault == expected {
                return Ok(());
            }
            log!("benchmark: a stage-2 fault at {gfn:#x} was {fault:?}, not {expected:?}");
            Err("benchmark: a stage-2 fault did not map one folio")
        };
        match operation {
            Some(operation) => clock.time_batches(operation, self.folios(), fault),
            None => self.folios().try_for_each(fault),
        }
    }

    /// One store's stage-2 fault.
    ///
    /// # Errors
    /// When it cannot be served.
    #[inline]
    pub(super) fn stage2_fault(&self, gfn: u64) -> Result<VmFault, &'static str> {
        let at = VmAccess { view: AsId::NORMAL, gfn, access: Access::Write };
        self.scene.host.vm_fault(self.vm, at).map_err(|_| "benchmark: a stage-2 fault was not served")
    }

    /// Ends it.
    pub(super) fn end(self) {
        self.scene.host.destroy_vm(self.vm);
        self.scene.host.destroy_space(self.vmm);
    }
}
