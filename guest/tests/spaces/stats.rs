//! What smaps, meminfo, numa_maps, pagemap and kpagecount say in known situations, under the schemes that count differently.

use crate::world::{BASE, FRAMES, R, RW, Untouched, World, at, huge, machine_of};
use quire::abi::results::STATS_WORDS;
use quire::abi::stats;
use quire::addr::{Order, Pfn};
use quire::audit::Recount;
use quire::mapcount::{Accounting, Answer, MmOwner, None, PerLevel, PerPage, Scheme, Share, Total, UnderScheme, Vmas};
use quire::model::{EmulatedMemory, Machine};
use quire::space::{Access, LargeFolios, Manager, Map, PAGES_END, Policy, SpaceId};
use quire::space::{ObjectKind, Prot};
use quire::stats::{Fill, NumaMap, PagemapEntry, Smaps};

use Answer::{About, Cannot, Errs, Exact, Walk};

/// One page in units of Pss.
const PAGE: u64 = 1 << Share::SHIFT;

/// Order 0 and nothing else.
const SMALL: Policy = Policy { large: LargeFolios::Never, ..Policy::up_to(Order::HUGE) };

/// Folios of 16 pages, mapped by pages.
fn sixteen() -> Policy {
    Policy::only(Order::new(4))
}

fn world<A: Accounting>(policy: Policy, test: impl FnOnce(&World<'_, A>)) {
    let machine: Machine = machine_of(FRAMES);
    let world = World::<A>::with_scheme(&machine, policy, FRAMES);
    test(&world);
    let statistics = world.manager.statistics();
    assert!(statistics.file_huge_mapped.get() >= 0);
    world.audit();
}

fn rollup<A: Accounting>(world: &World<'_, A>, space: SpaceId) -> Smaps {
    world.manager.smaps_rollup(space, Fill::Scheme)
}

/// Shared_Clean, Shared_Dirty, Private_Clean, Private_Dirty.
fn four(smaps: &Smaps) -> [Answer<u64>; 4] {
    [smaps.shared_clean, smaps.shared_dirty, smaps.private_clean, smaps.private_dirty]
}

fn numa<A: Accounting>(world: &World<'_, A>, space: SpaceId) -> Vec<NumaMap> {
    let mut maps = Vec::new();
    world.manager.numa_maps(space, Fill::Scheme, |_, map| maps.push(*map));
    maps
}

fn entries<A: Accounting>(world: &World<'_, A>, space: SpaceId, fill: Fill) -> Vec<(u64, PagemapEntry)> {
    let mut all = Vec::new();
    world.manager.pagemap(space, 0..PAGES_END, fill, |page, entry| all.push((page, entry)));
    all
}

#[test]
fn one_owner_of_small_pages() {
    // Order 0 has a count of its own under every scheme but `none`.
    fn check<A: Accounting>(mapped: Answer<u64>) {
        world::<A>(SMALL, |world| {
            let space = world.anon(10);
            world.fill(space, BASE..BASE + 4, 1);
            let smaps = rollup(world, space);
            assert_eq!((smaps.size, smaps.rss, smaps.anonymous, smaps.anon_huge), (10, 4, 4, 0));
            assert_eq!(smaps.pss, Exact(4 * PAGE));
            assert_eq!(four(&smaps), [Exact(0), Exact(0), Exact(0), Exact(4)]);
            assert_eq!(smaps.uss(), Exact(4));
            assert_eq!(numa(world, space), [NumaMap { pages: 4, anon: 4, dirty: 4, active: 4, mapmax: Exact(1) }]);
            assert_eq!(world.manager.meminfo().anon_pages, mapped);
            assert_eq!(world.manager.meminfo().page_tables, 4);
        });
    }
    check::<PerPage>(Exact(4));
    check::<Total>(Errs(4));
    check::<MmOwner>(Errs(4));
    check::<PerLevel>(Errs(4));
    check::<Vmas>(Errs(4));
}

#[test]
fn fork_and_copy_of_one_page() {
    /// `whole`: right after the fork; `rest`: one of 16 pages copied by the child. Pss of parent and child, and who calls what private.
    fn check<A: Accounting>(parent: Answer<u64>, child: Answer<u64>, private: Answer<u64>, mapmax: Answer<u64>) {
        world::<A>(sixteen(), |world| {
            let first = world.anon(16);
            world.fill(first, BASE..BASE + 16, 1);
            let second = world.manager.fork(first).unwrap();
            for space in [first, second] {
                let smaps = rollup(world, space);
                assert_eq!(smaps.rss, 16);
                assert_eq!(smaps.pss.value(), Some(8 * PAGE), "{}", A::NAME);
                assert_eq!(smaps.uss().value(), Some(0));
                assert_eq!(smaps.shared_dirty.value(), Some(16));
            }
            world.write(second, BASE + 3, 2);
            assert_eq!(rollup(world, first).pss, parent, "{}", A::NAME);
            assert_eq!(rollup(world, second).pss, child, "{}", A::NAME);
            assert_eq!(rollup(world, first).uss(), private, "{}", A::NAME);
            assert_eq!(numa(world, first)[0].mapmax, mapmax, "{}", A::NAME);
        });
    }
    // Exact: 15 shared pages, one alone in the parent, a copy in the child.
    let half = |pages: u64| pages * PAGE / 2;
    check::<PerPage>(Exact(half(15) + PAGE), Exact(half(15) + PAGE), Exact(1), Exact(2));
    // T is 31 of 16 pages: 2 on average. All of the folio is shared, the copy is not.
    check::<Total>(About(half(16)), About(half(15) + PAGE), About(0), About(2));
    check::<MmOwner>(About(half(16)), About(half(15) + PAGE), About(0), About(2));
    // 16 pages spread over 31 leaves.
    let leaf = Share { pages: 16, of: 31 }.fixed();
    check::<PerLevel>(About(16 * leaf), About(15 * leaf + PAGE), About(0), About(2));
    // Two regions, whatever they map of it.
    check::<Vmas>(About(half(16)), About(half(15) + PAGE), About(0), Cannot);
}

#[test]
fn a_part_is_unmapped() {
    fn check<A: Accounting>(pss: Answer<u64>, uss: Answer<u64>, mapped: Answer<u64>) {
        world::<A>(sixteen(), |world| {
            let space = world.anon(16);
            world.fill(space, BASE..BASE + 16, 1);
            world.manager.unmap(space, at(BASE + 4), 4).unwrap();
            let smaps = rollup(world, space);
            assert_eq!((smaps.size, smaps.rss), (12, 12));
            assert_eq!(smaps.pss, pss, "{}", A::NAME);
            assert_eq!(smaps.uss(), uss, "{}", A::NAME);
            assert_eq!(world.manager.meminfo().anon_pages, mapped, "{}", A::NAME);
            let mut vmas = Vec::new();
            world.manager.smaps(space, Fill::Scheme, |vma, smaps| vmas.push((vma.start() - BASE, smaps.rss)));
            assert_eq!(vmas, [(0, 4), (8, 8)]);
        });
    }
    check::<PerPage>(Exact(12 * PAGE), Exact(12), Exact(12));
    check::<Total>(About(12 * PAGE), About(12), Errs(16));
    check::<MmOwner>(About(12 * PAGE), About(12), Errs(16));
    check::<PerLevel>(About(12 * PAGE), About(12), Errs(12));
    // The hole makes two regions of one, and each is charged half of every page.
    check::<Vmas>(About(6 * PAGE), About(0), Errs(16));
}

#[test]
fn a_file_of_two() {
    fn check<A: Accounting>(exclusive: Answer<u64>, mapped: Answer<u64>) {
        world::<A>(SMALL, |world| {
            let file = world.manager.create_object(ObjectKind::File, 3, 8, Order::BASE).unwrap();
            let (one, two) = (world.space(), world.space());
            world.map(one, BASE, 8, RW, Map::Shared(file, 0));
            world.map(two, BASE, 8, R, Map::Private(file, 0));
            for page in 0..8 {
                world.read(one, BASE + page);
            }
            world.write(one, BASE + 7, 5);
            for page in 4..8 {
                world.read(two, BASE + page);
            }
            let smaps = rollup(world, one);
            assert_eq!((smaps.rss, smaps.anonymous), (8, 0));
            assert_eq!(smaps.pss, Exact(6 * PAGE));
            assert_eq!(four(&smaps), [Exact(3), Exact(1), exclusive, Exact(0)]);
            assert_eq!(rollup(world, two).pss, Exact(2 * PAGE));
            assert_eq!(numa(world, one)[0], NumaMap { pages: 8, anon: 0, dirty: 1, active: 8, mapmax: Exact(2) });
            assert_eq!(world.manager.meminfo().mapped, mapped);
            let seen = entries(world, one, Fill::Scheme);
            assert!(seen.iter().all(|(_, entry)| entry.is_file && entry.word() & PagemapEntry::FILE != 0));
            let alone: Vec<_> =
                seen.iter().filter(|(_, e)| e.exclusive == Exact(true)).map(|(p, _)| p - BASE).collect();
            assert_eq!(alone, [0, 1, 2, 3]);
        });
    }
    check::<PerPage>(Exact(4), Exact(8));
    check::<Total>(Exact(4), Errs(8));
    check::<MmOwner>(Exact(4), Errs(8));
    check::<PerLevel>(Exact(4), Errs(8));
}

#[test]
fn a_huge_page_is_shared_split_and_left() {
    fn check<A: Accounting>(said_huge: Answer<u64>, pss: [Answer<u64>; 3]) {
        world::<A>(huge(), |world| {
            let first = world.anon(512);
            world.write(first, BASE, 1);
            let smaps = rollup(world, first);
            assert_eq!((smaps.rss, smaps.anon_huge), (512, 512));
            assert_eq!(smaps.pss.value(), Some(512 * PAGE));
            assert_eq!(world.manager.meminfo().anon_huge, said_huge);
            let second = world.manager.fork(first).unwrap();
            assert_eq!(rollup(world, second).pss, pss[0], "{}", A::NAME);
            // The child's leaf is split, and one page of it copied.
            world.write(second, BASE + 5, 2);
            let smaps = [rollup(world, first), rollup(world, second)];
            assert_eq!(smaps.map(|smaps| (smaps.rss, smaps.anon_huge)), [(512, 512), (512, 0)]);
            assert_eq!(smaps[1].pss, pss[1], "{}", A::NAME);
            world.leave(second);
            assert_eq!(rollup(world, first).pss, pss[2], "{}", A::NAME);
            assert_eq!(rollup(world, first).anon_huge, 512);
        });
    }
    let half = |pages: u64| pages * PAGE / 2;
    check::<PerPage>(Exact(512), [Exact(half(512)), Exact(half(511) + PAGE), Exact(512 * PAGE)]);
    check::<Total>(Exact(512), [About(half(512)), About(half(511) + PAGE), About(512 * PAGE)]);
    check::<MmOwner>(Exact(512), [About(half(512)), About(half(511) + PAGE), About(512 * PAGE)]);
    let leaf = Share { pages: 512, of: 1023 }.fixed();
    check::<PerLevel>(Exact(512), [About(half(512)), About(511 * leaf + PAGE), About(512 * PAGE)]);
    check::<Vmas>(Cannot, [About(half(512)), About(half(511) + PAGE), About(512 * PAGE)]);
}

#[test]
fn huge_pages_of_files_and_of_shared_memory_are_told_apart() {
    world::<PerPage>(huge(), |world| {
        let space = world.space();
        for (kind, at) in [(ObjectKind::File, BASE), (ObjectKind::Shared, BASE + 512)] {
            let object = world.manager.create_object(kind, 1, 512, Order::HUGE).unwrap();
            world.map(space, at, 512, RW, Map::Shared(object, 0));
            world.read(space, at);
        }
        let smaps = rollup(world, space);
        assert_eq!((smaps.file_pmd, smaps.shmem_pmd, smaps.anon_huge), (512, 512, 0));
        let meminfo = world.manager.meminfo();
        assert_eq!((meminfo.file_pmd, meminfo.anon_huge), (Exact(1024), Exact(0)));
    });
}

#[test]
fn without_counts_only_a_walk_tells() {
    world::<None>(sixteen(), |world| {
        let first = world.anon(16);
        world.fill(first, BASE..BASE + 16, 1);
        let second = world.manager.fork(first).unwrap();
        world.write(second, BASE + 3, 2);
        let smaps = rollup(world, first);
        assert_eq!((smaps.rss, smaps.anonymous), (16, 16));
        assert_eq!((smaps.pss, smaps.uss()), (Walk, Walk));
        // The clean ones are none, and that needs no walk.
        assert_eq!(four(&smaps), [Exact(0), Walk, Exact(0), Walk]);
        assert_eq!(numa(world, first)[0].mapmax, Walk);
        let meminfo = world.manager.meminfo();
        assert_eq!((meminfo.anon_pages, meminfo.mapped, meminfo.anon_huge), (Walk, Walk, Walk));

        let walked = world.manager.smaps_rollup(first, Fill::Walk);
        assert_eq!(walked.pss, Exact(15 * PAGE / 2 + PAGE));
        assert_eq!(four(&walked), [Exact(0), Exact(15), Exact(0), Exact(1)]);
        let alone: Vec<_> = entries(world, first, Fill::Walk)
            .iter()
            .filter(|(_, entry)| entry.exclusive == Exact(true))
            .map(|(page, _)| page - BASE)
            .collect();
        assert_eq!(alone, [3]);
        let (pfn, _) = world.leaf(first, BASE).unwrap();
        assert_eq!(world.manager.kpagecount(pfn, Fill::Scheme), Walk);
        assert_eq!(world.manager.kpagecount(pfn, Fill::Walk), Exact(2));
    });
}

#[test]
fn a_page_twice_in_one_space() {
    fn check<A: Accounting>(count: Answer<u64>, exclusive: Answer<bool>) {
        world::<A>(SMALL, |world| {
            let file = world.manager.create_object(ObjectKind::File, 0, 16, Order::new(4)).unwrap();
            let space = world.space();
            for at in [BASE, BASE + 64] {
                world.map(space, at, 16, RW, Map::Shared(file, 0));
                world.read(space, at);
            }
            let (pfn, _) = world.leaf(space, BASE).unwrap();
            assert_eq!(world.manager.kpagecount(pfn, Fill::Scheme), count, "{}", A::NAME);
            let seen = entries(world, space, Fill::Scheme);
            assert_eq!(seen.len(), 32);
            assert!(seen.iter().all(|(_, entry)| entry.exclusive == exclusive), "{}", A::NAME);
        });
    }
    // One owner: who asks for leaves says shared, who asks for owners does not (SCHEMES.md, D17).
    check::<PerPage>(Exact(2), Exact(false));
    check::<Total>(About(2), About(true));
    check::<MmOwner>(About(2), About(true));
    check::<PerLevel>(About(2), About(true));
    check::<Vmas>(Cannot, About(false));
}

#[test]
fn device_pages_are_present_and_no_more() {
    world::<Total>(SMALL, |world| {
        let space = world.space();
        world.map(space, BASE, 4, RW, Map::Device(world.device()));
        world.read(space, BASE + 1);
        assert_eq!(rollup(world, space).rss, 0);
        let seen = entries(world, space, Fill::Scheme);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].1.word(), PagemapEntry::PRESENT | world.device().add(1).raw());
        assert_eq!(world.manager.kpagecount(world.device(), Fill::Scheme), Exact(0));
        assert_eq!(world.manager.kpagecount(Pfn::new(0), Fill::Scheme), Exact(0));
    });
}

#[test]
fn protection_is_no_matter() {
    world::<PerPage>(SMALL, |world| {
        let space = world.anon(4);
        world.fill(space, BASE..BASE + 4, 1);
        let none = Prot { read: false, write: false, exec: false };
        world.manager.protect(space, at(BASE), 2, none).unwrap();
        assert_eq!(rollup(world, space).rss, 4);
        assert_eq!(entries(world, space, Fill::Scheme).len(), 4);
    });
}

/// Every scheme: Rss is what the leaves say, and the parts of it add up wherever the scheme says them.
struct PartsAddUp;

impl UnderScheme for PartsAddUp {
    type Output = ();

    fn run<A: Accounting>(self) {
        world::<A>(Policy::up_to(Order::HUGE), |world| {
            let first = world.anon(1100);
            world.fill(first, BASE..BASE + 1100, 1);
            let second = world.manager.fork(first).unwrap();
            world.fill(second, BASE + 300..BASE + 330, 2);
            world.manager.unmap(first, at(BASE + 700), 100).unwrap();
            for fill in [Fill::Scheme, Fill::Walk] {
                for space in [first, second] {
                    let smaps = world.manager.smaps_rollup(space, fill);
                    assert_eq!(smaps.rss, world.manager.rss(space));
                    let all = four(&smaps).into_iter().reduce(quire::stats::sum).unwrap();
                    assert!(all.value().is_none_or(|pages| pages == smaps.rss), "{}: {all:?}", A::NAME);
                    assert!(smaps.pss.value().is_none_or(|pss| pss <= smaps.rss * PAGE), "{}", A::NAME);
                    assert_eq!(entries(world, space, fill).len() as u64, smaps.rss);
                }
            }
            if A::NAME == None::NAME {
                distinct_by_walk(&world.manager, [first, second]);
            }
        });
    }
}

/// Exact shares of all owners are the distinct pages.
fn distinct_by_walk<A: Accounting>(manager: &Manager<&Machine, A>, spaces: [SpaceId; 2]) {
    let pss: u64 = spaces.iter().map(|&space| manager.smaps_rollup(space, Fill::Walk).pss.value().unwrap()).sum();
    // 1100 of the first folios, 100 of them in one space only, and 30 copies.
    assert_eq!(pss, (1100 + 30) * PAGE);
}

#[test]
fn the_parts_of_rss_add_up() {
    for scheme in Scheme::EACH {
        scheme.run(PartsAddUp);
    }
}

/// Readers hold the space shared, and hurt no count; what they say of a page was so at one moment.
#[test]
fn readers_run_beside_faults() {
    fn check<A: Accounting>(fill: Fill) {
        const PAGES: u64 = 2048;
        let cpus = Untouched(EmulatedMemory::new(FRAMES + Recount::scratch_frames(FRAMES)));
        let manager = Manager::<_, A>::new(&cpus, &[Pfn::new(0)..Pfn::new(FRAMES)], true, sixteen()).unwrap();
        let first = manager.create_space().unwrap();
        manager.map(first, at(BASE), PAGES, RW, Map::Anon).unwrap();
        let store = |space| {
            for page in BASE..BASE + PAGES {
                manager.fault(space, at(page), Access::Write).unwrap();
            }
        };
        store(first);
        let second = manager.fork(first).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| store(second));
            while !writer.is_finished() {
                for space in [first, second] {
                    let smaps = manager.smaps_rollup(space, fill);
                    assert_eq!(smaps.rss, PAGES, "a page that is copied is there all the while");
                    let parts = four(&smaps).into_iter().reduce(quire::stats::sum).unwrap();
                    assert!(parts.value().is_none_or(|pages| pages == smaps.rss), "{}", A::NAME);
                }
                manager.pagemap(first, BASE..BASE + 64, fill, |_, entry| assert!(!entry.is_file));
                assert!(manager.meminfo().page_tables > 0);
            }
        });
        let audit = Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES).run(&manager);
        assert_eq!(audit.mismatches, 0, "{}: {:?}", A::NAME, audit.first);
        manager.destroy_space(first);
        manager.destroy_space(second);
        assert!(manager.trim());
    }
    check::<PerPage>(Fill::Scheme);
    check::<Total>(Fill::Scheme);
    check::<PerLevel>(Fill::Scheme);
    check::<Vmas>(Fill::Scheme);
    check::<None>(Fill::Walk);
}

#[test]
fn what_finds_no_room_on_the_way_out_is_counted() {
    world::<Total>(SMALL, |world| {
        let (one, many) = (world.anon(3), world.space());
        world.write(one, BASE + 1, 7);
        const VMAS: u64 = 8000;
        (0..VMAS).for_each(|i| world.map(many, BASE + 2 * i, 1, RW, Map::Anon));
        world.write(many, BASE + 2 * (VMAS - 1), 7);
        let mut words = vec![0; STATS_WORDS];
        stats::write(&world.manager, true, |index, word| words[index] = word);
        let read = stats::Stats::new(&words).unwrap();
        assert_eq!(read.meminfo(), world.manager.meminfo());
        let tenants: Vec<_> = read.tenants().collect();
        assert_eq!(tenants, [one, many].map(|space| (u64::from(space.raw()), rollup(world, space))));
        let vmas: Vec<_> = read.vmas().collect();
        assert_eq!((vmas[0].space, vmas[0].start, vmas[0].smaps), (u64::from(one.raw()), BASE, rollup(world, one)));
        assert!(vmas.len() > 3000);
        assert_eq!(read.left_out(), (0, 1 + VMAS - vmas.len() as u64, read.left_out().2));
        assert!(stats::Stats::new(&[0; STATS_WORDS]).is_none(), "nothing was written");
        assert!(stats::Stats::new(&words[..1000]).is_none(), "it was cut off");
    });
}

#[test]
fn a_reader_teaches_a_scheme_that_lost_an_owner() {
    world::<PerLevel>(sixteen(), |world| {
        let first = world.anon(16);
        world.fill(first, BASE..BASE + 16, 1);
        let others = [(); 2].map(|()| world.manager.fork(first).unwrap());
        // Both slots are taken when the third comes; then the two that have them go.
        world.leave(first);
        world.leave(others[0]);
        let folio = world.manager.folio(world.leaf(others[1], BASE).unwrap().0).unwrap();
        let shared = || PerLevel::maybe_shared(&world.manager.counts(folio), others[1].raw()).value();
        assert_eq!(shared(), Some(true));
        // What it learns it says at once.
        assert_eq!(rollup(world, others[1]).uss().value(), Some(16));
        assert_eq!(shared(), Some(false));
    });
}

#[test]
fn runs_of_pages_are_what_pagemap_and_kpagecount_say() {
    world::<PerPage>(SMALL, |world| {
        let parent = world.anon(40);
        world.fill(parent, BASE..BASE + 40, 1);
        let child = world.manager.fork(parent).unwrap();
        world.write(child, BASE + 5, 9);
        let mut words = vec![0; STATS_WORDS];
        stats::write(&world.manager, true, |index, word| words[index] = word);
        let read = stats::Stats::new(&words).unwrap();
        assert_eq!(read.left_out(), (0, 0, 0));
        for space in [parent, child] {
            let runs: Vec<_> = read.runs().filter(|run| run.space == u64::from(space.raw())).collect();
            assert_eq!(runs.iter().map(|run| run.pages).sum::<u64>(), world.manager.rss(space));
            let mut pages = Vec::new();
            world.manager.pagemap(space, 0..PAGES_END, Fill::Scheme, |page, entry| pages.push((page, entry)));
            let told = runs.iter().flat_map(|run| (0..run.pages).map(move |i| (run, i)));
            for ((run, i), (page, entry)) in told.zip(pages) {
                assert_eq!((run.page + i, run.pfn + i), (page, entry.pfn.raw()));
                assert_eq!((run.exclusive, run.is_file), (entry.exclusive, entry.is_file));
                assert_eq!(run.count, world.manager.kpagecount(entry.pfn, Fill::Scheme));
                // The child's copy, and the parent's page that is left alone.
                let expected = if page == BASE + 5 { 1 } else { 2 };
                assert_eq!((run.count.value(), run.exclusive.value()), (Some(expected), Some(expected == 1)));
            }
        }
        stats::write(&world.manager, false, |index, word| words[index] = word);
        assert_eq!(stats::Stats::new(&words).unwrap().runs().count(), 0);
    });
}
