//! Mappings of files and shared memory.

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, machine_of};
use quire::addr::{Level, Order};
use quire::space::{FaultError, FaultKind, Map, MapError, ObjectKind, file_word};

#[test]
fn stores_to_shared_mappings_are_seen_by_all_and_to_private_ones_by_nobody() {
    for order in [0, 2, 4, 9] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, huge());
        let file = world.manager.create_object(ObjectKind::File, 6, 1024, Order::new(order)).unwrap();
        let (one, two) = (world.space(), world.space());
        world.map(one, BASE, 1024, RW, Map::Shared(file, 0));
        // Another place in the table, not congruent, and from the middle on.
        world.map(two, BASE + 77, 900, RW, Map::Shared(file, 100));
        world.map(two, 3 * BASE + 5, 900, RW, Map::Private(file, 100));
        for page in [0, 1, 511, 512, 1023] {
            assert_eq!(world.read(one, BASE + page), file_word(6, page));
        }
        world.write(one, BASE + 100, 1);
        world.write(two, BASE + 77 + 899, 2);
        world.write(two, 3 * BASE + 5 + 400, 3);
        world.audit();
        assert_eq!(world.read(two, BASE + 77), 1);
        assert_eq!(world.read(two, 3 * BASE + 5), 1, "nothing of it is private yet");
        assert_eq!(world.read(one, BASE + 999), 2);
        assert_eq!(world.read(one, BASE + 500), file_word(6, 500));
        assert_eq!(world.read(two, 3 * BASE + 5 + 400), 3);
        world.audit();
        world.end(&[file]);
    }
}

#[test]
fn folios_are_as_large_as_object_and_order_allow() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 6, 512 + 21, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 512 + 21, RW, Map::Shared(file, 0));
    for (page, order, level) in [(5, 9, Level::TWO), (512, 4, Level::ONE), (530, 2, Level::ONE), (532, 0, Level::ONE)] {
        world.read(space, BASE + page);
        assert_eq!(world.folio_order(space, BASE + page), Order::new(order), "page {page}");
        assert_eq!(world.leaf(space, BASE + page).unwrap().1, level);
    }
    assert_eq!(world.manager.rss(space), 533, "every fault brings its folio");
    world.audit();
    world.end(&[file]);
}

#[test]
fn a_window_that_is_not_congruent_is_mapped_by_pages() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 6, 1024, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE + 300, 700, R, Map::Private(file, 200));
    // Pages 200..512 of the first folio lie at 300..612: two tables.
    let fault = world.access(space, BASE + 400, None).unwrap().1.unwrap();
    assert_eq!((fault.kind, fault.pages), (FaultKind::FirstTouch, 212));
    let fault = world.access(space, BASE + 600, None).unwrap().1.unwrap();
    assert_eq!((fault.kind, fault.pages), (FaultKind::Refault, 100));
    let fault = world.access(space, BASE + 999, None).unwrap().1.unwrap();
    assert_eq!(fault.pages, 388);
    for page in 300..1000 {
        assert_eq!(world.read(space, BASE + page), file_word(6, page - 100));
    }
    world.audit();
    world.end(&[file]);
}

#[test]
fn behind_the_end_of_the_object() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 6, 10, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 100, RW, Map::Shared(file, 3));
    world.map(space, 2 * BASE, 100, RW, Map::Private(file, 3));
    for base in [BASE, 2 * BASE] {
        assert_eq!(world.read(space, base + 6), file_word(6, 9));
        for store in [None, Some(1)] {
            assert_eq!(world.access(space, base + 7, store), Err(FaultError::BeyondEnd));
        }
    }
    let end = 1 << 35;
    assert_eq!(world.manager.map(space, at(9), 2, R, Map::Shared(file, end - 1)), Err(MapError::BadRange));
    assert_eq!(world.manager.map(space, at(9), 2, R, Map::Private(file, u64::MAX)), Err(MapError::BadRange));
    world.audit();
    world.end(&[file]);
}

#[test]
fn a_file_page_is_unmapped_everywhere_by_its_folio() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 6, 1024, Order::HUGE).unwrap();
    let spaces = [world.space(), world.space(), world.space()];
    for (i, &space) in (0..).zip(&spaces) {
        world.map(space, BASE + i * 40, 1024, RW, Map::Shared(file, 0));
        for page in 0..1024 {
            world.read(space, BASE + i * 40 + page);
        }
    }
    let (pfn, _) = world.leaf(spaces[1], BASE + 40 + 700).unwrap();
    let folio = world.manager.folio(pfn).unwrap();
    assert_eq!(world.manager.leaves_by_walk(folio), Ok(1 + 512 + 512));
    assert_eq!(world.manager.is_shared_by_walk(folio), Ok(true));
    world.manager.try_to_unmap(folio).unwrap();
    assert_eq!(world.manager.leaves_by_walk(folio), Ok(0));
    assert!(spaces.iter().all(|&space| world.manager.rss(space) == 512));
    world.audit();
    assert_eq!(world.read(spaces[0], BASE + 700), file_word(6, 700));
    world.audit();
    world.end(&[file]);
}
