//! Nested leaves: the guest has a VM of its own, whose stage-2 table is written by hand, and level 0 composes it. And what the ledger takes alone.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::bench::{FLOOR_FAULTS, Layer, Operation};
use quire::addr::{ENTRIES, Level, Pfn};
use quire::folio::Folio;
use quire::format::{Attrs, Ept, Format, Leaf, LongMode, Npt};
use quire::mapcount::{Accounting, Batch, Class, Classes, Neighbours, Refused};
use quire::memory::Memory;
use quire::nest::GuestMemory;
use quire::space::Access;
use quire::stage2::{AsId, Composed, ComposedKind, Stage2Format};

use super::Scene;
use super::tenant::{BASE, Tenant};
use crate::log;

/// Pages of the VM behind the round's folios that the guest's table takes: three levels, and the last ones.
const fn table_pages(pages: u64) -> u64 {
    3 + pages.div_ceil(ENTRIES as u64)
}

/// Faults of the guest's VM, each of which is served from the guest's table and stage 2, both there.
pub(super) fn play<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    let Scene { run, plan, host, clock, .. } = scene;
    let shape = clock.shape;
    let tables = plan.pages;
    let tenant = Tenant::full(scene, plan.pages + table_pages(plan.pages))?;
    let memory = GuestMemory::new(*host, tenant.vm);
    let frame = |gfn: u64| run.machine.frame(memory.reach(gfn, Access::Write));
    match scene.format {
        Stage2Format::Ept | Stage2Format::Ept5 => write_table::<Ept>(plan.pages, tables, shape.level, frame),
        Stage2Format::Npt | Stage2Format::Npt5 => write_table::<Npt>(plan.pages, tables, shape.level, frame),
        Stage2Format::LongMode => write_table::<LongMode>(plan.pages, tables, shape.level, frame),
    }
    let root = memory.nested_root(tables);
    let expected = Composed {
        kind: ComposedKind::Mapped,
        level: shape.level,
        pages: shape.order.pages(),
        stage2_faults: 0,
        nested_faults: 0,
    };
    clock.time_batches(Operation::ComposeFault, tenant.folios(), |gfn| {
        let composed = host
            .compose_fault(tenant.vm, root, gfn, Access::Write)
            .map_err(|_| "benchmark: a nested fault was not served")?;
        if composed == expected {
            return Ok(());
        }
        log!("benchmark: a nested fault at {gfn:#x} was {composed:?}, not {expected:?}");
        Err("benchmark: a nested fault did not map one folio")
    })?;
    scene.check(false)?;
    memory.leave_all();
    tenant.end();
    Ok(())
}

/// Writes a stage-2 table that leads every guest frame of the first `pages` to itself, all of it accessed and stored to; its root is in frame `at`, the others behind.
fn write_table<'f, F: Format>(pages: u64, at: u64, level: Level, frame: impl Fn(u64) -> &'f quire::memory::Frame) {
    let entry = |table: u64, index: usize, raw: u64| frame(table).0[index].store(raw, Relaxed);
    let attrs = Attrs::USER.or(Attrs::WRITE).or(Attrs::EXEC).or(Attrs::ACCESSED_DIRTY);
    entry(at, 0, F::table(Pfn::new(at + 1)));
    entry(at + 1, 0, F::table(Pfn::new(at + 2)));
    for (nth, first) in (0..pages).step_by(ENTRIES).enumerate() {
        let leaf = |gfn: u64, level: Level| F::leaf(Leaf { pfn: Pfn::new(gfn), attrs }, level);
        if level > Level::ONE {
            entry(at + 2, nth, leaf(first, level));
            continue;
        }
        let table = at + 3 + nth as u64;
        for i in 0..ENTRIES {
            entry(table, i, leaf(first + i as u64, level));
        }
        entry(at + 2, nth, F::table(Pfn::new(table)));
    }
}

/// A loop over folios: the scheme is told of a leaf batch at each of three levels, as in a nested fault.
pub(super) fn ledger<A: Accounting>(scene: &Scene<'_, '_, A>) -> Result<(), &'static str> {
    let Scene { plan, host, clock, .. } = scene;
    let (order, level) = (clock.shape.order, clock.shape.level);
    let tenant = Tenant::full(scene, plan.pages)?;
    let space = host.page_table(tenant.vmm);
    let region = host.vmas(tenant.vmm).next().ok_or("benchmark: the VMM has no vma")?.region();
    let batches_of = |gfn: u64| -> Option<(Folio<'_>, [Batch; 3])> {
        let (here, leaf) = space.lookup(*host, BASE.add_pages(gfn).page())?;
        let (there, _) = host.stage2_lookup(tenant.vm, AsId::NORMAL, gfn)?;
        let batch = |class, region, table| Batch {
            class,
            first: 0,
            pages: order.pages() as u32,
            leaf: level.leaf_order(),
            region,
            table,
            owner: tenant.vmm.raw(),
        };
        let batches = [
            batch(Class::Process, region, here.table),
            batch(Class::Vm, tenant.slot.raw(), there.table),
            batch(Class::Nested, tenant.slot.raw(), there.table),
        ];
        Some((host.folio(leaf.pfn)?, batches))
    };
    let mut all = [const { None }; FLOOR_FAULTS as usize];
    for (slot, gfn) in all.iter_mut().zip(tenant.folios()) {
        *slot = Some(batches_of(gfn).ok_or("benchmark: a folio is not mapped")?);
    }
    let all = || all.iter().flatten();
    let sub = |folio: &Folio<'_>, batch: &Batch| {
        Classes::<A>::sub(&host.counts(*folio), batch, Neighbours::default());
    };
    // All of a folio goes from the counts and comes back: nothing stands beside it.
    for (folio, [process, vm, _]) in all() {
        sub(folio, process);
        sub(folio, vm);
    }
    clock
        .time_layer(Layer::Ledger, || {
            all().try_for_each(|(folio, batches)| {
                batches.iter().try_for_each(|batch| {
                    if batch.class != Class::Process && !host.make_room(*folio, batch.class) {
                        return Err(Refused::Class);
                    }
                    Classes::<A>::add(&host.counts(*folio), batch, Neighbours::default()).map(drop)
                })
            })
        })
        .map_err(|_| "benchmark: a count was refused")?;
    for (folio, [_, _, nested]) in all() {
        sub(folio, nested);
    }
    scene.check(false)?;
    tenant.end();
    Ok(())
}
