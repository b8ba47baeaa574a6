//! The recount of stage-2 leaves: class by class, and each against the host's own mapping that it was derived from.

use super::{Audit, Mismatch, Recount, composed, folios};
use crate::addr::Pfn;
use crate::folio::Folio;
use crate::format::{Attrs, Leaf};
use crate::mapcount::{Accounting, Class, Classes, Evidence};
use crate::memory::{Memory, Tlb};
use crate::page_table::Place;
use crate::space::{Manager, SpaceId};
use crate::stage2::{AsId, Backing, Slot, SlotFlags, VmId};

/// One folio before a recount of stage-2 leaves.
struct Seen<'a, M, A> {
    recount: &'a Recount,
    manager: &'a Manager<M, Classes<A>>,
    folio: Folio<'a>,
    class: Class,
}

impl<M: Memory + Tlb, A: Accounting> Evidence for Seen<'_, M, A> {
    fn cover(&self, page: u64) -> u64 {
        self.recount.cover(self.manager, self.folio, page)
    }
    fn whole_regions(&self) -> Option<u64> {
        // A region may have several nested leaves over a page, and then what it maps is no sum of pages.
        (self.recount.exhaustive && self.class != Class::Nested).then(|| {
            let mut regions = 0;
            for_each_leaf_by_region(self.manager, self.class, &mut |_, _, leaves| {
                let mut seen = 0;
                leaves(&mut |place, leaf| {
                    if self.folio.head() <= leaf.pfn && leaf.pfn < self.folio.end() {
                        seen += place.level.entry_pages();
                    }
                });
                regions += u64::from(seen == self.folio.pages());
            });
            regions
        })
    }
    fn leaves_of(&self, owner: u32) -> Option<u64> {
        self.recount.exhaustive.then(|| {
            let mut found = 0;
            for_each_leaf_by_region(self.manager, self.class, &mut |of, _, leaves| {
                leaves(&mut |_, leaf| {
                    let mine = of == owner && self.folio.head() <= leaf.pfn && leaf.pfn < self.folio.end();
                    found += u64::from(mine);
                });
            });
            found
        })
    }
}

impl Recount {
    /// Recounts the leaves of all classes: those of processes by [`run`](Self::run), and then the others. Nothing may change meanwhile.
    pub fn run_classes<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, Classes<A>>) -> Audit {
        let mut audit = self.run(manager);
        for class in [Class::Vm, Class::Nested] {
            self.run_class(manager, class, &mut audit);
        }
        audit
    }

    /// Recounts the leaves of `class`, and leaves what it found about each folio for [`truth`](Self::truth).
    pub fn run_class<M: Memory + Tlb, A: Accounting>(
        &self,
        manager: &Manager<M, Classes<A>>,
        class: Class,
        audit: &mut Audit,
    ) {
        manager.memory().zero(self.rows, Self::scratch_frames(self.frames));
        let mut pages = 0;
        for_each_leaf_by_region(manager, class, &mut |owner, region, leaves| {
            leaves(&mut |place, leaf| {
                if leaf.attrs.has(Attrs::UNTRACKED) {
                    let is_ours = manager.frames().owns_any(leaf.pfn..leaf.pfn.add(place.level.entry_pages()));
                    audit.check(!is_ours, leaf.pfn, Mismatch::Class);
                    return;
                }
                let Some(folio) = manager.folio(leaf.pfn) else {
                    audit.check(false, leaf.pfn, Mismatch::NoFolio);
                    return;
                };
                // R1: a leaf lies inside one folio.
                let inside = leaf.pfn.raw() + place.level.entry_pages() <= folio.end().raw();
                audit.check(inside, leaf.pfn, Mismatch::Place);
                pages += place.level.entry_pages();
                self.enter(manager, folio, place, leaf, owner, region, true);
            });
        });
        let mut total = 0;
        for folio in folios(manager) {
            let truth = self.truth(manager, folio);
            total += truth.total;
            audit.check(truth.is_coherent(folio.pages()), folio.head(), Mismatch::Quantities);
            let target = Classes::<A>::class(&manager.counts(folio), class);
            let wrong = A::check(&target, &truth, &Seen { recount: self, manager, folio, class }).err();
            audit.check(wrong.is_none(), folio.head(), Mismatch::Scheme(wrong.unwrap_or_default()));
            audit.leaves += truth.leaves;
        }
        // I16: the sum of T over folios is what the tables hold.
        audit.check(total == pages, Pfn::new(0), Mismatch::Quantities);
        match class {
            Class::Process => {}
            Class::Vm => self.check_derived(manager, audit),
            Class::Nested => manager.vms().for_each(|vm| composed::check(manager, vm, audit)),
        }
    }

    /// Every leaf of a VM leads where its VMM's own mapping leads, and allows no more; a VM's leaves are as many as it says.
    fn check_derived<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, Classes<A>>, audit: &mut Audit) {
        for vm in manager.vms() {
            let space = manager.vm_space(vm);
            let mut levels = [0; 3];
            for view in AsId::ALL {
                for slot in manager.slots(vm, view) {
                    manager.for_each_stage2_leaf(vm, view, slot.gfns(), &mut |place, leaf| {
                        levels[place.level.get() as usize - 1] += 1;
                        let good = (0..place.level.entry_pages()).all(|i| {
                            is_derived(manager, space, &slot, place.page + i, Leaf { pfn: leaf.pfn.add(i), ..leaf })
                        });
                        audit.check(good, leaf.pfn, Mismatch::Rights);
                    });
                }
                let mut all = 0;
                manager.for_each_stage2_leaf(vm, view, 0..u64::MAX, &mut |_, _| all += 1);
                let in_slots: u64 = manager.slots(vm, view).map(|slot| leaves_in(manager, vm, view, slot)).sum();
                audit.check(all == in_slots, Pfn::new(0), Mismatch::Place);
            }
            audit.check(levels == manager.vm_leaves(vm), Pfn::new(0), Mismatch::Quantities);
        }
    }
}

fn leaves_in<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    vm: VmId,
    view: AsId,
    slot: Slot,
) -> u64 {
    let mut leaves = 0;
    manager.for_each_stage2_leaf(vm, view, slot.gfns(), &mut |_, _| leaves += 1);
    leaves
}

/// Whether a page of a stage-2 leaf is what stands behind guest frame `gfn`.
fn is_derived<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    space: SpaceId,
    slot: &Slot,
    gfn: u64,
    leaf: Leaf,
) -> bool {
    let write = leaf.attrs.has(Attrs::WRITE);
    if write && slot.flags.has(SlotFlags::READ_ONLY) {
        return false;
    }
    let page = match slot.backing {
        Backing::Device(first) => return leaf.pfn == first.add(gfn - slot.gfn) && leaf.attrs.has(Attrs::UNTRACKED),
        Backing::Host(start) => start + (gfn - slot.gfn),
    };
    if slot.flags.has(SlotFlags::UNMAPPED)
        && let Some(pfn) = manager.cached_page(space, page)
    {
        return leaf.pfn == pfn;
    }
    manager.page_table(space).lookup(manager, page).is_some_and(|(place, host)| {
        host.pfn.add(page - place.page) == leaf.pfn && (!write || host.attrs.has(Attrs::WRITE))
    })
}

/// Calls `visit` for each region of `class`, owner by owner: with the owner, the region, and a way to go through its leaves.
#[expect(clippy::type_complexity, reason = "a visitor that is given a visitor")]
pub(crate) fn for_each_leaf_by_region<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    class: Class,
    visit: &mut dyn FnMut(u32, u32, &dyn Fn(&mut dyn FnMut(Place, Leaf))),
) {
    for space in manager.spaces() {
        for vm in manager.vms().filter(|&vm| manager.vm_space(vm) == space) {
            for view in AsId::ALL {
                for (id, slot) in manager.slots_named(vm, view) {
                    visit(space.raw(), id.raw(), &|leaf| match class {
                        Class::Process => {}
                        Class::Vm => {
                            manager.for_each_stage2_leaf(vm, view, slot.gfns(), &mut |place, found| leaf(place, found));
                        }
                        // R2: each shadow page once.
                        Class::Nested => {
                            manager.for_each_nested_leaf(vm, view, slot.gfns(), &mut |place, found| leaf(place, found));
                        }
                    });
                }
            }
        }
    }
}
