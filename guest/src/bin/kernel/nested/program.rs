//! The program that a guest runs in the checks: position-independent, without a stack, one command for each hypercall. R15 says how that is
//! made: 0 for `vmcall`, 1 for `vmmcall`.
#![expect(unsafe_code, reason = "names the program's bytes")]

use core::arch::global_asm;

/// What the program does before its next hypercall. The number goes to RAX, and comes back in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Command {
    /// Loads the word at RDI and at each RSI bytes further on, RCX words, and leaves their [`checksum`](quire::abi::checksum) in RBX.
    Load = 0,
    /// Stores RDX to these words, one more in each.
    Store = 1,
    /// Goes to the code at RDI, which comes back by a jump to R14.
    Fetch = 2,
    /// Adds 1 to the word at RDI, in one locked instruction.
    Add = 3,
    /// HLT.
    Halt = 4,
    /// An instruction that is none.
    Undefined = 5,
    /// Reads a port.
    Port = 6,
}

/// Code that comes back to [`Command::Fetch`]: `jmp r14`.
pub const COME_BACK: u64 = 0xe6_ff41;

unsafe extern "C" {
    static guest_program: u8;
    static guest_program_end: u8;
}

global_asm!(
    r#"
    .section .rodata.guest_program, "a"
    .align 16
    .global guest_program
    .global guest_program_end
guest_program:
    cmp eax, 1
    jb 10f
    je 11f
    cmp eax, 3
    jb 12f
    je 13f
    cmp eax, 5
    jb 14f
    je 15f
    in al, dx
    jmp 9f
10: xor ebx, ebx
    test rcx, rcx
    jz 9f
1:  rol rbx, 5
    xor rbx, [rdi]
    add rdi, rsi
    dec rcx
    jnz 1b
    jmp 9f
11: mov [rdi], rdx
    inc rdx
    add rdi, rsi
    dec rcx
    jnz 11b
    jmp 9f
12: lea r14, [rip + 9f]
    jmp rdi
13: lock inc qword ptr [rdi]
    jmp 9f
14: hlt
    jmp 9f
15: ud2
9:  test r15, r15
    jnz 2f
    .byte 0x0f, 0x01, 0xc1          # vmcall
    jmp guest_program
2:  .byte 0x0f, 0x01, 0xd9          # vmmcall
    jmp guest_program
guest_program_end:
"#
);

/// The program's bytes.
pub fn bytes() -> &'static [u8] {
    let (first, end) = (&raw const guest_program, &raw const guest_program_end);
    // SAFETY: both are symbols of the assembly above, and what lies between is read-only.
    unsafe { core::slice::from_raw_parts(first, end.addr() - first.addr()) }
}
