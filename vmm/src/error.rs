//! What can go wrong, one line each.

use std::io;
use std::time::Duration;

use crate::record::RecordError;

/// Why a run gave no outcome. `Display` is one line that names what and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no `/dev/kvm`.
    #[error(
        "/dev/kvm does not exist: load kvm_intel or kvm_amd, enable virtualization in the firmware or the outer hypervisor, or pass the device into the container; --backend model needs no KVM"
    )]
    KvmMissing,
    /// `/dev/kvm` is there, but not for this user.
    #[error("/dev/kvm may not be opened by this user ({0}): join the group kvm, or pass the device into the container")]
    KvmForbidden(io::Error),
    /// `/dev/kvm` does not open for another reason.
    #[error("/dev/kvm does not open: {0}")]
    KvmOpen(io::Error),
    /// KVM speaks another version.
    #[error("/dev/kvm has API version {0}, not 12: this is no KVM that Quire knows")]
    KvmVersion(i32),
    /// An extension that Quire cannot do without is missing.
    #[error("this KVM lacks {0}")]
    KvmLacks(&'static str),
    /// An ioctl failed.
    #[error("KVM: {what}: {error}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        error: kvm_ioctls::Error,
    },
    /// Guest memory of that size cannot be.
    #[error("memory of {bytes} bytes cannot be: from {least} to {most}")]
    MemorySize {
        /// What was asked for.
        bytes: u64,
        /// The least that is of use.
        least: u64,
        /// The most that can be had.
        most: u64,
    },
    /// Frames of that size leave the machine no room for what it has beside them.
    #[error(
        "memory of {bytes} bytes cannot be: the machine has {beside} bytes on top of it (recounts, the trace, a tenant VM), and no more than {most} in all"
    )]
    NoRoomBeside {
        /// What was asked for.
        bytes: u64,
        /// What there is on top.
        beside: u64,
        /// The most that a machine has.
        most: u64,
    },
    /// The host gives no memory.
    #[error("the host gives no guest memory ({what}, {bytes} bytes): {error}")]
    Memory {
        /// The call that failed.
        what: &'static str,
        /// How much.
        bytes: u64,
        /// What the kernel said.
        error: io::Error,
    },
    /// An address that is not in guest memory.
    #[error("guest memory: {0}")]
    Access(#[from] vm_memory::GuestMemoryError),
    /// The image is no kernel of ours.
    #[error("kernel image: {0}")]
    Image(String),
    /// The host's timer for the watchdog failed.
    #[error("watchdog timer: {0}")]
    Timer(io::Error),
    /// The guest made no exit for too long.
    #[error("the guest hangs: no exit for {0:?}, at rip {1:#x} (ring {2})")]
    Hang(Duration, u64, u64),
    /// The guest stopped without a word.
    #[error("the guest halted without a result, at rip {0:#x}")]
    Halted(u64),
    /// A triple fault.
    #[error("the guest shut down by a triple fault, at rip {0:#x}")]
    Shutdown(u64),
    /// KVM could not run an instruction.
    #[error(
        "KVM could not emulate the guest's instruction at rip {rip:#x} (ring {ring}, suberror {suberror}): {bytes}"
    )]
    Instruction {
        /// Where.
        rip: u64,
        /// At which ring.
        ring: u64,
        /// KVM's number for the reason.
        suberror: u32,
        /// The bytes, in hexadecimal.
        bytes: String,
    },
    /// The guest reached for memory that it has, and the host had none there.
    #[error("the host has no memory behind the guest's{}", .0.map(|gpa| format!(" at {gpa:#x}")).unwrap_or_default())]
    HostFault(Option<u64>),
    /// The guest reached for memory that it does not have.
    #[error("the guest reached for {0:#x}, where it has no memory, at rip {1:#x}")]
    NoMemory(u64, u64),
    /// The guest rang with a command that nobody answers.
    #[error("the guest rang the doorbell with command {0:#x}, which nobody answers")]
    Bell(u32),
    /// A trace that is no good.
    #[error("trace {file}{}: {reason}", .line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Trace {
        /// The file.
        file: String,
        /// The line, from 1, where there is one.
        line: Option<u64>,
        /// What is wrong.
        reason: String,
    },
    /// Arguments that make no sense.
    #[error("{0}")]
    Usage(String),
    /// A file that is no benchmark's JSON.
    #[error("{file} is no benchmark that `quire bench --json` wrote: {reason}")]
    BenchFile {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The manager panicked: a bug of ours.
    #[error("the manager panicked: {0}")]
    Panic(String),
    /// A worked scenario that there is not.
    #[error("no scenario is called {name}; there are {}", .there_are.join(" "))]
    NoScenario {
        /// What was asked for.
        name: String,
        /// All of them.
        there_are: Vec<&'static str>,
    },
    /// A worked scenario that did not run to its end, or showed nothing that reads.
    #[error("scenario {0}: {1}")]
    Scenario(&'static str, String),
    /// A recording that gave no trace.
    #[error(transparent)]
    Record(RecordError),
    /// Something that is not there yet, or not on this host.
    #[error("{0}")]
    Lacks(String),
    /// A file that cannot be written.
    #[error("{file} cannot be written: {error}")]
    Write {
        /// The file.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// An exit that has no place here.
    #[error("unexpected exit: {0}")]
    Exit(String),
}

impl Error {
    /// Pairs a failed ioctl with what it was for.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { what, error }
    }

    /// The program's exit code for this error: 1 the run failed, 2 usage, 3 bad input, 4 the host lacks something.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::KvmMissing
            | Self::KvmForbidden(_)
            | Self::KvmOpen(_)
            | Self::KvmVersion(_)
            | Self::KvmLacks(_)
            | Self::Kvm { .. }
            | Self::Memory { .. }
            | Self::Lacks(_)
            | Self::Timer(_) => 4,
            Self::Record(error) if error.is_host_lack() => 4,
            Self::Record(RecordError::NoCommand | RecordError::NotFound(_)) | Self::MemorySize { .. } => 2,
            Self::NoRoomBeside { .. } | Self::NoScenario { .. } | Self::Usage(_) => 2,
            Self::Image(_) | Self::Trace { .. } | Self::BenchFile { .. } => 3,
            Self::Access(_)
            | Self::Hang(..)
            | Self::Halted(_)
            | Self::Shutdown(_)
            | Self::Instruction { .. }
            | Self::HostFault(_)
            | Self::NoMemory(..)
            | Self::Bell(_)
            | Self::Panic(_)
            | Self::Scenario(..)
            | Self::Record(_)
            | Self::Write { .. }
            | Self::Exit(_) => 1,
        }
    }
}
