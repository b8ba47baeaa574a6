//! Words that several CPUs share: lock bits, and plain fields that a lock protects.
//!
//! Everything the manager keeps lives in frames as [`AtomicU64`] words, so a "plain" field is a word that is
//! only ever accessed with relaxed loads and stores while its lock is held: on x86 these are plain moves.
//!
//! Lock order, outermost first; a lock may be taken only while none of a later line is held:
//!
//! ```text
//! (an rmap walk starts at an object: it only tries space locks, and holds no lock but the space's over a flush)
//! move lock (one for all who move folios: split, migration; whoever holds it only tries space locks, and holds several)
//!   space lock (of one space; of two: parent before child in fork)
//!   vma lock (faults of one vma, under schemes that count regions)
//!   VM lock (of one VM of the space; faults and removals read, what changes slots or makes roots writes)
//!   region lock of a VM (changes of its leaves, under schemes that count regions)
//!   shadow lock of a VM (all that is composed for it, and which tables are tracked; held over the flush of what was composed)
//!   family lock (anonymous objects do not go)
//!   object lock (list of vmas, page cache; held over the copy when a cached folio is exchanged)
//!     table lock (of one table page; parent table before the child that is linked into it)
//!       folio lock (count changes of one folio; inside the scheme's own state)
//!         frame lock (free lists, slabs, directories)
//! ```

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

#[cfg(loom)]
mod explored;
pub mod tally;

#[cfg(not(loom))]
pub(crate) use core::{hint::spin_loop, sync::atomic::AtomicU64};
#[cfg(loom)]
pub use explored::{AtomicU64, spin_loop};

/// Holds one bit of a word as a lock; released on drop.
#[derive(Debug)]
#[must_use = "the lock is released when the guard goes"]
pub struct BitGuard<'a> {
    word: &'a AtomicU64,
    bit: u64,
}

/// Spins until bit `bit` (a mask) of `word` is ours. The other bits keep their value.
pub fn lock_bit(word: &AtomicU64, bit: u64) -> BitGuard<'_> {
    take_bit(word, bit);
    BitGuard { word, bit }
}

impl Drop for BitGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // A locked and: other bits of the word may be changed by CPUs that do not hold the lock.
        tally::note();
        self.word.fetch_and(!self.bit, Release);
    }
}

/// Spins until bit `bit` of `word` is ours; the word before. The caller clears the bit by a store with Release.
#[inline]
pub(crate) fn take_bit(word: &AtomicU64, bit: u64) -> u64 {
    loop {
        tally::note();
        // Acquire pairs with the Release that clears the bit: what the last holder wrote is seen.
        let before = word.fetch_or(bit, Acquire);
        if before & bit == 0 {
            return before;
        }
        while word.load(Relaxed) & bit != 0 {
            spin_loop();
        }
    }
}

/// Holds one bit of a word as a lock, of which the other bits change under this lock only: released on drop by a plain store, so taking and
/// releasing it is one locked operation.
#[derive(Debug)]
#[must_use = "the lock is released when the guard goes"]
pub(crate) struct StateGuard<'a> {
    word: &'a AtomicU64,
    bit: u64,
}

/// Spins until bit `bit` of `word` is ours, as all of the word is then.
pub(crate) fn lock_state(word: &AtomicU64, bit: u64) -> StateGuard<'_> {
    take_bit(word, bit);
    StateGuard { word, bit }
}

impl Drop for StateGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.word.store(self.word.load(Relaxed) & !self.bit, Release);
    }
}

/// Holds a word of its own as a lock; released on drop by a plain store, so taking and releasing it is
/// one locked operation.
#[derive(Debug)]
#[must_use = "the lock is released when the guard goes"]
pub struct WordGuard<'a>(&'a AtomicU64);

/// Spins until `word` is ours; nothing else may live in it.
#[inline]
pub fn lock_word(word: &AtomicU64) -> WordGuard<'_> {
    tally::note();
    // Acquire pairs with the Release in `drop`.
    while word.swap(1, Acquire) != 0 {
        while word.load(Relaxed) != 0 {
            spin_loop();
        }
    }
    WordGuard(word)
}

impl Drop for WordGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Release);
    }
}

const WRITER: u64 = 1 << 63;

/// A shared hold on a word used as a reader-writer lock.
#[derive(Debug)]
#[must_use = "the lock is released when the guard goes"]
pub struct ReadGuard<'a>(&'a AtomicU64);

/// An exclusive hold on a word used as a reader-writer lock.
#[derive(Debug)]
#[must_use = "the lock is released when the guard goes"]
pub struct WriteGuard<'a>(&'a AtomicU64);

/// Spins until `word` may be read under.
#[inline]
pub fn read_lock(word: &AtomicU64) -> ReadGuard<'_> {
    loop {
        let now = word.load(Relaxed);
        tally::note();
        // Acquire pairs with the Release of `WriteGuard`.
        if now & WRITER == 0 && word.compare_exchange_weak(now, now + 1, Acquire, Relaxed).is_ok() {
            return ReadGuard(word);
        }
        spin_loop();
    }
}

/// Spins until `word` is exclusively ours.
#[inline]
pub fn write_lock(word: &AtomicU64) -> WriteGuard<'_> {
    loop {
        tally::note();
        // Acquire pairs with the Releases of both guards.
        if word.compare_exchange_weak(0, WRITER, Acquire, Relaxed).is_ok() {
            return WriteGuard(word);
        }
        spin_loop();
    }
}

/// Takes `word` exclusively if nobody holds it: for who may not wait. [`end_write`] gives it back.
#[must_use = "the lock is held when this is true"]
pub fn try_write(word: &AtomicU64) -> bool {
    // Acquire pairs with the Releases of both guards.
    word.compare_exchange(0, WRITER, Acquire, Relaxed).is_ok()
}

/// Gives back what [`try_write`] took.
pub fn end_write(word: &AtomicU64) {
    debug_assert_eq!(word.load(Relaxed), WRITER, "not held exclusively");
    word.store(0, Release);
}

/// Takes `word` shared unless somebody has it exclusively: for who may not wait. [`end_read`] gives it back.
#[must_use = "the lock is held when this is true"]
pub fn try_read(word: &AtomicU64) -> bool {
    // Acquire pairs with the Release of `WriteGuard`.
    word.fetch_update(Acquire, Relaxed, |now| (now & WRITER == 0).then_some(now + 1)).is_ok()
}

/// Gives back what [`try_read`] took.
pub fn end_read(word: &AtomicU64) {
    let before = word.fetch_sub(1, Release);
    debug_assert!(before & WRITER == 0 && before > 0, "not held shared");
}

impl Drop for ReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        tally::note();
        self.0.fetch_sub(1, Release);
    }
}

impl Drop for WriteGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Release);
    }
}

/// A field that a lock protects: relaxed loads and stores, with bits `SHIFT..SHIFT + BITS` of a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<const SHIFT: u32, const BITS: u32>;

impl<const SHIFT: u32, const BITS: u32> Field<SHIFT, BITS> {
    const MASK: u64 = if BITS == 64 { u64::MAX } else { (1 << BITS) - 1 };

    /// The first bit behind it.
    pub(crate) const fn end(self) -> u32 {
        SHIFT + BITS
    }

    /// The field's value in `raw`.
    pub(crate) const fn of(self, raw: u64) -> u64 {
        raw >> SHIFT & Self::MASK
    }

    /// The field's bits for `value`.
    pub(crate) const fn bits(self, value: u64) -> u64 {
        debug_assert!(value <= Self::MASK);
        (value & Self::MASK) << SHIFT
    }

    pub(crate) fn get(self, word: &AtomicU64) -> u64 {
        self.of(word.load(Relaxed))
    }

    /// A load and a store: the caller holds the lock of the word.
    pub(crate) fn set(self, word: &AtomicU64, value: u64) {
        let rest = word.load(Relaxed) & !(Self::MASK << SHIFT);
        word.store(rest | self.bits(value), Relaxed);
    }
}

/// A 32-bit count in one half of a word, changed by locked operations.
#[derive(Clone, Copy, Debug)]
pub struct Count32<'a> {
    word: &'a AtomicU64,
    shift: u32,
}

impl<'a> Count32<'a> {
    /// The low half of `word`.
    #[must_use]
    pub fn low(word: &'a AtomicU64) -> Self {
        Self { word, shift: 0 }
    }

    /// The high half of `word`.
    #[must_use]
    pub fn high(word: &'a AtomicU64) -> Self {
        Self { word, shift: 32 }
    }

    /// The count now.
    #[must_use]
    #[inline]
    pub fn get(self) -> u32 {
        (self.word.load(Relaxed) >> self.shift) as u32
    }

    /// Adds `n` with one locked operation; the count before. Counts are kept far below 2^31 by the overflow
    /// limit, so the low half never carries into the high one.
    #[expect(clippy::should_implement_trait, reason = "a locked operation, not a sum")]
    #[inline]
    pub fn add(self, n: u32) -> u32 {
        tally::note();
        (self.word.fetch_add(u64::from(n) << self.shift, Relaxed) >> self.shift) as u32
    }

    /// Replaces the count by what `f` makes of it; the count before.
    pub fn update(self, f: impl Fn(u32) -> u32) -> u32 {
        tally::note();
        let mask = u64::from(u32::MAX) << self.shift;
        let changed = self.word.fetch_update(Relaxed, Relaxed, |word| {
            Some(word & !mask | u64::from(f((word >> self.shift) as u32)) << self.shift)
        });
        (changed.unwrap_or_else(|word| word) >> self.shift) as u32
    }

    /// Subtracts `n` with one locked operation; the count before.
    ///
    /// # Panics
    /// In debug builds, when the count was below `n`: that is a bug of the caller.
    #[expect(clippy::should_implement_trait, reason = "a locked operation, not a difference")]
    #[inline]
    pub fn sub(self, n: u32) -> u32 {
        tally::note();
        let before = (self.word.fetch_sub(u64::from(n) << self.shift, Relaxed) >> self.shift) as u32;
        debug_assert!(before >= n, "count {before} below {n}");
        before
    }
}
