//! A process inside of a VM: it stores to memory that nobody has touched, through the MMU, on a table that level 0 composes of the guest's own and stage 2.
//!
//! Such a store faults twice: the first fault is the guest's own and goes to its manager, which is a second instance of ours on the VM's memory; the second finds the guest's
//! leaf, makes the memory, enters the stage-2 leaves and then the composed ones.

use quire::abi::bench::{Layer, Operation, vm_pages};
use quire::addr::{Gva, Pfn};
use quire::mapcount::Accounting;
use quire::nest::GuestMemory;
use quire::space::{Access, Manager, Map, Prot, SpaceId};
use quire::stage2::{ComposeError, Composed, RootId, Stage2Format};

use super::Scene;
use super::tenant::Tenant;
use crate::bench::stage::{AT, SEED};
use crate::log;
use crate::machine::Machine;
use crate::touch::{self, Verdict, error};

type Guest<'g, 'h, 'm, A> = Manager<&'g GuestMemory<'h, &'m Machine, A>, A>;

/// A nested fault for each folio.
pub(super) fn play<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    const FULL: &str = "benchmark: the VM has too few frames";
    let Scene { run, plan, host, clock, .. } = scene;
    if scene.format != Stage2Format::LongMode {
        return Err("benchmark: processes in a VM are timed on composed tables alone");
    }
    let pages = vm_pages(plan.pages, Operation::NestedFault.bit());
    let tenant = Tenant::new(scene, pages)?;
    let memory = GuestMemory::new(*host, tenant.vm);
    {
        let frames = Pfn::new(0)..Pfn::new(pages);
        let guest: Guest<'_, '_, '_, A> = Manager::new(&memory, &[frames], true, scene.policy).map_err(|_| FULL)?;
        let space = guest.create_space().map_err(|_| FULL)?;
        let all = Prot { read: true, write: true, exec: false };
        guest.map(space, AT, plan.pages, all, Map::Anon).map_err(|_| FULL)?;
        let root = memory.shadow_root(None, guest.root(space).raw());
        run.machine.load_root(memory.table_of(root));
        let mut faulting = Faulting {
            tenant: &tenant,
            memory: &memory,
            guest: &guest,
            space,
            root,
            at: None,
            faults: 0,
            otherwise: 0,
        };
        for (nth, page) in tenant.folios().enumerate() {
            let at = AT.add_pages(page);
            faulting.at = None;
            let sum = run.machine.touch(&mut faulting, at, 1, touch::Access::Store(SEED)).sum;
            if faulting.faults != nth as u64 + 1 || sum != 0 {
                log!("benchmark: a nested store at {at}: {} faults, read {sum:#x}", faulting.faults);
                return Err("benchmark: a nested store did not fault as it should, or found what it should not");
            }
        }
        scene.note_otherwise(faulting.otherwise);
        scene.check(false)?;
        run.machine.load_no_tenant();
        memory.leave_all();
        if clock.runs { Ok(()) } else { end(&guest, space) }?;
    }
    tenant.end();
    Ok(())
}

/// Once: everything of the guest's comes back when the process ends.
fn end<A: Accounting>(guest: &Guest<'_, '_, '_, A>, space: SpaceId) -> Result<(), &'static str> {
    guest.destroy_space(space);
    if guest.trim() { Ok(()) } else { Err("benchmark: frames are left in a VM when its process is gone") }
}

/// Serves the faults of one store after the other.
struct Faulting<'t, 's, 'a, 'm, A: Accounting> {
    tenant: &'t Tenant<'s, 'a, 'm, A>,
    memory: &'t GuestMemory<'a, &'m Machine, A>,
    guest: &'t Guest<'t, 'a, 'm, A>,
    space: SpaceId,
    root: RootId,
    /// The guest frame that the guest's manager has mapped for this store; `None` before it has.
    at: Option<u64>,
    /// Composed.
    faults: u64,
    /// Those of them that were not one stage-2 fault and one whole folio.
    otherwise: u64,
}

impl<A: Accounting> Faulting<'_, '_, '_, '_, A> {
    fn compose(&self, address: Gva) -> Result<Composed, ComposeError> {
        self.tenant.scene.host.compose_fault(self.tenant.vm, self.root, address.page(), Access::Write)
    }

    /// The guest's own fault.
    fn reflect(&mut self, address: Gva) -> Result<(), &'static str> {
        let scene = self.tenant.scene;
        let serve = || self.guest.fault(self.space, address, Access::Write);
        let served = if scene.plan.has_layers { scene.clock.time_layer(Layer::Guest, serve) } else { serve() };
        served.map_err(|_| "benchmark: the guest's manager did not serve a fault")?;
        let table = self.guest.page_table(self.space);
        let found = if scene.plan.has_layers {
            self.memory
                .look(|| table.lookup(self.guest, address.page()))
                .map(|(place, leaf)| leaf.pfn.raw() + address.page() - place.page)
        } else {
            Some(0)
        };
        self.at = found;
        found.map(drop).ok_or("benchmark: the guest's manager has mapped nothing")
    }

    /// The same as one fault, step by step.
    fn in_layers(&mut self, address: Gva) -> Result<(), &'static str> {
        let clock = self.tenant.scene.clock;
        let Some(gfn) = self.at else {
            return match clock.time_layer(Layer::Reflect, || self.compose(address)) {
                Err(ComposeError::Reflected(_)) => self.reflect(address),
                _ => Err("benchmark: a page was there before its fault"),
            };
        };
        clock.time_layer(Layer::Host, || self.tenant.host_fault(gfn))?;
        clock.time_layer(Layer::Stage2, || self.tenant.stage2_fault(gfn))?;
        clock.time_layer(Layer::Compose, || self.compose(address)).map_err(|_| "benchmark: a leaf was not composed")?;
        self.faults += 1;
        Ok(())
    }

    fn whole(&mut self, address: Gva) -> Result<(), &'static str> {
        let clock = self.tenant.scene.clock;
        match self.compose(address) {
            Ok(composed) => {
                clock.mark(Operation::NestedFault);
                self.faults += 1;
                self.otherwise += u64::from(composed.stage2_faults != 1 || composed.pages != clock.shape.order.pages());
                Ok(())
            }
            Err(ComposeError::Reflected(_)) => self.reflect(address),
            Err(what) => {
                log!("benchmark: {address}: {what}");
                Err("benchmark: a nested fault was not served")
            }
        }
    }
}

impl<A: Accounting> touch::Tenant for Faulting<'_, '_, '_, '_, A> {
    fn fault(&mut self, address: Gva, code: u64) -> Verdict {
        let served = match code & error::WRITE {
            0 => Err("benchmark: a store loads first"),
            _ if self.tenant.scene.plan.has_layers => self.in_layers(address),
            _ => self.whole(address),
        };
        match served {
            Ok(()) => Verdict::Resume,
            Err(what) => {
                log!("{what}");
                Verdict::Abort(1)
            }
        }
    }
}
