//! The memory operations of a workload: what a trace says, how it is written down, how it is replayed.

mod op;
mod replay;

pub use op::{Advice, Backing, MapKind, ObjectKind, Op, Prot};
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

/// Whether a fault at page `page` extends the stack that starts at page `start` down to it: within 8 MiB, and with 256 pages
/// to spare above the end `below` of the next mapping (Linux's default stack limit and stack guard gap).
#[must_use]
pub const fn stack_may_grow(page: u64, start: u64, below: Option<u64>) -> bool {
    let gap = match below {
        Some(below) => below + 256 <= page,
        None => true,
    };
    page < start && start - page <= 2048 && gap
}

/// What a tenant with `seed` stores to the first word of page `page` of its address space. Never zero.
#[must_use]
pub const fn stamp(seed: u64, page: u64) -> u64 {
    (seed ^ page).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}
