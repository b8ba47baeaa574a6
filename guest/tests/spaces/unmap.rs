//! munmap and MAP_FIXED: parts of folios, holes, and room when memory is full.

use crate::world::{BASE, FRAMES, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::space::{FaultError, Map, MapError, Policy};

#[test]
fn any_part_of_a_folio_goes_and_the_rest_stays() {
    for policy in [huge(), huge_by_pages(), Policy::up_to(Order::new(6))] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let space = world.anon(1024);
        let mut here = [true; 1024];
        world.fill(space, BASE..BASE + 1024, 1);
        for (first, n) in [(0, 1), (1023, 1), (511, 2), (100, 300), (90, 20), (395, 10), (700, 1), (702, 1)] {
            world.manager.unmap(space, at(BASE + first), n).unwrap();
            here[first as usize..(first + n) as usize].fill(false);
            world.audit();
            for (page, &here) in (BASE..).zip(&here) {
                match world.access(space, page, None) {
                    Ok((word, fault)) => assert!(here && word == 1 << 40 | page && fault.is_none()),
                    Err(error) => assert!(!here && error == FaultError::NotMapped),
                }
            }
            assert_eq!(world.manager.rss(space), here.iter().filter(|&&here| here).count() as u64);
        }
        world.end(&[]);
    }
}

#[test]
fn a_range_over_many_mappings_and_holes() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.space();
    for i in 0..20 {
        world.map(space, BASE + i * 700, 600, RW, Map::Anon);
        world.fill(space, BASE + i * 700 + 5..BASE + i * 700 + 9, i + 1);
    }
    let tables = world.manager.page_table(space).nr_tables(&world.manager, 1 << 35);
    world.manager.unmap(space, at(BASE + 7), 19 * 700).unwrap();
    world.audit();
    world.expect(space, BASE + 5..BASE + 7, BASE + 5, 1);
    world.expect(space, BASE + 19 * 700 + 7..BASE + 19 * 700 + 9, BASE + 19 * 700 + 7, 20);
    assert_eq!(world.manager.vmas(space).count(), 2);
    assert!(world.manager.page_table(space).nr_tables(&world.manager, 1 << 35) < tables, "empty tables go");
    assert_eq!(world.manager.unmap(space, at(BASE), 0), Err(MapError::BadRange));
    world.manager.unmap(space, at(0), 1 << 35).unwrap();
    assert_eq!(world.manager.page_table(space).nr_tables(&world.manager, 1 << 35), 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn map_fixed_replaces_and_map_does_not() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(1024);
    world.fill(space, BASE..BASE + 1024, 1);
    assert_eq!(world.manager.map(space, at(BASE + 1000), 100, RW, Map::Anon), Err(MapError::Occupied));
    assert_eq!(world.manager.map(space, at(BASE - 5), 6, RW, Map::Anon), Err(MapError::Occupied));
    world.manager.map_fixed(space, at(BASE + 500), 24, RW, Map::Anon).unwrap();
    world.audit();
    world.expect_zero(space, BASE + 500..BASE + 524);
    world.expect(space, BASE..BASE + 500, BASE, 1);
    world.expect(space, BASE + 524..BASE + 1024, BASE + 524, 1);
    world.audit();
    world.end(&[]);
}

#[test]
fn holes_can_be_punched_when_memory_is_full() {
    let machine = machine_of(4096);
    let world: World<'_> = World::with_scheme(&machine, huge(), 4096);
    let space = world.anon(1 << 14);
    let mut end = BASE;
    while world.access(space, end, Some(1 << 40 | end)).is_ok() {
        end += 1;
    }
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::TWO);
    let huge_leaves = (BASE..end).step_by(512).filter(|&page| world.leaf(space, page).unwrap().1 == Level::TWO).count();
    assert!(huge_leaves >= 4, "{huge_leaves}");
    assert!(world.manager.create_space().is_err(), "memory is full");
    // One page of each huge leaf: not one frame is freed, and each takes a table.
    for i in 0..huge_leaves as u64 {
        world.manager.unmap(space, at(BASE + i * 512 + 17), 1).unwrap();
        world.manager.unmap(space, at(BASE + i * 512 + 400), 3).unwrap();
        world.audit();
    }
    for i in 0..huge_leaves as u64 {
        world.expect(space, BASE + i * 512..BASE + i * 512 + 17, BASE + i * 512, 1);
        world.expect(space, BASE + i * 512 + 403..BASE + i * 512 + 512, BASE + i * 512 + 403, 1);
    }
    // What the holes freed comes back in time.
    world.manager.unmap(space, at(BASE), 512).unwrap();
    world.manager.split_deferred(100);
    world.audit();
    world.end(&[]);
}

#[test]
fn when_the_reserve_is_gone_too_nothing_changes() {
    let machine = machine_of(40960);
    let world: World<'_> = World::with_scheme(&machine, huge(), 40960);
    let space = world.anon(1 << 16);
    let mut end = BASE;
    while world.access(space, end, Some(1 << 40 | end)).is_ok() {
        end += 512;
    }
    while world.access(space, end - 512, Some(1)).is_ok() && end % 512 != 511 {
        end += 1;
    }
    let mut refused = None;
    for i in 0..70 {
        let page = BASE + i * 512 + 100;
        let before = (world.manager.rss(space), world.leaf(space, page));
        match world.manager.unmap(space, at(page), 1) {
            Ok(()) => world.audit(),
            Err(error) => {
                assert_eq!(error, MapError::OutOfFrames);
                assert_eq!((world.manager.rss(space), world.leaf(space, page)), before);
                refused = Some(i);
                break;
            }
        };
    }
    assert!(refused.is_some_and(|i| i >= 16), "{refused:?}");
    world.audit();
    // Whole leaves can go always.
    world.manager.unmap(space, at(BASE + 69 * 512), 512).unwrap();
    world.audit();
    world.end(&[]);
}
