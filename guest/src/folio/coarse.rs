//! Blocks that are handed out in units of 2^3 or 2^6 frames, for runs of orders 3 to 5 and 6 to 8.
//!
//! All that there is to know of such a block fits a record outside of it, its *table*: which units are free, and the folio of each unit. So the look-up of a
//! folio of order 3 to 8 costs 8 to 32 bytes, where slots would cost 16 for each of its frames.
//!
//! When nothing else is left for a smaller run, a block with a free unit is *refined*: it has slots from then on, in that unit. The table stays as it was until the
//! block is whole again. Whoever looks up a folio meanwhile finds it by the one or the other: a folio that was there has both, and one
//! that came later is known only to who has seen the slots.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Relaxed, Release};

use super::buddy::{BLOCK, Found, Frames, MAX_SMALL, Run, add_to, block};
use super::descriptor::{KIND, Kind};
use super::slab::{Record, Slab};
use crate::addr::{ENTRIES, Pfn};
use crate::memory::Memory;
use crate::sync::{AtomicU64, Field};

/// The smallest order of a unit.
pub(super) const MIN_UNIT: u8 = 3;

// The words of a table: free units, those of them that are known to be zero, the links of the two lists that the block is on, and records, two to a word.
const FREE: usize = 0;
const ZERO: usize = 1;
const LINKS: usize = 2;
const RECORDS: usize = 4;
/// The order of the list, beside the links; 0 for none.
const LARGEST: Field<0, 5> = Field;

// In word 1 of the slot of the frame where the slots of a refined block start, behind the kind: the table that it had, and its class.
const OLD_UNIT: Field<3, 3> = Field;
const OLD_TABLE: Field<8, 32> = Field;

/// The bits where runs of 2^n units start.
const ALIGNED: [u64; 6] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
];

/// Blocks with units of one size, by the order of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    pub(super) const EACH: [Self; 2] = [Self(MIN_UNIT), Self(2 * MIN_UNIT)];

    /// Where runs of `order` live, which is [`MIN_UNIT`] to [`MAX_SMALL`].
    #[inline]
    pub(super) const fn of(order: u8) -> Self {
        Self(order - order % MIN_UNIT)
    }

    #[inline]
    fn of_word(word: u64) -> Self {
        Self(block::UNIT.of(word) as u8)
    }

    /// The order of a unit.
    #[inline]
    pub(super) const fn unit(self) -> u8 {
        self.0
    }

    /// All units of a block, a bit for each.
    #[inline]
    const fn all(self) -> u64 {
        u64::MAX >> (64 - (BLOCK >> self.unit()))
    }

    const fn words(self) -> usize {
        RECORDS + (BLOCK as usize >> self.unit()) / 2
    }

    /// The order of the largest run of the units `bits`, 0 for none.
    #[inline]
    fn largest(self, bits: u64) -> u8 {
        if bits == 0 {
            return 0;
        }
        let (mut bits, mut n) = (bits, 0);
        while self.unit() + n < MAX_SMALL {
            bits &= bits >> (1 << n);
            if bits & ALIGNED[usize::from(n) + 1] == 0 {
                break;
            }
            n += 1;
        }
        self.unit() + n
    }
}

/// Where 2^n units start that are all among `bits`.
#[inline]
fn runs(mut bits: u64, n: u8) -> u64 {
    for i in 0..n {
        bits &= bits >> (1 << i);
    }
    bits & ALIGNED[usize::from(n)]
}

/// 2^n units from `first` on.
#[inline]
const fn run_of(first: u32, n: u8) -> u64 {
    ((1 << (1 << n)) - 1) << first
}

/// The lists of the blocks of a class, and their tables.
pub(super) struct Coarse {
    tables: Slab,
    /// By the order of the largest run that is free, and known to be zero or not; as block number plus one. A block's may be smaller by now: that is found out
    /// when it is asked for one.
    heads: [[AtomicU64; MAX_SMALL as usize + 1]; 2],
    /// Which of the lists are not empty.
    filled: [AtomicU64; 2],
    /// A block is kept though all of it is free.
    has_spare: AtomicBool,
}

impl Coarse {
    pub(super) const fn new(class: Class) -> Self {
        Self {
            tables: Slab::new(class.words().next_power_of_two()),
            heads: [const { [const { AtomicU64::new(0) }; MAX_SMALL as usize + 1] }; 2],
            filled: [const { AtomicU64::new(0) }; 2],
            has_spare: AtomicBool::new(false),
        }
    }

    /// Frames that hold tables.
    pub(super) fn table_frames(&self) -> u64 {
        self.tables.nr_frames()
    }

    /// Those of them that hold the table of the spare block and no other.
    pub(super) fn spare_frames(&self) -> u64 {
        let spare = u64::from(self.has_spare.load(Relaxed));
        if self.tables.in_use() == spare { self.table_frames() } else { 0 }
    }
}

/// A table, and the block that it is of.
#[derive(Clone, Copy)]
struct Table<'a> {
    class: Class,
    block: u64,
    words: &'a [AtomicU64],
}

impl Table<'_> {
    /// Free units that are known to be zero, or the others.
    #[inline]
    fn free(self, zero: bool) -> u64 {
        let (free, zeroed) = (self.words[FREE].load(Relaxed), self.words[ZERO].load(Relaxed));
        if zero { free & zeroed } else { free & !zeroed }
    }

    #[inline]
    fn unit_of(self, pfn: Pfn) -> u32 {
        (pfn.raw() % BLOCK) as u32 >> self.class.unit()
    }

    fn first_of(self, unit: u32) -> Pfn {
        Pfn::new(self.block * BLOCK + (u64::from(unit) << self.class.unit()))
    }

    /// Enters `record` for 2^n units from `first` on; 0 for no folio.
    #[inline(always)]
    fn fill(self, first: u32, n: u8, record: u32) {
        let at = RECORDS + first as usize / 2;
        let both = u64::from(record) << 32 | u64::from(record);
        if n > 0 {
            for word in &self.words[at..at + (1 << (n - 1))] {
                word.store(both, Relaxed);
            }
        } else {
            let half = u64::from(u32::MAX) << (first % 2 * 32);
            self.words[at].store(self.words[at].load(Relaxed) & !half | both & half, Relaxed);
        }
    }

    fn record(self, unit: u32) -> u32 {
        (self.words[RECORDS + unit as usize / 2].load(Relaxed) >> (unit % 2 * 32)) as u32
    }

    #[inline]
    fn links(&self, zero: bool) -> &AtomicU64 {
        &self.words[LINKS + usize::from(zero)]
    }
}

impl<M: Memory> Frames<M> {
    fn coarse(&self, class: Class) -> &Coarse {
        &self.coarse[usize::from(class.0 / MIN_UNIT - 1)]
    }

    /// The table of `block`, of which the directory says `word`.
    #[inline]
    fn table(&self, block: u64, word: u64) -> Table<'_> {
        debug_assert!(block::KIND.of(word) == block::COARSE);
        let class = Class::of_word(word);
        let record = Record::from_raw(block::RECORD.of(word) as u32);
        Table { class, block, words: self.record(record, class.words()) }
    }

    /// The table of the block with number `nth`.
    #[inline]
    fn nth_table(&self, nth: u64) -> Table<'_> {
        let block = self.first_block + nth;
        self.table(block, self.directory_word(block).load(Relaxed))
    }

    /// The folio of `pfn`, of whose block the directory says `word`.
    #[inline]
    pub(super) fn find_coarse(&self, word: u64, pfn: Pfn) -> Option<Found<'_>> {
        let unit = (pfn.raw() % BLOCK) as usize >> block::UNIT.of(word);
        let table = block::RECORD.of(word);
        // Never beyond the frame.
        let at = ((table as usize & 63) * 8 + RECORDS + unit / 2) % ENTRIES;
        let both = self.memory.frame(Pfn::new(table >> 6)).0[at].load(Relaxed);
        let record = (both >> (unit % 2 * 32)) as u32;
        (record != 0).then(|| Found::Large(Record::from_raw(record)))
    }

    /// Enters `record` for the run of 2^order frames at `pfn`, if its block has no slots; whether it has none. The caller has the lock.
    #[inline]
    pub(super) fn enter_units(&self, pfn: Pfn, order: u8, record: Record) -> bool {
        let block = pfn.raw() / BLOCK;
        let word = self.directory_word(block).load(Relaxed);
        if block::KIND.of(word) != block::COARSE {
            return false;
        }
        let table = self.table(block, word);
        table.fill(table.unit_of(pfn), order - table.class.unit(), record.raw());
        true
    }

    /// A run out of blocks of `class`, known to be zero or not as it is wanted if there is such.
    pub(super) fn take_units(&self, class: Class, order: u8, want_zero: bool) -> Option<Run> {
        [want_zero, !want_zero].into_iter().find_map(|zero| self.take_units_for(class, order, zero, 0))
    }

    /// A run out of blocks of `class`, known to be zero or not as `zero` says, for the folio of `record`; 0 for none.
    #[inline(always)]
    pub(super) fn take_units_for(&self, class: Class, order: u8, zero: bool, record: u32) -> Option<Run> {
        let coarse = self.coarse(class);
        let (filled, heads) = (&coarse.filled[usize::from(zero)], &coarse.heads[usize::from(zero)]);
        let n = order - class.unit();
        loop {
            let lists = filled.load(Relaxed) >> order;
            if lists == 0 {
                return None;
            }
            let list = usize::from(order) + lists.trailing_zeros() as usize;
            let table = self.nth_table(heads[list].load(Relaxed) - 1);
            let starts = runs(table.free(zero), n);
            if starts == 0 {
                self.relist(table, zero);
                continue;
            }
            let first = starts.trailing_zeros();
            let free = table.words[FREE].load(Relaxed);
            if free == class.all() {
                // The spare block, or a fresh one: it is in use from now on.
                coarse.has_spare.store(false, Relaxed);
            }
            table.words[FREE].store(free & !run_of(first, n), Relaxed);
            if record != 0 {
                table.fill(first, n, record);
            }
            return Some(Run { pfn: table.first_of(first), zeroed: zero });
        }
    }

    /// Gives a run back to its block, of which the directory says `word`. As buddies that are both free make one run, a run of both kinds is not known to be zero.
    #[inline(never)]
    pub(super) fn put_units(&self, pfn: Pfn, order: u8, zeroed: bool, word: u64) {
        let table = self.table(pfn.raw() / BLOCK, word);
        let class = table.class;
        let (first, mut n) = (table.unit_of(pfn), order - class.unit());
        table.fill(first, n, 0);
        let mut run = run_of(first, n);
        let free = table.words[FREE].load(Relaxed) | run;
        let zeros = table.words[ZERO].load(Relaxed);
        let known = if zeroed { zeros | run } else { zeros & !run };
        while class.unit() + n < MAX_SMALL {
            let larger = run_of(first & !((2 << n) - 1), n + 1);
            if free & larger != larger {
                break;
            }
            (run, n) = (larger, n + 1);
        }
        let is_mixed = known & run != 0 && known & run != run;
        let known = if is_mixed { known & !run } else { known };
        table.words[FREE].store(free, Relaxed);
        table.words[ZERO].store(known, Relaxed);
        let (zero, largest) = (known & run != 0, class.unit() + n);
        if LARGEST.get(table.links(zero)) < u64::from(largest) {
            self.move_to(table, zero, largest);
        }
        if free == class.all() {
            let has_spare = &self.coarse(class).has_spare;
            if has_spare.load(Relaxed) {
                self.mend_coarse(table, word);
            } else {
                has_spare.store(true, Relaxed);
            }
        }
    }

    /// Makes a whole block one of `class`, if there is a block and room for its table.
    pub(super) fn divide_block(&self, class: Class, want_zero: bool) -> Option<()> {
        if !self.has_block() {
            self.mend_coarse_spares();
            if !self.has_block() {
                return None;
            }
        }
        // Its frame may be out of the only block.
        let tables = &self.coarse(class).tables;
        let record = tables.alloc_locked(self, false)?;
        let Some((block, zeroed)) = self.take_blocks(9, want_zero) else {
            tables.free_locked(self, record);
            return None;
        };
        let word = block::KIND.bits(block::COARSE)
            | block::UNIT.bits(u64::from(class.0))
            | block::RECORD.bits(u64::from(record.raw()));
        let table = Table { class, block, words: self.record(record, class.words()) };
        table.words[FREE].store(class.all(), Relaxed);
        table.words[ZERO].store(if zeroed { class.all() } else { 0 }, Relaxed);
        for word in &table.words[LINKS..] {
            word.store(0, Relaxed);
        }
        self.directory_word(block).store(word, Release);
        self.relist(table, zeroed);
        Some(())
    }

    /// Makes the blocks whole of which all is free, and gives back the frames of tables that are no more.
    pub(super) fn mend_coarse_spares(&self) {
        for class in Class::EACH {
            let coarse = self.coarse(class);
            if coarse.has_spare.load(Relaxed) {
                for zero in [false, true] {
                    // A block that is all free is two runs of the largest order.
                    let mut next = coarse.heads[usize::from(zero)][usize::from(MAX_SMALL)].load(Relaxed);
                    while let Some(nth) = next.checked_sub(1) {
                        let table = self.nth_table(nth);
                        let behind = block::NEXT.get(table.links(zero));
                        next = if behind == block::NONE { 0 } else { behind + 1 };
                        if table.words[FREE].load(Relaxed) == class.all() {
                            self.mend_coarse(table, self.directory_word(table.block).load(Relaxed));
                        }
                    }
                }
                coarse.has_spare.store(false, Relaxed);
            }
            coarse.tables.trim_locked(self);
        }
    }

    /// Makes a block whole, all of which is free.
    fn mend_coarse(&self, table: Table<'_>, word: u64) {
        let is_zero = table.words[ZERO].load(Relaxed) == table.class.all();
        for zero in [false, true] {
            self.move_to(table, zero, 0);
        }
        self.coarse(table.class).tables.free_locked(self, Record::from_raw(block::RECORD.of(word) as u32));
        self.put_blocks(table.block, 9, is_zero);
    }

    /// Gives slots to a block that has a free unit, of a class of units of `least` or more; whether there was one.
    pub(super) fn refine(&self, least: u8) -> bool {
        for class in Class::EACH.into_iter().filter(|class| class.unit() >= least) {
            let coarse = self.coarse(class);
            for zero in [false, true] {
                // The one with the largest run: it will serve longest.
                while let Some(list) = coarse.filled[usize::from(zero)].load(Relaxed).checked_ilog2() {
                    let table = self.nth_table(coarse.heads[usize::from(zero)][list as usize].load(Relaxed) - 1);
                    if table.words[FREE].load(Relaxed) != 0 {
                        self.refine_block(table);
                        return true;
                    }
                    self.relist(table, zero);
                }
            }
        }
        false
    }

    fn refine_block(&self, table: Table<'_>) {
        let Table { class, block, .. } = table;
        for zero in [false, true] {
            self.move_to(table, zero, 0);
        }
        let (free, known) = (table.words[FREE].load(Relaxed), table.words[ZERO].load(Relaxed));
        if free == class.all() {
            self.coarse(class).has_spare.store(false, Relaxed);
        }
        // Unit 0 if it is free: the slots of a block stand there mostly.
        let at = free.trailing_zeros();
        let place = table.first_of(at);
        if known >> at & 1 == 0 {
            self.memory.zero(place, self.slot_frames);
        }
        let in_block = place.raw() % BLOCK;
        let directory_word = self.directory_word(block);
        let old = block::RECORD.get(directory_word);
        let slot = |pfn| self.slot_head_from(in_block, pfn);
        let old = OLD_UNIT.bits(u64::from(class.0)) | OLD_TABLE.bits(old);
        slot(place)[1].store(KIND.bits(Kind::Records as u64) | old, Relaxed);
        let mut before = 0;
        for unit in 0..(BLOCK >> class.unit()) as u32 {
            let record = table.record(unit);
            if record != 0 && record != before {
                let slot = slot(table.first_of(unit));
                slot[0].store(u64::from(record), Relaxed);
                slot[1].store(KIND.bits(Kind::Large as u64), Relaxed);
            }
            before = record;
        }
        let (kind, place_bits) = match in_block {
            0 => (block::BROKEN, 0),
            _ => (block::DISPLACED, block::PLACE.bits(in_block)),
        };
        let nr_free = (u64::from(free.count_ones()) << class.unit()) - self.slot_frames;
        add_to(&self.displaced, i64::from(in_block != 0));
        add_to(&self.broken, 1);
        add_to(&self.free, -(self.slot_frames as i64));
        // Release pairs with the Acquire in `find`: who sees that there are slots sees what they say.
        directory_word.store(block::KIND.bits(kind) | place_bits | block::NR_FREE.bits(nr_free), Release);
        for unit in (0..64).filter(|unit| free >> unit & 1 == 1) {
            let first = table.first_of(unit);
            let zeroed = known >> unit & 1 == 1;
            let mut spent = if unit == at { self.slot_frames } else { 0 };
            while spent < 1 << class.unit() {
                let order = if spent == 0 { class.unit() } else { spent.trailing_zeros() as u8 };
                self.merge(first.add(spent), order, zeroed);
                spent += 1 << order;
            }
        }
    }

    /// Gives back the table that a block of slots may have had. `word` is word 1 of the slot of the frame where its slots start.
    pub(super) fn free_old_table(&self, word: u64) {
        let record = OLD_TABLE.of(word) as u32;
        if record != 0 {
            let class = Class(OLD_UNIT.of(word) as u8);
            self.coarse(class).tables.free_locked(self, Record::from_raw(record));
        }
    }

    // --- lists -----------------------------------------------------------------------------------------------

    /// Puts a block on the list that it belongs to, of those by what is known to be zero or by the rest.
    fn relist(&self, table: Table<'_>, zero: bool) {
        self.move_to(table, zero, table.class.largest(table.free(zero)));
    }

    /// From the list that it is on, if any, to that of `order`, 0 for none.
    fn move_to(&self, table: Table<'_>, zero: bool, order: u8) {
        let coarse = self.coarse(table.class);
        let (heads, filled) = (&coarse.heads[usize::from(zero)], &coarse.filled[usize::from(zero)]);
        let set_head = |order: u8, head: u64| {
            heads[usize::from(order)].store(head, Relaxed);
            filled.store(filled.load(Relaxed) & !(1 << order) | u64::from(head != 0) << order, Relaxed);
        };
        let links = table.links(zero);
        let word = links.load(Relaxed);
        let was = LARGEST.of(word) as u8;
        if was != 0 {
            let (prev, next) = (block::PREV.of(word), block::NEXT.of(word));
            if prev == block::NONE {
                set_head(was, if next == block::NONE { 0 } else { next + 1 });
            } else {
                block::NEXT.set(self.nth_table(prev).links(zero), next);
            }
            if next != block::NONE {
                block::PREV.set(self.nth_table(next).links(zero), prev);
            }
        }
        if order == 0 {
            links.store(0, Relaxed);
            return;
        }
        let number = table.block - self.first_block;
        let next = heads[usize::from(order)].load(Relaxed).checked_sub(1);
        links.store(
            LARGEST.bits(u64::from(order))
                | block::PREV.bits(block::NONE)
                | block::NEXT.bits(next.unwrap_or(block::NONE)),
            Relaxed,
        );
        if let Some(next) = next {
            block::PREV.set(self.nth_table(next).links(zero), number);
        }
        set_head(order, number + 1);
    }
}

// The number of a table fits beside what its block's word says, and a unit's bit its word.
const _: () = assert!(block::UNIT.end() <= 8 && BLOCK >> MIN_UNIT <= 64 && LARGEST.end() <= 9);
