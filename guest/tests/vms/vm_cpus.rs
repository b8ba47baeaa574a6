//! A guest on one CPU and its VMM on another: no store is lost, no log misses one, no leaf outlives what it was derived from, and no count falls before the flush
//! (SCHEMES.md, nested levels, R5).

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use crate::world::cpus::{Cpus, both};
use crate::world::{BASE, R, RW, at, huge, huge_by_pages};
use quire::addr::{Order, Pfn};
use quire::audit::Recount;
use quire::mapcount::{Answer, Class, Classes, Observe, Oracle, Total, Tuples, Vmas};
use quire::space::{Access, Advice, FaultError, Manager, Map, Policy, SpaceId};
use quire::stage2::{AsId, Backing, Slot, SlotFlags, SlotId, Stage2Format, VmAccess, VmFaultError, VmId};

const FRAMES: u64 = 6 * 1024;
const PAGES: u64 = 1024;
const STORES: u64 = 6000;

type Checked = Classes<Observe<Total, Observe<Tuples, Observe<Vmas, Oracle>>>>;

fn cpus() -> Cpus {
    Cpus::new(FRAMES, 0)
}

struct World<'m> {
    manager: Manager<&'m Cpus, Checked>,
    cpus: &'m Cpus,
    space: SpaceId,
    vm: VmId,
    slot: SlotId,
}

impl<'m> World<'m> {
    fn new(cpus: &'m Cpus, policy: Policy) -> Self {
        let manager: Manager<_, Checked> = Manager::new(cpus, &[Pfn::new(0)..Pfn::new(FRAMES)], true, policy).unwrap();
        let space = manager.create_space().unwrap();
        manager.map(space, at(BASE), PAGES, RW, Map::Anon).unwrap();
        let vm = manager.create_vm(space, Stage2Format::LongMode).unwrap();
        let slot = Slot { gfn: 0, pages: PAGES, backing: Backing::Host(BASE), flags: SlotFlags::default() };
        let slot = manager.add_slot(vm, AsId::NORMAL, slot).unwrap();
        Self { manager, cpus, space, vm, slot }
    }

    /// One store or load of the guest to word 0.
    fn guest(&self, gfn: u64, more: u64) -> Result<u64, VmFaultError> {
        let access = if more != 0 { Access::Write } else { Access::Read };
        let root = self.manager.stage2_root(self.vm, AsId::NORMAL).expect("a root");
        loop {
            if let Some(value) = self.cpus.access(root, gfn, 0, more) {
                return Ok(value);
            }
            self.manager.vm_fault(self.vm, VmAccess { view: AsId::NORMAL, gfn, access })?;
        }
    }

    fn host(&self, space: SpaceId, page: u64, word: usize, more: u64) -> Result<u64, FaultError> {
        self.cpus.touch(&self.manager, space, page, word, more)
    }

    fn audit(&self) {
        let audit = Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES).run_classes(&self.manager);
        assert_eq!(audit.mismatches, 0, "{:?}", audit.first);
    }

    fn end(self) {
        self.audit();
        for vm in self.manager.vms().collect::<Vec<_>>() {
            self.manager.destroy_vm(vm);
        }
        for space in self.manager.spaces().collect::<Vec<_>>() {
            self.manager.destroy_space(space);
        }
        assert!(self.manager.trim(), "{:?}", self.manager.frames().stats());
    }
}

fn policies() -> [Policy; 3] {
    [huge(), huge_by_pages(), Policy::up_to(Order::new(4))]
}

/// The guest stores on one CPU to whatever pages it may, while `change` goes on at the other. `kept`: no store may be lost, nor any of the host's beside.
fn stores_against(kept: bool, change: impl Fn(&World<'_>, u64) + Sync) {
    for policy in policies() {
        let cpus = cpus();
        let world = World::new(&cpus, policy);
        let done = AtomicBool::new(false);
        let mut stored = vec![0u64; PAGES as usize];
        both(
            || {
                let mut random = 1u64;
                for _ in 0..STORES {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let gfn = (random >> 33) % PAGES;
                    match world.guest(gfn, 1) {
                        Ok(_) => stored[gfn as usize] += 1,
                        Err(VmFaultError::Host(FaultError::Forbidden | FaultError::NotMapped)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                done.store(true, Release);
            },
            || {
                for round in 0.. {
                    change(&world, round);
                    if done.load(Acquire) && round >= 8 {
                        break;
                    }
                }
            },
        );
        for gfn in (0..PAGES).filter(|_| kept) {
            assert_eq!(world.host(world.space, BASE + gfn, 0, 0), Ok(stored[gfn as usize]), "{gfn:#x}");
        }
        world.end();
    }
}

#[test]
fn stores_of_a_guest_against_forks_of_its_vmm() {
    stores_against(true, |w, round| {
        let child = w.manager.fork(w.space).unwrap();
        // What the child sees no longer changes.
        let pages = || (0..PAGES).step_by(97).map(|page| w.host(child, BASE + page, 0, 0).unwrap()).collect::<Vec<_>>();
        let before = pages();
        w.host(w.space, BASE + round % PAGES, 1, 1).unwrap();
        assert_eq!(pages(), before);
        w.manager.destroy_space(child);
    });
}

#[test]
fn stores_of_a_guest_against_unmap_and_map() {
    stores_against(false, |w, round| {
        let first = BASE + round * 112 % PAGES;
        w.manager.unmap(w.space, at(first), 100.min(BASE + PAGES - first)).unwrap();
        w.manager.map_fixed(w.space, at(first), 100.min(BASE + PAGES - first), RW, Map::Anon).unwrap();
        w.manager.advise(w.space, at(BASE + round * 61 % 512), 64, Advice::DontNeed).unwrap();
    });
}

#[test]
fn stores_of_a_guest_against_migration_and_collapse() {
    stores_against(true, |w, round| {
        let page = BASE + round * 37 % PAGES;
        if let Some((_, leaf)) = w.manager.page_table(w.space).lookup(&w.manager, page) {
            // A snapshot: the folio may go meanwhile only by our own hand.
            let _ = w.manager.folio(leaf.pfn).map(|folio| w.manager.migrate(folio));
        }
        let block = at(page & !511);
        if !w.manager.collapse(w.space, block) && round % 8 == 0 {
            let _ = w.manager.collapse_by_copy(w.space, block, 511);
        }
        w.manager.protect(w.space, at(page & !15), 16, R).unwrap();
        w.manager.protect(w.space, at(page & !15), 16, RW).unwrap();
    });
}

#[test]
fn stores_of_a_guest_against_harvest_and_slots_that_move() {
    stores_against(true, |w, round| {
        w.manager.harvest_accessed(w.vm, AsId::NORMAL, 0..PAGES, |_| {});
        if round % 4 == 0 {
            w.manager.move_slot(w.vm, AsId::NORMAL, w.slot, 0).unwrap();
        }
    });
}

/// What is copied when the log says so is what the guest has when it stands still: the last pass of a live migration.
#[test]
fn a_log_read_beside_stores_misses_none() {
    for policy in policies() {
        let cpus = cpus();
        let world = World::new(&cpus, policy);
        for gfn in 0..PAGES {
            world.guest(gfn, 1).unwrap();
        }
        world.manager.start_log(world.vm, AsId::NORMAL, world.slot).unwrap();
        let mut copy = vec![0u64; PAGES as usize];
        let read = |gfn: u64| world.host(world.space, BASE + gfn, 0, 0).unwrap();
        for gfn in 0..PAGES {
            copy[gfn as usize] = read(gfn);
        }
        let done = AtomicBool::new(false);
        both(
            || {
                let mut random = 7u64;
                for _ in 0..STORES {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    world.guest((random >> 33) % PAGES, 1).unwrap();
                }
                done.store(true, Release);
            },
            || loop {
                let last = done.load(Acquire);
                let mut stored = Vec::new();
                world.manager.take_log(world.vm, AsId::NORMAL, world.slot, |gfn| stored.push(gfn));
                for gfn in stored {
                    copy[gfn as usize] = read(gfn);
                }
                if last {
                    break;
                }
            },
        );
        for gfn in 0..PAGES {
            assert_eq!(copy[gfn as usize], read(gfn), "{gfn:#x}");
        }
        world.manager.stop_log(world.vm, AsId::NORMAL, world.slot);
        world.end();
    }
}

/// R5: while a flush is under way the counts still have what it is about to make unreachable, at both levels.
#[test]
fn counts_stand_until_the_flush() {
    let cpus = cpus();
    let world = World::new(&cpus, huge());
    world.guest(3, 1).unwrap();
    let (_, leaf) = world.manager.page_table(world.space).lookup(&world.manager, BASE + 3).unwrap();
    let folio = world.manager.folio(leaf.pfn).unwrap();
    let leaves = |class| world.manager.ledger(folio, world.space.raw()).class(class).leaves;
    assert_eq!([leaves(Class::Process), leaves(Class::Vm)], [Answer::Exact(1); 2]);
    let pin = world.manager.pin(world.space, at(BASE + 3), Access::Read).unwrap();
    let unmap = || world.manager.unmap(world.space, at(BASE), 512).unwrap();
    let look = || (world.manager.stage2_lookup(world.vm, AsId::NORMAL, 3), [leaves(Class::Process), leaves(Class::Vm)]);
    let (gone, counts) = cpus.look_within_flush(unmap, look).expect("the leaf went without a flush");
    assert_eq!(gone, None, "the leaf has gone first");
    assert_eq!(counts, [Answer::Exact(1); 2]);
    assert_eq!([leaves(Class::Process), leaves(Class::Vm)], [Answer::Exact(0); 2]);
    world.manager.unpin(pin, false);
    world.end();
}
