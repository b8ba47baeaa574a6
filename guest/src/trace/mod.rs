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

use crate::addr::Gva;

pub use form::{Flaw, MAX_DEVICE_PAGES, MAX_OBJECT_PAGES, MAX_OBJECTS, MAX_OPS, MAX_PROCS, MAX_RUN_PAGES};
pub use op::{Advice, Backing, Label, MapKind, ObjectKind, Op, Prot};
pub use replay::{Event, Replay, ReplayError, Tenant};

/// The first word of page `page` of file object `object`, before anything is stored to it. Never zero.
#[must_use]
pub const fn file_word(object: u32, page: u64) -> u64 {
    // splitmix64's finaliser: neighbouring pages and objects get unrelated words.
    let mut x = ((object as u64) << 44) ^ page ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) | 1
}

/// What a store of a trace leaves in the first word of page number `page` (`gva >> 12`). Never zero, so that a page that
/// lost its contents differs from one that was written.
#[must_use]
pub const fn stamp(seed: u64, page: u64) -> u64 {
    (seed ^ page).wrapping_mul(STAMP_FACTOR) | 1
}

/// The multiplier of [`stamp`]: 2^64 over the golden ratio.
pub const STAMP_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Furthest page below its start that a stack mapping grows to in one step: Linux's default stack limit of 8 MiB.
pub const STACK_REACH_PAGES: u64 = 2048;
/// Pages that a growing stack leaves free above its lower neighbour: Linux's `stack_guard_gap`.
pub const STACK_GAP_PAGES: u64 = 256;

/// Whether a [`MapKind::Stack`] mapping that begins at `start` grows down to the page of `touched`, which no mapping holds,
/// when its lower neighbour ends at `below` (address 0 when there is none). It then begins at that page.
///
/// Linux limits the size of the whole stack and looks at what the neighbour is; this rule needs only addresses, and the
/// manager and the reference both follow it.
#[must_use]
pub const fn stack_grows(start: Gva, touched: Gva, below: Gva) -> bool {
    let (start, touched, below) = (start.page(), touched.page(), below.page());
    touched < start && start - touched <= STACK_REACH_PAGES && touched >= below && touched - below >= STACK_GAP_PAGES
}
