//! Segments, the task state, the gates and the stacks.
//!
//! Selectors stand in Linux' order (kvm-pvm hosts know no other). Interrupts stay off for good.
#![expect(unsafe_code, reason = "loads descriptor tables and names the stacks")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const KERNEL_CODE: u64 = 0x10;
const TASK_STATE: usize = 0x40;

/// Interrupt gate, present.
const GATE: u64 = 0x8e00 << 32;
/// Ring 3 may use it by instruction.
const FROM_USER: u64 = 3 << 45;
const BREAKPOINT: usize = 3;
const DOUBLE_FAULT: usize = 8;
const NMI: usize = 2;
const PAGE_FAULT: usize = 14;
const VECTORS: usize = 32;

unsafe extern "C" {
    static gdt: [AtomicU64; 10];
    static task_state: u8;
    static task_state_rsp0: AtomicU64;
    static exception_stubs: u8;
    fn fault_entry_ring0();
    fn user_return();
    fn fault_shim();
    fn call_shim();
    static fault_stack_top: u8;
    static entry_stack_top: u8;
    static main_stack_guard: u8;
    static fault_stack_guard: u8;
    static entry_stack_guard: u8;
    static spare_stack_guard: u8;
}

static GATES: [[AtomicU64; 2]; VECTORS] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; VECTORS];

/// Loads segments, task state and gates for a manager at ring 0. Once, at start.
pub fn load() {
    let stubs = address(&raw const exception_stubs);
    for vector in 0..VECTORS {
        set_gate(vector, stubs + 16 * vector as u64, 0, 0);
    }
    set_gate(NMI, stubs + 16 * NMI as u64, 3, 0);
    set_gate(DOUBLE_FAULT, stubs + 16 * DOUBLE_FAULT as u64, 2, 0);
    set_gate(PAGE_FAULT, fault_entry_ring0 as *const () as u64, 0, 0);
    set_gate(BREAKPOINT, user_return as *const () as u64, 1, FROM_USER);
    set_kernel_stack(address(&raw const fault_stack_top));

    let base = address(&raw const task_state);
    // SAFETY: a table of the assembly below, used as atomics only.
    let descriptors = unsafe { &gdt };
    let low = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    descriptors[TASK_STATE / 8].store(low, Relaxed);
    descriptors[TASK_STATE / 8 + 1].store(base >> 32, Relaxed);

    let gdt_pointer = Pointer::new(size_of_val(descriptors), (&raw const gdt).cast());
    let idt_pointer = Pointer::new(size_of_val(&GATES), (&raw const GATES).cast());
    // SAFETY: both tables live for ever and describe flat segments and entries of this image. User data goes into DS
    // and ES, so that no return to ring 3 has to clear them.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov {scratch:e}, 0x18",
            "mov ss, {scratch:e}",
            "mov {scratch:e}, 0x2b",
            "mov ds, {scratch:e}",
            "mov es, {scratch:e}",
            "mov {scratch:e}, {task}",
            "ltr {scratch:x}",
            gdt = in(reg) &raw const gdt_pointer,
            idt = in(reg) &raw const idt_pointer,
            code = const KERNEL_CODE,
            task = const TASK_STATE,
            scratch = out(reg) _,
        );
    }
}

/// Turns the gates to the shim: from now on the manager is at ring 3.
pub fn use_shim() {
    set_gate(PAGE_FAULT, fault_shim as *const () as u64, 0, 0);
    set_gate(BREAKPOINT, call_shim as *const () as u64, 1, FROM_USER);
    set_kernel_stack(address(&raw const entry_stack_top));
}

/// Where the tables are that an exit from a guest loads again.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// The GDT.
    pub descriptors: u64,
    /// The IDT.
    pub gates: u64,
    /// The task state.
    pub task_state: u64,
}

/// The tables that [`load`] loaded.
pub fn tables() -> Tables {
    Tables {
        descriptors: (&raw const gdt).addr() as u64,
        gates: (&raw const GATES).addr() as u64,
        task_state: address(&raw const task_state),
    }
}

/// The pages below the stacks, which stay unmapped.
pub fn guard_pages() -> [u64; 4] {
    [
        address(&raw const main_stack_guard),
        address(&raw const fault_stack_guard),
        address(&raw const entry_stack_guard),
        address(&raw const spare_stack_guard),
    ]
}

fn address(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}

fn set_gate(vector: usize, entry: u64, stack: u64, rights: u64) {
    let low = entry & 0xffff | KERNEL_CODE << 16 | stack << 32 | GATE | rights | (entry >> 16 & 0xffff) << 48;
    GATES[vector][0].store(low, Relaxed);
    GATES[vector][1].store(entry >> 32, Relaxed);
}

/// Sets the stack that the CPU takes when ring 3 faults. The field lies 4 bytes into the task state, which therefore
/// begins 4 bytes off alignment.
fn set_kernel_stack(top: u64) {
    // SAFETY: a word of the assembly below, read by the CPU at each entry.
    let rsp0 = unsafe { &task_state_rsp0 };
    rsp0.store(top, Relaxed);
}

/// What LGDT and LIDT read.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: *const u8,
}

impl Pointer {
    fn new(bytes: usize, base: *const u8) -> Self {
        Self { limit: (bytes - 1) as u16, base }
    }
}

global_asm!(
    r#"
    .section .data.descriptors, "aw"
    .align 64
    .global gdt
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff        # 0x10 kernel code
    .quad 0x00cf93000000ffff        # 0x18 kernel data
    .quad 0x00cffb000000ffff        # 0x23 user code, 32 bits
    .quad 0x00cff3000000ffff        # 0x2b user data
    .quad 0x00affb000000ffff        # 0x33 user code
    .quad 0
    .quad 0, 0                      # 0x40 task state
    .align 64
    .skip 4
    .global task_state
    .global task_state_rsp0
task_state:
    .long 0
task_state_rsp0:
    .quad 0, 0, 0, 0                # RSP0 to RSP2, reserved
    .quad call_stack_top            # IST1: breakpoint
    .quad spare_stack_top           # IST2: double fault
    .quad nmi_stack_top             # IST3: NMI
    .quad 0, 0, 0, 0
    .quad 0
    .word 0, 104

    .section .bss.stacks, "aw", @nobits
    .align 4096
    .global main_stack_guard
    .global main_stack_top
    .global fault_stack_guard
    .global fault_stack_top
    .global entry_stack_guard
    .global entry_stack_top
    .global spare_stack_guard
main_stack_guard:
    .skip 4096
    .skip 262144
main_stack_top:
fault_stack_guard:
    .skip 4096
    .skip 131072
fault_stack_top:
entry_stack_guard:
    .skip 4096
    .skip 16384
entry_stack_top:
spare_stack_guard:
    .skip 4096
    .skip 16384
spare_stack_top:
    .skip 4096
call_stack_top:
    .skip 4096
nmi_stack_top:
"#
);
