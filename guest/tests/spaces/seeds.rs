//! The cases that the mails behind the schemes argue with, on real tables: memory is touched and read back, and every scheme observes. The case of 2^22 mappings is
//! in `overflow.rs`.

use crate::world::{BASE, Everything, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::folio::Folio;
use quire::mapcount::{
    self, Accounting, Answer, FullPartial, MmOwner, MmOwnerCounters, Observe, Oracle, PerLevel, PerPage,
    PerPageCounters, RmapIds, Target, Total, TotalCounters, Tuples, Vmas, ZeroOneTwoMany,
};
use quire::memory::Memory;
use quire::space::{Advice, ObjectKind};
use quire::space::{Map, ObjectId, SpaceId};

/// What the observed schemes have counted for a folio.
#[derive(Clone, Copy, Default)]
struct Counted {
    total: Option<TotalCounters>,
    per_page: Option<PerPageCounters>,
    mm_owner: Option<MmOwnerCounters>,
    tuples: u32,
    vmas: u32,
    state: u32,
    /// Whether they take it for shared, and for partly mapped: `total`, `per-page`, `tuples`, `vmas`.
    shared: [bool; 4],
    partial: [Option<bool>; 2],
}

/// A scheme that tells what it has counted.
trait Tells: Accounting {
    fn tell<M: Memory>(_t: &Target<'_, M>, _counted: &mut Counted) {}
}

impl Tells for Total {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        counted.total = Some(Self::counters(t));
        counted.shared[0] = said(Self::maybe_shared(t, 0));
        counted.partial[0] = Self::partially_mapped(t).value();
    }
}

impl Tells for PerPage {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        counted.per_page = Some(Self::counters(t));
        counted.shared[1] = said(Self::maybe_shared(t, 0));
        counted.partial[1] = Self::partially_mapped(t).value();
    }
}

impl Tells for Tuples {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        counted.tuples = Self::count(t);
        counted.shared[2] = said(Self::maybe_shared(t, 0));
    }
}

impl Tells for Vmas {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        counted.vmas = Self::count(t);
        counted.shared[3] = said(Self::maybe_shared(t, 0));
    }
}

impl Tells for MmOwner {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        counted.mm_owner = Some(Self::counters(t));
    }
}

impl Tells for ZeroOneTwoMany {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        counted.state = Self::state(t);
    }
}

impl Tells for mapcount::None {}
impl Tells for Oracle {}
impl Tells for FullPartial {}
impl Tells for RmapIds {}
impl Tells for PerLevel {}

impl<A: Tells, B: Tells> Tells for Observe<A, B> {
    fn tell<M: Memory>(t: &Target<'_, M>, counted: &mut Counted) {
        A::tell(&Self::first(t), counted);
        B::tell(&Self::second(t), counted);
    }
}

fn said(answer: Answer<bool>) -> bool {
    answer.value().expect("an answer")
}

/// The counts of `folio`, after a recount.
fn counted(world: &World<'_>, folio: Folio<'_>) -> Counted {
    world.audit();
    let mut counted = Counted::default();
    Everything::tell(&world.manager.counts(folio), &mut counted);
    counted
}

impl Counted {
    /// M and T, which `mm-owner` and `per-page` must have too.
    fn leaves_and_pages(&self) -> (u64, u64) {
        let (total, owner, page) = (self.total.unwrap(), self.mm_owner.unwrap(), self.per_page.unwrap());
        assert_eq!((owner.leaves, u64::from(page.leaves)), (total.leaves, total.leaves));
        (total.leaves, total.pages)
    }
}

fn folio_at<'w>(world: &'w World<'_>, space: SpaceId, page: u64) -> Folio<'w> {
    world.manager.folio(world.leaf(space, page).expect("a leaf").0).expect("a folio")
}

/// An order-9 file folio, shared.
fn file(world: &World<'_>) -> ObjectId {
    world.manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).unwrap()
}

/// "Map three pages, unmap two": the count of tuples must not move, and the number itself cannot tell. Wilcox, 24 Jan 2023 (S5).
#[test]
fn map_three_unmap_two() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = file(&world);
    let space = world.space();
    world.map(space, BASE, 3, RW, Map::Shared(file, 0));
    world.fill(space, BASE..BASE + 3, 1);
    let folio = folio_at(&world, space, BASE);
    let before = counted(&world, folio);
    assert_eq!((before.tuples, before.vmas, before.leaves_and_pages()), (1, 1, (3, 3)));
    world.manager.advise(space, at(BASE + 1), 2, Advice::DontNeed).unwrap();
    let after = counted(&world, folio);
    assert_eq!((after.tuples, after.vmas, after.leaves_and_pages()), (1, 1, (1, 1)));
    assert_eq!(world.leaf(space, BASE + 1), None);
    world.expect(space, BASE..BASE + 3, BASE, 1);
    // Likewise by munmap, in the other order; then the last page, and with it the tuple.
    world.manager.unmap(space, at(BASE), 2).unwrap();
    assert_eq!((counted(&world, folio).tuples, world.read(space, BASE + 2)), (1, 1 << 40 | (BASE + 2)));
    world.manager.unmap(space, at(BASE + 2), 1).unwrap();
    let gone = counted(&world, folio);
    assert_eq!((gone.tuples, gone.vmas, gone.state, gone.leaves_and_pages()), (0, 0, 0, (0, 0)));
    world.end(&[file]);
}

/// A folio across a border of tables counts once for each table, when each is touched. Wilcox, 24 Jan 2023 (S3).
#[test]
fn mapped_across_a_table_boundary() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let file = file(&world);
    let space = world.space();
    let first = BASE + 312;
    world.map(space, first, 512, RW, Map::Shared(file, 0));
    world.write(space, first + 199, 199);
    let folio = folio_at(&world, space, first);
    let one = counted(&world, folio);
    assert_eq!((one.tuples, one.vmas, one.leaves_and_pages(), one.shared), (1, 1, (200, 200), [false; 4]));
    world.write(space, first + 200, 200);
    let two = counted(&world, folio);
    assert_eq!((two.tuples, two.vmas, two.leaves_and_pages()), (2, 1, (512, 512)));
    assert_eq!(two.shared, [false, false, true, false], "tuples meets its own asker behind the border");
    assert_eq!((world.read(space, first + 199), world.read(space, first + 200)), (199, 200));
    // The first table empties, page by page from its end.
    world.manager.unmap(space, at(first + 1), 199).unwrap();
    assert_eq!(counted(&world, folio).tuples, 2);
    world.manager.unmap(space, at(first), 1).unwrap();
    assert_eq!(counted(&world, folio).tuples, 1);
    assert_eq!(world.read(space, first + 200), 200);
    world.end(&[file]);
}

/// One leaf of 2 MiB is one tuple, and so are the 512 that it is split into; T stays too. Wilcox, 24 Jan 2023; Hildenbrand, 12 Apr 2026 (S1, S2).
#[test]
fn a_pmd_split_leaves_the_tuple_count_alone() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(512);
    world.fill(space, BASE..BASE + 512, 1);
    let folio = folio_at(&world, space, BASE);
    let whole = counted(&world, folio);
    assert_eq!((whole.tuples, whole.leaves_and_pages(), folio.refs()), (1, (1, 512), 1));
    // What splits it is a cut, which makes two of the region for as long as it lasts.
    world.manager.protect(space, at(BASE + 256), 256, R).unwrap();
    let cut = counted(&world, folio);
    assert_eq!((cut.tuples, cut.vmas, cut.leaves_and_pages()), (2, 2, (512, 512)));
    world.manager.protect(space, at(BASE + 256), 256, RW).unwrap();
    let split = counted(&world, folio);
    assert_eq!((split.tuples, split.vmas, split.leaves_and_pages(), folio.refs()), (1, 1, (512, 512), 512));
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::ONE);
    world.expect(space, BASE..BASE + 512, BASE, 1);
    world.fill(space, BASE..BASE + 512, 1);
    assert!(world.manager.collapse(space, at(BASE)));
    let collapsed = counted(&world, folio);
    assert_eq!((collapsed.tuples, collapsed.leaves_and_pages(), folio.refs()), (1, (1, 512), 1));
    world.expect(space, BASE..BASE + 512, BASE, 1);
    world.end(&[]);
}

/// "I have it mapped, does anybody else?" Two regions of one process: two tuples and two vmas, but one owner. Wilcox, 6 Feb 2023; Hildenbrand, 12 Apr 2026 (S9).
#[test]
fn two_vmas_of_one_mm() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge_by_pages());
    let file = file(&world);
    let space = world.space();
    for place in [BASE, 2 * BASE] {
        world.map(space, place, 512, RW, Map::Shared(file, 0));
    }
    world.fill(space, BASE..BASE + 512, 1);
    world.expect(space, 2 * BASE..2 * BASE + 512, BASE, 1);
    let folio = folio_at(&world, space, BASE);
    let twice = counted(&world, folio);
    assert_eq!((twice.tuples, twice.vmas, twice.state, twice.leaves_and_pages()), (2, 2, 2, (1024, 1024)));
    assert_eq!(twice.shared, [false, true, true, true], "only who counts owners knows that nobody else is there");
    assert_eq!(world.manager.is_shared_by_walk(folio), Ok(false));
    // A second owner of one page, and all of them are right.
    let other = world.space();
    world.map(other, BASE, 1, R, Map::Shared(file, 77));
    assert_eq!(world.read(other, BASE), 1 << 40 | (BASE + 77));
    assert_eq!(counted(&world, folio).shared, [true; 4]);
    world.end(&[file]);
}

/// Forks without end: each takes as many references and counts as there are leaves. 511 of a folio mapped by pages, seven of one mapped whole. Wilcox, 24 Jan 2023; Hildenbrand, 12 Apr
/// 2026 (S8, S8b, S8c).
#[test]
fn fork_n_times() {
    for (policy, forks, leaves) in [(huge_by_pages(), 511, 512), (huge(), 7, 1)] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        let parent = world.anon(512);
        world.fill(parent, BASE..BASE + 512, 1);
        let folio = folio_at(&world, parent, BASE);
        let children: Vec<_> = (0..forks).map(|_| world.manager.fork(parent).unwrap()).collect();
        let spaces = forks + 1;
        let all = counted(&world, folio);
        assert_eq!(all.leaves_and_pages(), (spaces * leaves, spaces * 512));
        assert_eq!(folio.refs(), spaces * leaves);
        assert_eq!((u64::from(all.tuples), u64::from(all.vmas), all.state), (spaces, spaces, ZeroOneTwoMany::MANY));
        let slots = [(parent.raw(), leaves), (children[0].raw(), leaves)];
        assert_eq!((all.total.unwrap().slots, all.mm_owner.unwrap().slots, all.shared), (slots, slots, [true; 4]));
        for &child in &children {
            world.expect(child, BASE + 510..BASE + 512, BASE + 510, 1);
        }
        if leaves == 1 {
            assert_eq!(all.per_page.unwrap().entire, 8);
        } else {
            // All keep one page.
            for &space in children.iter().chain([&parent]) {
                world.manager.unmap(space, at(BASE + 1), 511).unwrap();
            }
            let one = counted(&world, folio);
            assert_eq!((one.leaves_and_pages(), u64::from(one.tuples), folio.refs()), ((512, 512), spaces, 512));
            assert_eq!(one.per_page.unwrap().visible, 1);
        }
        // A store is the storer's own.
        world.write(children[3], BASE, 7);
        for &space in [&parent, &children[0], &children[6]] {
            assert_eq!(world.read(space, BASE), 1 << 40 | BASE);
        }
        assert_eq!(world.read(children[3], BASE), 7);
        for child in children {
            world.leave(child);
        }
        let alone = counted(&world, folio);
        assert_eq!((alone.shared[0], alone.tuples, alone.vmas), (false, 1, 1));
        assert_eq!(world.read(parent, BASE), 1 << 40 | BASE);
        world.end(&[]);
    }
}

/// Partly mapped, and `total` does not see it, as several owners map the same part: two a half (S7b), 512 one page (S8b). It sees it when they have gone, and the rest is freed then.
/// Hildenbrand, 12 Apr 2026.
#[test]
fn the_two_undetected_partial_maps_of_2026() {
    for (forks, kept) in [(1, 256), (511, 1)] {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, huge_by_pages());
        let parent = world.anon(512);
        world.fill(parent, BASE..BASE + 512, 1);
        let folio = folio_at(&world, parent, BASE);
        let children: Vec<_> = (0..forks).map(|_| world.manager.fork(parent).unwrap()).collect();
        for &space in children.iter().chain([&parent]) {
            world.manager.unmap(space, at(BASE + kept), 512 - kept).unwrap();
        }
        let missed = counted(&world, folio);
        assert_eq!(missed.leaves_and_pages(), (512, 512), "as if each page were mapped once");
        assert_eq!(missed.partial, [Some(false), Some(true)], "total, per-page");
        let audit = world.audit();
        assert_eq!((audit.partial, audit.said_partial, audit.distinct_pages), (1, 0, kept));
        assert_eq!(world.manager.deferred_len(), 0, "nobody asks for the split that would free the rest");
        for space in children {
            world.expect(space, BASE..BASE + kept, BASE, 1);
            world.leave(space);
        }
        assert_eq!(counted(&world, folio).partial, [Some(true); 2]);
        let (free, report) = (world.free(), world.manager.split_deferred(1));
        assert_eq!((report.split, report.moved, report.freed), (1, kept, 512 - kept));
        assert!(world.free() > free);
        world.expect(parent, BASE..BASE + kept, BASE, 1);
        world.audit();
        world.end(&[]);
    }
}
