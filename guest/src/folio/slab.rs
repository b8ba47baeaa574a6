//! Records of one size, carved from frames: descriptors of large folios and their extensions, vmas.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::buddy::{Frames, add_to};
use super::descriptor::Kind;
use crate::addr::{ENTRIES, Order, Pfn};
use crate::memory::Memory;
use crate::sync::AtomicU64;

/// Names a record by its physical address in units of 64 bytes, so that a record in the first 256 GiB is one 32-bit word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record(u32);

impl Record {
    /// The record with number `raw`.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Its number; never 0.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({:#x})", self.0)
    }
}

/// A pool of pieces of memory of one size, under the lock of the frames: records, where a unit is 8 words, or smaller ones. A piece has the number of its first unit: its physical
/// address in units. Free ones are chained through their first word, the frames through the words that their slots have for their owner. A frame is cut up piece by piece, as
/// they are wanted: nobody who needs one waits for all of them.
#[derive(Debug)]
pub struct Slab<const UNIT: usize = 8> {
    words: usize,
    free: AtomicU64,
    /// The next piece of the last frame that nobody has had yet, if one is left.
    next: AtomicU64,
    left: AtomicU64,
    /// The last frame plus one.
    frames: AtomicU64,
    nr_frames: AtomicU64,
    in_use: AtomicU64,
}

impl Slab {
    /// A pool of records of `words` words: a power of two, 8 to 128.
    #[must_use]
    pub const fn new(words: usize) -> Self {
        assert!(words.is_power_of_two() && words >= 8 && words <= 128, "records are 64 to 1024 bytes");
        Self::of_pieces(words)
    }

    /// A cleared record, or `None` when it would need a frame and there is none.
    pub fn alloc<M: Memory>(&self, frames: &Frames<M>) -> Option<Record> {
        self.alloc_cleared(frames, false)
    }

    /// As [`alloc`](Self::alloc), with a frame of the reserve if it must be: for what removals need.
    pub(crate) fn alloc_from_reserve<M: Memory>(&self, frames: &Frames<M>) -> Option<Record> {
        self.alloc_cleared(frames, true)
    }

    fn alloc_cleared<M: Memory>(&self, frames: &Frames<M>, must: bool) -> Option<Record> {
        let record = {
            let _guard = frames.lock();
            self.alloc_locked(frames, must)?
        };
        for word in frames.record(record, self.words) {
            word.store(0, Relaxed);
        }
        Some(record)
    }

    /// A record with whatever it holds. The caller has the lock of the frames.
    pub(super) fn alloc_locked<M: Memory>(&self, frames: &Frames<M>, must: bool) -> Option<Record> {
        self.take(frames, must).map(|number| Record(number as u32))
    }

    /// Takes a record back.
    pub fn free<M: Memory>(&self, frames: &Frames<M>, record: Record) {
        let _guard = frames.lock();
        self.free_locked(frames, record);
    }

    /// As [`free`](Self::free); the caller has the lock of the frames.
    pub(super) fn free_locked<M: Memory>(&self, frames: &Frames<M>, record: Record) {
        self.give(frames, u64::from(record.0));
    }
}

impl<const UNIT: usize> Slab<UNIT> {
    /// A pool of pieces of `words` words, which are whole units; of none, one that nothing is taken from.
    pub(super) const fn of_pieces(words: usize) -> Self {
        assert!(words.is_multiple_of(UNIT) && words * 2 <= ENTRIES, "a frame holds two at least: frame 0 has one less");
        Self {
            words,
            free: AtomicU64::new(0),
            next: AtomicU64::new(0),
            left: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            nr_frames: AtomicU64::new(0),
            in_use: AtomicU64::new(0),
        }
    }

    /// Words of a record.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words
    }

    /// Records in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Relaxed)
    }

    /// Frames that hold records.
    #[must_use]
    pub fn nr_frames(&self) -> u64 {
        self.nr_frames.load(Relaxed)
    }

    /// The number of a piece with whatever it holds, or `None` when it would need a frame and there is none, but for the reserve if it `must` be. The caller has the lock of
    /// the frames, as for [`give`](Self::give).
    pub(super) fn take<M: Memory>(&self, frames: &Frames<M>, must: bool) -> Option<u64> {
        let mut number = self.free.load(Relaxed);
        if number == 0 {
            number = self.cut(frames, must)?;
        } else {
            self.free.store(frames.unit::<UNIT>(number)[0].load(Relaxed), Relaxed);
        }
        add_to(&self.in_use, 1);
        Some(number)
    }

    /// A piece that nobody has had yet.
    fn cut<M: Memory>(&self, frames: &Frames<M>, must: bool) -> Option<u64> {
        if self.left.load(Relaxed) == 0 {
            self.grow(frames, must)?;
        }
        add_to(&self.left, -1);
        let number = self.next.load(Relaxed);
        add_to(&self.next, (self.words / UNIT) as i64);
        Some(number)
    }

    /// Takes a piece back.
    pub(super) fn give<M: Memory>(&self, frames: &Frames<M>, number: u64) {
        frames.unit::<UNIT>(number)[0].store(self.free.load(Relaxed), Relaxed);
        self.free.store(number, Relaxed);
        add_to(&self.in_use, -1);
    }

    /// Gives all frames back if nothing is in use.
    pub fn trim<M: Memory>(&self, frames: &Frames<M>) {
        let _guard = frames.lock();
        self.trim_locked(frames);
    }

    /// As [`trim`](Self::trim); the caller has the lock of the frames.
    pub(super) fn trim_locked<M: Memory>(&self, frames: &Frames<M>) {
        if self.in_use.load(Relaxed) != 0 {
            return;
        }
        self.free.store(0, Relaxed);
        self.left.store(0, Relaxed);
        while let Some(pfn) = self.frames.load(Relaxed).checked_sub(1) {
            let pfn = Pfn::new(pfn);
            self.frames.store(frames.marked(pfn).load(Relaxed), Relaxed);
            add_to(&self.nr_frames, -1);
            frames.free_locked(pfn, Order::BASE, false);
        }
    }

    fn grow<M: Memory>(&self, frames: &Frames<M>, must: bool) -> Option<()> {
        let run = frames.alloc_locked(Order::BASE, false, must)?;
        if UNIT == 8 && run.pfn.raw() >> 26 != 0 {
            // Beyond what a record's number can name.
            frames.free_locked(run.pfn, Order::BASE, run.zeroed);
            return None;
        }
        frames.mark(run.pfn, Kind::Records).store(self.frames.load(Relaxed), Relaxed);
        self.frames.store(run.pfn.raw() + 1, Relaxed);
        add_to(&self.nr_frames, 1);
        let pieces = (ENTRIES / self.words) as u64;
        // None has number 0.
        let skipped = u64::from(run.pfn.raw() == 0);
        self.next.store(run.pfn.raw() * (ENTRIES / UNIT) as u64 + skipped * (self.words / UNIT) as u64, Relaxed);
        self.left.store(pieces - skipped, Relaxed);
        Some(())
    }
}
