//! What an operation must satisfy by itself, whatever came before it.
//!
//! The text reader and the decoder of the encoded form both end here, so no [`Op`] that leaves them has an unaligned
//! address, an empty range or one above the tenant's half, and whoever replays it can compute with it without a check.
//! What depends on earlier operations (does this process live?) is the business of `trace::check`.

use core::fmt;

use super::{Backing, MapKind, Op};
use crate::addr::{GVA_END, Gva, PAGE_SHIFT};

/// Process numbers are below this.
pub const MAX_PROCS: u32 = 1 << 16;
/// Object numbers are below this.
pub const MAX_OBJECTS: u32 = 1 << 16;
/// The longest object, in pages: as long as the tenant's half.
pub const MAX_OBJECT_PAGES: u64 = GVA_END >> PAGE_SHIFT;
/// The device window has this many frames: 16 MiB.
pub const MAX_DEVICE_PAGES: u64 = 1 << 12;
/// The longest run of one [`Op::Access`], in pages: 4 GiB.
pub const MAX_RUN_PAGES: u64 = 1 << 20;
/// The most operations in one trace.
pub const MAX_OPS: u64 = 1 << 22;

/// What is wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A process number is not below [`MAX_PROCS`].
    Proc,
    /// A process becomes its own child.
    OwnChild,
    /// An object number is not below [`MAX_OBJECTS`].
    Object,
    /// A range, an object or a run has no pages.
    Empty,
    /// An address is not a multiple of the page size.
    Unaligned,
    /// A range reaches above the tenant's half of the address space.
    AboveHalf,
    /// An object is longer than [`MAX_OBJECT_PAGES`], or a mapping of it reaches further.
    ObjectLength,
    /// A device mapping reaches beyond [`MAX_DEVICE_PAGES`].
    DeviceLength,
    /// A run is longer than [`MAX_RUN_PAGES`].
    RunLength,
    /// A stack mapping that is not private anonymous memory.
    StackBacking,
    /// A move whose old and new range overlap.
    Overlap,
    /// A heap that ends before it starts.
    HeapBackwards,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proc => write!(f, "process number is not below {MAX_PROCS}"),
            Self::OwnChild => write!(f, "a process cannot be its own child"),
            Self::Object => write!(f, "object number is not below {MAX_OBJECTS}"),
            Self::Empty => write!(f, "zero pages"),
            Self::Unaligned => write!(f, "address is not a multiple of 0x1000"),
            Self::AboveHalf => write!(f, "range reaches above {GVA_END:#x}"),
            Self::ObjectLength => write!(f, "object is longer than {MAX_OBJECT_PAGES} pages"),
            Self::DeviceLength => write!(f, "device mapping reaches beyond frame {MAX_DEVICE_PAGES}"),
            Self::RunLength => write!(f, "run is longer than {MAX_RUN_PAGES} pages"),
            Self::StackBacking => write!(f, "a stack must be anonymous memory"),
            Self::Overlap => write!(f, "old and new range overlap"),
            Self::HeapBackwards => write!(f, "heap ends before it starts"),
        }
    }
}

impl core::error::Error for Flaw {}

impl Op {
    /// The process or thread that does this; `None` for [`Op::Object`].
    #[must_use]
    pub const fn proc(&self) -> Option<u32> {
        match *self {
            Self::Object { .. } => None,
            Self::Start { proc }
            | Self::Map { proc, .. }
            | Self::Unmap { proc, .. }
            | Self::Protect { proc, .. }
            | Self::Remap { proc, .. }
            | Self::Advise { proc, .. }
            | Self::Brk { proc, .. }
            | Self::Fork { proc, .. }
            | Self::Share { proc, .. }
            | Self::Exec { proc }
            | Self::Exit { proc }
            | Self::Access { proc, .. }
            | Self::Look { proc, .. } => Some(proc),
        }
    }

    /// Whether the operation is well formed by itself; see [`Flaw`] for all that is asked.
    ///
    /// # Errors
    /// The first flaw found.
    pub const fn check(&self) -> Result<(), Flaw> {
        if let Some(proc) = self.proc()
            && proc >= MAX_PROCS
        {
            return Err(Flaw::Proc);
        }
        match *self {
            Self::Object { object, kind: _, pages, order: _ } => check_object(object, pages),
            Self::Start { .. } | Self::Exec { .. } | Self::Exit { .. } => Ok(()),
            Self::Map { at, pages, backing, kind, .. } => match check_range(at, pages) {
                Ok(()) => check_backing(pages, backing, kind),
                flaw => flaw,
            },
            Self::Unmap { at, pages, .. } | Self::Protect { at, pages, .. } | Self::Advise { at, pages, .. } => {
                check_range(at, pages)
            }
            Self::Remap { from, pages, to, new_pages, .. } => {
                match (check_range(from, pages), check_range(to, new_pages)) {
                    (Ok(()), Ok(())) => check_move(from, pages, to, new_pages),
                    (Err(flaw), _) | (_, Err(flaw)) => Err(flaw),
                }
            }
            Self::Brk { start, end, .. } => {
                if !start.is_page_aligned() || !end.is_page_aligned() {
                    Err(Flaw::Unaligned)
                } else if end.raw() < start.raw() {
                    Err(Flaw::HeapBackwards)
                } else {
                    Ok(())
                }
            }
            Self::Fork { proc, child } | Self::Share { proc, child } => {
                if child >= MAX_PROCS {
                    Err(Flaw::Proc)
                } else if child == proc {
                    Err(Flaw::OwnChild)
                } else {
                    Ok(())
                }
            }
            Self::Look { at, .. } => check_range(at, 1),
            Self::Access { at, pages, .. } => {
                if pages > MAX_RUN_PAGES {
                    Err(Flaw::RunLength)
                } else {
                    check_range(at, pages)
                }
            }
        }
    }
}

const fn check_range(at: Gva, pages: u64) -> Result<(), Flaw> {
    if pages == 0 {
        Err(Flaw::Empty)
    } else if !at.is_page_aligned() {
        Err(Flaw::Unaligned)
    } else if pages > Gva::new(GVA_END).pages_from(at) {
        Err(Flaw::AboveHalf)
    } else {
        Ok(())
    }
}

const fn check_object(object: u32, pages: u64) -> Result<(), Flaw> {
    if object >= MAX_OBJECTS {
        Err(Flaw::Object)
    } else if pages == 0 {
        Err(Flaw::Empty)
    } else if pages > MAX_OBJECT_PAGES {
        Err(Flaw::ObjectLength)
    } else {
        Ok(())
    }
}

const fn check_backing(pages: u64, backing: Backing, kind: MapKind) -> Result<(), Flaw> {
    match (backing, kind) {
        (Backing::Anon, _) => Ok(()),
        (_, MapKind::Stack) => Err(Flaw::StackBacking),
        (Backing::Object { object, offset, private: _ }, MapKind::Plain) => {
            if object >= MAX_OBJECTS {
                Err(Flaw::Object)
            } else if offset > MAX_OBJECT_PAGES || pages > MAX_OBJECT_PAGES - offset {
                Err(Flaw::ObjectLength)
            } else {
                Ok(())
            }
        }
        (Backing::Device { first }, MapKind::Plain) => {
            if first > MAX_DEVICE_PAGES || pages > MAX_DEVICE_PAGES - first {
                Err(Flaw::DeviceLength)
            } else {
                Ok(())
            }
        }
    }
}

const fn check_move(from: Gva, pages: u64, to: Gva, new_pages: u64) -> Result<(), Flaw> {
    let apart = from.page() + pages <= to.page() || to.page() + new_pages <= from.page();
    if apart || from.raw() == to.raw() { Ok(()) } else { Err(Flaw::Overlap) }
}
