//! Random nests: a VM with a manager in it, whose processes and VMs touch memory while every level maps, unmaps, forks, logs and moves what it has. Each word is the one that was
//! stored last, by whatever way; a walk through all tables leads where the MMU went; and the recounts of both levels agree.
//!
//! `QUIRE_NEST_OPS` operations (a hundred thousand if it says nothing), with a recount every `QUIRE_NEST_STEP` of them; `QUIRE_FIRST_SEED` is where the seeds begin.

mod world;

use std::collections::HashMap;

use quire::addr::{Level, Order, Pfn};
use quire::audit::Recount;
use quire::mapcount::{Accounting, Classes, Everything};
use quire::model::nest::{GuestMemory, NestError};
use quire::space::{Advice, FaultError, LargeFolios, Manager, Map, ObjectKind, Policy, SpaceId};
use quire::stage2::{AsId, Backing, GuestFlush, Slot, SlotFlags, SlotId, Stage2Format, VmFaultError, VmId};
use world::{BASE, R, RW, World, at, huge, machine_of};

const FRAMES: u64 = 12 * 1024;
const GUEST_FRAMES: u64 = 3 * 512;
const GUEST_PAGES: u64 = 4 * 512;
const PLAIN: SlotFlags = SlotFlags::LOGGING.without(SlotFlags::LOGGING);
/// Pages of a process of the guest.
const PAGES: u64 = 96;
/// Operations of one nest.
const LENGTH: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
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

/// A process of the guest: what its pages hold, 0 if nothing was stored; `None` where nothing is mapped. Its VM has some of them.
struct Process {
    space: SpaceId,
    words: HashMap<u64, u64>,
    mapped: Vec<bool>,
    writable: Vec<bool>,
    vm: Option<(VmId, SlotId, u64)>,
}

struct Nest<'n, A: Accounting> {
    w: &'n World<'n, Classes<A>>,
    vm: VmId,
    vmm: SpaceId,
    slot: SlotId,
    logging: bool,
    memory: &'n GuestMemory<'n, A>,
    guest: Manager<&'n GuestMemory<'n, A>, Classes<A>>,
    recount: Recount,
    processes: Vec<Process>,
    random: Random,
    stamp: u64,
}

impl<A: Accounting> Nest<'_, A> {
    fn audit(&self) {
        self.w.audit_classes();
        let audit = self.memory.look(|| self.recount.run_classes(&self.guest));
        assert_eq!(audit.mismatches, 0, "the recount of level 1 disagrees: {:?}", audit.first);
    }

    fn step(&mut self) {
        let which = self.random.below(self.processes.len() as u64) as usize;
        let page = self.random.below(PAGES);
        let pages = 1 + self.random.below(16).min(PAGES - page - 1);
        match self.random.below(100) {
            0..40 => self.touch(which, page),
            40..70 => self.touch_in_vm(which, page),
            70..73 => self.map_or_unmap(which, page, pages),
            73..76 => self.protect(which, page, pages),
            76..78 => self.fork_or_exit(which),
            78..82 => self.change_vm(which),
            82..86 => {
                let gfn = self.random.below(GUEST_PAGES);
                let pages = (1 + self.random.below(64)).min(GUEST_PAGES - gfn);
                // What the object holds comes back by faults.
                self.w.manager.advise(self.vmm, at(BASE + gfn), pages, Advice::DontNeed).unwrap();
            }
            86..88 => self.log(),
            88..90 => {
                // Stage 2 gets leaves without a guest's access.
                let gfn = self.random.below(GUEST_PAGES);
                self.w.guest_read(self.vm, gfn);
            }
            90..92 => self.w.manager.harvest_accessed(self.vm, AsId::NORMAL, 0..GUEST_PAGES, |_| {}),
            92..94 => self.w.manager.vm_flush(self.vm, GuestFlush::All),
            94..96 => {
                let process = &mut self.processes[which];
                if (page..page + pages).all(|page| process.mapped[page as usize]) {
                    self.guest.advise(process.space, at(BASE + page), pages, Advice::DontNeed).unwrap();
                    process.words.retain(|at, _| !(page..page + pages).contains(at));
                }
            }
            96..98 => self.give_back(),
            _ => self.slot_moves(),
        }
    }

    fn expect(&self, which: usize, page: u64) -> u64 {
        self.processes[which].words.get(&page).copied().unwrap_or(0)
    }

    fn touch(&mut self, which: usize, page: u64) {
        let store = (self.random.below(2) == 0).then(|| {
            self.stamp += 1;
            self.stamp
        });
        let process = &self.processes[which];
        let result = self.memory.process_access(&self.guest, process.space, BASE + page, store);
        self.settle(which, page, store, result, NestError::Process);
    }

    fn settle(
        &mut self,
        which: usize,
        page: u64,
        store: Option<u64>,
        result: Result<u64, NestError>,
        wrap: impl Fn(FaultError) -> NestError,
    ) {
        let (mapped, writable) =
            (self.processes[which].mapped[page as usize], self.processes[which].writable[page as usize]);
        let expected = match (mapped, writable, store) {
            (false, ..) => Err(wrap(FaultError::NotMapped)),
            (true, false, Some(_)) => Err(wrap(FaultError::Forbidden)),
            _ => Ok(self.expect(which, page)),
        };
        assert_eq!(result, expected, "process {which}, page {page}, store {store:?}");
        if let (Ok(_), Some(value)) = (result, store) {
            self.processes[which].words.insert(page, value);
        }
    }

    fn touch_in_vm(&mut self, which: usize, page: u64) {
        let Some((vm, _, gfn)) = self.processes[which].vm else { return self.change_vm(which) };
        let store = (self.random.below(2) == 0).then(|| {
            self.stamp += 1;
            self.stamp
        });
        let result = self.memory.vm_access(&self.guest, vm, gfn + page, store);
        self.settle(which, page, store, result, |error| NestError::Vm(VmFaultError::Host(error)));
    }

    fn map_or_unmap(&mut self, which: usize, page: u64, pages: u64) {
        let process = &mut self.processes[which];
        self.guest.unmap(process.space, at(BASE + page), pages).unwrap();
        let again = process.mapped[page as usize];
        if !again {
            self.guest.map(process.space, at(BASE + page), pages, RW, Map::Anon).unwrap();
        }
        for page in page..page + pages {
            process.words.remove(&page);
            process.mapped[page as usize] = !again;
            process.writable[page as usize] = !again;
        }
    }

    fn protect(&mut self, which: usize, page: u64, pages: u64) {
        let process = &mut self.processes[which];
        if !(page..page + pages).all(|page| process.mapped[page as usize]) {
            return;
        }
        let writable = !process.writable[page as usize];
        let prot = if writable { RW } else { R };
        self.guest.protect(process.space, at(BASE + page), pages, prot).unwrap();
        (page..page + pages).for_each(|page| process.writable[page as usize] = writable);
    }

    fn fork_or_exit(&mut self, which: usize) {
        if self.processes.len() < 4 {
            let of = &self.processes[which];
            let space = self.guest.fork(of.space).unwrap();
            let (words, mapped, writable) = (of.words.clone(), of.mapped.clone(), of.writable.clone());
            self.processes.push(Process { space, words, mapped, writable, vm: None });
        } else {
            self.end(which);
        }
    }

    fn end(&mut self, which: usize) {
        self.end_vm(which);
        let process = self.processes.remove(which);
        self.memory.leave(None, self.guest.root(process.space).raw());
        self.guest.destroy_space(process.space);
    }

    fn end_vm(&mut self, which: usize) {
        let Some((vm, ..)) = self.processes[which].vm.take() else { return };
        let table = self.guest.stage2_root(vm, AsId::NORMAL).expect("it has memory").raw();
        if self.random.below(2) == 0 {
            // A zombie for a while.
            let root = self.memory.nested_root(table);
            self.w.manager.retire_root(self.vm, root);
            self.w.audit_classes();
        }
        self.memory.leave(None, table);
        self.guest.destroy_vm(vm);
    }

    /// Makes or ends a VM of the guest, or moves its memory.
    fn change_vm(&mut self, which: usize) {
        match self.processes[which].vm {
            None => {
                let vm = self.guest.create_vm(self.processes[which].space, Stage2Format::LongMode).unwrap();
                let slot = Slot { gfn: 0, pages: PAGES, backing: Backing::Host(BASE), flags: PLAIN };
                let slot = self.guest.add_slot(vm, AsId::NORMAL, slot).unwrap();
                self.processes[which].vm = Some((vm, slot, 0));
            }
            Some((vm, slot, _)) if self.random.below(3) > 0 => {
                let gfn = self.random.below(8) * 512 + self.random.below(2);
                self.guest.move_slot(vm, AsId::NORMAL, slot, gfn).unwrap();
                self.processes[which].vm = Some((vm, slot, gfn));
            }
            Some(_) => self.end_vm(which),
        }
    }

    fn log(&mut self) {
        if self.logging && self.random.below(2) == 0 {
            return self.w.manager.take_log(self.vm, AsId::NORMAL, self.slot, |_| {});
        }
        self.logging = !self.logging;
        if self.logging {
            self.w.manager.start_log(self.vm, AsId::NORMAL, self.slot).unwrap();
        } else {
            self.w.manager.stop_log(self.vm, AsId::NORMAL, self.slot);
        }
    }

    /// The handshake, for some run that is free in the guest.
    fn give_back(&mut self) {
        let order = Order::new(self.random.below(6) as u8);
        self.guest.report_free(order, |run| {
            let gfns = run.raw()..run.raw() + order.pages();
            self.w.manager.discard(self.vm, AsId::NORMAL, gfns).unwrap()
        });
    }

    /// The guest's memory is taken away and put back: all that it had in stage 2, and all that is composed, goes.
    fn slot_moves(&mut self) {
        if !self.logging {
            for gfn in [1 << 20, 0] {
                self.w.manager.move_slot(self.vm, AsId::NORMAL, self.slot, gfn).unwrap();
            }
        }
    }
}

fn run<A: Accounting>(seed: u64, step: u64, length: u64) {
    let machine = machine_of(FRAMES);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let w: World<'_, Classes<A>> = World::with_scheme(&machine, huge(), FRAMES);
    let order = Order::new([0, 4, 9][random.below(3) as usize]);
    let file = w.manager.create_object(ObjectKind::Shared, 0, GUEST_PAGES, order).unwrap();
    let vmm = w.space();
    w.map(vmm, BASE, GUEST_PAGES, RW, Map::Shared(file, 0));
    let vm = w.manager.create_vm(vmm, Stage2Format::LongMode).unwrap();
    let slot = w.slot(vm, 0, BASE, GUEST_PAGES, PLAIN);
    {
        let memory = GuestMemory::new(&w.manager, vm);
        let policy = Policy {
            orders: 1 | random.below(64) as u32,
            large: LargeFolios::Always,
            max_leaf: [Level::ONE, Level::TWO][random.below(2) as usize],
        };
        let guest = Manager::new(&memory, &[Pfn::new(0)..Pfn::new(GUEST_FRAMES)], true, policy).expect("frames");
        let recount = Recount::new(Pfn::new(GUEST_FRAMES), Pfn::new(0), GUEST_FRAMES);
        let space = guest.create_space().unwrap();
        guest.map(space, at(BASE), PAGES, RW, Map::Anon).unwrap();
        let all = vec![true; PAGES as usize];
        let first = Process { space, words: HashMap::new(), mapped: all.clone(), writable: all, vm: None };
        let processes = vec![first];
        let logging = false;
        let mut nest =
            Nest { w: &w, vm, vmm, slot, logging, memory: &memory, guest, recount, processes, random, stamp: 0 };
        for n in 1..=length {
            nest.step();
            if n % step == 0 {
                nest.audit();
            }
        }
        while !nest.processes.is_empty() {
            nest.end(0);
        }
        nest.audit();
        assert!(nest.guest.trim(), "frames of the guest are lost");
        memory.leave_all();
    }
    w.audit_classes();
    w.end_vms(&[file]);
}

#[test]
fn every_level_sees_what_was_stored_and_counts_what_is_there() {
    let (ops, step, first) =
        (number("QUIRE_NEST_OPS", 100_000), number("QUIRE_NEST_STEP", 100), number("QUIRE_FIRST_SEED", 1));
    let nests = ops.div_ceil(LENGTH);
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for seed in (first + half..first + nests).step_by(2) {
                    println!("seed {seed}");
                    run::<Everything>(seed, step, LENGTH.min(ops));
                }
            });
        }
    });
}
