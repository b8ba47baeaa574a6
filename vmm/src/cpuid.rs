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
/// Leaf 1, ECX: VMX.
const VMX: u32 = 1 << 5;
/// Leaf 0x8000_0001, ECX: SVM.
const SVM: u32 = 1 << 2;

/// How a guest can have guests of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guests {
    /// VMX. What it can do stands in model-specific registers, which KVM sets.
    Vmx,
    /// SVM, with the leaf that says what it can do.
    Svm(kvm_cpuid_entry2),
}

impl Guests {
    /// What KVM offers, if anything.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn offered(kvm: &Kvm) -> Result<Option<Self>, Error> {
        let supported = supported(kvm)?;
        Ok(Self::among(supported.as_slice()))
    }

    fn among(supported: &[kvm_cpuid_entry2]) -> Option<Self> {
        let leaf = |function| supported.iter().find(|entry| entry.function == function);
        if leaf(1).is_some_and(|basic| basic.ecx & VMX != 0) {
            return Some(Self::Vmx);
        }
        let svm = leaf(0x8000_0001).is_some_and(|extended| extended.ecx & SVM != 0);
        leaf(0x8000_000a).filter(|_| svm).map(|leaf| Self::Svm(*leaf))
    }

    /// The name of the feature, as `/proc/cpuinfo` has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm(_) => "svm",
        }
    }
}

/// The leaves: vendor, basic features, long mode, address widths.
///
/// `gigabyte_leaves` says that page tables may hold leaves of 1 GiB, which KVM must [support](has_gigabyte_leaves); `guests`, that the guest may
/// have guests, by what KVM [offers](Guests::offered).
///
/// # Errors
/// Never on a host that runs 64-bit programs.
pub fn baseline(gigabyte_leaves: bool, guests: Option<&Guests>) -> Result<CpuId, Error> {
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
    let (vmx, svm, last) = match guests {
        None => (0, 0, 0x8000_0008),
        Some(Guests::Vmx) => (VMX, 0, 0x8000_0008),
        Some(Guests::Svm(leaf)) => (0, SVM, leaf.function),
    };
    let mut entries = vec![
        leaf(0, &|vendor| vendor.eax = 1),
        leaf(1, &|basic| (basic.ebx, basic.ecx, basic.edx) = (0, vmx, basic.edx & BASIC)),
        leaf(0x8000_0000, &|extended| extended.eax = last),
        leaf(0x8000_0001, &|extended| (extended.ecx, extended.edx) = (svm, extended.edx & features)),
        leaf(0x8000_0008, &|widths| (widths.ebx, widths.ecx, widths.edx) = (0, 0, 0)),
    ];
    if let Some(Guests::Svm(leaf)) = guests {
        entries.push(*leaf);
    }
    CpuId::from_entries(&entries).map_err(|error| Error::Exit(format!("CPUID leaves: {error:?}")))
}

/// Whether KVM lets a guest's tables hold leaves of 1 GiB. The CPU having them is not enough: where KVM shadows the tables it need not.
///
/// # Errors
/// What KVM refused.
pub fn has_gigabyte_leaves(kvm: &Kvm) -> Result<bool, Error> {
    let supported = supported(kvm)?;
    let extended = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0001);
    Ok(extended.is_some_and(|entry| entry.edx & GIGABYTE_LEAVES != 0))
}

fn supported(kvm: &Kvm) -> Result<CpuId, Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("ask for the CPUID it supports"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ecx, ..Default::default() }
    }

    #[test]
    fn guests_are_what_kvm_offers() {
        let (nothing, vmx) = (entry(1, !VMX), entry(1, VMX));
        let (no_svm, svm) = (entry(0x8000_0001, !SVM), entry(0x8000_0001, SVM));
        let features = kvm_cpuid_entry2 { ebx: 8, edx: 1, ..entry(0x8000_000a, 0) };
        assert_eq!(Guests::among(&[nothing, no_svm, features]), None);
        assert_eq!(Guests::among(&[nothing, svm]), None, "SVM that says nothing of itself");
        assert_eq!(Guests::among(&[vmx, no_svm]), Some(Guests::Vmx));
        assert_eq!(Guests::among(&[nothing, svm, features]), Some(Guests::Svm(features)));
    }

    #[test]
    fn the_guest_sees_them_only_when_they_are_asked_for() {
        let features = kvm_cpuid_entry2 { ebx: 8, edx: 1, ..entry(0x8000_000a, 0) };
        let leaf = |guests: Option<&Guests>, function| {
            let leaves = baseline(false, guests).unwrap();
            leaves.as_slice().iter().find(|entry| entry.function == function).copied()
        };
        for (guests, vmx, svm, last) in [
            (None, 0, 0, 0x8000_0008),
            (Some(&Guests::Vmx), VMX, 0, 0x8000_0008),
            (Some(&Guests::Svm(features)), 0, SVM, 0x8000_000a),
        ] {
            assert_eq!(leaf(guests, 1).unwrap().ecx, vmx);
            assert_eq!(leaf(guests, 0x8000_0001).unwrap().ecx, svm);
            assert_eq!(leaf(guests, 0x8000_0000).unwrap().eax, last);
            assert_eq!(leaf(guests, 0x8000_000a), (svm != 0).then_some(features));
        }
    }
}
