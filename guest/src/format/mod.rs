//! Entry formats: how an absent entry, a pointer to a table and a leaf are written as 64 bits.
//!
//! A format is pure: bits to meaning and back. The engine in [`page_table`](crate::page_table) does the rest.

mod long_mode;

pub use long_mode::LongMode;

use core::fmt;

use crate::addr::{Level, Pfn};

/// What a leaf allows and remembers. Formats say which of these they can express. The bits are those of long mode where it has them, so that the format
/// that is read most takes them out with a mask.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Attrs(u16);

impl Attrs {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Stores are allowed.
    pub const WRITE: Self = Self(1 << 1);
    /// The tenant may access it at all; without it a leaf is mapped and counted but every access faults (`PROT_NONE`).
    pub const USER: Self = Self(1 << 2);
    /// Fetches are allowed.
    pub const EXEC: Self = Self(1);
    /// The MMU has used the leaf, or we said so in advance.
    pub const ACCESSED: Self = Self(1 << 5);
    /// The MMU has stored through the leaf, or we said so in advance.
    pub const DIRTY: Self = Self(1 << 6);
    /// This mapping is the only one of its anonymous page (AnonExclusive; a software bit of the leaf: SCHEMES.md, the exclusive bit).
    pub const EXCLUSIVE: Self = Self(1 << 9);
    /// The leaf maps a frame without a folio, in a region of class Pfn or Mixed: it is never counted (a software bit).
    pub const UNTRACKED: Self = Self(1 << 10);
    /// Everything.
    pub const ALL: Self = Self(0x667);
    /// Both bits that the MMU sets.
    pub const ACCESSED_DIRTY: Self = Self(1 << 5 | 1 << 6);

    /// All of both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in `self`.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// `self`, with `other` if `condition`.
    #[must_use]
    pub const fn with_if(self, condition: bool, other: Self) -> Self {
        if condition { self.or(other) } else { self }
    }

    /// Every combination of attributes, for tests that want them all.
    pub fn all_subsets() -> impl Iterator<Item = Self> {
        (0..=Self::ALL.0).map(Self).filter(|attrs| Self::ALL.has(*attrs))
    }
}

impl fmt::Debug for Attrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [
            (Self::WRITE, 'w'),
            (Self::USER, 'u'),
            (Self::EXEC, 'x'),
            (Self::ACCESSED, 'a'),
            (Self::DIRTY, 'd'),
            (Self::EXCLUSIVE, 'E'),
            (Self::UNTRACKED, 'p'),
        ];
        letters.into_iter().try_for_each(|(attr, letter)| write!(f, "{}", if self.has(attr) { letter } else { '-' }))
    }
}

/// A leaf: the first frame it maps and its attributes. How many frames it maps follows from its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First frame.
    pub pfn: Pfn,
    /// Attributes.
    pub attrs: Attrs,
}

/// An entry is one of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Absent,
    /// The next table.
    Table(Pfn),
    /// Memory.
    Leaf(Leaf),
}

/// An entry format. `encode` and `decode` are inverse for every attribute the format can express.
pub trait Format: Copy + fmt::Debug + Send + Sync + 'static {
    /// The level of the root table.
    const ROOT: Level;
    /// The highest level at which leaves exist.
    const MAX_LEAF: Level;
    /// How much the entry of the next leaf in a run is larger: leaves at `level` of consecutive memory.
    #[must_use]
    fn leaf_step(level: Level) -> u64 {
        level.entry_pages() << 12
    }

    /// The entry for `leaf` at `level`.
    fn leaf(leaf: Leaf, level: Level) -> u64;
    /// The entry for a pointer to `table`.
    fn table(table: Pfn) -> u64;
    /// What `raw` at `level` means. A frozen leaf is absent, as it is to the MMU.
    fn decode(raw: u64, level: Level) -> Entry;
    /// The table that `raw` at `level` points to, if it does: all that a walk wants to know on its way down.
    #[must_use]
    fn next_table(raw: u64, level: Level) -> Option<Pfn> {
        match Self::decode(raw, level) {
            Entry::Table(next) => Some(next),
            _ => None,
        }
    }
    /// The rights that `raw`, a pointer to a table, leaves to what stands below it. The library's own pointers leave all of them, others' may not.
    #[must_use]
    fn table_rights(raw: u64) -> Attrs {
        let _ = raw;
        Attrs::WRITE.or(Attrs::USER).or(Attrs::EXEC)
    }
    /// The leaf `raw`, frozen: absent to the MMU, with all that it says kept.
    fn freeze(raw: u64) -> u64;
    /// The leaf that `raw` was before it was frozen; `None` for anything else.
    fn thaw(raw: u64) -> Option<u64>;
    /// The bits of `attrs` in a leaf: those that are set when the attribute is.
    fn set_bits(attrs: Attrs) -> u64;
    /// The bits of `attrs` in a leaf that are clear when the attribute is set (no-execute).
    fn clear_bits(attrs: Attrs) -> u64;
}
