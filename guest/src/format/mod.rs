//! Entry formats: how an absent entry, a pointer to a table and a leaf are written as 64 bits.
//!
//! A format is pure: bits to meaning and back. The engine in [`page_table`](crate::page_table) does the rest.

mod ept;
mod levels5;
mod long_mode;
mod npt;

pub use ept::Ept;
pub use levels5::Levels5;
pub use long_mode::LongMode;
pub use npt::Npt;

use core::fmt;

use crate::addr::{Level, Pfn};
use crate::flags::flags;

/// What a leaf allows and remembers. Formats say which of these they can express. The bits are those of long mode where it has them, so that the format
/// that is read most takes them out with a mask.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Attrs(u16);

flags!(Attrs);

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
    /// The memory is a device's: accesses are neither cached nor reordered.
    pub const UNCACHED: Self = Self(1 << 4);
    /// Everything.
    pub const ALL: Self = Self(0x677);
    /// Both bits that the MMU sets.
    pub const ACCESSED_DIRTY: Self = Self(1 << 5 | 1 << 6);

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
            (Self::UNCACHED, 'c'),
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
    /// The bits of `attrs` in a leaf: those that no leaf without the attribute has. Clearing them takes it away.
    fn set_bits(attrs: Attrs) -> u64;
    /// The bits of `attrs` in a leaf that are clear when the attribute is set (no-execute).
    fn clear_bits(attrs: Attrs) -> u64;
    /// `raw`, a leaf that was just given bits of attributes, as the MMU must see it: for formats in which what one attribute allows
    /// depends on another.
    #[must_use]
    #[inline]
    fn settle(raw: u64) -> u64 {
        raw
    }
}

/// The functions of a [`Format`] whose entries are those of `$format`.
macro_rules! entries_of {
    ($format:ty) => {
        #[inline]
        fn leaf(leaf: $crate::format::Leaf, level: $crate::addr::Level) -> u64 {
            <$format>::leaf(leaf, level)
        }
        #[inline]
        fn table(table: $crate::addr::Pfn) -> u64 {
            <$format>::table(table)
        }
        #[inline]
        fn decode(raw: u64, level: $crate::addr::Level) -> $crate::format::Entry {
            <$format>::decode(raw, level)
        }
        #[inline]
        fn table_rights(raw: u64) -> $crate::format::Attrs {
            <$format>::table_rights(raw)
        }
        #[inline]
        fn next_table(raw: u64, level: $crate::addr::Level) -> Option<$crate::addr::Pfn> {
            <$format>::next_table(raw, level)
        }
        #[inline]
        fn freeze(raw: u64) -> u64 {
            <$format>::freeze(raw)
        }
        #[inline]
        fn thaw(raw: u64) -> Option<u64> {
            <$format>::thaw(raw)
        }
        #[inline]
        fn set_bits(attrs: $crate::format::Attrs) -> u64 {
            <$format>::set_bits(attrs)
        }
        #[inline]
        fn clear_bits(attrs: $crate::format::Attrs) -> u64 {
            <$format>::clear_bits(attrs)
        }
        #[inline]
        fn settle(raw: u64) -> u64 {
            <$format>::settle(raw)
        }
    };
}
use entries_of;

#[cfg(test)]
mod tests {
    use super::{Attrs, Entry, Ept, Format, Leaf, Level, Levels5, LongMode, Npt, Pfn};

    const LEAVES: [Level; 3] = [Level::ONE, Level::TWO, Level::THREE];

    /// Every set of attributes in a leaf of every level.
    fn all_leaves(mut look: impl FnMut(Leaf, Level)) {
        for level in LEAVES {
            for attrs in Attrs::all_subsets() {
                for pfn in [0, 0x4_0000, 0xf_ffc0_0000] {
                    look(Leaf { pfn: Pfn::new(pfn), attrs }, level);
                }
            }
        }
    }

    fn every_set_of_attributes_survives<F: Format>() {
        all_leaves(|leaf, level| {
            let raw = F::leaf(leaf, level);
            assert_ne!(raw, 0);
            assert_eq!(F::decode(raw, level), Entry::Leaf(leaf));
            assert_eq!(F::next_table(raw, level), None);
            assert_eq!(raw & F::set_bits(Attrs::ALL.without(leaf.attrs)) & !F::set_bits(leaf.attrs), 0);
        });
    }

    fn a_frozen_leaf_is_absent_and_thaws_to_what_it_was<F: Format>() {
        all_leaves(|leaf, level| {
            let raw = F::leaf(leaf, level);
            assert_eq!(F::decode(F::freeze(raw), level), Entry::Absent);
            assert_eq!(F::next_table(F::freeze(raw), level), None);
            assert_eq!(F::thaw(F::freeze(raw)), Some(raw));
            assert_eq!(F::thaw(raw), None);
        });
        assert_eq!(F::thaw(0), None);
        assert_eq!(F::thaw(0x77000), None, "a link of unlinked tables");
        assert_eq!(F::thaw(F::table(Pfn::new(0x77))), None);
    }

    /// What `Part::change` does gives the leaf that would have been written with these attributes, also while it is frozen.
    fn attributes_come_and_go<F: Format>() {
        all_leaves(|leaf, level| {
            for (remove, add) in Attrs::all_subsets().flat_map(|a| [(a, Attrs::NONE), (Attrs::NONE, a)]) {
                let (clear, set) = (F::set_bits(remove) | F::clear_bits(add), F::set_bits(add) | F::clear_bits(remove));
                let change = |raw| F::settle(raw & !clear | set);
                let changed = Leaf { attrs: leaf.attrs.without(remove).or(add), ..leaf };
                let raw = F::leaf(leaf, level);
                assert_eq!(change(raw), F::leaf(changed, level), "{leaf:?} less {remove:?} and with {add:?}");
                assert_eq!(change(F::freeze(raw)), F::freeze(F::leaf(changed, level)));
                // Without a settling: bits may go, as in `Part::copy_to`.
                assert!(
                    add != Attrs::NONE
                        || remove.has(Attrs::EXEC)
                        || remove.has(Attrs::UNCACHED)
                        || raw & !clear == F::leaf(changed, level)
                );
            }
        });
    }

    fn a_run_advances_by_the_leaf_step<F: Format>() {
        for level in LEAVES {
            let at = |i: u64| F::leaf(Leaf { pfn: Pfn::new(i << level.page_shift()), attrs: Attrs::USER }, level);
            assert_eq!(at(7) + F::leaf_step(level), at(8));
        }
    }

    fn tables_are_tables<F: Format>() {
        let table = Pfn::new(0xf_ffff_ffff);
        let mut level = F::ROOT;
        while let Some(below) = level.below() {
            assert_eq!(F::decode(F::table(table), level), Entry::Table(table));
            assert_eq!(F::next_table(F::table(table), level), Some(table));
            assert_eq!(F::decode(0, level), Entry::Absent);
            assert_eq!(F::decode(0x77000, level), Entry::Absent, "a link of unlinked tables");
            level = below;
        }
        assert_eq!(level, Level::ONE);
    }

    fn is_a_format<F: Format>(levels: u8) {
        assert_eq!(F::ROOT.get(), levels);
        assert_eq!(F::MAX_LEAF, Level::THREE);
        every_set_of_attributes_survives::<F>();
        a_frozen_leaf_is_absent_and_thaws_to_what_it_was::<F>();
        attributes_come_and_go::<F>();
        a_run_advances_by_the_leaf_step::<F>();
        tables_are_tables::<F>();
    }

    #[test]
    fn every_format_is_one() {
        is_a_format::<LongMode>(4);
        is_a_format::<Npt>(4);
        is_a_format::<Ept>(4);
        is_a_format::<Levels5<LongMode>>(5);
        is_a_format::<Levels5<Npt>>(5);
        is_a_format::<Levels5<Ept>>(5);
    }
}
