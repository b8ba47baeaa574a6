//! One run of the kernel's benchmark: what it is told.

use std::fmt;

use quire::abi::bench::{self, Operation, Shape, frames};
use quire::abi::{BootInfo, boot, nest};
use quire::mapcount::Scheme;

use crate::replay::{Ring, Stage2};

/// What the frames of a benchmark are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frames {
    /// In the host's memory already, and to be cleared before use: what a system is like that has run for a while.
    ToClear,
    /// In the host's memory already, and known to be zero.
    KnownZero,
    /// Touched by nobody, so zero; the host gives memory at the first access: a stage-2 fault inside of the tenant's.
    Fresh,
}

impl Frames {
    const fn word(self) -> u64 {
        match self {
            Self::ToClear => frames::TO_CLEAR,
            Self::KnownZero => frames::KNOWN_ZERO,
            Self::Fresh => frames::FRESH,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToClear => "to clear",
            Self::KnownZero => "known zero",
            Self::Fresh => "fresh",
        }
    }
}

impl fmt::Display for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
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
    /// How stage-2 tables of VMs are written.
    pub stage2: Stage2,
    /// What the frames are like.
    pub frames: Frames,
    /// Pages of folios in a round, a multiple of 512.
    pub pages: u64,
    /// Rounds that are timed, at least; one in any case.
    pub rounds: u64,
    /// Samples of an operation on one folio, at least.
    pub samples: u64,
    /// Recount all leaves in the round that is not timed.
    pub is_recounted: bool,
    /// Time the parts of a fault too.
    pub has_layers: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            operations: Operation::EACH.to_vec(),
            shapes: (0..bench::SHAPES).map(Shape::nth).collect(),
            scheme: Scheme::Total,
            ring: Ring::Auto,
            stage2: Stage2::None,
            frames: Frames::ToClear,
            pages: 1024,
            rounds: 32,
            samples: 1000,
            is_recounted: true,
            has_layers: false,
        }
    }
}

impl Plan {
    /// What the kernel is told, addresses apart. It goes by a mask of orders and one of levels: with shapes at both levels, order 9 comes by both.
    #[must_use]
    pub fn boot_words(&self) -> BootInfo {
        let mut words = BootInfo::new();
        words[boot::RING] = self.ring.word();
        words[boot::SCHEME] = self.scheme as u64;
        words[nest::ENGINE] = self.stage2.word();
        words[bench::OPERATIONS] = self.mask();
        words[bench::ORDERS] = self.shapes.iter().fold(0, |mask, shape| mask | 1 << shape.order.get());
        words[bench::LEVELS] = self.shapes.iter().fold(0, |mask, shape| mask | 1 << shape.level.get());
        words[bench::FRAMES] = self.frames.word();
        words[bench::PAGES] = self.pages;
        words[bench::ROUNDS] = self.rounds;
        words[bench::SAMPLES] = self.samples;
        words[bench::RECOUNTED] = u64::from(self.is_recounted);
        words[bench::LAYERS] = u64::from(self.has_layers);
        words
    }

    fn mask(&self) -> u64 {
        self.operations.iter().fold(0, |mask, operation| mask | operation.bit())
    }

    /// Rounds of `shape`, the one that is not timed left out.
    #[must_use]
    pub fn rounds(&self, shape: Shape) -> u64 {
        self.rounds.max(self.samples.div_ceil(shape.folios(self.pages))).max(1)
    }

    /// Room for samples: no more than ten of each folio and its floor, and of each round; and those of single pages.
    #[must_use]
    pub fn room(&self) -> u64 {
        let pages = if self.operations.contains(&Operation::LogStore) { 2 * self.pages } else { 0 };
        self.shapes.iter().map(|&shape| self.rounds(shape) * (20 * shape.folios(self.pages) + 40 + pages)).sum()
    }

    /// Bytes of frames that it takes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        if Operation::is_of_vms(self.mask()) {
            return self.memory_of_vms();
        }
        // A manager has two rounds' pages and 2048 frames; the floor has its pages and some.
        let chunk = 2 * self.pages + 2048;
        let managers = match self.frames {
            Frames::Fresh => self.shapes.iter().map(|&shape| 2 * (1 + self.rounds(shape))).sum(),
            _ => 1,
        };
        let frames = managers * chunk + 2 * self.pages + 2048;
        // The recount has rows of 64 bytes for each.
        (frames + frames / 32) << 12
    }

    fn memory_of_vms(&self) -> u64 {
        let chunk = |pages| bench::vm_chunk(pages, self.mask());
        let managed = match self.frames {
            // A manager for each round and operation at most, but for the two that end one VM; the first round is smaller if it is not recounted.
            Frames::Fresh => {
                let rounds: u64 = self.shapes.iter().map(|&shape| self.rounds(shape)).sum();
                let first = chunk(if self.is_recounted { self.pages } else { bench::WARM_PAGES });
                let acts = self.operations.iter().filter(|&&operation| operation != Operation::VmmTeardown).count();
                (rounds * chunk(self.pages) + self.shapes.len() as u64 * first) * acts.max(1) as u64
            }
            _ => chunk(self.pages),
        };
        // The floor has three entries for each page.
        let frames = managed + self.pages / 128 + 2048;
        (frames + frames / 32) << 12
    }
}
