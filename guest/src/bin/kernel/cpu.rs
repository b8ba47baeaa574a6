//! Single instructions of the CPU, and which ring runs them.
//!
//! What needs ring 0 goes through the [`shim`](crate::shim) when the caller runs at ring 3: the code segment
//! tells, so these work before the ring is chosen and inside exception handlers too.
#![expect(unsafe_code, reason = "privileged and I/O instructions")]

use core::arch::asm;

use quire::addr::PAGE_SIZE;

use crate::shim::{self, Call};

/// The ring this code runs at, 0 or 3.
pub fn ring() -> u64 {
    let cs: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {0:e}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) };
    cs & 3
}

/// The time-stamp counter. Differences only: it does not start at zero.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; CR4.TSD is never set.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes 32 bits to a port.
pub fn out32(port: u16, value: u32) {
    if ring() == 3 {
        shim::call(Call::Out32, u64::from(port), u64::from(value));
        return;
    }
    // SAFETY: the ports are the VMM's and the emulators'; none changes memory behind the compiler's back but the
    // doorbell, whose words are atomics.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    if ring() == 3 {
        shim::call(Call::Out8, u64::from(port), u64::from(value));
        return;
    }
    // SAFETY: as `out32`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Makes the table at physical address `root` the current one; drops every cached translation.
///
/// # Safety
/// The table must map the kernel's half as [`Machine::adopt_root`](crate::machine::Machine::adopt_root) makes it.
pub unsafe fn load_root(root: u64) {
    if ring() == 3 {
        shim::call(Call::LoadRoot, root, 0);
        return;
    }
    // SAFETY: the caller vouches for the table, so the next instruction is still there.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Drops the cached translations of `pages` pages from `first` on (a canonical address), at least one.
pub fn flush_pages(first: u64, pages: u64) {
    if ring() == 3 {
        shim::call(Call::FlushPages, first, pages);
        return;
    }
    for page in 0..pages {
        // SAFETY: forgetting a translation is always sound; the tables are in memory.
        unsafe { asm!("invlpg [{}]", in(reg) first + page * PAGE_SIZE, options(nostack, preserves_flags)) };
    }
}

/// Stores one word at ring 0, whatever ring the caller runs at.
///
/// # Safety
/// `at` must be a word that only atomic accesses touch.
pub unsafe fn store_at_ring0(at: *mut u64, value: u64) {
    if ring() == 3 {
        shim::call(Call::Store, at.addr() as u64, value);
        return;
    }
    // SAFETY: the caller vouches for the word. An aligned store is a relaxed atomic store.
    unsafe { asm!("mov [{}], {}", in(reg) at, in(reg) value, options(nostack, preserves_flags)) };
}

/// Stops for good.
pub fn halt() -> ! {
    loop {
        if ring() == 3 {
            shim::call(Call::Halt, 0, 0);
        } else {
            // SAFETY: with interrupts off this waits for ever; the VMM or the watchdog ends it.
            unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// Bochs' way out: its debugger stops on this when it was told to.
pub fn magic_break() {
    // SAFETY: exchanges a register with itself.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
}

/// Loads from an address that nobody maps, so that a test can see what becomes of a wild pointer.
pub fn stray_load() {
    // SAFETY: it faults, and the fault is a panic.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) 0x1000_u64 => _, options(nostack, preserves_flags, readonly)) };
}

/// A model-specific register. Only at ring 0, and only one that the CPU has.
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading one changes nothing; the caller knows from CPUID that it is there.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register. Only at ring 0.
///
/// # Safety
/// The value must leave the kernel's own mode, tables and segments as they are.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: by contract.
    unsafe {
        asm!(
            "wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags)
        );
    }
}

/// CR0, CR3 and CR4. Only at ring 0.
pub fn control_registers() -> [u64; 3] {
    let [cr0, cr3, cr4]: [u64; 3];
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags)
        );
    }
    [cr0, cr3, cr4]
}
