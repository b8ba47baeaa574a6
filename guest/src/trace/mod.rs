//! The memory operations of a workload: what a trace says, how it is written down, how it is replayed.

mod op;

pub use op::{Advice, Backing, MapKind, ObjectKind, Op, Prot};

/// The first word of page `page` of file object `object`, before anything is stored to it. Never zero.
#[must_use]
pub const fn file_word(object: u32, page: u64) -> u64 {
    // splitmix64's finaliser: neighbouring pages and objects get unrelated words.
    let mut x = ((object as u64) << 44) ^ page ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) | 1
}
