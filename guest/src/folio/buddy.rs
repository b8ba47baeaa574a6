//! The frame allocator: a buddy system that also answers, for any frame, what lives there.
//!
//! Runs of order 9 and above are whole blocks, kept in the directory. When runs below order 3 are needed a block is *broken*: its first
//! frames become slots for the block's frames, the rest goes to the lists of orders 0 to 8. For runs of orders 3 to 8 a block is divided into [units](super::coarse), which needs
//! a record of memory elsewhere; where that or a whole block is missing, the runs of broken blocks serve, and blocks of units become broken ones when nothing else is left.
//! So the allocator never fails for want of memory of its own. A block whose frames are all free becomes whole again, except one of each kind that is kept
//! at hand so that a load at the edge does not break and mend a block on every fault.
//!
//! A single frame that is given back stays *loose* at first: chained to the others of its block, to be handed out again as it is. Most are wanted again as
//! single frames, or their block becomes whole before anybody wants a larger run. Loose frames are merged with their buddies when the lists have no run that
//! is large enough. Single frames come from the lists several at a time, of which all but one become loose. Only a block whose slots stand in its first frames has loose ones.
//!
//! Runs known to be zero are kept on lists of their own: fresh memory is zero and need not be cleared again.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::Record;
use super::coarse::{Class, Coarse, MIN_UNIT};
use super::descriptor::{KIND, Kind};
use super::extension::Never;
use crate::addr::{ENTRIES, Order, Pfn};
use crate::memory::{Frame, Memory};
use crate::sync::{AtomicU64, WordGuard, lock_word};

pub(super) const BLOCK: u64 = ENTRIES as u64;
const NR_ORDERS: usize = Order::MAX.get() as usize + 1;
/// The largest order below that of a block.
pub(super) const MAX_SMALL: u8 = Order::HUGE.get() - 1;

/// Single frames are taken from the lists by runs of this order, where one is at hand.
const REFILL: u8 = 3;

/// What a directory word says of its block.
pub(super) mod block {
    use crate::sync::Field;
    pub(in crate::folio) const HOLE: u64 = 0;
    pub(in crate::folio) const FREE: u64 = 1;
    pub(in crate::folio) const PART_OF_FREE: u64 = 2;
    pub(in crate::folio) const FOLIO: u64 = 3;
    pub(in crate::folio) const BROKEN: u64 = 4;
    pub(in crate::folio) const CARVED: u64 = 5;
    /// As [`BROKEN`], but its slots do not stand in its first frames.
    pub(in crate::folio) const DISPLACED: u64 = 6;
    pub(in crate::folio) const COARSE: u64 = 7;
    pub(in crate::folio) const KIND: Field<0, 3> = Field;
    pub(in crate::folio) const UNIT: Field<3, 3> = Field;
    pub(in crate::folio) const ORDER: Field<3, 5> = Field;
    pub(in crate::folio) const ZERO: Field<8, 1> = Field;
    pub(in crate::folio) const PREV: Field<9, 27> = Field;
    pub(in crate::folio) const NEXT: Field<36, 27> = Field;
    pub(in crate::folio) const RECORD: Field<8, 32> = Field;
    pub(in crate::folio) const NR_FREE: Field<8, 10> = Field;
    /// Those of them that are loose.
    pub(in crate::folio) const NR_LOOSE: Field<18, 10> = Field;
    const LOOSE: Field<28, 9> = Field;
    const LOOSE_ZERO: Field<37, 9> = Field;
    /// The frame of the block where its slots start.
    pub(in crate::folio) const PLACE: Field<46, 9> = Field;
    pub(in crate::folio) const NONE: u64 = (1 << 27) - 1;

    /// The frame of a broken block where its chain of loose frames known to be zero starts, or that of the others; 0 for none: that frame is spent on slots.
    pub(in crate::folio) const fn loose(zero: bool, word: u64) -> u64 {
        if zero { LOOSE_ZERO.of(word) } else { LOOSE.of(word) }
    }

    /// The bits of [`loose`] for frame `at`.
    pub(in crate::folio) const fn loose_bits(zero: bool, at: u64) -> u64 {
        if zero { LOOSE_ZERO.bits(at) } else { LOOSE.bits(at) }
    }
}

/// The words of the slot of a free run's first frame.
mod slot {
    use crate::sync::Field;
    pub(super) const PREV: Field<0, 40> = Field; // word 0
    pub(super) const ORDER: Field<3, 4> = Field; // word 1, behind the kind
    pub(super) const ZERO: Field<7, 1> = Field;
    pub(super) const NEXT: Field<8, 40> = Field; // of a loose frame by its place in the block, 0 for none
    pub(super) const NONE: u64 = (1 << 40) - 1;
}

/// Frames as they come from the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First frame.
    pub pfn: Pfn,
    /// Every byte is known to be zero.
    pub zeroed: bool,
}

/// Why the memory could not be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitError {
    /// There is no range with a whole aligned 2 MiB block behind the metadata.
    TooSmall,
    /// The ranges span more than 2^27 blocks (256 TiB).
    TooWide,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooSmall => "no whole 2 MiB block is left behind the metadata",
            Self::TooWide => "the frames span more than 256 TiB",
        })
    }
}

impl core::error::Error for InitError {}

/// How the frames are used, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameStats {
    /// Frames the allocator hands out, slots of broken blocks included.
    pub total: u64,
    /// Free frames, those that a broken block spends on slots excluded.
    pub free: u64,
    /// Frames spent on slots and tables of blocks now.
    pub slots: u64,
    /// Frames set aside at start: directory, per-page counts.
    pub carved: u64,
}

/// The frames of one manager.
pub struct Frames<M> {
    pub(super) memory: M,
    pub(super) first_block: u64,
    nr_blocks: u64,
    directory: Pfn,
    slot_words: usize,
    /// Frames that a broken block spends on its slots.
    pub(super) slot_frames: u64,
    /// The smallest order that lives in units: a unit has room for the slots of its block.
    min_unit: u8,
    page_words: Option<Pfn>,
    page_counts: usize,
    lock: AtomicU64,
    heads: [[AtomicU64; NR_ORDERS]; 2],
    /// Which of the lists are not empty: bit n for order n.
    filled: [AtomicU64; 2],
    /// The lists of the blocks that have loose frames, and of those that have some known to be zero; their links stand in word 0 of a block's first two slots,
    /// which are slot frames'.
    loose: [AtomicU64; 2],
    has_spare: AtomicBool,
    pub(super) coarse: [Coarse; 2],
    pub(super) free: AtomicU64,
    reserve: AtomicU64,
    pub(super) broken: AtomicU64,
    /// Those of the broken blocks whose slots do not stand in their first frames.
    pub(super) displaced: AtomicU64,
    total: u64,
    carved: u64,
    pub(super) never: Never,
}

impl<M> fmt::Debug for Frames<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frames({} of {} free)", self.free.load(Relaxed), self.total)
    }
}

impl<M: Memory> Frames<M> {
    /// Takes over the frames of `ranges`. `zeroed` says that they are all known to be zero. `slot_words` is the size of a small
    /// folio's descriptor (a power of two of words, 2 to 64) and `page_counts` how many 32-bit counts each frame needs beside it.
    ///
    /// # Errors
    /// See [`InitError`].
    pub fn new(
        memory: M,
        ranges: &[Range<Pfn>],
        zeroed: bool,
        slot_words: usize,
        page_counts: usize,
    ) -> Result<Self, InitError> {
        debug_assert!(slot_words.is_power_of_two() && (2..=64).contains(&slot_words));
        let first = ranges.iter().map(|r| r.start.raw()).min().ok_or(InitError::TooSmall)?;
        let end = ranges.iter().map(|r| r.end.raw()).max().ok_or(InitError::TooSmall)?;
        let first_block = first / BLOCK;
        let nr_blocks = end.div_ceil(BLOCK).saturating_sub(first_block);
        if nr_blocks >= block::NONE {
            return Err(InitError::TooWide);
        }
        // The directory and the counts stand at the start of the largest range.
        let home =
            ranges.iter().max_by_key(|r| r.end.raw().saturating_sub(r.start.raw())).ok_or(InitError::TooSmall)?;
        let directory_frames = nr_blocks.div_ceil(BLOCK);
        let count_frames = (nr_blocks * BLOCK * page_counts as u64 * 4).div_ceil(4096);
        let carved = directory_frames + count_frames;
        if home.start.raw() + carved + BLOCK > home.end.raw() {
            return Err(InitError::TooSmall);
        }
        if !zeroed {
            memory.zero(home.start, carved);
        }
        let slot_frames = (slot_words as u64 * 8 * BLOCK).div_ceil(4096);
        let class = Class::EACH.into_iter().find(|class| 1 << class.unit() >= slot_frames);
        let mut frames = Self {
            first_block,
            nr_blocks,
            directory: home.start,
            slot_words,
            slot_frames,
            min_unit: class.map_or(Order::HUGE.get(), Class::unit),
            page_words: (page_counts > 0).then(|| home.start.add(directory_frames)),
            page_counts,
            carved,
            ..Self::empty(memory)
        };
        for range in ranges {
            let start = if range.start == home.start { range.start.add(carved) } else { range.start };
            let mut at = start.raw().div_ceil(BLOCK);
            let end = range.end.raw() / BLOCK;
            if range.start == home.start {
                for carved in range.start.raw() / BLOCK..at.min(end) {
                    frames.directory_word(carved).store(block::CARVED, Relaxed);
                }
            }
            while at < end {
                // The largest naturally aligned run that still fits.
                let fit = (end - at).ilog2().min(at.trailing_zeros()).min(u32::from(Order::MAX.get() - 9));
                frames.total += BLOCK << fit;
                frames.put_blocks(at, 9 + fit as u8, zeroed);
                at += 1 << fit;
            }
        }
        if frames.total == 0 {
            return Err(InitError::TooSmall);
        }
        frames.free.store(frames.total, Relaxed);
        Ok(frames)
    }

    /// The memory behind the frames.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// How the frames are used.
    pub fn stats(&self) -> FrameStats {
        FrameStats {
            total: self.total,
            free: self.free.load(Relaxed),
            slots: self.broken.load(Relaxed) * self.slot_frames()
                + self.coarse.iter().map(Coarse::table_frames).sum::<u64>(),
            carved: self.carved,
        }
    }

    /// Whether every frame is free again: nothing is left but the slots of broken blocks that hold nothing.
    pub fn all_free(&self) -> bool {
        let stats = self.stats();
        stats.free + stats.slots == stats.total
    }

    /// One past the highest frame, and the lowest: every managed frame lies between.
    pub fn span(&self) -> Range<Pfn> {
        Pfn::new(self.first_block * BLOCK)..Pfn::new((self.first_block + self.nr_blocks) * BLOCK)
    }

    /// The words of the record `record`.
    #[inline]
    pub fn record(&self, record: Record, words: usize) -> &[AtomicU64] {
        let at = (record.raw() as usize & 63) * 8;
        &self.memory.frame(Pfn::new(u64::from(record.raw()) >> 6)).0[at..at + words]
    }

    /// The words of the record `record`, which has `N` of them or more.
    #[inline]
    pub(crate) fn record_of<const N: usize>(&self, record: Record) -> &[AtomicU64; N] {
        let at = (record.raw() as usize & 63) * 8;
        &self.memory.frame(Pfn::new(u64::from(record.raw()) >> 6)).0.as_chunks().0[at / N]
    }

    /// The words of the unit of a [slab](super::Slab) that has number `number`.
    #[inline]
    pub(super) fn unit<const UNIT: usize>(&self, number: u64) -> &[AtomicU64; UNIT] {
        let units = (ENTRIES / UNIT) as u64;
        &self.memory.frame(Pfn::new(number / units)).0.as_chunks().0[(number % units) as usize]
    }

    /// None at all.
    fn empty(memory: M) -> Self {
        Self {
            memory,
            first_block: 0,
            nr_blocks: 0,
            directory: Pfn::new(0),
            slot_words: 0,
            slot_frames: 0,
            min_unit: MIN_UNIT,
            page_words: None,
            page_counts: 0,
            lock: AtomicU64::new(0),
            heads: [const { [const { AtomicU64::new(0) }; NR_ORDERS] }; 2],
            filled: [const { AtomicU64::new(0) }; 2],
            loose: [const { AtomicU64::new(0) }; 2],
            has_spare: AtomicBool::new(false),
            coarse: Class::EACH.map(Coarse::new),
            free: AtomicU64::new(0),
            reserve: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            displaced: AtomicU64::new(0),
            total: 0,
            carved: 0,
            never: Never::default(),
        }
    }

    /// No frames but those of the per-page counts, from frame 0 of `memory` on: for models of the counts alone.
    #[cfg(loom)]
    pub fn of_counts(memory: M) -> Self {
        Self { page_words: Some(Pfn::new(0)), page_counts: 1, ..Self::empty(memory) }
    }

    /// The word and half of the `nth` 32-bit per-page count of frame `pfn`.
    pub(crate) fn page_count(&self, pfn: Pfn, nth: usize) -> (&AtomicU64, bool) {
        let base = self.page_words.expect("the scheme asked for no per-page counts");
        let index = (pfn.raw() - self.first_block * BLOCK) * self.page_counts as u64 + nth as u64;
        let word = index / 2;
        (&self.memory.frame(base.add(word / BLOCK)).0[(word % BLOCK) as usize], index % 2 == 1)
    }

    // --- look-up ---------------------------------------------------------------------------------------------

    pub(super) fn directory_word(&self, block: u64) -> &AtomicU64 {
        let index = block - self.first_block;
        &self.memory.frame(self.directory.add(index / BLOCK)).0[(index % BLOCK) as usize]
    }

    fn manages(&self, pfn: Pfn) -> bool {
        (pfn.raw() / BLOCK).wrapping_sub(self.first_block) < self.nr_blocks
    }

    /// Whether the manager has any of `frames`: such memory is mapped as folios or not at all.
    pub(crate) fn owns_any(&self, frames: Range<Pfn>) -> bool {
        let first = (frames.start.raw() / BLOCK).max(self.first_block);
        let end = frames.end.raw().div_ceil(BLOCK).min(self.first_block + self.nr_blocks);
        (first..end).any(|block| block::KIND.get(self.directory_word(block)) != block::HOLE)
    }

    fn slot_frames(&self) -> u64 {
        self.slot_frames
    }

    /// The slot of `pfn`, of `words` words, whose block must be broken.
    #[inline(always)]
    pub(super) fn slot(&self, pfn: Pfn, words: usize) -> &[AtomicU64] {
        let place = self.place_if_displaced(pfn);
        self.sized_slot(place, pfn, words)
    }

    /// As [`slot`](Self::slot), of a block whose slots start at its frame `place`.
    #[inline(always)]
    fn sized_slot(&self, place: u64, pfn: Pfn, words: usize) -> &[AtomicU64] {
        debug_assert_eq!(words, self.slot_words);
        let (frame, at) = self.slot_from(place, pfn, words);
        &frame.0[at..at + words]
    }

    /// The first two words of the slot of `pfn`: all that there is but for counts of further observers.
    #[inline(always)]
    pub(super) fn slot_head(&self, pfn: Pfn) -> &[AtomicU64; 2] {
        let (frame, at) = self.slot_at(pfn);
        &frame.0.as_chunks().0[at / 2]
    }

    #[inline]
    fn slot_at(&self, pfn: Pfn) -> (&Frame, usize) {
        self.slot_from(self.place_if_displaced(pfn), pfn, self.slot_words)
    }

    #[inline(always)]
    fn place_if_displaced(&self, pfn: Pfn) -> u64 {
        // Who was told of a frame in a displaced block was told by who displaced it, or later.
        if self.displaced.load(Relaxed) == 0 { 0 } else { self.place_of(pfn) }
    }

    /// Whether `pfn` is in a block whose slots do not stand in its first frames.
    #[inline]
    fn is_displaced(&self, pfn: Pfn) -> bool {
        self.displaced.load(Relaxed) != 0 && self.place_of(pfn) != 0
    }

    /// The frame of its block at which the slots of the block of `pfn` start.
    #[cold]
    fn place_of(&self, pfn: Pfn) -> u64 {
        block::PLACE.of(self.directory_word(pfn.raw() / BLOCK).load(Acquire))
    }

    /// Where the slot of `pfn` is, if the slots of its block, of `words` words each, start at its frame `place`.
    #[inline(always)]
    fn slot_from(&self, place: u64, pfn: Pfn, words: usize) -> (&Frame, usize) {
        let word = (pfn.raw() % BLOCK) as usize * words;
        let frame = Pfn::new(pfn.raw() / BLOCK * BLOCK + place + (word / ENTRIES) as u64);
        (self.memory.frame(frame), word % ENTRIES)
    }

    /// As [`slot_head`](Self::slot_head), of a block whose slots start at its frame `place`.
    #[inline]
    pub(super) fn slot_head_from(&self, place: u64, pfn: Pfn) -> &[AtomicU64; 2] {
        let (frame, at) = self.slot_from(place, pfn, self.slot_words);
        &frame.0.as_chunks().0[at / 2]
    }

    /// Where the descriptor of the folio that `pfn` belongs to is; `None` when no folio lives there. Slots have `words` words.
    #[inline(always)]
    pub(super) fn find(&self, pfn: Pfn, words: usize) -> Option<Found<'_>> {
        if !self.manages(pfn) {
            return None;
        }
        // Acquire pairs with the Release of who gave the block its slots, and of all who change the word from then on.
        let word = self.directory_word(pfn.raw() / BLOCK).load(Acquire);
        match block::KIND.of(word) {
            block::FOLIO => Some(Found::Large(Record::from_raw(block::RECORD.of(word) as u32))),
            block::BROKEN => self.find_slot(0, pfn, words),
            block::COARSE => self.find_coarse(word, pfn),
            _ => self.find_displaced(word, pfn, words),
        }
    }

    /// How many frames from `pfn` on surely belong to no folio, where [`find`](Self::find) has none at `pfn`: one at least. For whoever visits all folios.
    pub(crate) fn gap(&self, pfn: Pfn) -> u64 {
        let to_block_end = BLOCK - pfn.raw() % BLOCK;
        if !self.manages(pfn) {
            return 1;
        }
        let word = self.directory_word(pfn.raw() / BLOCK).load(Acquire);
        let place = match block::KIND.of(word) {
            block::FOLIO => return 1,
            block::COARSE => {
                let unit = 1 << block::UNIT.of(word);
                return unit - pfn.raw() % unit;
            }
            block::BROKEN => 0,
            block::DISPLACED => block::PLACE.of(word),
            _ => return to_block_end,
        };
        let slot = self.slot_head_from(place, pfn);
        if KIND.get(&slot[1]) == Kind::Free as u64 { 1 << slot::ORDER.get(&slot[1]) } else { 1 }
    }

    #[cold]
    fn find_displaced(&self, word: u64, pfn: Pfn, words: usize) -> Option<Found<'_>> {
        if block::KIND.of(word) == block::DISPLACED { self.find_slot(block::PLACE.of(word), pfn, words) } else { None }
    }

    /// The folio of `pfn`, in a block whose slots start at its frame `place`.
    #[inline(always)]
    fn find_slot(&self, place: u64, pfn: Pfn, words: usize) -> Option<Found<'_>> {
        let slot = self.sized_slot(place, pfn, words);
        match KIND.get(&slot[1]) {
            kind if kind == Kind::Small as u64 => Some(Found::Small(slot)),
            kind if kind == Kind::Large as u64 => Some(Found::of_head(&slot[0])),
            kind if kind == Kind::Nothing as u64 => self.find_head(place, pfn),
            kind if kind == Kind::Grown as u64 => Some(Found::Small(slot)),
            _ => None,
        }
    }

    /// The folio of `pfn`, which is no head, in a block whose slots start at its frame `place`.
    fn find_head(&self, place: u64, pfn: Pfn) -> Option<Found<'_>> {
        // Only the head's slot says anything: try the heads this frame could belong to, nearest first.
        for order in 1..=MAX_SMALL {
            let slot = self.slot_head_from(place, pfn.align_down(Order::new(order)));
            match KIND.get(&slot[1]) {
                kind if kind == Kind::Nothing as u64 => {}
                kind if kind == Kind::Large as u64 => return Some(Found::of_head(&slot[0])),
                _ => return None,
            }
        }
        None
    }

    /// Notes that the allocated run at `pfn` is the folio described by `record`. The caller has the [lock](Self::lock).
    fn enter_large(&self, pfn: Pfn, order: Order, record: Record) {
        if order >= Order::HUGE {
            let word = block::KIND.bits(block::FOLIO) | block::RECORD.bits(u64::from(record.raw()));
            for i in 0..order.pages() / BLOCK {
                self.directory_word(pfn.raw() / BLOCK + i).store(word, Relaxed);
            }
        } else if order.get() < self.min_unit || !self.enter_units(pfn, order.get(), record) {
            let slot = self.slot_head(pfn);
            slot[0].store(u64::from(record.raw()), Relaxed);
            slot[1].store(KIND.bits(Kind::Large as u64), Relaxed);
        }
    }

    // --- allocation ------------------------------------------------------------------------------------------

    /// Keeps `frames` frames back from [`alloc`](Self::alloc).
    pub fn set_reserve(&self, frames: u64) {
        self.reserve.store(frames, Relaxed);
    }

    /// A run of 2^order frames; one known to be zero if `want_zero` and there is one. Stops short of the reserve.
    pub fn alloc(&self, order: Order, want_zero: bool) -> Option<Run> {
        let _guard = self.lock();
        self.alloc_locked(order, want_zero, false)
    }

    /// As [`alloc`](Self::alloc), down to the last frame: for what removals need.
    pub(crate) fn alloc_from_reserve(&self, order: Order, want_zero: bool) -> Option<Run> {
        let _guard = self.lock();
        self.alloc_locked(order, want_zero, true)
    }

    /// The lock of free lists and records.
    #[inline]
    pub(super) fn lock(&self) -> WordGuard<'_> {
        lock_word(&self.lock)
    }

    /// As [`alloc`](Self::alloc), or down to the last frame if it `must` be; the caller has the [lock](Self::lock).
    #[inline(always)]
    pub(super) fn alloc_locked(&self, order: Order, want_zero: bool, must: bool) -> Option<Run> {
        if order == Order::BASE
            && let Some(run) = self.take_at_hand(want_zero)
        {
            return Some(run);
        }
        self.alloc_from_lists(order, want_zero, must)
    }

    /// A loose frame of the kind that is wanted, if there is one beyond the reserve; where contents do not matter one known to be zero, if there is no other.
    #[inline(always)]
    fn take_at_hand(&self, want_zero: bool) -> Option<Run> {
        let loose = |zero: bool| self.loose[usize::from(zero)].load(Relaxed).checked_sub(1);
        let has_other = || self.lowest_list(0..MAX_SMALL + 1, false).is_some();
        let zero = want_zero || loose(false).is_none() && !has_other();
        let block = loose(zero)?;
        if self.free.load(Relaxed) <= self.reserve.load(Relaxed) {
            return None;
        }
        add_to(&self.free, -1);
        Some(self.take_loose(self.first_block + block, zero))
    }

    /// A run of `order`, which is 1 or above, for the folio of `record`. The caller has the [lock](Self::lock).
    #[inline(always)]
    pub(super) fn alloc_large(&self, order: Order, want_zero: bool, record: Record) -> Option<Run> {
        let is_of_units = (self.min_unit..=MAX_SMALL).contains(&order.get());
        if is_of_units && self.free.load(Relaxed) >= order.pages() + self.reserve.load(Relaxed) {
            let class = Class::of(order.get());
            if let Some(run) = self.take_units_for(class, order.get(), want_zero, record.raw()) {
                add_to(&self.free, -(order.pages() as i64));
                return Some(run);
            }
        }
        let run = self.alloc_from_lists(order, want_zero, false)?;
        self.enter_large(run.pfn, order, record);
        Some(run)
    }

    /// As [`alloc_locked`](Self::alloc_locked), when nothing is at hand.
    #[inline(never)]
    fn alloc_from_lists(&self, order: Order, want_zero: bool, must: bool) -> Option<Run> {
        let floor = if must { 0 } else { self.reserve.load(Relaxed) };
        let needed = order.pages() + floor;
        if self.free.load(Relaxed) < needed {
            // What is spent on spare blocks comes back when a whole one is asked for.
            if order < Order::HUGE || self.free.load(Relaxed) + self.spare_frames() < needed {
                return None;
            }
            self.mend_spares();
            if self.free.load(Relaxed) < needed {
                return None;
            }
        }
        let order = order.get();
        let run = if order < self.min_unit {
            match self.take_small(order, want_zero) {
                Some(run) => Some(run),
                None => self.make_small(order, want_zero),
            }
        } else if order <= MAX_SMALL {
            match self.take_units(Class::of(order), order, want_zero) {
                Some(run) => Some(run),
                None => self.make_units(order, want_zero),
            }
        } else {
            self.take_blocks(order, want_zero)
                .or_else(|| {
                    self.mend_spares();
                    self.take_blocks(order, want_zero)
                })
                .map(|(first, zeroed)| Run { pfn: Pfn::new(first * BLOCK), zeroed })
        }?;
        add_to(&self.free, -(1 << order));
        Some(run)
    }

    /// Gives back a run that [`Frames::alloc`] gave.
    pub fn free(&self, pfn: Pfn, order: Order, zeroed: bool) {
        let _guard = self.lock();
        self.free_locked(pfn, order, zeroed);
    }

    /// As [`free`](Self::free); the caller has the [lock](Self::lock).
    #[inline(always)]
    pub(super) fn free_locked(&self, pfn: Pfn, order: Order, zeroed: bool) {
        add_to(&self.free, order.pages() as i64);
        if order >= Order::HUGE {
            self.put_blocks(pfn.raw() / BLOCK, order.get(), zeroed);
        } else {
            self.put_small(pfn, order.get(), zeroed);
        }
    }

    /// As [`free_locked`](Self::free_locked), of the frame `pfn` with whatever it holds, whose slot's word 1 is `slot`.
    #[inline(always)]
    pub(super) fn free_single(&self, pfn: Pfn, slot: &AtomicU64) {
        add_to(&self.free, 1);
        let word = self.directory_word(pfn.raw() / BLOCK).load(Relaxed);
        if block::KIND.of(word) == block::BROKEN {
            self.put_loose(pfn, slot, false, word);
        } else {
            self.put_slots(pfn, 0, false, word);
        }
    }

    /// Marks the single frame `pfn`, just allocated, as a `kind` page; word 0 of its slot is the owner's to use and starts as 0.
    pub(super) fn mark(&self, pfn: Pfn, kind: Kind) -> &AtomicU64 {
        let slot = self.slot_head(pfn);
        slot[0].store(0, Relaxed);
        slot[1].store(KIND.bits(kind as u64), Relaxed);
        &slot[0]
    }

    /// Word 0 of the slot of a frame marked before.
    #[inline(always)]
    pub(super) fn marked(&self, pfn: Pfn) -> &AtomicU64 {
        &self.slot_head(pfn)[0]
    }

    #[inline]
    fn take_small(&self, order: u8, want_zero: bool) -> Option<Run> {
        for zero in [want_zero, !want_zero] {
            if order == 0
                && let Some(block) = self.loose[usize::from(zero)].load(Relaxed).checked_sub(1)
            {
                return Some(self.take_loose(self.first_block + block, zero));
            }
            if let Some(found) = self.lowest_list(order..MAX_SMALL + 1, zero) {
                return Some(self.take_listed(order, found, zero));
            }
        }
        None
    }

    /// As [`take_small`](Self::take_small) when there is nothing at hand.
    #[cold]
    fn make_small(&self, order: u8, want_zero: bool) -> Option<Run> {
        self.settle();
        self.take_small(order, want_zero).or_else(|| {
            if !self.has_block() {
                self.mend_coarse_spares();
            }
            if let Some((first, zeroed)) = self.take_blocks(9, want_zero) {
                self.break_block(first, zeroed);
                return self.take_small(order, want_zero);
            }
            // Slots may take all that a block had free.
            while self.refine(order) {
                let run = self.take_small(order, want_zero);
                if run.is_some() {
                    return run;
                }
            }
            None
        })
    }

    /// As [`take_units`](Self::take_units) when there is nothing at hand in blocks of the class.
    #[cold]
    fn make_units(&self, order: u8, want_zero: bool) -> Option<Run> {
        let class = Class::of(order);
        if self.divide_block(class, want_zero).is_some() {
            return self.take_units(class, order, want_zero);
        }
        let mut others = Class::EACH.into_iter().filter(|other| other.unit() <= order);
        self.take_small(order, want_zero)
            .or_else(|| others.find_map(|class| self.take_units(class, order, want_zero)))
            .or_else(|| self.make_small(order, want_zero))
    }

    /// A run out of the first of the list of order `found`, of runs known to be zero or of the others.
    fn take_listed(&self, order: u8, found: u8, zero: bool) -> Run {
        let pfn = Pfn::new(self.heads[usize::from(zero)][usize::from(found)].load(Relaxed) - 1);
        self.unlink_small(pfn, found, zero);
        self.count_taken(pfn, 1 << order);
        // The chain of loose frames has no room for the first frame of a block, which may be free where slots are displaced.
        let rest = if order == 0 && !self.is_displaced(pfn) { found.min(REFILL) } else { order };
        for half in (rest..found).rev() {
            self.link_small(pfn.add(1 << half), half, zero);
        }
        if rest > order {
            self.loosen(pfn.add(1), (1 << rest) - 1, zero);
        }
        Run { pfn, zeroed: zero }
    }

    /// The list of the lowest of `orders` that has something, of runs known to be zero or of the others.
    fn lowest_list(&self, orders: Range<u8>, zero: bool) -> Option<u8> {
        let within = (1 << orders.end) - (1 << orders.start);
        let filled = self.filled[usize::from(zero)].load(Relaxed) & within;
        (filled != 0).then(|| filled.trailing_zeros() as u8)
    }

    fn put_small(&self, pfn: Pfn, order: u8, zeroed: bool) {
        let word = self.directory_word(pfn.raw() / BLOCK).load(Relaxed);
        if block::KIND.of(word) == block::COARSE {
            self.put_units(pfn, order, zeroed, word);
        } else {
            self.put_slots(pfn, order, zeroed, word);
        }
    }

    /// Puts a run in a block that has slots, of which the directory says `word`.
    #[inline(never)]
    fn put_slots(&self, pfn: Pfn, order: u8, zeroed: bool, word: u64) {
        let block = pfn.raw() / BLOCK;
        let slot = &self.slot_head_from(block::PLACE.of(word), pfn)[1];
        if order == 0 && block::KIND.of(word) == block::BROKEN {
            return self.put_loose(pfn, slot, zeroed, word);
        }
        let word = word + block::NR_FREE.bits(1 << order);
        self.directory_word(block).store(word, Release);
        slot.store(0, Relaxed);
        self.merge(pfn, order, zeroed);
        if block::NR_FREE.of(word) == BLOCK - self.slot_frames() {
            self.spare_block(block);
        }
    }

    /// Puts frame `pfn`, whose slot's word 1 is `slot`, on the chain of its block, of which the directory says `word`.
    #[inline(always)]
    fn put_loose(&self, pfn: Pfn, slot: &AtomicU64, zeroed: bool, word: u64) {
        let block = pfn.raw() / BLOCK;
        let next = block::loose(zeroed, word);
        slot.store(loose_word(zeroed, next), Relaxed);
        let word = word + block::NR_FREE.bits(1) + block::NR_LOOSE.bits(1);
        let head = block::loose_bits(zeroed, next ^ (pfn.raw() % BLOCK));
        self.directory_word(block).store(word ^ head, Release);
        if next == 0 {
            self.link_loose(block, zeroed);
        }
        if block::NR_FREE.of(word) == BLOCK - self.slot_frames() {
            self.spare_block(block);
        }
    }

    /// All of a block with slots is free: it is kept, if no other is.
    #[cold]
    fn spare_block(&self, block: u64) {
        if self.has_spare.load(Relaxed) {
            self.mend_block(block);
        } else {
            self.has_spare.store(true, Relaxed);
        }
    }

    /// Puts a run whose frames count as free on the list of the largest order that it makes with its buddies.
    pub(super) fn merge(&self, pfn: Pfn, order: u8, zeroed: bool) {
        let (mut pfn, mut order, mut zeroed) = (pfn, order, zeroed);
        while order < MAX_SMALL {
            let buddy = Pfn::new(pfn.raw() ^ 1 << order);
            let slot = self.slot_head(buddy);
            let word = slot[1].load(Relaxed);
            if KIND.of(word) != Kind::Free as u64 || slot::ORDER.of(word) != u64::from(order) {
                break;
            }
            let buddy_zero = slot::ZERO.of(word) == 1;
            self.unlink_small(buddy, order, buddy_zero);
            zeroed &= buddy_zero;
            order += 1;
            pfn = pfn.align_down(Order::new(order));
        }
        self.link_small(pfn, order, zeroed);
    }

    /// Frames that come back at most when the spare blocks become whole.
    fn spare_frames(&self) -> u64 {
        // The frames of tables may each keep a block with slots from being whole.
        let tables: u64 = self.coarse.iter().map(Coarse::spare_frames).sum();
        tables + (tables + u64::from(self.has_spare.load(Relaxed))) * self.slot_frames()
    }

    /// Makes the blocks whole that are kept as they are though all free.
    fn mend_spares(&self) {
        self.mend_coarse_spares();
        if !self.has_spare.load(Relaxed) {
            return;
        }
        // Rare: only when no whole block is left.
        for block in self.first_block..self.first_block + self.nr_blocks {
            let word = self.directory_word(block).load(Relaxed);
            let has_slots = [block::BROKEN, block::DISPLACED].contains(&block::KIND.of(word));
            if has_slots && block::NR_FREE.of(word) == BLOCK - self.slot_frames() {
                self.mend_block(block);
            }
        }
        self.has_spare.store(false, Relaxed);
    }

    /// Runs of which a broken block consists when all of it is free.
    fn runs_of_block(&self, block: u64) -> impl Iterator<Item = (Pfn, u8)> + use<M> {
        let (mut at, end) = (self.slot_frames(), BLOCK);
        core::iter::from_fn(move || {
            (at < end).then(|| {
                let order = at.trailing_zeros() as u8;
                let run = (Pfn::new(block * BLOCK + at), order);
                at += 1 << order;
                run
            })
        })
    }

    fn break_block(&self, block: u64, zeroed: bool) {
        let frames = self.slot_frames();
        let first = Pfn::new(block * BLOCK);
        if !zeroed {
            self.memory.zero(first, frames);
        }
        add_to(&self.broken, 1);
        add_to(&self.free, -(frames as i64));
        let word = block::KIND.bits(block::BROKEN) | block::NR_FREE.bits(BLOCK - frames);
        self.directory_word(block).store(word, Relaxed);
        for (pfn, order) in self.runs_of_block(block) {
            self.link_small(pfn, order, zeroed);
        }
    }

    fn mend_block(&self, block: u64) {
        let word = self.directory_word(block).load(Relaxed);
        let (first, place) = (Pfn::new(block * BLOCK), block::PLACE.of(word));
        for zero in [false, true] {
            if block::loose(zero, word) != 0 {
                self.unlink_loose(block, zero);
            }
        }
        // Loose frames are on no list: they go with the slots.
        let mut listed = block::NR_FREE.of(word) - block::NR_LOOSE.of(word);
        let mut pfn = first.add(if place == 0 { self.slot_frames() } else { 0 });
        while listed > 0 {
            let word = self.slot_head_from(place, pfn)[1].load(Relaxed);
            let mut order = 0;
            if KIND.of(word) == Kind::Free as u64 {
                order = slot::ORDER.of(word) as u8;
                self.unlink_small(pfn, order, slot::ZERO.of(word) == 1);
                listed -= 1 << order;
            }
            pfn = pfn.add(1 << order);
        }
        self.free_old_table(self.slot_head_from(place, first.add(place))[1].load(Relaxed));
        add_to(&self.displaced, -i64::from(place != 0));
        add_to(&self.broken, -1);
        add_to(&self.free, self.slot_frames() as i64);
        self.put_blocks(block, 9, false);
    }

    /// Notes that `frames` free frames of the block of `pfn` are free no more.
    fn count_taken(&self, pfn: Pfn, frames: u64) {
        let directory_word = self.directory_word(pfn.raw() / BLOCK);
        let word = directory_word.load(Relaxed);
        if block::NR_FREE.of(word) == BLOCK - self.slot_frames() {
            // The spare block, or a fresh one: it is in use from now on.
            self.has_spare.store(false, Relaxed);
        }
        directory_word.store(word - block::NR_FREE.bits(frames), Release);
    }

    /// Whether there is a whole block that is free.
    pub(super) fn has_block(&self) -> bool {
        self.filled.iter().any(|filled| filled.load(Relaxed) >> 9 != 0)
    }

    pub(super) fn take_blocks(&self, order: u8, want_zero: bool) -> Option<(u64, bool)> {
        let (zero, found) = [want_zero, !want_zero]
            .into_iter()
            .find_map(|zero| Some((zero, self.lowest_list(order..NR_ORDERS as u8, zero)?)))?;
        let block = self.first_block + self.heads[usize::from(zero)][usize::from(found)].load(Relaxed) - 1;
        self.unlink_blocks(block, found, zero);
        for half in (order..found).rev() {
            self.link_blocks(block + (1 << (half - 9)), half, zero);
        }
        Some((block, zero))
    }

    pub(super) fn put_blocks(&self, block: u64, order: u8, zeroed: bool) {
        let (mut block, mut order, mut zeroed) = (block, order, zeroed);
        while order < Order::MAX.get() {
            let buddy = block ^ 1 << (order - 9);
            if buddy.wrapping_sub(self.first_block) >= self.nr_blocks {
                break;
            }
            let word = self.directory_word(buddy).load(Relaxed);
            if block::KIND.of(word) != block::FREE || block::ORDER.of(word) != u64::from(order) {
                break;
            }
            let buddy_zero = block::ZERO.of(word) == 1;
            self.unlink_blocks(buddy, order, buddy_zero);
            zeroed &= buddy_zero;
            order += 1;
            block = block.min(buddy);
        }
        self.link_blocks(block, order, zeroed);
    }

    // --- loose frames ----------------------------------------------------------------------------------------

    /// Chains the `n` frames from `first` on, which count as free and are on no list, to their block.
    fn loosen(&self, first: Pfn, n: u64, zero: bool) {
        let (block, at) = (first.raw() / BLOCK, first.raw() % BLOCK);
        let directory_word = self.directory_word(block);
        let word = directory_word.load(Relaxed);
        let old = block::loose(zero, word);
        for i in 0..n {
            let next = if i + 1 < n { at + i + 1 } else { old };
            self.slot_head_from(0, first.add(i))[1].store(loose_word(zero, next), Relaxed);
        }
        // The sum stays in its field: a block has no more frames than that.
        let word = word + block::NR_LOOSE.bits(n);
        directory_word.store(word ^ block::loose_bits(zero, old ^ at), Release);
        if old == 0 {
            self.link_loose(block, zero);
        }
    }

    /// The loose frame that came last to `block`, which has some known to be zero, or others.
    #[inline(always)]
    fn take_loose(&self, block: u64, zero: bool) -> Run {
        let directory_word = self.directory_word(block);
        let word = directory_word.load(Relaxed);
        let at = block::loose(zero, word);
        let pfn = Pfn::new(block * BLOCK + at);
        let slot = self.slot_head_from(0, pfn);
        let next = slot::NEXT.get(&slot[1]);
        slot[1].store(0, Relaxed);
        if block::NR_FREE.of(word) == BLOCK - self.slot_frames() {
            // The spare block is in use from now on.
            self.has_spare.store(false, Relaxed);
        }
        let word = word - block::NR_FREE.bits(1) - block::NR_LOOSE.bits(1);
        directory_word.store(word ^ block::loose_bits(zero, at ^ next), Release);
        if next == 0 {
            self.unlink_loose(block, zero);
        }
        Run { pfn, zeroed: zero }
    }

    /// Merges all loose frames with their buddies.
    fn settle(&self) {
        for zero in [false, true] {
            while let Some(block) = self.loose[usize::from(zero)].load(Relaxed).checked_sub(1) {
                self.settle_block(self.first_block + block, zero);
            }
        }
    }

    /// Merges the loose frames of `block` that are known to be zero, or the others.
    fn settle_block(&self, block: u64, zero: bool) {
        let directory_word = self.directory_word(block);
        let mut at = block::loose(zero, directory_word.load(Relaxed));
        self.unlink_loose(block, zero);
        let mut n = 0;
        while at != 0 {
            let pfn = Pfn::new(block * BLOCK + at);
            let slot = self.slot_head_from(0, pfn);
            at = slot::NEXT.get(&slot[1]);
            slot[1].store(0, Relaxed);
            self.merge(pfn, 0, zero);
            n += 1;
        }
        let word = directory_word.load(Relaxed) - block::NR_LOOSE.bits(n);
        directory_word.store(word ^ block::loose_bits(zero, block::loose(zero, word)), Release);
    }

    /// The word with the links of a block with loose frames.
    fn loose_links(&self, block: u64, zero: bool) -> &AtomicU64 {
        &self.slot_head_from(0, Pfn::new(block * BLOCK + u64::from(zero)))[0]
    }

    #[inline(never)]
    fn link_loose(&self, block: u64, zero: bool) {
        let head = &self.loose[usize::from(zero)];
        let next = head.load(Relaxed).checked_sub(1);
        self.loose_links(block, zero)
            .store(block::PREV.bits(block::NONE) | block::NEXT.bits(next.unwrap_or(block::NONE)), Relaxed);
        if let Some(next) = next {
            block::PREV.set(self.loose_links(self.first_block + next, zero), block - self.first_block);
        }
        head.store(block - self.first_block + 1, Relaxed);
    }

    fn unlink_loose(&self, block: u64, zero: bool) {
        let links = self.loose_links(block, zero);
        let (prev, next) = (block::PREV.get(links), block::NEXT.get(links));
        if prev == block::NONE {
            let head = if next == block::NONE { 0 } else { next + 1 };
            self.loose[usize::from(zero)].store(head, Relaxed);
        } else {
            block::NEXT.set(self.loose_links(self.first_block + prev, zero), next);
        }
        if next != block::NONE {
            block::PREV.set(self.loose_links(self.first_block + next, zero), prev);
        }
    }

    // --- lists -----------------------------------------------------------------------------------------------
    // A head holds the node's number plus one, so that a cleared head is an empty list.

    fn set_head(&self, order: u8, zero: bool, head: u64) {
        self.heads[usize::from(zero)][usize::from(order)].store(head, Relaxed);
        let filled = &self.filled[usize::from(zero)];
        filled.store(filled.load(Relaxed) & !(1 << order) | u64::from(head != 0) << order, Relaxed);
    }

    fn link_small(&self, pfn: Pfn, order: u8, zero: bool) {
        let head = &self.heads[usize::from(zero)][usize::from(order)];
        let next = head.load(Relaxed).checked_sub(1);
        let slot = self.slot_head(pfn);
        slot[0].store(slot::PREV.bits(slot::NONE), Relaxed);
        slot[1].store(
            KIND.bits(Kind::Free as u64)
                | slot::ORDER.bits(u64::from(order))
                | slot::ZERO.bits(u64::from(zero))
                | slot::NEXT.bits(next.unwrap_or(slot::NONE)),
            Relaxed,
        );
        if let Some(next) = next {
            slot::PREV.set(&self.slot_head(Pfn::new(next))[0], pfn.raw());
        }
        self.set_head(order, zero, pfn.raw() + 1);
    }

    fn unlink_small(&self, pfn: Pfn, order: u8, zero: bool) {
        let slot = self.slot_head(pfn);
        let (prev, next) = (slot::PREV.get(&slot[0]), slot::NEXT.get(&slot[1]));
        slot[1].store(0, Relaxed);
        if prev == slot::NONE {
            let head = if next == slot::NONE { 0 } else { next + 1 };
            self.set_head(order, zero, head);
        } else {
            slot::NEXT.set(&self.slot_head(Pfn::new(prev))[1], next);
        }
        if next != slot::NONE {
            slot::PREV.set(&self.slot_head(Pfn::new(next))[0], prev);
        }
    }

    fn link_blocks(&self, block: u64, order: u8, zero: bool) {
        let head = &self.heads[usize::from(zero)][usize::from(order)];
        let next = head.load(Relaxed).checked_sub(1);
        self.directory_word(block).store(
            block::KIND.bits(block::FREE)
                | block::ORDER.bits(u64::from(order))
                | block::ZERO.bits(u64::from(zero))
                | block::PREV.bits(block::NONE)
                | block::NEXT.bits(next.unwrap_or(block::NONE)),
            Relaxed,
        );
        for i in 1..1 << (order - 9) {
            self.directory_word(block + i).store(block::PART_OF_FREE, Relaxed);
        }
        if let Some(next) = next {
            block::PREV.set(self.directory_word(self.first_block + next), block - self.first_block);
        }
        self.set_head(order, zero, block - self.first_block + 1);
    }

    fn unlink_blocks(&self, block: u64, order: u8, zero: bool) {
        let word = self.directory_word(block).load(Relaxed);
        let (prev, next) = (block::PREV.of(word), block::NEXT.of(word));
        self.directory_word(block).store(block::HOLE, Relaxed);
        if prev == block::NONE {
            let head = if next == block::NONE { 0 } else { next + 1 };
            self.set_head(order, zero, head);
        } else {
            block::NEXT.set(self.directory_word(self.first_block + prev), next);
        }
        if next != block::NONE {
            block::PREV.set(self.directory_word(self.first_block + next), prev);
        }
    }
}

/// Word 1 of the slot of a loose frame, behind which the chain goes on at frame `next` of the block.
fn loose_word(zero: bool, next: u64) -> u64 {
    KIND.bits(Kind::Loose as u64) | slot::ZERO.bits(u64::from(zero)) | slot::NEXT.bits(next)
}

/// Adds `n` to a number that changes under a lock only, which the caller holds; anybody may read it.
#[inline]
pub(crate) fn add_to(number: &AtomicU64, n: i64) {
    number.store(number.load(Relaxed).wrapping_add_signed(n), Relaxed);
}

/// Where a frame's folio keeps its descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    /// In the slot of the frame itself.
    Small(&'a [AtomicU64]),
    /// In a record.
    Large(Record),
}

impl Found<'_> {
    /// What word 0 of the slot of a larger folio's first frame says.
    #[inline]
    fn of_head(word: &AtomicU64) -> Self {
        Self::Large(Record::from_raw(word.load(Relaxed) as u32))
    }
}

// A block's directory word holds its kind, order, zero mark and both links.
const _: () = assert!(block::NEXT.end() <= 64);
