//! A replay in a VM.

use std::time::Duration;

use quire::abi::replay::{DEVICE, FLOOR_PAGES, MAX_LEAF, ORDERS};
use quire::abi::{BootInfo, boot, results, stats, survey};

use quire::addr::Level;
use quire::audit::Recount;
use quire::trace::MAX_DEVICE_PAGES;

use super::{Backend, Config, Measured};
use crate::error::Error;
use crate::run::{MachineConfig, NoHost, Status};
use crate::workload::Workload;
use crate::{cpuid, kernel, kvm, run};

/// How long the guest may work without an exit. A recount at an emulated ring 0 takes the longest.
const WATCHDOG: Duration = Duration::from_secs(300);

/// What the kernel is told, addresses apart.
pub(super) fn boot_words(workload: &Workload, config: &Config) -> BootInfo {
    let mut words = BootInfo::new();
    words[boot::RING] = config.ring.word();
    words[boot::SCHEME] = config.scheme as u64;
    words[boot::SEED] = workload.seed;
    words[boot::AUDIT_INTERVAL] = config.interval(workload);
    words[ORDERS] = u64::from(config.orders);
    words[MAX_LEAF] = u64::from(config.max_leaf.get());
    words[FLOOR_PAGES] = config.floor;
    words[survey::WANTED] = u64::from(config.survey);
    words[stats::PAGES_WANTED] = u64::from(config.pages);
    words[DEVICE] = u64::from(workload.has_device);
    words
}

pub(super) fn replay(workload: &Workload, config: &Config) -> Result<Measured, Error> {
    let memory = config.memory(workload)?;
    let mut config = *config;
    let gigabyte_leaves = config.max_leaf > Level::TWO && cpuid::has_gigabyte_leaves(&kvm::open()?)?;
    if config.max_leaf > Level::TWO && !gigabyte_leaves {
        log::warn!("this KVM has no leaves of 1 GiB: those of 2 MiB map the largest folios");
        config.max_leaf = Level::TWO;
    }
    let words = boot_words(workload, &config);
    let samples = workload.summary.accesses + workload.encoded.len() as u64 + config.floor;
    // What the manager does not get comes on top: the recount's rows and the device window.
    let rows = Recount::scratch_frames(memory >> 12) + 64;
    let device = if workload.has_device { MAX_DEVICE_PAGES } else { 0 };
    let machine = MachineConfig {
        memory: memory + ((rows + device) << 12),
        backing: config.guest_memory,
        populate: config.populate,
        samples,
        watchdog: WATCHDOG,
        boot: words,
        stats: true,
        gigabyte_leaves,
        guests: false,
    };
    let outcome = run(kernel::ELF, &machine, &workload.encoded, &mut NoHost)?;
    if let Some(panic) = outcome.panic {
        return Err(Error::Panic(panic));
    }
    let tick_ns = outcome.nanoseconds_per_tick();
    let nanoseconds = |index: usize| outcome.words[index] as f64 * tick_ns;
    Ok(Measured {
        backend: Backend::Kvm,
        ring: Some(outcome.words[results::RING]),
        loops_ns: Some((nanoseconds(results::LOOP_RING0), nanoseconds(results::LOOP_RING3))),
        words: outcome.general().to_vec(),
        survey: outcome.survey,
        samples_lost: outcome.words[results::SAMPLES_LOST],
        bracket_ns: nanoseconds(results::STAMP_PAIR),
        tick_ns,
        passed: outcome.status == Status::Pass,
        memory,
        timings: Some(outcome.timings),
        exits: outcome.exits,
        samples: outcome.samples,
        memory_stats: outcome.memory_stats,
        log: outcome.log,
        stats: outcome.stats,
    })
}
