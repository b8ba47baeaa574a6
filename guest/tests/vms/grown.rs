//! Folios that grow: where VMs are counted a descriptor costs what it does without them, until a VM maps the folio; then it costs the extension more, and that is given back with
//! the folio. A leaf that cannot be counted for want of memory is not entered.

use std::sync::Barrier;
use std::thread;

use crate::world::{BASE, RW, Untouched, World, at, machine_of};
use quire::addr::{Order, Pfn};
use quire::audit::Recount;
use quire::mapcount::{
    Accounting, Class, Classes, Observe, Oracle, Scheme, Total, UnderScheme, large_descriptor_words,
    small_descriptor_words,
};
use quire::memory::Memory;
use quire::model::EmulatedMemory;
use quire::model::nest::GuestMemory;
use quire::space::{Access, Manager, Map, Policy, SpaceId};
use quire::stage2::{
    AsId, Backing, ComposeError, Kind, RootId, Slot, SlotFlags, Stage2Format, VmAccess, VmFaultError, VmFaultKind, VmId,
};

const FRAMES: u64 = 40 * 512;
const PLAIN: SlotFlags = SlotFlags::LOGGING.without(SlotFlags::LOGGING);
/// Extensions in a frame, of small folios and of larger ones, under `total`.
const IN_A_FRAME: [u64; 2] = [4096 / 16, 4096 / 40];

type Nest<'m, A> = World<'m, Classes<A>>;

/// A VM whose VMM has `pages` pages, all of them mapped there.
fn vm_of<A: Accounting>(w: &Nest<'_, A>, pages: u64) -> (SpaceId, VmId) {
    let space = w.anon(pages);
    let vm = w.manager.create_vm(space, Stage2Format::LongMode).unwrap();
    w.slot(vm, 0, BASE, pages, PLAIN);
    w.fill(space, BASE..BASE + pages, 1);
    (space, vm)
}

/// Bytes of slots, records and extensions.
fn bytes<A: Accounting>(w: &World<'_, A>) -> u64 {
    let found = w.manager.metadata();
    found.slot_bytes + found.folio_bytes
}

fn fault<A: Accounting>(w: &Nest<'_, A>, vm: VmId, gfn: u64) -> Result<VmFaultKind, VmFaultError> {
    let access = VmAccess { view: AsId::NORMAL, gfn, access: Access::Write };
    w.manager.vm_fault(vm, access).map(|fault| fault.kind)
}

/// Takes all frames but `left`.
fn hold<A: Accounting>(w: &World<'_, A>, left: u64) -> Vec<(Pfn, Order)> {
    let frames = w.manager.frames();
    frames.set_reserve(0);
    let mut held = Vec::new();
    for order in (0..=10).rev().map(Order::new) {
        while frames.stats().free >= order.pages() + left {
            let Some(run) = frames.alloc(order, false) else { break };
            held.push((run.pfn, order));
        }
    }
    assert_eq!(frames.stats().free, left);
    held
}

fn give_back<A: Accounting>(w: &World<'_, A>, held: &mut Vec<(Pfn, Order)>) {
    held.drain(..).for_each(|(pfn, order)| w.manager.frames().free(pfn, order, false));
}

/// Frames that `n` extensions take.
fn frames_of(order: Order, n: u64) -> u64 {
    n.div_ceil(IN_A_FRAME[usize::from(order > Order::BASE)])
}

#[test]
fn a_folio_grows_when_a_vm_maps_it() {
    for (order, pages) in [(0, 16 * 512), (1, 8 * 512), (4, 16 * 512), (9, 16 * 512)] {
        let order = Order::new(order);
        let folios = pages >> order.get();
        let policy = Policy::only(order);
        // The same without VMs.
        let alone = {
            let machine = machine_of(FRAMES);
            let world: World<'_, Total> = World::with_scheme(&machine, policy, FRAMES);
            let space = world.anon(pages);
            world.fill(space, BASE..BASE + pages, 1);
            let alone = bytes(&world);
            world.end(&[]);
            alone
        };
        let machine = machine_of(FRAMES);
        let w: Nest<'_, Total> = World::with_scheme(&machine, policy, FRAMES);
        let (space, vm) = vm_of(&w, pages);
        assert_eq!(w.manager.extensions(), [0, 0]);
        // A VM has a record and a table, whose frames may be the first of another block with slots.
        assert!((alone..=alone + 2 * 4096).contains(&bytes(&w)), "order {order}: {} of {alone}", bytes(&w));
        // Half of them, then all, and again.
        let mut grown = 0;
        for end in [folios / 2, folios, folios] {
            let before = w.manager.metadata();
            for nth in 0..end {
                let expected = if nth < grown { VmFaultKind::Spurious } else { VmFaultKind::Mapped };
                assert_eq!(fault(&w, vm, nth << order.get()), Ok(expected));
            }
            let more = frames_of(order, end) - frames_of(order, grown);
            grown = end;
            let extensions = if order == Order::BASE { [grown, 0] } else { [0, grown] };
            assert_eq!(w.manager.extensions(), extensions, "order {order}");
            assert_eq!(w.manager.metadata().folio_bytes - before.folio_bytes, more * 4096, "order {order}");
        }
        w.audit_classes();
        // They stay when the VM goes, and go with the folios.
        machine.leave(w.manager.stage2_root(vm, AsId::NORMAL).unwrap());
        w.manager.destroy_vm(vm);
        w.audit_classes();
        assert_eq!(w.manager.extensions().iter().sum::<u64>(), folios);
        w.expect(space, BASE..BASE + pages, BASE, 1);
        w.manager.unmap(space, at(BASE), pages / 2).unwrap();
        assert_eq!(w.manager.extensions().iter().sum::<u64>(), folios / 2);
        w.audit_classes();
        w.leave(space);
        assert_eq!(w.manager.extensions(), [0, 0]);
        assert!(w.manager.trim() && w.manager.frames().all_free());
        w.end_vms(&[]);
    }
}

/// A descriptor is as large as without classes, under every scheme.
#[test]
fn descriptors_are_as_large_as_without_vms() {
    struct Sizes;
    impl UnderScheme for Sizes {
        type Output = ();
        fn run<A: Accounting>(self) {
            assert_eq!(small_descriptor_words::<Classes<A>>(), small_descriptor_words::<A>(), "{}", A::NAME);
            assert_eq!(large_descriptor_words::<Classes<A>>(), large_descriptor_words::<A>(), "{}", A::NAME);
        }
    }
    Scheme::EACH.into_iter().for_each(|scheme| scheme.run(Sizes));
}

/// Everything that a folio can be told is told it grown: moved, cut, forked, split, and freed in parts.
#[test]
fn a_grown_folio_is_one_like_any_other() {
    struct This;
    impl UnderScheme for This {
        type Output = ();
        fn run<A: Accounting>(self) {
            for order in [0, 4, 9].map(Order::new) {
                let machine = machine_of(FRAMES);
                let w: Nest<'_, A> = World::with_scheme(&machine, Policy::only(order), FRAMES);
                let (space, vm) = vm_of(&w, 1024);
                for gfn in 0..1024 {
                    w.guest_write(vm, gfn, 1 << 40 | (BASE + gfn));
                }
                let grown = w.manager.extensions();
                let folios = if A::STATE_WORDS > 0 { 1024 >> order.get() } else { 0 };
                assert_eq!(grown.iter().sum::<u64>(), folios, "{}", A::NAME);
                w.audit_classes();
                let page = w.leaf(space, BASE + 3).unwrap().0;
                let folio = w.manager.folio(page).unwrap();
                let mapping = w.manager.mapping(folio);
                assert_eq!(w.manager.page_leaves_by_walk(folio, 3 % folio.pages()), Ok(1), "the rmap finds it");
                let child = w.manager.fork(space).unwrap();
                w.audit_classes();
                w.expect(child, BASE..BASE + 1024, BASE, 1);
                w.write(space, BASE + 3, 9);
                assert_eq!((w.guest_read(vm, 3), w.read(child, BASE + 3)), (9, 1 << 40 | (BASE + 3)));
                w.audit_classes();
                w.leave(child);
                // The copy has not grown, or it has by the guest's read of it.
                w.manager.unmap(space, at(BASE + 512 + 8), 16).unwrap();
                w.audit_classes();
                w.manager.split_deferred(u64::MAX);
                w.audit_classes();
                let again = w.leaf(space, BASE + 5).and_then(|(pfn, _)| w.manager.folio(pfn)).unwrap();
                assert_eq!(w.manager.mapping(again).object, mapping.object);
                let pin = w.manager.pin(space, at(BASE + 5), Access::Read).unwrap();
                let moved = w.manager.migrate(pin.folio()).expect("nobody else holds it");
                w.manager.unpin(pin, false);
                let moved = w.manager.folio(moved).unwrap();
                assert_eq!(w.manager.mapping(moved).object, mapping.object);
                w.audit_classes();
                assert_eq!(w.guest_read(vm, 5), 1 << 40 | (BASE + 5));
                w.audit_classes();
                w.end_vms(&[]);
            }
        }
    }
    Scheme::EACH.into_iter().for_each(|scheme| scheme.run(This));
}

/// The leaf of a VM that would be the first beyond what a frame of extensions holds, with tables for it and no frame: it is refused, and nothing has changed.
#[test]
fn a_folio_that_cannot_grow_is_not_mapped() {
    for order in [0, 4].map(Order::new) {
        let machine = machine_of(FRAMES);
        let w: Nest<'_, Total> = World::with_scheme(&machine, Policy::only(order), FRAMES);
        let pages = 4096;
        let (space, vm) = vm_of(&w, pages);
        let full = IN_A_FRAME[usize::from(order > Order::BASE)];
        // All tables, by the last folio of each.
        let mut grown = 0;
        for last in (0..pages).filter(|gfn| gfn % 512 == 512 - order.pages()) {
            assert_eq!(fault(&w, vm, last), Ok(VmFaultKind::Mapped));
            grown += 1;
        }
        let mut next = 0;
        while grown < full {
            grown += u64::from(fault(&w, vm, next).unwrap() == VmFaultKind::Mapped);
            next += order.pages();
        }
        let mut held = hold(&w, 0);
        let before = (w.manager.metadata(), w.manager.extensions(), w.manager.vm_leaves(vm));
        for _ in 0..2 {
            assert_eq!(fault(&w, vm, next), Err(VmFaultError::OutOfFrames), "order {order}");
            assert_eq!((w.manager.metadata(), w.manager.extensions(), w.manager.vm_leaves(vm)), before);
            w.audit_classes();
        }
        // What has grown can be mapped, and what is mapped can go.
        let grown_one = pages - order.pages();
        w.manager.unmap(space, at(BASE + grown_one), order.pages()).unwrap();
        assert_eq!(w.manager.stage2_lookup(vm, AsId::NORMAL, grown_one), None);
        assert_eq!(w.manager.extensions().iter().sum::<u64>(), full - 1);
        w.audit_classes();
        // The place of its extension will do.
        assert_eq!(fault(&w, vm, next), Ok(VmFaultKind::Mapped));
        next += order.pages();
        let mut rest = hold(&w, 0);
        assert_eq!(fault(&w, vm, next), Err(VmFaultError::OutOfFrames));
        // The smallest run that was taken.
        let (pfn, run) = rest.pop().unwrap();
        w.manager.frames().free(pfn, run, false);
        assert_eq!(fault(&w, vm, next), Ok(VmFaultKind::Mapped));
        if order == Order::BASE {
            assert_eq!((run, w.manager.frames().stats().free), (Order::BASE, 0), "one frame is enough");
        }
        give_back(&w, &mut rest);
        give_back(&w, &mut held);
        w.audit_classes();
        w.end_vms(&[]);
    }
}

/// With 0, 1, 2... frames left, to tables and extensions alike.
#[test]
fn a_stage_2_fault_fails_cleanly_at_every_allocation() {
    struct This;
    impl UnderScheme for This {
        type Output = ();
        fn run<A: Accounting>(self) {
            for order in [0, 4, 9].map(Order::new) {
                for left in 0.. {
                    let machine = machine_of(FRAMES);
                    let w: Nest<'_, A> = World::with_scheme(&machine, Policy::only(order), FRAMES);
                    let (_, vm) = vm_of(&w, 512);
                    let mut held = hold(&w, left);
                    let outcome = fault(&w, vm, 7);
                    if outcome.is_err() {
                        assert_eq!(outcome, Err(VmFaultError::OutOfFrames));
                        assert_eq!((w.manager.vm_pages(vm), w.manager.extensions()), (0, [0, 0]));
                    }
                    w.audit_classes();
                    give_back(&w, &mut held);
                    assert!(fault(&w, vm, 7).is_ok());
                    w.audit_classes();
                    w.end_vms(&[]);
                    if outcome.is_ok() {
                        // Tables of levels 3 to 1, or to 2, and the frame of extensions.
                        let tables = if order == Order::HUGE { 2 } else { 3 };
                        let extensions = u64::from(A::STATE_WORDS > 0);
                        assert_eq!(left, tables + extensions, "order {order}, {}", A::NAME);
                        break;
                    }
                }
            }
        }
    }
    Scheme::EACH.into_iter().for_each(|scheme| scheme.run(This));
}

/// A nested leaf is the first of its class: a large folio grows again for it, a small one need not. Then the same without a frame for that.
#[test]
fn a_folio_grows_again_for_nested_leaves() {
    const ACCESS: u64 = 7;
    const PAGES: u64 = 4096;
    for order in [0, 4].map(Order::new) {
        let is_small = order == Order::BASE;
        let machine = machine_of(FRAMES);
        let w: Nest<'_, Total> = World::with_scheme(&machine, Policy::only(order), FRAMES);
        let (space, vm) = vm_of(&w, PAGES);
        {
            let memory = GuestMemory::new(&w.manager, vm);
            let entry = |table: u64, i: u64, gfn: u64| {
                memory.frame(Pfn::new(table)).0[i as usize]
                    .store(gfn << 12 | ACCESS, std::sync::atomic::Ordering::Relaxed);
            };
            // Tables in guest frames 16 to 19, whose leaves lead to one page of each folio from guest frame 1024 on.
            (16..19).for_each(|table| entry(table, 0, table + 1));
            (0..64).for_each(|nth| entry(19, nth, 1024 + nth * order.pages()));
            let root: RootId = memory.nested_root(16);
            let of = |class: Class, nth: u64| {
                let pfn = w.leaf(space, BASE + 1024 + nth * order.pages()).unwrap().0;
                let folio = w.manager.folio(pfn).unwrap();
                Total::leaves(&Classes::<Total>::class(&w.manager.counts(folio), class)).value().unwrap()
            };
            let in_use = || w.manager.extensions().iter().sum::<u64>();
            assert!(memory.access(root, 0, Some(5)).is_ok());
            let before = in_use();
            assert!(memory.access(root, 1, Some(5)).is_ok());
            assert_eq!(in_use() - before, if is_small { 1 } else { 2 });
            let all = [Class::Process, Class::Vm, Class::Nested].map(|class| of(class, 1));
            assert_eq!(all, if is_small { [1, 1, 1] } else { [16, 16, 1] });
            assert_eq!(of(Class::Nested, 2), 0);
            w.audit_classes();
            // The second folio is mapped at stage 2; no place is left among the extensions, and no frame.
            w.guest_write(vm, 1024 + 2 * order.pages(), 1);
            let per_frame = IN_A_FRAME[usize::from(!is_small)];
            let mut next = 2048;
            while in_use() % per_frame != 0 {
                w.guest_write(vm, next, 1);
                next += order.pages();
            }
            let mut held = hold(&w, 0);
            let (before, leaves) = (in_use(), w.manager.composed_leaves(vm, Kind::Nested));
            let outcome = memory.access(root, 2, Some(6));
            if is_small {
                assert!(outcome.is_ok(), "it has room for both");
            } else {
                assert_eq!(outcome, Err(ComposeError::OutOfFrames));
                assert_eq!(w.manager.composed_leaves(vm, Kind::Nested), leaves);
                assert_eq!((in_use(), of(Class::Nested, 2)), (before, 0));
                w.audit_classes();
            }
            give_back(&w, &mut held);
            assert!(memory.access(root, 2, Some(6)).is_ok());
            assert_eq!(of(Class::Nested, 2), 1);
            w.audit_classes();
            memory.leave_all();
        }
        w.end_vms(&[]);
    }
}

/// Two VMs of one VMM map the same folios on two CPUs at once, while a third asks where they belong: each grows once.
#[test]
fn two_cpus_make_folios_grow() {
    const FRAMES: u64 = 4 * 512;
    for order in [0, 4].map(Order::new) {
        for _ in 0..50 {
            let cpus = Untouched(EmulatedMemory::new(FRAMES + Recount::scratch_frames(FRAMES)));
            let frames = Pfn::new(0)..Pfn::new(FRAMES);
            let manager: Manager<_, Classes<Observe<Total, Oracle>>> =
                Manager::new(&cpus, &[frames], true, Policy::only(order)).unwrap();
            let recount = Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES);
            let space = manager.create_space().unwrap();
            manager.map(space, at(BASE), 512, RW, Map::Anon).unwrap();
            let gfns = || (0..512).step_by(order.pages() as usize);
            for gfn in gfns() {
                manager.fault(space, at(BASE + gfn), Access::Write).unwrap();
            }
            // The first, which grows at once, and the last.
            let folios = [0, 512 - order.pages()].map(|page| {
                let leaf = manager.page_table(space).lookup(&manager, BASE + page).unwrap().1;
                (leaf.pfn, manager.mapping(manager.folio(leaf.pfn).unwrap()))
            });
            let vms = [(); 2].map(|()| {
                let vm = manager.create_vm(space, Stage2Format::LongMode).unwrap();
                let slot = Slot { gfn: 0, pages: 512, backing: Backing::Host(BASE), flags: PLAIN };
                manager.add_slot(vm, AsId::NORMAL, slot).unwrap();
                vm
            });
            let together = Barrier::new(3);
            thread::scope(|scope| {
                for vm in vms {
                    let (manager, together) = (&manager, &together);
                    scope.spawn(move || {
                        together.wait();
                        for gfn in gfns() {
                            let access = VmAccess { view: AsId::NORMAL, gfn, access: Access::Write };
                            manager.vm_fault(vm, access).unwrap();
                        }
                    });
                }
                let (manager, together, folios) = (&manager, &together, &folios);
                scope.spawn(move || {
                    together.wait();
                    for _ in 0..20_000 {
                        for &(pfn, mapping) in folios {
                            let folio = manager.folio(pfn).expect("it is found whether it has grown or not");
                            assert_eq!(manager.mapping(folio), mapping);
                        }
                    }
                });
            });
            assert_eq!(manager.extensions().iter().sum::<u64>(), 512 >> order.get());
            let audit = recount.run_classes(&manager);
            assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
            vms.into_iter().for_each(|vm| manager.destroy_vm(vm));
            manager.destroy_space(space);
            assert!(manager.trim(), "frames are lost");
        }
    }
}
