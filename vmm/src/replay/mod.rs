//! A replay from a workload to what was measured, in a VM or in this process.

mod in_process;
mod in_vm;

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use quire::abi::nest::engine;
use quire::abi::sample::Sample;
use quire::abi::{BootInfo, MAX_MEMORY, boot, ring};
use quire::addr::{Level, Order};
use quire::mapcount::Scheme;

use crate::error::Error;
use crate::kvm;
use crate::memory::{Backing, Populate};
use crate::run::Timings;
use crate::stats::Stat;
use crate::workload::Workload;
pub(crate) use in_vm::require;

/// Where the manager runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// In a VM if there is KVM, else in this process.
    #[default]
    Auto,
    /// In a VM.
    Kvm,
    /// In this process, over emulated frames.
    Model,
}

impl Backend {
    /// The backend to use, and why it is not KVM when `Auto` had to fall back.
    #[must_use]
    pub fn resolve(self) -> (Self, Option<Error>) {
        match self {
            Self::Auto => match kvm::open() {
                Ok(_) => (Self::Kvm, None),
                Err(error) => (Self::Model, Some(error)),
            },
            chosen => (chosen, None),
        }
    }
}

impl FromStr for Backend {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "model" => Ok(Self::Model),
            _ => Err("there are auto, kvm and model".to_owned()),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Model => "model",
        })
    }
}

/// The ring of the manager in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ring {
    /// Measured at start.
    #[default]
    Auto,
    /// Ring 0.
    Zero,
    /// Ring 3, above the shim.
    Three,
}

impl Ring {
    pub(crate) const fn word(self) -> u64 {
        match self {
            Self::Auto => ring::AUTO,
            Self::Zero => ring::ZERO,
            Self::Three => ring::THREE,
        }
    }
}

impl FromStr for Ring {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "0" => Ok(Self::Zero),
            "3" => Ok(Self::Three),
            _ => Err("there are auto, 0 and 3".to_owned()),
        }
    }
}

/// The tables of a tenant VM that the replay runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Stage2 {
    /// No VM: the processes are level 0's own.
    #[default]
    None,
    /// Composed with the guest's own tables in long mode, on any host
    Shadow,
    /// Extended page tables, which a CPU with VMX walks
    Ept,
    /// Nested page tables, which a CPU with SVM walks
    Npt,
}

impl Stage2 {
    pub(crate) const fn word(self) -> u64 {
        match self {
            Self::None => engine::NONE,
            Self::Shadow => engine::SHADOW,
            Self::Ept => engine::EPT,
            Self::Npt => engine::NPT,
        }
    }

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shadow => "shadow",
            Self::Ept => "ept",
            Self::Npt => "npt",
        }
    }
}

/// How to replay.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Where.
    pub backend: Backend,
    /// At which ring.
    pub ring: Ring,
    /// Under which scheme.
    pub scheme: Scheme,
    /// Bytes of frames; `None` for what the trace asks for.
    pub memory: Option<u64>,
    /// The host's memory behind them.
    pub guest_memory: Backing,
    /// When the host gives it.
    pub populate: Populate,
    /// The orders that anonymous faults try.
    pub orders: u32,
    /// The highest level of leaves.
    pub max_leaf: Level,
    /// Checkpoints at which all leaves are recounted, the one at the end included.
    pub checkpoints: u64,
    /// Faults of the floor; 0 to leave it out.
    pub floor: u64,
    /// Whether the observing schemes are asked everything at each checkpoint.
    pub survey: bool,
    /// Tell pagemap and kpagecount of every page, at the checkpoint with the most leaves.
    pub pages: bool,
    /// In a tenant VM, with these tables.
    pub stage2: Stage2,
    /// Seed of what the VMM does to its VM's memory at each checkpoint, 0 for nothing.
    pub disturb: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            ring: Ring::Auto,
            scheme: Scheme::Total,
            memory: None,
            guest_memory: Backing::Anon,
            populate: Populate::Lazy,
            orders: (2 << Order::HUGE.get()) - 1,
            max_leaf: Level::TWO,
            checkpoints: 4,
            floor: 1000,
            survey: false,
            pages: false,
            stage2: Stage2::None,
            disturb: 0,
        }
    }
}

/// The least memory for frames: room for the floor, and for a manager that can still do something.
pub const LEAST_MEMORY: u64 = 8 << 20;

impl Config {
    /// Bytes of frames for a replay of `workload`.
    fn memory(&self, workload: &Workload) -> Result<u64, Error> {
        let bytes = self.memory.unwrap_or_else(|| workload.ample_memory());
        if (LEAST_MEMORY..=MAX_MEMORY).contains(&bytes) {
            Ok(bytes)
        } else {
            Err(Error::MemorySize { bytes, least: LEAST_MEMORY, most: MAX_MEMORY })
        }
    }

    /// Operations between two checkpoints.
    fn interval(&self, workload: &Workload) -> u64 {
        (workload.encoded.len() as u64).div_ceil(self.checkpoints.max(1)).max(1)
    }
}

/// What a replay left.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Where it ran.
    pub backend: Backend,
    /// The ring of the manager, in a VM.
    pub ring: Option<u64>,
    /// Nanoseconds that a fixed loop took at ring 0 and at ring 3, in a VM.
    pub loops_ns: Option<(f64, f64)>,
    /// The words of [`abi::replay`](mod@quire::abi::replay).
    pub words: Vec<u64>,
    /// What the tenants had mapped at the checkpoint with the most leaves: the words of [`abi::stats`](mod@quire::abi::stats).
    pub memory_stats: Vec<u64>,
    /// The words of [`abi::survey`](mod@quire::abi::survey), if they were wanted.
    pub survey: Vec<u64>,
    /// Timed faults and events.
    pub samples: Vec<Sample>,
    /// Samples that found no room.
    pub samples_lost: u64,
    /// Nanoseconds of a tick.
    pub tick_ns: f64,
    /// Nanoseconds that a sample of nothing would show.
    pub bracket_ns: f64,
    /// What the manager said; the reason, when the replay failed.
    pub log: String,
    /// Whether everything was right.
    pub passed: bool,
    /// Bytes of frames it had.
    pub memory: u64,
    /// Where the time of the VM went.
    pub timings: Option<Timings>,
    /// Exits to this process.
    pub exits: u64,
    /// What KVM counted.
    pub stats: Vec<Stat>,
}

/// What a kernel that is started by another machine than ours is told, for `memory` bytes of that machine's memory.
#[must_use]
pub fn boot_words(workload: &Workload, config: &Config, memory: u64) -> BootInfo {
    let mut words = in_vm::boot_words(workload, config, config.memory(workload).unwrap_or(LEAST_MEMORY));
    words[boot::MEMORY_END] = memory;
    words
}

/// Replays `workload`.
///
/// # Errors
/// When the host lacks what was asked for, or the guest died without results. A replay that found something wrong is a
/// [`Measured`] that has not passed.
pub fn replay(workload: &Workload, config: &Config) -> Result<Measured, Error> {
    match config.backend.resolve() {
        (Backend::Model, _) if config.stage2 != Stage2::None => {
            Err(Error::Lacks("--stage2 needs a VM: this process has no MMU that could walk its tables".to_owned()))
        }
        (Backend::Model, _) => in_process::replay(workload, config),
        _ => in_vm::replay(workload, config),
    }
}
