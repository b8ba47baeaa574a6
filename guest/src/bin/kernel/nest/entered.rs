//! Tenants of level 1 in guest mode: the CPU walks their tables and a second level itself. A process's page faults exit and go to level 1, and violations of stage 2 to level 0; for a VM of
//! level 1 the second level is composed of its stage-2 table and ours, and what is missing there is for either.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::nest::word;
use quire::abi::replay::word as replay;
use quire::abi::{checksum, stamp};
use quire::addr::{Gva, Level, PAGE_SHIFT, PAGE_SIZE, Pfn};
use quire::exercise::Who;
use quire::format::{Attrs, Format, Leaf, LongMode};
use quire::mapcount::Accounting;
use quire::memory::Memory as _;
use quire::nest::NestError;
use quire::space::{Access, FaultError};
use quire::stage2::{AsId, ComposeError, VmAccess};

use super::Memory;
use super::tenants::Touching;
use crate::machine::Machine;
use crate::nested::program::{self, Command};
use crate::nested::{Exit, RFLAGS, Registers};
use crate::touch::error;
use crate::{cpu, log};

/// The slot of a root that leads there: the last, far from what processes have.
const SLOT: usize = 511;
/// The program's address: the first of that slot.
const PROGRAM: u64 = 0xffff_ff80_0000_0000;

/// Writes the program and the three tables that lead to it to the [`PROGRAM_PAGES`](quire::exercise::deepest::PROGRAM_PAGES) from `page` on, by `store`: the page counted from there, the word, and what goes there. What a root has in its last slot.
pub(super) fn write_program(page: u64, store: &mut dyn FnMut(u64, usize, u64)) -> u64 {
    for (i, bytes) in program::bytes().chunks(8).enumerate() {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        store(0, i, u64::from_le_bytes(whole));
    }
    let leaf = Leaf { pfn: Pfn::new(page), attrs: Attrs::EXEC.or(Attrs::ACCESSED) };
    store(1, 0, LongMode::leaf(leaf, Level::ONE));
    store(2, 0, LongMode::table(Pfn::new(page + 1)));
    store(3, 0, LongMode::table(Pfn::new(page + 2)));
    LongMode::table(Pfn::new(page + 3))
}

/// The program, waiting for its next command.
#[derive(Debug)]
pub(super) struct Program {
    registers: Registers,
    /// What the roots of all processes have in [`SLOT`].
    entry: u64,
}

impl Program {
    /// Writes it to the VM's pages from `page` on.
    pub(super) fn new<A: Accounting>(machine: &Machine, memory: &Memory<'_, '_, A>, page: u64) -> Self {
        let entry = write_program(page, &mut |nth, word, value| {
            machine.frame(memory.reach(page + nth, Access::Write)).0[word].store(value, Relaxed);
        });
        let mut registers = Registers { rip: PROGRAM, rflags: RFLAGS, ..Registers::default() };
        // R15: which hypercall the CPU has.
        registers.r8[7] = machine.guests().map_or(0, |guests| guests.kind() - 1);
        Self { registers, entry }
    }

    /// As [`shadow::touch`](super::shadow::touch).
    pub(super) fn touch<A: Accounting>(
        &mut self,
        touching: &Touching<'_, '_, '_, '_, A>,
        at: Gva,
        pages: u64,
        store: Option<u64>,
    ) -> Result<u64, (Gva, NestError)> {
        let table = Pfn::new(touching.table());
        if let Who::Process(_) = touching.who {
            touching.memory.frame(table).0[SLOT].store(self.entry, Relaxed);
        }
        self.registers.cr3 = table.address();
        let since = cpu::tsc();
        let mut sum = 0;
        for page in 0..pages {
            let at = at.add_pages(page);
            let mut run = |command, value| self.run(touching, at, command, value).map_err(|error| (at, error));
            if let Some(seed) = store {
                // A store first, as in the machine's own touch program.
                let stamp = stamp(seed, at.page());
                run(Command::Store, (8, stamp))?;
                sum = checksum(sum, run(Command::Load, (0, 0))?);
                run(Command::Store, (0, stamp))?;
            } else {
                sum = checksum(sum, run(Command::Load, (0, 0))?);
            }
        }
        touching.findings.add(replay::TOUCH_TICKS, cpu::tsc() - since);
        touching.findings.add(replay::TOUCH_PAGES, pages);
        Ok(sum)
    }

    /// One command on the word `offset` bytes behind `at`; the word loaded.
    fn run<A: Accounting>(
        &mut self,
        touching: &Touching<'_, '_, '_, '_, A>,
        at: Gva,
        command: Command,
        (offset, value): (u64, u64),
    ) -> Result<u64, NestError> {
        let Touching { machine, findings, memory, .. } = touching;
        let nested = touching.nested_root()?;
        let second = nested.map_or_else(|| memory.stage2(), |root| memory.table_of(root));
        let registers = &mut self.registers;
        registers.rax = command as u64;
        registers.rdi = at.raw() + offset;
        (registers.rsi, registers.rcx, registers.rdx) = (PAGE_SIZE, 1, value);
        loop {
            let exit = machine.guests().expect("started before").enter(registers, second);
            findings.add(word::EXITS, 1);
            let since = cpu::tsc();
            match exit {
                Exit::Hypercall => return Ok(registers.rbx),
                Exit::Violation { address, access, .. } => {
                    let page = address >> PAGE_SHIFT;
                    let host = memory.host();
                    // Pages, and faults of the space or of stage 2 below.
                    let served = match nested {
                        None => host
                            .vm_fault(memory.vm(), VmAccess { view: AsId::NORMAL, gfn: page, access })
                            .map(|fault| (fault.pages, fault.host_faults))
                            .map_err(|error| ComposeError::Stage2(page, error)),
                        Some(root) => host
                            .compose_fault(memory.vm(), root, page, access)
                            .map(|composed| (composed.pages, composed.stage2_faults)),
                    };
                    match served {
                        Ok((pages, below)) => {
                            findings.add(word::STAGE2_FAULTS, 1);
                            findings.add(word::STAGE2_PAGES, pages);
                            findings.add(word::HOST_FAULTS, u64::from(below));
                            findings.add(word::STAGE2_TICKS, cpu::tsc() - since);
                        }
                        Err(error) => _ = touching.reflected(None, error)?,
                    }
                }
                Exit::Exception { vector: 14, error: code, address }
                    if Gva::try_new(address).is_some() && nested.is_none() =>
                {
                    let access = if code & error::WRITE != 0 { Access::Write } else { Access::Read };
                    touching.at_level_1(address >> PAGE_SHIFT, access)?;
                }
                other => {
                    log!("the guest does what it should not: {other:?} at rip {:#x}", registers.rip);
                    return Err(NestError::Process(FaultError::Forbidden));
                }
            }
        }
    }
}
