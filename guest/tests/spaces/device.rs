//! Device windows: tracking class Pfn, never counted; and private copies in them, which are.

use crate::world::{BASE, DEVICE_FRAMES, FRAMES, R, RW, World, at, huge, machine_of};
use quire::addr::{Order, Pfn};
use quire::format::Attrs;
use quire::mapcount::Total;
use quire::memory::Memory;
use quire::space::{Advice, FaultError, FaultKind, Manager, Map, MapError, SpaceId, Tracking};
use std::sync::atomic::Ordering::Relaxed;

#[test]
fn a_window_is_never_counted_and_never_copied() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let device = world.device();
    let word = |page: u64| machine.frame(device.add(page)).0[0].load(Relaxed);
    world.map(space, BASE, DEVICE_FRAMES, RW, Map::Device(device));
    let statistics = world.manager.statistics();
    let mapped = || (statistics.anon_mapped.get(), statistics.file_mapped.get());
    let before = mapped();
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
    assert_eq!((mapped(), statistics.copied.load(Relaxed)), (before, 0));
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

/// The frame that a page maps, and whether it is counted.
fn shown(world: &World<'_>, space: SpaceId, page: u64) -> (Pfn, bool) {
    let (_, leaf) = world.manager.page_table(space).lookup(&world.manager, page).expect("a leaf");
    (leaf.pfn, !leaf.attrs.has(Attrs::UNTRACKED))
}

#[test]
fn a_store_to_a_private_window_goes_to_a_copy_that_is_counted() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let device = world.device();
    let word = |page: u64| &machine.frame(device.add(page)).0[0];
    for page in 0..DEVICE_FRAMES {
        word(page).store(page + 1, Relaxed);
    }
    world.map(space, BASE, DEVICE_FRAMES, RW, Map::PrivateDevice(device));
    assert_eq!(world.manager.vmas(space).next().unwrap().tracking(), Tracking::Pfn);
    // One page is read before it is stored to, one is not.
    assert_eq!(world.read(space, BASE + 3), 4);
    assert_eq!((shown(&world, space, BASE + 3), world.manager.rss(space)), ((device.add(3), false), 0));
    for page in [3, 9] {
        let fault = world.write(space, BASE + page, 100 + page).unwrap();
        assert_eq!((fault.kind, fault.order, fault.pages), (FaultKind::Copy, Order::BASE, 1));
        assert_eq!(word(page).load(Relaxed), page + 1, "the device keeps its own");
        let (pfn, counted) = shown(&world, space, BASE + page);
        let folio = world.manager.folio(pfn).expect("a folio");
        assert!(counted && folio.is_anon());
        assert_eq!((folio.order(), folio.refs(), world.manager.leaves_by_walk(folio)), (Order::BASE, 1, Ok(1)));
    }
    assert_eq!((world.manager.rss(space), world.manager.statistics().anon_mapped.get()), (2, 2));
    // A page that the device changes is seen until it is copied.
    word(4).store(44, Relaxed);
    word(3).store(33, Relaxed);
    assert_eq!((world.read(space, BASE + 4), world.read(space, BASE + 3)), (44, 103));
    world.audit();

    // The child shares the copies and sees the device; copies of either are its own.
    let child = world.manager.fork(space).unwrap();
    assert_eq!((world.manager.rss(child), shown(&world, child, BASE + 3).1), (2, true));
    let folio = world.manager.folio(shown(&world, child, BASE + 3).0).unwrap();
    assert_eq!((folio.refs(), world.manager.is_shared_by_walk(folio)), (2, Ok(true)));
    world.audit();
    assert_eq!((world.read(child, BASE + 3), world.read(child, BASE + 4), world.read(child, BASE + 10)), (103, 44, 11));
    world.write(child, BASE + 3, 203);
    world.write(child, BASE + 4, 204);
    world.write(space, BASE + 10, 110);
    assert_eq!((world.read(space, BASE + 3), world.read(space, BASE + 4), world.read(child, BASE + 10)), (103, 44, 11));
    assert_eq!((world.manager.rss(space), world.manager.rss(child)), (3, 3));
    // The last sharer takes its copy back.
    assert_eq!(world.write(space, BASE + 3, 104).map(|fault| fault.kind), Some(FaultKind::Reuse));
    world.audit();
    world.leave(child);
    world.audit();
    assert_eq!(
        (world.read(space, BASE + 3), world.read(space, BASE + 9), world.read(space, BASE + 10)),
        (104, 109, 110)
    );
    assert_eq!(word(4).load(Relaxed), 44);
    world.end(&[]);
}

#[test]
fn a_private_window_is_cut_moved_protected_and_joined_with_its_copies() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let device = world.device();
    for page in 0..DEVICE_FRAMES {
        machine.frame(device.add(page)).0[0].store(page, Relaxed);
    }
    world.map(space, BASE, DEVICE_FRAMES, RW, Map::PrivateDevice(device));
    for page in (0..DEVICE_FRAMES).step_by(3) {
        world.write(space, BASE + page, 1000 + page);
    }
    let expect = |space, at: u64, pages: std::ops::Range<u64>| {
        for page in pages {
            let expected = if page % 3 == 0 { 1000 + page } else { page };
            assert_eq!(world.read(space, at + page), expected, "page {page}");
        }
    };
    expect(space, BASE, 0..DEVICE_FRAMES);
    world.audit();
    // mprotect cuts, and joins again; no store reaches the device through what was writable before.
    world.manager.protect(space, at(BASE + 7), 20, R).unwrap();
    assert_eq!(world.manager.vmas(space).count(), 3);
    assert_eq!(world.access(space, BASE + 9, Some(1)), Err(FaultError::Forbidden));
    world.audit();
    world.manager.protect(space, at(BASE + 7), 20, RW).unwrap();
    assert_eq!(world.manager.vmas(space).count(), 1);
    world.write(space, BASE + 8, 8);
    assert_eq!(world.write(space, BASE + 9, 1009).map(|fault| fault.kind), Some(FaultKind::Reuse));
    expect(space, BASE, 0..DEVICE_FRAMES);
    world.audit();
    // Moved across a border of tables, to where nothing is congruent.
    let far = 2 * BASE + 512 - 30;
    world.manager.remap(space, at(BASE), DEVICE_FRAMES, at(far), DEVICE_FRAMES).unwrap();
    world.audit();
    expect(space, far, 0..DEVICE_FRAMES);
    assert_eq!(shown(&world, space, far + 1), (device.add(1), false));
    // Found from the folio in its new place, and unmapped from there: the device's page is below.
    let (pfn, _) = shown(&world, space, far + 33);
    let folio = world.manager.folio(pfn).unwrap();
    assert_eq!(world.manager.leaves_by_walk(folio), Ok(1));
    assert_eq!(world.manager.try_to_unmap(folio), Ok(()));
    assert_eq!(world.read(space, far + 33), 33);
    world.audit();
    // A window does not grow, and what is dropped or unmapped takes its copies along.
    let (rss, grown) = (world.manager.rss(space), DEVICE_FRAMES + 1);
    assert_eq!(world.manager.remap(space, at(far), DEVICE_FRAMES, at(far), grown), Err(MapError::BadRange));
    assert_eq!(world.manager.remap(space, at(far), DEVICE_FRAMES, at(BASE), grown), Err(MapError::BadRange));
    world.manager.advise(space, at(far), 6, Advice::DontNeed).unwrap();
    assert_eq!((world.read(space, far + 3), world.manager.rss(space)), (3, rss - 2));
    world.manager.unmap(space, at(far + 12), 10).unwrap();
    assert_eq!(world.manager.rss(space), rss - 2 - 4);
    expect(space, far, 22..33);
    assert!(!world.manager.collapse(space, at(far)));
    world.audit();
    world.end(&[]);
}

#[test]
fn what_the_manager_owns_is_no_device() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(1);
    world.write(space, BASE, 1);
    let (pfn, _) = world.leaf(space, BASE).unwrap();
    for first in [pfn, world.manager.root(space), Pfn::new(FRAMES - 1)] {
        for what in [Map::Device(first), Map::PrivateDevice(first)] {
            assert_eq!(world.manager.map(space, at(2 * BASE), 1, RW, what), Err(MapError::WrongKind));
        }
    }
    // Only the last page of it: just as wrong.
    let before = Pfn::new(FRAMES - 1);
    assert_eq!(world.manager.map_fixed(space, at(BASE), 2, RW, Map::Device(before)), Err(MapError::WrongKind));
    assert_eq!(world.read(space, BASE), 1, "nothing was unmapped for it");
    world.audit();
    world.end(&[]);
}

/// A window that begins before the manager's frames and reaches into them.
#[test]
fn a_window_ends_where_the_managers_frames_begin() {
    let machine = machine_of(FRAMES);
    let manager: Manager<_, Total> = Manager::new(&machine, &[Pfn::new(1024)..Pfn::new(FRAMES)], true, huge()).unwrap();
    let space = manager.create_space().unwrap();
    let window = Map::Device(Pfn::new(300));
    assert_eq!(manager.map(space, at(BASE), 725, RW, window), Err(MapError::WrongKind));
    assert_eq!(manager.map(space, at(BASE), 724, RW, window), Ok(()));
    manager.destroy_space(space);
    assert!(manager.trim());
}
