//! What stays at ring 0 when the manager runs at ring 3: a few dozen instructions.
//!
//! Two entries. A page fault is handed to the manager's own entry at ring 3 (`fault_entry_ring3` in
//! [`trap`](crate::trap)): the CPU has pushed its frame on the entry stack, which the manager can read, so the
//! shim only saves `rax` and CR2 and returns into the manager with a frame made beforehand. And `int3` from ring 3
//! is a call for one privileged thing: number in `rax`, arguments in `rdi` and `rsi`.
//!
//! At ring 3 everything that runs is trusted (the tenants are our own programs), so the calls check nothing but
//! the number.
#![expect(unsafe_code, reason = "the call instruction and its assembly")]

use core::arch::{asm, global_asm};

/// What the shim does on request. The numbers are indices of its table.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Call {
    /// CR3 = first argument.
    LoadRoot = 0,
    /// INVLPG of as many pages as the second argument says, from the first argument on.
    FlushPages = 1,
    /// Second argument, 32 bits, to the port in the first.
    Out32 = 2,
    /// Second argument, 8 bits, to the port in the first.
    Out8 = 3,
    /// Second argument to the word that the first points at.
    Store = 4,
    /// HLT.
    Halt = 5,
}

/// Asks the shim. Only at ring 3.
pub fn call(what: Call, first: u64, second: u64) {
    // SAFETY: each call's effect is described at its number; `cpu` is the only caller and upholds them. The shim
    // changes no register but these four and runs on a stack of its own.
    unsafe {
        asm!("int3", in("rax") what as u64, inout("rdi") first => _, inout("rsi") second => _, out("rdx") _, lateout("rax") _);
    }
}

global_asm!(
    r#"
    .text
    .global fault_shim
fault_shim:
    mov [fault_rax], rax
    mov rax, cr2
    mov [fault_cr2], rax
    mov rsp, offset fault_frame
    iretq

    .global call_shim
call_shim:
    cmp rax, 5
    ja 9f
    jmp [call_table + rax * 8]
call_load_root:
    mov cr3, rdi
    iretq
call_flush_pages:
    invlpg [rdi]
    add rdi, 4096
    dec rsi
    jnz call_flush_pages
    iretq
call_out32:
    mov edx, edi
    mov eax, esi
    out dx, eax
    iretq
call_out8:
    mov edx, edi
    mov eax, esi
    out dx, al
    iretq
call_store:
    mov [rdi], rsi
    iretq
call_halt:
    hlt
    iretq
9:
    push 0
    push 3
    jmp exception_common

    .section .rodata.shim, "a"
    .align 8
call_table:
    .quad call_load_root, call_flush_pages, call_out32, call_out8, call_store, call_halt

    .section .data.shim, "aw"
    .align 64
    .global fault_rax
    .global fault_cr2
fault_rax:
    .quad 0
fault_cr2:
    .quad 0
# What `iretq` takes into the manager: its fault entry, user code, no flags, its fault stack, user data.
fault_frame:
    .quad fault_entry_ring3, 0x33, 0x2, fault_stack_top, 0x2b
"#
);
