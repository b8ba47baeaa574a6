//! From a frame to its folio, and the life of a descriptor.

use super::buddy::{Found, Frames, Run};
use super::descriptor::{Folio, FolioFlags, Kind, Mapping};
use super::slab::Slab;
use crate::addr::{Order, Pfn};
use crate::memory::Memory;
use crate::sync::AtomicU64;

impl<M: Memory> Frames<M> {
    /// The folio that `pfn` belongs to. `words` is the size of a large descriptor.
    pub(crate) fn folio(&self, pfn: Pfn, words: usize) -> Option<Folio<'_>> {
        Some(match self.find(pfn)? {
            Found::Small(pfn) => Folio::small(pfn, self.slot(pfn)),
            Found::Large(record) => Folio::large(record, self.record(record, words)),
        })
    }

    /// Makes the allocated run at `pfn` a folio without references; `None` when there is no frame for a record.
    pub(crate) fn describe(
        &self,
        pfn: Pfn,
        order: Order,
        flags: FolioFlags,
        mapping: Mapping,
        records: &Slab,
    ) -> Option<Folio<'_>> {
        let folio = if order == Order::BASE {
            Folio::small(pfn, self.slot(pfn))
        } else {
            let record = records.alloc(self)?;
            self.enter_large(pfn, order, record);
            Folio::new_large(record, pfn, order, self.record(record, records.words()))
        };
        folio.init(flags, mapping);
        Some(folio)
    }

    /// Frees a folio's frames and descriptor.
    pub(crate) fn free_folio(&self, folio: Folio<'_>, records: &Slab) {
        debug_assert_eq!(folio.refs(), 0, "a folio with references was freed");
        let (head, order) = (folio.head(), folio.order());
        if let Some(record) = folio.record() {
            records.free(self, record);
        }
        self.free(head, order, false);
    }

    /// A frame for a table page; the last ones only if it must be.
    pub(crate) fn alloc_table_frame(&self, must: bool) -> Option<Run> {
        let run = if must { self.alloc_from_reserve(Order::BASE, true) } else { self.alloc(Order::BASE, true) }?;
        self.mark(run.pfn, Kind::Table);
        Some(run)
    }

    /// The word that locks a table page.
    pub(crate) fn table_lock(&self, table: Pfn) -> &AtomicU64 {
        self.marked(table)
    }
}
