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
}

impl Frames {
    pub(crate) fn new(count: usize, has_full_tables: bool) -> Self {
        let frames = (0..count).map(|_| Frame([const { AtomicU64::new(0) }; ENTRIES])).collect();
        Self { frames, has_full_tables }
    }
}

impl Memory for Frames {
    fn frame(&self, pfn: Pfn) -> &Frame {
        &self.frames[pfn.raw() as usize]
    }

    /// Clearing tenants' memory is not measured here, and needs not be done, as nobody stores to it; looking at it would cost a cache miss for each folio. What the
    /// manager itself leaves in frames tells by a few words: tables that a leaf took the place of are full to the last, and the slots of a block that was broken once
    /// are never all clear (the first run behind 2 frames of slots).
    fn zero(&self, first: Pfn, count: u64) {
        let telling = match count {
            1 if self.has_full_tables => ENTRIES - 1,
            2 => 4,
            _ => return,
        };
        if self.frame(first).0[telling].load(Relaxed) != 0 {
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
