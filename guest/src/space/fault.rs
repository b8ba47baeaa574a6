//! Faults: the largest folio that policy, alignment and memory allow, and every page of it that fits this vma and
//! this table mapped in one batch with one accounting call.
//!
//! A fault holds the space lock shared. It allocates and fills the folio first, then takes the table lock, looks
//! again, and gives the folio back when another CPU was faster.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::rights::stack_grows;
use super::vma::{Vma, VmaFlags};
use super::{Change, LargeFolios, Manager, Removed, Space, SpaceId};
use crate::addr::{Gva, Level, Order, Pfn};
use crate::folio::{Folio, FolioFlags, Mapping};
use crate::format::{Attrs, Entry, Leaf, LongMode};
use crate::mapcount::{Accounting, Batch, Class, Neighbours, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, OpenError, Part, Place, Tables, are_absent};
use crate::sync::{lock_word, read_lock, write_lock};

/// What the tenant tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A fetch.
    Fetch,
}

impl Access {
    /// Whether a leaf with these attributes allows it.
    #[must_use]
    pub const fn is_allowed_by(self, attrs: Attrs) -> bool {
        attrs.has(match self {
            Self::Read => Attrs::USER,
            Self::Write => Attrs::USER.or(Attrs::WRITE),
            Self::Fetch => Attrs::USER.or(Attrs::EXEC),
        })
    }
}

/// What a fault turned out to be. The numbers are the kinds of its timed sample; 1 is the floor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FaultKind {
    /// A new folio was allocated and mapped.
    FirstTouch = 2,
    /// A shared page was copied.
    Copy = 3,
    /// A write-protected page turned out to be ours alone, or the object's own, and became writable.
    Reuse = 4,
    /// A folio that was in memory already was mapped.
    Refault = 5,
    /// Nothing was missing: another CPU, or a stale translation.
    Spurious = 6,
    /// A page of a device window was entered.
    Device = 7,
}

/// A fault that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it was.
    pub kind: FaultKind,
    /// The order of the folio.
    pub order: Order,
    /// Pages mapped or made writable.
    pub pages: u64,
}

/// Why a fault could not be served: what the tenant would get as a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// Nothing is mapped there (SIGSEGV).
    NotMapped,
    /// The mapping does not allow it (SIGSEGV).
    Forbidden,
    /// Behind the end of the object (SIGBUS).
    BeyondEnd,
    /// A folio has as many mappings as it may (SIGBUS).
    Refused(Refused),
    /// No frame of any order.
    OutOfFrames,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped => f.write_str("nothing is mapped there"),
            Self::Forbidden => f.write_str("the mapping does not allow the access"),
            Self::BeyondEnd => f.write_str("behind the end of the object"),
            Self::Refused(refused) => refused.fmt(f),
            Self::OutOfFrames => f.write_str("out of frames"),
        }
    }
}

impl core::error::Error for FaultError {}

/// What an attempt came to.
pub(super) enum Attempt {
    Done(Fault),
    /// The tables changed meanwhile: look again.
    Again,
}

use Attempt::{Again, Done};

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Serves a fault of a tenant at `at`.
    ///
    /// # Errors
    /// [`FaultError`]: the access is not allowed, or cannot be served.
    pub fn fault(&self, id: SpaceId, at: Gva, access: Access) -> Result<Fault, FaultError> {
        match self.try_fault(id, at.page(), access)? {
            Done(fault) => Ok(fault),
            Again => self.fault_again(id, at.page(), access),
        }
    }

    /// Apart: a loop around all of a fault makes it keep what it does not need.
    #[cold]
    #[inline(never)]
    fn fault_again(&self, id: SpaceId, page: u64, access: Access) -> Result<Fault, FaultError> {
        loop {
            if let Done(fault) = self.try_fault(id, page, access)? {
                return Ok(fault);
            }
        }
    }

    #[inline]
    fn try_fault(&self, id: SpaceId, page: u64, access: Access) -> Result<Attempt, FaultError> {
        let space = self.space(id);
        {
            let _guard = read_lock(space.lock());
            if let Some(vma) = self.find_vma(&space, page) {
                return self.fault_in(&space, vma, page, access);
            }
        }
        self.grow_stack(&space, page).map(|()| Again)
    }

    /// Extends the stack above `page` down to it.
    #[inline(never)]
    fn grow_stack(&self, space: &Space<'_>, page: u64) -> Result<(), FaultError> {
        let _guard = write_lock(space.lock());
        let above = self.vma_at_or_above(space, page).ok_or(FaultError::NotMapped)?;
        if above.start() <= page {
            // Another CPU was faster.
            return Ok(());
        }
        let below = self.vma_below(space, page).map_or(0, |vma| vma.end());
        let grows = stack_grows(above.address(), Gva::from_page(page), Gva::from_page(below));
        if !above.flags().has(VmaFlags::STACK) || !grows {
            return Err(FaultError::NotMapped);
        }
        // A stack that was moved upwards may have no indexes left below it.
        let offset = above.offset().checked_sub(above.start() - page).ok_or(FaultError::NotMapped)?;
        // The key in the tree is the start: take it out and in again.
        self.remove_from_tree(space.tree(), above);
        above.set_offset(offset);
        above.set_range(page..above.end());
        self.insert_in_tree(space.tree(), above);
        Ok(())
    }

    fn fault_in(&self, space: &Space<'_>, vma: Vma<'_>, page: u64, access: Access) -> Result<Attempt, FaultError> {
        let needed = match access {
            Access::Read => VmaFlags::READ,
            Access::Write => VmaFlags::WRITE,
            Access::Fetch => VmaFlags::EXEC,
        };
        // As on x86: what may be written or executed may be read.
        let allowed = vma.flags().has(needed) || access == Access::Read && vma.flags().is_accessible();
        if !allowed {
            return Err(FaultError::Forbidden);
        }
        let write = access == Access::Write;
        // Whether a leaf is its region's first or last shows in all tables that the region's window touches. Under this lock nobody
        // else changes any of them: who is no fault holds the space lock exclusively.
        let _region = A::NEEDS.region.then(|| lock_word(vma.region_lock()));
        let (place, entry) = space.table().deepest(self, page);
        match entry {
            Entry::Leaf(leaf) if write && !leaf.attrs.has(Attrs::WRITE) => self.fault_write(space, vma, page, place),
            Entry::Leaf(_) => Ok(Done(Fault { kind: FaultKind::Spurious, order: Order::BASE, pages: 0 })),
            _ if vma.flags().has(VmaFlags::PFN) => self.fault_device(space, vma, page, write, place),
            _ if vma.is_anon() => self.fault_anon(space, vma, page, place),
            _ => self.fault_object(space, vma, page, write, place),
        }
    }

    // --- first touch of anonymous memory -----------------------------------------------------------------------

    fn fault_anon(&self, space: &Space<'_>, vma: Vma<'_>, page: u64, place: Place) -> Result<Attempt, FaultError> {
        let family = self.ensure_family(vma).ok_or(FaultError::OutOfFrames)?;
        match self.orders_for(vma) {
            1 => self.map_order(space, vma, page, place, (family, Order::BASE)),
            orders => self.fault_anon_by(space, vma, page, place, (family, orders)),
        }
    }

    /// As [`fault_anon`](Self::fault_anon), by the largest of `orders` that can be. Apart: where the order is known to be 0, and there is no record, all of it is half as long.
    #[inline(never)]
    fn fault_anon_by(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        place: Place,
        (family, orders): (u32, u32),
    ) -> Result<Attempt, FaultError> {
        let mut orders = orders;
        loop {
            let order = self.take_order(vma, page, place, &mut orders);
            let result = match order {
                Order::BASE => self.map_order(space, vma, page, place, (family, Order::BASE)),
                order => self.map_order(space, vma, page, place, (family, order)),
            };
            match result {
                // No frames or no representation for so large a folio, or no room for so many leaves: a smaller one may do.
                Err(FaultError::Refused(_) | FaultError::OutOfFrames) if orders != 0 => {}
                result => return result,
            }
        }
    }

    /// Takes the largest order out of `orders` whose folio at `page` fits the vma and one table, where nothing is yet; order 0, which is the last, whether it does or not.
    #[inline(always)]
    fn take_order(&self, vma: Vma<'_>, page: u64, place: Place, orders: &mut u32) -> Order {
        loop {
            // Order 0 is always in the mask, and nothing is wrong with it but memory.
            let order = Order::new(orders.ilog2() as u8);
            *orders &= !(1 << order.get());
            let first = page & !(order.pages() - 1);
            let fits = || {
                vma.start() <= first
                    && first + order.pages() <= vma.end()
                    && self.leaf_level(order, place.level).is_some()
                    && self.is_absent(place, first, order)
            };
            if *orders == 0 || fits() {
                return order;
            }
        }
    }

    /// Maps a new folio of `order` around `page`, of the anonymous object `family`.
    #[inline(always)]
    fn map_order(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        place: Place,
        (family, order): (u32, Order),
    ) -> Result<Attempt, FaultError> {
        let first = page & !(order.pages() - 1);
        let level = self.leaf_level(order, place.level).ok_or(FaultError::OutOfFrames)?;
        let mapping = Mapping { object: family, index: vma.index(first) };
        let folio = self.new_folio(order, FolioFlags::ANON, mapping, true).ok_or(FaultError::OutOfFrames)?;
        self.map_new(space, vma, folio, first, level, place)
    }

    /// Orders to try in `vma`, as a mask with bit 0 set.
    fn orders_for(&self, vma: Vma<'_>) -> u32 {
        let flags = vma.flags();
        let large = match self.policy.large {
            LargeFolios::Always => !flags.has(VmaFlags::NO_HUGE),
            LargeFolios::Advised => flags.has(VmaFlags::HUGE),
            LargeFolios::Never => false,
        };
        if large && !flags.has(VmaFlags::STACK) { self.policy.orders | 1 } else { 1 }
    }

    /// The level of the leaves that map a new folio of `order` where the lowest table there is at `lowest`; `None` when it would not fit one table.
    fn leaf_level(&self, order: Order, lowest: Level) -> Option<Level> {
        let highest = self.policy.max_leaf.min(lowest);
        [Level::THREE, Level::TWO, Level::ONE]
            .into_iter()
            .find(|&level| level <= highest && level.leaf_order() <= order && order.pages() <= level.table_pages())
    }

    /// Whether the block of `order` at page `first` holds nothing yet; `place` is where the walk to a page of it ended.
    fn is_absent(&self, place: Place, first: u64, order: Order) -> bool {
        let step = place.level.entry_pages();
        if order.pages() <= step {
            return true;
        }
        if order.pages() > place.level.table_pages() {
            return false;
        }
        let i = place.level.index(first);
        are_absent(&self.entries(place.table)[i..i + (order.pages() / step) as usize])
    }

    /// Maps all of a folio that nobody knows yet at page `first`, or frees it. `place` is where the walk to a page of it ended.
    #[inline(always)]
    fn map_new(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        folio: Folio<'_>,
        first: u64,
        level: Level,
        place: Place,
    ) -> Result<Attempt, FaultError> {
        let leaves = (folio.pages() >> level.page_shift()) as usize;
        folio.init_refs(leaves as u32);
        let result = self.install_new(space, vma, folio, (first, leaves), level, place);
        if !matches!(result, Ok(Done(_))) {
            self.put(folio, leaves as u32);
        }
        result
    }

    /// As [`map_new`](Self::map_new), by `leaves` leaves for which there are references; nothing has changed where it is not done.
    #[inline(always)]
    fn install_new(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        folio: Folio<'_>,
        (first, leaves): (u64, usize),
        level: Level,
        place: Place,
    ) -> Result<Attempt, FaultError> {
        if leaves as u64 > self.ref_limit.load(Relaxed) {
            return Err(FaultError::Refused(Refused::Overflow));
        }
        let mut cursor = space.table().cursor(self, first, first + folio.pages());
        // A table stays while the space is held.
        let part = match cursor.open_from(place, level) {
            Ok(part) => part,
            Err(OpenError::OutOfFrames) => return Err(FaultError::OutOfFrames),
            Err(OpenError::InTheWay) => return Ok(Again),
        };
        let i = part.index(first);
        if !part.is_fresh() && !part.are_absent(i..i + leaves) {
            return Ok(Again);
        }
        let batch = batch(vma, &part, 0, folio.pages());
        // All of the folio, which nobody has mapped yet: nothing stands beside it.
        self.count(folio, &batch, Neighbours::default()).map_err(FaultError::Refused)?;
        let attrs = vma.attrs().or(Attrs::EXCLUSIVE).or(Attrs::DIRTY);
        part.install(i, leaves, Leaf { pfn: folio.head(), attrs });
        space.rss().fetch_add(folio.pages(), Relaxed);
        Ok(Done(Fault { kind: FaultKind::FirstTouch, order: folio.order(), pages: folio.pages() }))
    }

    /// Tells the counts of leaves that are about to appear.
    #[inline(always)]
    pub(super) fn count(&self, folio: Folio<'_>, batch: &Batch, beside: Neighbours) -> Result<(), Refused> {
        let delta = self.tell(Change::Add, folio, batch, beside)?;
        self.note(folio, delta);
        Ok(())
    }

    // --- objects -----------------------------------------------------------------------------------------------

    #[inline(never)]
    fn fault_object(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        write: bool,
        place: Place,
    ) -> Result<Attempt, FaultError> {
        let index = vma.index(page);
        let (folio, was_cached) = self
            .cached_folio(vma.object(), index)
            .map_err(|out_of_frames| if out_of_frames { FaultError::OutOfFrames } else { FaultError::BeyondEnd })?;
        let result = if write && vma.is_private() {
            let from = folio.head().add(index - self.mapping(folio).index);
            self.copy_to_new(space, vma, page, from, (Some(folio), None), place)
        } else {
            match self.map_cached(space, vma, page, folio, write, place) {
                Ok(Done(fault)) if !was_cached => Ok(Done(Fault { kind: FaultKind::FirstTouch, ..fault })),
                result => result,
            }
        };
        self.put(folio, 1);
        result
    }

    /// Maps every page of a cached folio around `page` that fits vma and table and is not mapped yet, by the largest leaves that the scheme can count. `place` is where the
    /// walk to `page` ended.
    pub(super) fn map_cached(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        folio: Folio<'_>,
        write: bool,
        place: Place,
    ) -> Result<Attempt, FaultError> {
        let mut highest = self.policy.max_leaf.min(place.level);
        loop {
            match (self.map_cached_by(space, vma, page, folio, write, (highest, place)), highest.below()) {
                // Smaller leaves may have a representation.
                (Err(FaultError::Refused(Refused::Shape)), Some(below)) => highest = below,
                (result, _) => break result,
            }
        }
    }

    /// As [`map_cached`](Self::map_cached), by leaves of level `highest` at most.
    fn map_cached_by(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        folio: Folio<'_>,
        write: bool,
        (highest, place): (Level, Place),
    ) -> Result<Attempt, FaultError> {
        // A large leaf needs the block around the page congruent in the folio and whole in the vma.
        let congruent = |level: Level| {
            let block = page & !(level.entry_pages() - 1);
            let within = self.window(vma, folio, block..block + level.entry_pages());
            level.leaf_order() <= folio.order()
                && within == (block..block + level.entry_pages())
                && (vma.index(block) - self.mapping(folio).index) & (level.entry_pages() - 1) == 0
        };
        let level = [Level::THREE, Level::TWO]
            .into_iter()
            .find(|&level| level <= highest && congruent(level))
            .unwrap_or(Level::ONE);
        let window = self.window(vma, folio, 0..super::PAGES_END);
        let mut cursor = space.table().cursor(self, page, page + 1);
        let part = match cursor.open_from(place, level) {
            Ok(part) => part,
            Err(OpenError::OutOfFrames) => return Err(FaultError::OutOfFrames),
            Err(OpenError::InTheWay) => return Ok(Again),
        };
        let at = part.index(page);
        if !part.is_absent(at) {
            return Ok(Again);
        }
        let step = level.entry_pages();
        let window =
            window.start.max(part.span().start).next_multiple_of(step)..window.end.min(part.span().end) / step * step;
        let range = part.absent_around(at, part.index(window.start)..part.index(window.end - 1) + 1);
        let first = vma.index(part.page(range.start)) - self.mapping(folio).index;
        let pages = range.len() as u64 * step;
        let batch = batch(vma, &part, first, pages);
        let beside = self.beside(&part, vma, folio, range.clone());
        self.take(folio, batch.leaves()).map_err(FaultError::Refused)?;
        if let Err(refused) = self.count(folio, &batch, beside) {
            self.put(folio, batch.leaves());
            return Err(FaultError::Refused(refused));
        }
        // Of shared pages dirty is data: the MMU says it when it is so.
        let leaf = Leaf { pfn: folio.head().add(first), attrs: vma.attrs_of_common() };
        part.install(range.start, range.len(), leaf);
        if write {
            part.change(at, 1, Attrs::NONE, Attrs::DIRTY);
        }
        space.rss().fetch_add(pages, Relaxed);
        Ok(Done(Fault { kind: FaultKind::Refault, order: folio.order(), pages }))
    }

    #[inline(never)]
    fn fault_device(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        write: bool,
        place: Place,
    ) -> Result<Attempt, FaultError> {
        let pfn = vma.frame_at(page);
        if write && vma.is_private() {
            return self.copy_to_new(space, vma, page, pfn, (None, None), place);
        }
        self.map_raw(space, vma, page, pfn)
    }

    /// Maps frame `pfn`, which has no folio, at `page`: neither counted nor resident.
    pub(super) fn map_raw(&self, space: &Space<'_>, vma: Vma<'_>, page: u64, pfn: Pfn) -> Result<Attempt, FaultError> {
        let part = match space.table().cursor(self, page, page + 1).open(Level::ONE) {
            Ok(part) => part,
            Err(OpenError::OutOfFrames) => return Err(FaultError::OutOfFrames),
            Err(OpenError::InTheWay) => return Ok(Again),
        };
        let i = part.index(page);
        if !part.is_absent(i) {
            return Ok(Again);
        }
        part.install(i, 1, Leaf { pfn, attrs: vma.attrs_of_common().or(Attrs::DIRTY).or(Attrs::UNTRACKED) });
        Ok(Done(Fault { kind: FaultKind::Device, order: Order::BASE, pages: 1 }))
    }

    // --- stores to write-protected pages -----------------------------------------------------------------------

    #[inline(never)]
    fn fault_write(&self, space: &Space<'_>, vma: Vma<'_>, page: u64, place: Place) -> Result<Attempt, FaultError> {
        let part = space.table().cursor(self, page, page + 1).open_at(place);
        let i = part.index(page);
        let Some(leaf) = part.leaf(i) else { return Ok(Again) };
        if leaf.attrs.has(Attrs::WRITE) {
            return Ok(Done(Fault { kind: FaultKind::Spurious, order: Order::BASE, pages: 0 }));
        }
        let writable = Attrs::WRITE.or(Attrs::ACCESSED_DIRTY);
        if leaf.attrs.has(Attrs::UNTRACKED) {
            if vma.is_private() {
                drop(part);
                return self.copy_to_new(space, vma, page, leaf.pfn, (None, Some(leaf)), place);
            }
            part.change(i, 1, Attrs::NONE, writable);
            return Ok(Done(Fault { kind: FaultKind::Reuse, order: Order::BASE, pages: 1 }));
        }
        let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
        let entry_pages = part.level().entry_pages();
        if !vma.is_private() {
            part.change(i, 1, Attrs::NONE, writable);
            return Ok(Done(Fault { kind: FaultKind::Reuse, order: folio.order(), pages: entry_pages }));
        }
        // Protected by mprotect and not by sharing, or shared no more: then every leaf is ours, and those like this one around it in the folio go with it.
        if folio.is_anon() && (leaf.attrs.has(Attrs::EXCLUSIVE) || self.may_reuse(vma, folio)) {
            let run = self.run_around(vma, &part, folio, i);
            part.change(run.start, run.len(), Attrs::NONE, writable.or(Attrs::EXCLUSIVE));
            let pages = run.len() as u64 * entry_pages;
            return Ok(Done(Fault { kind: FaultKind::Reuse, order: folio.order(), pages }));
        }
        if part.level() > Level::ONE {
            // One page is copied, not 512: split, and look again.
            return self.split_for_copy(space, vma, part, i);
        }
        folio.get(1);
        drop(part);
        let result = self.copy_to_new(space, vma, page, leaf.pfn, (Some(folio), Some(leaf)), place);
        self.put(folio, 1);
        result
    }

    /// Whether nobody but the owner of `vma` has any of `folio`, as far as the scheme knows.
    #[inline(always)]
    fn may_reuse(&self, vma: Vma<'_>, folio: Folio<'_>) -> bool {
        if folio.is_small() {
            A::may_reuse(&self.counts(folio), vma.space().0, folio.refs()).value().unwrap_or(false)
        } else {
            self.may_reuse_large(vma, folio)
        }
    }

    #[inline(never)]
    fn may_reuse_large(&self, vma: Vma<'_>, folio: Folio<'_>) -> bool {
        self.relearn(vma, folio);
        A::may_reuse(&self.counts(folio), vma.space().0, folio.refs()).value().unwrap_or(false)
    }

    /// Splits the leaf at `i` of `part`.
    #[inline(never)]
    fn split_for_copy(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        part: Part<'_, LongMode, Self>,
        i: usize,
    ) -> Result<Attempt, FaultError> {
        let mut flush = Flush::new();
        let split = self.split_leaf(vma, &part, i, &mut flush);
        drop(part);
        self.finish(space, &mut flush);
        split.map(|()| Again).map_err(|_| FaultError::OutOfFrames)
    }

    /// The entries around `i` that map `folio` in order with the same rights, within the vma.
    #[inline(always)]
    pub(crate) fn run_around(
        &self,
        vma: Vma<'_>,
        part: &Part<'_, LongMode, Self>,
        folio: Folio<'_>,
        i: usize,
    ) -> Range<usize> {
        if folio.is_small() { i..i + 1 } else { self.run_around_large(vma, part, folio, i) }
    }

    #[inline(never)]
    fn run_around_large(
        &self,
        vma: Vma<'_>,
        part: &Part<'_, LongMode, Self>,
        folio: Folio<'_>,
        i: usize,
    ) -> Range<usize> {
        let window = self.window(vma, folio, part.span());
        let step = part.level().entry_pages();
        let lowest = part.index(window.start.next_multiple_of(step).min(part.page(i)));
        let end = part.index((window.end - 1).max(part.page(i))) + 1;
        let before = part.run_before(i, i - lowest, Attrs::ACCESSED_DIRTY);
        debug_assert!(
            part.leaf(i - before).is_some_and(|leaf| leaf.pfn >= folio.head()),
            "{folio:?} is not where it belongs"
        );
        i - before..i + part.run_length(i, end - i, Attrs::ACCESSED_DIRTY)
    }

    /// Puts a private copy of frame `from` at `page`. `source` is the folio of that frame, if it has one: the caller holds a reference. `present` is the leaf that
    /// is there now, if one is, and `place` where the walk ended.
    fn copy_to_new(
        &self,
        space: &Space<'_>,
        vma: Vma<'_>,
        page: u64,
        from: Pfn,
        (source, present): (Option<Folio<'_>>, Option<Leaf>),
        place: Place,
    ) -> Result<Attempt, FaultError> {
        let family = self.ensure_family(vma).ok_or(FaultError::OutOfFrames)?;
        let mapping = Mapping { object: family, index: vma.index(page) };
        let copy = self.new_folio(Order::BASE, FolioFlags::ANON, mapping, false).ok_or(FaultError::OutOfFrames)?;
        copy.init_refs(1);
        self.memory().copy(from, copy.head());
        self.statistics.copied.fetch_add(1, Relaxed);
        let part = match space.table().cursor(self, page, page + 1).open_from(place, Level::ONE) {
            Ok(part) => part,
            Err(error) => {
                self.put(copy, 1);
                return match error {
                    OpenError::OutOfFrames => Err(FaultError::OutOfFrames),
                    OpenError::InTheWay => Ok(Again),
                };
            }
        };
        let i = part.index(page);
        let unchanged = match (part.leaf(i), present) {
            // Not only without a leaf: another CPU may have frozen one.
            (None, None) => part.is_absent(i),
            (Some(now), Some(then)) => now.pfn == then.pfn && !now.attrs.has(Attrs::WRITE),
            _ => false,
        };
        if !unchanged {
            drop(part);
            self.put(copy, 1);
            return Ok(Again);
        }
        let new_batch = batch(vma, &part, 0, 1);
        if let Err(refused) = self.count(copy, &new_batch, Neighbours::default()) {
            drop(part);
            self.put(copy, 1);
            return Err(FaultError::Refused(refused));
        }
        let leaf = Leaf { pfn: copy.head(), attrs: vma.attrs().or(Attrs::EXCLUSIVE).or(Attrs::DIRTY) };
        if let Some(old) = present {
            // Freeze, flush, replace: no CPU may read the old page after another has stored to the new one. The table is not locked over the flush:
            // a fault that meets the frozen leaf comes again, and whoever could clear it needs the space exclusively.
            part.freeze(i, 1);
            let table = part.table();
            drop(part);
            self.flush_page(space, page);
            // The table stays with the space lock.
            let place = Place { page, table, level: Level::ONE };
            let part = space.table().cursor(self, page, page + 1).open_at(place);
            let attrs = part.replace_frozen(i, leaf);
            if let Some(folio) = source {
                let first = (old.pfn.raw() - folio.head().raw()) as u32;
                let batch = Batch { first, ..new_batch };
                let beside = self.beside(&part, vma, folio, i..i + 1);
                self.release(&[Removed { folio, batch, beside, dirty: attrs.has(Attrs::DIRTY) }]);
            }
        } else {
            part.install(i, 1, leaf);
        }
        if present.is_none() || source.is_none() {
            // Nothing resident made room for it.
            space.rss().fetch_add(1, Relaxed);
        }
        let order = source.map_or(Order::BASE, |folio| folio.order());
        Ok(Done(Fault { kind: FaultKind::Copy, order, pages: 1 }))
    }
}

/// The batch of `pages` pages of a folio, from its page `first` on, in the table of `part`.
#[inline]
pub(super) fn batch<M: Memory + Tlb, A: Accounting>(
    vma: Vma<'_>,
    part: &Part<'_, LongMode, Manager<M, A>>,
    first: u64,
    pages: u64,
) -> Batch {
    Batch {
        class: Class::Process,
        first: first as u32,
        pages: pages as u32,
        leaf: part.level().leaf_order(),
        region: vma.region(),
        table: part.table(),
        owner: vma.space().0,
    }
}
