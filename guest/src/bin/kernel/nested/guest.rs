//! A guest: memory of its own, tables of its own in that memory, and the second level that leads there.

use core::cell::{Cell, Ref};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use quire::addr::{ENTRIES, Level, PAGE_SHIFT, Pfn};
use quire::format::{Attrs, Format, Leaf, LongMode};
use quire::memory::{FlushScope, Memory, Tlb};
use quire::page_table::{Flush, PageTable, Tables};

use super::{Exit, Guests, RFLAGS, Registers};
use crate::machine::Machine;

/// Pages of a guest's memory: 8 MiB, behind each other in ours, aligned to 2 MiB.
pub const PAGES: u64 = 2048;
/// Guest-physical pages for the guest's own tables; the root is the first.
pub const OWN_TABLES: core::ops::Range<u64> = 2..64;

/// What a guest's memory allows unless somebody says otherwise. Accessed and dirty are the MMU's to set.
pub const ALL: Attrs = Attrs::USER.or(Attrs::WRITE).or(Attrs::EXEC);

/// The guest's own tables, by guest-physical frame numbers.
#[derive(Debug)]
pub struct OwnTables<'a> {
    machine: &'a Machine,
    memory: Pfn,
    next: Cell<u64>,
}

impl Tables for OwnTables<'_> {
    type Guard<'g>
        = ()
    where
        Self: 'g;

    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.machine.frame(self.memory.add(table.raw())).0
    }

    fn lock(&self, _table: Pfn) {}

    fn alloc_table(&self) -> Option<Pfn> {
        let next = self.next.get();
        OWN_TABLES.contains(&next).then(|| {
            self.next.set(next + 1);
            Pfn::new(next)
        })
    }

    /// They stay until the guest goes.
    fn free_table(&self, _table: Pfn, _cleared: bool) {}
}

/// The machine, for flushes of the second level.
struct SecondLevel<'a>(&'a Machine);

impl Tlb for SecondLevel<'_> {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        self.0.flush_stage2(root, scope);
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Entries.
    pub entries: u64,
    /// Exits for want of a leaf or a right.
    pub violations: u64,
    /// Those in walks of the guest's tables.
    pub guest_walks: u64,
    /// Hypercalls.
    pub hypercalls: u64,
}

/// A guest on a second level of format `F`, which must be the CPU's, with table pages from `T`.
#[derive(Debug)]
pub struct Guest<'a, F, T> {
    machine: &'a Machine,
    guests: Ref<'a, Guests>,
    tables: &'a T,
    memory: Pfn,
    second: PageTable<F>,
    own: OwnTables<'a>,
    own_root: PageTable<LongMode>,
    registers: Registers,
    counts: Counts,
}

impl<'a, F: Format, T: Tables> Guest<'a, F, T> {
    /// A guest whose memory is the [`PAGES`] frames from `memory` on, which must be free and zero. Nothing is mapped for it yet, on
    /// either level.
    ///
    /// # Errors
    /// When frames run out, or the machine's guests were not [started](Machine::start_guests).
    pub fn new(machine: &'a Machine, tables: &'a T, memory: Pfn) -> Result<Self, &'static str> {
        const FULL: &str = "no frame for the guest's tables";
        let guests = machine.guests().ok_or("guests were not started")?;
        let own = OwnTables { machine, memory, next: Cell::new(OWN_TABLES.start) };
        let own_root = PageTable::new(own.alloc_table().ok_or(FULL)?);
        let second = PageTable::new(tables.alloc_table().ok_or(FULL)?);
        let registers = Registers { rflags: RFLAGS, cr3: own_root.root().address(), ..Registers::default() };
        Ok(Self { machine, guests, tables, memory, second, own, own_root, registers, counts: Counts::default() })
    }

    /// Takes everything from the guest: its second level is gone, and its memory may be used for something else.
    pub fn end(self) {
        let pages = F::ROOT.table_pages();
        let mut flush = Flush::<()>::new();
        self.guests.owe(self.second.root());
        let mut cursor = self.second.cursor(self.tables, 0, pages);
        while let Some(part) = cursor.next() {
            let entries = part.range();
            part.clear(entries.start, entries.len());
        }
        flush.add_pages(0, pages);
        self.second.prune(self.tables, 0..pages, 0..pages, &mut flush);
        self.finish(&mut flush);
        self.tables.free_table(self.second.root(), true);
    }

    /// Maps `pages` pages of the guest's addresses from page `first` on to guest-physical `frame` and on.
    ///
    /// # Errors
    /// When the guest's own tables are full.
    pub fn map_own(&self, first: u64, frame: Pfn, pages: u64, attrs: Attrs) -> Result<(), &'static str> {
        let mut cursor = self.own_root.cursor(&self.own, first, first + pages);
        let mut done = 0;
        while done < pages {
            let part = cursor.open(Level::ONE).map_err(|_| "the guest's own tables are full")?;
            let entries = part.range();
            part.install(entries.start, entries.len(), Leaf { pfn: frame.add(done), attrs });
            done += entries.len() as u64;
        }
        Ok(())
    }

    /// The CPU's way to run it.
    pub fn guests(&self) -> &Guests {
        &self.guests
    }

    /// The guest's registers.
    pub fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    /// Word 0 of guest-physical `page`, as we see it.
    pub fn word(&self, page: u64) -> &'a AtomicU64 {
        &self.machine.frame(self.frame(page)).0[0]
    }

    /// The frame behind guest-physical `page`, where it is by itself.
    pub fn frame(&self, page: u64) -> Pfn {
        self.memory.add(page)
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Maps guest-physical `page` by a leaf at `level`, to `frame`.
    ///
    /// # Errors
    /// When there is no frame for a table, or something in the way.
    pub fn map(&self, page: u64, level: Level, frame: Pfn, attrs: Attrs) -> Result<(), &'static str> {
        let mut cursor = self.second.cursor(self.tables, page, page + level.entry_pages());
        let part = cursor.open(level).map_err(|_| "no leaf can be made there")?;
        part.install(part.index(page), 1, Leaf { pfn: frame, attrs });
        Ok(())
    }

    /// The leaf that maps guest-physical `page`, and its level.
    pub fn leaf(&self, page: u64) -> Option<(Level, Leaf)> {
        self.second.lookup(self.tables, page).map(|(place, leaf)| (place.level, leaf))
    }

    /// Gives the leaf of `page` more rights: nothing needs a flush.
    pub fn widen(&self, page: u64, add: Attrs) {
        let part = self.part(page);
        part.change(part.index(page), 1, Attrs::NONE, add);
    }

    /// Takes attributes from the leaf of `page`, and flushes.
    pub fn narrow(&self, page: u64, remove: Attrs) {
        let mut flush = Flush::<()>::new();
        {
            let part = self.part(page);
            self.guests.owe(self.second.root());
            part.change(part.index(page), 1, remove, Attrs::NONE);
            flush.add_pages(part.page(part.index(page)), part.level().entry_pages());
        }
        self.finish(&mut flush);
    }

    /// Takes the leaf of `page` away, and flushes; what it was.
    pub fn unmap(&self, page: u64) -> Attrs {
        let mut flush = Flush::<()>::new();
        let attrs = {
            let part = self.part(page);
            self.guests.owe(self.second.root());
            flush.add_pages(part.page(part.index(page)), part.level().entry_pages());
            part.clear(part.index(page), 1)
        };
        self.finish(&mut flush);
        attrs
    }

    /// Splits the large leaf of `page` into one table of smaller ones, and flushes.
    ///
    /// # Errors
    /// When there is no frame for the table.
    pub fn split(&self, page: u64) -> Result<(), &'static str> {
        let mut flush = Flush::<()>::new();
        {
            let part = self.part(page);
            self.guests.owe(self.second.root());
            part.split(part.index(page), &mut flush, || ()).map_err(|_| "no frame for a split")?;
        }
        self.finish(&mut flush);
        Ok(())
    }

    /// Makes one leaf at `level` of the table that maps `page`, and flushes; whether that could be.
    pub fn collapse(&self, page: u64, level: Level) -> bool {
        let mut flush = Flush::<()>::new();
        let first = page & !(level.entry_pages() - 1);
        let done = self.second.cursor(self.tables, first, first + level.entry_pages()).collapse(level, &mut flush);
        if done.is_some() {
            self.guests.owe(self.second.root());
        }
        self.finish(&mut flush);
        done.is_some()
    }

    /// Puts a raw entry in place of the leaf of `page`, and flushes; the entry that was there.
    pub fn replace_raw(&self, page: u64, raw: u64) -> u64 {
        let mut flush = Flush::<()>::new();
        let was = {
            let part = self.part(page);
            self.guests.owe(self.second.root());
            flush.add_pages(page, 1);
            self.tables.entries(part.table())[part.index(page)].swap(raw, Relaxed)
        };
        self.finish(&mut flush);
        was
    }

    /// Owes a flush and does not pay.
    pub fn forget_a_flush(&self) {
        self.guests.owe(self.second.root());
    }

    fn finish(&self, flush: &mut Flush<()>) {
        flush.finish(&SecondLevel(self.machine), self.tables, self.second.root(), |_: &[()]| {});
    }

    /// The entry of `page`, whatever leaf it is part of.
    fn part(&self, page: u64) -> quire::page_table::Part<'a, F, T> {
        let mut cursor = self.second.cursor(self.tables, page, page + 1);
        cursor.next().expect("a range of one page has a part")
    }

    /// Runs the guest until something stops it: a hypercall, or anything that `resolve` does not make good.
    pub fn run(
        &mut self,
        mut resolve: impl FnMut(&Self, u64) -> Result<(), &'static str>,
    ) -> Result<Exit, &'static str> {
        loop {
            self.counts.entries += 1;
            let exit = self.guests.enter(&mut self.registers, self.second.root());
            match exit {
                Exit::Violation { address, guest_walk, .. } => {
                    self.counts.violations += 1;
                    self.counts.guest_walks += u64::from(guest_walk);
                    if self.leaf(address >> PAGE_SHIFT).is_some() {
                        return Ok(exit);
                    }
                    resolve(self, address)?;
                }
                Exit::Hypercall => {
                    self.counts.hypercalls += 1;
                    return Ok(exit);
                }
                _ => return Ok(exit),
            }
        }
    }
}
