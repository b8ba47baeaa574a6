//! Nested page tables of SVM (AMD APM vol. 2, 15.25).

use super::{Format, LongMode, entries_of};
use crate::addr::Level;

/// Nested page tables: guest-physical to physical addresses, by entries of long mode.
///
/// The MMU walks them as user accesses (15.25.5), so that a leaf without [`USER`](super::Attrs::USER) allows nothing, and treats its own
/// accesses to the guest's tables as stores: the leaves that map these become dirty, and must allow writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt;

impl Format for Npt {
    const ROOT: Level = Level::new(4);
    const MAX_LEAF: Level = Level::THREE;

    entries_of!(LongMode);
}

#[cfg(test)]
mod tests {
    use super::{Format, Level, Npt};
    use crate::addr::Pfn;
    use crate::format::{Attrs, Leaf};

    /// Present, write, user, accessed, dirty, large: bits 0, 1, 2, 5, 6, 7; no-execute: bit 63.
    #[test]
    fn bits_are_as_the_manual_says() {
        let leaf = |attrs, level| Npt::leaf(Leaf { pfn: Pfn::new(0x1200), attrs }, level);
        let all = Attrs::USER.or(Attrs::WRITE).or(Attrs::EXEC);
        assert_eq!(leaf(all, Level::ONE), 0x0120_0007);
        assert_eq!(leaf(all.or(Attrs::ACCESSED_DIRTY), Level::THREE), 0x0120_00e7);
        assert_eq!(leaf(Attrs::USER, Level::TWO), 0x8000_0000_0120_0085);
        assert_eq!(leaf(all.without(Attrs::USER), Level::ONE) & 4, 0, "no access as a user");
        assert_eq!(Npt::table(Pfn::new(0x77)), 0x77027);
    }
}
