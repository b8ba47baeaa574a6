//! mremap: pages keep their contents wherever they go.

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Gva, Level, Order};
use quire::space::{FaultError, Map, MapError, ObjectKind, Policy};

#[test]
fn moved_by_any_distance() {
    for policy in [huge(), huge_by_pages(), Policy::up_to(Order::new(4)), Policy::up_to(Order::BASE)] {
        for distance in [BASE, BASE + 512, BASE + 1, BASE + 511, BASE + 300, 1100] {
            let machine = machine_of(FRAMES);
            let world = World::new(&machine, policy);
            let space = world.anon(1024);
            world.fill(space, BASE..BASE + 1024, 1);
            let child = world.manager.fork(space).unwrap();
            world.manager.remap(space, at(BASE + 3), 1015, at(BASE + 3 + distance), 1015).unwrap();
            world.audit();
            world.expect(space, BASE + 3 + distance..BASE + 1018 + distance, BASE + 3, 1);
            assert_eq!(world.access(space, BASE + 3, None), Err(FaultError::NotMapped));
            world.expect(space, BASE..BASE + 3, BASE, 1);
            world.expect(child, BASE..BASE + 1024, BASE, 1);
            world.fill(space, BASE + 3 + distance..BASE + 1018 + distance, 2);
            world.expect(child, BASE..BASE + 1024, BASE, 1);
            world.audit();
            world.end(&[]);
        }
    }
}

#[test]
fn a_huge_leaf_moves_whole_when_congruent() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(1024);
    world.fill(space, BASE..BASE + 1024, 1);
    let (pfn, _) = world.leaf(space, BASE).unwrap();
    world.manager.remap(space, at(BASE), 1024, at(3 * BASE + 5 * 512), 1024).unwrap();
    assert_eq!(world.leaf(space, 3 * BASE + 5 * 512), Some((pfn, Level::TWO)));
    world.audit();
    world.manager.remap(space, at(3 * BASE + 5 * 512), 1024, at(BASE + 8), 1024).unwrap();
    assert_eq!(world.leaf(space, BASE + 8), Some((pfn, Level::ONE)));
    world.audit();
    world.expect(space, BASE + 8..BASE + 8 + 1024, BASE, 1);
    world.end(&[]);
}

#[test]
fn within_one_table_and_onto_others() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge_by_pages());
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    // From and to in the same table, over a mapping that goes.
    world.manager.remap(space, at(BASE + 10), 20, at(BASE + 200), 20).unwrap();
    world.audit();
    world.expect(space, BASE + 200..BASE + 220, BASE + 10, 1);
    world.expect(space, BASE + 220..BASE + 512, BASE + 220, 1);
    assert_eq!(world.manager.remap(space, at(BASE + 100), 20, at(BASE + 110), 20), Err(MapError::BadRange));
    assert_eq!(world.manager.remap(space, at(BASE + 5), 20, at(2 * BASE), 20), Err(MapError::NotMapped));
    world.end(&[]);
}

#[test]
fn grown_and_shrunk() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(600);
    world.fill(space, BASE..BASE + 600, 1);
    world.manager.remap(space, at(BASE), 600, at(BASE), 1024).unwrap();
    world.expect_zero(space, BASE + 600..BASE + 1024);
    world.audit();
    world.manager.remap(space, at(BASE), 1024, at(BASE), 100).unwrap();
    world.expect(space, BASE..BASE + 100, BASE, 1);
    assert!(world.access(space, BASE + 100, None).is_err());
    world.manager.remap(space, at(BASE), 100, at(2 * BASE + 9), 50).unwrap();
    world.manager.remap(space, at(2 * BASE + 9), 50, at(BASE), 700).unwrap();
    world.audit();
    world.expect(space, BASE..BASE + 50, BASE, 1);
    world.expect_zero(space, BASE + 50..BASE + 700);
    world.map(space, BASE + 700, 1, R, Map::Anon);
    assert_eq!(world.manager.remap(space, at(BASE), 700, at(BASE), 800), Err(MapError::Occupied));
    world.end(&[]);
}

#[test]
fn a_mapping_moved_down_from_the_top_does_not_outgrow_its_indexes() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let top = (1 << 35) - 4;
    world.map(space, top, 4, RW, Map::Anon);
    world.fill(space, top..top + 4, 1);
    assert_eq!(world.manager.remap(space, at(top), 4, at(BASE), 100), Err(MapError::BadRange));
    world.manager.remap(space, at(top), 4, at(BASE), 4).unwrap();
    world.expect(space, BASE..BASE + 4, top, 1);
    assert_eq!(world.manager.remap(space, at(BASE), 4, at(BASE), 5), Err(MapError::BadRange));
    world.audit();
    world.manager.unmap(space, Gva::new(0), 1 << 35).unwrap();
    world.end(&[]);
}

#[test]
fn a_stack_moved_up_grows_no_further_than_its_indexes() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    world.map(space, 300, 4, RW, Map::Stack);
    world.write(space, 302, 7);
    world.manager.remap(space, at(300), 4, at(BASE), 4).unwrap();
    world.write(space, BASE - 200, 8);
    assert_eq!(world.read(space, BASE + 2), 7);
    assert_eq!(world.access(space, BASE - 301, Some(1)), Err(FaultError::NotMapped));
    world.audit();
    world.end(&[]);
}

#[test]
fn file_pages_move_with_their_mapping() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 2, 2048, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 1024, RW, Map::Shared(file, 0));
    world.map(space, 2 * BASE, 1024, RW, Map::Private(file, 100));
    world.fill(space, BASE..BASE + 1024, 1);
    world.fill(space, 2 * BASE + 5..2 * BASE + 9, 2);
    world.manager.remap(space, at(BASE), 1024, at(3 * BASE), 1024).unwrap();
    world.manager.remap(space, at(2 * BASE), 1024, at(4 * BASE + 1), 1024).unwrap();
    world.audit();
    world.expect(space, 3 * BASE..3 * BASE + 1024, BASE, 1);
    world.expect(space, 4 * BASE + 6..4 * BASE + 10, 2 * BASE + 5, 2);
    world.expect(space, 4 * BASE + 11..4 * BASE + 500, BASE + 110, 1);
    world.audit();
    world.end(&[file]);
}

/// What small leaves leave behind when they move away must not be in the way of a large one that moves in, though nothing was mapped there in between.
#[test]
fn a_large_leaf_moves_to_where_small_ones_have_been() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    world.map(space, BASE + 7, 20, RW, Map::Anon);
    world.fill(space, BASE + 7..BASE + 27, 1);
    world.manager.remap(space, at(BASE + 7), 20, at(3 * BASE), 20).unwrap();
    world.audit();
    world.map(space, 2 * BASE, 512, RW, Map::Anon);
    world.fill(space, 2 * BASE..2 * BASE + 512, 2);
    assert_eq!(world.leaf(space, 2 * BASE).unwrap().1, Level::TWO);
    world.manager.remap(space, at(2 * BASE), 512, at(BASE), 512).unwrap();
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::TWO);
    world.audit();
    world.expect(space, BASE..BASE + 512, 2 * BASE, 2);
    world.expect(space, 3 * BASE..3 * BASE + 20, BASE + 7, 1);
    world.end(&[]);
}
