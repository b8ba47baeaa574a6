//! mprotect.

use core::ops::ControlFlow;

use super::map::pages_of;
use super::rights::Prot;
use super::vma::VmaFlags;
use super::{Manager, MapError, SpaceId};
use crate::addr::Gva;
use crate::format::Attrs;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::page_table::Flush;
use crate::sync::write_lock;

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Changes the protection of a range; holes are skipped. Stores become possible page by page, as faults prove them harmless.
    ///
    /// # Errors
    /// [`MapError`]; the part of the range before the failure is changed.
    pub fn protect(&self, id: SpaceId, at: Gva, pages: u64, prot: Prot) -> Result<(), MapError> {
        let range = pages_of(at, pages)?;
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        let mut flush = Flush::new();
        let mut at = range.start;
        let mut result = Ok(());
        while let Some(vma) = self.vma_at_or_above(&space, at).filter(|vma| vma.start() < range.end) {
            at = vma.end();
            let flags = vma.flags().with_prot(prot);
            if flags == vma.flags() {
                continue;
            }
            let vma = match self.isolate(&space, vma, &range, &mut flush) {
                Ok(vma) => vma,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            at = vma.end();
            vma.set_flags(flags);
            // Give what the leaves may have without a fault, take what they must not have. Writing is never given here: a shared folio needs its copy.
            let add =
                Attrs::NONE.with_if(flags.has(VmaFlags::EXEC), Attrs::EXEC).with_if(flags.is_accessible(), Attrs::USER);
            let remove = Attrs::NONE
                .with_if(!flags.has(VmaFlags::EXEC), Attrs::EXEC)
                .with_if(!flags.is_accessible(), Attrs::USER)
                .with_if(!flags.has(VmaFlags::WRITE), Attrs::WRITE);
            let _ = self.for_parts(&space, vma, vma.start(), vma.end(), &mut flush, |part, range, flush| {
                let mut i = range.start;
                while i < range.end {
                    if part.leaf(i).is_none() {
                        i += 1;
                        continue;
                    }
                    let n = part.run_length(i, range.end - i, Attrs::ALL);
                    part.change(i, n, remove, add);
                    flush.add_pages(part.page(i), n as u64 * part.level().entry_pages());
                    i += n;
                }
                ControlFlow::<()>::Continue(())
            });
            self.include_unmapped(&space, vma, &mut flush);
            self.merge_vma(&space, vma);
        }
        self.finish(&space, &mut flush);
        result
    }
}
