//! What is done to a VM as a whole.

use quire::abi::bench::{Operation, word};
use quire::addr::Level;
use quire::mapcount::Accounting;
use quire::stage2::AsId;

use super::Scene;
use super::tenant::Tenant;

/// Stage-2 faults on memory that the VMM has, and the end of a VM with all of it mapped.
pub(super) fn life<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    let Scene { plan, host, clock, .. } = scene;
    let tenant = Tenant::new(scene, plan.pages)?;
    tenant.host_faults()?;
    scene.note_metadata(word::compact(clock.shape.index()));
    tenant.stage2_faults(plan.wants(Operation::Stage2Fault).then_some(Operation::Stage2Fault), 0)?;
    scene.check(true)?;
    if host.vm_pages(tenant.vm) != plan.pages {
        return Err("benchmark: a VM is not mapped whole");
    }
    if plan.wants(Operation::VmTeardown) {
        clock.time(Operation::VmTeardown, || host.destroy_vm(tenant.vm));
        clock.time(Operation::VmmTeardown, || host.destroy_space(tenant.vmm));
        scene.check(false)
    } else {
        tenant.end();
        Ok(())
    }
}

/// Stage-2 faults on memory that nobody has made.
pub(super) fn host_faults<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    let tenant = Tenant::new(scene, scene.plan.pages)?;
    tenant.stage2_faults(Some(Operation::HostFault), 1)?;
    scene.check(false)?;
    tenant.end();
    Ok(())
}

/// The dirty log: on, every page stored to, read, off.
pub(super) fn log<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    let Scene { plan, host, clock, .. } = scene;
    let pages = plan.pages;
    let tenant = Tenant::full(scene, pages)?;
    let (vm, slot) = (tenant.vm, tenant.slot);
    let before = host.vm_leaves(vm);
    clock
        .time(Operation::LogStart, || host.start_log(vm, AsId::NORMAL, slot))
        .map_err(|_| "benchmark: the log does not start")?;
    scene.check(false)?;
    if host.vm_leaves(vm) != [pages, 0, 0] {
        return Err("benchmark: a log did not split all leaves");
    }
    clock.time_batches(Operation::LogStore, 0..pages as u32, |gfn| tenant.stage2_fault(gfn.into()).map(drop))?;
    let mut found = 0;
    clock.time(Operation::LogTake, || host.take_log(vm, AsId::NORMAL, slot, |_| found += 1));
    if found != pages {
        return Err("benchmark: the log lost stores");
    }
    // With small leaves there is nothing to bring back.
    if clock.shape.level > Level::ONE {
        clock.time(Operation::LogStop, || host.stop_log(vm, AsId::NORMAL, slot));
    } else {
        host.stop_log(vm, AsId::NORMAL, slot);
    }
    scene.check(false)?;
    if host.vm_leaves(vm) != before {
        return Err("benchmark: leaves are not as they were before the log");
    }
    tenant.end();
    Ok(())
}

/// A copy of the VM.
pub(super) fn clone<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    let Scene { plan, host, clock, .. } = scene;
    let tenant = Tenant::full(scene, plan.pages)?;
    let (vmm, vm) = clock
        .time(Operation::Clone, || host.clone_vm(tenant.vm))
        .map_err(|_| "benchmark: no frames for a copy of a VM")?;
    scene.check(false)?;
    host.destroy_vm(vm);
    host.destroy_space(vmm);
    tenant.end();
    Ok(())
}
