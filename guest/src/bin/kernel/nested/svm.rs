//! SVM (AMD APM vol. 2, 15): one VMCB, nested paging, one ASID.
//!
//! FS, GS, TR and LDTR are neither switched nor protected by more than this: the kernel does not use the first two, and a guest that
//! loads one of the others exits.
#![expect(unsafe_code, reason = "instructions of SVM")]

use core::arch::global_asm;
use core::arch::x86_64::__cpuid;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use quire::addr::Pfn;
use quire::memory::{Frame, Memory};
use quire::space::Access;

use super::{Abilities, Debts, Exit, Registers, attributes, selector};
use crate::cpu;
use crate::machine::Machine;

/// Offsets in the VMCB (appendix B). Narrower fields that share a word are written together.
mod vmcb {
    /// Intercepts of control and debug registers.
    pub const CONTROL_REGISTERS: usize = 0x000;
    /// Intercepts of exceptions; from bit 32 on, of the first group of instructions and events.
    pub const EXCEPTIONS: usize = 0x008;
    /// Intercepts of the second group.
    pub const INSTRUCTIONS: usize = 0x010;
    pub const PORTS: usize = 0x040;
    pub const REGISTERS: usize = 0x048;
    /// ASID; from bit 32 on, what to flush.
    pub const ASID: usize = 0x058;
    pub const INTERRUPTS: usize = 0x060;
    pub const EXIT_CODE: usize = 0x070;
    pub const EXIT_INFO_1: usize = 0x078;
    pub const EXIT_INFO_2: usize = 0x080;
    pub const NESTED_PAGING: usize = 0x090;
    pub const NESTED_CR3: usize = 0x0b0;
    pub const ES: usize = 0x400;
    pub const CS: usize = 0x410;
    pub const SS: usize = 0x420;
    pub const DS: usize = 0x430;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const PAT: usize = 0x668;
}

/// Frames behind the VMCB: the host's save area, the bitmap of ports (12 KiB) and of registers (8 KiB).
mod frame {
    pub const VMCB: u64 = 0;
    pub const HOST: u64 = 1;
    pub const PORTS: u64 = 2;
    pub const REGISTERS: u64 = 5;
}
/// All of them.
pub const FRAMES: u64 = 7;

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const CR4_LA57: u64 = 1 << 12;

/// Writes of all control registers but CR2 and CR3.
const CONTROL_REGISTERS: u64 = 0xfff3 << 16;
/// All exceptions; vector 2 is the NMI, which has an intercept of its own.
const EXCEPTIONS: u64 = 0xffff_ffff & !(1 << 2);
/// INTR, NMI, SMI, INIT; writes of IDTR, GDTR, LDTR, TR; RDPMC, CPUID, RSM, INVD, HLT, INVLPGA; ports, registers, task switch, shutdown.
const EVENTS: u64 = 0b1111 | 0b1111 << 10 | 1 << 15 | 1 << 18 | 1 << 19 | 1 << 22 | 1 << 24 | 0b1111 << 26 | 1 << 31;
/// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT; ICEBP, WBINVD, MONITOR, MWAIT in both forms, XSETBV.
const INSTRUCTIONS: u64 = 0b111_1111 | 1 << 8 | 1 << 9 | 0b1111 << 10;
/// Physical interrupts obey the host's flag.
const MASK_INTERRUPTS: u64 = 1 << 24;
const ASID: u64 = 1;
/// To be flushed at the next entry: everything, or the guest's own.
const FLUSH_ALL: u64 = 1;
const FLUSH_ASID: u64 = 3;
/// Lengths of VMMCALL and HLT: not every CPU tells.
const VMMCALL_BYTES: u64 = 3;
const HLT_BYTES: u64 = 1;

mod exit {
    pub const EXCEPTIONS: core::ops::RangeInclusive<u64> = 0x40..=0x5f;
    pub const HLT: u64 = 0x78;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMMCALL: u64 = 0x81;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
}

/// Bits of a nested page fault's error code (15.25.6).
mod error {
    pub const WRITE: u64 = 1 << 1;
    pub const RESERVED: u64 = 1 << 3;
    pub const FETCH: u64 = 1 << 4;
    pub const GUEST_WALK: u64 = 1 << 33;
}

unsafe extern "C" {
    fn svm_enter(registers: *mut Registers, vmcb: u64);
}

global_asm!(
    r#"
    .text
    .global svm_enter
svm_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov rax, rsi
    mov rcx, [rdi + 8]
    mov rdx, [rdi + 16]
    mov rbx, [rdi + 24]
    mov rbp, [rdi + 32]
    mov rsi, [rdi + 40]
    mov r8, [rdi + 56]
    mov r9, [rdi + 64]
    mov r10, [rdi + 72]
    mov r11, [rdi + 80]
    mov r12, [rdi + 88]
    mov r13, [rdi + 96]
    mov r14, [rdi + 104]
    mov r15, [rdi + 112]
    mov rdi, [rdi + 48]
    # An exit leaves with the global interrupt flag clear, an entry sets it for the guest.
    clgi
    vmrun rax
    stgi
    xchg rdi, [rsp]
    mov [rdi + 8], rcx
    mov [rdi + 16], rdx
    mov [rdi + 24], rbx
    mov [rdi + 32], rbp
    mov [rdi + 40], rsi
    pop rax
    mov [rdi + 48], rax
    mov [rdi + 56], r8
    mov [rdi + 64], r9
    mov [rdi + 72], r10
    mov [rdi + 80], r11
    mov [rdi + 88], r12
    mov [rdi + 96], r13
    mov [rdi + 104], r14
    mov [rdi + 112], r15
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#
);

/// SVM, from EFER.SVME on until it is off again.
#[derive(Debug)]
pub struct Svm {
    vmcb: &'static Frame,
    vmcb_address: u64,
    abilities: Abilities,
    /// What flushes the guest's translations.
    flush: u64,
    /// Whether the next entry must.
    flush_next: Cell<bool>,
    /// Both roots of the last entry.
    roots: Cell<(Pfn, u64)>,
    pub(super) debts: Debts,
}

impl Svm {
    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.vmcb.0[offset / 8]
    }

    fn write(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Relaxed);
    }

    fn read(&self, offset: usize) -> u64 {
        self.word(offset).load(Relaxed)
    }

    /// All of a guest that never changes: 64-bit mode, flat segments, control registers it cannot change, all exceptions ours.
    fn describe_guest(&self, first: Pfn) {
        let [cr0, _, cr4] = cpu::control_registers();
        let segment = |selector: u64, attributes: u64| selector | attributes << 16 | 0xffff_ffff << 32;
        let data = segment(selector::DATA, attributes::DATA);
        for (offset, value) in [
            (vmcb::CONTROL_REGISTERS, CONTROL_REGISTERS),
            (vmcb::EXCEPTIONS, EXCEPTIONS | EVENTS << 32),
            (vmcb::INSTRUCTIONS, INSTRUCTIONS),
            (vmcb::PORTS, first.add(frame::PORTS).address()),
            (vmcb::REGISTERS, first.add(frame::REGISTERS).address()),
            (vmcb::INTERRUPTS, MASK_INTERRUPTS),
            (vmcb::NESTED_PAGING, 1),
            (vmcb::ES, data),
            (vmcb::CS, segment(selector::CODE, attributes::CODE)),
            (vmcb::SS, data),
            (vmcb::DS, data),
            (vmcb::EFER, cpu::read_msr(EFER)),
            (vmcb::CR0, cr0),
            (vmcb::CR4, cr4),
            (vmcb::DR7, 0x400),
            (vmcb::DR6, 0xffff_0ff0),
            (vmcb::PAT, 0x0007_0406_0007_0406),
        ] {
            self.write(offset, value);
        }
    }

    /// What the exit code and its companions say.
    fn exit(&self, registers: &mut Registers) -> Exit {
        let info = self.read(vmcb::EXIT_INFO_1);
        let address = self.read(vmcb::EXIT_INFO_2);
        match self.read(vmcb::EXIT_CODE) {
            code if exit::EXCEPTIONS.contains(&code) => {
                let vector = (code - exit::EXCEPTIONS.start()) as u8;
                Exit::Exception { vector, error: info, address: if vector == 14 { address } else { 0 } }
            }
            exit::HLT => {
                registers.rip += HLT_BYTES;
                Exit::Halt
            }
            exit::VMMCALL => {
                registers.rip += VMMCALL_BYTES;
                Exit::Hypercall
            }
            exit::SHUTDOWN => Exit::Shutdown,
            exit::NESTED_PAGE_FAULT if info & error::RESERVED != 0 => Exit::Misconfigured { address },
            exit::NESTED_PAGE_FAULT => {
                let guest_walk = info & error::GUEST_WALK != 0;
                let access = match info {
                    info if info & error::WRITE != 0 => Access::Write,
                    info if info & error::FETCH != 0 && !guest_walk => Access::Fetch,
                    _ => Access::Read,
                };
                Exit::Violation { address, access, guest_walk }
            }
            exit::INVALID => panic!("VMRUN refused"),
            other => Exit::Other(other),
        }
    }
}

impl Svm {
    /// Whether the CPU has it.
    pub fn is_there() -> bool {
        __cpuid(0x8000_0000).eax >= 0x8000_000a && __cpuid(0x8000_0001).ecx & 1 << 2 != 0
    }
}

impl Svm {
    /// EFER.SVME. See [`Guests::start`](super::Guests::start).
    pub fn start(machine: &Machine, first: Pfn) -> Result<Self, &'static str> {
        const NESTED_PAGING: u32 = 1;
        const FLUSH_BY_ASID: u32 = 1 << 6;
        let features = __cpuid(0x8000_000a);
        if features.edx & NESTED_PAGING == 0 || u64::from(features.ebx) <= ASID {
            return Err("SVM without nested paging or ASIDs");
        }
        if cpu::read_msr(VM_CR) & VM_CR_SVMDIS != 0 {
            return Err("the firmware has turned SVM off");
        }
        if cpu::control_registers()[2] & CR4_LA57 != 0 {
            return Err("nested page tables of five levels");
        }
        machine.zero(first, FRAMES);
        for bitmap in frame::PORTS..FRAMES {
            machine.frame(first.add(bitmap)).0.iter().for_each(|word| word.store(u64::MAX, Relaxed));
        }
        // SAFETY: more instructions, and a frame of its own for what an entry saves.
        unsafe {
            cpu::write_msr(EFER, cpu::read_msr(EFER) | EFER_SVME);
            cpu::write_msr(VM_HSAVE_PA, first.add(frame::HOST).address());
        }
        let svm = Self {
            vmcb: machine.lasting_frame(first.add(frame::VMCB)),
            vmcb_address: first.add(frame::VMCB).address(),
            abilities: Abilities { accessed_dirty: true, gigabyte_leaves: __cpuid(0x8000_0001).edx & 1 << 26 != 0 },
            flush: if features.edx & FLUSH_BY_ASID != 0 { FLUSH_ASID } else { FLUSH_ALL },
            flush_next: Cell::new(true),
            roots: Cell::new((first, u64::MAX)),
            debts: Debts::default(),
        };
        svm.describe_guest(first);
        Ok(svm)
    }

    /// What the CPU can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// VMRUN. See [`Guests::enter`](super::Guests::enter).
    pub fn enter(&self, registers: &mut Registers, root: Pfn) -> Exit {
        // What is cached is tagged with the ASID alone.
        let flush = self.flush_next.replace(false) || self.roots.get() != (root, registers.cr3);
        self.write(vmcb::ASID, ASID | if flush { self.flush << 32 } else { 0 });
        self.write(vmcb::NESTED_CR3, root.address());
        self.write(vmcb::CR3, registers.cr3);
        self.write(vmcb::RAX, registers.rax);
        self.write(vmcb::RSP, registers.rsp);
        self.write(vmcb::RIP, registers.rip);
        self.write(vmcb::RFLAGS, registers.rflags);
        // SAFETY: the VMCB describes a guest that can reach nothing but what its second level maps, and everything else that touches the
        // machine is intercepted. An exit restores the host from its save area, and `svm_enter` what is not in there.
        unsafe { svm_enter(registers, self.vmcb_address) };
        registers.rax = self.read(vmcb::RAX);
        registers.rsp = self.read(vmcb::RSP);
        registers.rip = self.read(vmcb::RIP);
        registers.rflags = self.read(vmcb::RFLAGS);
        registers.cr3 = self.read(vmcb::CR3);
        self.roots.set((root, registers.cr3));
        self.exit(registers)
    }

    /// The next entry does it: there is no instruction that finds translations by guest-physical address.
    pub fn flush(&self) {
        self.flush_next.set(true);
    }
}

impl Drop for Svm {
    fn drop(&mut self) {
        // SAFETY: nothing uses SVM any more.
        unsafe {
            cpu::write_msr(VM_HSAVE_PA, 0);
            cpu::write_msr(EFER, cpu::read_msr(EFER) & !EFER_SVME);
        }
    }
}
