//! Extended page tables of VMX (Intel SDM vol. 3, 29.3).

use super::{Attrs, Entry, Format, Leaf};
use crate::addr::{Level, Pfn};

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// An entry with none of the three is not present, and the MMU ignores all the rest of it.
const RIGHTS: u64 = READ | WRITE | EXECUTE;
/// Of leaves: the memory type is what stands here, whatever the guest's PAT says, as every other mapping of the memory has it. Reserved in pointers to
/// tables, so this tells leaves from them, and from nothing when they allow nothing.
const IGNORE_PAT: u64 = 1 << 6;
/// Memory type 6; 0 is uncached.
const WRITE_BACK: u64 = 6 << 3;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// On entries that are not present: a frozen leaf.
const FROZEN: u64 = 1 << 11;
/// Bits 52 to 56 of leaves are ignored and ours.
const EXCLUSIVE: u64 = 1 << 52;
const UNTRACKED: u64 = 1 << 53;
/// The attributes that [`RIGHTS`] is made of, in its order and this many bits above. A leaf without [`Attrs::USER`] has none of the rights and
/// keeps the others here: a right to write without the right to read is a misconfiguration, and one to execute without it is not to be
/// had on every CPU.
const KEPT_ABOVE: u32 = 54;
const USER: u64 = READ << KEPT_ABOVE;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Extended page tables: guest-physical to physical addresses. 4 levels, leaves of 4 KiB, 2 MiB and 1 GiB.
///
/// Accessed and dirty are set by the MMU only if the pointer to the tables asks for it. [`Attrs::USER`] is the right to read: without it every
/// access exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept;

impl Format for Ept {
    const ROOT: Level = Level::new(4);
    const MAX_LEAF: Level = Level::THREE;

    #[inline]
    fn leaf(leaf: Leaf, level: Level) -> u64 {
        let size = if level == Level::ONE { 0 } else { LARGE };
        let kind = if leaf.attrs.has(Attrs::UNCACHED) { 0 } else { WRITE_BACK };
        Self::settle(leaf.pfn.address() | IGNORE_PAT | kind | size | Self::set_bits(leaf.attrs))
    }

    /// Tables allow everything, and are accessed from the start, as in [`LongMode`](super::LongMode).
    #[inline]
    fn table(table: Pfn) -> u64 {
        table.address() | RIGHTS | ACCESSED
    }

    #[inline]
    fn next_table(raw: u64, level: Level) -> Option<Pfn> {
        (raw & RIGHTS != 0 && raw & IGNORE_PAT == 0 && level != Level::ONE).then(|| Pfn::from_address(raw & FRAME))
    }

    #[inline]
    fn decode(raw: u64, level: Level) -> Entry {
        if let Some(next) = Self::next_table(raw, level) {
            return Entry::Table(next);
        }
        if raw & IGNORE_PAT == 0 || raw & (RIGHTS | FROZEN) == FROZEN {
            return Entry::Absent;
        }
        let attrs = BITS.iter().fold(Attrs::NONE, |attrs, (attr, bit)| attrs.with_if(raw & bit != 0, *attr));
        let attrs = attrs.with_if(raw & WRITE_BACK == 0, Attrs::UNCACHED);
        Entry::Leaf(Leaf { pfn: Pfn::from_address(raw & FRAME), attrs })
    }

    fn table_rights(raw: u64) -> Attrs {
        let rights = [(READ, Attrs::USER), (WRITE, Attrs::WRITE), (EXECUTE, Attrs::EXEC)];
        rights.into_iter().fold(Attrs::NONE, |all, (bit, attr)| all.with_if(raw & bit != 0, attr))
    }

    #[inline]
    fn freeze(raw: u64) -> u64 {
        raw & !RIGHTS | FROZEN
    }

    #[inline]
    fn thaw(raw: u64) -> Option<u64> {
        (raw & (RIGHTS | FROZEN) == FROZEN).then(|| Self::settle(raw & !FROZEN))
    }

    /// Without [`Attrs::USER`] no right is left, without another just that one.
    #[inline]
    fn set_bits(attrs: Attrs) -> u64 {
        let bits = BITS.iter().fold(0, |bits, (attr, bit)| if attrs.has(*attr) { bits | bit } else { bits });
        let rights = if attrs.has(Attrs::USER) { RIGHTS } else { bits >> KEPT_ABOVE & RIGHTS };
        bits | rights
    }

    #[inline]
    fn clear_bits(attrs: Attrs) -> u64 {
        if attrs.has(Attrs::UNCACHED) { WRITE_BACK } else { 0 }
    }

    #[inline]
    fn settle(raw: u64) -> u64 {
        let allows = raw & (USER | FROZEN) == USER;
        raw & !RIGHTS | if allows { raw >> KEPT_ABOVE & RIGHTS } else { 0 }
    }
}

/// Where each attribute is kept.
const BITS: [(Attrs, u64); 7] = [
    (Attrs::USER, USER),
    (Attrs::WRITE, WRITE << KEPT_ABOVE),
    (Attrs::EXEC, EXECUTE << KEPT_ABOVE),
    (Attrs::ACCESSED, ACCESSED),
    (Attrs::DIRTY, DIRTY),
    (Attrs::EXCLUSIVE, EXCLUSIVE),
    (Attrs::UNTRACKED, UNTRACKED),
];

#[cfg(test)]
mod tests {
    use super::{Attrs, BITS, Ept, Format, Leaf, Level, Pfn};

    #[test]
    fn bits_are_as_the_manual_says() {
        let leaf = |attrs, level| Ept::leaf(Leaf { pfn: Pfn::new(0x1200), attrs }, level);
        let kept = |rights: u64| rights << 54;
        let (r, rw, rx) = (Attrs::USER, Attrs::USER.or(Attrs::WRITE), Attrs::USER.or(Attrs::EXEC));
        // Write-back and ignore-PAT are 0x70, a large leaf 0x80.
        assert_eq!(leaf(r, Level::ONE), 0x0120_0071 | kept(1));
        assert_eq!(leaf(rw, Level::TWO), 0x0120_00f3 | kept(3));
        assert_eq!(leaf(rx, Level::THREE), 0x0120_00f5 | kept(5));
        assert_eq!(leaf(rw.or(Attrs::EXEC), Level::ONE), 0x0120_0077 | kept(7));
        assert_eq!(leaf(r.or(Attrs::ACCESSED), Level::ONE), 0x0120_0171 | kept(1));
        assert_eq!(leaf(rw.or(Attrs::ACCESSED_DIRTY), Level::ONE), 0x0120_0373 | kept(3));
        // Nothing is allowed: not present.
        assert_eq!(leaf(Attrs::WRITE.or(Attrs::EXEC), Level::TWO), 0x0120_00f0 | kept(6));
        assert_eq!(leaf(rw.or(Attrs::UNCACHED), Level::ONE), 0x0120_0043 | kept(3));
        assert_eq!(Ept::table(Pfn::new(0x77)), 0x77107);
        // Nothing of ours stands where a leaf has a meaning: bit 10 and bits 57 to 63.
        assert!(BITS.iter().all(|(_, bit)| bit & (1 << 10 | !0 << 57) == 0));
    }

    /// Why the MMU would call a present entry misconfigured (29.3.3.1), on a CPU without execute-only translations.
    fn misconfigured(raw: u64, level: Level) -> Option<&'static str> {
        let table = level != Level::ONE && raw & 0x80 == 0;
        match raw & 7 {
            0 => None,
            2 | 6 => Some("write without read"),
            4 => Some("execute only"),
            _ if table && raw & 0xf8 != 0 => Some("reserved bits of a pointer to a table"),
            _ if !table && matches!(raw >> 3 & 7, 2 | 3 | 7) => Some("no such memory type"),
            _ if !table && (raw >> 12 & 0xff_ffff_ffff) & (level.entry_pages() - 1) != 0 => {
                Some("reserved address bits")
            }
            _ => None,
        }
    }

    #[test]
    fn no_entry_is_misconfigured() {
        for level in [Level::ONE, Level::TWO, Level::THREE] {
            for attrs in Attrs::all_subsets() {
                let raw = Ept::leaf(Leaf { pfn: Pfn::new(0x4_0000), attrs }, level);
                let parts = Attrs::all_subsets();
                let narrowed = parts.map(|remove| raw & !Ept::set_bits(remove));
                for raw in [raw, Ept::freeze(raw)].into_iter().chain(narrowed) {
                    assert_eq!(misconfigured(raw, level), None, "{raw:#x}");
                }
                assert_eq!(raw & 7 != 0, attrs.has(Attrs::USER));
            }
        }
        for level in 2..=5 {
            assert_eq!(misconfigured(Ept::table(Pfn::new(0x77)), Level::new(level)), None);
        }
        assert_eq!(misconfigured(0x1032, Level::ONE), Some("write without read"));
        assert_eq!(misconfigured(0x1011, Level::ONE), Some("no such memory type"));
        assert_eq!(misconfigured(0x10b1, Level::TWO), Some("reserved address bits"));
        assert_eq!(misconfigured(0x1037, Level::TWO), Some("reserved bits of a pointer to a table"));
    }
}
