//! Managers inside of VMs, under every scheme: what is composed from a guest's tables leads where they say, is counted while it stands, and goes before what it was composed
//! from. Every test recounts all classes at both levels on its way.

use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, R, RW, World, at, huge, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::audit::Recount;
use quire::exercise::example;
use quire::mapcount::{Accounting, Class, Classes, Scheme, Truth, UnderScheme};
use quire::memory::Memory;
use quire::model::Machine;
use quire::model::nest::{GuestMemory, Mmu, NestError, NestedMemory};
use quire::space::{Access, Advice, FaultError, Manager, Map, ObjectKind, Policy, SpaceId};
use quire::stage2::{
    AsId, Backing, ComposeError, ComposedKind, GuestFlush, Kind, Missing, RootId, Slot, SlotFlags, SlotId,
    Stage2Format, VmFaultError, VmId,
};

const FRAMES: u64 = 12 * 1024;
/// Guest frames of the level-1 manager; behind them what its recount takes, and room for tables built by hand.
const GUEST_FRAMES: u64 = 4 * 512;
const GUEST_PAGES: u64 = 5 * 512;
/// Guest frames for tables built by hand.
const BY_HAND: u64 = GUEST_FRAMES + 256;
const PLAIN: SlotFlags = SlotFlags::LOGGING.without(SlotFlags::LOGGING);

type Below<'m, A> = World<'m, Classes<A>>;
type Guest<'n, A> = Manager<&'n GuestMemory<'n, A>, Classes<A>>;

/// A machine with a VM, in which a manager runs.
struct Nest<'n, A: Accounting> {
    w: &'n Below<'n, A>,
    /// The VMM, which has the guest's memory mapped.
    vmm: SpaceId,
    vm: VmId,
    slot: SlotId,
    memory: &'n GuestMemory<'n, A>,
    guest: Guest<'n, A>,
    recount: Recount,
}

/// The counts of a folio in one class, as a recount finds them.
fn truth<M: Memory + quire::memory::Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    recount: &Recount,
    pfn: Pfn,
    class: Class,
) -> Truth {
    let mut audit = recount.run(manager);
    if class != Class::Process {
        recount.run_class(manager, class, &mut audit);
    }
    assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
    manager.folio(pfn).map_or_else(Truth::default, |folio| recount.truth(manager, folio))
}

impl<A: Accounting> Nest<'_, A> {
    fn audit(&self) {
        self.w.audit_classes();
        let audit = self.memory.look(|| self.recount.run_classes(&self.guest));
        assert_eq!(audit.mismatches, 0, "the recount of level 1 disagrees: {:?}", audit.first);
        self.w.audit_classes();
    }

    fn host_truth(&self, pfn: Pfn, class: Class) -> Truth {
        truth(&self.w.manager, &self.w.recount, pfn, class)
    }

    /// The frame behind a guest frame.
    fn frame_of(&self, gfn: u64) -> Pfn {
        let (place, leaf) = self.w.manager.stage2_lookup(self.vm, AsId::NORMAL, gfn).expect("mapped");
        leaf.pfn.add(gfn - place.page)
    }

    /// A process of the guest with `pages` anonymous pages at [`BASE`].
    fn process(&self, pages: u64) -> SpaceId {
        let space = self.guest.create_space().unwrap();
        self.guest.map(space, at(BASE), pages, RW, Map::Anon).unwrap();
        space
    }

    fn write(&self, space: SpaceId, page: u64, value: u64) {
        self.memory.process_access(&self.guest, space, page, Some(value)).expect("writable");
    }

    fn read(&self, space: SpaceId, page: u64) -> u64 {
        self.memory.process_access(&self.guest, space, page, None).expect("readable")
    }

    /// A VM of the guest, over `pages` pages of its process.
    fn vm_of(&self, space: SpaceId, pages: u64) -> VmId {
        let vm = self.guest.create_vm(space, Stage2Format::LongMode).unwrap();
        let slot = Slot { gfn: 0, pages, backing: Backing::Host(BASE), flags: PLAIN };
        self.guest.add_slot(vm, AsId::NORMAL, slot).unwrap();
        vm
    }

    fn vm_write(&self, vm: VmId, gfn: u64, value: u64) {
        self.memory.vm_access(&self.guest, vm, gfn, Some(value)).expect("writable");
    }

    fn vm_read(&self, vm: VmId, gfn: u64) -> u64 {
        self.memory.vm_access(&self.guest, vm, gfn, None).expect("readable")
    }

    /// Ends a VM of the guest, and with it what is composed for it.
    fn end_vm(&self, vm: VmId) {
        if let Some(table) = self.guest.stage2_root(vm, AsId::NORMAL) {
            self.memory.leave(None, table.raw());
        }
        self.guest.destroy_vm(vm);
    }

    fn exit(&self, space: SpaceId) {
        self.memory.leave(None, self.guest.root(space).raw());
        self.guest.destroy_space(space);
    }

    fn nested(&self) -> u64 {
        self.w.manager.composed_leaves(self.vm, Kind::Nested)
    }

    /// Stores an entry of a table built by hand.
    fn entry(&self, table: u64, i: u64, raw: u64) {
        self.memory.frame(Pfn::new(table)).0[i as usize].store(raw, Relaxed);
    }

    /// Four tables by hand from [`BY_HAND`] on, the last of which has `leaves` from its first entry on: the root.
    fn tables_by_hand(&self, leaves: &[u64]) -> RootId {
        for level in 0..3 {
            self.entry(BY_HAND + level, 0, (BY_HAND + level + 1) << 12 | TABLE);
        }
        for (i, gfn) in leaves.iter().enumerate() {
            self.entry(BY_HAND + 3, i as u64, gfn << 12 | LEAF);
        }
        self.memory.nested_root(BY_HAND)
    }
}

/// Present, writable, for users.
const TABLE: u64 = 7;
const LEAF: u64 = 7;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// A test, under whatever scheme.
trait Test {
    const POLICY: fn() -> Policy = huge;
    fn run<A: Accounting>(n: &Nest<'_, A>);
}

struct Under<T>(core::marker::PhantomData<T>);

impl<T: Test> UnderScheme for Under<T> {
    type Output = ();
    fn run<A: Accounting>(self) {
        let machine: Machine = machine_of(FRAMES);
        let w: Below<'_, A> = World::with_scheme(&machine, huge(), FRAMES);
        let file = w.manager.create_object(ObjectKind::Shared, 0, GUEST_PAGES, Order::HUGE).unwrap();
        let vmm = w.space();
        w.map(vmm, BASE, GUEST_PAGES, RW, Map::Shared(file, 0));
        let vm = w.manager.create_vm(vmm, Stage2Format::LongMode).unwrap();
        let slot = w.slot(vm, 0, BASE, GUEST_PAGES, PLAIN);
        {
            let memory = GuestMemory::new(&w.manager, vm);
            let frames = Pfn::new(0)..Pfn::new(GUEST_FRAMES);
            let guest = Manager::new(&memory, &[frames], true, (T::POLICY)()).expect("enough frames");
            let recount = Recount::new(Pfn::new(GUEST_FRAMES), Pfn::new(0), GUEST_FRAMES);
            let n = Nest { w: &w, vmm, vm, slot, memory: &memory, guest, recount };
            T::run(&n);
            n.audit();
            memory.leave_all();
        }
        w.audit_classes();
        w.end_vms(&[file]);
    }
}

macro_rules! tests {
    ($($(#[$doc:meta])* $name:ident $policy:expr, |$n:ident| $body:block)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            struct This;
            impl Test for This {
                const POLICY: fn() -> Policy = $policy;
                fn run<A: Accounting>($n: &Nest<'_, A>) $body
            }
            for scheme in Scheme::EACH {
                scheme.run(Under::<This>(core::marker::PhantomData));
            }
        }
    )*};
}

/// SCHEMES.md, nested levels, the worked example: steps n0 to n9.
struct Example;

impl UnderScheme for Example {
    type Output = ();
    fn run<A: Accounting>(self) {
        let machine = machine_of(example::HOST_FRAMES);
        let w: Below<'_, A> = World::with_scheme(&machine, huge(), example::HOST_FRAMES);
        let counted = example::run(&w.manager, &w.recount, Stage2Format::LongMode, &mut Mmu);
        let counted = counted.unwrap_or_else(|wrong| panic!("{}: {wrong}", A::NAME));
        assert_eq!(counted[..9], example::EXPECTED[..9], "{}", A::NAME);
        assert_eq!(machine.stale(), None, "a flush is missing");
    }
}

/// The table of SCHEMES.md has the columns that are compared.
#[test]
fn the_worked_example_is_what_is_written_of_it() {
    let text = include_str!("../../SCHEMES.md");
    let pair = |(leaves, pages): (u64, u64)| format!("{leaves}, {pages}");
    for (step, (c, what)) in example::EXPECTED.iter().zip(example::WHAT).enumerate() {
        let (gf, its_vms, hf, vms) = (pair(c.gf), pair(c.gf_nested), pair(c.hf), pair(c.hf_vms));
        let (huge, k) = (if c.huge_both { "yes" } else { "no" }, pair(c.tuples));
        let row = format!(
            "| n{step} | {gf} | {its_vms} | {hf} | {vms} | {} | {huge} | {k} | {} | {what} |",
            c.owners, c.entire
        );
        assert!(text.lines().any(|line| line == row), "{row}");
    }
}

#[test]
fn the_worked_example() {
    for scheme in Scheme::EACH {
        scheme.run(Example);
    }
}

tests! {
    processes_of_a_guest_run_on_composed_tables || Policy::up_to(Order::new(4)), |n| {
        let space = n.process(64);
        for page in 0..64 {
            n.write(space, BASE + page, 100 + page);
        }
        n.audit();
        assert!(n.w.manager.composed_leaves(n.vm, Kind::Stage1) > 0);
        assert_eq!(n.nested(), 0, "a cache, and not counted");
        let child = n.guest.fork(space).unwrap();
        n.write(space, BASE + 3, 1);
        n.write(child, BASE + 4, 2);
        n.audit();
        let seen = [space, child].map(|of| [3, 4, 5].map(|page| n.read(of, BASE + page)));
        assert_eq!(seen, [[1, 104, 105], [103, 2, 105]]);
        n.guest.unmap(space, at(BASE), 8).unwrap();
        n.audit();
        let gone = n.memory.process_access(&n.guest, space, BASE + 3, None);
        assert_eq!(gone, Err(NestError::Process(FaultError::NotMapped)));
        n.guest.protect(child, at(BASE), 64, R).unwrap();
        assert_eq!(n.memory.process_access(&n.guest, child, BASE + 4, Some(0)), Err(NestError::Process(FaultError::Forbidden)));
        n.exit(space);
        n.audit();
        assert_eq!(n.read(child, BASE + 4), 2);
        n.exit(child);
    }

    what_a_tenants_tenant_stores_all_below_read huge, |n| {
        let process = n.process(1024);
        let l2 = n.vm_of(process, 1024);
        n.vm_write(l2, 5, 77);
        n.vm_write(l2, 700, 78);
        n.audit();
        assert_eq!(n.vm_read(l2, 5), 77);
        assert_eq!(n.nested(), 2, "leaves of 2 MiB on all levels");
        assert_eq!((n.read(process, BASE + 5), n.read(process, BASE + 700)), (77, 78));
        let (_, leaf) = n.memory.look(|| n.guest.page_table(process).lookup(&n.guest, BASE)).unwrap();
        assert_eq!(n.w.read(n.vmm, BASE + leaf.pfn.raw() + 5), 77);
        n.w.write(n.vmm, BASE + leaf.pfn.raw() + 6, 79);
        assert_eq!(n.vm_read(l2, 6), 79);
        n.write(process, BASE + 8, 80);
        assert_eq!(n.vm_read(l2, 8), 80);
        n.end_vm(l2);
        assert_eq!(n.nested(), 0);
        n.audit();
    }

    a_third_manager_runs_in_a_vm_of_a_vm || Policy::up_to(Order::HUGE), |n| {
        let process = n.process(1024);
        let l2 = n.vm_of(process, 1024);
        let memory = NestedMemory::new(n.memory, &n.guest, l2);
        let frames = Pfn::new(0)..Pfn::new(1024);
        let deep: Manager<_, A> = Manager::new(&memory, &[frames], true, Policy::up_to(Order::new(4))).unwrap();
        let space = deep.create_space().unwrap();
        deep.map(space, at(BASE), 32, RW, Map::Anon).unwrap();
        for page in 0..32 {
            memory.process_access(&deep, space, BASE + page, Some(500 + page)).unwrap();
        }
        n.audit();
        let child = deep.fork(space).unwrap();
        memory.process_access(&deep, child, BASE + 1, Some(1)).unwrap();
        assert_eq!(memory.process_access(&deep, space, BASE + 1, None), Ok(501));
        n.audit();
        // The pages go below: everything comes back.
        n.w.manager.advise(n.vmm, at(BASE), GUEST_PAGES, Advice::DontNeed).unwrap();
        n.w.audit_classes();
        assert_eq!((n.nested(), n.w.manager.composed_leaves(n.vm, Kind::Stage1)), (0, 0));
        for page in 2..32 {
            assert_eq!(memory.process_access(&deep, child, BASE + page, None), Ok(500 + page));
        }
        n.audit();
        // And at level 1.
        n.guest.protect(process, at(BASE), 1024, R).unwrap();
        n.guest.protect(process, at(BASE), 1024, RW).unwrap();
        assert_eq!(n.nested(), 0);
        n.audit();
        assert_eq!(memory.process_access(&deep, child, BASE + 1, None), Ok(1));
        deep.unmap(child, at(BASE), 16).unwrap();
        let gone = memory.process_access(&deep, child, BASE + 1, None);
        assert_eq!(gone, Err(NestError::Process(FaultError::NotMapped)));
        for space in [space, child] {
            memory.leave(deep.root(space).raw());
            deep.destroy_space(space);
        }
        assert!(deep.trim());
        n.end_vm(l2);
    }

    a_table_with_two_parents_is_composed_once huge, |n| {
        let root = n.tables_by_hand(&[600, 601]);
        // A second table of level 2, with the same table of level 1.
        n.entry(BY_HAND + 1, 1, (BY_HAND + 4) << 12 | TABLE);
        n.entry(BY_HAND + 4, 0, (BY_HAND + 3) << 12 | TABLE);
        let second = 1 << 18;
        n.memory.access(root, 0, Some(7)).unwrap();
        assert_eq!(n.memory.access(root, second, None), Ok(7));
        assert_eq!((n.nested(), n.w.manager.composed_tables(n.vm)), (1, 5));
        assert_eq!(n.host_truth(n.frame_of(600), Class::Nested).leaves, 1, "R2");
        n.audit();
        // One parent goes: the leaf is still one.
        n.entry(BY_HAND + 4, 0, 0);
        assert_eq!((n.nested(), n.w.manager.composed_tables(n.vm)), (1, 4));
        n.audit();
        assert_eq!(n.memory.access(root, 0, None), Ok(7));
        let lost = n.memory.access(root, second, None);
        assert!(matches!(lost, Err(ComposeError::Reflected(r)) if r.level == Level::TWO && r.missing == Missing::Entry));
        // And the other: so does it.
        n.entry(BY_HAND + 2, 0, 0);
        assert_eq!(n.nested(), 0);
        n.audit();
    }

    the_last_level_goes_unsync_until_a_flush huge, |n| {
        let root = n.tables_by_hand(&[600, 601]);
        for (page, value) in [(0, 5), (1, 6)] {
            n.memory.access(root, page, Some(value)).unwrap();
        }
        let tables = n.w.manager.composed_tables(n.vm);
        n.entry(BY_HAND + 3, 0, 602 << 12 | LEAF);
        assert_eq!(n.w.manager.composed_tables(n.vm), tables, "nothing dies");
        n.audit();
        assert_eq!(n.memory.access(root, 0, None), Ok(5), "stale until the flush");
        assert_eq!(n.nested(), 2, "and counted");
        n.w.manager.vm_flush(n.vm, GuestFlush::Page { root, page: 0 });
        assert_eq!(n.nested(), 1);
        n.audit();
        assert_eq!(n.memory.access(root, 0, None), Ok(0));
        n.entry(BY_HAND + 3, 1, 0);
        n.entry(BY_HAND + 3, 2, 601 << 12 | LEAF);
        assert_eq!(n.memory.access(root, 2, None), Ok(6), "what is new needs no flush");
        n.w.manager.vm_flush(n.vm, GuestFlush::All);
        n.audit();
        assert!(n.memory.access(root, 1, None).is_err());
        // Tracked again: the next store is noticed.
        n.entry(BY_HAND + 3, 2, 0);
        n.w.manager.vm_flush(n.vm, GuestFlush::All);
        assert!(n.memory.access(root, 2, None).is_err());
    }

    a_new_way_to_an_unsync_table_shows_what_is_there huge, |n| {
        let root = n.tables_by_hand(&[600]);
        n.memory.access(root, 0, Some(5)).unwrap();
        n.entry(BY_HAND + 3, 0, 601 << 12 | LEAF);
        n.entry(BY_HAND + 1, 1, (BY_HAND + 4) << 12 | TABLE);
        n.entry(BY_HAND + 4, 0, (BY_HAND + 3) << 12 | TABLE);
        assert_eq!(n.memory.access(root, 0, None), Ok(0), "the table above has changed, and with it all below");
        n.entry(BY_HAND + 3, 0, 602 << 12 | LEAF);
        assert_eq!(n.memory.access(root, 1 << 18, None), Ok(0));
        assert_eq!(n.memory.walk(&[BY_HAND], 1 << 18).unwrap().pfn, n.frame_of(602));
        n.audit();
    }

    bits_of_the_guests_entries_are_set_as_an_mmu_would huge, |n| {
        let root = n.tables_by_hand(&[600, 601]);
        let raw = |table, i: usize| n.memory.look(|| n.memory.frame(Pfn::new(table)).0[i].load(Relaxed)) & 0xfff;
        n.memory.access(root, 0, None).unwrap();
        assert_eq!(raw(BY_HAND, 0), TABLE | ACCESSED);
        assert_eq!([raw(BY_HAND + 3, 0), raw(BY_HAND + 3, 1)], [LEAF | ACCESSED, LEAF]);
        n.memory.access(root, 0, Some(1)).unwrap();
        assert_eq!([raw(BY_HAND + 3, 0), raw(BY_HAND + 3, 1)], [LEAF | ACCESSED | DIRTY, LEAF]);
        n.entry(BY_HAND + 3, 0, 600 << 12 | LEAF);
        n.w.manager.vm_flush(n.vm, GuestFlush::All);
        n.memory.access(root, 0, None).unwrap();
        assert_eq!(raw(BY_HAND + 3, 0), LEAF | ACCESSED, "cleared and flushed, it is set anew");
        n.audit();
    }

    rights_of_every_level_count huge, |n| {
        let root = n.tables_by_hand(&[600]);
        n.entry(BY_HAND + 1, 0, (BY_HAND + 2) << 12 | TABLE & !2);
        let refused = n.memory.access(root, 0, Some(1));
        assert!(matches!(refused, Err(ComposeError::Reflected(r)) if r.missing == Missing::Right));
        assert_eq!(n.memory.access(root, 0, None), Ok(0));
        n.entry(BY_HAND + 2, 1, 513 << 12 | LEAF | LARGE);
        let reserved = n.memory.access(root, 512, None);
        assert!(matches!(reserved, Err(ComposeError::Reflected(r)) if r.missing == Missing::Reserved));
        n.entry(BY_HAND + 3, 5, (1 << 37) << 12 | LEAF);
        assert_eq!(n.memory.access(root, 5, None), Err(ComposeError::Stage2(1 << 37, VmFaultError::NoSlot)));
        n.audit();
    }

    a_guests_table_forbids_large_leaves_over_it huge, |n| {
        let block = BY_HAND & !511;
        n.entry(block, 0, 0);
        assert_eq!(n.w.stage2_level(n.vm, block), Some(Level::TWO));
        let root = n.tables_by_hand(&[600]);
        assert_eq!(n.w.manager.shadowed_tables(n.vm, AsId::NORMAL, block..block + 512), 0);
        n.memory.access(root, 0, Some(1)).unwrap();
        assert_eq!(n.w.manager.shadowed_tables(n.vm, AsId::NORMAL, block..block + 512), 4);
        assert_eq!(n.w.stage2_level(n.vm, block), Some(Level::ONE), "split");
        n.audit();
        n.w.manager.advise(n.vmm, at(BASE + block), 512, Advice::DontNeed).unwrap();
        n.audit();
        n.memory.access(root, 0, None).unwrap();
        assert_eq!(n.w.stage2_level(n.vm, BY_HAND), Some(Level::ONE), "not large again while there are tables");
        n.memory.leave(None, BY_HAND);
        // A move of the slot frees the table of small leaves.
        for gfn in [1 << 18, 0] {
            n.w.manager.move_slot(n.vm, AsId::NORMAL, n.slot, gfn).unwrap();
        }
        n.entry(block, 0, 0);
        assert_eq!(n.w.stage2_level(n.vm, block), Some(Level::TWO));
    }

    large_leaves_of_a_guest_are_as_large_as_stage_2_has_them huge, |n| {
        let root = n.tables_by_hand(&[]);
        n.entry(BY_HAND + 2, 1, 512 << 12 | LEAF | LARGE);
        n.memory.access(root, 512 + 3, Some(9)).unwrap();
        assert_eq!(n.nested(), 1);
        // Split below: small ones of the same, in one batch.
        n.w.manager.advise(n.vmm, at(BASE + 512 + 100), 1, Advice::DontNeed).unwrap();
        n.audit();
        assert_eq!(n.nested(), 0);
        assert_eq!(n.memory.access(root, 512 + 3, None), Ok(9));
        assert_eq!(n.nested(), 100, "up to what is not there");
        n.memory.access(root, 512 + 100, None).unwrap();
        n.audit();
        let served = n.w.manager.compose_fault(n.vm, root, 512 + 3, Access::Read).unwrap();
        assert_eq!(served.kind, ComposedKind::Spurious, "who comes second finds it there");
    }

    the_log_notes_stores_of_tenants_tenants huge, |n| {
        let process = n.process(512);
        let l2 = n.vm_of(process, 512);
        n.vm_write(l2, 5, 1);
        let (_, leaf) = n.memory.look(|| n.guest.page_table(process).lookup(&n.guest, BASE)).unwrap();
        let gf = leaf.pfn.raw();
        n.w.manager.start_log(n.vm, AsId::NORMAL, n.slot).unwrap();
        assert_eq!(n.nested(), 0);
        let log = || {
            let mut gfns = Vec::new();
            n.w.manager.take_log(n.vm, AsId::NORMAL, n.slot, |gfn| gfns.push(gfn));
            gfns.retain(|gfn| (gf..gf + 512).contains(gfn));
            gfns
        };
        log();
        n.vm_read(l2, 6);
        n.vm_write(l2, 7, 1);
        n.write(process, BASE + 9, 1);
        assert_eq!(log(), [gf + 7, gf + 9]);
        n.vm_write(l2, 7, 2);
        n.audit();
        assert_eq!(log(), [gf + 7], "the log was read: the store is noted again");
        n.w.manager.stop_log(n.vm, AsId::NORMAL, n.slot);
        n.audit();
        assert_eq!((n.vm_read(l2, 7), n.read(process, BASE + 9)), (2, 1));
    }

    accesses_through_composed_leaves_are_harvested huge, |n| {
        let root = n.tables_by_hand(&[600, 601]);
        n.memory.access(root, 0, Some(1)).unwrap();
        let harvest = || {
            let mut found = false;
            n.w.manager.harvest_accessed(n.vm, AsId::NORMAL, 512..1024, |gfns| found |= gfns.contains(&600));
            found
        };
        assert!(harvest());
        assert!(!harvest());
        n.memory.access(root, 0, None).unwrap();
        n.audit();
        assert!(harvest(), "composed anew, it is marked anew");
    }

    zombie_roots_count_until_they_are_reaped huge, |n| {
        let root = n.tables_by_hand(&[600]);
        n.memory.access(root, 0, Some(1)).unwrap();
        let again = n.w.manager.create_nested_root(n.vm, AsId::NORMAL, BY_HAND, Stage2Format::LongMode);
        assert_eq!(again, Ok(root), "one table, one root");
        n.w.manager.reap_root(n.vm, root);
        n.w.manager.retire_root(n.vm, root);
        assert_eq!(n.w.manager.compose_fault(n.vm, root, 1, Access::Read), Err(ComposeError::Zombie));
        n.audit();
        assert_eq!(n.host_truth(n.frame_of(600), Class::Nested).leaves, 1);
        n.memory.leave(None, BY_HAND);
        assert_eq!(n.nested(), 0);
        assert_eq!(n.w.manager.composed_tables(n.vm), 0);
        assert_eq!(n.w.manager.compose_fault(n.vm, root, 1, Access::Read), Err(ComposeError::NoRoot));
    }

    slots_that_go_take_what_was_composed huge, |n| {
        let extra = n.w.slot(n.vm, 8192, BASE + 512, 512, PLAIN);
        let root = n.tables_by_hand(&[8192 + 5, 512 + 5]);
        n.memory.access(root, 0, Some(3)).unwrap();
        assert_eq!(n.memory.access(root, 1, None), Ok(3), "two ways to one page");
        assert_eq!(n.host_truth(n.frame_of(517), Class::Nested).leaves, 2);
        n.audit();
        n.w.manager.move_slot(n.vm, AsId::NORMAL, extra, 16384).unwrap();
        n.audit();
        assert_eq!(n.nested(), 1);
        assert_eq!(n.memory.access(root, 0, None), Err(ComposeError::Stage2(8197, VmFaultError::NoSlot)));
        n.w.manager.remove_slot(n.vm, AsId::NORMAL, extra);
        assert_eq!(n.memory.access(root, 1, None), Ok(3));
    }

    devices_below_are_never_counted huge, |n| {
        let slot = Slot { gfn: 8192, pages: 8, backing: Backing::Device(n.w.device()), flags: PLAIN };
        let id = n.w.manager.add_slot(n.vm, AsId::NORMAL, slot).unwrap();
        let root = n.tables_by_hand(&[8193]);
        n.memory.access(root, 0, Some(3)).unwrap();
        assert_eq!(n.nested(), 1);
        n.audit();
        n.w.manager.remove_slot(n.vm, AsId::NORMAL, id);
        assert_eq!(n.nested(), 0);
    }

    a_clone_has_nothing_composed_and_loses_nothing huge, |n| {
        let root = n.tables_by_hand(&[600]);
        n.memory.access(root, 0, Some(1)).unwrap();
        let (child, copy) = n.w.manager.clone_vm(n.vm).unwrap();
        n.w.audit_classes();
        assert_eq!(n.w.manager.composed_tables(copy), 0);
        assert_eq!(n.memory.access(root, 0, None), Ok(1));
        n.w.machine.leave(n.w.manager.stage2_root(copy, AsId::NORMAL).unwrap());
        n.w.manager.destroy_vm(copy);
        n.w.leave(child);
        n.audit();
    }
}
