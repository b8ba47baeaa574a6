//! Random histories of a nest: a VM with a manager in it, whose processes and VMs touch memory while every level maps, unmaps, forks, logs and moves what it has. Each word is
//! the one that was stored last, by whatever way, at every level; and the recounts of both levels agree.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::{BASE, Cpu, Nest, READ, READ_WRITE, Setup, Who, Wrong, at, deepest, in_nest, must};
use crate::addr::{Level, Order};
use crate::audit::Recount;
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::nest::NestError;
use crate::space::{Access, Advice, FaultError, LargeFolios, Manager, Map, Policy, SpaceId};
use crate::stage2::{AsId, Backing, GuestFlush, Slot, SlotFlags, SlotId, Stage2Format, VmFaultError, VmId};
use crate::trace::stamp;

/// Pages of a process.
const PAGES: u64 = 96;
/// Processes at a time.
const PROCESSES: usize = 4;
/// Where a process has what its VM boots from, counted from its first page.
const BOOT: u64 = 1024;
/// Frames of the manager of level 1.
const FRAMES: u64 = 2 * 512;
/// Frames that level 0 needs.
pub const HOST_FRAMES: u64 = 6 * 512;

/// One history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// What it is drawn from; the same seed is the same history, on every machine.
    pub seed: u64,
    /// Operations.
    pub length: u64,
    /// Operations between recounts of both levels.
    pub step: u64,
    /// The format of the VM's tables.
    pub format: Stage2Format,
}

/// What a history went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Operations.
    pub operations: u64,
    /// Accesses of processes of level 1.
    pub by_processes: u64,
    /// Accesses of VMs of level 1.
    pub by_vms: u64,
    /// Words that were read again below.
    pub below: u64,
    /// Recounts of both levels.
    pub recounts: u64,
}

impl History {
    /// Goes through it on `host`, which has nothing else.
    ///
    /// # Errors
    /// Behind which operation, and what was wrong.
    pub fn run<M: Memory + Tlb, A: Accounting, C: Cpu<M, A>>(
        &self,
        host: &Manager<M, Classes<A>>,
        rows: &Recount,
        cpu: &mut C,
    ) -> Result<Done, (u64, Wrong)> {
        let mut random = Random(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let policy = Policy {
            orders: 1 | random.below(64) as u32,
            large: LargeFolios::Always,
            max_leaf: [Level::ONE, Level::TWO][random.below(2) as usize],
        };
        let order = Order::new([0, 4, 9][random.below(3) as usize]);
        let setup = Setup { format: self.format, frames: FRAMES, order, policy };
        let mut done = Done::default();
        let result = in_nest(host, rows, setup, |nest| {
            let mut going =
                Going { nest, cpu, random, processes: ArrayVec::new(), logging: false, stamps: 0, done: &mut done };
            going.go(self)
        });
        result.map(|()| done).map_err(|wrong| (done.operations, wrong))
    }
}

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// Pages of a process, as bits.
#[derive(Clone, Copy, Debug)]
struct Pages(u128);

impl Pages {
    const ALL: Self = Self((1 << PAGES) - 1);

    fn has(self, page: u64) -> bool {
        self.0 >> page & 1 == 1
    }

    fn has_all(self, page: u64, pages: u64) -> bool {
        (page..page + pages).all(|page| self.has(page))
    }

    fn set(&mut self, page: u64, pages: u64, value: bool) {
        let bits = ((1 << pages) - 1) << page;
        self.0 = if value { self.0 | bits } else { self.0 & !bits };
    }
}

/// A process of level 1.
#[derive(Clone, Debug)]
struct Process {
    space: SpaceId,
    /// What its pages hold.
    words: [u64; PAGES as usize],
    mapped: Pages,
    writable: Pages,
    vm: Option<Inner>,
}

/// A VM of level 1, which has the pages of a process from its guest frame `gfn` on.
#[derive(Clone, Copy, Debug)]
struct Inner {
    vm: VmId,
    slot: SlotId,
    gfn: u64,
}

struct Going<'g, 'n, M, A, C> {
    nest: &'g Nest<'n, M, A>,
    cpu: &'g mut C,
    random: Random,
    processes: ArrayVec<Process, PROCESSES>,
    logging: bool,
    stamps: u64,
    done: &'g mut Done,
}

impl<'n, M: Memory + Tlb, A: Accounting, C: Cpu<M, A>> Going<'_, 'n, M, A, C> {
    fn go(&mut self, history: &History) -> Result<(), Wrong> {
        let space = must("a process", self.nest.guest.create_space())?;
        must("its pages", self.nest.guest.map(space, at(BASE), PAGES, READ_WRITE, Map::Anon))?;
        let words = [0; PAGES as usize];
        self.processes.push(Process { space, words, mapped: Pages::ALL, writable: Pages::ALL, vm: None });
        while self.done.operations < history.length {
            self.done.operations += 1;
            self.step()?;
            if self.done.operations.is_multiple_of(history.step) {
                self.recount()?;
            }
        }
        while !self.processes.is_empty() {
            self.end(0)?;
        }
        Ok(())
    }

    fn recount(&mut self) -> Result<(), Wrong> {
        self.done.recounts += 1;
        self.nest.recount()
    }

    fn host(&self) -> &'n Manager<M, Classes<A>> {
        self.nest.host()
    }

    fn step(&mut self) -> Result<(), Wrong> {
        let (host, vm, pages_of_vm) = (self.host(), self.nest.vm(), self.nest.pages);
        let which = self.random.below(self.processes.len() as u64) as usize;
        let page = self.random.below(PAGES);
        let pages = 1 + self.random.below(16).min(PAGES - page - 1);
        match self.random.below(100) {
            0..34 => self.touch(which, page),
            34..64 => self.touch_in_vm(which, page),
            64..68 => self.map_or_unmap(which, page, pages),
            68..72 => self.protect(which, page, pages),
            72..74 => self.fork_or_exit(which),
            74..79 => self.change_vm(which),
            79..83 => {
                let gfn = self.random.below(pages_of_vm);
                let pages = (1 + self.random.below(64)).min(pages_of_vm - gfn);
                // What the object holds comes back by faults.
                must("a zap", host.advise(self.nest.vmm, at(BASE + gfn), pages, Advice::DontNeed))
            }
            83..86 => self.log(),
            86..88 => {
                // Stage 2 gets leaves without a guest's access.
                let gfn = self.random.below(pages_of_vm);
                let _ = self.nest.memory.reach(gfn, Access::Read);
                Ok(())
            }
            88..90 => {
                host.harvest_accessed(vm, AsId::NORMAL, 0..pages_of_vm, |_| {});
                Ok(())
            }
            90..92 => {
                host.vm_flush(vm, GuestFlush::All);
                Ok(())
            }
            92..94 => self.drop_pages(which, page, pages),
            94..96 => self.give_back(),
            96..98 => self.clone_vm(),
            _ => self.slot_moves(),
        }
    }

    /// A seed for a store, or nothing for a load.
    fn seed(&mut self) -> Option<u64> {
        (self.random.below(2) == 0).then(|| {
            self.stamps += 1;
            self.stamps
        })
    }

    fn touch(&mut self, which: usize, page: u64) -> Result<(), Wrong> {
        self.done.by_processes += 1;
        let who = Who::Process(self.processes[which].space);
        self.access(which, page, who, BASE + page, NestError::Process)
    }

    fn touch_in_vm(&mut self, which: usize, page: u64) -> Result<(), Wrong> {
        let Some(Inner { vm, gfn, .. }) = self.processes[which].vm else { return self.change_vm(which) };
        self.done.by_vms += 1;
        self.access(which, page, Who::Vm(vm), gfn + page, |error| NestError::Vm(VmFaultError::Host(error)))
    }

    /// An access of `who` to its page `at`, which is `page` of the process; what `wrap` makes of the process's own refusal is expected.
    fn access(
        &mut self,
        which: usize,
        page: u64,
        who: Who,
        at: u64,
        wrap: impl Fn(FaultError) -> NestError,
    ) -> Result<(), Wrong> {
        let store = self.seed();
        let found = self.cpu.touch(self.nest, who, at, store);
        let process = &mut self.processes[which];
        let expected = match (process.mapped.has(page), process.writable.has(page), store) {
            (false, ..) => Err(wrap(FaultError::NotMapped)),
            (true, false, Some(_)) => Err(wrap(FaultError::Forbidden)),
            _ => Ok(process.words[page as usize]),
        };
        if found != expected {
            return Err(Wrong::Access { who, page: at, found, expected });
        }
        if let (Ok(_), Some(seed)) = (found, store) {
            let word = stamp(seed, at);
            process.words[page as usize] = word;
            let space = process.space;
            self.read_below(space, page, word)?;
        }
        Ok(())
    }

    /// Levels 1 and 0 read what was stored, each by its own tables.
    fn read_below(&mut self, space: SpaceId, page: u64, word: u64) -> Result<(), Wrong> {
        let page = BASE + page;
        let gfn = self.nest.guest_frame(space, page).ok_or(Wrong::Below { level: 1, page })?;
        let of_guest = self.nest.memory.look(|| self.nest.memory.frame(gfn).0[0].load(Relaxed));
        if of_guest != word {
            return Err(Wrong::Below { level: 1, page });
        }
        // By the VMM's own mapping, not the VM's.
        let pin = must("a pin", self.host().pin(self.nest.vmm, at(BASE + gfn.raw()), Access::Read))?;
        let of_host = self.host().memory().frame(pin.frame()).0[0].load(Relaxed);
        self.host().unpin(pin, false);
        self.done.below += 1;
        if of_host == word { Ok(()) } else { Err(Wrong::Below { level: 0, page }) }
    }

    fn map_or_unmap(&mut self, which: usize, page: u64, pages: u64) -> Result<(), Wrong> {
        let (process, guest) = (&mut self.processes[which], &self.nest.guest);
        must("munmap", guest.unmap(process.space, at(BASE + page), pages))?;
        let again = !process.mapped.has(page);
        if again {
            must("mmap", guest.map(process.space, at(BASE + page), pages, READ_WRITE, Map::Anon))?;
        }
        process.words[page as usize..][..pages as usize].fill(0);
        process.mapped.set(page, pages, again);
        process.writable.set(page, pages, again);
        Ok(())
    }

    fn protect(&mut self, which: usize, page: u64, pages: u64) -> Result<(), Wrong> {
        let process = &mut self.processes[which];
        if !process.mapped.has_all(page, pages) {
            return Ok(());
        }
        let writable = !process.writable.has(page);
        let prot = if writable { READ_WRITE } else { READ };
        must("mprotect", self.nest.guest.protect(process.space, at(BASE + page), pages, prot))?;
        process.writable.set(page, pages, writable);
        Ok(())
    }

    fn drop_pages(&mut self, which: usize, page: u64, pages: u64) -> Result<(), Wrong> {
        let process = &mut self.processes[which];
        if process.mapped.has_all(page, pages) {
            must("a zap", self.nest.guest.advise(process.space, at(BASE + page), pages, Advice::DontNeed))?;
            process.words[page as usize..][..pages as usize].fill(0);
        }
        Ok(())
    }

    fn fork_or_exit(&mut self, which: usize) -> Result<(), Wrong> {
        if self.processes.is_full() {
            return self.end(which);
        }
        let space = must("a fork", self.nest.guest.fork(self.processes[which].space))?;
        let child = Process { space, vm: None, ..self.processes[which].clone() };
        // What its parent's VM boots from is nothing to it.
        must("munmap", self.nest.guest.unmap(space, at(BASE + BOOT), deepest::PAGES))?;
        self.processes.push(child);
        Ok(())
    }

    fn end(&mut self, which: usize) -> Result<(), Wrong> {
        self.end_vm(which)?;
        let process = self.processes.remove(which);
        self.nest.exit(self.cpu, process.space);
        Ok(())
    }

    fn end_vm(&mut self, which: usize) -> Result<(), Wrong> {
        let Some(Inner { vm, .. }) = self.processes[which].vm.take() else { return Ok(()) };
        let space = self.processes[which].space;
        if self.random.below(2) == 0
            && let Some(table) = self.nest.guest.stage2_root(vm, AsId::NORMAL)
        {
            // A zombie for a while.
            self.cpu.leave();
            let root = self.nest.memory.nested_root(table.raw());
            self.host().retire_root(self.nest.vm(), root);
            self.recount()?;
        }
        self.nest.end_vm(self.cpu, vm);
        must("munmap", self.nest.guest.unmap(space, at(BASE + BOOT), deepest::PAGES))
    }

    /// Makes or ends a VM of level 1, or moves its memory.
    fn change_vm(&mut self, which: usize) -> Result<(), Wrong> {
        let guest = &self.nest.guest;
        let space = self.processes[which].space;
        match self.processes[which].vm {
            None => {
                let vm = must("a VM of level 1", guest.create_vm(space, self.host().vm_format(self.nest.vm())))?;
                let slot = Slot { gfn: 0, pages: PAGES, backing: Backing::Host(BASE), flags: SlotFlags::default() };
                let slot = must("a slot of level 1", guest.add_slot(vm, AsId::NORMAL, slot))?;
                deepest::boot(self.nest, self.cpu, vm, space, BASE + BOOT)?;
                self.processes[which].vm = Some(Inner { vm, slot, gfn: 0 });
                Ok(())
            }
            Some(inner) if self.random.below(3) > 0 => {
                let gfn = self.random.below(8) * 512 + self.random.below(2);
                must("a slot moves", guest.move_slot(inner.vm, AsId::NORMAL, inner.slot, gfn))?;
                self.processes[which].vm = Some(Inner { gfn, ..inner });
                Ok(())
            }
            Some(_) => self.end_vm(which),
        }
    }

    fn log(&mut self) -> Result<(), Wrong> {
        let (host, vm, slot) = (self.host(), self.nest.vm(), self.nest.slot);
        if self.logging && self.random.below(2) == 0 {
            host.take_log(vm, AsId::NORMAL, slot, |_| {});
            return Ok(());
        }
        self.logging = !self.logging;
        if self.logging {
            return must("the log", host.start_log(vm, AsId::NORMAL, slot));
        }
        host.stop_log(vm, AsId::NORMAL, slot);
        Ok(())
    }

    /// The handshake, for some run that is free in the guest.
    fn give_back(&mut self) -> Result<(), Wrong> {
        let order = Order::new(self.random.below(6) as u8);
        let mut result = Ok(false);
        self.nest.guest.report_free(order, |run| {
            let gfns = run.raw()..run.raw() + order.pages();
            result = must("a discard", self.host().discard(self.nest.vm(), AsId::NORMAL, gfns));
            result.unwrap_or(false)
        });
        result.map(|_| ())
    }

    /// A copy of the VM comes and goes, and has had some of its memory.
    fn clone_vm(&mut self) -> Result<(), Wrong> {
        let host = self.host();
        let (space, copy) = must("a clone", host.clone_vm(self.nest.vm()))?;
        let gfn = self.random.below(self.nest.pages);
        let access = crate::stage2::VmAccess { view: AsId::NORMAL, gfn, access: Access::Read };
        must("an access of the clone", host.vm_fault(copy, access))?;
        self.recount()?;
        host.destroy_vm(copy);
        host.destroy_space(space);
        Ok(())
    }

    /// The guest's memory is taken away and put back: all that it had in stage 2, and all that is composed, goes.
    fn slot_moves(&mut self) -> Result<(), Wrong> {
        if self.logging {
            return Ok(());
        }
        for gfn in [1 << 20, 0] {
            must("a slot moves", self.host().move_slot(self.nest.vm(), AsId::NORMAL, self.nest.slot, gfn))?;
        }
        Ok(())
    }
}
