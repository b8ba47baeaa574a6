//! One operation of a trace.

use crate::addr::{Gva, Order};
use crate::space::{Advice, ObjectKind, Prot};

/// What a mapping maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anon,
    /// Pages of an object, from page `offset` on.
    Object {
        /// The object's number in the trace.
        object: u32,
        /// First page of the object.
        offset: u64,
        /// Stores go to private copies (`MAP_PRIVATE`).
        private: bool,
    },
    /// Device memory that is never counted (`VM_PFNMAP`), by frame number of the device window.
    Device {
        /// First frame of the window.
        first: u64,
    },
}

/// How a mapping behaves beyond its backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MapKind {
    /// Nothing special.
    #[default]
    Plain,
    /// Grows downwards on faults below it (`MAP_GROWSDOWN`, the main stack).
    Stack,
}

/// What a look is called: one to eight printable characters of ASCII, none of them a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label([u8; 8]);

impl Label {
    /// The label of these bytes, with zeros behind it.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at(length);
        let good = length > 0 && text.iter().all(u8::is_ascii_graphic) && rest.iter().all(|&byte| byte == 0);
        good.then_some(Self(bytes))
    }

    /// The label that reads `text`.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Self::from_bytes(bytes)
    }

    /// Its bytes, with zeros behind it.
    #[must_use]
    pub const fn bytes(self) -> [u8; 8] {
        self.0
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

/// One operation. `proc` numbers name processes and threads of the trace alike; several may share one
/// address space. Lengths are in pages, and every address is page aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Declares a memory object before its first use. Numbers count up from 0.
    Object {
        /// The object's number.
        object: u32,
        /// File or shared anonymous memory.
        kind: ObjectKind,
        /// Length in pages.
        pages: u64,
        /// The largest folio its page cache uses.
        order: Order,
    },
    /// A process appears with an empty address space.
    Start {
        /// The new process.
        proc: u32,
    },
    /// A mapping appears.
    Map {
        /// Who.
        proc: u32,
        /// First address.
        at: Gva,
        /// Length.
        pages: u64,
        /// Protection.
        prot: Prot,
        /// What it maps.
        backing: Backing,
        /// Stack or plain.
        kind: MapKind,
        /// `MAP_FIXED`: whatever was there is unmapped first. Without it the range must be free.
        fixed: bool,
    },
    /// `munmap`; holes are fine.
    Unmap {
        /// Who.
        proc: u32,
        /// First address.
        at: Gva,
        /// Length.
        pages: u64,
    },
    /// `mprotect`; holes are skipped.
    Protect {
        /// Who.
        proc: u32,
        /// First address.
        at: Gva,
        /// Length.
        pages: u64,
        /// The new protection.
        prot: Prot,
    },
    /// `mremap` that succeeded: the old range, which must lie in one mapping, becomes the new one; what stood at the new place is
    /// unmapped first. Same address: grow or shrink in place.
    Remap {
        /// Who.
        proc: u32,
        /// Old address.
        from: Gva,
        /// Old length.
        pages: u64,
        /// New address.
        to: Gva,
        /// New length.
        new_pages: u64,
    },
    /// `madvise`; holes are skipped.
    Advise {
        /// Who.
        proc: u32,
        /// First address.
        at: Gva,
        /// Length.
        pages: u64,
        /// What.
        advice: Advice,
    },
    /// The heap becomes `start..end` (`brk`): it grows as private anonymous read-write memory or is cut.
    Brk {
        /// Who.
        proc: u32,
        /// Where the heap begins; the same in every such line of an address space.
        start: Gva,
        /// Where it now ends; `start` when it is gone.
        end: Gva,
    },
    /// `fork`: `child` appears with a copy-on-write copy of the address space.
    Fork {
        /// The parent.
        proc: u32,
        /// The new process.
        child: u32,
    },
    /// A thread or a `vfork` child appears and shares the address space.
    Share {
        /// Whose address space.
        proc: u32,
        /// The new thread or process.
        child: u32,
    },
    /// `exec`: the process leaves its address space and gets an empty one; the mappings that exec makes follow as `Map`.
    Exec {
        /// Who.
        proc: u32,
    },
    /// The process or thread ends; with the last one its address space goes.
    Exit {
        /// Who.
        proc: u32,
    },
    /// Touches `pages` consecutive pages, one access at the start of each.
    Access {
        /// Who.
        proc: u32,
        /// First page.
        at: Gva,
        /// How many.
        pages: u64,
        /// Store (else load).
        write: bool,
    },
    /// Nothing happens, and the folio at an address is [shown](super::look): its leaves, the counts and answers of every scheme. Where nothing is mapped,
    /// it is the folio of the look before.
    Look {
        /// Who asks.
        proc: u32,
        /// Where it is mapped.
        at: Gva,
        /// What to call it.
        label: Label,
        /// Schemes that lose count are told it first, as [`Manager::repair`](crate::space::Manager::repair) does.
        repaired: bool,
    },
}
