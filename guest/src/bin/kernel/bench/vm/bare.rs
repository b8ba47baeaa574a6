//! The floor of the operations on VMs: the loads and stores of entries that none can do without, in tables that no MMU walks; and for a nested fault the round trips through the MMU,
//! two of them, with handlers that store the entries.

use core::hint::black_box;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use quire::abi::bench::{FLOOR_FAULTS, Operation, Shape};
use quire::addr::{ENTRIES, Gva, Level, PAGE_SIZE, Pfn};
use quire::memory::{Frame, Memory};

use crate::bench::plan::Plan;
use crate::bench::stage::{Clock, SEED};
use crate::machine::Machine;
use crate::touch::{self, Access, Verdict};
use crate::window::{self, READ, READ_WRITE, Window};

const WRITE: u64 = READ_WRITE ^ READ;
/// Pages of a log that one frame of bits has room for.
const BITS: u64 = 4096 * 8;

/// The floor of one shape.
pub(in crate::bench) struct Bare<'a> {
    machine: &'a Machine,
    /// Where faults are taken.
    window: Window<'a>,
    /// Entries of stage 2, those of the VMM's space or of the guest's, and those of a copy.
    stage2: Pfn,
    space: Pfn,
    copy: Pfn,
    /// The log.
    bits: Pfn,
    /// What faults map.
    data: Pfn,
    shape: Shape,
    pages: u64,
    leaves: u64,
    faults: u64,
}

impl<'a> Bare<'a> {
    /// Frames it takes where a round has `pages` pages.
    pub(in crate::bench) const fn frames(pages: u64) -> u64 {
        Window::frames(FLOOR_FAULTS) + 3 * pages.div_ceil(ENTRIES as u64) + pages.div_ceil(BITS) + FLOOR_FAULTS
    }

    /// The floor of `shape`, in the plan's frames for it.
    pub(super) fn new(machine: &'a Machine, plan: &Plan, shape: Shape) -> Self {
        let tables = plan.pages.div_ceil(ENTRIES as u64);
        let stage2 = plan.bare.add(Window::frames(FLOOR_FAULTS));
        let [space, copy, bits] = [1, 2, 3].map(|nth| stage2.add(nth * tables));
        Self {
            machine,
            window: Window::new(machine, plan.bare, FLOOR_FAULTS),
            stage2,
            space,
            copy,
            bits,
            data: bits.add(plan.pages.div_ceil(BITS)),
            shape,
            pages: plan.pages,
            leaves: plan.pages >> shape.level.page_shift(),
            faults: plan.floor_faults(shape),
        }
    }

    /// One round of what the plan wants.
    pub(super) fn play(&mut self, plan: &Plan, is_timed: bool) {
        let clock = Clock { runs: is_timed, shape: self.shape, is_floor: true };
        for operation in Operation::OF_VMS.into_iter().filter(|&operation| plan.wants(operation)) {
            match operation {
                Operation::Stage2Fault | Operation::HostFault | Operation::ComposeFault => self.fault(clock, operation),
                Operation::NestedFault => self.nested_fault(clock),
                Operation::LogStore => self.log_store(clock),
                Operation::LogStop if self.shape.level == Level::ONE => {}
                _ => {
                    self.fill(self.stage2);
                    self.fill(self.space);
                    clock.time(operation, || self.bulk(operation));
                }
            }
        }
    }

    /// Faults on one folio each.
    fn fault(&self, clock: Clock, operation: Operation) {
        // Whichever is first: none pays for tables that nobody has touched yet.
        self.fill(self.stage2);
        self.fill(self.space);
        let n = (self.leaves / self.shape.folios(self.pages)) as usize;
        let first = self.data.address() | READ_WRITE;
        let _ = clock.time_batches(operation, 0..self.shape.folios(self.pages) as u32, |nth| {
            let at = nth as usize * n;
            let [stage2, space] = [self.stage2, self.space]
                .map(|table| &self.machine.frame(table.add((at / ENTRIES) as u64)).0[at % ENTRIES..at % ENTRIES + n]);
            match operation {
                Operation::ComposeFault => {
                    for (from, to) in space.iter().zip(stage2) {
                        to.store(from.load(Relaxed), Relaxed);
                    }
                }
                Operation::HostFault => {
                    self.store(space, first);
                    self.store(stage2, first);
                }
                _ => self.store(stage2, first),
            }
            Ok(())
        });
    }

    fn store(&self, entries: &[AtomicU64], first: u64) {
        let step = PAGE_SIZE << self.shape.level.page_shift();
        let mut leaf = first;
        for entry in black_box(entries) {
            entry.store(leaf, Relaxed);
            leaf = leaf.wrapping_add(step);
        }
    }

    fn nested_fault(&self, clock: Clock) {
        for page in 0..self.faults {
            self.window.entry(page).store(0, Relaxed);
        }
        self.machine.load_root(self.window.root());
        for page in 0..self.faults {
            let mut handler = Handler { bare: self, clock, has_guests: false };
            self.machine.touch(&mut handler, window::BASE.add_pages(page), 1, Access::Store(SEED));
        }
        self.machine.load_no_tenant();
    }

    /// Each page's entry gets the right, and the log its bit.
    fn log_store(&self, clock: Clock) {
        let _ = clock.time_batches(Operation::LogStore, 0..self.pages as u32, |page| {
            let page = page as usize;
            let entry = &self.machine.frame(self.stage2.add((page / ENTRIES) as u64)).0[page % ENTRIES];
            let word = self.log_word(page);
            entry.store(entry.load(Relaxed) | WRITE, Relaxed);
            word.store(word.load(Relaxed) | 1 << (page % 64), Relaxed);
            Ok(())
        });
    }

    fn log_word(&self, page: usize) -> &AtomicU64 {
        let word = page / 64;
        &self.machine.frame(self.bits.add((word / ENTRIES) as u64)).0[word % ENTRIES]
    }

    fn bulk(&self, operation: Operation) {
        match operation {
            Operation::LogStart if self.shape.level > Level::ONE => {
                for entry in self.entries(self.stage2).flatten() {
                    let table = &self.machine.frame(self.copy).0;
                    let mut leaf = entry.load(Relaxed) & !WRITE;
                    for small in table {
                        small.store(leaf, Relaxed);
                        leaf = leaf.wrapping_add(PAGE_SIZE);
                    }
                    entry.store(self.copy.address() | READ_WRITE, Relaxed);
                }
            }
            Operation::LogStart => {
                for entry in self.entries(self.stage2).flatten() {
                    entry.store(entry.load(Relaxed) & !WRITE, Relaxed);
                }
            }
            Operation::LogTake => {
                // The log is of small leaves, whatever there was before.
                for page in (0..self.pages as usize).step_by(64) {
                    let word = self.log_word(page);
                    black_box(word.load(Relaxed));
                    word.store(0, Relaxed);
                    let table = &self.machine.frame(self.stage2.add((page / ENTRIES) as u64)).0;
                    for entry in &table[page % ENTRIES..page % ENTRIES + 64] {
                        entry.store(entry.load(Relaxed) & !WRITE, Relaxed);
                    }
                }
            }
            Operation::LogStop => {
                // Of each table all entries are looked at, before it becomes one.
                for (entry, table) in self.entries(self.stage2).flatten().zip(self.tables(self.copy)) {
                    black_box(table.0.iter().fold(0, |sum, small| sum ^ small.load(Relaxed)));
                    entry.store(self.data.address() | READ_WRITE, Relaxed);
                }
            }
            Operation::Clone => {
                for ((from, to), stage2) in self
                    .entries(self.space)
                    .flatten()
                    .zip(self.entries(self.copy).flatten())
                    .zip(self.entries(self.stage2).flatten())
                {
                    let entry = from.load(Relaxed) & !WRITE;
                    to.store(entry, Relaxed);
                    from.store(entry, Relaxed);
                    stage2.store(0, Relaxed);
                }
            }
            Operation::VmTeardown => self.clear(self.stage2),
            _ => self.clear(self.space),
        }
    }

    fn clear(&self, table: Pfn) {
        let mut sum = 0;
        for entry in self.entries(table).flatten() {
            sum ^= entry.load(Relaxed);
            entry.store(0, Relaxed);
        }
        black_box(sum);
    }

    fn fill(&self, table: Pfn) {
        for entries in self.entries(table) {
            self.store(entries, self.data.address() | READ_WRITE);
        }
    }

    /// The entries of all leaves, table by table.
    fn entries(&self, table: Pfn) -> impl Iterator<Item = &[AtomicU64]> {
        let leaves = self.leaves as usize;
        let frames = self.tables(table).take(leaves.div_ceil(ENTRIES));
        frames.enumerate().map(move |(i, frame)| &frame.0[..ENTRIES.min(leaves - i * ENTRIES)])
    }

    fn tables(&self, table: Pfn) -> impl Iterator<Item = &Frame> {
        (0..self.pages.div_ceil(ENTRIES as u64)).map(move |nth| self.machine.frame(table.add(nth)))
    }
}

/// The handler of a nested fault: the guest stores its entry, and faults again.
struct Handler<'a, 'm> {
    bare: &'a Bare<'m>,
    clock: Clock,
    has_guests: bool,
}

impl touch::Tenant for Handler<'_, '_> {
    fn fault(&mut self, address: Gva, _error: u64) -> Verdict {
        let bare = self.bare;
        let page = address.page() - window::BASE.page();
        let frame = bare.data.add(page % FLOOR_FAULTS);
        let entry = |table: Pfn| &bare.machine.frame(table).0[page as usize % ENTRIES];
        if self.has_guests {
            entry(bare.space).store(frame.address() | READ_WRITE, Relaxed);
            entry(bare.stage2).store(frame.address() | READ_WRITE, Relaxed);
            bare.window.map(page, frame, READ_WRITE);
            self.clock.mark(Operation::NestedFault);
        } else {
            entry(bare.copy).store(frame.address() | READ_WRITE, Relaxed);
            self.has_guests = true;
        }
        Verdict::Resume
    }
}
