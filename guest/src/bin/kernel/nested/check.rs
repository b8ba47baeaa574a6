//! Whether guests run as they should: demand faults, data on both sides, rights, accessed and dirty, flushes, splits, exceptions.
//!
//! Run by tests, on whatever CPU or emulator there is. The second level is built by the library's engine, in its format for the CPU.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::{BootInfo, checksum, flags, nested as words};
use quire::addr::{Level, Order, PAGE_SHIFT, Pfn};
use quire::format::{Attrs, Ept, Format, Leaf, Npt};
use quire::mapcount::Total;
use quire::memory::Memory;
use quire::page_table::Tables;
use quire::space::{Access, Manager, Policy};

use super::guest::{ALL, Guest, OWN_TABLES, PAGES};
use super::program::{self, COME_BACK, Command};
use super::{Exit, Guests, vm};
use crate::cpu;
use crate::machine::Machine;
use crate::results::Results;

/// The guest-physical page of the program.
const PROGRAM: u64 = 1;
/// Where guest-physical page 0 appears to the guest, in pages: all of its memory is mapped there.
const WINDOW: u64 = 0x40_0000;
/// Guest-physical pages that are mapped one by one, and those behind them by leaves of 2 MiB.
const SMALL: u64 = 512;
const LARGE: u64 = 1024;
/// Pages of each kind that most checks use.
const SOME: u64 = 16;
/// Pages of the timed faults, behind those.
const TIMED: u64 = 256;
const HYPERCALLS: u64 = 256;
/// A guest-physical address that no memory is at.
const FAR: u64 = 1 << 18;

/// All checks, on the CPU's own second level of paging. With [`flags::STALE`], one that must not end.
///
/// # Errors
/// What the CPU lacks, or the first thing that was wrong.
pub fn run(machine: &Machine, boot: &BootInfo, results: &Results) -> Result<(), &'static str> {
    machine.start_guests(machine.frames().0)?;
    let done = match machine.guests().as_deref() {
        Some(Guests::Vmx(_)) => on::<Ept>(machine, boot, results),
        _ => on::<Npt>(machine, boot, results),
    };
    machine.stop_guests();
    done
}

fn on<F: Format>(machine: &Machine, boot: &BootInfo, results: &Results) -> Result<(), &'static str> {
    let (first, count) = machine.frames();
    let end = first.add(count).align_down(Order::HUGE);
    let memory = Pfn::new(end.raw().checked_sub(PAGES).ok_or("too few frames for a guest")?);
    let managed = first.add(Guests::FRAMES);
    if managed >= memory {
        return Err("too few frames for a guest");
    }
    let manager = Manager::<_, Total>::new(machine, &[managed..memory], true, Policy::up_to(Order::BASE))
        .map_err(|_| "too few frames for a manager")?;
    let mut checks = Checks::<F, _>::new(machine, &manager, memory)?;
    let (kind, abilities) = (checks.guest.guests().kind(), checks.guest.guests().abilities());
    if boot.has(flags::STALE) {
        checks.guest.forget_a_flush();
        checks.load(SMALL, 1)?;
        return Err("a guest was entered on stale translations");
    }
    checks.demand()?;
    checks.large()?;
    checks.rights()?;
    if abilities.accessed_dirty {
        checks.accessed_and_dirty()?;
    }
    checks.redirect()?;
    checks.split_and_collapse()?;
    if abilities.gigabyte_leaves {
        checks.gigabyte(end)?;
    }
    checks.misconfigured()?;
    checks.exceptions()?;
    let [faults, calls] = checks.time()?;
    let counts = checks.guest.counts();
    for (word, value) in [
        (words::KIND, kind),
        (words::ACCESSED_DIRTY, u64::from(abilities.accessed_dirty)),
        (words::GIGABYTE_LEAVES, u64::from(abilities.gigabyte_leaves)),
        (words::ENTRIES, counts.entries),
        (words::VIOLATIONS, counts.violations),
        (words::GUEST_WALKS, counts.guest_walks),
        (words::HYPERCALLS, counts.hypercalls),
        (words::FAULT_PAGES, TIMED),
        (words::FAULT_TICKS, faults),
        (words::TIMED_HYPERCALLS, HYPERCALLS),
        (words::HYPERCALL_TICKS, calls),
    ] {
        results.general(word).store(value, Relaxed);
    }
    checks.guest.end();
    if !manager.trim() {
        return Err("a guest's end leaves tables behind");
    }
    machine.zero(memory, PAGES);
    let counts = vm::check::<F, _>(machine, &manager, memory)?;
    results.general(words::INSIDE_VIOLATIONS).store(counts.violations, Relaxed);
    results.general(words::INSIDE_HYPERCALLS).store(counts.hypercalls, Relaxed);
    if manager.trim() { Ok(()) } else { Err("a guest's end leaves tables behind") }
}

struct Checks<'a, F, T> {
    guest: Guest<'a, F, T>,
}

impl<'a, F: Format, T: Tables> Checks<'a, F, T> {
    /// A guest with the program, which waits for a command.
    fn new(machine: &'a Machine, tables: &'a T, memory: Pfn) -> Result<Self, &'static str> {
        let mut guest = Guest::new(machine, tables, memory)?;
        guest.map_own(WINDOW, Pfn::new(0), PAGES, ALL.or(Attrs::ACCESSED_DIRTY))?;
        for (word, bytes) in machine.frame(guest.frame(PROGRAM)).0.iter().zip(program::bytes().chunks(8)) {
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            word.store(value, Relaxed);
        }
        guest.registers().r8[7] = guest.guests().kind() - 1;
        Ok(Self { guest })
    }

    /// Runs a command until something stops it, at guest-physical `page` and `count - 1` pages behind it. Missing leaves are made: small ones, and large ones in the large part.
    fn run(&mut self, command: Command, page: u64, count: u64, value: u64) -> Result<Exit, &'static str> {
        let registers = self.guest.registers();
        registers.rip = (WINDOW + PROGRAM) << PAGE_SHIFT;
        registers.rax = command as u64;
        registers.rdi = (WINDOW + page) << PAGE_SHIFT;
        registers.rcx = count;
        registers.rsi = 1 << PAGE_SHIFT;
        registers.rdx = value;
        self.guest.run(|guest, address| {
            let page = address >> PAGE_SHIFT;
            if page >= PAGES {
                return Err("an access outside the guest's memory");
            }
            let level = if page < LARGE { Level::ONE } else { Level::TWO };
            let first = page & !(level.entry_pages() - 1);
            guest.map(first, level, guest.frame(first), ALL)
        })
    }

    fn expect(&mut self, command: Command, page: u64, count: u64, value: u64) -> Result<u64, &'static str> {
        match self.run(command, page, count, value)? {
            Exit::Hypercall => Ok(self.guest.registers().rbx),
            _ => Err("a command did not end in its hypercall"),
        }
    }

    fn load(&mut self, page: u64, count: u64) -> Result<u64, &'static str> {
        self.expect(Command::Load, page, count, 0)
    }

    fn store(&mut self, page: u64, count: u64, value: u64) -> Result<(), &'static str> {
        self.expect(Command::Store, page, count, value).map(drop)
    }

    /// How many violations, and how many of them in walks of the guest's tables, `work` makes.
    fn violations(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), &'static str>,
    ) -> Result<(u64, u64), &'static str> {
        let before = self.guest.counts();
        work(self)?;
        let after = self.guest.counts();
        Ok((after.violations - before.violations, after.guest_walks - before.guest_walks))
    }

    /// A command that must be stopped by the second level, at the start of `page`.
    fn refused(&mut self, command: Command, page: u64, access: Access) -> Result<(), &'static str> {
        let expected = Exit::Violation { address: page << PAGE_SHIFT, access, guest_walk: false };
        if self.run(command, page, 1, 0)? == expected {
            Ok(())
        } else {
            Err("an access was not refused as it should be")
        }
    }

    /// The first command needs every page on its way once, and what one side stores the other loads.
    fn demand(&mut self) -> Result<(), &'static str> {
        let found = self.violations(|checks| checks.store(SMALL, SOME, 100))?;
        // Of the guest's tables: the root, one of level 3, one of level 2, those of the program and of the data. Then program and data.
        if found != (5 + 1 + SOME, 5) {
            return Err("not one violation for each page");
        }
        if !(0..SOME).all(|i| self.guest.word(SMALL + i).load(Relaxed) == 100 + i) {
            return Err("what the guest stored is not there");
        }
        (0..SOME).for_each(|i| self.guest.word(SMALL + i).store(200 + i, Relaxed));
        let found = self.violations(|checks| {
            let sum = (0..SOME).fold(0, |sum, i| checksum(sum, 200 + i));
            if checks.load(SMALL, SOME)? == sum { Ok(()) } else { Err("the guest does not load what is there") }
        })?;
        if found == (0, 0) { Ok(()) } else { Err("mapped pages violate") }
    }

    /// One violation for 512 pages, and one for their table.
    fn large(&mut self) -> Result<(), &'static str> {
        let found = self.violations(|checks| checks.store(LARGE, 512, 300))?;
        if found != (2, 1) {
            return Err("not one violation for a large leaf");
        }
        let stored = (0..512).all(|i| self.guest.word(LARGE + i).load(Relaxed) == 300 + i);
        match self.guest.leaf(LARGE + 5) {
            Some((Level::TWO, leaf)) if stored && leaf.pfn == self.guest.frame(LARGE) => Ok(()),
            _ => Err("a large leaf leads elsewhere"),
        }
    }

    fn rights(&mut self) -> Result<(), &'static str> {
        for page in [SMALL, LARGE] {
            self.guest.word(page).store(COME_BACK, Relaxed);
            self.expect(Command::Fetch, page, 1, 0)?;
            self.guest.narrow(page, Attrs::WRITE);
            self.load(page, 1)?;
            self.expect(Command::Fetch, page, 1, 0)?;
            self.refused(Command::Store, page, Access::Write)?;
            self.guest.narrow(page, Attrs::EXEC);
            self.load(page, 1)?;
            self.refused(Command::Fetch, page, Access::Fetch)?;
            self.guest.narrow(page, Attrs::USER);
            self.refused(Command::Load, page, Access::Read)?;
            self.refused(Command::Store, page, Access::Write)?;
            self.guest.widen(page, Attrs::USER);
            self.load(page, 1)?;
            self.refused(Command::Store, page, Access::Write)?;
            self.guest.widen(page, ALL);
            self.expect(Command::Fetch, page, 1, 0)?;
            self.store(page, 1, 1)?;
            self.expect(Command::Add, page, 1, 0)?;
            if self.guest.word(page).load(Relaxed) != 2 {
                return Err("a locked addition is lost");
            }
        }
        Ok(())
    }

    fn accessed_and_dirty(&mut self) -> Result<(), &'static str> {
        for page in [SMALL + 1, LARGE] {
            let set = |checks: &Self| {
                checks.guest.leaf(page).map_or(Attrs::NONE, |(_, leaf)| {
                    let bits = [Attrs::ACCESSED, Attrs::DIRTY];
                    bits.into_iter().fold(Attrs::NONE, |set, bit| set.with_if(leaf.attrs.has(bit), bit))
                })
            };
            self.guest.narrow(page, Attrs::ACCESSED_DIRTY);
            if set(self) != Attrs::NONE {
                return Err("accessed and dirty are set where nobody was");
            }
            self.load(page, 1)?;
            if set(self) != Attrs::ACCESSED {
                return Err("a load does not set accessed alone");
            }
            self.store(page, 1, 7)?;
            if set(self) != Attrs::ACCESSED_DIRTY {
                return Err("a store does not set dirty");
            }
        }
        // The MMU's walks of the guest's tables count as stores.
        let root = self.guest.leaf(OWN_TABLES.start).ok_or("the guest's root is not mapped")?;
        if root.1.attrs.has(Attrs::ACCESSED_DIRTY) { Ok(()) } else { Err("a walk does not set dirty") }
    }

    /// A page gets another frame: after the flush the guest sees only that.
    fn redirect(&mut self) -> Result<(), &'static str> {
        let (page, other) = (SMALL + 2, SMALL + SOME + TIMED);
        self.store(page, 1, 11)?;
        self.guest.word(other).store(22, Relaxed);
        if !self.guest.unmap(page).has(ALL) {
            return Err("an unmapped leaf was another");
        }
        self.guest.map(page, Level::ONE, self.guest.frame(other), ALL)?;
        if self.load(page, 1)? != 22 {
            return Err("the old page is still there");
        }
        self.store(page, 1, 33)?;
        let found = (self.guest.word(page).load(Relaxed), self.guest.word(other).load(Relaxed));
        self.guest.unmap(page);
        if found == (11, 33) { Ok(()) } else { Err("a store went to the old page") }
    }

    fn split_and_collapse(&mut self) -> Result<(), &'static str> {
        let page = LARGE + 77;
        self.guest.split(page)?;
        if self.guest.leaf(page).is_none_or(|(level, leaf)| level != Level::ONE || leaf.pfn != self.guest.frame(page)) {
            return Err("a split leaf leads elsewhere");
        }
        self.store(LARGE, 512, 400)?;
        self.guest.narrow(page, Attrs::WRITE);
        self.store(page - 1, 1, 1)?;
        self.refused(Command::Store, page, Access::Write)?;
        if self.guest.collapse(page, Level::TWO) {
            return Err("leaves of different rights became one");
        }
        self.guest.widen(page, Attrs::WRITE);
        if !self.guest.collapse(page, Level::TWO) || self.guest.leaf(page).is_none_or(|found| found.0 != Level::TWO) {
            return Err("leaves that could be one are not");
        }
        let found = self.violations(|checks| checks.store(LARGE, 512, 500))?;
        let stored = (0..512).all(|i| self.guest.word(LARGE + i).load(Relaxed) == 500 + i);
        if found == (0, 0) && stored { Ok(()) } else { Err("a collapsed leaf is not whole") }
    }

    /// One leaf for the gigabyte that our memory, which ends at `end`, lies in.
    fn gigabyte(&mut self, end: Pfn) -> Result<(), &'static str> {
        let base = end.raw().next_multiple_of(Level::THREE.entry_pages()) - Level::THREE.entry_pages();
        let frame = self.guest.frame(SMALL);
        if frame.raw() < base {
            return Ok(());
        }
        self.guest.map(FAR, Level::THREE, Pfn::new(base), ALL.without(Attrs::WRITE))?;
        let page = PAGES;
        self.guest.map_own(WINDOW + page, Pfn::new(FAR + frame.raw() - base), 1, ALL.or(Attrs::ACCESSED_DIRTY))?;
        self.guest.word(SMALL).store(44, Relaxed);
        if self.load(page, 1)? != 44 {
            return Err("a leaf of 1 GiB leads elsewhere");
        }
        let stopped = self.run(Command::Store, page, 1, 0)?;
        let address = (FAR + frame.raw() - base) << PAGE_SHIFT;
        self.guest.unmap(FAR);
        if stopped == (Exit::Violation { address, access: Access::Write, guest_walk: false }) {
            Ok(())
        } else {
            Err("a store through a leaf of 1 GiB was not refused")
        }
    }

    /// A large leaf whose address is not aligned to its size is reserved in every format.
    fn misconfigured(&mut self) -> Result<(), &'static str> {
        let leaf = Leaf { pfn: self.guest.frame(LARGE + 4), attrs: ALL };
        let good = self.guest.replace_raw(LARGE, F::leaf(leaf, Level::TWO));
        let stopped = self.run(Command::Load, LARGE, 1, 0)?;
        self.guest.replace_raw(LARGE, good);
        self.load(LARGE, 1)?;
        match stopped {
            Exit::Misconfigured { address } if address >> PAGE_SHIFT == LARGE => Ok(()),
            _ => Err("a wrong entry was not noticed"),
        }
    }

    fn exceptions(&mut self) -> Result<(), &'static str> {
        let exception = |vector, error, address| Exit::Exception { vector, error, address };
        let undefined = self.run(Command::Undefined, SMALL, 1, 0)?;
        if undefined != exception(6, 0, 0) {
            return Err("an undefined instruction is not an exception");
        }
        // The guest's own tables have nothing there: its own page fault, not ours.
        let at = (WINDOW + PAGES + 1) << PAGE_SHIFT;
        if self.run(Command::Load, PAGES + 1, 1, 0)? != exception(14, 0, at)
            || self.run(Command::Store, PAGES + 1, 1, 0)? != exception(14, 2, at)
        {
            return Err("a page fault of the guest is not its own");
        }
        if self.run(Command::Halt, SMALL, 1, 0)? != Exit::Halt {
            return Err("HLT does not exit");
        }
        match self.run(Command::Port, SMALL, 1, 0)? {
            Exit::Other(_) => self.load(PROGRAM, 1).map(drop),
            _ => Err("a guest reached a port"),
        }
    }

    /// Ticks of [`TIMED`] faults and of [`HYPERCALLS`] hypercalls.
    fn time(&mut self) -> Result<[u64; 2], &'static str> {
        let begin = cpu::tsc();
        let found = self.violations(|checks| checks.store(SMALL + SOME, TIMED, 1))?;
        let faults = cpu::tsc() - begin;
        if found != (TIMED, 0) {
            return Err("not one violation for each timed page");
        }
        let begin = cpu::tsc();
        for _ in 0..HYPERCALLS {
            self.load(SMALL, 0)?;
        }
        Ok([faults, cpu::tsc() - begin])
    }
}
