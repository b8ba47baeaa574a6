//! The owner slots (SCHEMES.md, owner slots), which `total`, `mm-owner` and `per-level` share: M, two owners and how many of the leaves each is known to have,
//! and whether somebody else may map the folio too.
//!
//! "Exclusive" is never wrong: a slot never counts leaves that its owner does not have, so one that counts M of them holds all. "Shared" may be.
//!
//! One locked operation per change: taking the lock, which lives beside the owner ids; the new ids are stored with the lock released.

use core::sync::atomic::Ordering::{Relaxed, Release};

use super::{Evidence, Truth, ensure};
use crate::sync::{AtomicU64, Field, take_bit};

// Word 0: both owner ids, the maybe-shared bit, the lock. Word 1: M, leaves of slot 0. Word 2: leaves of slot 1.
const ID0: Field<0, 31> = Field;
const SHARED: u64 = 1 << 31;
const ID1: Field<32, 31> = Field;
const LOCK: u64 = 1 << 63;
const LOW: Field<0, 32> = Field;
const HIGH: Field<32, 32> = Field;

/// Words that the slots take at the start of a scheme's state. Those behind are the scheme's own; the lock holds for them too.
pub(super) const WORDS: usize = 3;

/// M and the slots, taken out under the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    /// M.
    pub(super) leaves: u64,
    /// The owners, 0 for a free slot.
    ids: [u64; 2],
    /// Leaves that are known to be theirs.
    counts: [u64; 2],
    /// Whether somebody else than one owner may map the folio.
    pub(super) shared: bool,
}

/// Holds the folio's lock; [`store`](Self::store) writes the slots back and releases it.
pub(super) struct Locked<'a> {
    words: &'a [AtomicU64; WORDS],
    pub(super) slots: Slots,
}

impl<'a> Locked<'a> {
    #[inline(always)]
    pub(super) fn new(words: &'a [AtomicU64]) -> Self {
        let words = words.first_chunk().expect("the state has as many words");
        let ids = take_bit(&words[0], LOCK);
        let one = words[1].load(Relaxed);
        let slots = Slots {
            leaves: LOW.of(one),
            ids: [ID0.of(ids), ID1.of(ids)],
            counts: [HIGH.of(one), LOW.get(&words[2])],
            shared: ids & SHARED != 0,
        };
        Self { words, slots }
    }

    #[inline(always)]
    pub(super) fn store(self) {
        let s = self.slots;
        self.words[1].store(LOW.bits(s.leaves) | HIGH.bits(s.counts[0]), Relaxed);
        self.words[2].store(LOW.bits(s.counts[1]), Relaxed);
        let shared = if s.shared { SHARED } else { 0 };
        self.words[0].store(ID0.bits(s.ids[0]) | ID1.bits(s.ids[1]) | shared, Release);
    }

    pub(super) fn unlock(self) {
        let ids = self.words[0].load(Relaxed);
        self.words[0].store(ids & !LOCK, Release);
    }
}

/// M, without the lock.
pub(super) fn leaves(words: &[AtomicU64]) -> u64 {
    LOW.get(&words[1])
}

/// Whether somebody else than one owner may map the folio, without the lock.
pub(super) fn is_shared(words: &[AtomicU64]) -> bool {
    words[0].load(Relaxed) & SHARED != 0
}

impl Slots {
    #[inline(always)]
    pub(super) fn add(&mut self, leaves: u64, owner: u32) {
        let owner = u64::from(owner);
        self.leaves += leaves;
        if self.ids[0] == owner {
            self.counts[0] += leaves;
        } else if self.ids[1] == owner {
            self.counts[1] += leaves;
        } else if self.ids[0] == 0 {
            (self.ids[0], self.counts[0]) = (owner, leaves);
            // Somebody without a slot, or the other one, holds the rest.
            self.shared |= self.leaves != leaves;
        } else if self.ids[1] == 0 {
            (self.ids[1], self.counts[1]) = (owner, leaves);
            self.shared = true;
        }
        // Else: an owner without a slot; shared is set already.
    }

    #[inline(always)]
    pub(super) fn sub(&mut self, leaves: u64, owner: u32) {
        self.leaves -= leaves;
        for slot in 0..2 {
            if self.ids[slot] == u64::from(owner) {
                if self.counts[slot] > leaves {
                    self.counts[slot] -= leaves;
                    // The owner still maps it, so who else does has not changed.
                    return;
                }
                // Also when it would underflow: leaves from before the owner got its slot.
                (self.ids[slot], self.counts[slot]) = (0, 0);
            }
        }
        if self.counts[0] == self.leaves || self.counts[1] == self.leaves {
            self.shared = false;
        }
    }

    /// The slot's count grows with M: were it left behind, its owner would never read as exclusive again.
    pub(super) fn split(&mut self, owner: u32) {
        self.leaves += 511;
        for slot in 0..2 {
            if self.ids[slot] == u64::from(owner) {
                self.counts[slot] += 511;
            }
        }
    }

    pub(super) fn collapse(&mut self, owner: u32) {
        self.leaves -= 511;
        for slot in 0..2 {
            if self.ids[slot] == u64::from(owner) {
                // An owner whose older leaves never reached the slot keeps the one that is there now.
                self.counts[slot] = self.counts[slot].saturating_sub(511).max(1);
            }
        }
    }

    /// `owner` maps the folio, and `leaves` counts what it has. It gets a slot for them if that is news: an owner whose slot was taken when it came, and is free now.
    /// When they are all that there are, the folio was not shared. Nothing is asked while another owner's slot proves that it is.
    pub(super) fn relearn(&mut self, owner: u32, leaves: impl FnOnce() -> u64) {
        let id = u64::from(owner);
        let others = (0..2).any(|slot| self.ids[slot] != 0 && self.ids[slot] != id);
        if !self.shared || others {
            return;
        }
        let slot = usize::from(self.ids[1] == id);
        let found = leaves();
        // Each was counted before it was entered and is subtracted behind its removal.
        debug_assert!(found <= self.leaves, "{found} leaves of {}", self.leaves);
        if found > self.counts[slot] {
            (self.ids[slot], self.counts[slot]) = (id, found);
        }
        self.shared = self.counts[slot] != self.leaves;
    }

    /// Both slots, for reports and tests.
    pub(super) fn pairs(&self) -> [(u32, u64); 2] {
        [0, 1].map(|slot| (self.ids[slot] as u32, self.counts[slot]))
    }

    /// What must hold of them, whatever else the scheme keeps.
    pub(super) fn check(&self, truth: &Truth, seen: &dyn Evidence) -> Result<(), &'static str> {
        ensure(self.leaves == truth.leaves, "M")?;
        ensure(self.ids[0] != self.ids[1] || self.ids[0] == 0, "one owner in two slots")?;
        for (id, count) in self.pairs() {
            ensure((id == 0) == (count == 0), "a slot without an owner, or without leaves")?;
            let within = id == 0 || seen.leaves_of(id).is_none_or(|leaves| count <= leaves);
            ensure(within, "a slot beyond its owner's leaves")?;
        }
        ensure(self.shared || truth.owners <= 1, "exclusive, though two owners map it")?;
        ensure(self.leaves > 0 || (self.ids == [0, 0] && !self.shared), "slots of an unmapped folio")
    }
}
