//! A table walk of the VMM's own, over guest memory: a second opinion on what the guest's MMU sees.
//!
//! It changes nothing, unlike KVM_TRANSLATE, which sets accessed bits on the way.

use quire::abi::MAX_MEMORY;
use quire::addr::{Level, Order, PAGE_SHIFT, PAGE_SIZE};

use crate::error::Error;
use crate::memory::Memory;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << 52) - 1) & !(PAGE_SIZE - 1);

/// Where an address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address.
    pub gpa: u64,
    /// Order of the leaf.
    pub order: Order,
    /// The leaf as it is.
    pub leaf: u64,
    /// Stores are allowed at every level.
    pub write: bool,
    /// Ring 3 is allowed at every level.
    pub user: bool,
    /// Fetches are allowed at every level.
    pub execute: bool,
}

/// Walks the four-level tables at `root` for `gva`; `None` where an entry is not present.
///
/// # Errors
/// When a table lies outside guest memory.
pub fn walk(memory: &Memory, root: u64, gva: u64) -> Result<Option<Translation>, Error> {
    let (mut table, mut rights, mut level) = (root & ADDRESS, WRITE | USER, Level::new(4));
    let mut execute = true;
    loop {
        let entry = memory.read(table + 8 * level.index(gva >> PAGE_SHIFT) as u64)?;
        if entry & PRESENT == 0 {
            return Ok(None);
        }
        rights &= entry;
        execute &= entry & NO_EXECUTE == 0;
        match level.below() {
            Some(below) if entry & LARGE == 0 || level == Level::new(4) => {
                (table, level) = (entry & ADDRESS, below);
            }
            _ => {
                let inside = level.entry_pages() * PAGE_SIZE - 1;
                let gpa = (entry & ADDRESS & !inside) | (gva & inside);
                let (write, user) = (rights & WRITE != 0, rights & USER != 0);
                return Ok(Some(Translation { gpa, order: level.leaf_order(), leaf: entry, write, user, execute }));
            }
        }
    }
}

const _: () = assert!(MAX_MEMORY < ADDRESS);
