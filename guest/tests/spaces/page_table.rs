//! The page-table engine, over tables in emulated frames, and the leaves that the manager makes with it.

use std::cell::{Cell, RefCell};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, machine_of};
use quire::addr::{ENTRIES, Level, Order, Pfn};
use quire::format::{Attrs, Entry, Ept, Format, Leaf, Levels5, LongMode, Npt};
use quire::mapcount::Total;
use quire::memory::{FlushScope, Memory, Tlb};
use quire::model::EmulatedMemory;
use quire::page_table::{FLUSH_CAPACITY, Flush, OpenError, PageTable, Tables};
use quire::space::{Advice, Map, Policy};
use quire::sync::{WordGuard, lock_word};

const TABLES: u64 = 512;

/// Tables from frame 1 on, one after the other, and a list of what was freed.
struct Heap {
    memory: EmulatedMemory,
    locks: Vec<AtomicU64>,
    next: Cell<u64>,
    limit: Cell<u64>,
    freed: RefCell<Vec<Pfn>>,
    flushes: RefCell<Vec<FlushScope>>,
}

impl Heap {
    fn new() -> Self {
        Self {
            memory: EmulatedMemory::new(TABLES),
            locks: (0..TABLES).map(|_| AtomicU64::new(0)).collect(),
            next: Cell::new(1),
            limit: Cell::new(TABLES),
            freed: RefCell::default(),
            flushes: RefCell::default(),
        }
    }
    fn table<F: Format>(&self) -> PageTable<F> {
        PageTable::new(self.alloc_table().unwrap())
    }
    fn in_use(&self) -> u64 {
        self.next.get() - 1 - self.freed.borrow().len() as u64
    }
    fn finish<F: Format>(&self, table: PageTable<F>, flush: &mut Flush<()>) {
        flush.finish(self, self, table.root(), |_: &[()]| {});
    }
}

impl Tables for Heap {
    type Guard<'a> = WordGuard<'a>;

    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.memory.frame(table).0
    }
    fn lock(&self, table: Pfn) -> WordGuard<'_> {
        assert_eq!(
            self.locks[table.raw() as usize].load(Relaxed),
            0,
            "{table:?} is locked: one thread would wait for ever"
        );
        lock_word(&self.locks[table.raw() as usize])
    }
    fn alloc_table(&self) -> Option<Pfn> {
        let next = self.next.get();
        (next < self.limit.get()).then(|| {
            self.next.set(next + 1);
            Pfn::new(next)
        })
    }
    fn free_table(&self, table: Pfn, cleared: bool) {
        assert!(
            !cleared || self.entries(table).iter().all(|word| word.load(Relaxed) == 0),
            "{table:?} holds something"
        );
        assert!(!self.freed.borrow().contains(&table), "{table:?} is freed twice");
        self.freed.borrow_mut().push(table);
    }
}

impl Tlb for Heap {
    fn flush(&self, _root: Pfn, scope: FlushScope) {
        self.flushes.borrow_mut().push(scope);
    }
}

/// Pages of the lower half of what tables of `F` span.
fn end<F: Format>() -> u64 {
    F::ROOT.table_pages() / 2
}

/// Levels above those of a table of four.
fn above<F: Format>() -> u64 {
    u64::from(F::ROOT.get()) - 4
}

/// A test for each of these, in every format and depth.
macro_rules! in_every_format {
    ($($test:ident),* $(,)?) => {
        mod in_every_format {
            use super::{Ept, Levels5, LongMode, Npt};
            $(
                #[test]
                fn $test() {
                    super::$test::<LongMode>();
                    super::$test::<Ept>();
                    super::$test::<Npt>();
                    super::$test::<Levels5<LongMode>>();
                    super::$test::<Levels5<Ept>>();
                    super::$test::<Levels5<Npt>>();
                }
            )*
        }
    };
}

in_every_format!(
    open_makes_the_tables_on_the_way_and_next_finds_what_is_there,
    open_is_refused_below_a_leaf_and_out_of_frames,
    a_leaf_across_an_edge_comes_alone_and_straddles,
    a_split_keeps_frames_and_rights_and_a_collapse_undoes_it,
    prune_takes_only_tables_within_the_range,
    frozen_leaves_are_absent_but_held,
    attributes_change_alone_and_in_runs,
    a_run_is_as_long_as_its_entries_say,
);

fn leaf(pfn: u64) -> Leaf {
    Leaf { pfn: Pfn::new(pfn), attrs: Attrs::USER.or(Attrs::WRITE).or(Attrs::ACCESSED_DIRTY) }
}

fn open_makes_the_tables_on_the_way_and_next_finds_what_is_there<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    for (page, level) in [(0, 1), (511, 1), (512, 2), (BASE, 3), (end::<F>() - 1, 1)] {
        let level = Level::new(level);
        let page = page & !(level.entry_pages() - 1);
        let part = table.cursor(&heap, page, page + level.entry_pages()).open(level).unwrap();
        assert_eq!((part.level(), part.range().len()), (level, 1));
        part.install(part.index(page), 1, leaf(1 << 20));
        drop(part);
        let (place, found) = table.lookup(&heap, page + level.entry_pages() / 2).unwrap();
        assert_eq!((place.page, place.level, found), (page, level, leaf(1 << 20)));
    }
    let mut seen = Vec::new();
    table.for_each_leaf(&heap, end::<F>(), &mut |place, _| seen.push((place.page, place.level.get())));
    seen.sort_unstable();
    assert_eq!(seen, [(0, 1), (511, 1), (512, 2), (BASE, 3), (end::<F>() - 1, 1)]);
    let mut cursor = table.cursor(&heap, 0, end::<F>());
    let mut at = 0;
    while let Some(part) = cursor.next() {
        let range = part.range();
        assert_eq!(part.page(range.start), at, "the parts leave no gap");
        assert!(!part.straddles());
        assert!(range.clone().all(|i| !matches!(part.entry(i), Entry::Table(_))));
        at = part.page(range.end);
    }
    assert_eq!(at, end::<F>());
}

fn open_is_refused_below_a_leaf_and_out_of_frames<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    table.cursor(&heap, 512, 1024).open(Level::TWO).unwrap().install(1, 1, leaf(512));
    assert_eq!(table.cursor(&heap, 600, 601).open(Level::ONE).unwrap_err(), OpenError::InTheWay);
    heap.limit.set(heap.next.get() + 1);
    assert_eq!(table.cursor(&heap, BASE, BASE + 1).open(Level::ONE).unwrap_err(), OpenError::OutOfFrames);
}

fn a_leaf_across_an_edge_comes_alone_and_straddles<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    table.cursor(&heap, 0, 4 * 512).open(Level::TWO).unwrap().install(0, 4, leaf(0));
    for (first, end) in [(0, 2047), (1, 2048), (511, 513), (700, 701), (1024, 1535)] {
        let mut cursor = table.cursor(&heap, first, end);
        let mut pages = 0;
        while let Some(part) = cursor.next() {
            let range = part.range();
            let whole = first <= part.page(range.start) && part.page(range.end) <= end;
            assert_eq!(part.straddles(), !whole, "{first}..{end} at {range:?}");
            if part.straddles() {
                assert_eq!(range.len(), 1);
            }
            pages += range.len() as u64 * 512;
        }
        assert_eq!(pages, end.next_multiple_of(512) - first / 512 * 512);
    }
}

fn a_split_keeps_frames_and_rights_and_a_collapse_undoes_it<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    let mut flush = Flush::new();
    let big = Leaf {
        pfn: Pfn::new(1 << 18),
        attrs: Attrs::USER.or(Attrs::EXEC).or(Attrs::EXCLUSIVE).or(Attrs::ACCESSED_DIRTY),
    };
    table.cursor(&heap, BASE, 2 * BASE).open(Level::THREE).unwrap().install(1, 1, big);
    for level in [Level::THREE, Level::TWO] {
        let mut cursor = table.cursor(&heap, BASE + 512, BASE + 513);
        let part = cursor.next().unwrap();
        assert!(part.straddles() && part.level() == level);
        // Nobody sees what is not counted yet.
        let unseen = || assert!(table.lookup(&heap, BASE + 512).is_none());
        part.split(part.range().start, &mut flush, unseen).unwrap();
        drop(part);
        heap.finish(table, &mut flush);
        for page in [0, 511, 512, 513, 1023, 1024, (1 << 18) - 1] {
            let (place, found) = table.lookup(&heap, BASE + page).unwrap();
            assert_eq!(found.attrs, big.attrs);
            assert_eq!(found.pfn.raw() + (BASE + page - place.page), big.pfn.raw() + page);
        }
    }
    let tables = heap.in_use();
    // A gap, other rights, or a run that does not begin at a boundary: no leaf.
    let change = |remove, add| {
        let part = table.cursor(&heap, BASE + 700, BASE + 701).open(Level::ONE).unwrap();
        part.change(part.index(BASE + 700), 1, remove, add);
    };
    change(Attrs::EXCLUSIVE, Attrs::NONE);
    assert!(table.cursor(&heap, BASE + 512, BASE + 1024).collapse(Level::TWO, &mut flush).is_none());
    change(Attrs::NONE, Attrs::EXCLUSIVE);
    assert!(flush.is_empty());
    for level in [Level::TWO, Level::THREE] {
        let (place, found) = table.cursor(&heap, BASE + 512, BASE + 1024).collapse(level, &mut flush).unwrap();
        assert_eq!((place.level, found.attrs), (level, big.attrs));
        heap.finish(table, &mut flush);
    }
    assert_eq!(table.lookup(&heap, BASE + 5).unwrap().1, big);
    assert_eq!(heap.in_use(), tables - 2);
}

fn prune_takes_only_tables_within_the_range<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    let pages = [0, 512, 1024, BASE, 512 * BASE];
    for page in pages {
        drop(table.cursor(&heap, page, page + 1).open(Level::ONE).unwrap());
    }
    // Root, perhaps 1 of level 4, 2 of level 3, 3 of level 2, 5 of level 1.
    let upper = above::<F>();
    assert_eq!((heap.in_use(), table.nr_tables(&heap, end::<F>())), (11 + upper, 11 + upper));
    let mut flush = Flush::new();
    table.prune(&heap, 1..1024, 0..0, &mut flush);
    table.prune(&heap, 1..1024, 1024..end::<F>(), &mut flush);
    assert!(flush.is_empty(), "only where they are looked for");
    table.prune(&heap, 1..1024, 1023..1024, &mut flush);
    heap.finish(table, &mut flush);
    assert_eq!(heap.in_use(), 10 + upper, "the table of pages 512..1024");
    assert_eq!(*heap.flushes.borrow(), [FlushScope::Space], "paging-structure caches");
    table.prune(&heap, 0..BASE, 0..BASE, &mut flush);
    heap.finish(table, &mut flush);
    assert_eq!(heap.in_use(), 7 + upper);
    table.prune(&heap, 0..end::<F>(), 0..end::<F>(), &mut flush);
    heap.finish(table, &mut flush);
    assert_eq!(heap.in_use(), 1, "the root stays");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "a flush was forgotten")]
fn a_token_that_is_dropped_panics() {
    let mut flush: Flush<()> = Flush::new();
    flush.add_pages(7, 1);
    drop(flush);
}

#[test]
fn what_was_removed_is_released_behind_the_flush() {
    let heap = Heap::new();
    let mut flush = Flush::new();
    for i in 0..FLUSH_CAPACITY {
        assert!(!flush.is_full());
        flush.add_pages(100 + (i * 16 / FLUSH_CAPACITY) as u64, 1);
        flush.push(i);
    }
    assert!(flush.is_full());
    let mut released = Vec::new();
    flush.finish(&heap, &heap, Pfn::new(1), |items| {
        assert_eq!(heap.flushes.borrow().len(), 1, "not before the flush");
        released.extend_from_slice(items);
    });
    assert_eq!(released, (0..FLUSH_CAPACITY).collect::<Vec<_>>());
    assert_eq!(*heap.flushes.borrow(), [FlushScope::Pages { first: 100, pages: 16 }]);
    assert!(flush.is_empty());
    // Nothing to flush: no flush.
    flush.finish(&heap, &heap, Pfn::new(1), |_| {});
    assert_eq!(heap.flushes.borrow().len(), 1);
    // Many pages: everything.
    flush.add_pages(0, 1000);
    flush.finish(&heap, &heap, Pfn::new(1), |_| {});
    assert_eq!(heap.flushes.borrow()[1], FlushScope::Space);
}

fn frozen_leaves_are_absent_but_held<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    let part = table.cursor(&heap, 0, 512).open(Level::ONE).unwrap();
    let clean = Leaf { attrs: Attrs::USER.or(Attrs::WRITE).or(Attrs::EXCLUSIVE), ..leaf(40) };
    part.install(3, 4, clean);
    part.freeze(4, 2);
    assert!(part.leaf(4).is_none() && !part.is_absent(4) && part.is_frozen(4) && !part.is_frozen(3));
    assert_eq!(part.held(5), Some(Leaf { pfn: Pfn::new(42), ..clean }));
    assert_eq!(part.count_leaves_of(0..512, Pfn::new(40), Pfn::new(44)), 4);
    assert!(table.lookup(&heap, 4).is_none());
    part.thaw(4, 1);
    assert_eq!(part.leaf(4), Some(Leaf { pfn: Pfn::new(41), ..clean }));
    part.thaw_to(5, 1, Pfn::new(99));
    assert_eq!(part.leaf(5), Some(Leaf { pfn: Pfn::new(99), ..clean }));
    part.freeze(3, 1);
    assert_eq!(part.clear(3, 1), clean.attrs);
    assert!(part.is_absent(3));
}

/// Every attribute is taken and given on its own, on settled leaves and on others, by ones and by runs; a leaf that allows nothing
/// remembers what it will allow again.
fn attributes_change_alone_and_in_runs<F: Format>() {
    let heap = Heap::new();
    let table = heap.table::<F>();
    for attrs in Attrs::all_subsets() {
        for (remove, add) in Attrs::all_subsets().flat_map(|a| [(a, Attrs::NONE), (Attrs::NONE, a)]) {
            let part = table.cursor(&heap, 0, 512).open(Level::ONE).unwrap();
            part.install(5, 11, Leaf { attrs, ..leaf(40) });
            part.change(6, 9, remove, add);
            for i in 5..16 {
                let expected = if (6..15).contains(&i) { attrs.without(remove).or(add) } else { attrs };
                assert_eq!(part.leaf(i), Some(Leaf { pfn: Pfn::new(35 + i as u64), attrs: expected }));
            }
            part.clear(5, 11);
        }
    }
}

// --- through the manager ---------------------------------------------------------------------------------------

#[test]
fn every_boundary_of_a_table_may_be_cut() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(3 * 512);
    world.fill(space, BASE..BASE + 3 * 512, 1);
    world.audit();
    for edge in [512, 511, 513, 1024, 1023, 1025] {
        let child = world.manager.fork(space).unwrap();
        world.manager.unmap(child, at(BASE + edge), 1).unwrap();
        world.manager.protect(child, at(BASE + edge - 1), 3, R).unwrap();
        world.manager.advise(child, at(BASE + edge - 1), 1, Advice::DontNeed).unwrap();
        world.audit();
        world.expect(child, BASE + edge + 1..BASE + 1536, BASE + edge + 1, 1);
        world.expect(child, BASE..BASE + edge - 1, BASE, 1);
        assert!(world.access(child, BASE + edge, None).is_err());
        world.leave(child);
    }
    world.expect(space, BASE..BASE + 3 * 512, BASE, 1);
    world.end(&[]);
}

#[test]
fn leaves_split_and_collapse_under_the_counts() {
    let machine = machine_of(FRAMES);
    let world = World::new(&machine, huge());
    let space = world.anon(1024);
    world.fill(space, BASE..BASE + 1024, 1);
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::TWO);
    world.manager.protect(space, at(BASE + 10), 5, R).unwrap();
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::ONE);
    assert!(!world.manager.collapse(space, at(BASE)), "rights differ");
    world.manager.protect(space, at(BASE + 10), 5, RW).unwrap();
    assert!(!world.manager.collapse(space, at(BASE)), "stores are not allowed there yet");
    world.write(space, BASE + 12, 1 << 40 | (BASE + 12));
    assert!(world.manager.collapse(space, at(BASE)));
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::TWO);
    world.audit();
    world.expect(space, BASE..BASE + 1024, BASE, 1);
    // Not what is not one folio, and not twice.
    assert!(!world.manager.collapse(space, at(BASE)));
    assert!(!world.manager.collapse(space, at(BASE + 4096)));
    world.end(&[]);
}

#[test]
fn leaves_of_one_gib() {
    let frames = 3 << 18;
    let machine = machine_of(frames);
    let policy = Policy { orders: 1 | 1 << 18, max_leaf: Level::THREE, ..Policy::up_to(Order::MAX) };
    let world: World<'_, Total> = World::with_scheme(&machine, policy, frames);
    let space = world.space();
    world.map(space, BASE, 2 << 18, RW, Map::Anon);
    world.write(space, BASE + 77, 77);
    world.write(space, BASE + (1 << 18) - 1, 78);
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::THREE);
    assert_eq!(world.manager.rss(space), 1 << 18);
    // A hole in the middle: one table of each level.
    world.manager.unmap(space, at(BASE + 1000), 1).unwrap();
    assert_eq!(world.leaf(space, BASE).unwrap().1, Level::TWO);
    assert_eq!(world.leaf(space, BASE + 999).unwrap().1, Level::ONE);
    assert_eq!(world.leaf(space, BASE + 1024).unwrap().1, Level::TWO);
    assert_eq!((world.read(space, BASE + 77), world.read(space, BASE + (1 << 18) - 1)), (77, 78));
    let child = world.manager.fork(space).unwrap();
    world.write(child, BASE + 77, 1);
    assert_eq!(world.read(space, BASE + 77), 77);
    assert_eq!(machine.stale(), None);
    for space in [child, space] {
        world.leave(space);
    }
    assert!(world.manager.trim());
}

type Change = fn(u64) -> u64;

/// The leaf that `raw` is, frozen or not.
fn held<F: Format>(raw: u64) -> Leaf {
    match F::decode(F::thaw(raw).unwrap_or(raw), Level::ONE) {
        Entry::Leaf(leaf) => leaf,
        other => panic!("{other:?}"),
    }
}

/// Runs are looked at several entries at a time: one that is unlike the others, wherever it stands, must be seen.
fn a_run_is_as_long_as_its_entries_say<F: Format>() {
    const ENTRY: u64 = 1 << 12;
    let step = F::leaf_step(Level::ONE);
    let (heap, child) = (Heap::new(), Heap::new());
    let (table, copy) = (heap.table::<F>(), child.table::<F>());
    let settled = Attrs::USER.or(Attrs::WRITE).or(Attrs::ACCESSED_DIRTY);
    for (i, n, odd) in (0..3).flat_map(|i| (1..40).flat_map(move |n| (0..=n).map(move |odd| (i, n, odd)))) {
        // Not accessed; other rights; not consecutive; frozen; absent.
        let unlike: [(Change, bool, bool); 5] = [
            (|raw| raw & !F::set_bits(Attrs::ACCESSED), true, false),
            (|raw| raw & !F::set_bits(Attrs::WRITE) | F::set_bits(Attrs::EXCLUSIVE), true, false),
            (|raw| raw + ENTRY, false, true),
            (F::freeze, false, true),
            (|_| 0, false, false),
        ];
        for (unlike, same_run, counted) in unlike {
            let fill = |heap: &Heap, table: PageTable<F>| {
                let part = table.cursor(heap, 0, 512).open(Level::ONE).unwrap();
                part.install(i, n, Leaf { pfn: Pfn::new(0x1000), attrs: settled });
                let entries = heap.entries(part.table());
                (0..n).for_each(|k| {
                    assert_eq!(
                        entries[i + k].load(Relaxed),
                        F::leaf(Leaf { pfn: Pfn::new(0x1000), attrs: settled }, Level::ONE) + step * k as u64
                    );
                });
                if odd < n {
                    entries[i + odd].store(unlike(entries[i + odd].load(Relaxed)), Relaxed);
                }
            };
            fill(&heap, table);
            let part = table.cursor(&heap, 0, 512).next().unwrap();
            let entries = heap.entries(part.table());
            let before: Vec<u64> = entries.iter().map(|word| word.load(Relaxed)).collect();
            // What ends a run at its first entry begins one there.
            let expected = if same_run || odd == n || n == 1 {
                n
            } else if odd == 0 {
                1
            } else {
                odd
            };
            let run = part.run(i, n, Attrs::ALL);
            assert_eq!((run.leaves, part.run_length(i, n, Attrs::ALL)), (expected, expected), "{i} {n} {odd}");
            assert_eq!(part.are_absent(i..i + n), n == 1 && odd == 0 && !same_run && !counted);

            let to = copy.cursor(&child, 0, 512).open(Level::ONE).unwrap();
            part.copy_to(i, run, &to, Attrs::WRITE);
            let write = F::set_bits(Attrs::WRITE);
            for k in 0..ENTRIES {
                let copied = (i..i + expected).contains(&k);
                let after = if copied { before[k] & !write } else { before[k] };
                assert_eq!(entries[k].load(Relaxed), after, "{i} {n} {odd} {k}");
                assert_eq!(child.entries(to.table())[k].load(Relaxed), if copied { after } else { 0 });
                entries[k].store(before[k], Relaxed);
            }

            let union = before[i..i + expected]
                .iter()
                .filter(|&&raw| raw != 0)
                .map(|&raw| held::<F>(raw).attrs)
                .fold(Attrs::NONE, Attrs::or);
            assert_eq!(part.take_run(i, n), (expected, union), "{i} {n} {odd}");
            for k in 0..ENTRIES {
                let taken = (i..i + expected).contains(&k);
                assert_eq!(entries[k].load(Relaxed), if taken { 0 } else { before[k] });
                entries[k].store(before[k], Relaxed);
            }
            if same_run || counted {
                part.change(i, n, Attrs::WRITE, Attrs::EXEC);
                for (k, raw) in (i..i + n).zip(&before[i..]) {
                    let was = held::<F>(*raw);
                    let attrs = was.attrs.without(Attrs::WRITE).or(Attrs::EXEC);
                    assert_eq!(part.held(k), Some(Leaf { attrs, ..was }));
                    assert_eq!(part.is_frozen(k), F::thaw(*raw).is_some());
                }
            }
            for words in [entries, child.entries(to.table())] {
                words.iter().for_each(|word| word.store(0, Relaxed));
            }
        }
    }
}

/// What comes before a leaf is found however far the run goes: in steps of one and by chunks, to a gap, another right, or the limit.
#[test]
fn a_run_is_found_backwards() {
    let heap = Heap::new();
    let table = heap.table::<LongMode>();
    let part = table.cursor(&heap, 0, 512).open(Level::ONE).unwrap();
    let leaf = |pfn: u64, attrs| Leaf { pfn: Pfn::new(pfn), attrs };
    let settled = Attrs::USER.or(Attrs::WRITE).or(Attrs::ACCESSED_DIRTY);
    part.install(10, 60, leaf(1000, settled));
    for (i, max, before) in
        [(10, 10, 0), (11, 11, 1), (17, 17, 7), (18, 18, 8), (19, 19, 9), (69, 69, 59), (69, 20, 20), (69, 0, 0)]
    {
        assert_eq!(part.run_before(i, max, Attrs::NONE), before, "{i} {max}");
    }
    // One that the MMU has not used differs in what may be ignored only.
    part.clear(40, 1);
    part.install(40, 1, leaf(1030, settled.without(Attrs::ACCESSED_DIRTY)));
    assert_eq!(part.run_before(69, 69, Attrs::NONE), 28);
    assert_eq!(part.run_before(69, 69, Attrs::ACCESSED_DIRTY), 59);
    // Other memory, another right, nothing.
    for other in [Some(leaf(2000, settled)), Some(leaf(1005, settled.without(Attrs::WRITE))), None] {
        part.clear(15, 1);
        if let Some(other) = other {
            part.install(15, 1, other);
        }
        assert_eq!(part.run_before(69, 69, Attrs::ACCESSED_DIRTY), 53, "{other:?}");
    }
    // A frozen leaf is none that a store goes through.
    part.freeze(50, 1);
    assert_eq!(part.run_before(69, 69, Attrs::ACCESSED_DIRTY), 18);
}
