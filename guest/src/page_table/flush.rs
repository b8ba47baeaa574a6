//! The duty to flush, and what may only be freed afterwards.

use core::fmt;
use core::ops::Range;

use arrayvec::ArrayVec;

use super::Tables;
use super::cursor::are_absent;
use crate::addr::{PAGE_SHIFT, Pfn};
use crate::memory::{FlushScope, Tlb};
use core::sync::atomic::Ordering::Relaxed;

/// How many removed things travel in one token. When it is full the operation flushes and goes on with a new one: half a table of single pages at once, as where a host
/// emulates the reload of a root it takes as long as all else that an unmap does to hundreds of them.
pub const FLUSH_CAPACITY: usize = 256;

/// Beyond this many pages the whole space is flushed: one root reload is cheaper than so many INVLPGs.
const SPACE_FLUSH_PAGES: u64 = 33;

/// Translations that were removed or narrowed and may still be cached, with the things they led to.
///
/// The order is law: clear entries, flush, subtract counts, drop references, free. So whatever an entry led
/// to is put into the token when the entry is cleared, and comes out of [`Flush::finish`] after the flush.
#[must_use = "cached translations are stale until the flush is finished"]
pub struct Flush<I> {
    first: u64,
    end: u64,
    items: ArrayVec<I, FLUSH_CAPACITY>,
    /// Removed table pages, chained through their first word. A link is a frame's address, whose low bits are
    /// clear: to an MMU that still walks the table it is an absent entry in every format.
    tables: Option<Pfn>,
    /// Whether all of these hold nothing but the link: they are known to be zero when that is gone.
    cleared: bool,
}

impl<I> Flush<I> {
    /// Nothing to flush yet.
    pub fn new() -> Self {
        Self { first: u64::MAX, end: 0, items: ArrayVec::new(), tables: None, cleared: true }
    }

    /// Adds pages whose translations must go.
    pub fn add_pages(&mut self, first: u64, pages: u64) {
        self.first = self.first.min(first);
        self.end = self.end.max(first + pages);
    }

    /// Adds something to be released after the flush.
    ///
    /// # Panics
    /// When the token [`is_full`](Self::is_full).
    pub fn push(&mut self, item: I) {
        assert!(self.items.try_push(item).is_ok(), "flush token is full");
    }

    /// Whether it must be finished before another [`push`](Self::push).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.items.is_full()
    }

    /// The pages whose translations must go: none when the range is empty.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        self.first..self.end
    }

    /// What waits to be released.
    #[must_use]
    pub fn items(&self) -> &[I] {
        &self.items
    }

    /// Whether nothing waits for it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == 0 && self.items.is_empty() && self.tables.is_none()
    }

    /// Adds a table page that was unlinked. `cleared`: all of its entries are absent.
    pub(super) fn push_table<T: Tables>(&mut self, tables: &T, table: Pfn, cleared: bool) {
        let link = self.tables.map_or(0, |next| next.raw() << PAGE_SHIFT);
        tables.entries(table)[0].store(link, Relaxed);
        self.tables = Some(table);
        self.cleared &= cleared;
    }

    /// Flushes the address space rooted at `root`, then shows the removed items, if there are any, and frees the tables. The token is
    /// empty afterwards and may be used on.
    #[inline]
    pub fn finish<T: Tables>(&mut self, tlb: &impl Tlb, tables: &T, root: Pfn, release: impl FnOnce(&[I])) {
        if self.tables.is_some() {
            // A paging-structure cache may hold a removed table: INVLPG drops those, but only for the addresses
            // it is told (SDM vol. 3, 4.10.4.1).
            tlb.flush(root, FlushScope::Space);
        } else if self.end > self.first {
            let pages = self.end - self.first;
            let scope = if pages < SPACE_FLUSH_PAGES {
                FlushScope::Pages { first: self.first, pages }
            } else {
                FlushScope::Space
            };
            tlb.flush(root, scope);
        }
        (self.first, self.end) = (u64::MAX, 0);
        if !self.items.is_empty() {
            release(&self.items);
            self.items.clear();
        }
        while let Some(table) = self.tables {
            let entries = tables.entries(table);
            let link = entries[0].load(Relaxed);
            self.tables = (link != 0).then(|| Pfn::from_address(link));
            entries[0].store(0, Relaxed);
            debug_assert!(!self.cleared || are_absent(entries), "{table:?} holds something");
            tables.free_table(table, self.cleared);
        }
        self.cleared = true;
    }
}

impl<I> Default for Flush<I> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I> fmt::Debug for Flush<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flush({:#x}..{:#x}, {} items)", self.first, self.end, self.items.len())
    }
}

impl<I> Drop for Flush<I> {
    fn drop(&mut self) {
        debug_assert!(self.is_empty(), "a flush was forgotten: {self:?}");
    }
}
