//! Clean folios of files that go, and those that stay.

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::Order;
use quire::mapcount::{Accounting, Everything, None as NoCounts, Tuples};
use quire::space::{Access, Advice, Map, ObjectId, ObjectKind, ReclaimReport, file_word};

/// A world with two spaces that have mapped all of a file of 1024 pages, by folios of `order`.
fn mapped<A: Accounting>(world: &World<'_, A>, kind: ObjectKind, order: u8) -> (ObjectId, [quire::space::SpaceId; 2]) {
    let file = world.manager.create_object(kind, 6, 1024, Order::new(order)).unwrap();
    let spaces = [world.space(), world.space()];
    world.map(spaces[0], BASE, 1024, RW, Map::Shared(file, 0));
    world.map(spaces[1], BASE + 77, 900, RW, Map::Private(file, 100));
    for page in 0..1024 {
        world.read(spaces[0], BASE + page);
    }
    for page in 0..900 {
        world.read(spaces[1], BASE + 77 + page);
    }
    (file, spaces)
}

fn reclaim_all<A: Accounting>() {
    for policy in [huge(), huge_by_pages()] {
        for order in [0, 4, 9] {
            let machine = machine_of(FRAMES);
            let world: World<'_, A> = World::with_scheme(&machine, policy, FRAMES);
            let (file, spaces) = mapped(&world, ObjectKind::File, order);
            world.write(spaces[1], BASE + 77 + 3, 9);
            let free = world.free();
            let report = world.manager.reclaim(file, u64::MAX, false);
            let folios = 1024 >> order;
            let expected = ReclaimReport { probed: folios, reclaimed: folios, freed: 1024, ..ReclaimReport::default() };
            assert_eq!(report, expected);
            assert!(world.free() >= free + 1024);
            assert_eq!((world.manager.rss(spaces[0]), world.manager.rss(spaces[1])), (0, 1));
            world.audit();
            assert_eq!(world.manager.reclaim(file, u64::MAX, false), ReclaimReport::default(), "nothing is left");
            // They come back as they were.
            for page in (0..1024).step_by(7) {
                assert_eq!(world.read(spaces[0], BASE + page), file_word(6, page));
            }
            assert_eq!(world.read(spaces[1], BASE + 77 + 3), 9, "the private copy stays");
            world.audit();
            world.end(&[file]);
        }
    }
}

#[test]
fn clean_folios_go_and_come_back() {
    reclaim_all::<Everything>();
    reclaim_all::<NoCounts>();
    reclaim_all::<Tuples>();
}

#[test]
fn what_was_stored_to_stays() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let (file, [one, two]) = mapped(&world, ObjectKind::File, 4);
        // Noted in a leaf that is there, in one that is gone, and by nobody but a pin.
        world.write(one, BASE + 5, 1);
        world.write(one, BASE + 20, 2);
        world.manager.advise(one, at(BASE + 20), 1, Advice::DontNeed).unwrap();
        let pin = world.manager.pin(one, at(BASE + 40), Access::Read).unwrap();
        quire::memory::Memory::frame(&world.machine, pin.frame()).0[0].store(3, std::sync::atomic::Ordering::Relaxed);
        world.manager.unpin(pin, true);
        let report = world.manager.reclaim(file, u64::MAX, false);
        let expected = ReclaimReport { probed: 64, reclaimed: 61, freed: 976, dirty: 3, ..ReclaimReport::default() };
        assert_eq!(report, expected);
        world.audit();
        assert_eq!([5, 20, 40].map(|page| world.read(one, BASE + page)), [1, 2, 3]);
        assert_eq!(world.read(two, BASE + 77 + 100), file_word(6, 200));
        world.audit();
        world.end(&[file]);
    }
}

#[test]
fn what_is_pinned_or_has_no_file_stays() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let (file, [one, _]) = mapped(&world, ObjectKind::File, 9);
    let (memory, [three, _]) = mapped(&world, ObjectKind::Shared, 9);
    let pin = world.manager.pin(one, at(BASE + 700), Access::Read).unwrap();
    let leaf = world.leaf(one, BASE + 700);
    let report = world.manager.reclaim(file, u64::MAX, false);
    let expected = ReclaimReport { probed: 2, reclaimed: 1, freed: 512, referenced: 1, ..ReclaimReport::default() };
    assert_eq!(report, expected);
    assert_eq!(world.leaf(one, BASE + 700), leaf, "not even unmapped");
    // Without a leaf too.
    world.manager.unmap(one, at(BASE), 1024).unwrap();
    assert_eq!(world.manager.reclaim(file, u64::MAX, false).referenced, 1);
    world.manager.unpin(pin, false);
    world.audit();
    assert_eq!(world.manager.reclaim(file, u64::MAX, false).freed, 512);
    assert_eq!(world.manager.reclaim(memory, u64::MAX, false), ReclaimReport::default());
    assert!(world.leaf(three, BASE).is_some());
    world.audit();
    world.end(&[file, memory]);
}

#[test]
fn what_was_used_gets_a_second_chance_and_no_more_than_asked_goes() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let (file, [one, _]) = mapped(&world, ObjectKind::File, 4);
        let report = world.manager.reclaim(file, 20, true);
        assert_eq!(report, ReclaimReport { probed: 64, used: 64, ..ReclaimReport::default() });
        // No CPU has the translations cached, so that the MMU says what it uses.
        machine.leave(world.manager.root(one));
        world.read(one, BASE + 17);
        let report = world.manager.reclaim(file, 20, true);
        let expected = ReclaimReport { probed: 3, reclaimed: 2, freed: 32, used: 1, ..ReclaimReport::default() };
        assert_eq!(report, expected);
        assert!(world.leaf(one, BASE + 17).is_some());
        world.audit();
        assert_eq!(world.manager.reclaim(file, 1, true).freed, 16);
        world.map(one, 3 * BASE, 1, R, Map::Shared(file, 0));
        assert_eq!(world.read(one, 3 * BASE), file_word(6, 0));
        world.audit();
        world.end(&[file]);
    }
}
