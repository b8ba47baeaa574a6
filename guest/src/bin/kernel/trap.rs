//! Exceptions: the tenant's page faults go to the manager, everything else ends the run in a panic line.
//!
//! The two page-fault entries, one for each ring of the manager, make the same [`Frame`] on the fault stack and
//! call the same Rust function. At ring 0 the CPU has switched to that stack and pushed its part; at ring 3 the
//! entry copies that part from the entry stack, where the CPU left it, so that a later call of the shim may
//! overwrite it.
#![expect(unsafe_code, reason = "entered from assembly with a frame on the stack")]

use core::arch::{asm, global_asm};

use crate::touch;

/// The interrupted code's registers that a Rust function may change, and what the CPU pushed.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    /// Error code of the fault.
    pub error: u64,
    /// Where it happened, and where the program goes on.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// What an unexpected exception leaves: its number and what the CPU pushed.
#[derive(Debug)]
#[repr(C)]
struct Unexpected {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

global_asm!(
    r#"
    .text
    .macro save_and_resolve
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    .endm
    .macro resume
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 8
    iretq
    .endm

    .global fault_entry_ring0
fault_entry_ring0:
    save_and_resolve
    cld
    mov rdi, rsp
    mov rsi, cr2
    # The CPU aligned the stack to 16 and 15 words were pushed: one more makes the call's alignment.
    sub rsp, 8
    call page_fault
    add rsp, 8
    resume

    .global fault_entry_ring3
fault_entry_ring3:
    push [entry_stack_top - 8]
    push [entry_stack_top - 16]
    push [entry_stack_top - 24]
    push [entry_stack_top - 32]
    push [entry_stack_top - 40]
    push [entry_stack_top - 48]
    mov rax, [fault_rax]
    save_and_resolve
    cld
    mov rdi, rsp
    mov rsi, [fault_cr2]
    sub rsp, 8
    call page_fault
    add rsp, 8
    resume

    .align 16
    .global exception_stubs
exception_stubs:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .align 16
    .if (\vector == 8) || (\vector == 10) || (\vector == 11) || (\vector == 12) || (\vector == 13) || (\vector == 14) || (\vector == 17) || (\vector == 21) || (\vector == 29) || (\vector == 30)
    .else
    push 0
    .endif
    push \vector
    jmp exception_common
    .endr

    .global exception_common
exception_common:
    cld
    mov rdi, rsp
    and rsp, -16
    call unexpected_exception
    ud2
"#
);

/// A page fault: the tenant's goes to whoever called [`touch`](touch::run), any other is a bug.
#[unsafe(no_mangle)]
extern "C" fn page_fault(frame: &mut Frame, address: u64) {
    if !touch::owns(frame.rip) {
        stray(frame, address);
    }
    touch::fault(frame, address);
}

/// A page fault of the manager's own code.
#[cold]
#[inline(never)]
fn stray(frame: &Frame, address: u64) -> ! {
    let Frame { error, rip, cs, rsp, .. } = *frame;
    panic!("page fault in the manager: cr2 {address:#x} error {error:#x} rip {rip:#x} cs {cs:#x} rsp {rsp:#x}");
}

/// Any other exception.
#[unsafe(no_mangle)]
extern "C" fn unexpected_exception(frame: &Unexpected) -> ! {
    let cr2: u64;
    // SAFETY: the stubs run at ring 0, where CR2 may be read.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    let Unexpected { vector, error, rip, cs, rsp, .. } = *frame;
    panic!("exception {vector} ({}): error {error:#x} rip {rip:#x} cs {cs:#x} rsp {rsp:#x} cr2 {cr2:#x}", name(vector));
}

/// The mnemonic of an exception.
fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE",
        1 => "#DB",
        2 => "NMI",
        3 => "#BP",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        _ => "reserved",
    }
}
