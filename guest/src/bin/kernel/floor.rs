//! The floor: what a demand fault costs when its handler does nothing but store a prepared entry.
//!
//! Every run measures it beside the manager, and the manager's numbers are quoted against it.

use quire::abi::{checksum, sample, stamp};
use quire::addr::{Gva, Order, Pfn};
use quire::memory::Memory;

use crate::machine::Machine;
use crate::touch::{self, Access, Tenant, Touched, Verdict};
use crate::window::{self, Window};

/// Faults that are measured when nobody says otherwise.
pub const PAGES: u64 = 2000;
/// Seed of the stamps that are stored.
pub const SEED: u64 = 0x5eed;

/// A window of pages with tables down to the last level and no leaves.
#[derive(Debug)]
pub struct Floor<'a> {
    machine: &'a Machine,
    window: Window<'a>,
    first: Pfn,
    pages: u64,
    faults: u64,
}

impl Tenant for Floor<'_> {
    fn fault(&mut self, address: Gva, _error: u64) -> Verdict {
        let page = address.page() - window::BASE.page();
        self.window.map(page, self.first.add(page), window::READ_WRITE);
        touch::mark(Order::BASE, sample::FLOOR, 0);
        self.faults += 1;
        Verdict::Resume
    }
}

impl<'a> Floor<'a> {
    /// Builds a window of `pages` pages in frames from `first` on, which must be free.
    ///
    /// # Errors
    /// When there are too few frames.
    pub fn new(machine: &'a Machine, first: Pfn, pages: u64) -> Result<Self, &'static str> {
        let (begin, count) = machine.frames();
        let tables = Window::frames(pages);
        if first.raw() + tables + pages > begin.raw() + count {
            return Err("floor: too few frames");
        }
        let window = Window::new(machine, first, pages);
        let first = first.add(tables);
        // Clearing makes the host give memory to all pages before the clock runs.
        machine.zero(first, pages);
        Ok(Self { machine, window, first, pages, faults: 0 })
    }

    /// Takes the faults, checks what was read and stored, and leaves the samples. The floor's root stays loaded.
    ///
    /// # Errors
    /// What was wrong.
    pub fn run(&mut self) -> Result<(), &'static str> {
        let (machine, pages) = (self.machine, self.pages);
        machine.load_root(self.window.root());
        let stored = machine.touch(self, window::BASE, pages, Access::Store(SEED));
        if stored != (Touched { sum: 0, aborted: None }) {
            return Err("floor: fresh pages did not read as zero");
        }
        if self.faults != pages {
            return Err("floor: not one fault for each page");
        }
        let loaded = machine.touch(self, window::BASE, pages, Access::Load);
        let expected = (0..pages).fold(0, |sum, i| checksum(sum, stamp(SEED, window::BASE.page() + i)));
        if loaded != (Touched { sum: expected, aborted: None }) || self.faults != pages {
            return Err("floor: stamps did not read back");
        }
        Ok(())
    }

    /// Where page `index` of the window should be found.
    pub fn translation(&self, index: u64) -> (Gva, u64) {
        (window::BASE.add_pages(index), self.first.add(index).address())
    }
}
