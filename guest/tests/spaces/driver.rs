//! Memory that a driver inserts: its folios, which are counted, and frames without folios, which are not.

use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::audit::Mismatch;
use quire::folio::FolioFlags;
use quire::mapcount::{Accounting, Refused, Total, Tuples, Vmas};
use quire::memory::Memory;
use quire::space::{Advice, ObjectKind};
use quire::space::{FaultError, FaultKind, Map, MapError};

#[test]
fn folios_are_counted_and_frames_are_not() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let device = world.device();
    let driver = world.manager.create_driver(1024).unwrap();
    let single = world.manager.driver_folio(driver, 0, Order::BASE).unwrap();
    let four = world.manager.driver_folio(driver, 8, Order::new(2)).unwrap();
    for (folio, page) in [(single, 0), (four, 0), (four, 3)] {
        machine.frame(folio.head().add(page)).0[0].store(100 + page, Relaxed);
    }
    assert!(!single.is_anon() && single.flags().has(FolioFlags::CACHE) && single.refs() == 1);
    let space = world.space();
    world.map(space, BASE, 64, RW, Map::Mixed(driver, 0));
    // Nothing is there before the driver has inserted it.
    assert_eq!(world.access(space, BASE + 5, None), Err(FaultError::BeyondEnd));
    assert_eq!(world.manager.insert_page(space, at(BASE), single), Ok(1));
    assert_eq!(world.manager.insert_page(space, at(BASE + 10), four), Ok(4));
    assert_eq!(world.manager.insert_frame(space, at(BASE + 5), device.add(7)), Ok(()));
    assert_eq!((single.refs(), four.refs(), world.manager.rss(space)), (2, 5, 5));
    assert_eq!(world.manager.leaves_by_walk(four), Ok(4));
    assert_eq!(world.manager.statistics().file_mapped.get(), 5, "as Linux has it: in the statistic of files");
    world.audit();
    assert_eq!((world.read(space, BASE), world.read(space, BASE + 11)), (100, 103));
    world.write(space, BASE + 5, 55);
    world.write(space, BASE + 8, 88);
    assert_eq!(machine.frame(device.add(7)).0[0].load(Relaxed), 55);
    assert_eq!(machine.frame(four.head()).0[0].load(Relaxed), 88);
    // A fork brings all of it along: no fault could.
    let child = world.manager.fork(space).unwrap();
    assert_eq!((single.refs(), four.refs(), world.manager.rss(child)), (3, 9, 5));
    world.audit();
    world.write(child, BASE + 8, 89);
    world.write(child, BASE + 5, 56);
    assert_eq!((world.read(space, BASE + 8), world.read(space, BASE + 5)), (89, 56));
    // Cut, joined, moved, dropped.
    world.manager.protect(space, at(BASE + 9), 2, R).unwrap();
    world.audit();
    world.manager.protect(space, at(BASE + 9), 2, RW).unwrap();
    let far = 2 * BASE + 512 - 10;
    world.manager.remap(space, at(BASE), 64, at(far), 64).unwrap();
    assert_eq!(world.manager.remap(space, at(far), 64, at(far), 65), Err(MapError::BadRange));
    world.audit();
    assert_eq!((world.read(space, far + 5), world.read(space, far + 8), world.read(space, far + 11)), (56, 89, 103));
    world.manager.advise(space, at(far + 4), 5, Advice::DontNeed).unwrap();
    assert_eq!(four.refs(), 8);
    // A dropped folio comes back by a fault, a dropped frame does not.
    assert_eq!(world.read(space, far + 8), 89);
    assert_eq!(world.access(space, far + 5, None), Err(FaultError::BeyondEnd));
    world.audit();
    assert_eq!(world.manager.try_to_unmap(four), Ok(()));
    assert_eq!(four.refs(), 1);
    world.audit();
    world.leave(child);
    assert_eq!(single.refs(), 2);
    world.end(&[driver]);
}

#[test]
fn a_store_to_a_private_region_copies_what_the_driver_inserted() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let device = world.device();
    let driver = world.manager.create_driver(512).unwrap();
    let folio = world.manager.driver_folio(driver, 0, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 600, RW, Map::PrivateMixed(driver, 0));
    assert_eq!(world.manager.insert_page(space, at(BASE + 9), folio), Ok(512));
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::TWO);
    world.manager.insert_frame(space, at(BASE + 550), device).unwrap();
    machine.frame(device).0[0].store(7, Relaxed);
    world.audit();
    for page in [BASE + 3, BASE + 550] {
        assert_eq!(world.write(space, page, 1).map(|fault| fault.kind), Some(FaultKind::Copy));
    }
    assert_eq!((folio.refs(), world.manager.rss(space)), (512, 513));
    let word = |pfn| machine.frame(pfn).0[0].load(Relaxed);
    assert_eq!((word(device), word(folio.head().add(3))), (7, 0));
    world.audit();
    let child = world.manager.fork(space).unwrap();
    assert_eq!((world.read(child, BASE + 3), world.read(child, BASE + 550), world.read(child, BASE + 4)), (1, 1, 0));
    world.write(child, BASE + 550, 2);
    assert_eq!(world.read(space, BASE + 550), 1);
    world.audit();
    world.end(&[driver]);
}

#[test]
fn the_wrong_kind_is_refused_and_changes_nothing() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let (manager, device) = (&world.manager, world.device());
    let driver = manager.create_driver(64).unwrap();
    let other = manager.create_driver(64).unwrap();
    let file = manager.create_object(ObjectKind::File, 0, 64, Order::BASE).unwrap();
    let folio = manager.driver_folio(driver, 4, Order::new(1)).unwrap();
    let foreign = manager.driver_folio(other, 4, Order::BASE).unwrap();
    // Folios: of a driver only, aligned, inside its object, where none is.
    for (id, index, order, error) in [
        (file, 0, 0, MapError::WrongKind),
        (driver, 63, 1, MapError::BadRange),
        (driver, 64, 0, MapError::BadRange),
        (driver, 0, 9, MapError::BadRange),
        (driver, 5, 0, MapError::Occupied),
        (driver, 4, 2, MapError::Occupied),
    ] {
        assert_eq!(manager.driver_folio(id, index, Order::new(order)).err(), Some(error), "{index}, order {order}");
    }
    let too_large = manager.create_object(ObjectKind::Shared, 0, (1 << 35) + 1, Order::BASE);
    assert_eq!(too_large, Err(MapError::BadRange));
    let space = world.anon(8);
    world.write(space, BASE, 1);
    let anon = manager.folio(world.leaf(space, BASE).unwrap().0).unwrap();
    let [mixed, tracked, window, filed] = [2, 3, 4, 5].map(|i| i * BASE);
    world.map(space, mixed, 64, RW, Map::Mixed(driver, 0));
    world.map(space, tracked, 64, RW, Map::Shared(driver, 0));
    world.map(space, window, 64, RW, Map::Device(device));
    world.map(space, filed, 64, RW, Map::Shared(file, 0));
    assert_eq!(manager.map(space, at(6 * BASE), 1, RW, Map::Mixed(file, 0)), Err(MapError::WrongKind));
    let (meminfo, rss) = (manager.meminfo(), manager.rss(space));
    for (page, folio, error) in [
        (window + 4, folio, MapError::WrongKind),
        (BASE + 4, folio, MapError::WrongKind),
        (filed + 4, folio, MapError::WrongKind),
        (mixed + 4, foreign, MapError::WrongKind),
        (mixed + 4, anon, MapError::WrongKind),
        (mixed + 3, folio, MapError::BadRange),
        (7 * BASE, folio, MapError::NotMapped),
    ] {
        assert_eq!(manager.insert_page(space, at(page), folio), Err(error), "folio at {page:#x}");
    }
    let root = manager.root(space);
    for (page, frame, error) in [
        (tracked + 4, device, MapError::WrongKind),
        (BASE + 4, device, MapError::WrongKind),
        (filed + 4, device, MapError::WrongKind),
        (mixed + 4, folio.head(), MapError::WrongKind),
        (mixed + 4, root, MapError::WrongKind),
        (window + 4, folio.head(), MapError::WrongKind),
        (window + 4, device.add(5), MapError::BadRange),
        (7 * BASE, device, MapError::NotMapped),
    ] {
        assert_eq!(manager.insert_frame(space, at(page), frame), Err(error), "frame at {page:#x}");
    }
    assert_eq!((manager.meminfo(), manager.rss(space)), (meminfo, rss));
    assert_eq!((folio.refs(), foreign.refs()), (1, 1));
    world.audit();
    // The right kinds, each once.
    assert_eq!(manager.insert_page(space, at(tracked + 5), folio), Ok(2));
    assert_eq!(manager.insert_page(space, at(mixed + 4), folio), Ok(2));
    assert_eq!(manager.insert_page(space, at(mixed + 5), folio), Err(MapError::Occupied));
    assert_eq!(manager.insert_frame(space, at(mixed + 5), device), Err(MapError::Occupied));
    assert_eq!(manager.insert_frame(space, at(window + 5), device.add(5)), Ok(()));
    assert_eq!(manager.insert_frame(space, at(window + 5), device.add(5)), Err(MapError::Occupied));
    world.audit();
    world.end(&[driver, other, file]);
}

#[test]
fn too_many_insertions_are_refused() {
    fn under<A: Accounting>() {
        let machine = machine_of(FRAMES);
        let world: World<'_, A> = World::with_scheme(&machine, huge(), FRAMES);
        let driver = world.manager.create_driver(512).unwrap();
        let folio = world.manager.driver_folio(driver, 0, Order::HUGE).unwrap();
        let space = world.space();
        for i in 1..3 {
            world.map(space, i * BASE, 512, RW, Map::Mixed(driver, 0));
        }
        world.manager.set_count_limit(if A::NAME == Total::NAME { 512 } else { 1 });
        assert!(world.manager.insert_page(space, at(BASE), folio).is_ok());
        let refused = world.manager.insert_page(space, at(2 * BASE), folio);
        assert_eq!(refused, Err(MapError::Refused(Refused::Overflow)));
        world.audit();
        world.end(&[driver]);
    }
    under::<Total>();
    under::<Tuples>();
    under::<Vmas>();
}

/// Leaves that are in the wrong class, which no call of the manager makes: the recount sees each.
#[test]
fn the_recount_knows_the_classes() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let (manager, device) = (&world.manager, world.device());
    let driver = manager.create_driver(4).unwrap();
    let folio = manager.driver_folio(driver, 0, Order::BASE).unwrap();
    let space = world.anon(1);
    let [private, window, mixed] = [2, 3, 4].map(|i| i * BASE);
    world.map(space, private, 4, RW, Map::PrivateDevice(device));
    world.map(space, window, 4, RW, Map::Device(device));
    world.map(space, mixed, 4, RW, Map::Mixed(driver, 0));
    manager.insert_page(space, at(mixed), folio).unwrap();
    manager.insert_frame(space, at(mixed + 1), device).unwrap();
    for page in [BASE, private + 1, window] {
        world.write(space, page, 1);
    }
    world.read(space, private);
    world.audit();
    // Bits of an entry: the software bit of untracked leaves, and the one of writable leaves.
    const UNTRACKED: u64 = 1 << 10;
    const WRITE: u64 = 1 << 1;
    let first_of = |page: u64, change: &dyn Fn(u64) -> u64| {
        let (place, _) = manager.page_table(space).lookup(manager, page).unwrap();
        let word = &machine.frame(place.table).0[place.level.index(page)];
        let before = word.load(Relaxed);
        word.store(change(before), Relaxed);
        let found = world.recount();
        word.store(before, Relaxed);
        world.audit();
        found.first.expect("a mismatch").0
    };
    let frame = |pfn: Pfn| move |entry: u64| entry & 0xfff0_0000_0000_0fff | pfn.raw() << 12;
    assert_eq!(first_of(BASE, &|entry| entry | UNTRACKED), Mismatch::Place, "untracked in a tracked region");
    assert_eq!(first_of(window, &|entry| entry & !UNTRACKED), Mismatch::NoFolio, "a device page as a folio's");
    assert_eq!(first_of(mixed + 1, &|entry| entry & !UNTRACKED), Mismatch::NoFolio, "likewise");
    assert_eq!(first_of(mixed, &|entry| entry | UNTRACKED), Mismatch::Class, "a folio's frame as a raw one");
    assert_eq!(first_of(mixed + 1, &frame(manager.root(space))), Mismatch::Class, "a table as a raw frame");
    assert_eq!(first_of(window, &frame(device.add(1))), Mismatch::Place, "another frame of the device");
    assert_eq!(first_of(private, &|entry| entry | WRITE), Mismatch::Exclusive, "stores that miss the copy");
    let shared = |entry: u64| frame(folio.head())(entry) & !UNTRACKED;
    assert_eq!(first_of(window, &shared), Mismatch::Class, "a driver's folio in a window");
    world.end(&[driver]);
}
