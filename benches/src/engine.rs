//! The library's page-table engine with nothing above it: no accounting, no references, no regions, no locks as nobody else has the tables. What the crates in
//! [`peers`](crate::peers) do, with atomic entries.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::addr::{ENTRIES, Level, Pfn};
use quire::format::{Attrs, Leaf, LongMode};
use quire::memory::Frame;
use quire::page_table::{PageTable, Tables};

use crate::peers::Engine;
use crate::work::Shape;

/// Tables in one allocation.
struct Pool {
    frames: Vec<Frame>,
    free: RefCell<Vec<Pfn>>,
}

impl Tables for Pool {
    type Guard<'a> = ();

    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.frames[table.raw() as usize].0
    }
    fn lock(&self, _table: Pfn) {}
    fn alloc_table(&self) -> Option<Pfn> {
        self.free.borrow_mut().pop()
    }
    fn free_table(&self, table: Pfn, cleared: bool) {
        if !cleared {
            self.entries(table).iter().for_each(|word| word.store(0, Relaxed));
        }
        self.free.borrow_mut().push(table);
    }
}

/// The engine, and tables of its own.
pub(crate) struct Alone {
    pool: Pool,
    table: PageTable<LongMode>,
    level: Level,
}

impl Alone {
    pub(crate) fn new(shape: Shape) -> Self {
        // What its leaves fill, and three on the way.
        let tables = 4 + (shape.leaves() as usize).div_ceil(ENTRIES);
        let pool = Pool {
            frames: (0..tables).map(|_| Frame([const { AtomicU64::new(0) }; ENTRIES])).collect(),
            free: RefCell::new((1..tables as u64).map(Pfn::new).collect()),
        };
        Self { pool, table: PageTable::new(Pfn::new(0)), level: shape.leaf }
    }

    fn pages(&self, at: u64, count: u64) -> std::ops::Range<u64> {
        at >> 12..(at >> 12) + count * self.level.entry_pages()
    }
}

impl Engine for Alone {
    fn name(&self) -> &'static str {
        "quire's engine alone"
    }

    fn map(&mut self, at: u64, to: u64, count: u64) {
        // Accessed and dirty from the start, as the manager enters what is stored to: nothing is left for the MMU to set.
        let attrs = Attrs::WRITE.or(Attrs::USER).or(Attrs::ACCESSED_DIRTY);
        let pages = self.pages(at, count);
        let mut cursor = self.table.cursor(&self.pool, pages.start, pages.end);
        let mut page = pages.start;
        while page < pages.end {
            let part = cursor.open(self.level).expect("a table");
            let range = part.range();
            assert!(part.are_absent(range.clone()), "absent");
            part.install(range.start, range.len(), Leaf { pfn: Pfn::new((to >> 12) + (page - pages.start)), attrs });
            page += range.len() as u64 * self.level.entry_pages();
        }
    }

    fn unmap(&mut self, at: u64, count: u64) {
        let pages = self.pages(at, count);
        let mut cursor = self.table.cursor(&self.pool, pages.start, pages.end);
        while let Some(part) = cursor.next() {
            let range = part.range();
            assert!(part.clear(range.start, range.len()).has(Attrs::USER), "mapped");
        }
    }

    fn translate(&self, at: u64) -> u64 {
        let (place, leaf) = self.table.lookup(&self.pool, black_box(at >> 12)).expect("mapped");
        leaf.pfn.add((at >> 12) - place.page).address()
    }
}
