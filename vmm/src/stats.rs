//! KVM's binary statistics (`KVM_GET_STATS_FD`): what the host counted for a VM and its CPU.
#![expect(unsafe_code, reason = "an ioctl that kvm-ioctls does not have")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::{VcpuFd, VmFd};

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Six words of 32 bits: flags, name size, descriptors, and the offsets of id, descriptors and data.
const HEADER_BYTES: usize = 24;
/// What stands before the name in a descriptor: flags, exponent, size, offset, bucket size.
const DESCRIPTOR_BYTES: usize = 16;

/// One counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// KVM's name for it.
    pub name: String,
    /// Its value; the first, of a histogram.
    pub value: u64,
}

/// The VM's counters; none when the host has no such statistics.
#[must_use]
pub fn of_vm(vm: &VmFd) -> Vec<Stat> {
    read(vm.as_raw_fd()).unwrap_or_default()
}

/// The vCPU's counters; none when the host has no such statistics.
#[must_use]
pub fn of_vcpu(vcpu: &VcpuFd) -> Vec<Stat> {
    read(vcpu.as_raw_fd()).unwrap_or_default()
}

/// Reads header, descriptors and values.
fn read(of: RawFd) -> Option<Vec<Stat>> {
    // SAFETY: the ioctl takes no argument and returns a descriptor.
    let fd = unsafe { libc::ioctl(of, KVM_GET_STATS_FD as _, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a descriptor that was just opened and nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    let bytes = |at: u64, count: usize| {
        let mut bytes = vec![0; count];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let header = bytes(0, HEADER_BYTES)?;
    let (name_bytes, count) = (number(&header, 4)? as usize, number(&header, 8)? as usize);
    let (descriptors_at, data_at) = (number(&header, 16)?, number(&header, 20)?);
    let descriptors = bytes(descriptors_at, count * (DESCRIPTOR_BYTES + name_bytes))?;
    descriptors
        .chunks_exact(DESCRIPTOR_BYTES + name_bytes)
        .map(|descriptor| {
            let (head, name) = descriptor.split_at(DESCRIPTOR_BYTES);
            let value = bytes(data_at + number(head, 8)?, 8)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Stat {
                name: String::from_utf8_lossy(name).into_owned(),
                value: u64::from_le_bytes(value.try_into().ok()?),
            })
        })
        .collect()
}

/// The 32-bit number at `at`.
fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?).into())
}
