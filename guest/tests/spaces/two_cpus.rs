//! Two CPUs at once at the spaces of processes.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;

use crate::world::cpus::{Cpus, both};
use crate::world::{BASE, R, RW, at, huge, huge_by_pages};
use quire::addr::{Order, Pfn};
use quire::audit::Recount;
use quire::folio::FolioFlags;
use quire::mapcount::{Accounting, MmOwner, Observe, Oracle, PerPage, Total, Tuples, Vmas};
use quire::memory::Memory;
use quire::space::{Access, Advice, FaultError, Manager, Map, MapError, ObjectKind, Policy, Prot, SpaceId};

const FRAMES: u64 = 8 * 1024;
/// Frames that the manager does not own.
const DEVICE: Pfn = Cpus::device(FRAMES);
const DEVICE_FRAMES: u64 = 1024;

fn cpus() -> Cpus {
    Cpus::new(FRAMES, DEVICE_FRAMES)
}

type Checked = Observe<Total, Observe<PerPage, Observe<Tuples, Observe<MmOwner, Observe<Vmas, Oracle>>>>>;

struct World<'m, A: Accounting> {
    manager: Manager<&'m Cpus, A>,
    cpus: &'m Cpus,
}

impl<'m, A: Accounting> World<'m, A> {
    fn new(cpus: &'m Cpus, policy: Policy) -> Self {
        let manager = Manager::new(cpus, &[Pfn::new(0)..Pfn::new(FRAMES)], true, policy).unwrap();
        Self { manager, cpus }
    }

    fn anon(&self, pages: u64) -> SpaceId {
        let space = self.manager.create_space().unwrap();
        self.manager.map(space, at(BASE), pages, RW, Map::Anon).unwrap();
        space
    }

    fn access(&self, space: SpaceId, page: u64, word: usize, more: u64) -> Result<u64, FaultError> {
        self.cpus.touch(&self.manager, space, page, word, more)
    }

    fn audit(&self) {
        let audit = Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES).run(&self.manager);
        assert_eq!(audit.mismatches, 0, "{:?}", audit.first);
    }

    fn end(self) {
        self.audit();
        for space in self.manager.spaces().collect::<Vec<_>>() {
            self.manager.destroy_space(space);
        }
        assert_eq!(self.manager.deferred_len(), 0);
        assert!(self.manager.trim(), "{:?}", self.manager.frames().stats());
        assert_eq!(self.manager.statistics().anon_mapped.get(), 0);
    }
}

/// Turns that a CPU takes at least, also when the other one is done: on a host that lets them run one behind the other there is no race, and still what is done.
const TURNS: u64 = 20;

fn policies() -> [Policy; 4] {
    [Policy::up_to(Order::BASE), Policy::up_to(Order::new(4)), huge(), huge_by_pages()]
}

#[test]
fn faults_on_the_same_and_on_neighbouring_pages() {
    for round in 0..40 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policies()[round % 4]);
        let space = world.anon(1200);
        let stores = |word: usize| {
            let world = &world;
            move || {
                for i in 0..1200 {
                    // The same pages, from both ends.
                    let page = if word == 1 || round % 8 < 4 { i } else { 1199 - i };
                    world.access(space, BASE + page, word, page + 1).unwrap();
                }
            }
        };
        both(stores(1), stores(2));
        for page in 0..1200 {
            for word in [1, 2] {
                assert_eq!(world.access(space, BASE + page, word, 0), Ok(page + 1), "page {page} of CPU {word}");
            }
        }
        assert_eq!(world.manager.rss(space), 1200);
        world.end();
    }
}

#[test]
fn faults_on_the_same_folio_of_a_file() {
    for round in 0..30 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, huge());
        let order = Order::new([0, 4, 9][round % 3]);
        let file = world.manager.create_object(ObjectKind::Shared, 0, 1024, order).unwrap();
        let spaces = [world.anon(1), world.anon(1)];
        // Congruent, and not.
        world.manager.map(spaces[0], at(2 * BASE), 1024, RW, Map::Shared(file, 0)).unwrap();
        world.manager.map(spaces[1], at(2 * BASE + 7), 1024, RW, Map::Shared(file, 0)).unwrap();
        let stores = |cpu: usize| {
            let world = &world;
            move || {
                for i in 0..1024 {
                    world.access(spaces[cpu], 2 * BASE + 7 * cpu as u64 + i, 1, 1).unwrap();
                }
            }
        };
        both(stores(0), stores(1));
        for i in 0..1024 {
            assert_eq!(world.access(spaces[0], 2 * BASE + i, 1, 0), Ok(2), "page {i}");
        }
        world.audit();
        for space in spaces {
            world.manager.destroy_space(space);
        }
        world.manager.destroy_object(file);
        world.end();
    }
}

/// While one CPU stores to pages `BASE..BASE + 1024` of `space` in turn, the other does `change` over and over. Every store that was
/// made must be there, as long as nothing dropped pages: `kept` says so.
fn stores_against<A: Accounting>(world: &World<'_, A>, space: SpaceId, kept: bool, mut change: impl FnMut(u64) + Send) {
    let done = AtomicU64::new(0);
    let counts: Vec<AtomicU64> = (0..1024).map(|_| AtomicU64::new(0)).collect();
    both(
        || {
            for i in 0..6000u64 {
                let page = i * 37 % 1024;
                match world.access(space, BASE + page, 3, 1) {
                    Ok(value) => {
                        let count = counts[page as usize].fetch_add(1, Relaxed) + 1;
                        assert!(!kept || value == count, "page {page}: {value}, after {count} stores");
                    }
                    Err(FaultError::NotMapped | FaultError::Forbidden) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            done.store(1, Relaxed);
        },
        || {
            let mut i = 0;
            while done.load(Relaxed) == 0 || i < TURNS {
                change(i);
                i += 1;
            }
        },
    );
    if kept {
        world.manager.protect(space, at(BASE), 1024, RW).unwrap();
        for (page, count) in (BASE..).zip(&counts) {
            assert_eq!(world.access(space, page, 3, 0), Ok(count.load(Relaxed)), "page {page}");
        }
    }
    world.audit();
}

#[test]
fn faults_against_munmap_and_madvise() {
    for policy in policies() {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policy);
        let space = world.anon(1024);
        stores_against(&world, space, false, |i| {
            let (first, pages) = (i * 101 % 900, i * 53 % 120 + 1);
            match i % 3 {
                0 => world.manager.advise(space, at(BASE + first), pages, Advice::DontNeed).unwrap(),
                1 => world.manager.unmap(space, at(BASE + first), pages).unwrap(),
                _ => world.manager.map_fixed(space, at(BASE + first), pages, RW, Map::Anon).unwrap(),
            }
        });
        world.end();
    }
}

#[test]
fn faults_against_fork_and_exit() {
    for policy in policies() {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policy);
        let space = world.anon(1024);
        stores_against(&world, space, true, |_| {
            let child = world.manager.fork(space).unwrap();
            // What the child sees does not change.
            let before: Vec<_> = (0..16).map(|i| world.access(child, BASE + i * 64, 3, 0)).collect();
            let after: Vec<_> = (0..16).map(|i| world.access(child, BASE + i * 64, 3, 0)).collect();
            assert_eq!(before, after);
            world.manager.destroy_space(child);
        });
        world.end();
    }
}

/// Both store to the same private pages of a device: one copy, with the stores of both.
#[test]
fn copies_of_device_pages_at_once() {
    for round in 0..30 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, huge());
        let space = world.manager.create_space().unwrap();
        let private = Map::PrivateDevice(DEVICE);
        world.manager.map(space, at(BASE), DEVICE_FRAMES, RW, private).unwrap();
        let stores = |word: usize| {
            let world = &world;
            move || {
                for i in 0..DEVICE_FRAMES {
                    let page = if word == 1 || round % 2 == 0 { i } else { DEVICE_FRAMES - 1 - i };
                    world.access(space, BASE + page, word, page + 1).unwrap();
                }
            }
        };
        both(stores(1), stores(2));
        for page in 0..DEVICE_FRAMES {
            for word in [1, 2] {
                assert_eq!(world.access(space, BASE + page, word, 0), Ok(page + 1), "page {page} of CPU {word}");
                assert_eq!(cpus.frame(DEVICE.add(page)).0[word].load(Relaxed), 0, "the device's own");
            }
        }
        assert_eq!(world.manager.rss(space), DEVICE_FRAMES);
        world.end();
    }
}

#[test]
fn stores_to_a_private_device_against_fork_remap_and_protect() {
    let cpus = cpus();
    let world: World<'_, Checked> = World::new(&cpus, huge());
    let space = world.manager.create_space().unwrap();
    let private = Map::PrivateDevice(DEVICE);
    world.manager.map(space, at(BASE), DEVICE_FRAMES, RW, private).unwrap();
    stores_against(&world, space, true, |i| match i % 3 {
        0 => {
            let child = world.manager.fork(space).unwrap();
            match world.access(child, BASE + i % 1024, 3, 1) {
                Ok(_) | Err(FaultError::Forbidden) => {}
                Err(error) => panic!("{error}"),
            }
            world.manager.destroy_space(child);
        }
        1 => {
            world.manager.protect(space, at(BASE), DEVICE_FRAMES, RW).unwrap();
            let elsewhere = at(3 * BASE + i % 700);
            world.manager.remap(space, at(BASE), DEVICE_FRAMES, elsewhere, DEVICE_FRAMES).unwrap();
            world.manager.remap(space, elsewhere, DEVICE_FRAMES, at(BASE), DEVICE_FRAMES).unwrap();
        }
        _ => world.manager.protect(space, at(BASE + i % 900), 60, if i % 2 == 0 { R } else { RW }).unwrap(),
    });
    assert!((0..DEVICE_FRAMES).all(|page| cpus.frame(DEVICE.add(page)).0[3].load(Relaxed) == 0));
    world.end();
}

/// Driver memory is inserted and dropped while it is stored to: every store reaches it.
#[test]
fn insertions_against_faults_and_forks() {
    for order in [0, 4, 9] {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, huge());
        let order = Order::new(order);
        let driver = world.manager.create_driver(1024).unwrap();
        let folios: Vec<_> = (0..1024 / order.pages())
            .map(|i| world.manager.driver_folio(driver, i * order.pages(), order).unwrap())
            .collect();
        let space = world.manager.create_space().unwrap();
        world.manager.map(space, at(BASE), 1024, RW, Map::Mixed(driver, 0)).unwrap();
        stores_against(&world, space, true, |i| {
            let page = i * 101 % 1024;
            let folio = folios[(page / order.pages()) as usize];
            match i % 3 {
                0 => world.manager.advise(space, at(BASE + page), 1024 - page, Advice::DontNeed).unwrap(),
                1 => match world.manager.insert_page(space, at(BASE + page), folio) {
                    Ok(_) | Err(MapError::Occupied) => {}
                    Err(error) => panic!("{error}"),
                },
                _ => {
                    let child = world.manager.fork(space).unwrap();
                    world.manager.destroy_space(child);
                }
            }
        });
        world.manager.destroy_space(space);
        world.manager.destroy_object(driver);
        world.end();
    }
}

#[test]
fn faults_against_protect() {
    for policy in policies() {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policy);
        let space = world.anon(1024);
        stores_against(&world, space, true, |i| {
            let prot = [R, RW, Prot::NONE, RW][i as usize % 4];
            world.manager.protect(space, at(BASE + i / 4 * 91 % 800), 200, prot).unwrap();
            if i % 16 == 15 {
                world.manager.protect(space, at(BASE), 1024, RW).unwrap();
                world.manager.collapse(space, at(BASE));
            }
        });
        world.end();
    }
}

#[test]
fn faults_against_remap_and_back() {
    let cpus = cpus();
    let world: World<'_, Checked> = World::new(&cpus, huge());
    let space = world.anon(1024);
    stores_against(&world, space, true, |i| {
        let to = 2 * BASE + i % 3 * 13;
        world.manager.remap(space, at(BASE + 100), 600, at(to), 600).unwrap();
        world.manager.remap(space, at(to), 600, at(BASE + 100), 600).unwrap();
    });
    world.end();
}

#[test]
fn faults_against_the_split_of_folios() {
    for policy in [huge(), huge_by_pages(), Policy::only(Order::new(4))] {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policy);
        let space = world.anon(1024 + 4096);
        let mut split = 0;
        for page in 0..1024 {
            world.access(space, BASE + page, 1, 1).unwrap();
        }
        stores_against(&world, space, true, |i| {
            // Folios behind those that are stored to, and once some of those.
            let folio = BASE + 1024 + i % 8 * 512;
            world.access(space, folio, 1, 1).unwrap();
            world.access(space, folio + 17, 1, 1).unwrap();
            world.manager.advise(space, at(folio + 3), 5, Advice::DontNeed).unwrap();
            let report = world.manager.split_deferred(4);
            split += report.split;
            world.manager.advise(space, at(folio), 512, Advice::DontNeed).unwrap();
        });
        assert!(split > 0);
        world.end();
    }
}

#[test]
fn stores_to_a_folio_that_is_split_are_kept() {
    for round in 0..60 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, if round % 2 == 0 { huge() } else { huge_by_pages() });
        let space = world.anon(512);
        for page in 0..512 {
            world.access(space, BASE + page, 3, 1).unwrap();
        }
        let child = (round % 3 == 0).then(|| world.manager.fork(space).unwrap());
        for space in child.into_iter().chain([space]) {
            world.manager.unmap(space, at(BASE + 200), 300).unwrap();
        }
        both(
            || {
                for i in 0..2000 {
                    world.access(space, BASE + i % 200, 3, 1).unwrap();
                }
            },
            || while world.manager.deferred_len() > 0 && world.manager.split_deferred(1).split == 0 {},
        );
        for page in 0..200 {
            assert_eq!(world.access(space, BASE + page, 3, 0), Ok(11), "page {page}");
        }
        world.end();
    }
}

/// Migrates the folio at `page`, if nothing stands against it.
fn migrate<A: Accounting>(world: &World<'_, A>, space: SpaceId, page: u64) -> bool {
    let pin = world.manager.pin(space, at(page), Access::Read).unwrap();
    let moved = world.manager.migrate(pin.folio()).is_ok();
    world.manager.unpin(pin, false);
    moved
}

#[test]
fn stores_to_pages_that_move_are_kept() {
    let (mut migrated, mut collapsed) = (0, 0);
    for round in 0..12 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policies()[round % 4]);
        let space = world.anon(512);
        for page in 0..512 {
            world.access(space, BASE + page, 3, 1).unwrap();
        }
        // Another space has it too, of which every third store takes a page away.
        let child = (round % 3 == 0).then(|| world.manager.fork(space).unwrap());
        let done = AtomicU64::new(0);
        both(
            || {
                for i in 0..10_000 {
                    world.access(space, BASE + i * 7 % 500, 3, 1).unwrap();
                }
                done.store(1, Relaxed);
            },
            || {
                let mut i = 0;
                while done.load(Relaxed) == 0 || i < TURNS {
                    i += 1;
                    migrated += u64::from(migrate(&world, child.unwrap_or(space), BASE + i * 3 % 512));
                    collapsed += u64::from(world.manager.collapse_by_copy(space, at(BASE), 0).is_ok());
                }
            },
        );
        for page in 0..500 {
            assert_eq!(world.access(space, BASE + page, 3, 0), Ok(21), "page {page}");
            if let Some(child) = child {
                assert_eq!(world.access(child, BASE + page, 3, 0), Ok(1), "page {page} of the child");
            }
        }
        world.end();
    }
    assert!(migrated > 100 && collapsed > 2, "{migrated} migrated, {collapsed} collapsed");
}

#[test]
fn pages_of_a_file_that_move_and_go_while_mappings_come_and_go() {
    let (mut migrated, mut reclaimed) = (0, 0);
    for round in 0..12 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, huge());
        let file = world.manager.create_object(ObjectKind::File, 5, 1024, Order::new([0, 4, 9][round % 3])).unwrap();
        let (space, other) = (world.anon(1), world.anon(1));
        world.manager.map(space, at(2 * BASE), 1024, RW, Map::Shared(file, 0)).unwrap();
        let done = AtomicU64::new(0);
        both(
            || {
                for i in 0..300 {
                    // A space that is new to the file while it is moved: its stores, and nothing of them but those, must be found.
                    let new = world.manager.create_space().unwrap();
                    world.manager.map(new, at(BASE + i % 9), 1000, RW, Map::Shared(file, 0)).unwrap();
                    for page in [3, 16 * (i % 30), 700] {
                        world.access(new, BASE + i % 9 + page, 2, 1).unwrap();
                        world.access(space, 2 * BASE + page, 3, 1).unwrap();
                        // Clean pages, that go and come back.
                        let clean = 800 + (i + page) % 64;
                        let word = world.access(new, BASE + i % 9 + clean, 0, 0);
                        assert_eq!(word, Ok(quire::space::file_word(5, clean)));
                    }
                    world.manager.destroy_space(new);
                }
                done.store(1, Relaxed);
            },
            || {
                world.manager.map(other, at(3 * BASE), 1024, RW, Map::Private(file, 0)).unwrap();
                let mut i = 0;
                while done.load(Relaxed) == 0 || i < TURNS {
                    i += 1;
                    migrated += u64::from(migrate(&world, other, 3 * BASE + i * 3 % 1024));
                    reclaimed += world.manager.reclaim(file, 64, i % 2 == 0).reclaimed;
                }
            },
        );
        for word in [2, 3] {
            let stores: u64 = (0..1000).map(|page| world.access(space, 2 * BASE + page, word, 0).unwrap()).sum();
            assert_eq!(stores, 900);
        }
        world.audit();
        for space in [space, other] {
            world.manager.destroy_space(space);
        }
        world.manager.destroy_object(file);
        world.end();
    }
    assert!(migrated > 100 && reclaimed > 100, "{migrated} migrated, {reclaimed} reclaimed");
}

#[test]
fn the_first_store_to_a_page_that_is_about_to_go_is_kept() {
    const PAGES: u64 = 16;
    let cpus = cpus();
    let world: World<'_, Total> = World::new(&cpus, huge());
    let space = world.anon(1);
    for round in 0..400 {
        let file = world.manager.create_object(ObjectKind::File, 5, PAGES, Order::new([0, 2][round % 2])).unwrap();
        world.manager.map_fixed(space, at(2 * BASE), PAGES, RW, Map::Shared(file, 0)).unwrap();
        let read = |page| world.access(space, 2 * BASE + page, 3, 0).unwrap();
        for page in 0..PAGES {
            read(page);
        }
        let (gone, done) = (AtomicU64::new(0), AtomicU64::new(0));
        both(
            || {
                // Not before pages go.
                while gone.load(Relaxed) == 0 {
                    thread::yield_now();
                }
                for page in (0..PAGES).map(|i| i * 5 % PAGES) {
                    for _ in 0..3 {
                        for page in 0..PAGES {
                            read(page);
                        }
                    }
                    world.access(space, 2 * BASE + page, 3, 1).unwrap();
                }
                done.store(1, Relaxed);
            },
            || {
                while done.load(Relaxed) == 0 {
                    gone.fetch_add(world.manager.reclaim(file, PAGES, false).reclaimed, Relaxed);
                }
            },
        );
        for page in 0..PAGES {
            assert_eq!(read(page), 1, "page {page}");
        }
        world.manager.unmap(space, at(2 * BASE), PAGES).unwrap();
        world.manager.destroy_object(file);
    }
    world.manager.destroy_space(space);
    world.end();
}

#[test]
fn rmap_against_map_fork_unmap_and_copies() {
    for policy in policies() {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policy);
        let file = world.manager.create_object(ObjectKind::Shared, 0, 1024, Order::new(9)).unwrap();
        let space = world.manager.create_space().unwrap();
        world.manager.map(space, at(BASE), 1024, RW, Map::Shared(file, 0)).unwrap();
        let folios = [0, 512].map(|page| {
            world.access(space, BASE + page, 1, 1).unwrap();
            let (_, leaf) = world.manager.page_table(space).lookup(&world.manager, BASE + page).unwrap();
            world.manager.folio(leaf.pfn).unwrap()
        });
        let done = AtomicU64::new(0);
        let mut unmapped = 0;
        both(
            || {
                for i in 0..400 {
                    let to = 2 * BASE + i % 5 * 131;
                    world.manager.map_fixed(space, at(to), 700, RW, Map::Private(file, i % 300)).unwrap();
                    for page in 0..40 {
                        world.access(space, BASE + (page * 37 + i) % 1024, 2, 1).unwrap();
                        world.access(space, to + page * 17, 3, page % 2).unwrap();
                    }
                    let child = world.manager.fork(space).unwrap();
                    world.access(child, to + 5, 3, 1).unwrap();
                    world.manager.unmap(space, at(to + i % 90), 600).unwrap();
                    world.manager.destroy_space(child);
                }
                done.store(1, Relaxed);
            },
            || {
                let mut i = 0;
                while done.load(Relaxed) == 0 || i < TURNS {
                    i += 1;
                    for folio in folios {
                        let _ = world.manager.leaves_by_walk(folio);
                        let _ = world.manager.is_shared_by_walk(folio);
                        unmapped += u64::from(world.manager.try_to_unmap(folio).is_ok());
                    }
                }
            },
        );
        assert!(unmapped > 0);
        world.audit();
        let stores: u64 = (0..1024).map(|page| world.access(space, BASE + page, 2, 0).unwrap()).sum();
        assert_eq!(stores, 400 * 40);
        world.manager.destroy_space(space);
        world.manager.destroy_object(file);
        world.end();
    }
}

#[test]
fn two_spaces_that_share_folios_exit_at_once() {
    for round in 0..40 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policies()[round % 4]);
        let parent = world.anon(1024);
        for page in 0..1024 {
            world.access(parent, BASE + page, 0, 1).unwrap();
        }
        let child = world.manager.fork(parent).unwrap();
        let third = world.manager.fork(child).unwrap();
        if round % 3 == 0 {
            for page in (0..1024).step_by(7) {
                world.access(child, BASE + page, 0, 1).unwrap();
            }
        }
        both(
            || world.manager.destroy_space(parent),
            || {
                world.manager.destroy_space(child);
                world.manager.destroy_space(third);
            },
        );
        world.end();
    }
}

#[test]
fn two_owners_copy_the_same_pages_at_once() {
    for round in 0..40 {
        let cpus = cpus();
        let world: World<'_, Checked> = World::new(&cpus, policies()[round % 4]);
        let parent = world.anon(512);
        for page in 0..512 {
            world.access(parent, BASE + page, 0, 5).unwrap();
        }
        let child = world.manager.fork(parent).unwrap();
        let stores = |space| {
            let world = &world;
            move || (0..512).for_each(|page| assert_eq!(world.access(space, BASE + page, 0, 1), Ok(6)))
        };
        both(stores(parent), stores(child));
        for space in [parent, child] {
            (0..512).for_each(|page| assert_eq!(world.access(space, BASE + page, 0, 0), Ok(6)));
        }
        world.end();
    }
}

#[test]
fn frames_from_two_cpus() {
    let cpus = cpus();
    let frames = quire::folio::Frames::new(&cpus, &[Pfn::new(0)..Pfn::new(FRAMES)], true, 2, 0).unwrap();
    // Who holds a frame marks it with its number, plus one.
    let work = |cpu: u64| {
        let (frames, cpus) = (&frames, &cpus);
        move || {
            let mut held = Vec::new();
            for i in 0..20_000u64 {
                let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(cpu as u32 * 7 + 11);
                let order = Order::new([0, 0, 1, 3, 5, 8, 9, 10][random as usize % 8]);
                if random >> 32 & 1 == 0 || held.is_empty() {
                    if let Some(run) = frames.alloc(order, false) {
                        for i in [0, order.pages() - 1] {
                            cpus.frame(run.pfn.add(i)).0[7].store(cpu + 1, Relaxed);
                        }
                        held.push((run.pfn, order));
                    }
                } else {
                    let (pfn, order): (Pfn, Order) = held.swap_remove((random >> 40) as usize % held.len());
                    for i in [0, order.pages() - 1] {
                        assert_eq!(cpus.frame(pfn.add(i)).0[7].load(Relaxed), cpu + 1, "{pfn:?} was handed out twice");
                    }
                    frames.free(pfn, order, false);
                }
            }
            held.into_iter().for_each(|(pfn, order)| frames.free(pfn, order, false));
        }
    };
    both(work(0), work(1));
    assert!(frames.all_free());
}

/// One CPU looks up folios that stay, by all of their frames, while the other takes what is left frame by frame, so that their blocks are given slots, and gives it
/// back. The folios come and go from one turn to the next, so that blocks are whole and have units again.
#[test]
fn folios_are_found_while_their_blocks_are_given_slots() {
    for order in [3, 4, 6, 7] {
        let order = Order::new(order);
        let cpus = cpus();
        let world: World<'_, Total> = World::new(&cpus, Policy::only(order));
        world.manager.frames().set_reserve(0);
        for turn in 0..40 {
            let space = world.anon(FRAMES);
            let mut folios = Vec::new();
            for page in (0..FRAMES).step_by(order.pages() as usize) {
                if world.access(space, BASE + page, 0, 1).is_err() {
                    break;
                }
                let (_, leaf) = world.manager.page_table(space).lookup(&world.manager, BASE + page).unwrap();
                if world.manager.folio(leaf.pfn).unwrap().order() != order {
                    break;
                }
                folios.push((BASE + page, leaf.pfn));
            }
            // One of each four goes.
            let (gone, kept): (Vec<_>, Vec<_>) = folios.into_iter().enumerate().partition(|(i, _)| i % 4 == turn % 4);
            for (_, (page, _)) in gone {
                world.manager.advise(space, at(page), order.pages(), Advice::DontNeed).unwrap();
            }
            let (slots, done) = (world.manager.frames().stats().slots, AtomicU64::new(0));
            let take_all = || {
                let frames = world.manager.frames();
                let singles: Vec<_> = std::iter::from_fn(|| frames.alloc(Order::BASE, false)).collect();
                assert!(frames.stats().slots > slots, "no block was given slots");
                singles.into_iter().for_each(|run| frames.free(run.pfn, Order::BASE, false));
                done.store(1, Release);
            };
            let look_up = || {
                let mut frame = 0;
                while done.load(Acquire) == 0 {
                    frame = (frame + 1) % order.pages();
                    for &(_, (_, head)) in &kept {
                        let folio = world.manager.folio(head.add(frame)).expect("a folio");
                        assert_eq!((folio.head(), folio.order()), (head, order), "frame {frame}");
                    }
                }
            };
            both(take_all, look_up);
            world.audit();
            world.manager.destroy_space(space);
        }
        world.end();
    }
}

#[test]
fn a_store_to_a_file_page_that_goes_is_noted() {
    for _ in 0..40 {
        let cpus = cpus();
        let world: World<'_, Total> = World::new(&cpus, huge());
        let file = world.manager.create_object(ObjectKind::File, 0, 256, Order::BASE).unwrap();
        let space = world.manager.create_space().unwrap();
        world.manager.map(space, at(BASE), 256, RW, Map::Shared(file, 0)).unwrap();
        let mut frames = Vec::new();
        for page in 0..256 {
            world.access(space, BASE + page, 1, 0).unwrap();
            frames.push(world.manager.page_table(space).lookup(&world.manager, BASE + page).unwrap().1.pfn);
        }
        let root = world.manager.root(space);
        let stored: Vec<AtomicU64> = (0..256).map(|_| AtomicU64::new(0)).collect();
        both(
            || {
                for (page, stored) in (BASE..).zip(&stored) {
                    stored.store(u64::from(cpus.access(root, page, 1, 1).is_some()), Relaxed);
                }
            },
            || (0..8).for_each(|i| world.manager.unmap(space, at(BASE + i * 32), 32).unwrap()),
        );
        for (pfn, stored) in frames.iter().zip(&stored) {
            let folio = world.manager.folio(*pfn).unwrap();
            let noted = folio.flags().has(FolioFlags::DIRTY);
            assert_eq!(noted, stored.load(Relaxed) == 1, "{folio:?}");
            assert_eq!(cpus.frame(*pfn).0[1].load(Relaxed), stored.load(Relaxed));
        }
        world.manager.destroy_space(space);
        world.manager.destroy_object(file);
        world.end();
    }
}
