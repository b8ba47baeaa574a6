//! madvise.

use super::map::pages_of;
use super::rights::Advice;
use super::vma::VmaFlags;
use super::{Manager, MapError, SpaceId};
use crate::addr::Gva;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::page_table::Flush;
use crate::sync::write_lock;

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Acts on advice for a range; holes are skipped.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn advise(&self, id: SpaceId, at: Gva, pages: u64, advice: Advice) -> Result<(), MapError> {
        let range = pages_of(at, pages)?;
        let space = self.space(id);
        let _guard = write_lock(space.lock());
        let mut flush = Flush::new();
        let mut at = range.start;
        let mut result = Ok(());
        while at < range.end
            && let Some(vma) = self.vma_at_or_above(&space, at).filter(|vma| vma.start() < range.end)
        {
            at = vma.end();
            let flags = vma.flags();
            let wanted = match advice {
                Advice::DontNeed => {
                    let part = vma.start().max(range.start)..vma.end().min(range.end);
                    // A large leaf across an edge keeps what lies outside.
                    if self.zap_within(&space, vma, part, &mut flush).is_err() {
                        result = Err(MapError::OutOfFrames);
                        break;
                    }
                    continue;
                }
                Advice::HugePage => flags.without(VmaFlags::NO_HUGE).or(VmaFlags::HUGE),
                Advice::NoHugePage => flags.without(VmaFlags::HUGE).or(VmaFlags::NO_HUGE),
            };
            if wanted == flags {
                continue;
            }
            match self.isolate(&space, vma, &range, &mut flush) {
                Ok(vma) => {
                    at = vma.end();
                    vma.set_flags(wanted);
                    self.merge_vma(&space, vma);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.finish(&space, &mut flush);
        result
    }
}
