//! Memory of drivers: folios that are neither a file's nor anonymous, and frames without folios, inserted into regions page by page.
//!
//! A driver's folios stand in the cache of an object of its own, which holds its reference on each; so whoever finds leaves from a folio finds
//! theirs too. Which region takes what is its [`Tracking`] class (SCHEMES.md, Pfn regions).

use core::sync::atomic::Ordering::Relaxed;

use super::fault::Attempt;
use super::object::{DRIVER, ObjectId};
use super::vma::Tracking;
use super::{FaultError, Manager, MapError, PAGES_END, SpaceId};
use crate::addr::{Gva, Order, Pfn};
use crate::folio::Folio;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::sync::{lock_word, write_lock};

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// An object of `pages` pages for the folios of a driver. Faults make none of its pages; what the driver made they may map.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`].
    pub fn create_driver(&self, pages: u64) -> Result<ObjectId, MapError> {
        self.new_object(DRIVER, pages, Order::BASE)
    }

    /// A zeroed folio at pages `index..` of a driver's object, which holds a reference until it is [destroyed](Self::destroy_object).
    ///
    /// # Errors
    /// [`MapError::WrongKind`] when the object is no driver's, [`MapError::BadRange`] when `index` is not a multiple of the folio's pages or the object ends
    /// before it does, [`MapError::Occupied`] when a page has a folio, [`MapError::OutOfFrames`].
    pub fn driver_folio(&self, id: ObjectId, index: u64, order: Order) -> Result<Folio<'_>, MapError> {
        let object = self.object(id.0);
        if !object.is_driver() {
            return Err(MapError::WrongKind);
        }
        let end = index.checked_add(order.pages()).filter(|&end| end <= object.pages.load(Relaxed));
        let Some(end) = end.filter(|_| index.is_multiple_of(order.pages())) else { return Err(MapError::BadRange) };
        let _guard = lock_word(object.lock);
        let cache = object.cache();
        if cache.count_of(self, index..end, Pfn::new(0)..self.frames.span().end).pages > 0 {
            return Err(MapError::Occupied);
        }
        let folio = self.fill(&object, cache, index, order).ok_or(MapError::OutOfFrames)?;
        // The cache's reference stays.
        self.put(folio, 1);
        Ok(folio)
    }

    /// Maps `folio`, to which the caller has a reference, at `at`: that page and those beside it that lie in the same region and table and are not mapped. They are counted
    /// like those of a file. How many pages.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] outside every region, [`MapError::WrongKind`] in one of class Pfn and when the folio is not one of the region's object,
    /// [`MapError::BadRange`] where the region has another page of the object, [`MapError::Occupied`], [`MapError::Refused`],
    /// [`MapError::OutOfFrames`]. Nothing has changed then.
    pub fn insert_page(&self, id: SpaceId, at: Gva, folio: Folio<'_>) -> Result<u64, MapError> {
        let (space, page) = (self.space(id), at.page());
        let _guard = write_lock(space.lock());
        let vma = self.find_vma(&space, page).ok_or(MapError::NotMapped)?;
        if vma.tracking() == Tracking::Pfn || folio.is_anon() || self.mapping(folio).object != vma.object() {
            return Err(MapError::WrongKind);
        }
        if !self.window(vma, folio, 0..PAGES_END).contains(&page) {
            return Err(MapError::BadRange);
        }
        let (place, _) = space.table().deepest(self, page);
        inserted(self.map_cached(&space, vma, page, folio, false, place))
    }

    /// Maps frame `pfn`, which has no folio, at page `at`. It is never counted.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] outside every region, [`MapError::WrongKind`] in one of class Tracked and when the frame is the manager's,
    /// [`MapError::BadRange`] when a region of class Pfn has another frame there, [`MapError::Occupied`], [`MapError::OutOfFrames`]. Nothing
    /// has changed then.
    pub fn insert_frame(&self, id: SpaceId, at: Gva, pfn: Pfn) -> Result<(), MapError> {
        let (space, page) = (self.space(id), at.page());
        let _guard = write_lock(space.lock());
        let vma = self.find_vma(&space, page).ok_or(MapError::NotMapped)?;
        if vma.tracking() == Tracking::Tracked || self.frames.owns_any(pfn..pfn.add(1)) {
            return Err(MapError::WrongKind);
        }
        if vma.tracking() == Tracking::Pfn && vma.frame_at(page) != pfn {
            return Err(MapError::BadRange);
        }
        inserted(self.map_raw(&space, vma, page, pfn)).map(|_| ())
    }
}

/// What came of an insertion, while nobody else changes the region: the pages it mapped.
fn inserted(result: Result<Attempt, FaultError>) -> Result<u64, MapError> {
    match result {
        Ok(Attempt::Done(fault)) => Ok(fault.pages),
        Ok(Attempt::Again) => Err(MapError::Occupied),
        Err(FaultError::Refused(refused)) => Err(MapError::Refused(refused)),
        Err(_) => Err(MapError::OutOfFrames),
    }
}
