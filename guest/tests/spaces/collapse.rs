//! Pages that are copied together, so that one leaf maps them.

use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, machine_of};
use quire::addr::{Level, Order};
use quire::mapcount::{Accounting, COUNT_LIMIT, Everything, None as NoCounts, Refused, Tuples};
use quire::space::{Access, Advice, CollapseRefused, Map, ObjectKind, Policy};

fn by_order(order: u8) -> Policy {
    Policy::only(Order::new(order))
}

fn gather<A: Accounting>() {
    for order in [0, 1, 4, 8] {
        let machine = machine_of(FRAMES);
        let world: World<'_, A> = World::with_scheme(&machine, by_order(order), FRAMES);
        let space = world.anon(3 * 512);
        world.fill(space, BASE..BASE + 3 * 512, 1);
        let (free, rss) = (world.free(), world.manager.rss(space));
        assert_eq!(world.manager.collapse_by_copy(space, at(BASE + 700), 0), Ok(512));
        assert_eq!(world.leaf(space, BASE + 512).unwrap().1, Level::TWO);
        assert_eq!(world.folio_order(space, BASE + 512), Order::HUGE);
        assert_eq!(world.manager.rss(space), rss);
        assert!(world.free() >= free, "the old pages are free, and the table");
        world.audit();
        world.expect(space, BASE..BASE + 3 * 512, BASE, 1);
        // Ours alone still: a store needs no copy.
        let copied = world.manager.statistics().copied.load(Relaxed);
        world.fill(space, BASE..BASE + 3 * 512, 2);
        assert_eq!(world.manager.statistics().copied.load(Relaxed), copied);
        let again = world.manager.collapse_by_copy(space, at(BASE + 700), 0);
        assert_eq!(again, Err(CollapseRefused::Large));
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn pages_of_smaller_folios_are_gathered() {
    gather::<Everything>();
    gather::<NoCounts>();
    gather::<Tuples>();
}

#[test]
fn absent_pages_are_zero_up_to_a_limit() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, by_order(4));
    let space = world.anon(512);
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 512), Err(CollapseRefused::Absent(512)));
    world.fill(space, BASE..BASE + 512, 1);
    world.manager.advise(space, at(BASE + 5), 30, Advice::DontNeed).unwrap();
    world.manager.protect(space, at(BASE), 512, R).unwrap();
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 29), Err(CollapseRefused::Absent(30)));
    world.audit();
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 30), Ok(482));
    assert_eq!(world.manager.rss(space), 512);
    assert_eq!(world.manager.deferred_len(), 0);
    world.audit();
    world.expect_zero(space, BASE + 5..BASE + 35);
    world.expect(space, BASE + 35..BASE + 512, BASE + 35, 1);
    assert!(world.access(space, BASE, Some(1)).is_err(), "the rights are the vma's");
    world.end(&[]);
}

#[test]
fn shared_pages_stay_and_come_when_the_other_owner_is_gone() {
    for order in [0, 4] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, by_order(order));
        let space = world.anon(512);
        world.fill(space, BASE..BASE + 512, 1);
        let child = world.manager.fork(space).unwrap();
        let leaf = world.leaf(space, BASE + 9);
        for owner in [space, child] {
            let result = world.manager.collapse_by_copy(owner, at(BASE), 0);
            assert_eq!(result, Err(CollapseRefused::Shared));
        }
        // One shared page is enough.
        world.fill(child, BASE..BASE + 511, 2);
        assert_eq!(world.manager.collapse_by_copy(child, at(BASE), 0), Err(CollapseRefused::Shared));
        assert_eq!(world.leaf(space, BASE + 9), leaf);
        world.fill(child, BASE + 511..BASE + 512, 2);
        assert_eq!(world.manager.collapse_by_copy(child, at(BASE), 0), Ok(512));
        world.audit();
        world.expect(space, BASE..BASE + 512, BASE, 1);
        world.expect(child, BASE..BASE + 512, BASE, 2);
        // No store has brought the exclusive bits back, but the counts know that nobody else is there.
        assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 0), Ok(512));
        world.audit();
        world.expect(space, BASE..BASE + 512, BASE, 1);
        world.end(&[]);
    }
}

#[test]
fn what_is_pinned_refused_or_out_of_frames_stays() {
    let machine = machine_of(4096);
    let world: World<'_> = World::with_scheme(&machine, by_order(4), 4096);
    let space = world.anon(512 + 4096);
    world.fill(space, BASE..BASE + 512, 1);
    let leaves: Vec<_> = (BASE..BASE + 512).map(|page| world.leaf(space, page)).collect();
    let unchanged = || {
        assert!((BASE..BASE + 512).map(|page| world.leaf(space, page)).eq(leaves.iter().copied()));
        world.audit();
    };
    let pin = world.manager.pin(space, at(BASE + 300), Access::Write).unwrap();
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 0), Err(CollapseRefused::Referenced));
    world.manager.unpin(pin, true);
    unchanged();
    world.manager.set_count_limit(511);
    let refused = Err(CollapseRefused::Refused(Refused::Overflow));
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 0), refused);
    world.manager.set_count_limit(COUNT_LIMIT);
    unchanged();
    let mut page = BASE + 512;
    while world.access(space, page, Some(page)).is_ok() {
        page += 1;
    }
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 0), Err(CollapseRefused::OutOfFrames));
    unchanged();
    world.manager.advise(space, at(BASE + 512), 4096, Advice::DontNeed).unwrap();
    assert_eq!(world.manager.collapse_by_copy(space, at(BASE), 0), Ok(512));
    world.expect(space, BASE..BASE + 512, BASE, 1);
    world.end(&[]);
}

#[test]
fn a_folio_that_reaches_beyond_the_block_is_left_in_part() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    // One folio of order 9 across two blocks.
    world.manager.remap(space, at(BASE), 512, at(2 * BASE + 200), 512).unwrap();
    world.map(space, 2 * BASE, 200, RW, Map::Anon);
    world.map(space, 2 * BASE + 712, 312, RW, Map::Anon);
    assert_eq!(world.manager.collapse_by_copy(space, at(2 * BASE), 512), Err(CollapseRefused::NotAnon), "two vmas");
    world.manager.unmap(space, at(2 * BASE + 712), 312).unwrap();
    world.manager.remap(space, at(2 * BASE + 200), 512, at(2 * BASE + 200), 824).unwrap();
    assert_eq!(world.manager.collapse_by_copy(space, at(2 * BASE + 600), 400), Ok(200));
    assert_eq!(world.leaf(space, 2 * BASE + 512).unwrap().1, Level::TWO);
    assert_eq!(world.manager.deferred_len(), 1, "the old folio is mapped in part");
    world.audit();
    world.expect(space, 2 * BASE + 200..2 * BASE + 712, BASE, 1);
    assert_eq!(world.manager.split_deferred(1).split, 1);
    world.audit();
    world.expect(space, 2 * BASE + 200..2 * BASE + 712, BASE, 1);
    world.expect_zero(space, 2 * BASE + 712..2 * BASE + 1024);
    world.end(&[]);
}

#[test]
fn only_whole_blocks_of_anonymous_memory_without_advice_against_it() {
    let machine = machine_of(FRAMES);
    let mut world = World::new(&machine, by_order(0));
    let file = world.manager.create_object(ObjectKind::File, 1, 512, Order::BASE).unwrap();
    let space = world.anon(511);
    world.map(space, 2 * BASE, 512, RW, Map::Private(file, 0));
    world.map(space, 3 * BASE, 512, RW, Map::Device(world.device()));
    world.map(space, 4 * BASE, 512, RW, Map::Anon);
    for page in [BASE, 2 * BASE, 3 * BASE, 5 * BASE] {
        assert_eq!(world.manager.collapse_by_copy(space, at(page), 512), Err(CollapseRefused::NotAnon));
    }
    world.fill(space, 4 * BASE..4 * BASE + 512, 1);
    world.manager.advise(space, at(4 * BASE), 512, Advice::NoHugePage).unwrap();
    assert_eq!(world.manager.collapse_by_copy(space, at(4 * BASE), 512), Err(CollapseRefused::NoHuge));
    world.manager.advise(space, at(4 * BASE), 512, Advice::HugePage).unwrap();
    world.manager.set_policy(Policy { max_leaf: Level::ONE, ..by_order(0) });
    assert_eq!(world.manager.collapse_by_copy(space, at(4 * BASE), 512), Err(CollapseRefused::NoHuge));
    world.manager.set_policy(by_order(0));
    assert_eq!(world.manager.collapse_by_copy(space, at(4 * BASE), 512), Ok(512));
    world.audit();
    world.expect(space, 4 * BASE..4 * BASE + 512, 4 * BASE, 1);
    world.end(&[file]);
}
