//! The parts of a fault, each in a loop of its own over as many folios: what no fault can be stopped at to ask.

use quire::abi::bench::{FLOOR_FAULTS, Layer};
use quire::addr::Gva;
use quire::folio::{Folio, Run};
use quire::format::Leaf;
use quire::mapcount::{Accounting, Batch, Class, Neighbours};
use quire::memory::{FlushScope, Memory, Tlb};

use super::stage::{AT, Stage};

/// Times every layer once.
///
/// # Errors
/// What was wrong.
pub fn play<A: Accounting>(stage: &Stage<'_, '_, A>) -> Result<(), &'static str> {
    let Stage { machine, manager, clock, .. } = stage;
    let order = clock.shape.order;
    let space = stage.full_space()?;
    let root = manager.root(space);
    let folios = stage.folios().min(FLOOR_FAULTS);
    let each = || (0..folios).map(|nth| stage.folio_at(nth));

    let table = manager.page_table(space);
    let vma = manager.vmas(space).next().ok_or("benchmark: the space has no vma")?;
    let mapped = |at: Gva| -> (Folio<'_>, Leaf, Batch) {
        let (place, leaf) = table.lookup(*manager, at.page()).expect("the folio was faulted in");
        let batch = Batch {
            class: Class::Process,
            first: 0,
            pages: order.pages() as u32,
            leaf: clock.shape.level.leaf_order(),
            region: vma.region(),
            table: place.table,
            owner: space.raw(),
        };
        (manager.folio(leaf.pfn).expect("a leaf maps a folio"), leaf, batch)
    };
    let (_, first, _) = mapped(AT);

    clock.time_layer(Layer::Flush, || {
        for at in each() {
            machine.flush(root, FlushScope::Pages { first: at.page(), pages: 1 });
        }
    });
    machine.load_no_tenant();
    let mut folios_mapped = [None; FLOOR_FAULTS as usize];
    for (slot, at) in folios_mapped.iter_mut().zip(each()) {
        *slot = Some(mapped(at));
    }
    let folios_mapped = || folios_mapped.iter().flatten();

    // All of a folio goes from the counts and comes back: nothing stands beside it.
    for (folio, _, batch) in folios_mapped() {
        A::sub(&manager.counts(*folio), batch, Neighbours::default());
    }
    clock
        .time_layer(Layer::Account, || {
            folios_mapped().try_for_each(|(folio, _, batch)| {
                A::add(&manager.counts(*folio), batch, Neighbours::default()).map(drop)
            })
        })
        .map_err(|_| "benchmark: a count was refused")?;

    let leaves = (order.pages() >> clock.shape.level.page_shift()) as usize;
    let on_entries = |at: Gva, work: &dyn Fn(&quire::page_table::Part<'_, quire::format::LongMode, _>, usize)| {
        let page = at.page();
        let mut cursor = table.cursor(*manager, page, page + order.pages());
        let part = cursor.open(clock.shape.level).map_err(|_| "benchmark: a table is gone")?;
        work(&part, part.index(page));
        Ok::<(), &'static str>(())
    };
    each().try_for_each(|at| {
        on_entries(at, &|part, i| {
            part.clear(i, leaves);
        })
    })?;
    clock.time_layer(Layer::Store, || {
        each()
            .zip(folios_mapped())
            .try_for_each(|(at, (_, leaf, _))| on_entries(at, &|part, i| part.install(i, leaves, *leaf)))
    })?;

    clock.time_layer(Layer::Copy, || {
        for (_, leaf, _) in folios_mapped() {
            machine.copy(leaf.pfn, first.pfn);
        }
    });
    stage.destroy(space);

    let mut runs: [Option<Run>; FLOOR_FAULTS as usize] = [None; FLOOR_FAULTS as usize];
    clock.time_layer(Layer::Allocate, || {
        for run in runs.iter_mut().take(folios as usize) {
            *run = manager.frames().alloc(order, true);
        }
    });
    let found = runs.iter().flatten().count() as u64;
    for run in runs.iter().flatten() {
        manager.frames().free(run.pfn, order, false);
    }
    if found == folios { Ok(()) } else { Err("benchmark: too few frames to allocate") }
}
