//! Frames in one allocation, which nothing translates through: what an embedder's memory looks like at its cheapest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::addr::{ENTRIES, Pfn};
use quire::memory::{FlushScope, Frame, Memory, Tlb};

/// The frames, numbered from 0.
#[derive(Debug)]
pub(crate) struct Frames(Vec<Frame>);

impl Frames {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| Frame([const { AtomicU64::new(0) }; ENTRIES])).collect())
    }
}

impl Memory for Frames {
    fn frame(&self, pfn: Pfn) -> &Frame {
        &self.0[pfn.raw() as usize]
    }

    /// Clearing tenants' memory is not measured here, and needs not be done, as nobody stores to it. What the manager itself leaves in frames tells by a few
    /// words: tables that a leaf took the place of are full to the last, and the slots of a block that was broken once are never all clear (the first
    /// run behind 2, 4, 8 or 16 frames of slots).
    fn zero(&self, first: Pfn, count: u64) {
        let telling: &[usize] = match count {
            1 => &[ENTRIES - 1],
            2..=16 => &[4, 16, 64, 256],
            _ => &[],
        };
        if telling.iter().any(|&word| self.frame(first).0[word].load(Relaxed) != 0) {
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
