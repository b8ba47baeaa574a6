//! The check of what is composed: every leaf against the guest's table and what stands below it, every pointer against the parents that its child counts.

use core::sync::atomic::Ordering::Relaxed;

use super::{Audit, Mismatch};
use crate::addr::{Level, Pfn};
use crate::format::{Attrs, Entry, Format};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::page_table::Tables;
use crate::space::Manager;
use crate::stage2::shadow_page::{Kind, ShadowPage};
use crate::stage2::{AsId, Vm, VmId, in_format};

/// Checks everything that is composed for a VM.
pub(super) fn check<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, Classes<A>>, id: VmId, audit: &mut Audit) {
    let vm = manager.vm(id);
    let mut leaves = [0; 2];
    for page in manager.shadow_pages(&vm) {
        let found = check_page(manager, &vm, page, audit);
        leaves[page.role().kind as usize] += found;
        if !page.role().direct && (page.is_tracked() || !page.is_root()) {
            check_table(manager, id, &vm, page, audit);
        }
    }
    for kind in [Kind::Nested, Kind::Stage1] {
        let good = leaves[kind as usize] == vm.composed(kind);
        audit.check(good, vm_frame(manager, &vm), Mismatch::Composed("how many leaves there are"));
    }
}

fn vm_frame<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>, vm: &Vm<'_>) -> Pfn {
    vm.root(AsId::NORMAL).unwrap_or(manager.frames().span().start)
}

/// A table of the guest that something is composed from: while it is tracked nothing allows stores to it, and no leaf of stage 2 over it is large.
fn check_table<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    id: VmId,
    vm: &Vm<'_>,
    page: ShadowPage<'_>,
    audit: &mut Audit,
) {
    let (view, gfn) = (page.role().view, page.gfn());
    let Some((place, leaf)) = manager.stage2_lookup(id, view, gfn) else { return };
    audit.check(place.level == Level::ONE, leaf.pfn, Mismatch::Composed("a large leaf over a guest's table"));
    if !page.is_tracked() {
        return;
    }
    audit.check(!leaf.attrs.has(Attrs::WRITE), leaf.pfn, Mismatch::Composed("stores to a tracked table"));
    for other in manager.shadow_pages(vm).filter(|other| other.role().view == view && other.role().over == 0) {
        for i in 0..other.end() {
            let Entry::Leaf(leaf) = manager.shadow_entry(vm, other, i) else { continue };
            let first = manager.shadowed_page(other, i);
            let over = first <= gfn && gfn < first + other.role().level.entry_pages();
            let stores = leaf.attrs.has(Attrs::WRITE);
            audit.check(!over || !stores, leaf.pfn, Mismatch::Composed("composed stores to a tracked table"));
        }
    }
}

/// Checks a shadow page; how many leaves it has.
fn check_page<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    vm: &Vm<'_>,
    page: ShadowPage<'_>,
    audit: &mut Audit,
) -> u64 {
    let role = page.role();
    let mut check = |good, what| audit.check(good, page.table(), Mismatch::Composed(what));
    let number = u64::from(page.record().raw());
    let points_here = |other: ShadowPage<'_>| {
        let pointers = |i: &usize| {
            manager.origin(other, *i) == number && matches!(manager.shadow_entry(vm, other, *i), Entry::Table(_))
        };
        if other.role().level.below() == Some(role.level) { (0..other.end()).filter(pointers).count() } else { 0 }
    };
    let parents: usize = manager.shadow_pages(vm).map(points_here).sum();
    check(parents as u64 == page.parents(), "parents");
    check(page.is_root() == (parents == 0), "a page that nothing leads to");
    let mut leaves = 0;
    for i in 0..page.end() {
        match manager.shadow_entry(vm, page, i) {
            Entry::Absent => {}
            _ if page.is_root() && !page.is_tracked() => check(false, "an entry of a root that is not in use"),
            Entry::Table(table) => {
                let child = manager.shadow_page(manager.origin(page, i) as u32);
                check(child.table() == table, "a pointer that leads elsewhere");
                check(is_child(manager, vm, page, i, child), "a pointer that the guest's table does not have");
            }
            Entry::Leaf(leaf) => {
                leaves += 1;
                let below = manager.below(vm, role, manager.shadowed_page(page, i));
                let derived = below.is_some_and(|below| {
                    let theirs = below.leaf.attrs;
                    below.leaf.pfn == leaf.pfn
                        && below.level >= role.level
                        && (theirs.has(Attrs::WRITE) || !leaf.attrs.has(Attrs::WRITE))
                        && theirs.has(Attrs::UNTRACKED) == leaf.attrs.has(Attrs::UNTRACKED)
                });
                check(derived, "a leaf that stage 2 does not give");
                if !page.is_unsync() {
                    let due = in_format!(role.format, G => manager.due::<G>(vm, page, i));
                    let given = Attrs::NONE
                        .with_if(leaf.attrs.has(Attrs::WRITE), Attrs::WRITE)
                        .with_if(leaf.attrs.has(Attrs::USER), Attrs::USER)
                        .with_if(leaf.attrs.has(Attrs::EXEC), Attrs::EXEC);
                    let good = due.is_some_and(|due| due.leaf.pfn == leaf.pfn && due.leaf.attrs.has(given));
                    check(good, "a leaf that the guest's table does not give");
                }
            }
        }
    }
    check(leaves == page.leaves(), "leaves of a page");
    leaves
}

/// Whether the guest's entry at `i` leads to what `child` was composed from.
fn is_child<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    vm: &Vm<'_>,
    page: ShadowPage<'_>,
    i: usize,
    child: ShadowPage<'_>,
) -> bool {
    let (role, below) = (page.role(), child.role());
    let same = below.kind == role.kind && below.view == role.view && below.over == role.over;
    if !same || role.level.below() != Some(below.level) {
        return false;
    }
    if role.direct {
        return below.direct && child.gfn() == page.gfn() + i as u64 * role.level.entry_pages();
    }
    let Some((frame, _)) = manager.table_frame(vm, page) else { return false };
    let raw = manager.entries(frame)[i].load(Relaxed);
    match in_format!(role.format, G => G::decode(raw, role.level)) {
        Entry::Absent => false,
        Entry::Leaf(leaf) => below.direct && child.gfn() == leaf.pfn.raw() && leaf.attrs.has(below.rights),
        // Over a nested root the table may be where nothing is composed now.
        Entry::Table(next) if role.over != 0 => {
            !below.direct && manager.below(vm, role, next.raw()).is_none_or(|found| found.gfn == child.gfn())
        }
        Entry::Table(next) => !below.direct && next.raw() == child.gfn(),
    }
}
