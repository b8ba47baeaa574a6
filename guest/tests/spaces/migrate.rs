//! Folios that move to other frames, and what keeps them where they are.

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::format::Attrs;
use quire::mapcount::{Accounting, COUNT_LIMIT, Observe, Refused, Total, Tuples, Vmas};
use quire::space::{Access, Advice, FaultError, Map, MigrateFailed, ObjectKind, Policy, SpaceId, file_word};

fn policies() -> [Policy; 4] {
    [Policy::up_to(Order::BASE), Policy::up_to(Order::new(4)), huge(), huge_by_pages()]
}

/// Migrates the folio at `page`; where that page is then.
fn migrate<A: Accounting>(world: &World<'_, A>, space: SpaceId, page: u64) -> Result<Pfn, MigrateFailed> {
    let pin = world.manager.pin(space, at(page), Access::Read).unwrap();
    let result = world.manager.migrate(pin.folio());
    if let Ok(head) = result {
        assert_eq!(pin.folio().refs(), 1, "nobody else has the old one");
        let new = world.manager.folio(head).unwrap();
        assert_eq!(
            (new.order(), world.manager.mapping(new)),
            (pin.folio().order(), world.manager.mapping(pin.folio()))
        );
    }
    world.manager.unpin(pin, false);
    result
}

fn attrs(world: &World<'_>, space: SpaceId, page: u64) -> Attrs {
    world.manager.page_table(space).lookup(&world.manager, page).expect("a leaf").1.attrs
}

#[test]
fn an_anonymous_folio_of_several_owners_vmas_and_tables_moves() {
    for policy in policies() {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let parent = world.anon(512);
        world.fill(parent, BASE..BASE + 512, 1);
        let child = world.manager.fork(parent).unwrap();
        let third = world.manager.fork(child).unwrap();
        world.manager.remap(third, at(BASE), 512, at(2 * BASE + 200), 512).unwrap();
        world.manager.protect(child, at(BASE + 60), 30, R).unwrap();
        world.manager.unmap(parent, at(BASE + 3), 2).unwrap();
        world.write(parent, BASE + 7, 5);
        world.audit();
        // The new folio's record may be the first of another frame, which stays.
        let free_but_for_records = || world.free() + world.manager.metadata().folio_bytes / 4096;
        let (before, free) = (world.leaf(child, BASE + 8).unwrap(), free_but_for_records());
        let kept = attrs(&world, child, BASE + 8);
        let rss = world.manager.rss(third);
        migrate(&world, child, BASE + 8).unwrap();
        let after = world.leaf(child, BASE + 8).unwrap();
        assert!(after.0 != before.0 && after.1 == before.1);
        assert_eq!(attrs(&world, child, BASE + 8), kept);
        assert_eq!(world.leaf(third, 2 * BASE + 208).unwrap().0, after.0);
        assert_eq!(world.leaf(parent, BASE + 8).unwrap().0, after.0);
        assert_eq!((free_but_for_records(), world.manager.rss(third)), (free, rss));
        world.audit();
        world.expect(third, 2 * BASE + 200..2 * BASE + 712, BASE, 1);
        world.expect(child, BASE..BASE + 512, BASE, 1);
        world.expect(parent, BASE + 8..BASE + 512, BASE + 8, 1);
        assert_eq!(world.read(parent, BASE + 7), 5);
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn an_exclusive_page_stays_exclusive_and_a_candidate_a_candidate() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let space = world.anon(512);
        world.fill(space, BASE..BASE + 512, 1);
        world.manager.advise(space, at(BASE + 100), 12, Advice::DontNeed).unwrap();
        assert_eq!(world.manager.deferred_len(), 1);
        migrate(&world, space, BASE).unwrap();
        assert_eq!(world.manager.deferred_len(), 1);
        let pfn = world.leaf(space, BASE).unwrap().0;
        assert!(world.write(space, BASE, 1 << 40 | BASE).is_none(), "no fault");
        assert_eq!(world.leaf(space, BASE).unwrap().0, pfn);
        world.audit();
        assert_eq!(world.manager.split_deferred(1).split, 1);
        world.expect(space, BASE..BASE + 100, BASE, 1);
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn a_file_folio_moves_with_its_place_in_the_page_cache() {
    for policy in policies() {
        for order in [0, 4, 9] {
            let machine = machine_of(FRAMES);
            let world = World::new(&machine, policy);
            let file = world.manager.create_object(ObjectKind::File, 6, 1024, Order::new(order)).unwrap();
            let (one, two) = (world.space(), world.space());
            world.map(one, BASE, 1024, RW, Map::Shared(file, 0));
            world.map(two, BASE + 77, 900, RW, Map::Private(file, 100));
            for page in 100..612 {
                assert_eq!(world.read(one, BASE + page), file_word(6, page));
                world.read(two, BASE + 77 + page - 100);
            }
            world.write(one, BASE + 202, 7);
            world.write(two, BASE + 77 + 101, 8);
            world.audit();
            let before = world.leaf(one, BASE + 202).unwrap();
            migrate(&world, two, BASE + 77 + 102).unwrap();
            let after = world.leaf(one, BASE + 202).unwrap();
            assert!(after.0 != before.0 && after.1 == before.1);
            world.audit();
            let folio = |space, page| world.manager.folio(world.leaf(space, page).unwrap().0).unwrap();
            assert_eq!(folio(two, BASE + 77 + 102), folio(one, BASE + 202));
            assert_eq!((world.read(one, BASE + 202), world.read(two, BASE + 77 + 101)), (7, 8));
            // What is found through the cache is the same page.
            world.manager.unmap(one, at(BASE), 1024).unwrap();
            world.map(one, 2 * BASE, 1024, R, Map::Shared(file, 0));
            assert_eq!(world.read(one, 2 * BASE + 202), 7);
            assert_eq!(world.read(one, 2 * BASE + 203), file_word(6, 203));
            assert_eq!(world.leaf(one, 2 * BASE + 202).unwrap().0, after.0);
            world.audit();
            world.end(&[file]);
        }
    }
}

#[test]
fn a_cached_folio_that_nobody_maps_moves_and_an_unused_one_does_not() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 1, 512, Order::HUGE).unwrap();
    let space = world.anon(1);
    world.map(space, 2 * BASE, 512, RW, Map::Shared(file, 0));
    world.write(space, 2 * BASE + 1, 9);
    world.write(space, BASE, 3);
    let cached = world.manager.pin(space, at(2 * BASE), Access::Read).unwrap();
    let anon = world.manager.pin(space, at(BASE), Access::Write).unwrap();
    world.manager.unmap(space, at(2 * BASE), 512).unwrap();
    world.manager.unmap(space, at(BASE), 1).unwrap();
    let head = world.manager.migrate(cached.folio()).unwrap();
    assert_eq!(world.manager.migrate(cached.folio()), Err(MigrateFailed::Unused), "it has left the cache");
    assert_eq!(world.manager.migrate(anon.folio()), Err(MigrateFailed::Unused));
    world.manager.unpin(cached, false);
    world.manager.unpin(anon, true);
    world.map(space, 2 * BASE, 512, RW, Map::Shared(file, 0));
    assert_eq!(world.read(space, 2 * BASE + 1), 9);
    assert_eq!(world.leaf(space, 2 * BASE).unwrap().0, head);
    world.audit();
    world.end(&[file]);
}

#[test]
fn a_folio_that_outlives_its_file_is_not_looked_for_in_another() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    let open = |number| {
        let file = world.manager.create_object(ObjectKind::File, number, 16, Order::new(4)).unwrap();
        world.map(space, BASE, 16, R, Map::Shared(file, 0));
        assert_eq!(world.read(space, BASE), file_word(number, 0));
        file
    };
    let file = open(1);
    let pin = world.manager.pin(space, at(BASE), Access::Read).unwrap();
    world.manager.unmap(space, at(BASE), 16).unwrap();
    world.manager.destroy_object(file);
    let other = open(2);
    assert_eq!(other, file, "numbers are used again");
    assert_eq!(world.manager.migrate(pin.folio()), Err(MigrateFailed::Unused));
    world.manager.unpin(pin, false);
    assert_eq!(world.read(space, BASE + 1), file_word(2, 1));
    world.audit();
    world.end(&[other]);
}

#[test]
fn a_pin_keeps_a_folio_where_it_is() {
    for policy in policies() {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let file = world.manager.create_object(ObjectKind::File, 1, 512, Order::new(4)).unwrap();
        let space = world.anon(512);
        world.map(space, 2 * BASE, 512, RW, Map::Shared(file, 0));
        world.fill(space, BASE..BASE + 512, 1);
        world.read(space, 2 * BASE + 5);
        for page in [BASE + 5, 2 * BASE + 5] {
            let leaf = world.leaf(space, page).unwrap();
            let pin = world.manager.pin(space, at(page), Access::Write).unwrap();
            let head = pin.folio().head();
            assert_eq!(pin.frame().raw(), head.raw() + 5 % pin.folio().pages(), "the frame of that page");
            assert_eq!(migrate(&world, space, page), Err(MigrateFailed::Referenced));
            assert_eq!(world.leaf(space, page), Some(leaf));
            assert_eq!(pin.folio().head(), head);
            world.manager.unpin(pin, true);
            world.audit();
            assert!(migrate(&world, space, page).is_ok());
            world.audit();
        }
        world.expect(space, BASE..BASE + 512, BASE, 1);
        world.end(&[file]);
    }
}

#[test]
fn a_count_that_refuses_and_want_of_frames_leave_all_as_it_was() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(2048);
        let world: World<'_> = World::with_scheme(&machine, policy, 2048);
        let space = world.anon(512 + 2048);
        world.fill(space, BASE..BASE + 512, 1);
        let child = world.manager.fork(space).unwrap();
        let third = world.manager.fork(child).unwrap();
        // Two vmas and two tables in one owner, a hole in another.
        world.manager.remap(third, at(BASE), 512, at(2 * BASE + 200), 512).unwrap();
        world.manager.protect(third, at(2 * BASE + 300), 20, R).unwrap();
        world.manager.unmap(child, at(BASE + 20), 30).unwrap();
        world.audit();
        let leaf = world.leaf(space, BASE + 9);
        // Refused at every place where it can be.
        for limit in [0, 1, 2, 19, 20, 512, 513, 600, 900, 1012, 1200, 1500] {
            world.manager.set_count_limit(limit);
            let result = migrate(&world, space, BASE + 9);
            assert_eq!(result, Err(MigrateFailed::Refused(Refused::Overflow)), "{limit}");
            assert_eq!(world.leaf(space, BASE + 9), leaf);
            world.audit();
        }
        world.manager.set_count_limit(COUNT_LIMIT);
        let mut page = BASE + 512;
        while world.access(space, page, Some(page)).is_ok() {
            page += 1;
        }
        assert_eq!(migrate(&world, space, BASE + 9), Err(MigrateFailed::OutOfFrames));
        world.audit();
        world.manager.advise(space, at(BASE + 512), 2048, Advice::DontNeed).unwrap();
        migrate(&world, space, BASE + 9).unwrap();
        world.audit();
        world.expect(space, BASE..BASE + 512, BASE, 1);
        world.expect(third, 2 * BASE + 200..2 * BASE + 712, BASE, 1);
        world.end(&[]);
    }
}

/// Refused in the middle by a scheme that looks beside its batches: its statistics show whether all of the new folio was taken off again.
fn refused_in_the_middle<A: Accounting>() {
    let machine = machine_of(FRAMES);
    let world: World<'_, A> = World::with_scheme(&machine, huge_by_pages(), FRAMES);
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    let child = world.manager.fork(space).unwrap();
    world.manager.remap(child, at(BASE), 512, at(2 * BASE + 200), 512).unwrap();
    world.manager.protect(child, at(2 * BASE + 300), 20, R).unwrap();
    // Two batches of one vma and table.
    world.write(child, 2 * BASE + 250, 9);
    world.manager.unmap(space, at(BASE + 40), 4).unwrap();
    world.audit();
    for limit in 0..4 {
        world.manager.set_count_limit(limit);
        assert_eq!(migrate(&world, space, BASE), Err(MigrateFailed::Refused(Refused::Overflow)), "{limit}");
        world.audit();
    }
    world.manager.set_count_limit(COUNT_LIMIT);
    migrate(&world, space, BASE).unwrap();
    world.audit();
    assert_eq!(world.read(child, 2 * BASE + 250), 9);
    world.expect(child, 2 * BASE + 251..2 * BASE + 712, BASE + 51, 1);
    world.end(&[]);
}

#[test]
fn what_was_counted_before_a_refusal_is_taken_off_again() {
    refused_in_the_middle::<Total>();
    refused_in_the_middle::<Tuples>();
    refused_in_the_middle::<Vmas>();
}

#[test]
fn folios_above_order_9_move() {
    let frames = 12 * 1024;
    let machine = machine_of(frames);
    let policy = Policy { orders: 1 | 1 << 11, max_leaf: Level::TWO, ..huge() };
    // `per-page` and `mm-owner` refuse 2 MiB leaves of larger folios.
    let world: World<'_, Observe<Total, Observe<Tuples, Vmas>>> = World::with_scheme(&machine, policy, frames);
    let space = world.anon(2048);
    world.fill(space, BASE..BASE + 2048, 1);
    assert_eq!(world.folio_order(space, BASE), Order::new(11));
    let child = world.manager.fork(space).unwrap();
    world.manager.unmap(child, at(BASE + 700), 600).unwrap();
    migrate(&world, child, BASE).unwrap();
    world.audit();
    world.expect(space, BASE..BASE + 2048, BASE, 1);
    world.expect(child, BASE + 1300..BASE + 2048, BASE + 1300, 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn pins_fault_pages_in_and_ask_for_rights() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(512);
    world.map(space, 2 * BASE, 1, R, Map::Anon);
    world.map(space, 3 * BASE, 1, RW, Map::Device(world.device()));
    let refused = |page, access, why| {
        assert_eq!(world.manager.pin(space, at(page), access).map(|pin| pin.frame()), Err(why));
    };
    refused(2 * BASE, Access::Write, FaultError::Forbidden);
    refused(3 * BASE, Access::Read, FaultError::Forbidden);
    refused(4 * BASE, Access::Read, FaultError::NotMapped);
    let pin = world.manager.pin(space, at(BASE + 3), Access::Write).unwrap();
    assert_eq!(world.leaf(space, BASE).unwrap().0.add(3), pin.frame());
    // After a fork the store gets a copy: the pin keeps the old page alive, and no more.
    let child = world.manager.fork(space).unwrap();
    world.write(space, BASE + 3, 1);
    assert_ne!(world.leaf(space, BASE + 3).unwrap().0, pin.frame());
    world.leave(child);
    world.manager.unmap(space, at(BASE), 512).unwrap();
    assert_eq!(pin.folio().refs(), 1);
    world.manager.unpin(pin, true);
    world.audit();
    world.end(&[]);
}
