//! mprotect: rights go at once and come back by faults, without copies.

use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::Order;
use quire::space::{Access, FaultError, FaultKind, Map, ObjectKind, Policy, Prot};

const RX: Prot = Prot { read: true, write: false, exec: true };

#[test]
fn none_and_back() {
    for policy in [huge(), huge_by_pages(), Policy::up_to(Order::BASE)] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let space = world.anon(1024);
        world.fill(space, BASE..BASE + 1024, 1);
        world.manager.protect(space, at(BASE + 100), 700, Prot::NONE).unwrap();
        world.audit();
        for page in [100, 511, 512, 799] {
            assert_eq!(world.access(space, BASE + page, None), Err(FaultError::Forbidden));
            assert_eq!(world.access(space, BASE + page, Some(1)), Err(FaultError::Forbidden));
        }
        world.expect(space, BASE..BASE + 100, BASE, 1);
        world.expect(space, BASE + 800..BASE + 1024, BASE + 800, 1);
        assert_eq!(world.manager.rss(space), 1024);
        assert_eq!(world.manager.vmas(space).count(), 3);
        world.manager.protect(space, at(BASE), 1024, RW).unwrap();
        assert_eq!(world.manager.vmas(space).count(), 1, "joined again");
        world.audit();
        world.expect(space, BASE..BASE + 1024, BASE, 1);
        let copied = world.manager.statistics().copied.load(Relaxed);
        world.fill(space, BASE..BASE + 1024, 2);
        assert_eq!(world.manager.statistics().copied.load(Relaxed), copied);
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn a_store_where_stores_were_forbidden_once() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge_by_pages());
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    world.manager.protect(space, at(BASE + 100), 100, R).unwrap();
    assert_eq!(world.access(space, BASE + 150, Some(1)), Err(FaultError::Forbidden));
    world.manager.protect(space, at(BASE + 100), 100, RW).unwrap();
    let fault = world.write(space, BASE + 150, 5).unwrap();
    assert_eq!((fault.kind, fault.pages), (FaultKind::Reuse, 100), "those that lost it, and no others");
    assert_eq!(world.write(space, BASE + 199, 5), None);
    world.audit();
    world.end(&[]);
}

#[test]
fn a_shared_page_gets_its_copy_after_a_change_of_rights() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let child = world.manager.fork(parent).unwrap();
    for prot in [R, RW, Prot::NONE, RW] {
        world.manager.protect(child, at(BASE), 512, prot).unwrap();
        world.audit();
    }
    world.fill(child, BASE..BASE + 512, 2);
    world.expect(parent, BASE..BASE + 512, BASE, 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn fetches_and_holes() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(100);
    world.map(space, BASE + 200, 100, RW, Map::Anon);
    world.fill(space, BASE..BASE + 100, 1);
    world.fill(space, BASE + 200..BASE + 300, 1);
    let fetch = |page: u64| {
        while machine.word(world.manager.root(space), at(page), Access::Fetch).is_none() {
            world.manager.fault(space, at(page), Access::Fetch)?;
        }
        Ok::<_, FaultError>(())
    };
    assert_eq!(fetch(BASE), Err(FaultError::Forbidden));
    world.manager.protect(space, at(BASE + 50), 200, RX).unwrap();
    world.audit();
    assert_eq!(fetch(BASE + 50), Ok(()));
    assert_eq!(fetch(BASE + 249), Ok(()));
    assert_eq!(fetch(BASE + 250), Err(FaultError::Forbidden));
    world.manager.protect(space, at(BASE + 50), 200, R).unwrap();
    world.audit();
    assert_eq!(fetch(BASE + 50), Err(FaultError::Forbidden), "the cached right is gone");
    world.end(&[]);
}

#[test]
fn files() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 1, 1024, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 1024, R, Map::Shared(file, 0));
    world.map(space, 2 * BASE, 1024, R, Map::Private(file, 0));
    for (base, before) in [(BASE, quire::space::file_word(1, 600)), (2 * BASE, 7)] {
        assert_eq!(world.read(space, base + 600), before);
        assert_eq!(world.access(space, base + 600, Some(1)), Err(FaultError::Forbidden));
        world.manager.protect(space, at(base + 512), 512, RW).unwrap();
        world.write(space, base + 600, base / BASE + 6);
        world.audit();
    }
    // Shared: the object's own page. Private: a copy.
    assert_eq!(world.read(space, BASE + 600), 7);
    world.write(space, BASE + 600, 9);
    assert_eq!(world.read(space, 2 * BASE + 600), 8);
    world.audit();
    world.end(&[file]);
}
