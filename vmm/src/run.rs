//! One run of the kernel in a fresh VM, from the image to the results.
//!
//! ```text
//! open     /dev/kvm
//! memory   the host's
//! vm       with that memory as its only slot
//! vcpu     one, under a watchdog
//! load     image, start tables, boot words, trace; registers at the 64-bit entry
//! run      until the kernel rings that it is done; other rings go to the caller's Host
//! results  out of guest memory; then everything is torn down
//! ```
#![expect(unsafe_code, reason = "hands memory to KVM")]

use std::fmt;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use quire::abi::results::{self, NOT_MAPPED, REQUEST, status};
use quire::abi::sample::Sample;
use quire::abi::{BootInfo, OP_WORDS, Placement, bell, boot, survey};

use crate::cpuid::Guests;
use crate::error::Error;
use crate::exit::Exit;
use crate::layout::Layout;
use crate::memory::{Backing, Memory, Populate};
use crate::stats::{self, Stat};
use crate::vcpu::Vcpu;
use crate::walk::{self, Translation};
use crate::{boot as loading, kvm};

/// What the machine is like.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Bytes of frames for the manager; the shared regions come on top.
    pub memory: u64,
    /// What stands behind them in the host.
    pub backing: Backing,
    /// When the host gives it.
    pub populate: Populate,
    /// Room for samples.
    pub samples: u64,
    /// How long the guest may run without an exit.
    pub watchdog: Duration,
    /// Ring, scheme, seed and so on; the addresses are filled in.
    pub boot: BootInfo,
    /// Read KVM's statistics at the end.
    pub stats: bool,
    /// The guest's tables may hold leaves of 1 GiB.
    pub gigabyte_leaves: bool,
    /// The guest may have guests of its own, which KVM must offer.
    pub guests: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            backing: Backing::Anon,
            populate: Populate::Lazy,
            samples: 1 << 18,
            watchdog: Duration::from_secs(30),
            boot: BootInfo::new(),
            stats: false,
            gigabyte_leaves: false,
            guests: false,
        }
    }
}

/// The machine between two instructions of the guest: what a [`Host`] may look at.
#[derive(Debug)]
pub struct Paused<'a> {
    memory: &'a Memory,
    vcpu: &'a Vcpu,
    results: u64,
}

impl Paused<'_> {
    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        self.memory
    }

    /// A word of the results header.
    ///
    /// # Errors
    /// Beyond guest memory.
    pub fn word(&self, index: usize) -> Result<u64, Error> {
        self.memory.read(self.results + 8 * index as u64)
    }

    /// Argument `index` of the doorbell.
    ///
    /// # Errors
    /// Beyond guest memory.
    pub fn argument(&self, index: usize) -> Result<u64, Error> {
        assert!(index < results::REQUEST_COUNT);
        self.word(REQUEST + index)
    }

    /// Answers the doorbell in word `index`.
    ///
    /// # Errors
    /// Beyond guest memory.
    pub fn answer(&self, index: usize, word: u64) -> Result<(), Error> {
        assert!(index < results::REQUEST_COUNT);
        self.memory.write(self.results + 8 * (REQUEST + index) as u64, word)
    }

    /// The root table in force.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn root(&self) -> Result<u64, Error> {
        self.vcpu.root()
    }

    /// KVM's walk of the current tables; see [`Vcpu::translate`].
    ///
    /// # Errors
    /// What KVM refused.
    pub fn translate(&self, gva: u64) -> Result<Option<u64>, Error> {
        self.vcpu.translate(gva)
    }

    /// The VMM's own walk of the current tables.
    ///
    /// # Errors
    /// When a table lies outside guest memory.
    pub fn walk(&self, gva: u64) -> Result<Option<Translation>, Error> {
        walk::walk(self.memory, self.root()?, gva)
    }

    /// Compares the audit list with both walks.
    fn audit(&self) -> Result<(), Error> {
        let pairs = self.argument(0)?.min(results::AUDIT_PAIRS);
        let list = self.memory.read_words(self.results + results::AUDIT_OFFSET, 2 * pairs as usize)?;
        let root = self.root()?;
        let (mut wrong, mut first) = (0, None);
        for (index, pair) in list.chunks_exact(2).enumerate() {
            let ours = walk::walk(self.memory, root, pair[0])?.map_or(NOT_MAPPED, |found| found.gpa);
            let kvms = self.translate(pair[0])?.unwrap_or(NOT_MAPPED);
            for found in [ours, kvms] {
                if found != pair[1] {
                    wrong += 1;
                    first.get_or_insert((index as u64, found));
                    break;
                }
            }
        }
        let (index, found) = first.unwrap_or_default();
        self.answer(1, wrong)?;
        self.answer(2, index)?;
        self.answer(3, found)
    }
}

/// Who answers the doorbell's free commands, and may look at the machine before it goes.
pub trait Host {
    /// The guest rang with a `command` of [`bell::FIRST_FREE`] or above. Its arguments and answers are words of `paused`.
    ///
    /// # Errors
    /// Whatever ends the run; by default nobody answers.
    fn bell(&mut self, command: u32, paused: &Paused<'_>) -> Result<(), Error> {
        let _ = paused;
        Err(Error::Bell(command))
    }

    /// The guest has ended its run.
    ///
    /// # Errors
    /// Whatever makes the run a failure.
    fn ended(&mut self, paused: &Paused<'_>) -> Result<(), Error> {
        let _ = paused;
        Ok(())
    }
}

/// A [`Host`] that answers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {}

/// How the kernel said the run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// All was right.
    Pass,
    /// Something was wrong; the log says what.
    Fail,
    /// It panicked; the panic text says where.
    Panic,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Opening `/dev/kvm`.
    pub open: Duration,
    /// Getting guest memory.
    pub memory: Duration,
    /// Making the VM and giving it the memory.
    pub vm: Duration,
    /// Making the vCPU and setting it up.
    pub vcpu: Duration,
    /// Copying the image, writing tables, boot words and trace.
    pub load: Duration,
    /// From the call of [`run`] until the guest rang that its first instructions ran, if it was asked to.
    pub first_instruction: Option<Duration>,
    /// From the first KVM_RUN until the guest ended.
    pub guest: Duration,
    /// Taking everything down.
    pub teardown: Duration,
}

/// What a run leaves.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// The results header; index it by [`results`].
    pub words: Vec<u64>,
    /// The words of the [survey](mod@quire::abi::survey); empty when none was wanted.
    pub survey: Vec<u64>,
    /// The faults that were timed, in order.
    pub samples: Vec<Sample>,
    /// The words of [`abi::stats`](mod@quire::abi::stats).
    pub memory_stats: Vec<u64>,
    /// The log.
    pub log: String,
    /// The panic's line.
    pub panic: Option<String>,
    /// Where the time went.
    pub timings: Timings,
    /// Exits to this process.
    pub exits: u64,
    /// KVM's statistics, when they were asked for and the host has them.
    pub stats: Vec<Stat>,
    /// The guest's TSC frequency; 0 when KVM does not say.
    pub tsc_khz: u32,
}

impl Outcome {
    /// The general words, which the manager gives a meaning.
    #[must_use]
    pub fn general(&self) -> &[u64] {
        &self.words[results::GENERAL..][..results::GENERAL_COUNT]
    }

    /// Nanoseconds of a tick; 1 when the frequency is not known.
    #[must_use]
    pub fn nanoseconds_per_tick(&self) -> f64 {
        match self.tsc_khz {
            0 => 1.0,
            khz => 1e6 / f64::from(khz),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Panic => "panic",
        })
    }
}

/// Boots `image` in a VM of its own, replays `ops`, and returns what the kernel left.
///
/// # Errors
/// When the host lacks something, the image is no kernel, or the guest hangs or dies without a word. A kernel that
/// panics or finds a fault is an [`Outcome`].
pub fn run(
    image: &[u8],
    config: &MachineConfig,
    ops: &[[u64; OP_WORDS]],
    host: &mut impl Host,
) -> Result<Outcome, Error> {
    let begin = Instant::now();
    let mut timings = Timings::default();
    let mut lap = Lap(begin);

    let layout = Layout::new(config.memory, config.samples, ops.len())?;
    let kvm = kvm::open()?;
    timings.open = lap.next();
    // Before the VM, so that on every way out it goes after it.
    let memory = Memory::new(layout.memory_end, config.backing, config.populate)?;
    timings.memory = lap.next();
    let vm = kvm.create_vm().map_err(Error::kvm("create a VM"))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: memory.bytes(),
        userspace_addr: memory.host_address(),
        flags: 0,
    };
    // SAFETY: the mapping has that length and outlives the VM, which is declared after it and dropped before it.
    unsafe { vm.set_user_memory_region(slot) }.map_err(Error::kvm("give guest memory to the VM"))?;
    timings.vm = lap.next();
    // Not asked for nothing: the answer takes as long as the rest of a launch on some hosts.
    let guests = match config.guests {
        true => Some(Guests::offered(&kvm)?.ok_or(Error::KvmLacks("VMX and SVM for guests"))?),
        false => None,
    };
    let mut vcpu = Vcpu::new(&vm, config.watchdog, config.gigabyte_leaves, guests.as_ref())?;
    let tsc_khz = vcpu.fd().get_tsc_khz().unwrap_or(0);
    timings.vcpu = lap.next();
    let loaded = loading::load(&memory, image)?;
    let mut words = config.boot;
    layout.describe(&mut words, ops.len());
    words[boot::IMAGE_END] = loaded.end;
    words[boot::TSC_KHZ] = tsc_khz.into();
    loading::prepare(&memory, &layout, &words, ops)?;
    vcpu.enter(loaded.entry, &layout)?;
    timings.load = lap.next();

    let place = layout.place;
    log::debug!("guest memory ends at {:#x}, frames begin at {:#x}", layout.memory_end, place.frames);
    if let Err(error) =
        serve(&mut vcpu, &memory, place.results, host, || timings.first_instruction = Some(begin.elapsed()))
    {
        // The run has no outcome; what the guest had to say may tell why.
        if let Ok(log) = text(&memory, place.results, results::LOG_OFFSET, results::LOG_BYTES) {
            log.lines().for_each(|line| log::warn!("guest: {line}"));
        }
        return Err(error);
    }
    timings.guest = lap.next();

    host.ended(&Paused { memory: &memory, vcpu: &vcpu, results: place.results })?;
    let mut outcome = collect(&memory, &place)?;
    if words[survey::WANTED] == 1 {
        outcome.survey = memory.read_words(place.results + results::SURVEY_OFFSET, survey::WORDS)?;
    }
    if config.stats {
        outcome.stats = stats::of_vm(&vm);
        outcome.stats.extend(stats::of_vcpu(vcpu.fd()));
    }
    outcome.exits = vcpu.exits;
    outcome.tsc_khz = tsc_khz;

    let _ = lap.next();
    drop(vcpu);
    drop(vm);
    drop(memory);
    timings.teardown = lap.next();
    outcome.timings = timings;
    Ok(outcome)
}

/// Runs the guest and answers its bells, until it says that it is done.
fn serve(
    vcpu: &mut Vcpu,
    memory: &Memory,
    results: u64,
    host: &mut impl Host,
    mut started: impl FnMut(),
) -> Result<(), Error> {
    loop {
        match vcpu.run()? {
            Exit::Out { port: bell::PORT, value } => {
                let paused = Paused { memory, vcpu, results };
                match value {
                    bell::EXIT => return Ok(()),
                    bell::START => started(),
                    bell::AUDIT => paused.audit()?,
                    command if command < bell::FIRST_FREE => return Err(Error::Bell(command)),
                    command => host.bell(command, &paused)?,
                }
            }
            Exit::Mmio(gpa) if memory.contains(gpa) => return Err(Error::HostFault(Some(gpa))),
            exit => return Err(vcpu.stuck(exit)),
        }
    }
}

/// A text of the results region at `at`: where it begins, and the word that holds its length.
fn text(memory: &Memory, at: u64, offset: u64, length: usize) -> Result<String, Error> {
    let bytes = memory.read(at + 8 * length as u64)?.min(results::STATS_OFFSET - offset);
    Ok(String::from_utf8_lossy(&memory.read_bytes(at + offset, bytes as usize)?).into_owned())
}

/// Reads the results and samples regions.
fn collect(memory: &Memory, place: &Placement) -> Result<Outcome, Error> {
    let at = place.results;
    let words = memory.read_words(at, results::GENERAL + results::GENERAL_COUNT)?;
    let status = match words[results::STATUS] {
        status::PASS => Status::Pass,
        status::FAIL => Status::Fail,
        status::PANIC => Status::Panic,
        other => return Err(Error::Exit(format!("the kernel ended with status {other}"))),
    };
    let panic = text(memory, at, results::PANIC_OFFSET, results::PANIC_BYTES)?;
    let log = text(memory, at, results::LOG_OFFSET, results::LOG_BYTES)?;
    let count = words[results::SAMPLES].min(place.samples_capacity);
    let samples = memory.read_words(place.samples, count as usize)?;
    let samples = samples.into_iter().filter_map(Sample::decode).collect();
    let memory_stats = memory.read_words(at + results::STATS_OFFSET, results::STATS_WORDS)?;
    Ok(Outcome {
        status,
        words,
        survey: Vec::new(),
        samples,
        memory_stats,
        log,
        panic: (!panic.is_empty()).then(|| panic.trim_end().to_owned()),
        timings: Timings::default(),
        exits: 0,
        stats: Vec::new(),
        tsc_khz: 0,
    })
}

/// A stopwatch with laps.
struct Lap(Instant);

impl Lap {
    fn next(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
