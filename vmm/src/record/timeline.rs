//! What was seen of the recorded program, before it becomes a trace: events with the time of `CLOCK_MONOTONIC`.
//!
//! Calls are seen at ptrace stops, page faults in perf's rings, each in its own order; only their times put them together.
//! Thread ids are the kernel's here. Turning them into the trace's processes waits until everything is sorted, since a
//! thread's first faults may be seen before the call that made it.

use super::identity::Source;

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) time: u64,
    /// The thread it happened to.
    pub(super) tid: i32,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// A page fault.
    Fault { address: u64, direction: Direction },
    /// The thread made another one.
    Made { child: i32, shares: bool },
    /// The thread runs a new program. It was `former` before; the kernel gives it the id of its process.
    Exec { former: i32, image: Vec<Mapping>, arguments: u64 },
    /// The thread ended.
    Gone,
    /// A call that changed mappings.
    Call(Call),
}

/// What a page fault was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// A load or an instruction fetch.
    Read,
    /// A store.
    Write,
    /// Neither instruction nor registers tell.
    Unknown,
}

/// Protection bits as `mmap` takes them.
pub(super) type ProtBits = u64;

/// A mapping that came to be.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) prot: ProtBits,
    pub(super) source: Source,
    /// Grows downwards.
    pub(super) stack: bool,
    /// Replaces what was there.
    pub(super) fixed: bool,
}

/// A call that changed mappings and succeeded. Ranges are of whole pages.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Map {
        mapping: Mapping,
        populate: bool,
    },
    Unmap {
        start: u64,
        end: u64,
    },
    Protect {
        start: u64,
        end: u64,
        prot: ProtBits,
    },
    Remap {
        from: u64,
        length: u64,
        to: u64,
        new_length: u64,
    },
    Advise {
        start: u64,
        end: u64,
        advice: quire::space::Advice,
    },
    Populate {
        start: u64,
        end: u64,
        write: bool,
    },
    Brk {
        start: u64,
        end: u64,
    },
    /// It worked, but no operation of a trace says what it did.
    Inexpressible,
}
