//! Walks of tables whose tables lie in translated memory, any number of levels deep: written from the manual, with nothing of the manager's, as a second opinion on
//! everything that is composed.

use core::sync::atomic::Ordering::Relaxed;

use super::Machine;
use crate::addr::Pfn;
use crate::memory::Memory;

/// Where a walk through all tables ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The frame of the machine.
    pub pfn: Pfn,
    /// Whether every table on the way allows a store.
    pub write: bool,
}

// Bits of a long-mode entry (SDM vol. 3, tables 4-14 to 4-20).
const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PS: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Translates `page` by the last of `roots`, each a long-mode table whose tables and pages are pages of the one before, and those of the first are frames. `None` when
/// anything on the way is absent, or not for a user.
#[must_use]
pub fn walk_through(machine: &Machine, roots: &[u64], page: u64) -> Option<Walked> {
    let Some((&root, below)) = roots.split_last() else { return Some(Walked { pfn: Pfn::new(page), write: true }) };
    let (mut table, mut write) = (root, true);
    for shift in [27, 18, 9, 0] {
        let frame = walk_through(machine, below, table)?.pfn;
        let raw = machine.frame(frame).0[(page >> shift) as usize & 511].load(Relaxed);
        if raw & P == 0 || raw & US == 0 {
            return None;
        }
        write &= raw & RW != 0;
        let next = (raw & ADDRESS) >> 12;
        if shift == 0 || raw & PS != 0 {
            let offset = page & ((1 << shift) - 1);
            let found = walk_through(machine, below, (next & !((1 << shift) - 1)) + offset)?;
            return Some(Walked { write: write && found.write, ..found });
        }
        table = next;
    }
    None
}
