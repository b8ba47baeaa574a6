//! What the guest's CPU says it is.
//!
//! As little as long mode needs, read from the host's own CPU: the kernel uses the baseline only, and asking KVM for all
//! it supports costs a trap for each leaf where the host is itself a guest (a third of a millisecond, most of a launch).
//! The width of physical addresses must be the host's: KVM intercepts every page fault of a guest whose CPU claims less.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::error::Error;

/// Leaf 1, EDX: FPU to CX8, PGE, CMOV, PAT, CLFLUSH, FXSR, SSE, SSE2.
const BASIC: u32 = 0x0708_a3ff;
/// Leaf 0x8000_0001, EDX: SYSCALL, NX, long mode.
const EXTENDED: u32 = 1 << 11 | 1 << 20 | 1 << 29;
/// Likewise: leaves of 1 GiB.
const GIGABYTE_LEAVES: u32 = 1 << 26;

/// The leaves: vendor, basic features, long mode, address widths.
///
/// `gigabyte_leaves` says that page tables may hold leaves of 1 GiB, which KVM must [support](has_gigabyte_leaves).
///
/// # Errors
/// Never on a host that runs 64-bit programs.
pub fn baseline(gigabyte_leaves: bool) -> Result<CpuId, Error> {
    let features = if gigabyte_leaves { EXTENDED | GIGABYTE_LEAVES } else { EXTENDED };
    let leaf = |function: u32, change: &dyn Fn(&mut kvm_cpuid_entry2)| {
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
        leaf(0, &|vendor| vendor.eax = 1),
        leaf(1, &|basic| (basic.ebx, basic.ecx, basic.edx) = (0, 0, basic.edx & BASIC)),
        leaf(0x8000_0000, &|extended| extended.eax = 0x8000_0008),
        leaf(0x8000_0001, &|extended| (extended.ecx, extended.edx) = (0, extended.edx & features)),
        leaf(0x8000_0008, &|widths| (widths.ebx, widths.ecx, widths.edx) = (0, 0, 0)),
    ];
    CpuId::from_entries(&entries).map_err(|error| Error::Exit(format!("CPUID leaves: {error:?}")))
}

/// Whether KVM lets a guest's tables hold leaves of 1 GiB. The CPU having them is not enough: where KVM shadows the tables it need not.
///
/// # Errors
/// What KVM refused.
pub fn has_gigabyte_leaves(kvm: &Kvm) -> Result<bool, Error> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("ask for the CPUID it supports"))?;
    let extended = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0001);
    Ok(extended.is_some_and(|entry| entry.edx & GIGABYTE_LEAVES != 0))
}
