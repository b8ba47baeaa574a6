//! The first instructions, by three ways in, and the page tables of the 32-bit ones.
//!
//! - `direct_start`: our VMM, in 64-bit mode on the start tables, `rdi` = address of the boot words.
//! - `pvh_start`: 32-bit protected mode, `ebx` = address of the PVH start info (QEMU `-kernel`).
//! - `flat_start`: 32-bit protected mode at the image's first byte, nothing in registers.
//!
//! All end in [`kernel_start`](crate::kernel_start) on the main stack, with the way in `rdi`, the address in
//! `rsi` and the first time stamp in `rdx`. The 32-bit ways bring tables that are part of the image and map the
//! low gigabyte, at its own address and at the kernel's; Rust code replaces them.

use core::arch::global_asm;

use quire::abi::{bell, boot, flags};

/// How the kernel was entered, as the entries say it.
pub mod way {
    /// By our VMM.
    pub const DIRECT: u64 = 0;
    /// By the PVH note.
    pub const PVH: u64 = 1;
    /// At the first byte.
    pub const FLAT: u64 = 2;
}

global_asm!(
    r#"
    .section .flat, "ax"
    .code32
    .global flat_start
flat_start:
    xorl %ebx, %ebx
    movl $2, %edi
    jmp 1f
    .global pvh_start
pvh_start:
    movl $1, %edi
1:
    cli
    cld
    movl $stub_root_phys, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax                 # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax                # EFER.LME, EFER.NXE
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax          # caches on, no FPU trap
    orl $0x80010021, %eax           # PG, WP, NE, PE
    movl %eax, %cr0
    lgdtl stub_gdt_pointer_phys
    ljmpl $0x10, $long_start_phys
    .code64
    .global long_start
long_start:
    movl %ebx, %esi
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    rdtsc
    shlq $32, %rdx
    orq %rax, %rdx
    movq $high_start, %rax
    jmp *%rax

    .global direct_start
direct_start:
    testl ${start_bell}, 8 * {flags}(%rdi)
    jz 1f
    movl ${start}, %eax
    movw ${port}, %dx
    outl %eax, %dx
1:
    rdtsc
    shlq $32, %rdx
    orq %rax, %rdx
    movq %rdi, %rsi
    xorl %edi, %edi
    movq $high_start, %rax
    jmp *%rax

high_start:
    xorl %ebp, %ebp
    movq $main_stack_top, %rsp
    call kernel_start
    ud2

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18                  # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start_phys

    .section .data.stub, "aw"
    .align 4096
    .global stub_root
stub_root:
    .quad stub_low_3_phys + 0x23
    .fill 510, 8, 0
    .quad stub_kernel_3_phys + 0x23
    .global stub_low_3
stub_low_3:
    .quad stub_low_2_phys + 0x23
    .fill 511, 8, 0
    .global stub_kernel_3
stub_kernel_3:
    .fill 510, 8, 0
    .quad stub_low_2_phys + 0x23
    .quad 0
    .global stub_low_2
stub_low_2:
    .set address, 0
    .rept 512
    .quad address + 0xe3
    .set address, address + 0x200000
    .endr
    .global stub_gdt
stub_gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .global stub_gdt_pointer
stub_gdt_pointer:
    .word 31
    .long stub_gdt_phys
"#,
    start_bell = const flags::START_BELL,
    flags = const boot::FLAGS,
    start = const bell::START,
    port = const bell::PORT,
    options(att_syntax)
);
