//! What the VMM does to its VM's memory while that runs: it must not show in what the guest reads.

use quire::mapcount::Accounting;
use quire::space::{Access, SpaceId};
use quire::stage2::{AsId, SlotFlags, SlotId};

use super::{BASE, Host, Memory};

/// A VMM with things to do.
pub(super) struct Disturber<'h, 'm, A: Accounting> {
    host: &'h Host<'m, A>,
    vmm: SpaceId,
    slot: SlotId,
    random: u64,
    /// A copy of the VMM, which shares its memory until either stores to it.
    child: Option<SpaceId>,
}

impl<'h, 'm, A: Accounting> Disturber<'h, 'm, A> {
    /// With `seed` 0 nothing is done.
    pub(super) fn new(host: &'h Host<'m, A>, vmm: SpaceId, slot: SlotId, seed: u64) -> Self {
        Self { host, vmm, slot, random: seed, child: None }
    }

    /// Does one thing; whether it did.
    pub(super) fn disturb(&mut self, memory: &Memory<'_, '_, A>) -> bool {
        if self.random == 0 {
            return false;
        }
        // xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let (host, vm) = (self.host, memory.vm());
        let Some(slot) = host.slots(vm, AsId::NORMAL).next() else { return false };
        match self.random % 8 {
            0 | 1 if slot.flags.has(SlotFlags::LOGGING) => {
                if self.random & 8 == 0 {
                    host.take_log(vm, AsId::NORMAL, self.slot, |_| {});
                } else {
                    host.stop_log(vm, AsId::NORMAL, self.slot);
                }
            }
            0 | 1 => return host.start_log(vm, AsId::NORMAL, self.slot).is_ok(),
            2 => host.harvest_accessed(vm, AsId::NORMAL, slot.gfns(), |_| {}),
            3 | 4 => match self.child.take() {
                Some(child) => host.destroy_space(child),
                None => self.child = host.fork(self.vmm).ok(),
            },
            // A folio of its memory goes to other frames.
            _ => {
                let page = (self.random >> 16) % slot.pages;
                let Ok(pin) = host.pin(self.vmm, BASE.add_pages(page), Access::Read) else { return false };
                let moved = host.migrate(pin.folio()).is_ok();
                host.unpin(pin, false);
                return moved;
            }
        }
        true
    }

    /// Nothing is left of it.
    pub(super) fn end(&mut self) {
        if let Some(child) = self.child.take() {
            self.host.destroy_space(child);
        }
    }
}
