//! VMX (Intel SDM vol. 3, 24 to 31): one VMCS, EPT of 4 levels, one VPID.
#![expect(unsafe_code, reason = "instructions of VMX")]

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};
use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;

use quire::addr::Pfn;
use quire::memory::Memory;
use quire::space::Access;

use super::{Abilities, Debts, Exit, Registers, attributes, selector};
use crate::cpu;
use crate::machine::Machine;

/// Fields of the VMCS (appendix B).
mod field {
    pub const VPID: u64 = 0x0000;
    pub const GUEST_ES: u64 = 0x0800;
    pub const GUEST_CS: u64 = 0x0802;
    pub const GUEST_SS: u64 = 0x0804;
    pub const GUEST_LDTR: u64 = 0x080c;
    pub const GUEST_TR: u64 = 0x080e;
    pub const HOST_CS: u64 = 0x0c02;
    pub const HOST_SS: u64 = 0x0c04;
    pub const HOST_TR: u64 = 0x0c0c;
    pub const EPT_POINTER: u64 = 0x201a;
    pub const GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
    pub const LINK_POINTER: u64 = 0x2800;
    pub const PIN_BASED: u64 = 0x4000;
    pub const PROCESSOR_BASED: u64 = 0x4002;
    pub const EXCEPTIONS: u64 = 0x4004;
    pub const EXIT_CONTROLS: u64 = 0x400c;
    pub const ENTRY_CONTROLS: u64 = 0x4012;
    pub const SECONDARY: u64 = 0x401e;
    pub const INSTRUCTION_ERROR: u64 = 0x4400;
    pub const EXIT_REASON: u64 = 0x4402;
    pub const EXIT_INTERRUPTION: u64 = 0x4404;
    pub const EXIT_ERROR_CODE: u64 = 0x4406;
    pub const INSTRUCTION_LENGTH: u64 = 0x440c;
    pub const GUEST_ES_LIMIT: u64 = 0x4800;
    pub const GUEST_TR_LIMIT: u64 = 0x480e;
    pub const GUEST_GDTR_LIMIT: u64 = 0x4810;
    pub const GUEST_IDTR_LIMIT: u64 = 0x4812;
    pub const GUEST_ES_RIGHTS: u64 = 0x4814;
    pub const CR0_MASK: u64 = 0x6000;
    pub const CR4_MASK: u64 = 0x6002;
    pub const CR0_SHADOW: u64 = 0x6004;
    pub const CR4_SHADOW: u64 = 0x6006;
    pub const QUALIFICATION: u64 = 0x6400;
    pub const GUEST_CR0: u64 = 0x6800;
    pub const GUEST_CR3: u64 = 0x6802;
    pub const GUEST_CR4: u64 = 0x6804;
    pub const GUEST_ES_BASE: u64 = 0x6806;
    pub const GUEST_GDTR_BASE: u64 = 0x6816;
    pub const GUEST_IDTR_BASE: u64 = 0x6818;
    pub const GUEST_DR7: u64 = 0x681a;
    pub const GUEST_RSP: u64 = 0x681c;
    pub const GUEST_RIP: u64 = 0x681e;
    pub const GUEST_RFLAGS: u64 = 0x6820;
    pub const HOST_CR0: u64 = 0x6c00;
    pub const HOST_CR3: u64 = 0x6c02;
    pub const HOST_CR4: u64 = 0x6c04;
    pub const HOST_TR_BASE: u64 = 0x6c0a;
    pub const HOST_GDTR_BASE: u64 = 0x6c0c;
    pub const HOST_IDTR_BASE: u64 = 0x6c0e;
    pub const HOST_RSP: u64 = 0x6c14;
    pub const HOST_RIP: u64 = 0x6c16;

    /// Fields that stay zero: page-fault masks, counts of lists, no event to inject; the guest's state of interrupts and activity, pending
    /// debug exceptions, SYSENTER and debug control; the host's ES, DS, FS, GS with their bases, and SYSENTER.
    pub const ZERO: [u64; 25] = [
        0x4006,
        0x4008,
        0x400a,
        0x400e,
        0x4010,
        0x4014,
        0x4016,
        0x4824,
        0x4826,
        0x482a,
        0x6822,
        0x6824,
        0x6826,
        0x2802,
        0x0c00,
        0x0c06,
        0x0c08,
        0x0c0a,
        0x4c00,
        0x6c06,
        0x6c08,
        0x6c10,
        0x6c12,
        GUEST_GDTR_LIMIT,
        GUEST_IDTR_LIMIT,
    ];
}

/// Model-specific registers (appendix A).
mod msr {
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const BASIC: u32 = 0x480;
    pub const CR0_FIXED: [u32; 2] = [0x486, 0x487];
    pub const CR4_FIXED: [u32; 2] = [0x488, 0x489];
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID: u32 = 0x48c;
    pub const TRUE_PIN_BASED: u32 = 0x48d;
    pub const TRUE_PROCESSOR_BASED: u32 = 0x48e;
    pub const TRUE_EXIT: u32 = 0x48f;
    pub const TRUE_ENTRY: u32 = 0x490;
}

const CR4_VMXE: u64 = 1 << 13;
/// External interrupts and NMIs exit.
const PIN_BASED: u32 = 1 | 1 << 3;
/// Exits of HLT, MWAIT, RDPMC, MOV-DR, I/O and MONITOR; secondary controls. Without bitmaps every RDMSR and WRMSR exits.
const PROCESSOR_BASED: u32 = 1 << 7 | 1 << 10 | 1 << 11 | 1 << 23 | 1 << 24 | 1 << 29 | 1 << 31;
/// EPT, VPID, exits of WBINVD.
const SECONDARY: u32 = 1 << 1 | 1 << 5 | 1 << 6;
/// The host is in 64-bit mode.
const EXIT_CONTROLS: u32 = 1 << 9;
/// So is the guest.
const ENTRY_CONTROLS: u32 = 1 << 9;

/// Bits of [`msr::EPT_VPID`] that are needed: walks of 4 levels, write-back tables, leaves of 2 MiB; INVEPT and INVVPID of one context.
const NEEDED: u64 = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20 | 1 << 25 | 1 << 32 | 1 << 41;
const GIGABYTE_LEAVES: u64 = 1 << 17;
const ACCESSED_DIRTY: u64 = 1 << 21;
/// Of a pointer to tables: write-back, 4 levels.
const POINTER: u64 = 6 | 3 << 3;
const POINTER_ACCESSED_DIRTY: u64 = 1 << 6;

const ONE_CONTEXT: u64 = 1;
const ALL_CONTEXTS: u64 = 2;
const VPID: u64 = 1;
/// Of a segment's rights: there is none.
const UNUSABLE: u64 = 1 << 16;

unsafe extern "C" {
    fn vmx_enter(registers: *mut Registers, launched: bool) -> u64;
    fn vmx_exit();
}

global_asm!(
    r#"
    .text
    .global vmx_enter
vmx_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov eax, {host_rsp}
    vmwrite rax, rsp
    test sil, sil
    mov rax, [rdi]
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
    jnz 2f
    vmlaunch
    jmp 3f
2:
    vmresume
3:
    # Refused: still the host, with nothing of it lost but what the registers were loaded with.
    pop rdi
    mov eax, 1
    jmp 4f
    .global vmx_exit
vmx_exit:
    xchg rdi, [rsp]
    mov [rdi], rax
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
    # An exit can only load selectors of ring 0.
    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    xor eax, eax
4:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#,
    host_rsp = const field::HOST_RSP,
);

/// VMX operation, from VMXON to VMXOFF.
#[derive(Debug)]
pub struct Vmx {
    capabilities: u64,
    launched: Cell<bool>,
    /// The root of the guest's tables when it last ran.
    cr3: Cell<u64>,
    pub(super) debts: Debts,
}

impl Vmx {
    /// Whether the CPU has it.
    pub fn is_there() -> bool {
        __cpuid(1).ecx & 1 << 5 != 0
    }

    /// VMXON. See [`Guests::start`](super::Guests::start).
    pub fn start(machine: &Machine, first: Pfn) -> Result<Self, &'static str> {
        let basic = cpu::read_msr(msr::BASIC);
        if basic >> 55 & 1 == 0 {
            return Err("VMX without the registers that tell of CR3 exits");
        }
        if cpu::read_msr(msr::TRUE_PROCESSOR_BASED) >> 63 == 0
            || cpu::read_msr(msr::SECONDARY) >> 32 & u64::from(SECONDARY) != u64::from(SECONDARY)
        {
            return Err("VMX without EPT or VPID");
        }
        let capabilities = cpu::read_msr(msr::EPT_VPID);
        if capabilities & NEEDED != NEEDED {
            return Err("EPT without 4 levels, write-back tables, leaves of 2 MiB or flushes of one context");
        }
        let (region, vmcs) = (first, first.add(1));
        machine.zero(region, 2);
        for frame in [region, vmcs] {
            machine.frame(frame).0[0].store(basic & 0x7fff_ffff, Relaxed);
        }
        let controls = [
            (field::PIN_BASED, control(msr::TRUE_PIN_BASED, PIN_BASED)?),
            (field::PROCESSOR_BASED, control(msr::TRUE_PROCESSOR_BASED, PROCESSOR_BASED)?),
            (field::SECONDARY, control(msr::SECONDARY, SECONDARY)?),
            (field::EXIT_CONTROLS, control(msr::TRUE_EXIT, EXIT_CONTROLS)?),
            (field::ENTRY_CONTROLS, control(msr::TRUE_ENTRY, ENTRY_CONTROLS)?),
        ];
        turn_on(region)?;
        let vmx = Self { capabilities, launched: Cell::new(false), cr3: Cell::new(u64::MAX), debts: Debts::default() };
        // SAFETY: a region of its own, with the revision in its first word.
        unsafe {
            load_vmcs(vmcs);
        }
        for (field, value) in controls {
            write(field, value);
        }
        for field in field::ZERO {
            write(field, 0);
        }
        describe_host();
        describe_guest();
        // What an earlier stay in VMX operation cached goes.
        vmx.invept(ALL_CONTEXTS, 0);
        invvpid(VPID);
        Ok(vmx)
    }

    /// What the CPU can do.
    pub fn abilities(&self) -> Abilities {
        Abilities {
            accessed_dirty: self.capabilities & ACCESSED_DIRTY != 0,
            gigabyte_leaves: self.capabilities & GIGABYTE_LEAVES != 0,
        }
    }

    /// VMLAUNCH or VMRESUME. See [`Guests::enter`](super::Guests::enter).
    pub fn enter(&self, registers: &mut Registers, root: Pfn) -> Exit {
        write(field::EPT_POINTER, self.pointer(root));
        write(field::HOST_CR3, cpu::control_registers()[1]);
        write(field::GUEST_CR3, registers.cr3);
        write(field::GUEST_RSP, registers.rsp);
        write(field::GUEST_RIP, registers.rip);
        write(field::GUEST_RFLAGS, registers.rflags);
        if self.cr3.replace(registers.cr3) != registers.cr3 {
            // What is cached of the guest's own tables is not tagged with their root.
            invvpid(VPID);
        }
        // SAFETY: the VMCS describes a host that goes on at `vmx_exit` with this root and these segments, and a guest that can reach
        // nothing but what its second level maps. `vmx_enter` keeps the registers that a function must keep.
        let refused = unsafe { vmx_enter(registers, self.launched.get()) } != 0;
        assert!(!refused, "VM entry refused: error {}", read(field::INSTRUCTION_ERROR));
        self.launched.set(true);
        registers.rsp = read(field::GUEST_RSP);
        registers.rip = read(field::GUEST_RIP);
        registers.rflags = read(field::GUEST_RFLAGS);
        registers.cr3 = read(field::GUEST_CR3);
        self.cr3.set(registers.cr3);
        exit(registers)
    }

    /// INVEPT: there is none of single pages.
    pub fn flush(&self, root: Pfn) {
        self.invept(ONE_CONTEXT, self.pointer(root));
    }

    fn pointer(&self, root: Pfn) -> u64 {
        let accessed_dirty = if self.abilities().accessed_dirty { POINTER_ACCESSED_DIRTY } else { 0 };
        root.address() | POINTER | accessed_dirty
    }

    fn invept(&self, scope: u64, pointer: u64) {
        let descriptor = [pointer, 0];
        // SAFETY: forgetting translations is always sound.
        let failed = unsafe {
            let failed: u8;
            asm!("invept {}, [{}]", "setna {}", in(reg) scope, in(reg) &raw const descriptor, out(reg_byte) failed);
            failed
        };
        assert!(failed == 0, "INVEPT refused");
    }
}

/// What the exit reason and its companions say.
fn exit(registers: &mut Registers) -> Exit {
    let reason = read(field::EXIT_REASON);
    assert!(
        reason >> 31 == 0,
        "VM entry failed: reason {:#x}, qualification {:#x}",
        reason,
        read(field::QUALIFICATION)
    );
    match reason & 0xffff {
        0 => {
            let (what, address) = (read(field::EXIT_INTERRUPTION), read(field::QUALIFICATION));
            let error = if what & 1 << 11 != 0 { read(field::EXIT_ERROR_CODE) } else { 0 };
            let vector = what as u8;
            Exit::Exception { vector, error, address: if vector == 14 { address } else { 0 } }
        }
        2 => Exit::Shutdown,
        12 => {
            registers.rip += read(field::INSTRUCTION_LENGTH);
            Exit::Halt
        }
        18 => {
            registers.rip += read(field::INSTRUCTION_LENGTH);
            Exit::Hypercall
        }
        48 => {
            let qualification = read(field::QUALIFICATION);
            let access = match qualification & 7 {
                what if what & 2 != 0 => Access::Write,
                what if what & 4 != 0 => Access::Fetch,
                _ => Access::Read,
            };
            // Bit 7: there is a linear address; bit 8: it was translated, and the access was to what it leads to.
            let guest_walk = qualification >> 7 & 3 == 1;
            Exit::Violation { address: read(field::GUEST_PHYSICAL_ADDRESS), access, guest_walk }
        }
        49 => Exit::Misconfigured { address: read(field::GUEST_PHYSICAL_ADDRESS) },
        other => Exit::Other(other),
    }
}

impl Drop for Vmx {
    fn drop(&mut self) {
        // SAFETY: in VMX operation since `new`; the region may be used for something else afterwards.
        unsafe { asm!("vmxoff", options(nostack)) };
        let [_, _, cr4] = cpu::control_registers();
        // SAFETY: only what `turn_on` had set.
        unsafe { asm!("mov cr4, {}", in(reg) cr4 & !CR4_VMXE, options(nostack, preserves_flags)) };
    }
}

/// A control field with `wanted`, and the bits that must be set.
fn control(register: u32, wanted: u32) -> Result<u64, &'static str> {
    let allowed = cpu::read_msr(register);
    let (least, most) = (allowed as u32, (allowed >> 32) as u32);
    if wanted & !most != 0 {
        return Err("VMX without a control that is needed");
    }
    Ok(u64::from(wanted | least))
}

/// `value` with the bits that VMX operation wants fixed.
fn fixed(value: u64, registers: [u32; 2]) -> u64 {
    let [ones, most] = registers.map(cpu::read_msr);
    (value | ones) & most
}

/// Enters VMX operation.
fn turn_on(region: Pfn) -> Result<(), &'static str> {
    const LOCKED: u64 = 1;
    const ALLOWED: u64 = 1 << 2;
    let control = cpu::read_msr(msr::FEATURE_CONTROL);
    if control & LOCKED == 0 {
        // SAFETY: allows VMX, which nobody else uses.
        unsafe { cpu::write_msr(msr::FEATURE_CONTROL, control | LOCKED | ALLOWED) };
    } else if control & ALLOWED == 0 {
        return Err("the firmware has locked VMX off");
    }
    let [cr0, _, cr4] = cpu::control_registers();
    let (cr0, cr4) = (fixed(cr0, msr::CR0_FIXED), fixed(cr4 | CR4_VMXE, msr::CR4_FIXED));
    let region = region.address();
    // SAFETY: the fixed bits change nothing that the kernel relies on (it has no FPU); the region is a frame of its own with the revision in
    // its first word.
    let failed = unsafe {
        let failed: u8;
        asm!(
            "mov cr0, {}", "mov cr4, {}", "vmxon [{}]", "setna {}",
            in(reg) cr0, in(reg) cr4, in(reg) &raw const region, out(reg_byte) failed
        );
        failed
    };
    if failed == 0 { Ok(()) } else { Err("VMXON refused") }
}

/// Makes the VMCS in `frame` the current one, clear and not launched.
///
/// # Safety
/// The frame must be free for it until VMXOFF, with the revision in its first word.
unsafe fn load_vmcs(frame: Pfn) {
    let address = frame.address();
    // SAFETY: by contract.
    let failed = unsafe {
        let failed: u8;
        asm!(
            "vmclear [{at}]", "setna {failed}", "vmptrld [{at}]", "setna al", "or {failed}, al",
            at = in(reg) &raw const address, failed = out(reg_byte) failed, out("al") _
        );
        failed
    };
    assert!(failed == 0, "VMCLEAR or VMPTRLD refused");
}

fn write(field: u64, value: u64) {
    // SAFETY: `Vmx` is the only user of the current VMCS, and an entry checks what it says before the guest runs.
    let failed = unsafe {
        let failed: u8;
        asm!("vmwrite {}, {}", "setna {}", in(reg) field, in(reg) value, out(reg_byte) failed, options(nostack));
        failed
    };
    assert!(failed == 0, "VMWRITE of field {field:#x} refused");
}

fn read(field: u64) -> u64 {
    // SAFETY: reads the current VMCS.
    let (value, failed) = unsafe {
        let (value, failed): (u64, u8);
        asm!("vmread {}, {}", "setna {}", out(reg) value, in(reg) field, lateout(reg_byte) failed, options(nostack));
        (value, failed)
    };
    assert!(failed == 0, "VMREAD of field {field:#x} refused");
    value
}

fn invvpid(vpid: u64) {
    let descriptor = [vpid, 0];
    // SAFETY: forgetting translations is always sound.
    let failed = unsafe {
        let failed: u8;
        asm!("invvpid {}, [{}]", "setna {}", in(reg) ONE_CONTEXT, in(reg) &raw const descriptor, out(reg_byte) failed);
        failed
    };
    assert!(failed == 0, "INVVPID refused");
}

/// Where an exit goes on: here, with the segments of [`descriptors`](crate::descriptors).
fn describe_host() {
    let [cr0, cr3, cr4] = cpu::control_registers();
    let tables = crate::descriptors::tables();
    for (field, value) in [
        (field::HOST_CR0, cr0),
        (field::HOST_CR3, cr3),
        (field::HOST_CR4, cr4),
        (field::HOST_CS, selector::CODE),
        (field::HOST_SS, selector::DATA),
        (field::HOST_TR, selector::TASK),
        (field::HOST_TR_BASE, tables.task_state),
        (field::HOST_GDTR_BASE, tables.descriptors),
        (field::HOST_IDTR_BASE, tables.gates),
        (field::HOST_RIP, vmx_exit as *const () as u64),
    ] {
        write(field, value);
    }
}

/// All of a guest that never changes: 64-bit mode, flat segments, control registers it cannot change, all exceptions ours.
fn describe_guest() {
    // As a VMCS has them: bits 8 to 11 of a VMCB's attributes are 12 to 15.
    let rights = |attributes: u64| attributes & 0xff | (attributes >> 8) << 12;
    // ES, CS, SS, DS, FS, GS, LDTR, TR: consecutive fields of selectors, limits, rights and bases.
    for segment in 0..8 {
        let (selector, attributes) = match field::GUEST_ES + 2 * segment {
            field::GUEST_CS => (selector::CODE, rights(attributes::CODE)),
            field::GUEST_SS => (selector::DATA, rights(attributes::DATA)),
            field::GUEST_TR => (selector::TASK, rights(attributes::TASK)),
            field::GUEST_LDTR => (0, UNUSABLE),
            _ => (selector::DATA, rights(attributes::DATA)),
        };
        write(field::GUEST_ES + 2 * segment, selector);
        write(field::GUEST_ES_LIMIT + 2 * segment, 0xffff_ffff);
        write(field::GUEST_ES_RIGHTS + 2 * segment, attributes);
        write(field::GUEST_ES_BASE + 2 * segment, 0);
    }
    write(field::GUEST_TR_LIMIT, 0x67);
    let [cr0, _, cr4] = cpu::control_registers();
    for (field, value) in [
        (field::VPID, VPID),
        (field::GUEST_GDTR_BASE, 0),
        (field::GUEST_IDTR_BASE, 0),
        (field::LINK_POINTER, u64::MAX),
        (field::EXCEPTIONS, 0xffff_ffff),
        (field::GUEST_CR0, cr0),
        (field::CR0_MASK, u64::MAX),
        (field::CR0_SHADOW, cr0),
        (field::GUEST_CR4, cr4),
        (field::CR4_MASK, u64::MAX),
        (field::CR4_SHADOW, cr4 & !CR4_VMXE),
        (field::GUEST_DR7, 0x400),
    ] {
        write(field, value);
    }
}
