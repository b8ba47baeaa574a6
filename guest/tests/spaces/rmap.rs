//! From folios to their leaves: walks, and the removal of every leaf.

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::space::{Advice, Map, ObjectKind, file_word};

#[test]
fn a_file_folio_at_incongruent_offsets_cut_and_moved() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let file = world.manager.create_object(ObjectKind::File, 6, 1024, Order::HUGE).unwrap();
        let (one, two) = (world.space(), world.space());
        world.map(one, BASE, 1024, RW, Map::Shared(file, 0));
        world.map(one, 3 * BASE + 11, 600, RW, Map::Shared(file, 100));
        world.map(two, BASE + 77, 900, RW, Map::Private(file, 100));
        for page in 100..612 {
            assert_eq!(world.read(one, BASE + page), file_word(6, page));
            world.read(one, 3 * BASE + 11 + page - 100);
            world.read(two, BASE + 77 + page - 100);
        }
        let (pfn, level) = world.leaf(one, BASE).unwrap();
        assert_eq!(level, world.manager.policy().max_leaf);
        let folio = world.manager.folio(pfn).unwrap();
        let whole = if level == Level::TWO { 1 } else { 512 };
        assert_eq!(world.manager.leaves_by_walk(folio), Ok(whole + 412 + 412));
        // A vma cut in three, one moved, a hole, a private copy: none of them hides a leaf.
        world.manager.protect(one, at(BASE + 30), 5, R).unwrap();
        world.manager.remap(one, at(3 * BASE + 11), 600, at(5 * BASE + 3), 600).unwrap();
        world.manager.unmap(two, at(BASE + 80), 10).unwrap();
        world.write(two, BASE + 200, 9);
        world.write(one, BASE + 400, 7);
        assert_eq!(world.manager.leaves_by_walk(folio), Ok(512 + 412 + 401));
        assert_eq!(world.manager.is_shared_by_walk(folio), Ok(true));
        world.audit();
        let rss = (world.manager.rss(one), world.manager.rss(two));
        world.manager.try_to_unmap(folio).unwrap();
        assert_eq!(world.manager.leaves_by_walk(folio), Ok(0));
        assert_eq!((world.manager.rss(one), world.manager.rss(two)), (rss.0 - 924, rss.1 - 401));
        world.audit();
        assert_eq!(world.read(one, 5 * BASE + 3 + 300), 7);
        assert_eq!(world.read(one, BASE + 31), file_word(6, 31));
        assert_eq!(world.read(two, BASE + 200), 9, "the private copy stays");
        world.audit();
        world.end(&[file]);
    }
}

#[test]
fn an_anonymous_folio_of_several_forks() {
    for policy in [huge(), huge_by_pages()] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let parent = world.anon(512);
        world.fill(parent, BASE..BASE + 512, 1);
        let (pfn, _) = world.leaf(parent, BASE).unwrap();
        let folio = world.manager.folio(pfn).unwrap();
        assert_eq!(world.manager.is_shared_by_walk(folio), Ok(false));
        let child = world.manager.fork(parent).unwrap();
        let third = world.manager.fork(child).unwrap();
        assert_eq!(world.manager.is_shared_by_walk(folio), Ok(true));
        world.manager.advise(child, at(BASE + 100), 50, Advice::DontNeed).unwrap();
        world.manager.remap(third, at(BASE), 200, at(2 * BASE + 5), 200).unwrap();
        // More batches in one table than a token holds, and than rounds could make up for.
        for page in (0..512).step_by(2) {
            world.write(parent, BASE + page, 2);
        }
        world.audit();
        // The frames survive while somebody has a reference.
        folio.get(1);
        world.manager.try_to_unmap(folio).unwrap();
        assert_eq!(world.manager.leaves_by_walk(folio), Ok(0));
        assert_eq!(folio.refs(), 1);
        assert_eq!((world.manager.rss(parent), world.manager.rss(child), world.manager.rss(third)), (256, 0, 0));
        assert_eq!(world.machine.stale(), None, "a flush is missing");
        assert!(folio.put(1), "the last");
        assert_eq!(world.read(parent, BASE + 2), 2, "copies are other folios");
        assert_eq!(world.read(third, 2 * BASE + 6), 0);
    }
}
