//! What an embedder brings: memory as frames, and a way to flush translations.
//!
//! The manager keeps everything it knows (tables, descriptors, records) in frames, as atomic words; it
//! needs no allocator, has no globals and no `unsafe`.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use crate::addr::{ENTRIES, Pfn};
use crate::sync::AtomicU64;

/// One frame, seen as 512 words. The MMU, tenants and other CPUs write the same memory, so every word is atomic.
#[repr(C, align(4096))]
pub struct Frame(pub [AtomicU64; ENTRIES]);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frame(..)")
    }
}

/// Frames by number.
pub trait Memory {
    /// The words of frame `pfn`. Every frame that was given to the manager must be reachable for as long
    /// as the manager lives, and two numbers must never name the same memory.
    fn frame(&self, pfn: Pfn) -> &Frame;

    /// As [`frame`](Self::frame), of a table that is only looked at on the way to another. Where stores to tables are watched, as in a VM, looking is none.
    #[inline]
    fn frame_to_look(&self, pfn: Pfn) -> &Frame {
        self.frame(pfn)
    }

    /// Clears `count` frames from `first` on. An implementation may do this by whatever is fastest.
    fn zero(&self, first: Pfn, count: u64) {
        for i in 0..count {
            for word in &self.frame(first.add(i)).0 {
                word.store(0, Relaxed);
            }
        }
    }

    /// Copies one frame.
    fn copy(&self, from: Pfn, to: Pfn) {
        for (from, to) in self.frame(from).0.iter().zip(&self.frame(to).0) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }
}

/// What a flush must reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushScope {
    /// Pages `first..first + pages` of one address space.
    Pages {
        /// First page number.
        first: u64,
        /// How many pages.
        pages: u64,
    },
    /// Everything of one address space.
    Space,
}

/// The machine's translation caches.
pub trait Tlb {
    /// Drops every cached translation of the tables rooted at `root` within `scope`, on every CPU, and
    /// returns only when that has happened: what was mapped there may be freed afterwards.
    fn flush(&self, root: Pfn, scope: FlushScope);

    /// As [`flush`](Self::flush), of the stage-2 tables rooted at `root`, and of whatever the CPUs have combined from them: INVEPT, a new ASID.
    /// Nothing to do where no MMU walks stage-2 tables.
    fn flush_stage2(&self, root: Pfn, scope: FlushScope) {
        let _ = (root, scope);
    }

    /// Leaves of the stage-2 tables rooted at `root` were narrowed or are gone: no guest may be entered on them before a [flush](Self::flush_stage2). An embedder
    /// whose CPU would not show that one was forgotten keeps account.
    fn owe_stage2(&self, root: Pfn) {
        let _ = root;
    }

    /// A root table was made, with all entries absent. An embedder that keeps part of every address space for itself (an upper
    /// half) enters it here, above the tenant's pages.
    fn new_root(&self, root: Pfn) {
        let _ = root;
    }
}

impl<T: Memory> Memory for &T {
    fn frame(&self, pfn: Pfn) -> &Frame {
        (**self).frame(pfn)
    }
    fn frame_to_look(&self, pfn: Pfn) -> &Frame {
        (**self).frame_to_look(pfn)
    }
    fn zero(&self, first: Pfn, count: u64) {
        (**self).zero(first, count);
    }
    fn copy(&self, from: Pfn, to: Pfn) {
        (**self).copy(from, to);
    }
}

impl<T: Tlb> Tlb for &T {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        (**self).flush(root, scope);
    }
    fn flush_stage2(&self, root: Pfn, scope: FlushScope) {
        (**self).flush_stage2(root, scope);
    }
    fn owe_stage2(&self, root: Pfn) {
        (**self).owe_stage2(root);
    }
    fn new_root(&self, root: Pfn) {
        (**self).new_root(root);
    }
}
