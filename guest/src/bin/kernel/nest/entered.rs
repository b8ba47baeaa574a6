//! Processes of level 1 in guest mode: the CPU walks the guest's tables and stage 2 itself, page faults of the guest exit and go to level 1, violations to level 0.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::nest::word;
use quire::abi::replay::word as replay;
use quire::abi::{checksum, stamp};
use quire::addr::{Gva, PAGE_SHIFT, PAGE_SIZE, Pfn};
use quire::format::{Attrs, Format, Leaf, LongMode};
use quire::mapcount::Accounting;
use quire::memory::Memory as _;
use quire::space::{Access, FaultError, SpaceId};
use quire::stage2::{AsId, VmAccess};

use super::{Guest, Memory};
use crate::machine::Machine;
use crate::nested::program::{self, Command};
use crate::nested::{Exit, RFLAGS, Registers};
use crate::replay::Findings;
use crate::touch::error;
use crate::{cpu, log};

/// Pages of the VM's memory beyond level 1's: the program, and three tables that lead to it.
pub(super) const PAGES: u64 = 4;
/// The slot of a root that leads there: the last, far from what processes have.
const SLOT: usize = 511;
/// The program's address: the first of that slot.
const PROGRAM: u64 = 0xffff_ff80_0000_0000;

/// The program, waiting for its next command.
#[derive(Debug)]
pub(super) struct Program {
    registers: Registers,
    /// What the roots of all processes have in [`SLOT`].
    entry: u64,
}

impl Program {
    /// Writes program and tables to the VM's pages from `page` on.
    pub(super) fn new<A: Accounting>(machine: &Machine, memory: &Memory<'_, '_, A>, page: u64) -> Self {
        let frame = |nth: u64| machine.frame(memory.reach(page + nth, Access::Write));
        for (word, bytes) in frame(0).0.iter().zip(program::bytes().chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(whole), Relaxed);
        }
        let leaf = Leaf { pfn: Pfn::new(page), attrs: Attrs::EXEC.or(Attrs::ACCESSED) };
        frame(1).0[0].store(LongMode::leaf(leaf, quire::addr::Level::ONE), Relaxed);
        frame(2).0[0].store(LongMode::table(Pfn::new(page + 1)), Relaxed);
        frame(3).0[0].store(LongMode::table(Pfn::new(page + 2)), Relaxed);
        let mut registers = Registers { rip: PROGRAM, rflags: RFLAGS, ..Registers::default() };
        // R15: which hypercall the CPU has.
        registers.r8[7] = machine.guests().map_or(0, |guests| guests.kind() - 1);
        Self { registers, entry: LongMode::table(Pfn::new(page + 3)) }
    }

    /// As [`shadow::touch`](super::shadow::touch).
    #[expect(clippy::too_many_arguments, reason = "who touches what, where and by whom it is served")]
    pub(super) fn touch<A: Accounting>(
        &mut self,
        machine: &Machine,
        findings: &Findings<'_>,
        memory: &Memory<'_, '_, A>,
        guest: &Guest<'_, '_, A>,
        space: SpaceId,
        at: Gva,
        pages: u64,
        store: Option<u64>,
    ) -> Result<u64, (Gva, FaultError)> {
        let root = guest.root(space);
        memory.frame(root).0[SLOT].store(self.entry, Relaxed);
        self.registers.cr3 = root.address();
        let since = cpu::tsc();
        let mut sum = 0;
        for page in 0..pages {
            let at = at.add_pages(page);
            let mut run = |command, value| self.run(machine, findings, memory, guest, space, at, command, value);
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
        findings.add(replay::TOUCH_TICKS, cpu::tsc() - since);
        findings.add(replay::TOUCH_PAGES, pages);
        Ok(sum)
    }

    /// One command on the word `offset` bytes behind `at`; the word loaded.
    #[expect(clippy::too_many_arguments, reason = "as for a touch")]
    fn run<A: Accounting>(
        &mut self,
        machine: &Machine,
        findings: &Findings<'_>,
        memory: &Memory<'_, '_, A>,
        guest: &Guest<'_, '_, A>,
        space: SpaceId,
        at: Gva,
        command: Command,
        (offset, value): (u64, u64),
    ) -> Result<u64, (Gva, FaultError)> {
        let registers = &mut self.registers;
        registers.rax = command as u64;
        registers.rdi = at.raw() + offset;
        (registers.rsi, registers.rcx, registers.rdx) = (PAGE_SIZE, 1, value);
        loop {
            let exit = machine.guests().expect("started before").enter(registers, memory.stage2());
            findings.add(word::EXITS, 1);
            let since = cpu::tsc();
            match exit {
                Exit::Hypercall => return Ok(registers.rbx),
                Exit::Violation { address, access, .. } => {
                    let fault = VmAccess { view: AsId::NORMAL, gfn: address >> PAGE_SHIFT, access };
                    match memory.host().vm_fault(memory.vm(), fault) {
                        Ok(fault) => {
                            findings.add(word::STAGE2_FAULTS, 1);
                            findings.add(word::STAGE2_PAGES, fault.pages);
                            findings.add(word::HOST_FAULTS, u64::from(fault.host_faults));
                            findings.add(word::STAGE2_TICKS, cpu::tsc() - since);
                        }
                        Err(what) => {
                            log!("level 0 cannot serve guest-physical {address:#x}: {what}");
                            return Err((at, FaultError::OutOfFrames));
                        }
                    }
                }
                Exit::Exception { vector: 14, error: code, address } if Gva::try_new(address).is_some() => {
                    let access = if code & error::WRITE != 0 { Access::Write } else { Access::Read };
                    guest.fault(space, Gva::new(address), access).map_err(|error| (at, error))?;
                    findings.add(word::GUEST_FAULTS, 1);
                    findings.add(replay::FAULTS, 1);
                    findings.add(word::GUEST_TICKS, cpu::tsc() - since);
                }
                other => {
                    log!("the guest does what it should not: {other:?} at rip {:#x}", registers.rip);
                    return Err((at, FaultError::Forbidden));
                }
            }
        }
    }
}
