//! Words whose every interleaving is explored: in place of the machine's in the models of `tests/loom.rs`, and nowhere else.

extern crate std;

use core::ops::Deref;
use core::sync::atomic::Ordering;
use std::sync::OnceLock;

pub use loom::hint::spin_loop;

/// A word that the explorer gets to know when it is first touched: so that it can be made in a constant, and that a frame of 512 costs no more than those
/// in use. The first to touch it must do so before the others start.
#[derive(Debug, Default)]
pub struct AtomicU64 {
    value: u64,
    word: OnceLock<loom::sync::atomic::AtomicU64>,
}

impl AtomicU64 {
    /// A word.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self { value, word: OnceLock::new() }
    }

    /// Sets `bits`; the value before.
    pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.change(order, |now| now | bits)
    }

    /// Exchanges the value; the one before.
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.change(order, |_| value)
    }

    /// One locked operation, which stores nothing where it would change nothing. What a CPU that waits for a lock writes stands directly behind what it read, but the explorer
    /// does not know that, and would let it come behind the store that gives the lock back: locked for ever.
    fn change(&self, order: Ordering, f: impl Fn(u64) -> u64) -> u64 {
        // Fails, and says what is there: unlike a load, never an older value.
        let mut now = self.compare_exchange(NEVER, NEVER, order, order).unwrap_or_else(|now| now);
        while f(now) != now {
            match self.compare_exchange(now, f(now), order, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => now = other,
            }
        }
        now
    }
}

/// No word is ever this.
const NEVER: u64 = 0x5555_5555_5555_5555;

impl Deref for AtomicU64 {
    type Target = loom::sync::atomic::AtomicU64;

    fn deref(&self) -> &Self::Target {
        self.word.get_or_init(|| loom::sync::atomic::AtomicU64::new(self.value))
    }
}
