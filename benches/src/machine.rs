//! Frames in one allocation, which nothing translates through: what an embedder's memory looks like at its cheapest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::addr::{ENTRIES, Pfn};
use quire::memory::{FlushScope, Frame, Memory, Tlb};

/// The frames, numbered from 0.
#[derive(Debug)]
pub(crate) struct Frames {
    frames: Vec<Frame>,
    /// Whether tables go while they are full: those of leaves that are made one.
    has_full_tables: bool,
    /// Frames that the slots of a broken block take.
    slot_frames: u64,
}

impl Frames {
    /// For a manager whose small folios have descriptors of `slot_words` words.
    pub(crate) fn new(count: usize, has_full_tables: bool, slot_words: usize) -> Self {
        let frames = (0..count).map(|_| Frame([const { AtomicU64::new(0) }; ENTRIES])).collect();
        Self { frames, has_full_tables, slot_frames: (slot_words * 8 * ENTRIES).div_ceil(4096) as u64 }
    }
}

impl Memory for Frames {
    fn frame(&self, pfn: Pfn) -> &Frame {
        &self.frames[pfn.raw() as usize]
    }

    /// Clearing tenants' memory is not measured here, and needs not be done, as nobody stores to it; looking at it would cost a cache miss for each folio. What the
    /// manager itself leaves in frames is cleared: tables that a leaf took the place of, which are full to the last; and the slots of a block. No folio that is
    /// measured has two frames; where slots take more, what is said of the first frame behind them tells them from a folio.
    fn zero(&self, first: Pfn, count: u64) {
        let word = |word: u64| self.frame(first).0[word as usize].load(Relaxed);
        let is_left = match count {
            1 => self.has_full_tables && word(ENTRIES as u64 - 1) != 0,
            2 => true,
            _ => count == self.slot_frames && (word(count * count) | word(count * count + 1)) != 0,
        };
        if is_left {
            for i in 0..count {
                self.frame(first.add(i)).0.iter().for_each(|word| word.store(0, Relaxed));
            }
        }
    }

    /// Nor is copying.
    fn copy(&self, _from: Pfn, _to: Pfn) {}
}

impl Tlb for Frames {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {}
}
