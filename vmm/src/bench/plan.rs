//! What the kernel is to time.

use quire::abi::bench::{self, Operation, Shape, frames};
use quire::abi::{BootInfo, boot};
use quire::mapcount::Scheme;

use crate::replay::Ring;

/// What the frames of a benchmark are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frames {
    /// In the host's memory already, and known to be zero.
    KnownZero,
    /// In the host's memory already, and to be cleared before use.
    ToClear,
    /// Touched by nobody, so zero; the host gives memory at the first access.
    Fresh,
}

impl Frames {
    const fn word(self) -> u64 {
        match self {
            Self::KnownZero => frames::KNOWN_ZERO,
            Self::ToClear => frames::TO_CLEAR,
            Self::Fresh => frames::FRESH,
        }
    }
}

/// One run of the kernel's benchmark.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The operations.
    pub operations: Vec<Operation>,
    /// The shapes.
    pub shapes: Vec<Shape>,
    /// The scheme.
    pub scheme: Scheme,
    /// The ring of the manager.
    pub ring: Ring,
    /// What the frames are like.
    pub frames: Frames,
    /// Pages of folios in a round, a multiple of 512.
    pub pages: u64,
    /// Rounds that are timed, at least.
    pub rounds: u64,
    /// Samples of an operation on one folio, at least.
    pub samples: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            operations: Operation::EACH.to_vec(),
            shapes: (0..bench::SHAPES).map(Shape::nth).collect(),
            scheme: Scheme::Total,
            ring: Ring::Auto,
            frames: Frames::ToClear,
            pages: 1024,
            rounds: 32,
            samples: 1000,
        }
    }
}

impl Plan {
    /// What the kernel is told, addresses apart. Shapes go by two masks: with leaves of 2 MiB of order 9 and any shape of 4 KiB leaves, all orders
    /// asked for come by both.
    #[must_use]
    pub fn boot_words(&self) -> BootInfo {
        let mut words = BootInfo::new();
        words[boot::RING] = self.ring.word();
        words[boot::SCHEME] = self.scheme as u64;
        words[bench::OPERATIONS] = self.operations.iter().fold(0, |mask, operation| mask | operation.bit());
        words[bench::ORDERS] = self.shapes.iter().fold(0, |mask, shape| mask | 1 << shape.order.get());
        words[bench::LEVELS] = self.shapes.iter().fold(0, |mask, shape| mask | 1 << shape.level.get());
        words[bench::FRAMES] = self.frames.word();
        words[bench::PAGES] = self.pages;
        words[bench::ROUNDS] = self.rounds;
        words[bench::SAMPLES] = self.samples;
        words
    }
}
