//! The page tables a CPU starts on.

use super::{ALIAS_SLOT, KERNEL_SLOT, LARGE_PAGE, MAX_MEMORY, START_TABLES_GPA};
use crate::addr::PAGE_SIZE;

/// Words in one table.
pub const WORDS_PER_TABLE: usize = 512;

const TABLE_PAGES: u64 = WORDS_PER_TABLE as u64 * LARGE_PAGE;
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// A table of supervisor pages.
const TABLE: u64 = PRESENT | WRITE | ACCESSED;
const LEAF: u64 = PRESENT | WRITE | ACCESSED | DIRTY | LARGE;

/// The page tables a CPU starts on, at [`START_TABLES_GPA`]: the low gigabyte at its own address and at the
/// kernel's link address, and all memory in the alias map. All 2 MiB leaves.
///
/// The kernel replaces the first two with tables of its own as soon as it runs, and keeps the third: so its
/// lower levels carry the user bit from the start, and the root's entry alone decides which ring may use it.
///
/// The order of the tables: root, two tables of level 3 (kernel, alias), the low gigabyte, then one table of
/// level 2 for each gigabyte of memory.
#[derive(Clone, Copy, Debug)]
pub struct StartTables {
    memory_end: u64,
}

impl StartTables {
    const ROOT: u64 = START_TABLES_GPA;
    const LOW_3: u64 = Self::ROOT + PAGE_SIZE;
    const KERNEL_3: u64 = Self::LOW_3 + PAGE_SIZE;
    const ALIAS_3: u64 = Self::KERNEL_3 + PAGE_SIZE;
    const LOW_2: u64 = Self::ALIAS_3 + PAGE_SIZE;
    const ALIAS_2: u64 = Self::LOW_2 + PAGE_SIZE;

    /// Tables for memory that ends at `memory_end`.
    ///
    /// # Panics
    /// Above [`MAX_MEMORY`].
    #[must_use]
    pub const fn new(memory_end: u64) -> Self {
        assert!(memory_end <= MAX_MEMORY, "more memory than the start tables can map");
        Self { memory_end }
    }

    /// Physical address of the root table.
    #[must_use]
    pub const fn root(self) -> u64 {
        Self::ROOT
    }

    /// Bytes that the tables for `memory_end` take.
    #[must_use]
    pub const fn bytes(memory_end: u64) -> u64 {
        Self::ALIAS_2 + memory_end.div_ceil(TABLE_PAGES) * PAGE_SIZE - Self::ROOT
    }

    /// The root's entry for the alias map, as the start tables have it.
    #[must_use]
    pub const fn alias_entry(self) -> u64 {
        Self::ALIAS_3 | TABLE
    }

    /// Hands every entry that is not zero to `store`, with its physical address. The room must be zero before.
    pub fn write(self, mut store: impl FnMut(u64, u64)) {
        let entry = |table: u64, index: usize| table + 8 * index as u64;
        store(entry(Self::ROOT, 0), Self::LOW_3 | TABLE);
        store(entry(Self::ROOT, ALIAS_SLOT), self.alias_entry());
        store(entry(Self::ROOT, KERNEL_SLOT), Self::KERNEL_3 | TABLE);
        store(entry(Self::LOW_3, 0), Self::LOW_2 | TABLE);
        store(entry(Self::KERNEL_3, 510), Self::LOW_2 | TABLE);
        for leaf in 0..WORDS_PER_TABLE {
            store(entry(Self::LOW_2, leaf), (leaf as u64 * LARGE_PAGE) | LEAF);
        }
        for table in 0..self.memory_end.div_ceil(TABLE_PAGES) {
            let at = Self::ALIAS_2 + table * PAGE_SIZE;
            store(entry(Self::ALIAS_3, table as usize), at | TABLE | USER);
            for leaf in 0..WORDS_PER_TABLE {
                let address = table * TABLE_PAGES + leaf as u64 * LARGE_PAGE;
                if address < self.memory_end {
                    store(entry(at, leaf), address | LEAF | USER | NO_EXECUTE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_inside_the_room_and_are_written_once() {
        let memory_end = 3 * TABLE_PAGES + 5 * LARGE_PAGE;
        let mut words = [0u64; 16 * WORDS_PER_TABLE];
        StartTables::new(memory_end).write(|at, value| {
            assert!(at < START_TABLES_GPA + StartTables::bytes(memory_end));
            let word = &mut words[((at - START_TABLES_GPA) / 8) as usize];
            assert_eq!(*word, 0, "{at:#x} written twice");
            *word = value;
        });
        let leaves = words.iter().filter(|w| **w & (USER | LARGE) == USER | LARGE).count();
        assert_eq!(leaves, 3 * WORDS_PER_TABLE + 5);
    }
}
