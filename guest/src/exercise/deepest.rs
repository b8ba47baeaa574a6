//! A tenant's tenant: a VM of level 1, with its first tables already in its memory, as a boot loader leaves them.
//!
//! Its addresses are its guest frames: long-mode tables of its own map the first gibibyte to itself, by leaves of 2 MiB. Where an MMU walks two dimensions these tables are the
//! first; where tables are composed, these are with both levels below.

use core::sync::atomic::Ordering::Relaxed;

use super::{ALL, Cpu, Nest, Wrong, at, must};
use crate::addr::{ENTRIES, Level, Pfn};
use crate::format::{Attrs, Format, Leaf, LongMode};
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::space::{Access, Map, SpaceId};
use crate::stage2::{AsId, Backing, Slot, SlotFlags, VmId};

/// The first guest frame of what it boots with.
pub const FIRST: u64 = 16 * 512;
/// Pages for the program of the [`Cpu`].
pub const PROGRAM_PAGES: u64 = 4;
/// All of these pages.
pub const PAGES: u64 = PROGRAM_PAGES + 3;
const DIRECTORY: u64 = FIRST + PROGRAM_PAGES;
/// The guest frame of its root table.
pub const ROOT: u64 = DIRECTORY + 2;

/// Gives VM `vm` of level 1 these pages, which `space` has from `page` on, and fills them.
///
/// # Errors
/// When there are too few frames.
pub fn boot<M: Memory + Tlb, A: Accounting, C: Cpu<M, A>>(
    nest: &Nest<'_, M, A>,
    cpu: &C,
    vm: VmId,
    space: SpaceId,
    page: u64,
) -> Result<(), Wrong> {
    must("pages to boot from", nest.guest.map(space, at(page), PAGES, ALL, Map::Anon))?;
    let slot = Slot { gfn: FIRST, pages: PAGES, backing: Backing::Host(page), flags: SlotFlags::default() };
    must("a slot to boot from", nest.guest.add_slot(vm, AsId::NORMAL, slot))?;
    let mut result = Ok(());
    let mut store = |nth: u64, word: usize, value: u64| match nest.guest.pin(space, at(page + nth), Access::Write) {
        Ok(pin) => {
            nest.memory.frame(pin.frame()).0[word].store(value, Relaxed);
            nest.guest.unpin(pin, true);
        }
        Err(_) => result = Err(Wrong::Refused("a page to boot from")),
    };
    // Accessed and dirty already: nobody wants to know.
    let attrs = [Attrs::WRITE, Attrs::USER, Attrs::EXEC, Attrs::ACCESSED, Attrs::DIRTY];
    let attrs = attrs.into_iter().fold(Attrs::NONE, Attrs::or);
    for i in 0..ENTRIES {
        let pfn = Pfn::new(i as u64 * Level::TWO.entry_pages());
        store(DIRECTORY - FIRST, i, LongMode::leaf(Leaf { pfn, attrs }, Level::TWO));
    }
    store(DIRECTORY + 1 - FIRST, 0, LongMode::table(Pfn::new(DIRECTORY)));
    store(ROOT - FIRST, 0, LongMode::table(Pfn::new(DIRECTORY + 1)));
    let last = cpu.program(FIRST, &mut store);
    store(ROOT - FIRST, ENTRIES - 1, last);
    result
}
