//! Tenant VMs over a VMM's space, under every scheme: what a guest stores its VMM reads, leaves are as large as both sides allow, and they go before what they were derived
//! from. Every test recounts all classes of leaves on its way.

use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::format::Attrs;
use quire::mapcount::{Accounting, Class, Classes, Scheme, UnderScheme};
use quire::memory::Memory;
use quire::space::{Access, Advice, FaultError, Map, ObjectKind, Policy, SpaceId};
use quire::stage2::{
    AsId, Backing, LogError, Slot, SlotError, SlotFlags, Stage2Format, VmAccess, VmFaultError, VmFaultKind, VmId,
};

/// Guest frame of the first slot: congruent with [`BASE`] at every level.
const GFN: u64 = 0;
const FRAMES: u64 = 8 * 1024;
const PLAIN: SlotFlags = SlotFlags::LOGGING.without(SlotFlags::LOGGING);

type Nest<'m, A> = World<'m, Classes<A>>;

/// A test, under whatever scheme and with tables of whatever format.
trait Test {
    const POLICY: fn() -> Policy = huge;
    fn run<A: Accounting>(w: Nest<'_, A>, format: Stage2Format);
}

struct Under<T>(Stage2Format, core::marker::PhantomData<T>);

impl<T: Test> UnderScheme for Under<T> {
    type Output = ();
    fn run<A: Accounting>(self) {
        let machine = machine_of(FRAMES);
        T::run::<A>(World::with_scheme(&machine, (T::POLICY)(), FRAMES), self.0);
    }
}

/// Every scheme on one format, and one scheme on every format.
fn everywhere<T: Test>() {
    let run = |scheme: Scheme, format| scheme.run(Under::<T>(format, core::marker::PhantomData));
    Scheme::EACH.into_iter().for_each(|scheme| run(scheme, Stage2Format::LongMode));
    Stage2Format::ALL.into_iter().for_each(|format| run(Scheme::Total, format));
}

/// A VM whose VMM has `pages` anonymous pages at [`BASE`], all of them in one slot.
fn vm_of<A: Accounting>(w: &Nest<'_, A>, pages: u64, format: Stage2Format) -> (SpaceId, VmId) {
    let space = w.anon(pages);
    let vm = w.manager.create_vm(space, format).unwrap();
    w.slot(vm, GFN, BASE, pages, PLAIN);
    (space, vm)
}

/// T of the folio behind a page of the space, in one class; `None` where the scheme does not know.
fn leaves<A: Accounting>(w: &Nest<'_, A>, space: SpaceId, page: u64, class: Class) -> Option<u64> {
    let (pfn, _) = w.leaf(space, page)?;
    let folio = w.manager.folio(pfn.align_down(Order::BASE))?;
    A::leaves(&Classes::<A>::class(&w.manager.counts(folio), class)).value()
}

macro_rules! tests {
    ($($name:ident $policy:expr, |$w:ident, $format:ident| $body:block)*) => {$(
        #[test]
        fn $name() {
            struct This;
            impl Test for This {
                const POLICY: fn() -> Policy = $policy;
                fn run<A: Accounting>($w: Nest<'_, A>, $format: Stage2Format) $body
            }
            everywhere::<This>();
        }
    )*};
}

tests! {
    what_a_guest_stores_its_vmm_reads huge, |w, format| {
        let (space, vm) = vm_of(&w, 1024, format);
        let fault = w.guest_write(vm, 5, 77).expect("a fault");
        assert_eq!((fault.kind, fault.level, fault.pages), (VmFaultKind::Mapped, Level::TWO, 512));
        assert_eq!((fault.order, fault.host_faults), (Order::HUGE, 1), "one fault at either level");
        assert_eq!(w.read(space, BASE + 5), 77);
        w.write(space, BASE + 6, 78);
        assert_eq!(w.guest_read(vm, 6), 78);
        assert_eq!(w.manager.vm_leaves(vm), [0, 1, 0]);
        assert_eq!(leaves(&w, space, BASE + 5, Class::Process).unwrap_or(1), 1);
        assert_eq!(leaves(&w, space, BASE + 5, Class::Vm).unwrap_or(1), 1);
        w.audit_classes();
        w.end_vms(&[]);
    }

    a_folio_by_pages_is_one_batch huge_by_pages, |w, format| {
        let (_, vm) = vm_of(&w, 1024, format);
        let fault = w.guest_write(vm, 700, 1).expect("a fault");
        assert_eq!((fault.level, fault.pages, fault.order), (Level::ONE, 512, Order::HUGE));
        assert_eq!(w.manager.vm_leaves(vm), [512, 0, 0]);
        w.audit_classes();
        w.end_vms(&[]);
    }

    small_folios_are_batches_too || Policy::up_to(Order::new(4)), |w, format| {
        let (_, vm) = vm_of(&w, 64, format);
        let fault = w.guest_write(vm, 17, 1).expect("a fault");
        assert_eq!((fault.pages, fault.order), (16, Order::new(4)));
        assert_eq!(w.guest_write(vm, 31, 2), None, "mapped in the same batch");
        w.audit_classes();
        w.end_vms(&[]);
    }

    slots_that_are_not_congruent_get_small_leaves huge, |w, format| {
        let space = w.anon(1024);
        let vm = w.manager.create_vm(space, format).unwrap();
        w.slot(vm, 3, BASE, 1024, PLAIN);
        w.guest_write(vm, 600, 9);
        assert_eq!(w.stage2_level(vm, 600), Some(Level::ONE));
        assert_eq!(w.read(space, BASE + 597), 9);
        w.audit_classes();
        // What the folio has in this table and slot: the slot starts inside the table, the folio ends inside the next.
        assert!(w.manager.vm_pages(vm) >= 500, "{}", w.manager.vm_pages(vm));
        w.end_vms(&[]);
    }

    a_slot_smaller_than_the_folio_maps_its_own_part huge, |w, format| {
        let space = w.anon(512);
        let vm = w.manager.create_vm(space, format).unwrap();
        w.slot(vm, 100, BASE + 100, 50, PLAIN);
        let fault = w.guest_write(vm, 120, 4).expect("a fault");
        assert_eq!((fault.level, fault.pages), (Level::ONE, 50));
        assert_eq!(w.guest_access(vm, 99, None), Err(VmFaultError::NoSlot));
        assert_eq!(w.guest_access(vm, 150, None), Err(VmFaultError::NoSlot));
        w.audit_classes();
        w.end_vms(&[]);
    }

    what_the_vmm_unmaps_its_guest_loses huge, |w, format| {
        let (space, vm) = vm_of(&w, 1024, format);
        w.guest_write(vm, 5, 77);
        w.guest_write(vm, 600, 78);
        w.manager.unmap(space, at(BASE + 512), 512).unwrap();
        w.audit_classes();
        let gone = VmFaultError::Host(FaultError::NotMapped);
        assert_eq!(w.guest_access(vm, 600, None), Err(gone));
        assert_eq!(w.guest_read(vm, 5), 77);
        // Part of a leaf: it is split at both levels, and the rest stays.
        w.manager.advise(space, at(BASE + 16), 16, Advice::DontNeed).unwrap();
        w.audit_classes();
        assert_eq!(w.guest_read(vm, 5), 77);
        assert_eq!(w.guest_read(vm, 20), 0);
        w.end_vms(&[]);
    }

    a_clone_sees_memory_as_it_was huge, |w, format| {
        let (space, vm) = vm_of(&w, 1024, format);
        for gfn in 0..8 {
            w.guest_write(vm, gfn, 100 + gfn);
        }
        let (child, copy) = w.manager.clone_vm(vm).unwrap();
        w.audit_classes();
        w.guest_write(vm, 2, 1);
        w.guest_write(copy, 3, 2);
        w.audit_classes();
        assert_eq!([w.guest_read(vm, 2), w.guest_read(vm, 3)], [1, 103]);
        assert_eq!([w.guest_read(copy, 2), w.guest_read(copy, 3)], [102, 2]);
        assert_eq!([w.read(space, BASE + 7), w.read(child, BASE + 7)], [107, 107]);
        w.manager.destroy_vm(vm);
        w.leave(space);
        w.audit_classes();
        assert_eq!(w.guest_read(copy, 7), 107);
        w.guest_write(copy, 7, 8);
        w.audit_classes();
        w.end_vms(&[]);
    }

    reads_share_and_stores_copy huge, |w, format| {
        let (space, vm) = vm_of(&w, 512, format);
        w.guest_write(vm, 1, 5);
        let child = w.manager.fork(space).unwrap();
        w.audit_classes();
        assert_eq!(w.guest_read(vm, 1), 5, "a read leaf over what the fork has protected");
        w.audit_classes();
        w.guest_write(vm, 1, 6);
        w.audit_classes();
        assert_eq!((w.read(space, BASE + 1), w.read(child, BASE + 1)), (6, 5));
        w.end_vms(&[]);
    }

    two_vms_share_a_file || Policy::up_to(Order::HUGE), |w, format| {
        let file = w.manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).unwrap();
        let make = |prot, flags| {
            let space = w.space();
            w.map(space, BASE, 512, prot, Map::Shared(file, 0));
            let vm = w.manager.create_vm(space, format).unwrap();
            w.slot(vm, GFN, BASE, 512, flags);
            (space, vm)
        };
        let (one, first) = make(RW, PLAIN);
        let (two, second) = make(R, SlotFlags::READ_ONLY.or(SlotFlags::UNMAPPED));
        w.guest_write(first, 9, 3);
        assert_eq!(w.guest_read(second, 9), 3);
        assert_eq!(w.guest_access(second, 9, Some(1)), Err(VmFaultError::ReadOnly));
        w.audit_classes();
        assert_eq!(w.manager.rss(two), 0, "the second VMM maps nothing itself");
        assert_eq!(w.manager.vm_leaves(second), [0, 1, 0]);
        assert_eq!(leaves(&w, one, BASE, Class::Process).unwrap_or(1), 1);
        assert_eq!(leaves(&w, one, BASE, Class::Vm).unwrap_or(2), 2);
        assert!(!w.manager.punch(one, BASE..BASE + 512), "the second VM holds it where it is");
        w.manager.destroy_vm(second);
        w.audit_classes();
        w.end_vms(&[file]);
    }

    what_a_guest_has_of_an_object_goes_with_its_vmms_mapping || Policy::up_to(Order::HUGE), |w, format| {
        let file = w.manager.create_object(ObjectKind::Shared, 0, 1024, Order::HUGE).unwrap();
        let space = w.space();
        w.map(space, BASE, 1024, RW, Map::Shared(file, 0));
        let vm = w.manager.create_vm(space, format).unwrap();
        w.slot(vm, GFN, BASE, 1024, SlotFlags::UNMAPPED);
        for gfn in [9, 600, 700] {
            w.guest_write(vm, gfn, gfn);
        }
        assert_eq!(w.manager.rss(space), 0);
        w.manager.protect(space, at(BASE), 16, R).unwrap();
        w.audit_classes();
        assert_eq!((w.guest_read(vm, 9), w.guest_access(vm, 9, Some(1))), (9, Err(VmFaultError::Host(FaultError::Forbidden))));
        w.manager.remap(space, at(BASE + 600), 10, at(2 * BASE), 10).unwrap();
        w.audit_classes();
        let gone = Err(VmFaultError::Host(FaultError::NotMapped));
        assert_eq!(w.guest_access(vm, 600, None), gone);
        w.manager.unmap(space, at(BASE + 690), 20).unwrap();
        w.audit_classes();
        assert_eq!(w.guest_access(vm, 700, None), gone);
        w.end_vms(&[file]);
    }

    a_discard_leaves_the_folio_behind_it_alone || Policy::up_to(Order::new(4)), |w, format| {
        let file = w.manager.create_object(ObjectKind::Shared, 0, 64, Order::new(4)).unwrap();
        let space = w.space();
        w.map(space, BASE, 64, RW, Map::Shared(file, 0));
        let vm = w.manager.create_vm(space, format).unwrap();
        w.slot(vm, GFN, BASE, 64, PLAIN);
        w.guest_write(vm, 40, 4);
        assert_eq!(w.manager.discard(vm, AsId::NORMAL, 0..16), Ok(true), "nothing was there");
        w.audit_classes();
        // A scheme that cannot tell whether a VM has it keeps it.
        let gone = w.manager.discard(vm, AsId::NORMAL, 32..48).unwrap();
        assert_eq!(w.guest_read(vm, 40), if gone { 0 } else { 4 });
        w.audit_classes();
        w.end_vms(&[file]);
    }

    what_a_log_has_taken_back_is_dirty_all_the_same || Policy::up_to(Order::new(4)), |w, format| {
        let file = w.manager.create_object(ObjectKind::File, 1, 16, Order::new(4)).unwrap();
        let space = w.space();
        w.map(space, BASE, 16, RW, Map::Shared(file, 0));
        let vm = w.manager.create_vm(space, format).unwrap();
        let slot = w.slot(vm, GFN, BASE, 16, SlotFlags::UNMAPPED);
        w.guest_write(vm, 3, 77);
        w.manager.start_log(vm, AsId::NORMAL, slot).unwrap();
        w.manager.remove_slot(vm, AsId::NORMAL, slot);
        w.manager.reclaim(file, 99, false);
        assert_eq!(w.read(space, BASE + 3), 77, "only memory had it");
        w.end_vms(&[file]);
    }

    slots_move_grow_and_go huge, |w, format| {
        let space = w.anon(1024);
        let vm = w.manager.create_vm(space, format).unwrap();
        let slot = w.slot(vm, 0, BASE, 512, PLAIN);
        w.guest_write(vm, 7, 1);
        let other = Slot { gfn: 100, pages: 1, backing: Backing::Host(BASE + 600), flags: PLAIN };
        assert_eq!(w.manager.add_slot(vm, AsId::NORMAL, other), Err(SlotError::Overlaps));
        w.manager.move_slot(vm, AsId::NORMAL, slot, 2048).unwrap();
        w.audit_classes();
        assert_eq!(w.guest_access(vm, 7, None), Err(VmFaultError::NoSlot));
        assert_eq!(w.guest_read(vm, 2048 + 7), 1);
        w.manager.resize_slot(vm, AsId::NORMAL, slot, 1024).unwrap();
        w.guest_write(vm, 2048 + 1000, 2);
        assert_eq!(w.read(space, BASE + 1000), 2);
        w.manager.resize_slot(vm, AsId::NORMAL, slot, 100).unwrap();
        w.audit_classes();
        assert_eq!(w.guest_read(vm, 2048 + 7), 1);
        assert_eq!(w.guest_access(vm, 2048 + 100, None), Err(VmFaultError::NoSlot));
        w.manager.remove_slot(vm, AsId::NORMAL, slot);
        w.audit_classes();
        assert_eq!(w.manager.vm_leaves(vm), [0; 3]);
        assert_eq!(w.manager.add_slot(vm, AsId::NORMAL, Slot { pages: 0, ..other }), Err(SlotError::Range));
        w.end_vms(&[]);
    }

    address_spaces_of_a_vm_have_tables_of_their_own huge, |w, format| {
        let (space, vm) = vm_of(&w, 512, format);
        let again = Slot { gfn: GFN, pages: 512, backing: Backing::Host(BASE), flags: PLAIN };
        w.manager.add_slot(vm, AsId::MANAGEMENT, again).unwrap();
        for view in AsId::ALL {
            w.manager.vm_fault(vm, VmAccess { view, gfn: 3, access: Access::Write }).unwrap();
        }
        w.audit_classes();
        assert_ne!(w.manager.stage2_root(vm, AsId::NORMAL), w.manager.stage2_root(vm, AsId::MANAGEMENT));
        assert_eq!(leaves(&w, space, BASE, Class::Vm).unwrap_or(2), 2, "one owner, two leaves");
        w.end_vms(&[]);
    }

    devices_are_never_counted huge, |w, format| {
        let (space, vm) = vm_of(&w, 512, format);
        let slot = Slot { gfn: 4096, pages: 8, backing: Backing::Device(w.device()), flags: SlotFlags::UNCACHED };
        w.manager.add_slot(vm, AsId::NORMAL, slot).unwrap();
        w.guest_write(vm, 4097, 11);
        let (_, leaf) = w.manager.stage2_lookup(vm, AsId::NORMAL, 4097).unwrap();
        assert!(leaf.attrs.has(Attrs::UNCACHED.or(Attrs::UNTRACKED)), "{:?}", leaf.attrs);
        assert_eq!(w.machine.frame(w.device().add(1)).0[0].load(Relaxed), 11);
        w.audit_classes();
        let managed = Slot { gfn: 9000, backing: Backing::Device(Pfn::new(0)), ..slot };
        assert_eq!(w.manager.add_slot(vm, AsId::NORMAL, managed), Err(SlotError::Managed));
        assert_eq!(w.manager.rss(space), 0);
        w.end_vms(&[]);
    }

    the_log_tells_stores_to_a_device_of_the_vmm huge, |w, format| {
        let (space, vm) = vm_of(&w, 16, format);
        w.map(space, 3 * BASE, 16, RW, Map::Device(w.device()));
        let slot = w.slot(vm, 4096, 3 * BASE, 16, SlotFlags::default());
        w.manager.start_log(vm, AsId::NORMAL, slot).unwrap();
        for round in 0..2 {
            // Read first: then the leaf is there, and the store finds it read-only.
            w.guest_read(vm, 4098);
            w.guest_write(vm, 4098, round);
            let mut gfns = Vec::new();
            w.manager.take_log(vm, AsId::NORMAL, slot, |gfn| gfns.push(gfn));
            assert_eq!(gfns, [4098], "round {round}");
        }
        w.audit_classes();
        w.end_vms(&[]);
    }

    a_guest_fetches_what_its_vmm_may_only_store_to huge, |w, format| {
        let (space, vm) = vm_of(&w, 512, format);
        let fetch = VmAccess { view: AsId::NORMAL, gfn: 5, access: Access::Fetch };
        w.manager.vm_fault(vm, fetch).expect("its VMM has not touched it yet");
        assert!(w.leaf(space, BASE + 5).is_some());
        w.audit_classes();
        w.end_vms(&[]);
    }

    the_log_tells_what_was_stored_to huge, |w, format| {
        let (space, vm) = vm_of(&w, 1024, format);
        let (slot, _) = w.manager.slot_at(vm, AsId::NORMAL, GFN).unwrap();
        w.guest_write(vm, 5, 1);
        w.guest_write(vm, 700, 1);
        assert_eq!(w.manager.vm_leaves(vm), [0, 2, 0]);
        w.manager.start_log(vm, AsId::NORMAL, slot).unwrap();
        w.audit_classes();
        assert_eq!(w.manager.start_log(vm, AsId::NORMAL, slot), Err(LogError::On));
        assert_eq!(w.manager.vm_leaves(vm), [1024, 0, 0], "split at once");
        let log = || {
            let mut gfns = Vec::new();
            w.manager.take_log(vm, AsId::NORMAL, slot, |gfn| gfns.push(gfn));
            gfns
        };
        assert_eq!(log(), []);
        w.guest_read(vm, 8);
        w.guest_write(vm, 9, 1);
        w.guest_write(vm, 9, 2);
        w.guest_write(vm, 800, 3);
        w.audit_classes();
        assert_eq!(log(), [9, 800]);
        assert_eq!(log(), []);
        w.guest_write(vm, 9, 4);
        w.write(space, BASE + 11, 1);
        assert_eq!(log(), [9], "the VMM's own stores are its own business");
        w.manager.stop_log(vm, AsId::NORMAL, slot);
        w.audit_classes();
        assert_eq!(w.manager.vm_leaves(vm), [0, 2, 0], "one leaf again, without a fault");
        assert_eq!(w.guest_write(vm, 10, 4), None);
        assert_eq!(w.guest_read(vm, 9), 4);
        w.end_vms(&[]);
    }

    faults_under_the_log_bring_one_page huge, |w, format| {
        let (_, vm) = vm_of(&w, 1024, format);
        let (slot, _) = w.manager.slot_at(vm, AsId::NORMAL, GFN).unwrap();
        w.manager.start_log(vm, AsId::NORMAL, slot).unwrap();
        assert_eq!(w.guest_write(vm, 3, 1).unwrap().pages, 1);
        w.guest_read(vm, 4);
        assert_eq!(w.manager.vm_leaves(vm), [2, 0, 0]);
        let mut gfns = Vec::new();
        w.manager.take_log(vm, AsId::NORMAL, slot, |gfn| gfns.push(gfn));
        assert_eq!(gfns, [3]);
        w.manager.stop_log(vm, AsId::NORMAL, slot);
        w.audit_classes();
        assert_eq!(w.manager.vm_leaves(vm), [0; 3], "a block that is partly there goes, to come back large");
        assert_eq!(w.guest_write(vm, 3, 2).unwrap().level, Level::TWO);
        w.audit_classes();
        w.end_vms(&[]);
    }

    accessed_frames_are_harvested huge_by_pages, |w, format| {
        let (_, vm) = vm_of(&w, 512, format);
        w.guest_write(vm, 0, 1);
        let harvest = || {
            let mut gfns = Vec::new();
            w.manager.harvest_accessed(vm, AsId::NORMAL, 0..512, |range| gfns.extend(range));
            gfns
        };
        assert_eq!(harvest().len(), 512, "what a fault enters counts as accessed");
        assert_eq!(harvest(), []);
        w.guest_read(vm, 44);
        w.guest_write(vm, 45, 1);
        if format == Stage2Format::LongMode {
            assert_eq!(harvest(), [44, 45], "the machine's MMU walks this format and sets the bit");
        }
        w.audit_classes();
        w.end_vms(&[]);
    }

    what_a_guest_gives_back_is_free_and_comes_back_zero huge, |w, format| {
        let (space, vm) = vm_of(&w, 1024, format);
        w.guest_write(vm, 5, 77);
        w.guest_write(vm, 600, 78);
        let free = w.free();
        assert!(w.manager.discard(vm, AsId::NORMAL, 0..512).unwrap());
        w.audit_classes();
        assert!(w.free() >= free + 512, "the folio is free");
        assert_eq!(w.manager.residency(vm, AsId::NORMAL, 0..512), 0);
        assert_eq!((w.guest_read(vm, 5), w.guest_read(vm, 600)), (0, 78));
        assert_eq!(w.read(space, BASE + 5), 0);
        w.end_vms(&[]);
    }

    zombies_count_until_they_are_reaped huge, |w, format| {
        let (space, vm) = vm_of(&w, 512, format);
        w.guest_write(vm, 5, 77);
        w.manager.retire_vm(vm);
        w.audit_classes();
        assert_eq!(leaves(&w, space, BASE, Class::Vm).unwrap_or(1), 1);
        let fault = VmAccess { view: AsId::NORMAL, gfn: 6, access: Access::Write };
        assert_eq!(w.manager.vm_fault(vm, fault), Err(VmFaultError::Zombie));
        w.machine.leave(w.manager.stage2_root(vm, AsId::NORMAL).unwrap());
        w.manager.reap_vm(vm);
        w.audit_classes();
        assert_eq!(leaves(&w, space, BASE, Class::Vm).unwrap_or(0), 0);
        w.end_vms(&[]);
    }
}
