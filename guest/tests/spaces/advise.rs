//! madvise.

use crate::world::{BASE, FRAMES, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::space::{Advice, LargeFolios, Map, ObjectKind, Policy};

#[test]
fn dropped_pages_read_as_zero_and_the_others_stay() {
    for policy in [huge(), huge_by_pages(), Policy::up_to(Order::new(3))] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let space = world.anon(1536);
        world.fill(space, BASE..BASE + 1536, 1);
        let child = world.manager.fork(space).unwrap();
        for (first, pages) in [(0, 1), (500, 24), (1535, 1), (600, 512)] {
            world.manager.advise(space, at(BASE + first), pages, Advice::DontNeed).unwrap();
            world.audit();
            world.expect_zero(space, BASE + first..BASE + first + pages);
        }
        world.expect(space, BASE + 1..BASE + 500, BASE + 1, 1);
        world.expect(space, BASE + 1112..BASE + 1535, BASE + 1112, 1);
        world.expect(child, BASE..BASE + 1536, BASE, 1);
        assert_eq!(world.manager.vmas(space).count(), 1, "no mapping is cut");
        world.audit();
        world.end(&[]);
    }
}

#[test]
fn pages_of_objects_come_back() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = world.manager.create_object(ObjectKind::File, 1, 1024, Order::HUGE).unwrap();
    let space = world.space();
    world.map(space, BASE, 1024, RW, Map::Shared(file, 0));
    world.map(space, 2 * BASE, 1024, RW, Map::Private(file, 0));
    world.fill(space, BASE..BASE + 512, 1);
    world.fill(space, 2 * BASE + 600..2 * BASE + 700, 2);
    world.manager.advise(space, at(BASE), 1, Advice::DontNeed).unwrap();
    world.manager.advise(space, at(2 * BASE), 1024, Advice::DontNeed).unwrap();
    world.audit();
    world.expect(space, BASE..BASE + 512, BASE, 1);
    assert_eq!(world.read(space, 2 * BASE + 650), quire::space::file_word(1, 650), "the private copy is gone");
    world.audit();
    world.end(&[file]);
}

#[test]
fn large_folios_where_they_are_advised() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, Policy { large: LargeFolios::Advised, ..huge() });
    let space = world.anon(1536);
    world.manager.advise(space, at(BASE + 512), 512, Advice::HugePage).unwrap();
    world.fill(space, BASE..BASE + 1536, 1);
    assert_eq!(world.folio_order(space, BASE), Order::BASE);
    assert_eq!(world.leaf(space, BASE + 512).unwrap().1, Level::TWO);
    assert_eq!(world.folio_order(space, BASE + 1024), Order::BASE);
    assert_eq!(world.manager.vmas(space).count(), 3);
    world.manager.advise(space, at(BASE), 1536, Advice::NoHugePage).unwrap();
    // Each has private pages of its own already: they stay three.
    assert_eq!(world.manager.vmas(space).count(), 3);
    world.manager.advise(space, at(BASE), 1536, Advice::DontNeed).unwrap();
    world.write(space, BASE + 600, 1);
    assert_eq!(world.folio_order(space, BASE + 600), Order::BASE);
    world.audit();
    world.end(&[]);
}

#[test]
fn what_cannot_be_split_is_said() {
    let machine = machine_of(2048);
    let world: World<'_> = World::with_scheme(&machine, huge(), 2048);
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    // Not one frame is left, of the reserve neither.
    let frames = world.manager.frames();
    frames.set_reserve(0);
    let held: Vec<_> = core::iter::from_fn(|| frames.alloc(Order::BASE, false)).collect();
    assert!(world.manager.advise(space, at(BASE + 5), 5, Advice::DontNeed).is_err());
    world.audit();
    world.expect(space, BASE..BASE + 512, BASE, 1);
    held.into_iter().for_each(|run| frames.free(run.pfn, Order::BASE, false));
    world.manager.advise(space, at(BASE + 5), 5, Advice::DontNeed).unwrap();
    world.expect_zero(space, BASE + 5..BASE + 10);
    world.audit();
    world.map(space, 2 * BASE, 5, RW, Map::Anon);
    world.end(&[]);
}
