//! What the kernel is told when it starts: [`BootInfo`], and the indices of its words.

use core::fmt;
use core::ops::{Index, IndexMut};

use crate::abi;

/// [`MAGIC`](abi::MAGIC).
pub const MAGIC: usize = 0;
/// [`VERSION`](abi::VERSION).
pub const VERSION: usize = 1;
/// First frame that is the manager's.
pub const FRAMES_FIRST: usize = 2;
/// How many frames follow it.
pub const FRAMES_COUNT: usize = 3;
/// End of guest memory: what the alias map covers.
pub const MEMORY_END: usize = 4;
/// End of the kernel image. The kernel fills it in where the loader left 0.
pub const IMAGE_END: usize = 5;
/// Requested ring, one of [`ring`](mod@ring).
pub const RING: usize = 6;
/// Number of the mapcount scheme.
pub const SCHEME: usize = 7;
/// Frequency of the time-stamp counter; 0 when unknown.
pub const TSC_KHZ: usize = 8;
/// Where the encoded trace begins.
pub const TRACE_GPA: usize = 9;
/// Its length, a multiple of [`OP_WORDS`](crate::abi::OP_WORDS).
pub const TRACE_WORDS: usize = 10;
/// Where the results region begins.
pub const RESULTS_GPA: usize = 11;
/// Its length.
pub const RESULTS_BYTES: usize = 12;
/// Where samples go; a multiple of 2 MiB.
pub const SAMPLES_GPA: usize = 13;
/// How many samples fit.
pub const SAMPLES_CAPACITY: usize = 14;
/// A sum of [`flags`](mod@flags).
pub const FLAGS: usize = 15;
/// Operations between two audits; 0 for none.
pub const AUDIT_INTERVAL: usize = 16;
/// Seed of whatever is random.
pub const SEED: usize = 18;
/// First of [`OPTIONS_COUNT`] words that the manager gives a meaning.
pub const OPTIONS: usize = 32;
/// How many such words.
pub const OPTIONS_COUNT: usize = 32;
/// Length of the whole.
pub const WORDS: usize = OPTIONS + OPTIONS_COUNT;

/// Values of [`RING`].
pub mod ring {
    /// The manager runs at ring 0, the tenant at ring 3.
    pub const ZERO: u64 = 0;
    /// The manager runs at ring 3 above the shim.
    pub const THREE: u64 = 3;
    /// The kernel measures and picks.
    pub const AUTO: u64 = 4;
}

/// Bits of [`FLAGS`].
pub mod flags {
    /// Panic on purpose once the manager runs.
    pub const PANIC: u64 = 1 << 0;
    /// Loop for ever on purpose.
    pub const HANG: u64 = 1 << 1;
    /// Ring [`bell::START`](crate::abi::bell::START) as early as possible.
    pub const START_BELL: u64 = 1 << 2;
    /// Read through a null pointer on purpose: an exception in the manager.
    pub const STRAY: u64 = 1 << 3;
    /// Recurse without end on purpose.
    pub const OVERFLOW: u64 = 1 << 5;
    /// Ring the first free doorbell with 20, and add the answer to it in the first general word.
    pub const ASK: u64 = 1 << 6;
    /// Run the machine's own floor and checks, not the manager.
    pub const FLOOR_ONLY: u64 = 1 << 4;
    /// With [`FLOOR_ONLY`]: not the floor, but the checks of guests on the CPU's own second level of paging.
    pub const NESTED: u64 = 1 << 7;
    /// Enter a guest while a flush is owed, on purpose.
    pub const STALE: u64 = 1 << 8;
}

/// The boot words; index them by the constants beside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootInfo(pub [u64; WORDS]);

impl BootInfo {
    /// Magic and version set, the rest zero but the ring, which is left to the kernel.
    #[must_use]
    pub const fn new() -> Self {
        let mut words = [0; WORDS];
        words[MAGIC] = abi::MAGIC;
        words[VERSION] = abi::VERSION;
        words[RING] = ring::AUTO;
        Self(words)
    }

    /// Whether these words are a [`BootInfo`] of this version with a ring that exists.
    ///
    /// # Errors
    /// Which word is wrong.
    pub const fn check(&self) -> Result<(), BootError> {
        if self.0[MAGIC] != abi::MAGIC {
            return Err(BootError::Magic(self.0[MAGIC]));
        }
        if self.0[VERSION] != abi::VERSION {
            return Err(BootError::Version(self.0[VERSION]));
        }
        if !matches!(self.0[RING], ring::ZERO | ring::THREE | ring::AUTO) {
            return Err(BootError::Ring(self.0[RING]));
        }
        Ok(())
    }

    /// Whether every bit of `flag` is set.
    #[must_use]
    pub const fn has(&self, flag: u64) -> bool {
        self.0[FLAGS] & flag == flag
    }
}

impl Default for BootInfo {
    fn default() -> Self {
        Self::new()
    }
}

impl Index<usize> for BootInfo {
    type Output = u64;
    fn index(&self, word: usize) -> &u64 {
        &self.0[word]
    }
}

impl IndexMut<usize> for BootInfo {
    fn index_mut(&mut self, word: usize) -> &mut u64 {
        &mut self.0[word]
    }
}

/// Why words are not a [`BootInfo`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// Another first word.
    Magic(u64),
    /// Another version of this contract.
    Version(u64),
    /// No such ring.
    Ring(u64),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(word) => write!(f, "boot words begin with {word:#x}, not with the magic"),
            Self::Version(word) => write!(f, "boot words are of version {word}, this kernel speaks {}", abi::VERSION),
            Self::Ring(word) => write!(f, "boot words ask for ring {word}"),
        }
    }
}
