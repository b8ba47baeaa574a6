//! fork: copy on write, exclusive marks, and reuse after the others are gone.

use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::format::Attrs;
use quire::mapcount::{self, Accounting, Observe, Oracle, PerPage, Total, Tuples};
use quire::space::{FaultKind, Map, MapError, ObjectKind, Policy, SpaceId};

fn attrs<A: Accounting>(world: &World<'_, A>, space: SpaceId, page: u64) -> Attrs {
    world.manager.page_table(space).lookup(&world.manager, page).unwrap().1.attrs
}

#[test]
fn stores_of_one_are_not_seen_by_the_other() {
    for policy in [huge(), huge_by_pages(), Policy::up_to(Order::new(4)), Policy::up_to(Order::BASE)] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let parent = world.anon(1000);
        world.fill(parent, BASE..BASE + 1000, 1);
        assert!(attrs(&world, parent, BASE).has(Attrs::EXCLUSIVE.or(Attrs::WRITE)));
        let child = world.manager.fork(parent).unwrap();
        for space in [parent, child] {
            assert!(!attrs(&world, space, BASE).has(Attrs::EXCLUSIVE) && !attrs(&world, space, BASE).has(Attrs::WRITE));
        }
        world.audit();
        world.fill(child, BASE + 500..BASE + 600, 2);
        world.fill(parent, BASE + 550..BASE + 650, 3);
        world.audit();
        world.expect(parent, BASE..BASE + 550, BASE, 1);
        world.expect(parent, BASE + 550..BASE + 650, BASE + 550, 3);
        world.expect(child, BASE + 500..BASE + 600, BASE + 500, 2);
        world.expect(child, BASE + 600..BASE + 1000, BASE + 600, 1);
        assert_eq!(world.manager.rss(child), world.manager.rss(parent));
        world.end(&[]);
    }
}

#[test]
fn the_child_of_a_child_and_no_copy_of_a_copy() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let mut chain = vec![world.anon(512)];
    world.fill(chain[0], BASE..BASE + 512, 1);
    for i in 1..6 {
        chain.push(world.manager.fork(chain[i - 1]).unwrap());
        world.write(chain[i], BASE + i as u64, i as u64);
        world.audit();
    }
    for (i, &space) in chain.iter().enumerate() {
        for j in 1..6u64 {
            let expected = if j <= i as u64 { j } else { 1 << 40 | (BASE + j) };
            assert_eq!(world.read(space, BASE + j), expected, "space {i}, page {j}");
        }
    }
    // In any order.
    for i in [2, 0, 5, 1, 4, 3] {
        world.leave(chain[i]);
        world.audit();
    }
    world.end(&[]);
}

/// What a store to page 5 of a folio of `order` is, after the child that shared it is gone; and pages that it made writable.
fn after_exit<A: Accounting>(order: u8) -> (FaultKind, u64) {
    let machine = machine_of(FRAMES);
    let policy = Policy { max_leaf: Level::ONE, ..Policy::only(Order::new(order)) };
    let world: World<'_, A> = World::with_scheme(&machine, policy, FRAMES);
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 16, 1);
    let child = world.manager.fork(space).unwrap();
    world.leave(child);
    world.audit();
    let fault = world.write(space, BASE + 5, 9).expect("it is write-protected");
    world.audit();
    world.expect(space, BASE..BASE + 5, BASE, 1);
    assert_eq!(world.read(space, BASE + 5), 9);
    world.end(&[]);
    (fault.kind, fault.pages)
}

#[test]
fn who_is_left_alone_reuses_as_far_as_the_scheme_knows() {
    assert_eq!(after_exit::<Total>(0), (FaultKind::Reuse, 1));
    assert_eq!(after_exit::<Total>(4), (FaultKind::Reuse, 16));
    assert_eq!(after_exit::<Total>(9), (FaultKind::Reuse, 512));
    assert_eq!(after_exit::<PerPage>(0), (FaultKind::Reuse, 1));
    assert_eq!(after_exit::<Tuples>(0), (FaultKind::Reuse, 1));
    assert_eq!(after_exit::<Tuples>(4), (FaultKind::Copy, 1));
    assert_eq!(after_exit::<mapcount::None>(0), (FaultKind::Copy, 1));
    assert_eq!(after_exit::<mapcount::None>(9), (FaultKind::Copy, 1));
    assert_eq!(after_exit::<Observe<Total, Oracle>>(9), (FaultKind::Reuse, 512));
}

#[test]
fn reuse_makes_the_whole_run_writable_at_once() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge_by_pages());
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    let child = world.manager.fork(space).unwrap();
    // The child keeps nothing but its vma.
    world.manager.unmap(child, at(BASE), 512).unwrap();
    world.manager.unmap(space, at(BASE + 100), 1).unwrap();
    let fault = world.write(space, BASE + 50, 5).unwrap();
    assert_eq!((fault.kind, fault.pages), (FaultKind::Reuse, 100), "up to the hole");
    assert_eq!(world.write(space, BASE + 99, 5), None);
    let fault = world.write(space, BASE + 101, 5).unwrap();
    assert_eq!((fault.kind, fault.pages), (FaultKind::Reuse, 411));
    world.audit();
    world.end(&[]);
}

#[test]
fn a_huge_leaf_is_split_for_the_copy_of_one_page() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let child = world.manager.fork(parent).unwrap();
    let copied = || world.manager.statistics().copied.load(Relaxed);
    assert_eq!(world.write(child, BASE + 100, 5).unwrap().kind, FaultKind::Copy);
    assert_eq!(copied(), 1);
    assert_eq!(world.leaf(child, BASE).unwrap().1, Level::ONE);
    assert_eq!(world.leaf(parent, BASE).unwrap().1, Level::TWO);
    assert_eq!(world.manager.statistics().splits.load(Relaxed), 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn private_pages_of_files_and_shared_memory() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 3, 64, Order::new(4)).unwrap();
    let shm = world.manager.create_object(ObjectKind::Shared, 4, 64, Order::new(4)).unwrap();
    let parent = world.space();
    world.map(parent, BASE, 64, RW, Map::Private(file, 0));
    world.map(parent, 2 * BASE, 64, RW, Map::Shared(shm, 0));
    world.map(parent, 3 * BASE, 64, R, Map::Private(file, 0));
    world.fill(parent, BASE..BASE + 10, 1);
    world.fill(parent, 2 * BASE..2 * BASE + 10, 1);
    assert_eq!(world.read(parent, 3 * BASE), quire::space::file_word(3, 0));
    let child = world.manager.fork(parent).unwrap();
    // What a fault brings back is not copied.
    assert!(world.leaf(child, 2 * BASE).is_none() && world.leaf(child, 3 * BASE).is_none());
    world.fill(child, BASE + 5..BASE + 20, 2);
    world.fill(child, 2 * BASE + 5..2 * BASE + 20, 2);
    world.audit();
    world.expect(parent, BASE..BASE + 10, BASE, 1);
    assert_eq!(world.read(parent, BASE + 10), quire::space::file_word(3, 10));
    world.expect(parent, 2 * BASE + 5..2 * BASE + 20, 2 * BASE + 5, 2);
    world.audit();
    world.end(&[file, shm]);
}

#[test]
fn a_fork_without_frames_leaves_nothing() {
    let machine = machine_of(1024);
    let world: World<'_> = World::with_scheme(&machine, Policy::up_to(Order::BASE), 1024);
    let parent = world.anon(4096);
    let mut page = BASE;
    while world.access(parent, page, Some(page)).is_ok() {
        page += 1;
    }
    let free = world.free();
    assert_eq!(world.manager.fork(parent), Err(MapError::OutOfFrames));
    assert_eq!(world.free(), free);
    world.audit();
    for page in BASE..page {
        assert_eq!(world.read(parent, page), page);
        world.write(parent, page, page + 1);
    }
    world.end(&[]);
}
