//! The four functions that compiled code calls for memory, by string instructions.
//!
//! Words first and the rest by bytes: hosts that emulate ring 0 take a step for each element.
#![expect(unsafe_code, reason = "raw memory, and symbols the compiler calls by name")]

use core::arch::asm;

/// Copies `n` bytes upwards.
///
/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the ABI.
    unsafe {
        asm!(
            "rep movsq", "mov ecx, eax", "rep movsb",
            inout("rcx") n >> 3 => _, inout("rdi") to => _, inout("rsi") from => _, in("eax") (n & 7) as u32,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// Copies `n` bytes between ranges that may overlap.
///
/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to.addr()).wrapping_sub(from.addr()) >= n {
        // SAFETY: upwards is safe: `to` is below `from`, or beyond its end.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: the caller vouches for both ranges; downwards never overwrites what is still to be read. The
    // direction flag is restored.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") n => _, inout("rdi") to.wrapping_add(n).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(n).wrapping_sub(1) => _,
            options(nostack)
        );
    }
    to
}

/// Fills `n` bytes.
///
/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    let word = u64::from(byte as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
    unsafe {
        asm!(
            "rep stosq", "mov ecx, edx", "rep stosb",
            inout("rcx") n >> 3 => _, inout("rdi") to => _, in("rax") word, in("edx") (n & 7) as u32,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// Compares `n` bytes.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the caller vouches for both ranges.
        let (a, b) = unsafe { (a.wrapping_add(i).read_volatile(), b.wrapping_add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Compares `n` bytes for equality.
///
/// # Safety
/// As `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}
