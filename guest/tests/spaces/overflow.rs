//! A folio has as many mappings as it may: more are refused, and nothing changes; removals and splits always work.

use crate::world::{BASE, Everything, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::folio::{Folio, REF_LIMIT};
use quire::mapcount::{
    self, Accounting, Answer, Batch, COUNT_LIMIT, Class, MmOwner, Neighbours, PerPage, Refused, Target, Total, Tuples,
    Vmas, ZeroOneTwoMany,
};
use quire::model::Machine;
use quire::space::{Advice, FaultError, Map, MapError, ObjectId, ObjectKind, Policy};

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

/// Lets `mappings` mappings of an order-9 folio through, and no more: by the scheme's own limit where it has one, by that of the references elsewhere.
/// `others` are references that are no leaf's.
fn limit<A: Accounting>(world: &World<'_, A>, mappings: u64, policy: Policy, others: u64) {
    let leaves = if policy.max_leaf == Level::ONE { 512 } else { 1 };
    match A::NAME {
        "none" | "zero-one-two-many" => world.manager.set_ref_limit(mappings * leaves + others),
        "tuples" | "vmas" => world.manager.set_count_limit(mappings),
        _ => world.manager.set_count_limit(512 * mappings),
    }
}

/// At the limit of every scheme, and of the references: forks, faults and insertions are refused and leave nothing. Splits, moves, cuts, joins, collapses and removals
/// go through, with all contents.
#[test]
fn only_new_mappings_are_refused() {
    fn under<A: Accounting>() {
        let overflow = Refused::Overflow;
        for policy in [huge(), huge_by_pages()] {
            let machine = machine_of(FRAMES);
            let world: World<'_, A> = World::with_scheme(&machine, policy, FRAMES);
            let manager = &world.manager;
            let space = world.anon(512);
            world.fill(space, BASE..BASE + 512, 1);
            limit(&world, 1, policy, 0);
            let free = world.free();
            assert_eq!(manager.fork(space), Err(MapError::Refused(overflow)), "{}", A::NAME);
            assert_eq!(world.free(), free);
            world.audit();
            // To where a large leaf has to be split and stands in two tables.
            manager.remap(space, at(BASE), 512, at(3 * BASE + 16), 512).unwrap();
            manager.remap(space, at(3 * BASE + 16), 512, at(BASE), 512).unwrap();
            world.audit();
            manager.protect(space, at(BASE + 100), 200, R).unwrap();
            world.audit();
            manager.protect(space, at(BASE + 100), 200, RW).unwrap();
            world.expect(space, BASE..BASE + 512, BASE, 1);
            world.fill(space, BASE..BASE + 512, 1);
            assert_eq!(manager.collapse(space, at(BASE)), policy == huge());
            world.audit();
            manager.advise(space, at(BASE + 7), 3, Advice::DontNeed).unwrap();
            manager.unmap(space, at(BASE + 300), 12).unwrap();
            world.audit();
            world.expect(space, BASE + 10..BASE + 300, BASE + 10, 1);
            world.leave(space);

            let file = manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).unwrap();
            let [one, two] = [(); 2].map(|()| world.space());
            for space in [one, two] {
                world.map(space, BASE, 512, RW, Map::Shared(file, 0));
            }
            // The references of the cache and of the fault itself.
            limit(&world, 1, policy, 2);
            world.write(one, BASE + 5, 5);
            assert_eq!(world.access(two, BASE + 5, None), Err(FaultError::Refused(overflow)), "{}", A::NAME);
            let folio = manager.folio(world.leaf(one, BASE).unwrap().0).unwrap();
            folio.get(1);
            assert_eq!(manager.insert_page(two, at(BASE), folio), Err(MapError::Refused(overflow)));
            let _ = folio.put(1);
            assert_eq!((manager.rss(one), manager.rss(two)), (512, 0));
            world.audit();
            manager.unmap(one, at(BASE), 512).unwrap();
            assert_eq!(world.read(two, BASE + 5), 5);
            world.audit();
            world.end(&[file]);
        }
    }
    under::<mapcount::None>();
    under::<Total>();
    under::<PerPage>();
    under::<Tuples>();
    under::<MmOwner>();
    under::<Vmas>();
    under::<ZeroOneTwoMany>();
    under::<Everything>();
}

/// A folio whose leaves would have more references than it may is not made, whatever the scheme: a smaller one is.
#[test]
fn a_first_touch_stays_within_the_references() {
    let machine = machine_of(FRAMES);
    let world: World<'_, mapcount::None> = World::with_scheme(&machine, huge_by_pages(), FRAMES);
    let space = world.anon(512);
    world.manager.set_ref_limit(20);
    world.write(space, BASE, 1);
    assert_eq!(world.folio_order(space, BASE), Order::new(4));
    assert_eq!(world.manager.fork(space), Err(MapError::Refused(Refused::Overflow)));
    world.audit();
    world.end(&[]);
}

/// Mappings of an order-9 folio by pages that make 2^31 references, as the mail on the topic of LSF/MM 2024 counts them.
const MAPPINGS: u64 = 1 << 22;

/// Mapping number `i` of the folio, by pages or by one leaf of 2 MiB: regions and tables of their own, in processes of 65,530 regions.
fn mapping(i: u64, leaf: Order) -> Batch {
    let (region, owner) = (i as u32 + 1, (i / 65_530) as u32 + 1);
    Batch { class: Class::Process, first: 0, pages: 512, leaf, region, table: Pfn::new((1 << 30) + i), owner }
}

/// Maps until the scheme refuses, at most `most` times; how often it did not.
fn map_until_refused<A: Accounting>(target: &Target<'_, &Machine>, leaf: Order, most: u64) -> u64 {
    (0..most).find(|&i| A::add(target, &mapping(i, leaf), Neighbours::default()).is_err()).unwrap_or(most)
}

fn unmap<A: Accounting>(target: &Target<'_, &Machine>, leaf: Order, mappings: u64) {
    for i in 0..mappings {
        A::sub(target, &mapping(i, leaf), Neighbours::default());
    }
}

/// A world with an order-9 folio of a file that nobody maps yet, but `f` through the door of the count layer.
fn with_folio<A: Accounting>(policy: Policy, f: impl FnOnce(&World<'_, A>, ObjectId, Folio<'_>)) {
    let machine = machine_of(FRAMES);
    let world: World<'_, A> = World::with_scheme(&machine, policy, FRAMES);
    let file = world.manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 512, RW, Map::Shared(file, 0));
    world.write(space, BASE + 7, 7);
    let folio = world.manager.folio(world.leaf(space, BASE).unwrap().0).unwrap();
    world.leave(space);
    f(&world, file, folio);
    world.end(&[file]);
}

/// Each mapping by pages takes 512 references: 2^22 of them are 2^31. Wilcox, on the topic of LSF/MM 2024, asks what happens then: nobody gets there. 2^22
/// mappings through the door of every scheme, which says at which it refuses; with the limit at 2^31, it counts them all and not one more, and is back at nothing when
/// they are gone.
#[test]
fn two_to_the_22_mappings() {
    fn through_the_door<A: Accounting>(leaf: Order, limit: u64, expected: u64) {
        with_folio::<A>(huge(), |world, _, folio| {
            let target = Target::new(world.manager.frames(), folio, limit);
            let mappings = map_until_refused::<A>(&target, leaf, MAPPINGS + 1);
            assert_eq!(mappings, expected, "{} by leaves of order {leaf}, limit {limit:#x}", A::NAME);
            let leaves = mappings * (512 >> leaf.get());
            if let Answer::Exact(said) = A::leaves(&target) {
                assert_eq!(said, leaves, "{}", A::NAME);
            }
            if let Some(average) = A::page_count(&target, 511).value() {
                assert_eq!(average, mappings, "{}", A::NAME);
            }
            assert_ne!(A::maybe_shared(&target, 1).value(), Some(false));
            unmap::<A>(&target, leaf, mappings);
            if let Answer::Exact(mapped) = A::mapped(&target) {
                assert!(!mapped, "{}", A::NAME);
            }
        });
    }
    const PAGES: Order = Order::BASE;
    const HUGE: Order = Order::HUGE;
    let never = MAPPINGS + 1;
    for leaf in [PAGES, HUGE] {
        through_the_door::<Total>(leaf, COUNT_LIMIT, MAPPINGS / 2);
        through_the_door::<Total>(leaf, 1 << 31, MAPPINGS);
        through_the_door::<MmOwner>(leaf, COUNT_LIMIT, MAPPINGS / 2);
        through_the_door::<MmOwner>(leaf, 1 << 31, MAPPINGS);
        // One for each mapping: far from their limit, which lowered they keep to.
        through_the_door::<Tuples>(leaf, COUNT_LIMIT, never);
        through_the_door::<Tuples>(leaf, MAPPINGS / 8, MAPPINGS / 8);
        through_the_door::<Vmas>(leaf, COUNT_LIMIT, never);
        through_the_door::<Vmas>(leaf, MAPPINGS / 8, MAPPINGS / 8);
        through_the_door::<mapcount::None>(leaf, COUNT_LIMIT, never);
        through_the_door::<ZeroOneTwoMany>(leaf, COUNT_LIMIT, never);
    }
    through_the_door::<PerPage>(HUGE, COUNT_LIMIT, MAPPINGS / 2);
    through_the_door::<PerPage>(HUGE, 1 << 31, MAPPINGS);
    // 512 counts for each mapping by pages: a part of them.
    through_the_door::<PerPage>(PAGES, COUNT_LIMIT >> 9, MAPPINGS >> 10);
}

/// The last of 2^22 mappings for real: the folio has been mapped so often through the door and by its references that there is room for three more, and three
/// processes map it, by 512 entries each. The fourth is refused, by the count or by the references, as the scheme has it.
#[test]
fn the_last_of_two_to_the_22_mappings() {
    fn under<A: Accounting>(by_references: bool) {
        with_folio::<A>(huge_by_pages(), |world, file, folio| {
            let spaces = [(); 4].map(|()| {
                let space = world.space();
                world.map(space, BASE, 512, RW, Map::Shared(file, 0));
                space
            });
            // Mapped first, and at the end, so that the statistics of the manager do not miss what the door makes of them.
            world.read(spaces[0], BASE);
            let target = world.manager.counts(folio);
            // The references of the cache and of the fault take one mapping's room.
            let before = if by_references { MAPPINGS - 4 } else { MAPPINGS / 2 - 3 };
            let counted = if by_references { 0 } else { before };
            assert_eq!(map_until_refused::<A>(&target, Order::BASE, counted), counted);
            folio.get((before * 512) as u32);
            for space in &spaces[..3] {
                assert_eq!(world.read(*space, BASE + 7), 7);
            }
            let refused = world.access(spaces[3], BASE + 7, None);
            assert_eq!(refused, Err(FaultError::Refused(Refused::Overflow)), "{}", A::NAME);
            assert_eq!(folio.refs(), 1 + (before + 3) * 512);
            assert!(folio.refs() <= REF_LIMIT);
            // One goes, one comes.
            world.manager.unmap(spaces[1], at(BASE), 512).unwrap();
            assert_eq!(world.read(spaces[3], BASE + 7), 7);
            unmap::<A>(&target, Order::BASE, counted);
            let last = folio.put((before * 512) as u32);
            assert!(!last);
            world.manager.repair(folio);
            world.audit();
        });
    }
    under::<Total>(false);
    under::<MmOwner>(false);
    under::<Tuples>(true);
    under::<Vmas>(true);
    under::<mapcount::None>(true);
    under::<ZeroOneTwoMany>(true);
}
