//! Replays inside of a tenant VM, on composed tables that KVM's MMU walks: random histories with the VMM at work on the VM's memory, both levels recounted after every
//! operation, every word that the processes read compared with what it must be.

use quire::exercise::example::EXPECTED;
use quire::mapcount::Scheme;
use quire_fixtures::history;
use quire_vmm::Status;
use quire_vmm::nested::{self, Exercise, Job};
use quire_vmm::replay::{Backend, Config, Measured, Ring, Stage2, replay};
use quire_vmm::workload::Workload;

use crate::needs;
/// The words of level 0.
use quire::abi::nest::word;

fn config() -> Config {
    Config {
        backend: Backend::Kvm,
        stage2: Stage2::Shadow,
        memory: Some(48 << 20),
        orders: 0b10_0001_0101,
        checkpoints: u64::MAX,
        floor: 100,
        ..Config::default()
    }
}

fn passes(workload: &Workload, config: &Config) -> Measured {
    let measured = replay(workload, config).unwrap();
    assert!(measured.passed, "{}: {}", workload.name, measured.log);
    let words = &measured.words;
    assert_eq!((words[word::MISMATCHES], words[word::CLEAN]), (0, 1), "{}", measured.log);
    assert!(words[word::RECOUNTS] > 0 && words[word::CHECKS] > words[word::RECOUNTS]);
    measured
}

fn of_history(seed: u64, length: usize) -> Workload {
    Workload::of_ops(&format!("history {seed}"), &history(seed, length), seed).unwrap()
}

/// `QUIRE_LONG=40` runs forty times as many histories.
fn long() -> u64 {
    std::env::var("QUIRE_LONG").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

#[test]
fn random_histories_in_a_vm_on_composed_tables() {
    if !needs::kvm() {
        return;
    }
    let (mut stage2, mut disturbances) = (0, 0);
    for seed in 1..=48 * long() {
        let scheme = if seed % 4 == 0 { Scheme::All } else { Scheme::Total };
        let measured = passes(&of_history(seed, 60), &Config { scheme, disturb: seed, ..config() });
        stage2 += measured.words[word::STAGE2_FAULTS];
        disturbances += measured.words[word::DISTURBANCES];
    }
    assert!(stage2 > 100 && disturbances > 100, "{stage2} faults of level 0, {disturbances} disturbances");
}

/// Processes and VMs of a VM's manager, on tables that are composed of up to three levels.
#[test]
fn random_histories_of_nested_levels_on_composed_tables() {
    if !needs::kvm() {
        return;
    }
    for (scheme, first, count) in [(Scheme::Total, 1, 4000), (Scheme::All, 4001, 400)] {
        let job = Job::Histories { first, count: count * long(), length: 6 };
        let outcome = Exercise { job, stage2: Stage2::Shadow, scheme, ring: Ring::Auto }.run().unwrap();
        assert_eq!(outcome.status, Status::Pass, "{}", outcome.log);
        let words = outcome.general();
        assert_eq!((words[word::HISTORIES], words[word::OPERATIONS]), (count * long(), 6 * count * long()));
        assert!(
            words[word::BY_VMS] > count / 4 && words[word::BELOW] > count / 4 && words[word::RECOUNTS] >= 6 * count
        );
    }
}

#[test]
fn the_worked_example_counts_the_same_on_composed_tables() {
    if !needs::kvm() {
        return;
    }
    for (scheme, ring) in [(Scheme::Total, Ring::Three), (Scheme::All, Ring::Three)] {
        let outcome = Exercise { job: Job::Example, stage2: Stage2::Shadow, scheme, ring }.run().unwrap();
        assert_eq!(outcome.status, Status::Pass, "{}", outcome.log);
        assert_eq!(nested::steps(outcome.general()), EXPECTED);
    }
    let model = nested::worked_example(Backend::Model, Stage2::Shadow, Ring::Auto).unwrap();
    let in_vm = nested::worked_example(Backend::Kvm, Stage2::Shadow, Ring::Auto).unwrap();
    assert_eq!(model.to_string(), in_vm.to_string().replace("kvm", "model"));
}

#[test]
fn a_vm_does_not_change_what_its_processes_do() {
    if !needs::kvm() {
        return;
    }
    use quire::abi::replay::word::{CHECKS, CLEAN, COPIED, FAULTS, OPS, SPLITS, VERIFIED};
    let workload = of_history(77, 200);
    let inside = passes(&workload, &config());
    let bare = replay(&workload, &Config { stage2: Stage2::None, ..config() }).unwrap();
    for index in [OPS, FAULTS, VERIFIED, COPIED, SPLITS, CHECKS, CLEAN] {
        assert_eq!(inside.words[index], bare.words[index], "word {index}");
    }
    assert_eq!(inside.words[word::GUEST_FAULTS], bare.words[FAULTS]);
}

#[test]
fn what_cannot_be_is_refused() {
    let workload = of_history(1, 20);
    let model = replay(&workload, &Config { backend: Backend::Model, ..config() }).unwrap_err();
    assert_eq!(model.exit_code(), 4, "{model}");
    if !needs::kvm() {
        return;
    }
    let scheme = replay(&workload, &Config { scheme: Scheme::PerPage, ..config() }).unwrap_err();
    assert_eq!(scheme.exit_code(), 2, "{scheme}");
    if quire_vmm::cpuid::Guests::offered(&quire_vmm::kvm::open().unwrap()).unwrap().is_none() {
        for stage2 in [Stage2::Ept, Stage2::Npt] {
            let lack = replay(&workload, &Config { stage2, ..config() }).unwrap_err();
            assert_eq!(lack.exit_code(), 4, "{lack}");
            assert!(lack.to_string().contains("nested=1"), "{lack}");
        }
    }
}
