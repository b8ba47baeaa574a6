//! One page-table engine for every format.
//!
//! A [`PageTable`] is a root frame and a format. The only way to change it is a [`Cursor`] over a range of
//! pages, which hands out [`Part`]s: stretches of one locked table page. The engine knows nothing of folios:
//! it maps frames. What a change leaves behind for the TLB, and what must outlive the TLB, travels in a [`Flush`].
//!
//! ```text
//! root (level 4) ──> level 3 ──> level 2 ──> level 1        an entry is absent, a table or a leaf;
//!                       │           │           │           leaves of order 18, 9, 0 stand at
//!                    1 GiB leaf  2 MiB leaf  4 KiB leaf     levels 3, 2, 1
//! ```
//!
//! A leaf may be *frozen*: absent to the MMU, but still there for the counts and for [`Part::held`], until it is thawed, replaced or
//! cleared. Whoever moves a page freezes its leaves first; a fault that meets one comes again.
//!
//! Entries are atomic. Tables are linked in complete and unlinked under the lock of their parent; a table page is
//! freed only while the owner of the tables excludes walkers (the space lock) and after a flush.

mod cursor;
mod flush;

pub(crate) use cursor::are_absent;
pub use cursor::{Cursor, OpenError, Part, Run};
pub use flush::{FLUSH_CAPACITY, Flush};

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::addr::{ENTRIES, Level, Pfn};
use crate::format::{Entry, Format, Leaf};
use crate::sync::AtomicU64;

/// Where table pages come from and how they are reached.
pub trait Tables {
    /// Holds a table while it is changed; `()` where whoever has the tables has them alone.
    type Guard<'a>
    where
        Self: 'a;
    /// The entries of `table`.
    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES];
    /// The same, to be looked at only.
    #[inline]
    fn look(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        self.entries(table)
    }
    /// Locks `table`: its entries change only under this lock, except for the bits that the MMU sets.
    fn lock(&self, table: Pfn) -> Self::Guard<'_>;
    /// A table page with all entries absent, or `None` when there is no frame left.
    fn alloc_table(&self) -> Option<Pfn>;
    /// As [`alloc_table`](Self::alloc_table), for the split of a leaf, which may use frames kept in reserve: what is mapped can
    /// then be unmapped in part when memory is full.
    fn alloc_split_table(&self) -> Option<Pfn> {
        self.alloc_table()
    }
    /// Takes a table page back; nothing may walk it any more. `cleared`: all of its entries are absent, so it is known to be zero.
    fn free_table(&self, table: Pfn, cleared: bool);
}

/// Where a leaf stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Page number that the leaf's first byte translates.
    pub page: u64,
    /// The table page that holds it.
    pub table: Pfn,
    /// The level of that table.
    pub level: Level,
}

impl Place {
    /// One past the last page that the table translates.
    #[must_use]
    #[inline]
    pub fn table_end(self) -> u64 {
        (self.page & !(self.level.table_pages() - 1)) + self.level.table_pages()
    }
}

/// What a count of leaves found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Leaves, of any size.
    pub leaves: u64,
    /// Pages of the range that they map.
    pub pages: u64,
}

/// A tree of tables.
#[derive(Debug)]
pub struct PageTable<F> {
    root: Pfn,
    format: PhantomData<F>,
}

impl<F> Clone for PageTable<F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for PageTable<F> {}

impl<F: Format> PageTable<F> {
    /// The tables whose root is `root`, a cleared table page.
    #[must_use]
    pub fn new(root: Pfn) -> Self {
        Self { root, format: PhantomData }
    }

    /// The root's frame.
    #[must_use]
    pub fn root(self) -> Pfn {
        self.root
    }

    /// A cursor over pages `first..end`.
    pub fn cursor<T: Tables>(self, tables: &T, first: u64, end: u64) -> Cursor<'_, F, T> {
        Cursor::new(tables, self.root, first, end)
    }

    /// The leaf that translates `page`, without a lock: a snapshot.
    #[inline]
    pub fn lookup<T: Tables>(self, tables: &T, page: u64) -> Option<(Place, Leaf)> {
        let (place, entry) = self.deepest(tables, page);
        match entry {
            Entry::Leaf(leaf) => Some((place, leaf)),
            _ => None,
        }
    }

    /// The deepest entry on the way to `page`: a leaf, or absent. `place.page` is the first page it spans.
    // Always: a place that is handed over in memory, its level a single byte, is slower to read back than the walk is to do.
    #[inline(always)]
    pub fn deepest<T: Tables>(self, tables: &T, page: u64) -> (Place, Entry) {
        let (table, level, raw) = cursor::descend::<F, T>(tables, self.root, page);
        (Place { page: page & !(level.entry_pages() - 1), table, level }, F::decode(raw, level))
    }

    /// Visits every leaf below page `end`, all leaves of a table before the tables below it, in address order within a table.
    /// A snapshot: for audits of tables that do not change meanwhile.
    pub fn for_each_leaf<T: Tables>(self, tables: &T, end: u64, visit: &mut impl FnMut(Place, Leaf)) {
        self.for_each_leaf_in(tables, 0..end, visit);
    }

    /// As [`for_each_leaf`](Self::for_each_leaf), of the leaves that touch pages `range`.
    pub fn for_each_leaf_in<T: Tables>(self, tables: &T, range: Range<u64>, visit: &mut impl FnMut(Place, Leaf)) {
        leaves_below::<F, T>(tables, self.root, F::ROOT, 0, &range, visit);
    }

    /// How many leaves, frozen or not, map pages of `range` to frames of `frames`, and how many pages. Takes no lock: the caller excludes changes of the
    /// tables on the way, and of these leaves if the answer is to hold.
    pub fn count_of<T: Tables>(self, tables: &T, range: Range<u64>, frames: Range<Pfn>) -> Mapped {
        let mut found = Mapped { leaves: 0, pages: 0 };
        let mut at = range.start;
        while at < range.end {
            let (Place { mut page, table, level }, _) = self.deepest(tables, at);
            let end = range.end.min((at & !(level.table_pages() - 1)) + level.table_pages());
            while page < end {
                let raw = tables.look(table)[level.index(page)].load(Relaxed);
                if let Entry::Table(_) = F::decode(raw, level) {
                    break;
                }
                let next = page + level.entry_pages();
                if cursor::held::<F>(raw, level).is_some_and(|leaf| frames.contains(&leaf.pfn)) {
                    found.leaves += 1;
                    found.pages += next.min(range.end) - page.max(range.start);
                }
                page = next;
            }
            at = page.max(at);
        }
        found
    }

    /// Number of table pages below page `end`, the root included.
    pub fn nr_tables<T: Tables>(self, tables: &T, end: u64) -> u64 {
        tables_below::<F, T>(tables, self.root, F::ROOT, 0, end)
    }

    /// Unlinks every table that spans only pages of `range` and any of `within` into `flush`, bottom up: elsewhere the caller knows that there is none. All entries
    /// of `range` must be absent and the caller must exclude everybody who walks there.
    pub fn prune<T: Tables, I>(self, tables: &T, range: Range<u64>, within: Range<u64>, flush: &mut Flush<I>) {
        if !within.is_empty() {
            prune_below::<F, T, I>(tables, self.root, F::ROOT, 0, (&range, &within), flush);
        }
    }
}

fn leaves_below<F: Format, T: Tables>(
    tables: &T,
    table: Pfn,
    level: Level,
    base: u64,
    range: &Range<u64>,
    visit: &mut impl FnMut(Place, Leaf),
) {
    let mut has_tables = false;
    for (i, word) in tables.entries(table).iter().enumerate() {
        let page = base + i as u64 * level.entry_pages();
        if page >= range.end {
            break;
        }
        if page + level.entry_pages() <= range.start {
            continue;
        }
        match F::decode(word.load(Relaxed), level) {
            Entry::Absent => {}
            Entry::Table(_) => has_tables = true,
            Entry::Leaf(leaf) => visit(Place { page, table, level }, leaf),
        }
    }
    let Some(below) = level.below().filter(|_| has_tables) else { return };
    for (i, word) in tables.entries(table).iter().enumerate() {
        let page = base + i as u64 * level.entry_pages();
        if page >= range.end {
            break;
        }
        if page + level.entry_pages() <= range.start {
            continue;
        }
        if let Entry::Table(next) = F::decode(word.load(Acquire), level) {
            leaves_below::<F, T>(tables, next, below, page, range, visit);
        }
    }
}

fn tables_below<F: Format, T: Tables>(tables: &T, table: Pfn, level: Level, base: u64, end: u64) -> u64 {
    let Some(below) = level.below() else { return 1 };
    let mut nr = 1;
    for (i, word) in tables.entries(table).iter().enumerate() {
        let page = base + i as u64 * level.entry_pages();
        if page >= end {
            break;
        }
        if let Entry::Table(next) = F::decode(word.load(Acquire), level) {
            nr += tables_below::<F, T>(tables, next, below, page, end);
        }
    }
    nr
}

fn prune_below<F: Format, T: Tables, I>(
    tables: &T,
    table: Pfn,
    level: Level,
    base: u64,
    (range, within): (&Range<u64>, &Range<u64>),
    flush: &mut Flush<I>,
) {
    let Some(below) = level.below() else { return };
    let start = if within.start > base { level.index(within.start) } else { 0 };
    let stop = (((within.end - base - 1) >> level.page_shift()) as usize + 1).min(ENTRIES);
    let entries = tables.entries(table);
    let mut i = start;
    while i < stop {
        // Most of a table holds nothing.
        let rest = &entries[i..stop];
        if rest.first_chunk::<8>().is_some_and(|chunk| are_absent(chunk)) {
            i += 8;
            continue;
        }
        let word = &rest[0];
        if let Some(next) = F::next_table(word.load(Acquire), level) {
            let page = base + i as u64 * level.entry_pages();
            if below > Level::ONE {
                prune_below::<F, T, I>(tables, next, below, page, (range, within), flush);
            }
            if range.start <= page && page + level.entry_pages() <= range.end {
                let _guard = tables.lock(table);
                word.store(0, Release);
                flush.push_table(tables, next, true);
            }
        }
        i += 1;
    }
}
