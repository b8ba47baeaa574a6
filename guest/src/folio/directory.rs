//! Records with dense numbers: address spaces and memory objects, whose numbers must be small.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::buddy::Frames;
use super::descriptor::Kind;
use crate::addr::{ENTRIES, Order, Pfn};
use crate::memory::Memory;
use crate::sync::{AtomicU64, lock_word};

/// Records of [`Directory::WORDS`] words, numbered from 1, behind a radix tree of three levels.
#[derive(Debug)]
pub struct Directory {
    lock: AtomicU64,
    root: AtomicU64,
    next: AtomicU64,
    free: AtomicU64,
    in_use: AtomicU64,
    nr_frames: AtomicU64,
}

impl Directory {
    /// Words of a record. Word 0 is not zero while the record is in use.
    pub const WORDS: usize = 16;
    const PER_FRAME: u64 = (ENTRIES / Self::WORDS) as u64;
    /// Numbers are below this: 22 bits, what a descriptor has room for.
    pub const END: u64 = 1 << 22;

    /// An empty directory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lock: AtomicU64::new(0),
            root: AtomicU64::new(0),
            next: AtomicU64::new(1),
            free: AtomicU64::new(0),
            in_use: AtomicU64::new(0),
            nr_frames: AtomicU64::new(0),
        }
    }

    /// Records in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Relaxed)
    }

    /// Frames spent.
    #[must_use]
    pub fn nr_frames(&self) -> u64 {
        self.nr_frames.load(Relaxed)
    }

    /// Numbers handed out so far are below this.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.next.load(Relaxed) as u32
    }

    /// The words of record `number`, which was allocated before.
    #[inline]
    pub fn get<'a, M: Memory>(&self, frames: &'a Frames<M>, number: u32) -> &'a [AtomicU64; Self::WORDS] {
        let leaf = u64::from(number) / Self::PER_FRAME;
        let root = Pfn::new(self.root.load(Acquire));
        let mid = frames.memory().frame(root).0[(leaf / ENTRIES as u64) as usize % ENTRIES].load(Acquire);
        let frame = frames.memory().frame(Pfn::new(mid)).0[leaf as usize % ENTRIES].load(Acquire);
        let nth = (u64::from(number) % Self::PER_FRAME) as usize;
        &frames.memory().frame(Pfn::new(frame)).0.as_chunks().0[nth]
    }

    /// Whether record `number`, which was allocated once, is in use now.
    pub fn is_in_use<M: Memory>(&self, frames: &Frames<M>, number: u32) -> bool {
        self.get(frames, number)[0].load(Acquire) != 0
    }

    /// A cleared record, but for word 0 which is 1; or `None` without a frame for it.
    pub fn alloc<M: Memory>(&self, frames: &Frames<M>) -> Option<u32> {
        let _guard = lock_word(&self.lock);
        let free = self.free.load(Relaxed) as u32;
        let number = if free != 0 {
            self.free.store(self.get(frames, free)[1].load(Relaxed), Relaxed);
            free
        } else {
            let number = self.next.load(Relaxed);
            if number >= Self::END {
                return None;
            }
            self.reach(frames, number)?;
            self.next.store(number + 1, Relaxed);
            number as u32
        };
        let words = self.get(frames, number);
        for word in &words[1..] {
            word.store(0, Relaxed);
        }
        // Release pairs with the Acquire in `is_in_use`: whoever sees it in use sees it cleared.
        words[0].store(1, Release);
        self.in_use.fetch_add(1, Relaxed);
        Some(number)
    }

    /// Takes a number back.
    pub fn free<M: Memory>(&self, frames: &Frames<M>, number: u32) {
        let _guard = lock_word(&self.lock);
        let words = self.get(frames, number);
        words[0].store(0, Relaxed);
        words[1].store(self.free.load(Relaxed), Relaxed);
        self.free.store(u64::from(number), Relaxed);
        self.in_use.fetch_sub(1, Relaxed);
    }

    /// Gives all frames back if no record is in use.
    pub fn trim<M: Memory>(&self, frames: &Frames<M>) {
        let _guard = lock_word(&self.lock);
        if self.in_use.load(Relaxed) != 0 || self.root.load(Relaxed) == 0 {
            return;
        }
        let give = |pfn: u64| {
            frames.free(Pfn::new(pfn), Order::BASE, false);
            self.nr_frames.fetch_sub(1, Relaxed);
        };
        let root = self.root.swap(0, Relaxed);
        for mid in &frames.memory().frame(Pfn::new(root)).0 {
            let mid = mid.load(Relaxed);
            if mid == 0 {
                continue;
            }
            for leaf in &frames.memory().frame(Pfn::new(mid)).0 {
                let leaf = leaf.load(Relaxed);
                if leaf != 0 {
                    give(leaf);
                }
            }
            give(mid);
        }
        give(root);
        self.next.store(1, Relaxed);
        self.free.store(0, Relaxed);
    }

    /// Makes the frames on the way to `number`.
    fn reach<M: Memory>(&self, frames: &Frames<M>, number: u64) -> Option<()> {
        let leaf = number / Self::PER_FRAME;
        let root = self.ensure(frames, &self.root)?;
        let mid = self.ensure(frames, &frames.memory().frame(root).0[(leaf / ENTRIES as u64) as usize])?;
        self.ensure(frames, &frames.memory().frame(mid).0[leaf as usize % ENTRIES])?;
        Some(())
    }

    fn ensure<M: Memory>(&self, frames: &Frames<M>, link: &AtomicU64) -> Option<Pfn> {
        let now = link.load(Relaxed);
        if now != 0 {
            return Some(Pfn::new(now));
        }
        let run = frames.alloc(Order::BASE, true)?;
        frames.mark(run.pfn, Kind::Records);
        if !run.zeroed {
            frames.memory().zero(run.pfn, 1);
        }
        // Release pairs with the Acquires in `get`.
        link.store(run.pfn.raw(), Release);
        self.nr_frames.fetch_add(1, Relaxed);
        Some(run.pfn)
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(Directory::END == 512 * 512 * 32 / 2);
