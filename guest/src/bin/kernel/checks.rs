//! Whether the machine does what the manager will rely on: clearing, copying, flushes, switches, rights and aborts.
//!
//! Run by tests, before the floor. At ring 3 the stores to the tables go through an alias and leave stale translations until
//! a flush, as on bare hardware, so a flush that does nothing shows.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::{checksum, stamp};
use quire::addr::{Gva, Pfn};
use quire::memory::{FlushScope, Memory, Tlb};

use crate::machine::Machine;
use crate::touch::{Access, Tenant, Touched, Verdict, error};
use crate::window::{self, READ, READ_WRITE, Window};

/// More pages than a flush takes one by one.
const PAGES: u64 = 48;
const SEED: u64 = 7;
/// Frames that the checks use.
pub const FRAMES: u64 = 2 * Window::frames(PAGES) + 2 * PAGES;

/// A tenant for which any fault is the end.
#[derive(Debug)]
struct Refuse;

impl Tenant for Refuse {
    fn fault(&mut self, _address: Gva, error: u64) -> Verdict {
        Verdict::Abort(error)
    }
}

/// All checks, in frames from `first` on, which must be free. No tenant's root is loaded afterwards.
///
/// # Errors
/// The first that failed.
pub fn run(machine: &Machine, first: Pfn) -> Result<(), &'static str> {
    let tables = Window::frames(PAGES);
    let (a, b) = (Window::new(machine, first, PAGES), Window::new(machine, first.add(tables), PAGES));
    let (old, new) = (first.add(2 * tables), first.add(2 * tables + PAGES));
    clearing_and_copying(machine, old, new)?;
    for page in 0..PAGES {
        machine.frame(old.add(page)).0[0].store(page, Relaxed);
        machine.frame(new.add(page)).0[0].store(1000 + page, Relaxed);
        a.map(page, old.add(page), READ_WRITE);
        b.map(page, new.add(page), READ_WRITE);
    }
    switching(machine, &a, &b)?;
    flushing(machine, &a, old, new)?;
    rights(machine, &a, new)?;
    work_in_a_fault(machine, &a, old, new)?;
    machine.load_no_tenant();
    Ok(())
}

/// What loading the first words of the whole window should give, when they count up from `first`.
fn counting_from(first: u64) -> Touched {
    Touched { sum: (0..PAGES).fold(0, |sum, page| checksum(sum, first + page)), aborted: None }
}

fn load(machine: &Machine) -> Touched {
    machine.touch(&mut Refuse, window::BASE, PAGES, Access::Load)
}

fn clearing_and_copying(machine: &Machine, from: Pfn, to: Pfn) -> Result<(), &'static str> {
    for frame in [from, from.add(1), from.add(2)] {
        machine.frame(frame).0[0].store(1, Relaxed);
        machine.frame(frame).0[511].store(2, Relaxed);
    }
    machine.copy(from, to);
    let ends = |frame: Pfn| [0, 1, 511].map(|i| machine.frame(frame).0[i].load(Relaxed));
    if ends(to) != [1, 0, 2] {
        return Err("a copied frame differs");
    }
    machine.zero(from, 2);
    if ends(from) != [0; 3] || ends(from.add(1)) != [0; 3] || ends(from.add(2)) != [1, 0, 2] || ends(to) != [1, 0, 2] {
        return Err("clearing cleared the wrong frames");
    }
    Ok(())
}

fn switching(machine: &Machine, a: &Window<'_>, b: &Window<'_>) -> Result<(), &'static str> {
    for (root, first) in [(a.root(), 0), (b.root(), 1000), (a.root(), 0)] {
        machine.load_root(root);
        if machine.current_root() != Some(root) || load(machine) != counting_from(first) {
            return Err("a loaded root shows other pages");
        }
    }
    Ok(())
}

/// The window's pages, which are in the TLB, move from `old` to `new` frames one way after another.
fn flushing(machine: &Machine, a: &Window<'_>, old: Pfn, new: Pfn) -> Result<(), &'static str> {
    let show = |frames: Pfn| (0..PAGES).for_each(|page| a.map(page, frames.add(page), READ_WRITE));
    show(new);
    machine.flush(a.root(), FlushScope::Space);
    if load(machine) != counting_from(1000) {
        return Err("a flushed space shows old pages");
    }
    show(old);
    machine.flush(a.root(), FlushScope::Pages { first: window::BASE.page(), pages: PAGES });
    if load(machine) != counting_from(0) {
        return Err("a long flushed range shows old pages");
    }
    show(new);
    machine.flush(a.root(), FlushScope::Pages { first: window::BASE.page(), pages: PAGES / 2 });
    machine.flush(a.root(), FlushScope::Pages { first: window::BASE.page() + PAGES / 2, pages: PAGES / 2 });
    if load(machine) != counting_from(1000) {
        return Err("short flushed ranges show old pages");
    }
    a.map(3, old.add(3), READ_WRITE);
    let address = window::BASE.add_pages(3);
    machine.flush_page(address);
    if machine.touch(&mut Refuse, address, 1, Access::Load).sum != 3 {
        return Err("a flushed page shows the old page");
    }
    let (table, index) = a.place(3);
    machine.store_entry(table, index, new.add(3).address() | READ_WRITE);
    machine.flush_page(address);
    if machine.touch(&mut Refuse, address, 1, Access::Load).sum != 1003 {
        return Err("an entry stored at ring 0 has no effect");
    }
    Ok(())
}

fn rights(machine: &Machine, a: &Window<'_>, new: Pfn) -> Result<(), &'static str> {
    let (third, fourth) = (window::BASE.add_pages(2), window::BASE.add_pages(3));
    a.map(2, new.add(2), READ);
    a.entry(3).store(0, Relaxed);
    machine.flush(a.root(), FlushScope::Pages { first: third.page(), pages: 2 });
    let refused = machine.touch(&mut Refuse, window::BASE, 4, Access::Store(SEED));
    let loaded = checksum(checksum(0, 1000), 1001);
    if refused != (Touched { sum: loaded, aborted: Some((error::PRESENT | error::WRITE | error::USER, third)) }) {
        return Err("a store to a read-only page was not refused as one");
    }
    if machine.frame(new.add(1)).0[0].load(Relaxed) != stamp(SEED, window::BASE.page() + 1) {
        return Err("a stamp was not stored");
    }
    let missing = machine.touch(&mut Refuse, third, 2, Access::Load);
    if missing != (Touched { sum: 1002, aborted: Some((error::USER, fourth)) }) {
        return Err("a load of a missing page was not refused as one");
    }
    Ok(())
}

/// A tenant whose pages are cleared or copied in its fault handler, as the manager's will be.
#[derive(Debug)]
struct Fill<'a> {
    machine: &'a Machine,
    window: &'a Window<'a>,
    from: Pfn,
    to: Pfn,
}

impl Tenant for Fill<'_> {
    fn fault(&mut self, address: Gva, _error: u64) -> Verdict {
        let page = address.page() - window::BASE.page();
        let to = self.to.add(page);
        if page.is_multiple_of(2) {
            self.machine.zero(to, 1);
        } else {
            self.machine.copy(self.from.add(page), to);
        }
        self.window.map(page, to, READ_WRITE);
        Verdict::Resume
    }
}

fn work_in_a_fault(machine: &Machine, a: &Window<'_>, from: Pfn, to: Pfn) -> Result<(), &'static str> {
    for page in 0..PAGES {
        machine.frame(from.add(page)).0[0].store(page, Relaxed);
        machine.frame(to.add(page)).0[0].store(u64::MAX, Relaxed);
        a.entry(page).store(0, Relaxed);
    }
    machine.flush(a.root(), FlushScope::Space);
    let touched = machine.touch(&mut Fill { machine, window: a, from, to }, window::BASE, PAGES, Access::Store(SEED));
    let sum = (0..PAGES).fold(0, |sum, page| checksum(sum, if page.is_multiple_of(2) { 0 } else { page }));
    if touched != (Touched { sum, aborted: None }) {
        return Err("pages that a fault handler cleared or copied read differently");
    }
    let stored = |page: u64| machine.frame(to.add(page)).0[0].load(Relaxed) == stamp(SEED, window::BASE.page() + page);
    if !(0..PAGES).all(stored) {
        return Err("stamps went elsewhere");
    }
    Ok(())
}
