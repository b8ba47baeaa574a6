//! Long-mode 4-level paging (Intel SDM vol. 3, 4.5; AMD APM vol. 2, 5.3).

use super::{Attrs, Entry, Format, Leaf};
use crate::addr::{Level, Pfn};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// PCD: with the page-attribute table as it is after reset, uncached.
const UNCACHED: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
/// Bits 9 to 11 are ignored by the MMU and ours.
const EXCLUSIVE: u64 = 1 << 9;
const UNTRACKED: u64 = 1 << 10;
/// Without [`PRESENT`]: a leaf that is frozen. The MMU ignores every bit of an entry that is not present.
const FROZEN: u64 = 1 << 11;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The format that the MMU of every 64-bit x86 CPU walks: 4 levels, leaves of 4 KiB, 2 MiB and 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongMode;

impl Format for LongMode {
    const ROOT: Level = Level::new(4);
    const MAX_LEAF: Level = Level::THREE;

    #[inline]
    fn leaf(leaf: Leaf, level: Level) -> u64 {
        let size = if level == Level::ONE { 0 } else { PAGE_SIZE };
        let nx = if leaf.attrs.has(Attrs::EXEC) { 0 } else { NO_EXECUTE };
        leaf.pfn.address() | PRESENT | size | nx | Self::set_bits(leaf.attrs)
    }

    /// Rights of a tenant's address are those of the leaf: tables allow everything. Accessed is preset,
    /// because nobody reads it from a table and setting it costs the MMU a locked access.
    #[inline]
    fn table(table: Pfn) -> u64 {
        table.address() | PRESENT | WRITE | USER | ACCESSED
    }

    #[inline]
    fn next_table(raw: u64, level: Level) -> Option<Pfn> {
        (raw & (PRESENT | PAGE_SIZE) == PRESENT && level != Level::ONE).then(|| Pfn::from_address(raw & FRAME))
    }

    #[inline]
    fn decode(raw: u64, level: Level) -> Entry {
        if raw & PRESENT == 0 {
            return Entry::Absent;
        }
        let pfn = Pfn::from_address(raw & FRAME);
        if level != Level::ONE && raw & PAGE_SIZE == 0 {
            return Entry::Table(pfn);
        }
        let attrs = Attrs((raw & SAME) as u16);
        Entry::Leaf(Leaf { pfn, attrs: attrs.with_if(raw & NO_EXECUTE == 0, Attrs::EXEC) })
    }

    fn table_rights(raw: u64) -> Attrs {
        Attrs((raw & (WRITE | USER)) as u16).with_if(raw & NO_EXECUTE == 0, Attrs::EXEC)
    }

    #[inline]
    fn freeze(raw: u64) -> u64 {
        raw & !PRESENT | FROZEN
    }

    #[inline]
    fn thaw(raw: u64) -> Option<u64> {
        (raw & (PRESENT | FROZEN) == FROZEN).then_some(raw & !FROZEN | PRESENT)
    }

    #[inline]
    fn set_bits(attrs: Attrs) -> u64 {
        attrs.0 as u64 & SAME
    }

    #[inline]
    fn clear_bits(attrs: Attrs) -> u64 {
        if attrs.has(Attrs::EXEC) { NO_EXECUTE } else { 0 }
    }
}

/// Bits that stand where [`Attrs`] has them.
const SAME: u64 = WRITE | USER | UNCACHED | ACCESSED | DIRTY | EXCLUSIVE | UNTRACKED;
const _: () = {
    assert!(SAME == Attrs::ALL.without(Attrs::EXEC).0 as u64);
    assert!(Attrs::WRITE.0 as u64 == WRITE && Attrs::USER.0 as u64 == USER);
    assert!(Attrs::UNCACHED.0 as u64 == UNCACHED);
    assert!(Attrs::ACCESSED.0 as u64 == ACCESSED && Attrs::DIRTY.0 as u64 == DIRTY);
    assert!(Attrs::EXCLUSIVE.0 as u64 == EXCLUSIVE && Attrs::UNTRACKED.0 as u64 == UNTRACKED);
};
const _: () = assert!(PRESENT | WRITE | USER | ACCESSED | DIRTY | PAGE_SIZE == 0xe7);

#[cfg(test)]
mod tests {
    use super::{Attrs, Entry, Format, Leaf, Level, LongMode, Pfn};

    #[test]
    fn bits_are_as_the_manual_says() {
        let leaf = |attrs| LongMode::leaf(Leaf { pfn: Pfn::new(0x1200), attrs }, Level::TWO);
        assert_eq!(leaf(Attrs::EXEC), 0x0120_0081);
        assert_eq!(leaf(Attrs::USER.or(Attrs::WRITE)), 0x8000_0000_0120_0087);
        assert_eq!(LongMode::table(Pfn::new(0x77)), 0x77027);
        assert_eq!(LongMode::decode(0x77027, Level::new(3)), Entry::Table(Pfn::new(0x77)));
        assert_eq!(LongMode::decode(0x77026, Level::ONE), Entry::Absent);
    }
}
