//! A second opinion on translations: the VMM walks the current tables itself.

use core::fmt;

use quire::abi::bell;
use quire::abi::results::{AUDIT_PAIRS, NOT_MAPPED};
use quire::addr::{Gva, PAGE_SIZE};

use crate::results::Results;

/// A batch of expectations about the current root.
#[derive(Debug)]
pub struct Audit<'a> {
    results: &'a Results,
    pairs: u64,
}

/// The first expectation that the VMM's walk did not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// How many were not met.
    pub count: u64,
    /// Index of the first.
    pub index: u64,
    /// Where the VMM's walk ended; `None` for nowhere.
    pub found: Option<u64>,
}

impl<'a> Audit<'a> {
    /// An empty batch.
    pub fn new(results: &'a Results) -> Self {
        Self { results, pairs: 0 }
    }

    /// How many expectations fit in a batch.
    pub const CAPACITY: u64 = AUDIT_PAIRS;

    /// Expects `gva` to translate to physical address `gpa`, or not at all.
    ///
    /// # Panics
    /// When the batch is full.
    pub fn expect(&mut self, gva: Gva, gpa: Option<u64>) {
        self.results.audit_pair(self.pairs, gva.raw(), gpa.unwrap_or(NOT_MAPPED));
        self.pairs += 1;
    }

    /// Asks the VMM.
    ///
    /// # Errors
    /// What it found otherwise.
    pub fn compare(self) -> Result<u64, Mismatch> {
        let [_, count, index, found, ..] = self.results.ring(bell::AUDIT, [self.pairs, 0, 0, 0]);
        match count {
            0 => Ok(self.pairs),
            _ => Err(Mismatch { count, index, found: (found != NOT_MAPPED).then_some(found) }),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, index, found } = self;
        match found {
            Some(gpa) => write!(f, "{count} translations differ, the first is pair {index}: the walk finds {gpa:#x}"),
            None => write!(f, "{count} translations differ, the first is pair {index}: the walk finds nothing"),
        }
    }
}

const _: () = assert!(PAGE_SIZE < NOT_MAPPED);
