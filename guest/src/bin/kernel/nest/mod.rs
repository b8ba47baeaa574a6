//! A tenant VM with a manager in it: level 0 has the machine's frames and gives some to the VM, level 1 has those for its own.
//!
//! ```text
//! exercise   the worked example of nested levels, and random histories
//! disturb    what the VMM does to its VM's memory while level 1 replays a trace
//! shadow     level 1's tenants on composed tables, which the MMU walks
//! entered    the same in guest mode, where the CPU walks two levels itself
//! tenants    who serves what they fault on
//! ```
//!
//! Level 1's manager works on its guest's behalf, in this kernel, and reaches its memory through stage 2 alone; its tenants touch theirs through the MMU.

mod disturb;
mod entered;
mod exercise;
mod shadow;
mod tenants;

use core::fmt;
use core::sync::atomic::AtomicU64;

use quire::abi::nest::{self as abi, engine, job, word};
use quire::abi::replay::{DEVICE, MAX_LEAF, ORDERS};
use quire::abi::{boot, stats};
use quire::addr::{Gva, Level, Pfn};
use quire::audit::Recount;
use quire::exercise::{Who, deepest};
use quire::mapcount::{Accounting, Classes};
use quire::nest::{GuestMemory, NestError};
use quire::space::{FaultError, LargeFolios, Manager, Map, PAGES_END, Policy, Prot, SpaceId};
use quire::stage2::{AsId, Backing, Kind, Slot, SlotFlags, Stage2Format, VmId};
use quire::trace::session::{Session, Site};
use quire::trace::{Event, MAX_DEVICE_PAGES, Tenant};

use crate::log;
use crate::machine::Machine;
use crate::manager::Run;
use crate::nested::Guests;
use crate::replay::Findings;
use disturb::Disturber;
use entered::Program;
use tenants::Touching;

/// Level 0.
type Host<'m, A> = Manager<&'m Machine, Classes<A>>;
/// What level 1 takes for memory.
type Memory<'h, 'm, A> = GuestMemory<'h, &'m Machine, A>;
/// Level 1.
type Guest<'h, 'm, A> = quire::exercise::Guest<'h, &'m Machine, A>;

/// Where the VMM has its VM's memory.
const BASE: Gva = Gva::new(1 << 30);

/// Does what the boot words ask for.
///
/// # Errors
/// What was wrong; the log says more.
pub fn run<A: Accounting>(run: &Run<'_>) -> Result<(), &'static str> {
    let (machine, boot) = (run.machine, run.boot);
    let engine = boot[abi::ENGINE];
    let (first, count) = machine.frames();
    let rows = Recount::scratch_frames(count);
    let cpu = if engine == engine::SHADOW { 0 } else { Guests::FRAMES };
    let managed = count.checked_sub(rows + cpu).ok_or("too few frames")?;
    let end = first.add(managed);
    let format = match engine {
        engine::SHADOW => Stage2Format::LongMode,
        engine::EPT => Stage2Format::Ept,
        engine::NPT => Stage2Format::Npt,
        _ => return Err("no engine has this number"),
    };
    if cpu > 0 {
        machine.start_guests(end.add(rows))?;
        let kind = machine.guests().map_or(0, |guests| guests.kind());
        if (kind == 1) != (engine == engine::EPT) {
            return Err("the CPU has the other vendor's tables");
        }
    }
    let policy = Policy {
        orders: boot[ORDERS] as u32 | 1,
        large: LargeFolios::Always,
        max_leaf: Level::new(boot[MAX_LEAF].clamp(1, 2) as u8),
    };
    let host: Host<'_, A> =
        Manager::new(machine, &[first..end], true, policy).map_err(|_| "too few frames for level 0")?;
    let recount = Recount::new(end, first, managed);
    let result = match boot[abi::JOB] {
        job::REPLAY => with_vm(run, &host, format, recount, policy),
        job::EXAMPLE => exercise::example(run, &host, &recount, format),
        job::HISTORIES => exercise::histories(run, &host, &recount, format),
        _ => Err("no job has this number"),
    };
    if cpu > 0 {
        machine.stop_guests();
    }
    result?;
    let clean = host.trim();
    run.results.general(word::CLEAN).store(u64::from(clean), core::sync::atomic::Ordering::Relaxed);
    if clean { Ok(()) } else { Err("frames or counts of level 0 are left when everything is gone") }
}

fn with_vm<A: Accounting>(
    run: &Run<'_>,
    host: &Host<'_, A>,
    format: Stage2Format,
    recount: Recount,
    policy: Policy,
) -> Result<(), &'static str> {
    const FULL: &str = "too few frames for the VM";
    let boot = run.boot;
    let pages = boot[abi::PAGES] + deepest::PROGRAM_PAGES;
    let vmm = host.create_space().map_err(|_| FULL)?;
    let all = Prot { read: true, write: true, exec: true };
    host.map(vmm, BASE, pages, all, Map::Anon).map_err(|_| FULL)?;
    let vm = host.create_vm(vmm, format).map_err(|_| FULL)?;
    let slot = Slot { gfn: 0, pages, backing: Backing::Host(BASE.page()), flags: SlotFlags::default() };
    let slot = host.add_slot(vm, AsId::NORMAL, slot).map_err(|_| FULL)?;
    let memory = GuestMemory::new(host, vm);
    let managed = boot[abi::MANAGED];
    let guest_rows = Recount::scratch_frames(managed);
    let result = {
        let frames = Pfn::new(0)..Pfn::new(managed);
        let guest: Guest<'_, '_, A> =
            Manager::new(&memory, &[frames], true, policy).map_err(|_| "too few frames for level 1")?;
        let device = if boot[DEVICE] == 0 { 0 } else { MAX_DEVICE_PAGES };
        if managed + guest_rows + device > boot[abi::PAGES] {
            return Err("the VM has too little memory for its manager");
        }
        let session = Session {
            trace: run.trace,
            interval: boot[boot::AUDIT_INTERVAL],
            pages: boot[stats::PAGES_WANTED] == 1,
            rows: Pfn::new(managed),
            device: Pfn::new(managed + guest_rows),
        };
        let mut site = Nest {
            machine: run.machine,
            findings: Findings::new(run),
            seed: boot[boot::SEED],
            memory: &memory,
            vm,
            recount,
            most: 0,
            program: (format != Stage2Format::LongMode).then(|| Program::new(run.machine, &memory, boot[abi::PAGES])),
            disturber: Disturber::new(host, vmm, slot, boot[abi::DISTURB]),
        };
        let result = session.run(&guest, &mut site);
        site.disturber.end();
        result
    };
    run.machine.load_no_tenant();
    memory.leave_all();
    host.destroy_vm(vm);
    host.destroy_space(vmm);
    result
}

/// The VM, as the machine runs its processes.
struct Nest<'r, 'h, 'm, A: Accounting> {
    machine: &'m Machine,
    findings: Findings<'r>,
    seed: u64,
    memory: &'h Memory<'h, 'm, A>,
    vm: VmId,
    /// Of level 0.
    recount: Recount,
    /// The most pages that the guest had mapped at a checkpoint so far.
    most: u64,
    /// What runs in guest mode; on composed tables the machine's own touch program does.
    program: Option<Program>,
    disturber: Disturber<'h, 'm, A>,
}

impl<'h, 'm, A: Accounting> Nest<'_, 'h, 'm, A> {
    fn host(&self) -> &'h Host<'m, A> {
        self.memory.host()
    }

    /// Notes what stands at the checkpoint at which the guest has most mapped.
    fn note_leaves(&mut self, guest: &Guest<'h, 'm, A>) {
        let found = self.host().alignment_yield(self.vm, AsId::NORMAL, |visit| {
            self.memory.look(|| {
                for space in guest.spaces() {
                    guest.page_table(space).for_each_leaf(guest, PAGES_END, &mut |place, leaf| {
                        visit(leaf.pfn.raw(), place.level);
                    });
                }
            });
        });
        if found.pages < self.most {
            return;
        }
        self.most = found.pages;
        self.findings.put(word::MAPPED, found.pages);
        self.findings.put(word::HUGE, found.huge);
        for (i, leaves) in self.host().vm_leaves(self.vm).into_iter().enumerate() {
            self.findings.put(word::LEAVES + i, leaves);
        }
        self.findings.put(word::COMPOSED, self.host().composed_leaves(self.vm, Kind::Stage1));
    }
}

impl<'h, 'm, A: Accounting> Tenant<&'h Memory<'h, 'm, A>, Classes<A>> for Nest<'_, 'h, 'm, A> {
    fn touch(
        &mut self,
        guest: &Guest<'h, 'm, A>,
        space: SpaceId,
        at: Gva,
        pages: u64,
        write: bool,
    ) -> Result<u64, (Gva, FaultError)> {
        let (machine, findings, memory) = (self.machine, &self.findings, self.memory);
        let touching = Touching { machine, findings, memory, guest, who: Who::Process(space) };
        let store = write.then_some(self.seed);
        let touched = match &mut self.program {
            None => shadow::touch(&touching, at, pages, store),
            Some(program) => program.touch(&touching, at, pages, store),
        };
        touched.map_err(|(at, error)| match error {
            NestError::Process(error) => (at, error),
            what => {
                log!("level 0 cannot serve {at}: {what}");
                (at, FaultError::OutOfFrames)
            }
        })
    }

    fn now(&mut self) -> u64 {
        crate::cpu::tsc()
    }

    fn ended(&mut self, event: Event, pages: u64, since: u64) {
        self.findings.ended(event, pages, since);
    }

    fn leaving(&mut self, guest: &Guest<'h, 'm, A>, space: SpaceId) {
        self.machine.load_no_tenant();
        self.memory.leave(None, guest.root(space).raw());
    }
}

impl<'h, 'm, A: Accounting> Site<&'h Memory<'h, 'm, A>, Classes<A>> for Nest<'_, 'h, 'm, A> {
    fn put(&mut self, index: usize, value: u64) {
        self.findings.put(index, value);
    }

    fn add(&mut self, index: usize, value: u64) {
        self.findings.add(index, value);
    }

    fn raise(&mut self, index: usize, value: u64) {
        self.findings.raise(index, value);
    }

    fn stat(&mut self, index: usize, value: u64) {
        self.findings.stat(index, value);
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        log!("{line}");
    }

    fn checkpoint(&mut self, guest: &Guest<'h, 'm, A>) -> Result<(), &'static str> {
        let found = self.recount.run_classes(self.host());
        self.findings.add(word::RECOUNTS, 1);
        self.findings.add(word::CHECKS, found.checks);
        self.findings.add(word::MISMATCHES, found.mismatches);
        if let Some((what, frame)) = found.first {
            log!(
                "recount of level 0: {} of {} failed, the first at frame {frame:#x}: {what}",
                found.mismatches,
                found.checks
            );
            return Err("the recount of level 0 disagrees with the counts");
        }
        self.note_leaves(guest);
        self.findings.add(word::DISTURBANCES, u64::from(self.disturber.disturb(self.memory)));
        Ok(())
    }

    fn survey(&self) -> Option<&[AtomicU64]> {
        None
    }

    fn clear_ticks(&self) -> u64 {
        self.machine.clear_ticks()
    }
}
