//! Partly mapped folios: found by the queue, split by migration, and the cases that the queue does not know.

use crate::world::{BASE, Everything, FRAMES, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::mapcount::Total;
use quire::space::{Advice, Policy, SplitReport};

#[test]
fn the_unmapped_part_of_a_folio_is_freed() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let space = world.anon(512);
        world.fill(space, BASE..BASE + 512, 1);
        world.manager.advise(space, at(BASE + 50), 412, Advice::DontNeed).unwrap();
        world.audit();
        assert_eq!(world.manager.deferred_len(), 1);
        let before = world.free();
        let report = world.manager.split_deferred(8);
        let expected = SplitReport { probed: 1, split: 1, moved: 100, freed: 412, ..SplitReport::default() };
        assert_eq!(report, expected);
        assert_eq!(world.manager.deferred_len(), 0);
        assert_eq!(world.free(), before + 412);
        let audit = world.audit();
        assert_eq!((audit.partial, audit.large_folios, audit.folios), (0, 0, 100));
        world.expect(space, BASE..BASE + 50, BASE, 1);
        world.expect(space, BASE + 462..BASE + 512, BASE + 462, 1);
        world.expect_zero(space, BASE + 50..BASE + 462);
        // Still exclusive: a store needs no copy.
        let copied = world.manager.statistics().copied.load(std::sync::atomic::Ordering::Relaxed);
        world.fill(space, BASE..BASE + 512, 2);
        world.expect(space, BASE..BASE + 512, BASE, 2);
        assert_eq!(world.manager.statistics().copied.load(std::sync::atomic::Ordering::Relaxed), copied);
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn what_two_owners_keep_of_a_folio_moves() {
    let machine = machine_of(FRAMES);
    let world: World<'_, Total> = World::with_scheme(&machine, huge_by_pages(), FRAMES);
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let child = world.manager.fork(parent).unwrap();
    world.manager.unmap(parent, at(BASE), 300).unwrap();
    assert_eq!(world.manager.deferred_len(), 0);
    world.manager.unmap(child, at(BASE + 212), 300).unwrap();
    // Pages 212..300 are mapped by nobody.
    assert_eq!(world.manager.deferred_len(), 1);
    let report = world.manager.split_deferred(1);
    assert_eq!((report.split, report.moved, report.freed), (1, 424, 88));
    world.expect(parent, BASE + 300..BASE + 512, BASE + 300, 1);
    world.expect(child, BASE..BASE + 212, BASE, 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn a_candidate_that_is_no_longer_partial_is_forgotten() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, Policy { max_leaf: Level::ONE, ..Policy::only(Order::new(4)) });
    let space = world.anon(16);
    world.fill(space, BASE..BASE + 16, 1);
    world.manager.advise(space, at(BASE), 1, Advice::DontNeed).unwrap();
    assert_eq!(world.manager.deferred_len(), 1);
    // All of it goes: the folio leaves the queue by itself.
    world.manager.advise(space, at(BASE), 16, Advice::DontNeed).unwrap();
    assert_eq!(world.manager.deferred_len(), 0);
    assert_eq!(world.manager.split_deferred(9), SplitReport::default());
    world.end(&[]);
}

#[test]
fn shared_pages_stay_shared_and_exclusive_ones_exclusive() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let child = world.manager.fork(parent).unwrap();
    let grandchild = world.manager.fork(child).unwrap();
    for space in [parent, child, grandchild] {
        world.manager.unmap(space, at(BASE + 100), 412).unwrap();
    }
    world.audit();
    // 300 leaves over 100 pages.
    assert_eq!(world.manager.deferred_len(), 1);
    let before = world.free();
    let report = world.manager.split_deferred(1);
    assert_eq!((report.split, report.moved, report.freed), (1, 100, 412));
    assert_eq!(world.free(), before + 412);
    let audit = world.audit();
    assert_eq!((audit.shared, audit.leaves), (100, 300));
    for space in [parent, child, grandchild] {
        world.expect(space, BASE..BASE + 100, BASE, 1);
    }
    world.fill(child, BASE..BASE + 100, 2);
    world.expect(parent, BASE..BASE + 100, BASE, 1);
    world.expect(grandchild, BASE..BASE + 100, BASE, 1);
    world.expect(child, BASE..BASE + 100, BASE, 2);
    world.audit();
    world.end(&[]);
}

#[test]
fn the_queue_does_not_know_what_two_unmap_of_a_shared_folio() {
    // S7b: both keep the lower half, T = P.
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let child = world.manager.fork(parent).unwrap();
    for space in [parent, child] {
        world.manager.unmap(space, at(BASE + 256), 256).unwrap();
    }
    assert_eq!(world.manager.deferred_len(), 0);
    assert_eq!(world.manager.split_deferred(9), SplitReport::default());
    let audit = world.audit();
    assert_eq!((audit.partial, audit.said_partial), (1, 0));
    world.end(&[]);
}

#[test]
fn the_queue_does_not_know_one_page_of_512_owners() {
    // S8b: T = P again, with one page mapped.
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let parent = world.anon(512);
    world.fill(parent, BASE..BASE + 512, 1);
    let mut spaces = vec![parent];
    for _ in 1..512 {
        let child = world.manager.fork(parent).unwrap();
        world.manager.unmap(child, at(BASE + 1), 511).unwrap();
        spaces.push(child);
    }
    world.manager.unmap(parent, at(BASE + 1), 511).unwrap();
    assert_eq!(world.manager.deferred_len(), 0);
    assert_eq!(world.manager.split_deferred(9), SplitReport::default());
    assert_eq!(world.audit().partial, 1);
    // One less, and it is found: one page moves, for 511 owners.
    world.leave(spaces.pop().unwrap());
    assert_eq!(world.manager.deferred_len(), 1);
    let report = world.manager.split_deferred(1);
    assert_eq!((report.split, report.moved, report.freed), (1, 1, 511));
    for &space in &spaces {
        world.expect(space, BASE..BASE + 1, BASE, 1);
    }
    assert_eq!(world.audit().leaves, 511);
    world.end(&[]);
}

#[test]
fn a_folio_in_two_tables_and_two_vmas_is_split() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge_by_pages());
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    world.manager.remap(space, at(BASE), 512, at(2 * BASE + 200), 512).unwrap();
    world.manager.protect(space, at(2 * BASE + 300), 100, crate::world::R).unwrap();
    world.audit();
    world.manager.advise(space, at(2 * BASE + 250), 10, Advice::DontNeed).unwrap();
    world.manager.advise(space, at(2 * BASE + 350), 10, Advice::DontNeed).unwrap();
    let report = world.manager.split_deferred(9);
    assert_eq!((report.split, report.moved, report.freed), (1, 492, 20));
    world.audit();
    world.expect(space, 2 * BASE + 200..2 * BASE + 250, BASE, 1);
    world.expect(space, 2 * BASE + 360..2 * BASE + 712, BASE + 160, 1);
    world.end(&[]);
}

#[test]
fn one_gib_leaves_are_split_on_the_way() {
    let frames = 3 << 18;
    let machine = machine_of(frames);
    let policy = Policy { orders: 1 | 1 << 18, max_leaf: Level::THREE, ..huge() };
    let world: World<'_, Total> = World::with_scheme(&machine, policy, frames);
    let space = world.anon(1 << 18);
    world.write(space, BASE, 7);
    world.write(space, BASE + (1 << 17), 8);
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::THREE);
    let child = world.manager.fork(space).unwrap();
    for space in [space, child] {
        world.manager.unmap(space, at(BASE + 3), (1 << 17) - 5).unwrap();
        world.manager.unmap(space, at(BASE + (1 << 17) + 5), (1 << 17) - 5).unwrap();
    }
    let before = world.free();
    let report = world.manager.split_deferred(1);
    assert_eq!((report.split, report.moved, report.freed), (1, 10, (1 << 18) - 10));
    assert_eq!(world.free(), before + (1 << 18) - 10);
    assert_eq!(world.read(child, BASE), 7);
    assert_eq!(world.read(space, BASE + (1 << 17)), 8);
    world.leave(space);
    world.leave(child);
    assert!(world.manager.trim());
}

#[test]
fn a_reference_or_want_of_frames_leaves_all_as_it_was() {
    let machine = machine_of(2048);
    let world: World<'_, Everything> = World::with_scheme(&machine, huge_by_pages(), 2048);
    let space = world.anon(512 + 2048);
    world.fill(space, BASE..BASE + 512, 1);
    world.manager.advise(space, at(BASE), 12, Advice::DontNeed).unwrap();
    let (pfn, _) = world.leaf(space, BASE + 100).unwrap();
    let folio = world.manager.folio(pfn).unwrap();
    folio.get(1);
    let postponed = SplitReport { probed: 1, postponed: 1, ..SplitReport::default() };
    assert_eq!(world.manager.split_deferred(5), postponed);
    assert!(!folio.put(1));
    world.audit();
    assert_eq!(world.manager.deferred_len(), 1);
    // Memory full: no frames for the copies.
    let mut page = BASE + 512;
    while world.access(space, page, Some(page)).is_ok() {
        page += 1;
    }
    let free = world.free();
    assert_eq!(world.manager.split_deferred(5), postponed);
    assert_eq!(world.free(), free);
    world.audit();
    assert_eq!(world.leaf(space, BASE + 100).unwrap().0, pfn);
    // A count that refuses: nothing moves either.
    world.manager.advise(space, at(BASE + 512), 2048, Advice::DontNeed).unwrap();
    world.manager.set_count_limit(0);
    assert_eq!(world.manager.split_deferred(1), postponed);
    world.audit();
    world.manager.set_count_limit(quire::mapcount::COUNT_LIMIT);
    let report = world.manager.split_deferred(5);
    assert_eq!((report.split, report.moved, report.freed), (1, 500, 12));
    world.expect(space, BASE + 12..BASE + 512, BASE + 12, 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn the_oldest_come_first_and_no_more_than_asked() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, Policy { max_leaf: Level::ONE, ..Policy::only(Order::new(3)) });
    let space = world.anon(64);
    world.fill(space, BASE..BASE + 64, 1);
    for folio in [3, 1, 6] {
        world.manager.advise(space, at(BASE + folio * 8 + 2), 3, Advice::DontNeed).unwrap();
    }
    assert_eq!(world.manager.deferred_len(), 3);
    assert_eq!(world.manager.split_deferred(1).split, 1);
    assert_eq!(world.folio_order(space, BASE + 24), Order::BASE);
    assert_eq!(world.folio_order(space, BASE + 8), Order::new(3));
    assert_eq!(world.manager.split_deferred(0), SplitReport::default());
    assert_eq!(world.manager.split_deferred(1).split, 1);
    assert_eq!(world.folio_order(space, BASE + 8), Order::BASE);
    assert_eq!(world.folio_order(space, BASE + 48), Order::new(3));
    // The last of a space that goes is taken out in the middle of the queue.
    world.end(&[]);
}
