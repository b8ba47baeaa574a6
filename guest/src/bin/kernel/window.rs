//! A root table with a window of 4 KiB pages whose entries are set by hand: for the floor and the machine's checks, which
//! must not depend on the manager's page tables.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use quire::addr::{ENTRIES, Gva, Level, PAGE_SHIFT, Pfn};
use quire::memory::Memory;

use crate::machine::Machine;

/// Where every window begins.
pub const BASE: Gva = Gva::new(0x40_0000_0000);
/// A leaf's rights but for the frame: present, user, accessed, dirty, no execute.
pub const READ: u64 = 0x65 | 1 << 63;
/// The same with write.
pub const READ_WRITE: u64 = READ | 1 << 1;

/// Present, write, user, accessed.
const TABLE: u64 = 0x27;

/// The tables of a window, in frames that lie one behind the other: root, levels 3 and 2, then the tables of leaves.
#[derive(Debug)]
pub struct Window<'a> {
    machine: &'a Machine,
    root: Pfn,
    tables: Pfn,
    pages: u64,
}

impl<'a> Window<'a> {
    /// Frames that the tables of a window of `pages` take.
    pub const fn frames(pages: u64) -> u64 {
        3 + pages.div_ceil(ENTRIES as u64)
    }

    /// Builds the tables in the frames from `first` on, which must be free. No page is mapped.
    pub fn new(machine: &'a Machine, first: Pfn, pages: u64) -> Self {
        machine.zero(first, Self::frames(pages));
        let (root, level3, level2, tables) = (first, first.add(1), first.add(2), first.add(3));
        let page = BASE.page();
        machine.frame(root).0[Level::new(4).index(page)].store(level3.address() | TABLE, Relaxed);
        machine.frame(level3).0[Level::THREE.index(page)].store(level2.address() | TABLE, Relaxed);
        for i in 0..Self::frames(pages) - 3 {
            let slot = Level::TWO.index(page) + i as usize;
            machine.frame(level2).0[slot].store(tables.add(i).address() | TABLE, Relaxed);
        }
        machine.adopt_root(root);
        Self { machine, root, tables, pages }
    }

    /// The root table.
    pub fn root(&self) -> Pfn {
        self.root
    }

    /// The table and the index in it of page `page`'s entry.
    ///
    /// # Panics
    /// Outside the window.
    pub fn place(&self, page: u64) -> (Pfn, usize) {
        assert!(page < self.pages, "page outside the window");
        (self.tables.add(page / ENTRIES as u64), page as usize % ENTRIES)
    }

    /// The entry of page `page`.
    pub fn entry(&self, page: u64) -> &AtomicU64 {
        let (table, index) = self.place(page);
        &self.machine.frame(table).0[index]
    }

    /// The entries of all pages, table by table.
    pub fn tables(&self) -> impl Iterator<Item = &[AtomicU64]> {
        let pages = self.pages as usize;
        (0..pages.div_ceil(ENTRIES))
            .map(move |i| &self.machine.frame(self.tables.add(i as u64)).0[..ENTRIES.min(pages - i * ENTRIES)])
    }

    /// Maps page `page` to `frame` with `rights`, by a store through the alias map. No flush.
    pub fn map(&self, page: u64, frame: Pfn, rights: u64) {
        self.entry(page).store(frame.raw() << PAGE_SHIFT | rights, Relaxed);
    }
}
