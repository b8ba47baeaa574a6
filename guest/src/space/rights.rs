//! The words in which an operation on an address space is described, for whoever asks for it: a workload, a test, an embedder.

use crate::addr::Gva;

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Prot {
    /// Loads are allowed.
    pub read: bool,
    /// Stores are allowed.
    pub write: bool,
    /// Fetches are allowed.
    pub exec: bool,
}

impl Prot {
    /// No access at all (`PROT_NONE`).
    pub const NONE: Self = Self { read: false, write: false, exec: false };

    /// Whether an access is allowed, as x86-64 Linux sees it: a page that may be touched in any way can be read, since the
    /// hardware knows no unreadable present page.
    #[must_use]
    pub const fn allows(self, write: bool) -> bool {
        if write { self.write } else { self.read || self.write || self.exec }
    }
}

/// What stands behind a memory object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A file: page `i` of object `o` reads as [`file_word`]`(o, i)` in its first word until written.
    File,
    /// Shared anonymous memory (`MAP_SHARED | MAP_ANONYMOUS`, memfd, shm): reads as zero until written.
    Shared,
}

/// `madvise` values that change mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// `MADV_DONTNEED`: the pages are dropped.
    DontNeed,
    /// `MADV_HUGEPAGE`.
    HugePage,
    /// `MADV_NOHUGEPAGE`.
    NoHugePage,
}

/// The first word of page `page` of file object `object`, before anything is stored to it. Never zero.
#[must_use]
pub const fn file_word(object: u32, page: u64) -> u64 {
    // splitmix64's finaliser: neighbouring pages and objects get unrelated words.
    let mut x = ((object as u64) << 44) ^ page ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) | 1
}

/// Furthest page below its start that a stack mapping grows to in one step: Linux's default stack limit of 8 MiB.
pub const STACK_REACH_PAGES: u64 = 2048;
/// Pages that a growing stack leaves free above its lower neighbour: Linux's `stack_guard_gap`.
pub const STACK_GAP_PAGES: u64 = 256;

/// Whether a [`Map::Stack`](super::Map::Stack) mapping that begins at `start` grows down to the page of `touched`, which no mapping holds,
/// when its lower neighbour ends at `below` (address 0 when there is none). It then begins at that page.
///
/// Linux limits the size of the whole stack and looks at what the neighbour is; this rule needs only addresses, and the
/// manager and the reference both follow it.
#[must_use]
pub const fn stack_grows(start: Gva, touched: Gva, below: Gva) -> bool {
    let (start, touched, below) = (start.page(), touched.page(), below.page());
    touched < start && start - touched <= STACK_REACH_PAGES && touched >= below && touched - below >= STACK_GAP_PAGES
}
