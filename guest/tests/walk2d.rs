//! The walk in two dimensions, over every pair of formats and depths and every mix of leaf sizes.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use quire::addr::{ENTRIES, Level, Pfn};
use quire::format::{Attrs, Ept, Format, Leaf, Levels5, LongMode, Npt};
use quire::memory::Memory;
use quire::model::EmulatedMemory;
use quire::model::walk2d::{Layout, Stopped, Tree, Walked, walk};
use quire::page_table::{Flush, PageTable, Tables};
use quire::space::Access;

const GIB: u64 = 1 << 18;
/// Pages of a guest's walk at most: five tables and the page.
const PLACES: u64 = 6;
/// A guest's address: no index of it is 0 or another's.
const ADDRESS: u64 = 0x0066_5544_3322_1678;

/// Frames: the first GiB for tables, and from there one GiB for each page of a guest's walk.
struct Frames {
    memory: EmulatedMemory,
    /// Enough that a table and the one linked into it have two.
    next: Cell<u64>,
}

impl Frames {
    fn new() -> Self {
        Self { memory: EmulatedMemory::new((1 + PLACES) * GIB), next: Cell::new(1) }
    }
    fn word(&self, address: u64) -> &AtomicU64 {
        &self.memory.frame(Pfn::from_address(address)).0[(address >> 3 & 511) as usize]
    }
}

impl Tables for Frames {
    type Guard<'a> = ();

    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.memory.frame(table).0
    }
    fn lock(&self, _table: Pfn) {}
    fn alloc_table(&self) -> Option<Pfn> {
        Some(Pfn::new(self.next.replace(self.next.get() + 1)))
    }
    fn free_table(&self, _table: Pfn, _cleared: bool) {}
}

fn everything() -> Attrs {
    Attrs::USER.or(Attrs::WRITE).or(Attrs::EXEC)
}

fn map<F: Format>(frames: &Frames, table: PageTable<F>, page: u64, level: Level, leaf: Leaf) {
    let part = table.cursor(frames, page, page + level.entry_pages()).open(level).unwrap();
    part.install(part.index(page), 1, leaf);
}

/// Every guest page `place` is at one guest-physical GiB for each size of a leaf that maps it: where, by leaf level.
fn window(place: u64, level: u32) -> u64 {
    (3 * place + u64::from(level)) * GIB
}

/// Where in its GiB each page of a walk is: where a guest's leaf of any size puts the address.
const WITHIN: u64 = (ADDRESS >> 12) % GIB;

/// The second level, and what a walk of it to each place and leaf level must cost.
fn second_level<F: Format>(frames: &Frames, attrs: Attrs) -> PageTable<F> {
    let table = PageTable::<F>::new(frames.alloc_table().unwrap());
    for place in 0..PLACES {
        for level in 1..=3 {
            let level_of_leaf = Level::new(level as u8);
            let offset = WITHIN & !(level_of_leaf.entry_pages() - 1);
            let leaf = Leaf { pfn: Pfn::new((1 + place) * GIB + offset), attrs };
            map(frames, table, window(place, level) + offset, level_of_leaf, leaf);
        }
    }
    table
}

/// The guest's tables, by hand: the table of step `i` is at place `i`, mapped by a leaf of level `levels[i]`. The last is the page.
fn guest_tables(frames: &Frames, depth: u32, leaf_level: u32, levels: &[u32]) -> Tree {
    const TABLE: u64 = 0x27;
    let at = |place: usize| (window(place as u64, levels[place]) + WITHIN) << 12;
    let steps = levels.len() - 1;
    for step in 0..steps {
        let level = depth - step as u32;
        let shift = 12 + 9 * (level - 1);
        let entry = if level == leaf_level {
            // A large leaf spans the page: its first frame is the window's aligned part.
            let address = at(steps) & !((1 << shift) - 1);
            address | 0x67 | if level > 1 { 0x80 } else { 0 }
        } else {
            at(step + 1) | TABLE
        };
        let table = (1 + step as u64) * GIB + WITHIN;
        frames.word((table << 12) + 8 * (ADDRESS >> shift & 511)).store(entry, Relaxed);
    }
    Tree { root: Pfn::from_address(at(0)), levels: depth, layout: Layout::LongMode }
}

/// All ways to choose `n` numbers of 1 to 3.
fn mixes(n: usize) -> impl Iterator<Item = Vec<u32>> {
    (0..3_usize.pow(n as u32)).map(move |mix| (0..n).map(|i| (mix / 3_usize.pow(i as u32) % 3) as u32 + 1).collect())
}

/// Every mix of leaf sizes under every depth of the guest's own tables; how many walks there were.
fn costs<F: Format>(layout: Layout) -> u64 {
    let frames = Frames::new();
    let second = second_level::<F>(&frames, everything());
    let host_levels = u32::from(F::ROOT.get());
    let host = Tree { root: second.root(), levels: host_levels, layout };
    let mut walks = 0;
    for (depth, leaf_level) in [4, 5].into_iter().flat_map(|depth| [1, 2, 3].map(|leaf| (depth, leaf))) {
        let steps = (depth - leaf_level + 1) as usize;
        for levels in mixes(steps + 1) {
            let guest = guest_tables(&frames, depth, leaf_level, &levels);
            let found = walk(&frames.memory, guest, host, ADDRESS, Access::Write);
            let depths = levels.iter().map(|level| host_levels - level + 1);
            let expected = Walked {
                address: ((1 + steps as u64) * GIB + WITHIN) << 12 | ADDRESS & 0xfff,
                guest_physical: (window(steps as u64, levels[steps]) + WITHIN) << 12 | ADDRESS & 0xfff,
                references: depths.sum::<u32>() + steps as u32,
            };
            assert_eq!(found, Ok(expected), "{depth} {leaf_level} {levels:?}");
            if levels.iter().all(|level| *level == 1) && leaf_level == 1 {
                assert_eq!(expected.references, (depth + 1) * (host_levels + 1) - 1);
            }
            walks += 1;
        }
    }
    walks
}

#[test]
fn a_walk_costs_what_the_depths_say() {
    // For each depth of the guest's tables and each of its leaf sizes: all mixes for the tables and the page.
    let all = 3_u64.pow(5) + 3_u64.pow(4) + 3_u64.pow(3) + 3_u64.pow(6) + 3_u64.pow(5) + 3_u64.pow(4);
    let ept = Layout::Ept { accessed_dirty: true };
    assert_eq!(costs::<Ept>(ept), all);
    assert_eq!(costs::<Levels5<Ept>>(ept), all);
    assert_eq!(costs::<Npt>(Layout::Npt), all);
    assert_eq!(costs::<Levels5<Npt>>(Layout::Npt), all);
    assert_eq!(costs::<LongMode>(Layout::LongMode), all);
    assert_eq!(costs::<Levels5<LongMode>>(Layout::LongMode), all);
}

fn all_small<F: Format>(layout: Layout, depth: u32) -> u32 {
    let frames = Frames::new();
    let host = Tree { root: second_level::<F>(&frames, everything()).root(), levels: u32::from(F::ROOT.get()), layout };
    let guest = guest_tables(&frames, depth, 1, &vec![1; depth as usize + 1]);
    walk(&frames.memory, guest, host, ADDRESS, Access::Read).unwrap().references
}

#[test]
fn the_numbers_that_everybody_quotes() {
    assert_eq!(all_small::<Npt>(Layout::Npt, 4), 24);
    assert_eq!(all_small::<Levels5<Ept>>(Layout::Ept { accessed_dirty: false }, 5), 35);
    assert_eq!(all_small::<Ept>(Layout::Ept { accessed_dirty: false }, 5), 29);
    assert_eq!(all_small::<Levels5<Npt>>(Layout::Npt, 4), 29);
}

/// What the engine writes means to the walker what it means to the engine: every set of attributes, leaf size and access.
fn rights<F: Format>(layout: Layout) {
    let frames = Frames::new();
    for attrs in Attrs::all_subsets() {
        let second = second_level::<F>(&frames, everything());
        let host = Tree { root: second.root(), levels: u32::from(F::ROOT.get()), layout };
        let guest = guest_tables(&frames, 4, 1, &[1, 2, 3, 1, 2]);
        let page = window(4, 2) + WITHIN;
        let change = |attrs: Attrs| {
            let mut flush: Flush<()> = Flush::new();
            let part = second.cursor(&frames, page & !511, (page & !511) + 512).next().unwrap();
            part.change(part.index(page), 1, everything().without(attrs), attrs);
            flush.finish(&Nobody, &frames, second.root(), |_: &[()]| {});
        };
        change(attrs);
        for (access, allowed) in [
            (Access::Read, attrs.has(Attrs::USER)),
            (Access::Write, attrs.has(Attrs::USER.or(Attrs::WRITE))),
            (Access::Fetch, attrs.has(Attrs::USER.or(Attrs::EXEC))),
        ] {
            let found = walk(&frames.memory, guest, host, ADDRESS, access);
            match found {
                Ok(_) => assert!(allowed, "{attrs:?} {access:?}"),
                Err(Stopped::Violation { guest_physical, guest_walk: false, .. }) => {
                    assert!(!allowed, "{attrs:?} {access:?}");
                    assert_eq!(guest_physical, page << 12 | ADDRESS & 0xfff);
                }
                other => panic!("{attrs:?} {access:?}: {other:?}"),
            }
        }
    }
}

struct Nobody;
impl quire::memory::Tlb for Nobody {
    fn flush(&self, _root: Pfn, _scope: quire::memory::FlushScope) {}
}

#[test]
fn rights_are_what_the_engine_wrote() {
    rights::<Ept>(Layout::Ept { accessed_dirty: true });
    rights::<Npt>(Layout::Npt);
    rights::<Levels5<Ept>>(Layout::Ept { accessed_dirty: false });
    rights::<Levels5<Npt>>(Layout::Npt);
}

#[test]
fn a_walk_is_stopped_where_it_should_be() {
    let frames = Frames::new();
    let second = second_level::<Ept>(&frames, everything());
    let host = |accessed_dirty| Tree { root: second.root(), levels: 4, layout: Layout::Ept { accessed_dirty } };
    let guest = guest_tables(&frames, 4, 1, &[1; 5]);
    let table = (window(2, 1) + WITHIN) << 12;
    let entry = table + 8 * (ADDRESS >> 21 & 511);
    let look = |accessed_dirty| walk(&frames.memory, guest, host(accessed_dirty), ADDRESS, Access::Read);
    assert!(look(true).is_ok());

    // A table of the guest's that must not be written: only where the walk counts as a store.
    let page = table >> 12;
    let part = second.cursor(&frames, page, page + 1).next().unwrap();
    part.change(part.index(page), 1, Attrs::WRITE, Attrs::NONE);
    let violation = |present| Err(Stopped::Violation { guest_physical: entry, guest_walk: true, present });
    assert_eq!(look(true), violation(true));
    assert!(look(false).is_ok());
    // Gone.
    part.freeze(part.index(page), 1);
    assert_eq!(look(false), violation(false));
    part.thaw(part.index(page), 1);
    // Write without read.
    frames.entries(part.table())[part.index(page)].store(entry & !0xfff | 0x32, Relaxed);
    assert_eq!(look(false), Err(Stopped::Misconfigured { guest_physical: entry }));
    part.clear(part.index(page), 1);
    part.install(part.index(page), 1, Leaf { pfn: Pfn::new(3 * GIB + WITHIN), attrs: everything() });
    assert!(look(true).is_ok());

    // The guest's own leaf.
    let last = frames.word(((4 * GIB + WITHIN) << 12) + 8 * (ADDRESS >> 12 & 511));
    last.store(last.load(Relaxed) & !2, Relaxed);
    assert!(look(true).is_ok());
    let write = walk(&frames.memory, guest, host(true), ADDRESS, Access::Write);
    assert_eq!(write, Err(Stopped::Guest { present: true }));
    last.store(0, Relaxed);
    assert_eq!(look(true), Err(Stopped::Guest { present: false }));
}
