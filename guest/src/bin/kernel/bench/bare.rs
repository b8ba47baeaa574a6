//! The floor: what each operation comes to when its handler knows everything beforehand, and only loads and stores the entries.
//!
//! The entries stand in a [window](crate::window) of 4 KiB pages whatever the shape; there are as many as the shape has leaves. A flush is in
//! where no manager can do without. What is done to all leaves at once has a window of its own, in which only one page of each folio was touched, as
//! in the manager's: hosts that shadow page tables pay for what was touched.

use core::hint::black_box;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use quire::abi::bench::{FLOOR_FAULTS, Operation, Shape};
use quire::addr::{ENTRIES, Gva, Level, PAGE_SIZE, Pfn};
use quire::memory::Memory;

use super::plan::Plan;
use super::stage::{Clock, SEED};
use crate::machine::Machine;
use crate::touch::{self, Access, Verdict};
use crate::window::{self, READ, READ_WRITE, Window};

/// The floor of one shape.
#[derive(Debug)]
pub struct Bare<'a> {
    machine: &'a Machine,
    /// Where faults are taken.
    window: Window<'a>,
    /// What is forked, cleared and split.
    whole: Window<'a>,
    shape: Shape,
    /// A forked child's tables, or that of a leaf that is split.
    copies: Pfn,
    /// The pages that are faulted in, and behind them what they are copied to.
    data: Pfn,
    leaves: u64,
    folios: u64,
    faults: u64,
}

impl<'a> Bare<'a> {
    /// Frames it takes where a round has `pages` pages.
    pub const fn frames(pages: u64) -> u64 {
        2 * Window::frames(pages) + pages.div_ceil(ENTRIES as u64) + 2 * FLOOR_FAULTS
    }

    /// The floor of `shape`, in the plan's frames for it.
    pub fn new(machine: &'a Machine, plan: &Plan, shape: Shape) -> Self {
        let window = Window::new(machine, plan.bare, plan.pages);
        let whole = plan.bare.add(Window::frames(plan.pages));
        let copies = whole.add(Window::frames(plan.pages));
        let whole = Window::new(machine, whole, plan.pages);
        let data = copies.add(plan.pages.div_ceil(ENTRIES as u64));
        let leaves = plan.pages >> shape.level.page_shift();
        Self {
            machine,
            window,
            whole,
            shape,
            copies,
            data,
            leaves,
            folios: shape.folios(plan.pages),
            faults: plan.floor_faults(shape),
        }
    }

    /// One round of what the plan wants.
    pub fn play(&mut self, plan: &Plan, is_timed: bool) {
        let clock = Clock { runs: is_timed, shape: self.shape, is_floor: true };
        let wants = |operation| plan.wants(operation);
        self.machine.load_root(self.window.root());
        for operation in [Operation::Fault, Operation::Cow, Operation::Reuse].into_iter().filter(|&op| wants(op)) {
            self.fault(clock, operation);
        }
        if wants(Operation::Touch) {
            self.touch(clock, plan.pages);
        }
        if wants(Operation::ZapOne) {
            self.fill(clock);
            for page in 0..self.faults {
                clock.time(Operation::ZapOne, || {
                    self.whole.entry(page).store(0, Relaxed);
                    self.machine.flush_page(window::BASE.add_pages(page));
                });
            }
        }
        if wants(Operation::Fork) {
            self.fill(clock);
            clock.time(Operation::Fork, || {
                for (table, copy) in self.tables() {
                    for (from, to) in table.iter().zip(copy) {
                        let entry = from.load(Relaxed) & !(READ_WRITE ^ READ);
                        to.store(entry, Relaxed);
                        from.store(entry, Relaxed);
                    }
                }
                self.machine.flush_all();
            });
        }
        if wants(Operation::Unmap) {
            self.fill(clock);
            clock.time(Operation::Unmap, || {
                self.clear();
                self.machine.flush_all();
            });
        }
        if wants(Operation::Split) && self.shape.level > Level::ONE {
            self.fill(clock);
            for page in 0..self.leaves {
                clock.time(Operation::Split, || {
                    let mut leaf = self.data.address() | READ_WRITE;
                    for entry in &self.machine.frame(self.copies).0 {
                        entry.store(leaf, Relaxed);
                        leaf += PAGE_SIZE;
                    }
                    self.whole.map(page, self.copies, READ_WRITE);
                    self.machine.flush_page(window::BASE.add_pages(page));
                });
            }
        }
        self.fill(clock);
        self.machine.load_no_tenant();
        if wants(Operation::Teardown) {
            clock.time(Operation::Teardown, || self.clear());
        }
        self.clear();
    }

    /// Faults of one operation, on entries prepared as it finds them.
    fn fault(&mut self, clock: Clock, operation: Operation) {
        for page in 0..self.faults {
            let entry = if operation == Operation::Fault { 0 } else { self.data.add(page).address() | READ };
            self.window.entry(page).store(entry, Relaxed);
        }
        self.machine.flush_all();
        for page in 0..self.faults {
            let mut handler = Handler { bare: self, clock, operation: Some(operation) };
            self.machine.touch(&mut handler, window::BASE.add_pages(page), 1, Access::Store(SEED));
        }
    }

    /// Stores to as many pages as the shape has folios fault, the others do not.
    fn touch(&mut self, clock: Clock, pages: u64) {
        let folios = self.shape.folios(pages);
        for page in 0..pages {
            let is_first = page % (pages / folios) == 0;
            let frame = self.data.add(page % FLOOR_FAULTS);
            self.window.entry(page).store(if is_first { 0 } else { frame.address() | READ_WRITE }, Relaxed);
        }
        self.machine.flush_all();
        let mut handler = Handler { bare: self, clock, operation: None };
        clock.time(Operation::Touch, || {
            self.machine.touch(&mut handler, window::BASE, pages, Access::Store(SEED));
        });
    }

    /// Maps everything, lets nothing of before be cached, and touches the first page of each folio.
    fn fill(&mut self, clock: Clock) {
        for i in 0..self.leaves {
            self.whole.map(i, self.data.add(i % FLOOR_FAULTS), READ_WRITE);
        }
        self.machine.load_root(self.whole.root());
        let stride = self.leaves / self.folios;
        for nth in 0..self.folios {
            let mut handler = Handler { bare: self, clock, operation: None };
            self.machine.touch(&mut handler, window::BASE.add_pages(nth * stride), 1, Access::Load);
        }
    }

    fn clear(&self) {
        for (table, _) in self.tables() {
            let mut sum = 0;
            for entry in table {
                sum ^= entry.load(Relaxed);
                entry.store(0, Relaxed);
            }
            black_box(sum);
        }
    }

    /// The entries of all leaves, table by table, each beside the table of its copy.
    fn tables(&self) -> impl Iterator<Item = (&[AtomicU64], &[AtomicU64])> {
        let leaves = self.leaves as usize;
        self.whole.tables().take(leaves.div_ceil(ENTRIES)).enumerate().map(move |(i, table)| {
            let copy = &self.machine.frame(self.copies.add(i as u64)).0;
            (&table[..ENTRIES.min(leaves - i * ENTRIES)], &copy[..])
        })
    }
}

/// The handler of the floor's faults.
struct Handler<'a, 'm> {
    bare: &'a Bare<'m>,
    clock: Clock,
    operation: Option<Operation>,
}

impl touch::Tenant for Handler<'_, '_> {
    fn fault(&mut self, address: Gva, _error: u64) -> Verdict {
        let bare = self.bare;
        let page = address.page() - window::BASE.page();
        let frame = bare.data.add(page % FLOOR_FAULTS);
        if self.operation == Some(Operation::Cow) {
            let to = frame.add(FLOOR_FAULTS);
            bare.machine.copy(frame, to);
            bare.window.map(page, to, READ_WRITE);
            bare.machine.flush_page(address);
        } else {
            bare.window.map(page, frame, READ_WRITE);
        }
        if let Some(operation) = self.operation {
            self.clock.mark(operation);
        }
        Verdict::Resume
    }
}
