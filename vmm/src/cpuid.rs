//! What the guest's CPU says it is.
//!
//! As little as long mode needs, read from the host's own CPU: the kernel uses the baseline only, and asking KVM for all
//! it supports costs a trap for each leaf where the host is itself a guest (a third of a millisecond, most of a launch).
//! The width of physical addresses must be the host's: KVM intercepts every page fault of a guest whose CPU claims less.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::error::Error;

/// Leaf 1, EDX: FPU to CX8, PGE, CMOV, PAT, CLFLUSH, FXSR, SSE, SSE2.
const BASIC: u32 = 0x0708_a3ff;
/// Leaf 0x8000_0001, EDX: SYSCALL, NX, long mode.
const EXTENDED: u32 = 1 << 11 | 1 << 20 | 1 << 29;

/// The leaves: vendor, basic features, long mode, address widths.
///
/// # Errors
/// Never on a host that runs 64-bit programs.
pub fn baseline() -> Result<CpuId, Error> {
    let leaf = |function: u32, change: fn(&mut kvm_cpuid_entry2)| {
        let host = __cpuid(function);
        let mut entry = kvm_cpuid_entry2 {
            function,
            eax: host.eax,
            ebx: host.ebx,
            ecx: host.ecx,
            edx: host.edx,
            ..Default::default()
        };
        change(&mut entry);
        entry
    };
    let entries = [
        leaf(0, |vendor| vendor.eax = 1),
        leaf(1, |basic| (basic.ebx, basic.ecx, basic.edx) = (0, 0, basic.edx & BASIC)),
        leaf(0x8000_0000, |extended| extended.eax = 0x8000_0008),
        leaf(0x8000_0001, |extended| (extended.ecx, extended.edx) = (0, extended.edx & EXTENDED)),
        leaf(0x8000_0008, |widths| (widths.ebx, widths.ecx, widths.edx) = (0, 0, 0)),
    ];
    CpuId::from_entries(&entries).map_err(|error| Error::Exit(format!("CPUID leaves: {error:?}")))
}
