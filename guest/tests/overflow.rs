//! A folio has as many mappings as it may: more are refused, and nothing changes; removals and splits always work.

mod world;

use quire::addr::{Level, Order};
use quire::mapcount::{PerPage, Refused, Total};
use quire::space::{Advice, FaultError, Map, MapError, ObjectKind};
use world::{BASE, Everything, FRAMES, RW, World, at, huge, huge_by_pages, machine_of};

#[test]
fn a_fork_is_refused_and_leaves_nothing() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world: World<'_, Total> = World::with_scheme(&machine, policy, FRAMES);
        let parent = world.anon(1024);
        world.fill(parent, BASE..BASE + 1024, 1);
        // Room for two.
        world.manager.set_count_limit(1024);
        let child = world.manager.fork(parent).unwrap();
        // A page of its own, so that the refusal comes in the middle.
        world.write(parent, BASE + 3, 7);
        let (free, rss) = (world.free(), world.manager.rss(parent));
        assert_eq!(world.manager.fork(parent), Err(MapError::Refused(Refused::Overflow)));
        assert_eq!((world.free(), world.manager.rss(parent)), (free, rss));
        assert_eq!(world.manager.spaces().count(), 2);
        world.audit();
        world.expect(parent, BASE + 4..BASE + 1024, BASE + 4, 1);
        assert_eq!(world.read(parent, BASE + 3), 7);
        world.write(parent, BASE + 3, 8);
        // Splits and removals work at the limit.
        world.manager.unmap(child, at(BASE + 512 + 100), 50).unwrap();
        world.manager.advise(parent, at(BASE + 700), 3, Advice::DontNeed).unwrap();
        world.audit();
        world.leave(child);
        let child = world.manager.fork(parent).unwrap();
        world.expect(child, BASE + 4..BASE + 700, BASE + 4, 1);
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn a_fault_on_a_file_is_refused() {
    let machine = machine_of(FRAMES);
    let world: World<'_, Total> = World::with_scheme(&machine, huge(), FRAMES);
    let file = world.manager.create_object(ObjectKind::File, 1, 512, Order::HUGE).unwrap();
    world.manager.set_count_limit(1024);
    let spaces: Vec<_> = (0..3).map(|_| world.space()).collect();
    for &space in &spaces {
        world.map(space, BASE, 512, RW, Map::Shared(file, 0));
    }
    world.read(spaces[0], BASE);
    world.write(spaces[1], BASE + 5, 5);
    for store in [None, Some(1)] {
        assert_eq!(world.access(spaces[2], BASE + 5, store), Err(FaultError::Refused(Refused::Overflow)));
        world.audit();
    }
    assert_eq!(world.manager.rss(spaces[2]), 0);
    world.manager.unmap(spaces[0], at(BASE), 512).unwrap();
    assert_eq!(world.read(spaces[2], BASE + 5), 5);
    world.audit();
    world.end(&[file]);
}

#[test]
fn a_first_touch_falls_back_to_what_is_allowed() {
    let machine = machine_of(FRAMES);
    let world: World<'_, Everything> = World::new(&machine, huge());
    let space = world.anon(512);
    world.manager.set_count_limit(100);
    world.write(space, BASE, 1);
    assert_eq!(world.folio_order(space, BASE), Order::new(6));
    world.audit();
    world.manager.set_count_limit(0);
    assert_eq!(world.access(space, BASE + 400, Some(1)), Err(FaultError::Refused(Refused::Overflow)));
    world.audit();
    assert_eq!(world.leaf(space, BASE + 400), None);
    world.end(&[]);
}

#[test]
fn a_copy_is_refused_and_the_page_stays() {
    let machine = machine_of(FRAMES);
    let world: World<'_, PerPage> = World::with_scheme(&machine, huge(), FRAMES);
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let child = world.manager.fork(parent).unwrap();
    world.manager.set_count_limit(0);
    assert_eq!(world.access(child, BASE + 9, Some(1)), Err(FaultError::Refused(Refused::Overflow)));
    // The leaf was split on the way; that is never refused.
    assert_eq!(world.leaf(child, BASE + 9).unwrap().1, Level::ONE);
    world.audit();
    world.expect(child, BASE..BASE + 512, BASE, 1);
    world.manager.unmap(parent, at(BASE + 5), 100).unwrap();
    world.audit();
    world.end(&[]);
}
