//! The main job, in a VM: traces and random histories on real page tables, at both rings, with every scheme beside the oracle, and
//! two walkers that are not ours.

use crate::needs;
use quire::abi::replay::word;
use quire::addr::Level;
use quire::mapcount::Scheme;
use quire_fixtures::history;
use quire_vmm::memory_stats::MemoryStats;
use quire_vmm::replay::{Backend, Config, Measured, Ring, replay};
use quire_vmm::workload::Workload;

fn config(ring: Ring, scheme: Scheme) -> Config {
    Config { backend: Backend::Kvm, ring, scheme, floor: 0, ..Config::default() }
}

fn passes(workload: &Workload, config: &Config) -> Measured {
    let measured = replay(workload, config).unwrap();
    assert!(measured.passed, "{}: {}", workload.name, measured.log);
    assert_eq!(measured.words[word::OPS], workload.encoded.len() as u64);
    assert_eq!(measured.words[word::MISMATCHES], 0);
    assert_eq!(measured.words[word::CLEAN], 1);
    measured
}

/// A history with a recount and two outside walks after every operation.
fn history_passes(seed: u64, length: usize, config: &Config) -> Measured {
    let workload = Workload::of_ops(&format!("history {seed}"), &history(seed, length), seed).unwrap();
    let measured = passes(&workload, &Config { checkpoints: length as u64, ..*config });
    assert_eq!(measured.words[word::AUDITS], length as u64);
    measured
}

/// A run that looked at nothing proves nothing.
fn all_was_looked_at(runs: &[Measured], beside: &[usize]) {
    for &index in [word::WALKED, word::VERIFIED, word::CHECKS, word::FAULTS].iter().chain(beside) {
        assert!(runs.iter().map(|run| run.words[index]).sum::<u64>() > 0, "word {index} is 0 in every run");
    }
}

#[test]
fn histories_at_ring_3() {
    if !needs::kvm() {
        return;
    }
    let runs: Vec<_> = (0..12)
        .map(|seed| {
            let small = seed % 3 == 2;
            let config = Config {
                memory: Some(48 << 20),
                max_leaf: if small { Level::ONE } else { Level::TWO },
                orders: if seed % 4 == 3 { 1 | 1 << 4 } else { 0x3ff },
                ..config(Ring::Three, Scheme::All)
            };
            history_passes(seed, 120, &config)
        })
        .collect();
    all_was_looked_at(&runs, &[word::COPIED, word::SPLITS, word::CLEARED]);
}

#[test]
fn histories_at_ring_0() {
    if !needs::kvm() {
        return;
    }
    // Where ring 0 is emulated a recount takes a good part of a second.
    let runs = [21, 22]
        .map(|seed| history_passes(seed, 40, &Config { memory: Some(12 << 20), ..config(Ring::Zero, Scheme::All) }));
    all_was_looked_at(&runs, &[]);
}

#[test]
fn each_scheme_alone() {
    if !needs::kvm() {
        return;
    }
    for scheme in Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All) {
        history_passes(40 + scheme as u64, 80, &Config { memory: Some(48 << 20), ..config(Ring::Three, scheme) });
    }
}

#[test]
fn a_vm_and_this_process_do_the_same() {
    if !needs::kvm() {
        return;
    }
    for seed in 50..53 {
        let workload = Workload::of_ops("history", &history(seed, 150), seed).unwrap();
        let vm = Config { memory: Some(48 << 20), ..config(Ring::Three, Scheme::Total) };
        let (vm, here) = (passes(&workload, &vm), passes(&workload, &Config { backend: Backend::Model, ..vm }));
        use word::{CHECKS, CLEARED, COPIED, FAULTS, KNOWN_ZERO, SPLITS, VERIFIED};
        for index in [FAULTS, VERIFIED, KNOWN_ZERO, CLEARED, COPIED, SPLITS, CHECKS] {
            assert_eq!(vm.words[index], here.words[index], "seed {seed}, word {index}");
        }
        let [vm, here] = [vm, here].map(|run| MemoryStats::new(&run.memory_stats).unwrap().tenants);
        assert_eq!(vm, here, "seed {seed}: what the tenants have mapped");
    }
}

#[test]
fn the_shipped_trace_runs_at_ring_3() {
    if !needs::kvm() {
        return;
    }
    let workload = Workload::shipped(1).unwrap();
    let measured = passes(&workload, &Config { floor: 200, ..config(Ring::Three, Scheme::Total) });
    assert!(measured.words[word::FAULTS] > 100);
    assert!(measured.samples.iter().all(|sample| sample.ticks > 0));
    assert_eq!(measured.samples_lost, 0);
}

#[test]
fn a_changed_word_is_noticed() {
    if !needs::kvm() {
        return;
    }
    let mut workload = Workload::of_ops("history", &history(60, 60), 60).unwrap();
    let access = workload.encoded.iter().rposition(|op| op[quire::abi::replay::HAS_EXPECTED] == 1).unwrap();
    workload.encoded[access][quire::abi::replay::EXPECTED] ^= 1;
    let measured = replay(&workload, &config(Ring::Three, Scheme::Total)).unwrap();
    assert!(!measured.passed);
    assert_eq!(measured.words[word::FAILED_OP], access as u64 + 1);
    assert!(measured.log.contains("the tenant read other words"), "{}", measured.log);
}

#[test]
fn too_little_memory_is_said_so() {
    if !needs::kvm() {
        return;
    }
    let workload = Workload::shipped(1).unwrap();
    let measured = replay(
        &workload,
        &Config { memory: Some(quire_vmm::replay::LEAST_MEMORY), ..config(Ring::Three, Scheme::Total) },
    )
    .unwrap();
    assert!(!measured.passed);
    assert_eq!(measured.words[word::OUT_OF_FRAMES], 1);
}
