//! From a frame to its folio, and the life of a descriptor.

use super::buddy::{Found, Frames, Run};
use super::descriptor::{Folio, FolioFlags, Kind, Mapping, Words};
use super::extension::Extensions;
use super::slab::Slab;
use crate::addr::{Order, Pfn};
use crate::memory::Memory;
use crate::sync::AtomicU64;

impl<M: Memory> Frames<M> {
    /// The folio that `pfn` belongs to.
    #[inline(always)]
    pub(crate) fn folio(&self, pfn: Pfn, words: Words) -> Option<Folio<'_>> {
        Some(match self.find(pfn, words.slot)? {
            Found::Small(words) => Folio::small(pfn, words),
            Found::Large(record) => Folio::large(record, self.record(record, words.record)),
        })
    }

    /// A new folio of `order` without references, in frames known to be zero if `want_zero` and there are such: then the answer's other half is true. `None` without
    /// frames for it or for its record. The lock of the frames is held while `served` is told of the frames.
    #[inline(always)]
    pub(crate) fn new_folio(
        &self,
        order: Order,
        want_zero: bool,
        (flags, mapping): (FolioFlags, Mapping),
        (records, words): (&Slab, Words),
        served: impl FnOnce(&Run),
    ) -> Option<(Folio<'_>, bool)> {
        let (Run { pfn, zeroed }, record) = {
            let _guard = self.lock();
            let (run, record) = if order == Order::BASE {
                (self.alloc_locked(order, want_zero, false)?, None)
            } else {
                let record = records.alloc_locked(self, false)?;
                let Some(run) = self.alloc_large(order, want_zero, record) else {
                    records.free_locked(self, record);
                    return None;
                };
                (run, Some(record))
            };
            served(&run);
            (run, record)
        };
        let words = match record {
            None => self.slot(pfn, words.slot),
            Some(record) => self.record(record, words.record),
        };
        let folio = Folio::undescribed(record, pfn, order, words);
        folio.init(flags, mapping);
        Some((folio, zeroed))
    }

    /// Frees the frames and descriptors of folios, and what they have grown to if they can have grown.
    #[inline(always)]
    pub(crate) fn free_folios<'a>(
        &self,
        folios: impl IntoIterator<Item = Folio<'a>>,
        records: &Slab,
        extensions: Option<&Extensions>,
    ) {
        let _guard = self.lock();
        for folio in folios {
            debug_assert_eq!(folio.refs(), 0, "a folio with references was freed");
            if let Some(extensions) = extensions {
                self.free_extensions(folio, extensions);
            }
            match folio.record() {
                None => self.free_single(folio.head(), folio.home()),
                Some(record) => {
                    records.free_locked(self, record);
                    self.free_locked(folio.head(), folio.order(), false);
                }
            }
        }
    }

    /// A frame for a table page; the last ones only if it must be.
    pub(crate) fn alloc_table_frame(&self, must: bool) -> Option<Run> {
        let run = if must { self.alloc_from_reserve(Order::BASE, true) } else { self.alloc(Order::BASE, true) }?;
        self.mark(run.pfn, Kind::Table);
        Some(run)
    }

    /// The word that locks a table page.
    #[inline(always)]
    pub(crate) fn table_lock(&self, table: Pfn, words: Words) -> &AtomicU64 {
        &self.slot(table, words.slot)[0]
    }

    /// The first frame of a new folio of `order`, for models of the look-up alone.
    #[cfg(loom)]
    pub fn folio_for_models(&self, order: Order, records: &Slab) -> Option<Pfn> {
        let what = (FolioFlags::ANON, Mapping { object: 1, index: 0 });
        self.new_folio(order, true, what, (records, self.words_for_models(records)), |_| ())
            .map(|(folio, _)| folio.head())
    }

    /// The folio of `pfn`, for models of what becomes of its descriptor.
    #[cfg(loom)]
    pub fn described_for_models(&self, pfn: Pfn, records: &Slab) -> Option<Folio<'_>> {
        self.folio(pfn, self.words_for_models(records))
    }

    /// [`grow`](Self::grow), for models.
    #[cfg(loom)]
    pub fn grow_for_models(&self, folio: Folio<'_>, extensions: &Extensions, most: usize) -> bool {
        self.grow(folio, extensions, most)
    }

    /// Where a folio belongs, for models.
    #[cfg(loom)]
    pub fn mapping_for_models(&self, folio: Folio<'_>) -> Mapping {
        self.mapping_of(folio)
    }

    #[cfg(loom)]
    fn words_for_models(&self, records: &Slab) -> Words {
        Words { slot: 2, record: records.words() }
    }

    /// First frame and order of the folio of `pfn`, for models of the look-up alone.
    #[cfg(loom)]
    pub fn find_for_models(&self, pfn: Pfn, records: &Slab) -> Option<(Pfn, Order)> {
        self.folio(pfn, self.words_for_models(records)).map(|folio| (folio.head(), folio.order()))
    }
}
