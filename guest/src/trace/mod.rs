//! The memory operations of a workload: what a trace says, how it is written down, how it is replayed.

#[cfg(feature = "model")]
pub mod check;
pub mod encode;
mod form;
pub mod look;
mod op;
mod replay;
pub mod session;
pub mod text;

pub use form::{Flaw, MAX_DEVICE_PAGES, MAX_OBJECT_PAGES, MAX_OBJECTS, MAX_OPS, MAX_PROCS, MAX_RUN_PAGES};
pub use op::{Backing, Label, MapKind, Op};
pub use replay::{Event, Replay, ReplayError, Tenant};

/// What a store of a trace leaves in the first word of page number `page` (`gva >> 12`). Never zero, so that a page that
/// lost its contents differs from one that was written.
#[must_use]
pub const fn stamp(seed: u64, page: u64) -> u64 {
    (seed ^ page).wrapping_mul(STAMP_FACTOR) | 1
}

/// The multiplier of [`stamp`]: 2^64 over the golden ratio.
pub const STAMP_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
