//! Memory objects: files and shared memory with their page cache, and anonymous objects, to which the private pages of a vma and of
//! all its copies by fork belong. Either knows its vmas, so that a folio's leaves can be found.
//!
//! A page cache is a page table of the same engine: it maps file pages to frames, and holds one reference on each folio.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::migrate::has_only;
use super::rights::{ObjectKind, file_word};
use super::vma::Vma;
use super::{Manager, MapError, SpaceId, Table};
use crate::addr::{Level, Order, Pfn};
use crate::folio::{Folio, FolioFlags, Mapping};
use crate::format::{Attrs, Leaf, LongMode};
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, OpenError, PageTable, Part, Tables};
use crate::sync::{AtomicU64, lock_word};

/// Names a memory object of the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId(pub(crate) u32);

/// Contents of an object whose pages only its driver makes.
pub(super) const DRIVER: u64 = 1 << 32;

/// The words of an object's record.
pub(super) struct Object<'a> {
    number: u32,
    /// Protects the list of vmas and the page cache.
    pub(super) lock: &'a AtomicU64,
    vmas: &'a AtomicU64,
    root: &'a AtomicU64,
    pub(super) pages: &'a AtomicU64,
    order: &'a AtomicU64,
    /// What its pages hold when they are first read: the number of a file plus one, 0 for zeroes, or [`DRIVER`] where no fault makes pages.
    contents: &'a AtomicU64,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// A file (`contents` gives its number in the trace) or shared memory of `pages` pages, cached in folios of at most `order`.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`]; [`MapError::BadRange`] for more pages than a space has.
    pub fn create_object(
        &self,
        kind: ObjectKind,
        contents: u32,
        pages: u64,
        order: Order,
    ) -> Result<ObjectId, MapError> {
        let contents = if kind == ObjectKind::File { u64::from(contents) + 1 } else { 0 };
        self.new_object(contents, pages, order)
    }

    pub(super) fn new_object(&self, contents: u64, pages: u64, order: Order) -> Result<ObjectId, MapError> {
        if pages > super::PAGES_END {
            return Err(MapError::BadRange);
        }
        let root = self.alloc_table().ok_or(MapError::OutOfFrames)?;
        let Some(number) = self.objects.alloc(&self.frames) else {
            self.free_table(root, true);
            return Err(MapError::OutOfFrames);
        };
        let object = self.object(number);
        object.root.store(root.raw(), Relaxed);
        object.pages.store(pages, Relaxed);
        object.order.store(u64::from(order.get()), Relaxed);
        object.contents.store(contents, Relaxed);
        Ok(ObjectId(number))
    }

    /// Drops an object that no vma maps any more, with its page cache.
    pub fn destroy_object(&self, id: ObjectId) {
        let object = self.object(id.0);
        debug_assert_eq!(object.vmas.load(Relaxed), 0, "a mapped object cannot go");
        let cache = object.cache();
        let mut flush: Flush<()> = Flush::new();
        let mut cursor = cache.cursor(self, 0, super::PAGES_END);
        while let Some(part) = cursor.next() {
            let mut i = part.range().start;
            while i < part.range().end {
                let Some(leaf) = part.leaf(i) else {
                    i += 1;
                    continue;
                };
                let folio = self.folio(leaf.pfn).expect("a page cache maps folios");
                let entries = ((folio.pages() >> part.level().page_shift()) as usize).max(1);
                part.clear(i, entries);
                // Who still holds it must not look for it in a cache that may be another object's then.
                folio.clear_flags(FolioFlags::CACHE);
                self.put(folio, 1);
                i += entries;
            }
        }
        cache.prune(self, 0..super::PAGES_END, 0..super::PAGES_END, &mut flush);
        // No MMU ever walks a page cache.
        flush.finish(&NoTlb, self, cache.root(), |_: &[()]| {});
        self.free_table(cache.root(), true);
        self.free_object(id.0);
    }

    /// Pages of an object.
    pub fn object_pages(&self, id: ObjectId) -> u64 {
        self.object(id.0).pages.load(Relaxed)
    }

    /// Whether object `number` is shared memory, not a file.
    pub(crate) fn is_shmem(&self, number: u32) -> bool {
        self.object(number).contents.load(Relaxed) == 0
    }

    pub(super) fn object(&self, number: u32) -> Object<'_> {
        let words = self.objects.get(&self.frames, number);
        Object {
            number,
            lock: &words[2],
            vmas: &words[3],
            root: &words[4],
            pages: &words[5],
            order: &words[6],
            contents: &words[7],
        }
    }

    /// The cached folio that holds page `index`, made and filled if it is not there; with one reference for the caller, and whether it was
    /// there. `Err(false)` behind the end of the object and where its driver has made no page, `Err(true)` when frames ran out.
    pub(crate) fn cached_folio(&self, number: u32, index: u64) -> Result<(Folio<'_>, bool), bool> {
        let object = self.object(number);
        let pages = object.pages.load(Relaxed);
        if index >= pages {
            return Err(false);
        }
        let _guard = lock_word(object.lock);
        let cache = object.cache();
        if let Some((place, leaf)) = cache.lookup(self, index) {
            let pfn = leaf.pfn.add(index - place.page);
            let folio = self.folio(pfn).expect("a page cache maps folios");
            folio.get(1);
            return Ok((folio, true));
        }
        if object.is_driver() {
            return Err(false);
        }
        // The largest aligned run that lies inside the object and is not cached yet.
        let mut order = object.order.load(Relaxed) as u8;
        loop {
            let size = Order::new(order);
            let first = index & !(size.pages() - 1);
            if (order == 0 || first + size.pages() <= pages)
                && let Some(folio) = self.fill(&object, cache, first, size)
            {
                return Ok((folio, false));
            }
            order = order.checked_sub(1).ok_or(true)?;
        }
    }

    /// The frame that the object behind page `page` of a space has for it, if the page is mapped shared and cached.
    pub fn cached_page(&self, id: SpaceId, page: u64) -> Option<Pfn> {
        let space = self.space(id);
        let vma = self.find_vma(&space, page).filter(|vma| vma.object() != 0 && !vma.is_private())?;
        let object = self.object(vma.object());
        let _guard = lock_word(object.lock);
        let (place, leaf) = object.cache().lookup(self, vma.index(page))?;
        Some(leaf.pfn.add(vma.index(page) - place.page))
    }

    /// A folio over pages `first..` of the object, entered in its cache; `None` when some of them are cached already or frames ran out.
    pub(super) fn fill(&self, object: &Object<'_>, cache: Table, first: u64, order: Order) -> Option<Folio<'_>> {
        let mapping = Mapping { object: object.number, index: first };
        let (part, range) = self.cache_entries(cache, mapping, order).ok()?;
        if !part.are_absent(range.clone()) {
            return None;
        }
        let folio = self.new_folio(order, FolioFlags::CACHE, mapping, true)?;
        // One for the cache, one for the caller.
        folio.init_refs(2);
        part.install(range.start, range.len(), Leaf { pfn: folio.head(), attrs: Attrs::NONE });
        if let Some(file) = (object.contents.load(Relaxed) as u32).checked_sub(1) {
            for i in 0..order.pages() {
                self.memory().frame(folio.head().add(i)).0[0].store(file_word(file, first + i), Relaxed);
            }
        }
        Some(folio)
    }

    /// The entries of a page cache that belong to a folio of `order` at `mapping`.
    fn cache_entries(
        &self,
        cache: Table,
        mapping: Mapping,
        order: Order,
    ) -> Result<(Part<'_, LongMode, Self>, Range<usize>), OpenError> {
        let level = if order >= Order::HUGE { Level::TWO } else { Level::ONE };
        let part = cache.cursor(self, mapping.index, mapping.index + order.pages()).open(level)?;
        let i = part.index(mapping.index);
        Ok((part, i..i + (order.pages() >> level.page_shift()) as usize))
    }

    /// Takes a folio out of the page cache, or puts `new` in its place, if only the page cache and `others` hold references: those of `others` are
    /// not found through the object. `before` runs when nobody can find the folio any more. Whether all this was so.
    pub(super) fn exchange_in_cache(
        &self,
        folio: Folio<'_>,
        others: u64,
        new: Option<Folio<'_>>,
        before: impl FnOnce() -> bool,
    ) -> bool {
        let mapping = self.mapping(folio);
        if !self.objects.is_in_use(&self.frames, mapping.object) {
            return false;
        }
        let object = self.object(mapping.object);
        // Whoever finds the folio through the object, to map it, takes its reference under this lock.
        let _guard = lock_word(object.lock);
        if object.is_anon() || !has_only(folio, others + 1) || !folio.flags().has(FolioFlags::CACHE) {
            return false;
        }
        // What a VM has mapped without its VMM holds no reference, and stays where it is.
        if A::mapped_at_stage2(&self.counts(folio)) || !before() {
            return false;
        }
        let (part, range) = self.cache_entries(object.cache(), mapping, folio.order()).expect("a cached folio");
        debug_assert_eq!(part.leaf(range.start).map(|leaf| leaf.pfn), Some(folio.head()), "another folio is cached");
        part.clear(range.start, range.len());
        folio.clear_flags(FolioFlags::CACHE);
        if let Some(new) = new {
            new.get(1);
            new.set_flags(FolioFlags::CACHE);
            part.install(range.start, range.len(), Leaf { pfn: new.head(), attrs: Attrs::NONE });
        }
        let last = folio.put(1);
        debug_assert!(!last, "the caller holds a reference");
        true
    }

    // --- lists of vmas ---------------------------------------------------------------------------------------

    /// The anonymous object of a vma, made at its first private page.
    #[inline]
    pub(super) fn ensure_family(&self, vma: Vma<'_>) -> Option<u32> {
        match vma.family() {
            0 => self.make_family(vma),
            family => Some(family),
        }
    }

    #[cold]
    fn make_family(&self, vma: Vma<'_>) -> Option<u32> {
        // Faults hold the space lock shared: two may want the first page of one vma.
        let _guard = lock_word(vma.family_lock());
        if vma.family() == 0 {
            let number = self.objects.alloc(&self.frames)?;
            vma.set_family(number);
            self.link_vma(vma, true);
        }
        Some(vma.family())
    }

    /// Enters a vma in the lists of its objects.
    pub(super) fn link_vma_all(&self, vma: Vma<'_>) {
        if vma.object() != 0 {
            self.link_vma(vma, false);
        }
        if vma.family() != 0 {
            self.link_vma(vma, true);
        }
    }

    /// Takes a vma out of the lists of its objects. An anonymous object goes with its last vma: no private page can be left.
    pub(super) fn unlink_vma_all(&self, vma: Vma<'_>) {
        if vma.object() != 0 {
            self.unlink_vma(vma, false);
        }
        if vma.family() != 0 && self.unlink_vma(vma, true) {
            self.free_object(vma.family());
        }
    }

    fn free_object(&self, number: u32) {
        let _guard = lock_word(&self.families);
        self.objects.free(&self.frames, number);
    }

    pub(super) fn link_vma(&self, vma: Vma<'_>, anon: bool) {
        let object = self.object(if anon { vma.family() } else { vma.object() });
        let _guard = lock_word(object.lock);
        let next = object.vmas.load(Relaxed);
        vma.links(anon).store(next << 32, Relaxed);
        if next != 0 {
            let link = self.vma(crate::folio::Record::from_raw(next as u32)).links(anon);
            link.store(link.load(Relaxed) & !0xffff_ffff | u64::from(vma.record.raw()), Relaxed);
        }
        object.vmas.store(u64::from(vma.record.raw()), Relaxed);
    }

    /// Whether it was the last.
    fn unlink_vma(&self, vma: Vma<'_>, anon: bool) -> bool {
        let object = self.object(if anon { vma.family() } else { vma.object() });
        let _guard = lock_word(object.lock);
        let links = vma.links(anon).load(Relaxed);
        let (prev, next) = (links as u32, (links >> 32) as u32);
        if prev == 0 {
            object.vmas.store(u64::from(next), Relaxed);
        } else {
            let link = self.vma(crate::folio::Record::from_raw(prev)).links(anon);
            link.store(link.load(Relaxed) & 0xffff_ffff | u64::from(next) << 32, Relaxed);
        }
        if next != 0 {
            let link = self.vma(crate::folio::Record::from_raw(next)).links(anon);
            link.store(link.load(Relaxed) & !0xffff_ffff | u64::from(prev), Relaxed);
        }
        object.vmas.load(Relaxed) == 0
    }

    /// The vmas in the list of `object`. Under its lock.
    pub(super) fn vmas_of<'s>(&'s self, object: &Object<'_>, anon: bool) -> impl Iterator<Item = Vma<'s>> {
        self.vmas_from(self.first_vma(object), anon)
    }

    /// The vmas of a list from `first` on. Under the lock of the object.
    pub(super) fn vmas_from<'s>(&'s self, first: Option<Vma<'s>>, anon: bool) -> impl Iterator<Item = Vma<'s>> {
        core::iter::successors(first, move |&vma| self.vma_behind(vma, anon))
    }

    /// The first in the list of `object`. Under its lock.
    pub(super) fn first_vma(&self, object: &Object<'_>) -> Option<Vma<'_>> {
        self.vma_numbered(object.vmas.load(Relaxed) as u32)
    }

    /// The next in the list that `vma` is in. Under the lock of the object.
    pub(super) fn vma_behind(&self, vma: Vma<'_>, anon: bool) -> Option<Vma<'_>> {
        self.vma_numbered((vma.links(anon).load(Relaxed) >> 32) as u32)
    }

    fn vma_numbered(&self, number: u32) -> Option<Vma<'_>> {
        (number != 0).then(|| self.vma(crate::folio::Record::from_raw(number)))
    }
}

impl Object<'_> {
    /// Whether it is an anonymous object: only others have a page cache.
    pub(super) fn is_anon(&self) -> bool {
        self.root.load(Relaxed) == 0
    }

    /// Whether its pages are made by a driver, not by faults.
    pub(super) fn is_driver(&self) -> bool {
        self.contents.load(Relaxed) == DRIVER
    }

    /// Whether its pages can be read again once they are gone.
    pub(super) fn is_file(&self) -> bool {
        !matches!(self.contents.load(Relaxed), 0 | DRIVER)
    }

    pub(super) fn cache(&self) -> Table {
        PageTable::new(Pfn::new(self.root.load(Relaxed)))
    }
}

/// For tables that no MMU walks.
struct NoTlb;

impl Tlb for NoTlb {
    fn flush(&self, _root: Pfn, _scope: crate::memory::FlushScope) {}
}
