//! Device windows: tracking class Pfn, never counted.

mod world;

use quire::addr::Pfn;
use quire::format::Attrs;
use quire::memory::Memory;
use quire::space::{Advice, FaultError, FaultKind, Map};
use std::sync::atomic::Ordering::Relaxed;
use world::{BASE, DEVICE_FRAMES, FRAMES, R, RW, World, at, huge, machine_of};

#[test]
fn a_window_is_never_counted_and_never_copied() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let device = world.device();
    let word = |page: u64| machine.frame(device.add(page)).0[0].load(Relaxed);
    world.map(space, BASE, DEVICE_FRAMES, RW, Map::Device(device));
    let statistics = world.manager.statistics();
    let adds = statistics.adds.load(Relaxed);
    let fault = world.write(space, BASE + 3, 33).unwrap();
    assert_eq!((fault.kind, fault.pages), (FaultKind::Device, 1));
    world.read(space, BASE + 4);
    assert_eq!(word(3), 33);
    assert_eq!(world.manager.rss(space), 0);
    assert!(world.manager.page_table(space).lookup(&world.manager, BASE + 3).unwrap().1.attrs.has(Attrs::UNTRACKED));
    assert_eq!(world.manager.folio(device.add(3)).map(|folio| folio.head()), None::<Pfn>);
    world.audit();
    // The child sees the device, not a copy of it, and so does the parent again.
    let child = world.manager.fork(space).unwrap();
    assert_eq!(world.read(child, BASE + 3), 33);
    world.write(child, BASE + 3, 34);
    assert_eq!(world.read(space, BASE + 3), 34);
    world.write(space, BASE + 3, 35);
    assert_eq!(word(3), 35);
    assert_eq!((statistics.adds.load(Relaxed), statistics.copied.load(Relaxed)), (adds, 0));
    world.audit();
    world.leave(child);
    // Cut, protected, moved, dropped: the window stays the same frames.
    world.manager.unmap(space, at(BASE + 10), 5).unwrap();
    world.manager.protect(space, at(BASE + 2), 4, R).unwrap();
    assert_eq!(world.access(space, BASE + 3, Some(1)), Err(FaultError::Forbidden));
    world.manager.protect(space, at(BASE + 2), 4, RW).unwrap();
    world.write(space, BASE + 3, 36);
    world.write(space, BASE + 15, 99);
    assert_eq!((word(3), word(15)), (36, 99));
    world.manager.remap(space, at(BASE + 15), 20, at(2 * BASE + 1), 20).unwrap();
    world.audit();
    world.write(space, 2 * BASE + 1, 100);
    world.write(space, 2 * BASE + 20, 101);
    assert_eq!((word(15), word(34)), (100, 101));
    world.manager.advise(space, at(BASE), 5, Advice::DontNeed).unwrap();
    assert_eq!(world.read(space, BASE + 3), 36);
    assert!(!world.manager.collapse(space, at(BASE)));
    world.audit();
    world.end(&[]);
}

#[test]
fn two_windows_join_only_where_the_frames_continue() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let device = world.device();
    world.map(space, BASE, 10, RW, Map::Device(device));
    world.map(space, BASE + 10, 10, RW, Map::Device(device.add(10)));
    world.map(space, BASE + 20, 10, RW, Map::Device(device.add(30)));
    assert_eq!(world.manager.vmas(space).count(), 2);
    for (page, frame) in [(0, 0), (9, 9), (10, 10), (19, 19), (20, 30), (29, 39)] {
        world.write(space, BASE + page, 7 + page);
        assert_eq!(machine.frame(device.add(frame)).0[0].load(Relaxed), 7 + page);
    }
    world.audit();
    world.end(&[]);
}
