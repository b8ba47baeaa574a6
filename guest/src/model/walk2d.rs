//! A walk in two dimensions: the guest's own tables, whose addresses go through a second level of tables.
//!
//! For a guest's address the MMU reads one entry at each level of the guest's tables (stage 1), and finds each of these tables, and
//! the page at the end, by a walk of the second level (stage 2) from guest-physical to physical. With `n` steps in stage 1
//! and `m` in each walk of stage 2 that makes `(n + 1) * m + n`, or `(n + 1) * (m + 1) - 1`, references to memory: 24 for 4 and 4, 35 for 5 and 5.
//!
//! The walk is written from the manuals' bits, not from [`format`](crate::format): it is a second opinion on every table. It sets nothing.

use core::sync::atomic::Ordering::Relaxed;

use crate::addr::Pfn;
use crate::memory::Memory;
use crate::space::Access;

/// What the entries of tables look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Long mode: SDM vol. 3, tables 4-14 to 4-20.
    LongMode,
    /// Nested page tables: long mode, walked as a user (APM vol. 2, 15.25). Accesses to the guest's tables count as stores.
    Npt,
    /// Extended page tables: SDM vol. 3, tables 29-1 to 29-7, on a CPU with execute-only translations.
    Ept {
        /// Whether the MMU sets accessed and dirty (bit 6 of the pointer): then accesses to the guest's tables count as stores.
        accessed_dirty: bool,
    },
}

/// A tree of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The root, in the address space that its entries' addresses are of.
    pub root: Pfn,
    /// How many levels, 4 or 5.
    pub levels: u32,
    /// Its entries.
    pub layout: Layout,
}

/// Where a walk ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The physical address.
    pub address: u64,
    /// The guest-physical one.
    pub guest_physical: u64,
    /// Entries read, of both stages.
    pub references: u32,
}

/// Where a walk was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By the guest's own tables: a page fault of the guest.
    Guest {
        /// Whether there is a leaf, which does not allow the access.
        present: bool,
    },
    /// By the second level: an exit.
    Violation {
        /// The guest-physical address that was looked for.
        guest_physical: u64,
        /// Whether it is of an entry of the guest's tables, not of the page.
        guest_walk: bool,
        /// Whether there is a leaf, which does not allow the access.
        present: bool,
    },
    /// An entry of the second level says what none may say.
    Misconfigured {
        /// The guest-physical address that was looked for.
        guest_physical: u64,
    },
}

/// How far a walk of one tree came.
enum Step {
    Leaf { address: u64, references: u32 },
    Absent,
    Refused,
    Misconfigured,
}

/// What an entry means.
enum Meaning {
    Absent,
    Table(u64),
    Leaf(u64),
    Misconfigured,
}

#[derive(Clone, Copy)]
struct Rights {
    read: bool,
    write: bool,
    execute: bool,
}

impl Rights {
    const ALL: Self = Self { read: true, write: true, execute: true };

    fn and(self, other: Self) -> Self {
        Self { read: self.read && other.read, write: self.write && other.write, execute: self.execute && other.execute }
    }

    fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.read && self.write,
            Access::Fetch => self.execute,
        }
    }
}

/// Bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The rights of `raw`, whatever else it is, and what it is.
fn decode(layout: Layout, raw: u64, level: u32) -> (Rights, Meaning) {
    let bit = |n: u32| raw >> n & 1 == 1;
    let leaf = level == 1 || bit(7);
    let rights = match layout {
        // A user's access: P and U/S, R/W, XD.
        Layout::LongMode | Layout::Npt => {
            Rights { read: bit(0) && bit(2), write: bit(0) && bit(2) && bit(1), execute: bit(0) && bit(2) && !bit(63) }
        }
        Layout::Ept { .. } => Rights { read: bit(0), write: bit(1), execute: bit(2) },
    };
    let present = match layout {
        Layout::LongMode | Layout::Npt => bit(0),
        Layout::Ept { .. } => raw & 7 != 0,
    };
    // A leaf's address is aligned to its size. Bit 12 of a large one is a bit of the PAT in long mode, and reserved in EPT.
    let page = 12 + 9 * (level - 1);
    let memory_type = raw >> 3 & 7;
    let misplaced = match layout {
        Layout::LongMode | Layout::Npt if level > 1 => raw & ADDRESS & ((1 << page) - 1) & !(1 << 12) != 0,
        _ => raw & ADDRESS & ((1 << page) - 1) != 0,
    };
    let reserved = match layout {
        _ if leaf && (level > 3 || misplaced) => true,
        Layout::LongMode | Layout::Npt => false,
        Layout::Ept { .. } if !bit(0) && bit(1) => true,
        Layout::Ept { .. } if leaf => matches!(memory_type, 2 | 3 | 7),
        Layout::Ept { .. } => raw >> 3 & 0x1f != 0,
    };
    let meaning = match (present, reserved) {
        (false, _) => Meaning::Absent,
        (true, true) => Meaning::Misconfigured,
        _ if leaf => Meaning::Leaf(raw & ADDRESS & !((1 << page) - 1)),
        _ => Meaning::Table(raw & ADDRESS),
    };
    (rights, meaning)
}

/// Walks `tree`. `find` gives the physical address of an entry, and how many references it took to know it.
fn walk_tree<E>(
    memory: &impl Memory,
    tree: Tree,
    address: u64,
    access: Access,
    mut find: impl FnMut(u64) -> Result<(u64, u32), E>,
) -> Result<Step, E> {
    let mut table = tree.root.address();
    let mut references = 0;
    let mut allowed = Rights::ALL;
    for level in (1..=tree.levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let (at, beside) = find(table + 8 * (address >> shift & 511))?;
        let raw = memory.frame(Pfn::from_address(at)).0[(at >> 3 & 511) as usize].load(Relaxed);
        references += beside + 1;
        let (rights, meaning) = decode(tree.layout, raw, level);
        allowed = allowed.and(rights);
        match meaning {
            Meaning::Absent => return Ok(Step::Absent),
            Meaning::Misconfigured => return Ok(Step::Misconfigured),
            Meaning::Table(next) => table = next,
            Meaning::Leaf(_) if !allowed.allow(access) => return Ok(Step::Refused),
            Meaning::Leaf(base) => {
                return Ok(Step::Leaf { address: base | address & ((1 << shift) - 1), references });
            }
        }
    }
    Ok(Step::Absent)
}

/// The physical address behind `address` of a guest whose tables are `guest` in memory that `host` translates.
///
/// # Errors
/// What stopped the walk.
pub fn walk(memory: &impl Memory, guest: Tree, host: Tree, address: u64, access: Access) -> Result<Walked, Stopped> {
    let walk_access = match host.layout {
        Layout::Npt | Layout::Ept { accessed_dirty: true } => Access::Write,
        _ => Access::Read,
    };
    let second = |guest_physical: u64, guest_walk: bool| {
        second_level(memory, host, guest_physical, if guest_walk { walk_access } else { access }, guest_walk)
    };
    match walk_tree(memory, guest, address, access, |at| second(at, true))? {
        Step::Leaf { address: guest_physical, references } => {
            let (address, last) = second(guest_physical, false)?;
            Ok(Walked { address, guest_physical, references: references + last })
        }
        Step::Absent => Err(Stopped::Guest { present: false }),
        Step::Refused | Step::Misconfigured => Err(Stopped::Guest { present: true }),
    }
}

/// The physical address behind `guest_physical`, as a guest without tables of its own reaches it, in memory that `host` translates.
///
/// # Errors
/// What stopped the walk.
pub fn translate(memory: &impl Memory, host: Tree, guest_physical: u64, access: Access) -> Result<u64, Stopped> {
    second_level(memory, host, guest_physical, access, false).map(|(address, _)| address)
}

/// The physical address, and how many entries were read for it.
fn second_level(
    memory: &impl Memory,
    host: Tree,
    guest_physical: u64,
    access: Access,
    guest_walk: bool,
) -> Result<(u64, u32), Stopped> {
    match walk_tree(memory, host, guest_physical, access, |at| Ok::<_, Stopped>((at, 0)))? {
        Step::Leaf { address, references } => Ok((address, references)),
        Step::Absent => Err(Stopped::Violation { guest_physical, guest_walk, present: false }),
        Step::Refused => Err(Stopped::Violation { guest_physical, guest_walk, present: true }),
        Step::Misconfigured => Err(Stopped::Misconfigured { guest_physical }),
    }
}

/// Where a walk through tables in translated memory ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The frame of the machine.
    pub pfn: Pfn,
    /// Whether every table on the way allows a store.
    pub write: bool,
}

/// Translates `page` by the last of `roots`, each a long-mode table whose tables and pages are pages of the one before, and those of the first are frames: any
/// number of levels deep. `None` when anything on the way is absent, or not for a user.
#[must_use]
pub fn walk_through(memory: &impl Memory, roots: &[u64], page: u64) -> Option<Reached> {
    let pfn = reach(memory, roots, page, Access::Read)?;
    Some(Reached { pfn, write: reach(memory, roots, page, Access::Write).is_some() })
}

fn reach(memory: &impl Memory, roots: &[u64], page: u64, access: Access) -> Option<Pfn> {
    let Some((&root, below)) = roots.split_last() else { return Some(Pfn::new(page)) };
    let tree = Tree { root: Pfn::new(root), levels: 4, layout: Layout::LongMode };
    // Entries are only read.
    let find = |address: u64| -> Result<_, ()> {
        let table = reach(memory, below, address >> 12, Access::Read).ok_or(())?;
        Ok((table.address() | address & 0xfff, 0))
    };
    match walk_tree(memory, tree, page << 12, access, find) {
        Ok(Step::Leaf { address, .. }) => reach(memory, below, address >> 12, access),
        _ => None,
    }
}
