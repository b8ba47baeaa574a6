//! Tenants of level 1 touch memory: who serves what they fault on.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::nest::word;
use quire::abi::replay::{SAMPLE_CLEARED, word as replay};
use quire::addr::Gva;
use quire::exercise::{Who, deepest};
use quire::mapcount::Accounting;
use quire::nest::NestError;
use quire::space::{Access, Fault};
use quire::stage2::{AsId, ComposeError, Reflection, RootId, VmAccess, VmFaultError};

use super::{Guest, Memory};
use crate::cpu;
use crate::machine::Machine;
use crate::replay::Findings;

/// One tenant that touches memory, and what is needed to serve it.
pub(super) struct Touching<'t, 'r, 'h, 'm, A: Accounting> {
    pub(super) machine: &'m Machine,
    pub(super) findings: &'t Findings<'r>,
    pub(super) memory: &'t Memory<'h, 'm, A>,
    pub(super) guest: &'t Guest<'h, 'm, A>,
    pub(super) who: Who,
}

/// What level 1 has served: of a process its fault, and the flag of a sample that says whether something was cleared.
pub(super) type Served = Option<(Fault, u16)>;

impl<A: Accounting> Touching<'_, '_, '_, '_, A> {
    /// The root composed from the stage-2 table of the VM of level 1, if it is one that touches.
    ///
    /// # Errors
    /// When that has no memory.
    pub(super) fn nested_root(&self) -> Result<Option<RootId>, NestError> {
        let Who::Vm(vm) = self.who else { return Ok(None) };
        let table = self.guest.stage2_root(vm, AsId::NORMAL).ok_or(NestError::Vm(VmFaultError::NoSlot))?;
        Ok(Some(self.memory.nested_root(table.raw())))
    }

    /// The guest frame of the tenant's own root table: level 1's for a process, its own VM's for that.
    pub(super) fn table(&self) -> u64 {
        match self.who {
            Who::Process(space) => self.guest.root(space).raw(),
            Who::Vm(_) => deepest::ROOT,
        }
    }

    /// Level 1 serves what level 0 cannot: a fault of its process, or a violation of the stage-2 table that it has built.
    ///
    /// # Errors
    /// What it refuses.
    pub(super) fn at_level_1(&self, page: u64, access: Access) -> Result<Served, NestError> {
        let cleared = || self.guest.statistics().cleared.load(Relaxed);
        let (before, since) = (cleared(), cpu::tsc());
        let result = match self.who {
            Who::Process(space) => {
                self.guest.fault(space, Gva::from_page(page), access).map(Some).map_err(NestError::Process)
            }
            Who::Vm(vm) => {
                let access = VmAccess { view: AsId::NORMAL, gfn: page, access };
                self.guest.vm_fault(vm, access).map(|_| None).map_err(NestError::Vm)
            }
        };
        self.findings.add(word::GUEST_TICKS, cpu::tsc() - since);
        let fault = result?;
        self.findings.add(word::GUEST_FAULTS, 1);
        self.findings.add(replay::FAULTS, 1);
        Ok(fault.map(|fault| (fault, if cleared() == before { 0 } else { SAMPLE_CLEARED })))
    }

    /// What composing at level 0 could not serve goes to level 1; `root` is that of the tenant's own table.
    ///
    /// # Errors
    /// What neither serves.
    pub(super) fn reflected(&self, root: Option<RootId>, error: ComposeError) -> Result<Served, NestError> {
        match error {
            // The tables that a VM of level 1 has booted with map all that it touches.
            ComposeError::Reflected(Reflection { root: of, page, access, .. })
                if matches!(self.who, Who::Process(_)) || root != Some(of) =>
            {
                self.at_level_1(page, access)
            }
            error => Err(NestError::Compose(error)),
        }
    }
}
