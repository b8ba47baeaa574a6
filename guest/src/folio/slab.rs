//! Records of one size, carved from frames: descriptors of large folios, vmas.

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

/// A pool of records of one size, under the lock of the frames. Free records are chained through their first word, the frames through the words that
/// their slots have for their owner.
#[derive(Debug)]
pub struct Slab {
    words: usize,
    free: AtomicU64,
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
        Self {
            words,
            free: AtomicU64::new(0),
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
        if self.free.load(Relaxed) == 0 {
            self.grow(frames, must)?;
        }
        let record = Record(self.free.load(Relaxed) as u32);
        self.free.store(frames.record_of::<8>(record)[0].load(Relaxed), Relaxed);
        add_to(&self.in_use, 1);
        Some(record)
    }

    /// Takes a record back.
    pub fn free<M: Memory>(&self, frames: &Frames<M>, record: Record) {
        let _guard = frames.lock();
        self.free_locked(frames, record);
    }

    /// As [`free`](Self::free); the caller has the lock of the frames.
    pub(super) fn free_locked<M: Memory>(&self, frames: &Frames<M>, record: Record) {
        frames.record_of::<8>(record)[0].store(self.free.load(Relaxed), Relaxed);
        self.free.store(u64::from(record.0), Relaxed);
        add_to(&self.in_use, -1);
    }

    /// Gives all frames back if no record is in use.
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
        while let Some(pfn) = self.frames.load(Relaxed).checked_sub(1) {
            let pfn = Pfn::new(pfn);
            self.frames.store(frames.marked(pfn).load(Relaxed), Relaxed);
            add_to(&self.nr_frames, -1);
            frames.free_locked(pfn, Order::BASE, false);
        }
    }

    fn grow<M: Memory>(&self, frames: &Frames<M>, must: bool) -> Option<()> {
        let run = frames.alloc_locked(Order::BASE, false, must)?;
        if run.pfn.raw() >> 26 != 0 {
            // Beyond what a record's number can name.
            frames.free_locked(run.pfn, Order::BASE, run.zeroed);
            return None;
        }
        frames.mark(run.pfn, Kind::Records).store(self.frames.load(Relaxed), Relaxed);
        self.frames.store(run.pfn.raw() + 1, Relaxed);
        add_to(&self.nr_frames, 1);
        let first = (run.pfn.raw() << 6) as u32;
        let step = self.words as u32 / 8;
        // Records may have come back meanwhile.
        let mut next = self.free.load(Relaxed) as u32;
        // No record has number 0.
        for i in (u32::from(first == 0)..(ENTRIES / self.words) as u32).rev() {
            let record = first + i * step;
            frames.record_of::<8>(Record(record))[0].store(u64::from(next), Relaxed);
            next = record;
        }
        self.free.store(u64::from(next), Relaxed);
        Some(())
    }
}
