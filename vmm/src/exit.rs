//! Why the guest stopped, as a type.

use kvm_ioctls::VcpuExit;

/// A guest's exit, as far as the run loop tells them apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// `out` of at most four bytes.
    Out {
        /// The port.
        port: u16,
        /// The value, zero-extended.
        value: u32,
    },
    /// HLT.
    Halt,
    /// A triple fault.
    Shutdown,
    /// An access that KVM could not back.
    Mmio(u64),
    /// KVM could not run an instruction; the details are in `kvm_run`.
    InternalError,
    /// A signal came.
    Interrupted,
    /// Anything else, as KVM names it.
    Other(String),
}

impl From<VcpuExit<'_>> for Exit {
    fn from(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoOut(port, data) if data.len() <= 4 => {
                let value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                Self::Out { port, value }
            }
            VcpuExit::Hlt => Self::Halt,
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::MmioRead(gpa, _) | VcpuExit::MmioWrite(gpa, _) => Self::Mmio(gpa),
            VcpuExit::MemoryFault { gpa, .. } => Self::Mmio(gpa),
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::Intr => Self::Interrupted,
            other => Self::Other(format!("{other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_out_is_read_little_endian() {
        assert_eq!(Exit::from(VcpuExit::IoOut(0x510, &[1, 2, 0, 0])), Exit::Out { port: 0x510, value: 0x201 });
        assert!(matches!(Exit::from(VcpuExit::IoOut(1, &[0; 8])), Exit::Other(_)));
    }
}
