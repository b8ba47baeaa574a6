//! The floor: what a demand fault costs when its handler does nothing but store a prepared entry.
//!
//! Every run measures it beside the manager, and the manager's numbers are quoted against it.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::{checksum, sample, stamp};
use quire::addr::{ENTRIES, Gva, Level, Order, Pfn};
use quire::memory::Memory;

use crate::machine::Machine;
use crate::touch::{self, Access, Tenant, Touched, Verdict};

/// Faults that are measured.
pub const PAGES: u64 = 2000;
/// Where the window of pages lies.
pub const WINDOW: Gva = Gva::new(0x40_0000_0000);
/// Seed of the stamps that are stored.
pub const SEED: u64 = 0x5eed;

const TABLE: u64 = 0x27;
/// Present, write, user, accessed, dirty, no execute.
const LEAF: u64 = 0x67 | 1 << 63;
const TABLES: u64 = PAGES.div_ceil(ENTRIES as u64);
/// Frames the floor uses: root, levels 3 and 2, the tables of leaves, and the pages.
const FRAMES: u64 = 3 + TABLES + PAGES;

/// A window of pages with tables down to the last level and no leaves.
#[derive(Debug)]
pub struct Floor<'a> {
    machine: &'a Machine,
    root: Pfn,
    tables: Pfn,
    pages: Pfn,
    faults: u64,
}

impl Tenant for Floor<'_> {
    fn fault(&mut self, address: Gva, _error: u64) -> Verdict {
        let page = address.page() - WINDOW.page();
        let table = self.machine.frame(self.tables.add(page / ENTRIES as u64));
        table.0[page as usize % ENTRIES].store(self.pages.add(page).address() | LEAF, Relaxed);
        touch::mark(Order::BASE, sample::FLOOR, 0);
        self.faults += 1;
        Verdict::Resume
    }
}

impl<'a> Floor<'a> {
    /// Builds the window in the first frames of the manager's, which must be free.
    ///
    /// # Panics
    /// When there are too few.
    pub fn new(machine: &'a Machine) -> Self {
        let (first, count) = machine.frames();
        assert!(count >= FRAMES, "the floor needs {FRAMES} frames, there are {count}");
        // The pages are cleared too: that makes the host give memory to them all before the clock runs.
        machine.zero(first, FRAMES);
        let (root, level3, level2, tables) = (first, first.add(1), first.add(2), first.add(3));
        let page = WINDOW.page();
        machine.frame(root).0[Level::new(4).index(page)].store(level3.address() | TABLE, Relaxed);
        machine.frame(level3).0[Level::THREE.index(page)].store(level2.address() | TABLE, Relaxed);
        for i in 0..TABLES {
            let slot = Level::TWO.index(page) + i as usize;
            machine.frame(level2).0[slot].store(tables.add(i).address() | TABLE, Relaxed);
        }
        machine.adopt_root(root);
        Self { machine, root, tables, pages: tables.add(TABLES), faults: 0 }
    }

    /// Takes the faults, checks what was read and stored, and leaves the samples.
    ///
    /// # Errors
    /// What was wrong.
    pub fn run(&mut self) -> Result<(), &'static str> {
        let machine = self.machine;
        machine.load_root(self.root);
        let stored = machine.touch(self, WINDOW, PAGES, Access::Store(SEED));
        if stored != (Touched { sum: 0, aborted: None }) {
            return Err("floor: fresh pages did not read as zero");
        }
        if self.faults != PAGES {
            return Err("floor: not one fault for each page");
        }
        let loaded = machine.touch(self, WINDOW, PAGES, Access::Load);
        let expected = (0..PAGES).fold(0, |sum, i| checksum(sum, stamp(SEED, WINDOW.page() + i)));
        if loaded != (Touched { sum: expected, aborted: None }) || self.faults != PAGES {
            return Err("floor: stamps did not read back");
        }
        Ok(())
    }

    /// Where page `index` of the window should be found.
    pub fn translation(&self, index: u64) -> (Gva, u64) {
        (WINDOW.add_pages(index), self.pages.add(index).address())
    }
}

/// A tenant that nothing may be touched for: the first fault ends it.
#[derive(Debug)]
struct Refuse;

impl Tenant for Refuse {
    fn fault(&mut self, _address: Gva, error: u64) -> Verdict {
        Verdict::Abort(error)
    }
}

/// Whether an aborted touch ends where it should, and stale translations go when they are flushed.
///
/// # Errors
/// What was wrong.
pub fn check_abort(machine: &Machine) -> Result<(), &'static str> {
    let at = WINDOW.add_pages(PAGES + 1);
    let touched = machine.touch(&mut Refuse, at, 3, Access::Load);
    let expected = touch::error::USER;
    if touched.aborted != Some((expected, at)) || touched.sum != 0 {
        return Err("an aborted touch did not say where and why");
    }
    Ok(())
}
