//! A replay in a VM.

use std::time::Duration;

use quire::abi::replay::{DEVICE, FLOOR_PAGES, MAX_LEAF, ORDERS};
use quire::abi::{BootInfo, MAX_MEMORY, boot, nest, results, stats, survey};

use quire::addr::Level;
use quire::audit::Recount;
use quire::mapcount::Scheme;
use quire::trace::MAX_DEVICE_PAGES;

use super::{Backend, Config, Measured, Ring, Stage2};
use crate::cpuid;
use crate::error::Error;
use crate::layout::Layout;
use crate::run::{MachineConfig, NoHost, Status};
use crate::workload::Workload;
use crate::{kernel, kvm, run};

/// How long the guest may work without an exit. A recount at an emulated ring 0 takes the longest.
const WATCHDOG: Duration = Duration::from_secs(300);

/// What the kernel is told, addresses apart.
pub(super) fn boot_words(workload: &Workload, config: &Config, memory: u64) -> BootInfo {
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
    if config.stage2 != Stage2::None {
        words[nest::ENGINE] = config.stage2.word();
        words[nest::MANAGED] = memory >> 12;
        words[nest::PAGES] = (memory >> 12) + beside(workload, memory >> 12);
        words[nest::DISTURB] = config.disturb;
    }
    words
}

/// Frames that a replay takes beside those that its manager gets: the recount's rows, with those of its own frames, and the device window.
fn beside(workload: &Workload, frames: u64) -> u64 {
    Recount::scratch_frames(frames) + 64 + if workload.has_device { MAX_DEVICE_PAGES } else { 0 }
}

/// Frames of the machine: what the manager gets and what it takes beside; with a tenant VM, whose manager that is, what level 0 has on top: a sixteenth for tables and records, twice the
/// memory when copies of it are made, and its own recount's rows.
fn machine_frames(workload: &Workload, config: &Config, frames: u64) -> u64 {
    let all = frames + beside(workload, frames);
    if config.stage2 == Stage2::None {
        return all;
    }
    let copies = if config.disturb == 0 { 0 } else { all };
    let level0 = all + copies + all / 16 + (16 << 20 >> 12);
    level0 + Recount::scratch_frames(level0) * 9 / 8
}

/// Whether the machine has room for `memory` bytes of frames and what it has beside them. Its layout would refuse too, but by a number that nobody asked for.
fn check_room(memory: u64, machine: &MachineConfig, ops: usize) -> Result<(), Error> {
    match Layout::new(machine.memory, machine.samples, ops) {
        Err(Error::MemorySize { bytes, most, .. }) => {
            Err(Error::NoRoomBeside { bytes: memory, beside: bytes - memory + (MAX_MEMORY - most), most: MAX_MEMORY })
        }
        other => other.map(drop),
    }
}

pub(super) fn replay(workload: &Workload, config: &Config) -> Result<Measured, Error> {
    let memory = config.memory(workload)?;
    let mut config = *config;
    let gigabyte_leaves = config.max_leaf > Level::TWO && cpuid::has_gigabyte_leaves(&kvm::open()?)?;
    if config.max_leaf > Level::TWO && !gigabyte_leaves {
        log::warn!("this KVM has no leaves of 1 GiB: those of 2 MiB map the largest folios");
        config.max_leaf = Level::TWO;
    }
    if config.stage2 != Stage2::None && !matches!(config.scheme, Scheme::Total | Scheme::All) {
        return Err(Error::Usage("in a VM a tenant VM is counted by `total` or by `all`".to_owned()));
    }
    config.stage2.require()?;
    let guests = config.stage2.is_walked_by_cpu();
    if guests {
        config.ring = Ring::Zero;
    }
    let words = boot_words(workload, &config, memory);
    let samples = 2 * workload.summary.accesses + workload.encoded.len() as u64 + config.floor;
    let machine = MachineConfig {
        memory: machine_frames(workload, &config, memory >> 12) << 12,
        backing: config.guest_memory,
        populate: config.populate,
        samples,
        watchdog: WATCHDOG,
        boot: words,
        stats: true,
        gigabyte_leaves,
        guests,
    };
    check_room(memory, &machine, workload.encoded.len())?;
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

#[cfg(test)]
mod tests {
    use super::{Config, MachineConfig, Workload, check_room, machine_frames};

    #[test]
    fn a_machine_without_room_is_told_in_the_asker_s_number() {
        let workload = Workload::shipped(1).unwrap();
        let check = |memory: u64| {
            let frames = machine_frames(&workload, &Config::default(), memory >> 12);
            let machine = MachineConfig { memory: frames << 12, ..MachineConfig::default() };
            check_room(memory, &machine, workload.encoded.len())
        };
        check(62 << 30).unwrap();
        let error = check(63 << 30).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.starts_with("memory of 67645734912 bytes cannot be: the machine has "), "{text}");
        let beside: u64 = text.split_whitespace().nth(9).and_then(|word| word.parse().ok()).expect("a number");
        assert!(beside > 1 << 30 && beside < 2 << 30, "{text}");
        assert!(text.ends_with("no more than 68719476736 in all"), "{text}");
    }
}
