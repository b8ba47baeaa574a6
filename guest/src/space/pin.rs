//! References of embedders: what keeps a folio where it is while somebody reaches it without a leaf, as a device does.

use super::{Access, FaultError, Manager, SpaceId};
use crate::addr::{Gva, Pfn};
use crate::folio::{Folio, FolioFlags};
use crate::format::Attrs;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::sync::read_lock;

/// A reference to the folio of one page. [`Manager::unpin`] gives it back; nothing else does.
#[derive(Debug)]
#[must_use = "the folio stays until `unpin`"]
pub struct Pin<'a> {
    folio: Folio<'a>,
    frame: Pfn,
}

impl<'a> Pin<'a> {
    /// The folio.
    #[must_use]
    pub fn folio(&self) -> Folio<'a> {
        self.folio
    }

    /// The frame that the page was mapped to.
    #[must_use]
    pub fn frame(&self) -> Pfn {
        self.frame
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Takes a reference to the folio at `at`, faulted in for `access` if it must be: Linux's `get_user_pages`. While it is held the folio is neither freed nor
    /// moved, collapsed or reclaimed. Other mappings may come and go, and a store after a fork may give the space another page than the one that is
    /// pinned: as with `FOLL_GET`, not `FOLL_PIN`.
    ///
    /// # Errors
    /// [`FaultError`], as a fault for `access`; [`FaultError::Forbidden`] for memory without folios too.
    pub fn pin(&self, id: SpaceId, at: Gva, access: Access) -> Result<Pin<'_>, FaultError> {
        let page = at.page();
        loop {
            {
                let space = self.space(id);
                let _guard = read_lock(space.lock());
                // Under the lock of its table a leaf cannot go, and so its reference keeps the folio until there is another one.
                if let Some(part) = space.table().cursor(self, page, page + 1).next()
                    && let first = part.page(part.range().start)
                    && let Some(leaf) = part.leaf(part.range().start).filter(|leaf| access.is_allowed_by(leaf.attrs))
                {
                    if leaf.attrs.has(Attrs::UNTRACKED) {
                        return Err(FaultError::Forbidden);
                    }
                    let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
                    folio.get(1);
                    return Ok(Pin { folio, frame: leaf.pfn.add(page - first) });
                }
            }
            self.fault(id, at, access)?;
        }
    }

    /// Gives a pin back; `stored` says that its holder has stored to the folio, of which no leaf knows: Linux's `unpin_user_pages_dirty_lock`.
    pub fn unpin(&self, pin: Pin<'_>, stored: bool) {
        if stored && !pin.folio.is_anon() {
            pin.folio.set_flags(FolioFlags::DIRTY);
        }
        self.put(pin.folio, 1);
    }
}
