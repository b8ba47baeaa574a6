//! Memory that a guest gives back (free page reporting, ballooning): the handshake of SCHEMES.md, nested levels, N1c.
//!
//! The guest takes a free run off its lists, so that nobody maps it meanwhile ([`Manager::report_free`]); the host drops the stage-2 leaves, flushes, and discards
//! what stands behind ([`Manager::discard`]); the guest puts the run back, known to be zero: a later fault brings zeroes.

use core::ops::Range;

use super::slot::Backing;
use super::{AsId, VmId};
use crate::addr::{Gva, Order, Pfn};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::space::{Advice, Manager, MapError};

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The guest's half: takes a free run of `order` off the lists, has `report` tell the host, and puts it back; `report` says whether the host has discarded all of it, so
    /// that it reads as zeroes. Whether there was one.
    pub fn report_free(&self, order: Order, report: impl FnOnce(Pfn) -> bool) -> bool {
        let Some(run) = self.frames.alloc(order, false) else { return false };
        let is_zero = report(run.pfn) || run.zeroed;
        self.frames.free(run.pfn, order, is_zero);
        true
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// The host's half: guest frames `gfns` hold nothing that anybody wants. Their stage-2 leaves go, and so does what the VMM's space maps behind them; pages of a shared object are
    /// taken out of the object. Whether all of the memory behind is free; what a device or nobody stands behind is not.
    ///
    /// # Errors
    /// [`MapError`], when a larger leaf had to be split and there was no frame.
    pub fn discard(&self, id: VmId, view: AsId, gfns: Range<u64>) -> Result<bool, MapError> {
        let (mut gfn, mut all) = (gfns.start, true);
        let space = self.vm(id).space();
        while gfn < gfns.end {
            let Some((_, slot)) = self.slot_at(id, view, gfn) else {
                (gfn, all) = (gfn + 1, false);
                continue;
            };
            let end = gfns.end.min(slot.gfns().end);
            match slot.backing {
                Backing::Device(_) => all = false,
                Backing::Host(start) => {
                    let page = start + (gfn - slot.gfn);
                    self.advise(space, Gva::from_page(page), end - gfn, Advice::DontNeed)?;
                    all &= self.punch(space, page..page + (end - gfn));
                }
            }
            gfn = end;
        }
        Ok(all)
    }
}
