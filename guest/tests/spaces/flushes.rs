//! Translations that another CPU has cached: after every operation they say what the tables say.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::world::{BASE, R, RW, at, huge, huge_by_pages};
use quire::addr::{Order, Pfn};
use quire::format::Attrs;
use quire::mapcount::Total;
use quire::memory::{FlushScope, Frame, Memory, Tlb};
use quire::model::EmulatedMemory;
use quire::space::{Access, Advice, Manager, Map, ObjectKind, Policy, Prot, SpaceId};

const FRAMES: u64 = 8 * 1024;
const PAGES: u64 = 1024;

/// A CPU that caches everything it can, and forgets nothing but what it is told to.
struct Cpu {
    memory: EmulatedMemory,
    tlb: RefCell<BTreeMap<(Pfn, u64), (Pfn, bool)>>,
}

impl Memory for Cpu {
    fn frame(&self, pfn: Pfn) -> &Frame {
        self.memory.frame(pfn)
    }
}

impl Tlb for Cpu {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        self.tlb.borrow_mut().retain(|&(of, page), _| {
            of != root
                || match scope {
                    FlushScope::Space => false,
                    FlushScope::Pages { first, pages } => !(first..first + pages).contains(&page),
                }
        });
    }
}

struct World<'m> {
    cpu: &'m Cpu,
    manager: Manager<&'m Cpu, Total>,
}

impl<'m> World<'m> {
    fn new(cpu: &'m Cpu, policy: Policy) -> (Self, SpaceId) {
        let manager: Manager<&Cpu, Total> = Manager::new(cpu, &[Pfn::new(0)..Pfn::new(FRAMES)], true, policy).unwrap();
        let space = manager.create_space().unwrap();
        manager.map(space, at(BASE), PAGES, RW, Map::Anon).unwrap();
        let world = Self { cpu, manager };
        world.touch(space, BASE..BASE + PAGES);
        world.cache();
        (world, space)
    }

    fn now(&self, space: SpaceId, page: u64) -> Option<(Pfn, bool)> {
        let (place, leaf) = self.manager.page_table(space).lookup(&self.manager, page)?;
        leaf.attrs.has(Attrs::USER).then(|| (leaf.pfn.add(page - place.page), leaf.attrs.has(Attrs::WRITE)))
    }

    /// Faults until stores are possible, without an MMU of its own.
    fn touch(&self, space: SpaceId, pages: std::ops::Range<u64>) {
        for page in pages {
            while self.now(space, page).is_none_or(|(_, write)| !write) {
                self.manager.fault(space, at(page), Access::Write).unwrap();
            }
        }
    }

    fn cache(&self) {
        for space in self.manager.spaces() {
            for vma in self.manager.vmas(space) {
                for page in vma.start()..vma.end() {
                    if let Some(now) = self.now(space, page) {
                        self.cpu.tlb.borrow_mut().insert((self.manager.root(space), page), now);
                    }
                }
            }
        }
    }

    /// Runs `operation` with everything cached before; nothing stale may be left behind it.
    fn step(&self, what: &str, operation: impl FnOnce()) {
        self.cache();
        operation();
        for (&(root, page), &(pfn, write)) in self.cpu.tlb.borrow().iter() {
            let space = self.manager.spaces().find(|&space| self.manager.root(space) == root);
            let now = space.and_then(|space| self.now(space, page));
            // A right that came later is found by a fault; one that went must be gone.
            let good = now.is_some_and(|(now, may)| now == pfn && (may || !write));
            assert!(good, "{what}: page {page:#x} is cached as {pfn:?} {write}, and is {now:?}");
        }
    }
}

#[test]
fn nothing_stale_is_left() {
    for policy in [huge(), huge_by_pages(), Policy::up_to(Order::new(4)), Policy::up_to(Order::BASE)] {
        let cpu = Cpu { memory: EmulatedMemory::new(FRAMES), tlb: RefCell::default() };
        let (world, space) = World::new(&cpu, policy);
        let manager = &world.manager;
        let child = RefCell::new(None);
        world.step("fork", || *child.borrow_mut() = Some(manager.fork(space).unwrap()));
        let child = child.into_inner().unwrap();
        world.step("copy of one page", || world.touch(child, BASE + 7..BASE + 8));
        world.step("copies", || world.touch(space, BASE + 5..BASE + 30));
        world.step("reading again", || world.touch(child, BASE + 5..BASE + 8));
        world.step("no stores to a few", || manager.protect(space, at(BASE + 20), 5, R).unwrap());
        world.step("no access to a few", || manager.protect(space, at(BASE + 22), 8, Prot::NONE).unwrap());
        world.step("stores to a few", || manager.protect(space, at(BASE + 20), 10, RW).unwrap());
        world.step("drop a few", || manager.advise(space, at(BASE + 600), 7, Advice::DontNeed).unwrap());
        world.step("drop in the child", || manager.advise(child, at(BASE + 601), 5, Advice::DontNeed).unwrap());
        world.step("unmap a few", || manager.unmap(space, at(BASE + 900), 20).unwrap());
        world.step("unmap in the child", || manager.unmap(child, at(BASE + 900), 15).unwrap());
        world.step("split", || assert!(manager.split_deferred(100).probed < 100));
        world.step("move a few", || manager.remap(space, at(BASE + 50), 3, at(2 * BASE + 1), 3).unwrap());
        world.step("move many", || manager.remap(space, at(BASE + 512), 88, at(2 * BASE + 512), 88).unwrap());
        let (pfn, _) = world.now(space, BASE + 100).unwrap();
        world.step("unmap by folio", || manager.try_to_unmap(manager.folio(pfn).unwrap()).unwrap());
        world.step("over it", || manager.map_fixed(space, at(BASE + 30), 9, RW, Map::Anon).unwrap());
        world.step("exit", || manager.destroy_space(child));
        world.step("all", || manager.destroy_space(space));
        assert!(manager.trim());
    }
}

#[test]
fn nothing_stale_is_left_of_a_split_alone_or_a_collapse() {
    for policy in [huge(), huge_by_pages()] {
        let cpu = Cpu { memory: EmulatedMemory::new(FRAMES), tlb: RefCell::default() };
        let (world, space) = World::new(&cpu, policy);
        let manager = &world.manager;
        world.step("drop a few", || manager.advise(space, at(BASE + 600), 7, Advice::DontNeed).unwrap());
        world.step("split", || assert_eq!(manager.split_deferred(100).split, 1));
        world.step("collapse", || {
            manager.collapse(space, at(BASE));
        });
        let file = manager.create_object(ObjectKind::File, 0, 512, Order::HUGE).unwrap();
        manager.map(space, at(4 * BASE), 512, RW, Map::Private(file, 0)).unwrap();
        manager.fault(space, at(4 * BASE), Access::Read).unwrap();
        world.step("private copy of a file page", || world.touch(space, 4 * BASE + 5..4 * BASE + 6));
        manager.destroy_space(space);
        manager.destroy_object(file);
        assert!(manager.trim());
    }
}
