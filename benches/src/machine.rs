//! Frames in one allocation, which nothing translates through: what an embedder's memory looks like at its cheapest.

use std::sync::atomic::AtomicU64;

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

    /// A frame of 4 KiB is a table and must be cleared; larger runs are tenants' memory, whose clearing is
    /// not measured here.
    fn zero(&self, first: Pfn, count: u64) {
        if count <= 2 {
            for i in 0..count {
                for word in &self.frame(first.add(i)).0 {
                    word.store(0, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
    }

    /// Nor is copying.
    fn copy(&self, _from: Pfn, _to: Pfn) {}
}

impl Tlb for Frames {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {}
}
