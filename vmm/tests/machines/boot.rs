//! The kernel under KVM: it boots at both rings, takes faults, and whatever goes wrong in it arrives as one line.

#![expect(unsafe_code, reason = "one test takes memory away from under the guest")]

use std::time::Duration;

use crate::needs;
use quire::abi::results::{LOOP_RING0, LOOP_RING3, RING, ROOT, STAMP_PAIR};
use quire::abi::{OP_WORDS, boot, checksum, flags, nested, ring, sample, stamp};
use quire_vmm::cpuid::Guests;
use quire_vmm::memory::{Backing, Populate};
use quire_vmm::{Error, Host, MachineConfig, NoHost, Outcome, Paused, Status, kernel, run, walk};

/// What the kernel's floor uses; see `floor.rs` there.
const PAGES: u64 = 2000;
const WINDOW: u64 = 0x40_0000_0000;
const SEED: u64 = 0x5eed;

const RINGS: [u64; 2] = [ring::ZERO, ring::THREE];

fn config(ring: u64, flags: u64) -> MachineConfig {
    let mut config = MachineConfig { memory: 32 << 20, samples: 1 << 12, ..MachineConfig::default() };
    config.boot[boot::RING] = ring;
    config.boot[boot::FLAGS] = flags | flags::FLOOR_ONLY;
    config
}

fn pass(config: &MachineConfig, host: &mut impl Host) -> Outcome {
    let outcome = run(kernel::ELF, config, &[], host).unwrap();
    assert_eq!(outcome.status, Status::Pass, "{:?}\n{}", outcome.panic, outcome.log);
    outcome
}

#[test]
fn the_floor_is_measured_at_the_ring_that_was_asked_for() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        let outcome = pass(&config(ring, 0), &mut NoHost);
        assert_eq!(outcome.words[RING], ring);
        assert_eq!(outcome.samples.len() as u64, PAGES);
        assert!(outcome.samples.iter().all(|s| s.ticks > 0 && s.kind == sample::FLOOR && s.order.get() == 0));
        assert!(outcome.words[LOOP_RING0] > 0 && outcome.words[LOOP_RING3] > 0 && outcome.words[STAMP_PAIR] > 0);
    }
}

#[test]
fn auto_takes_ring_0_unless_it_is_slow() {
    if !needs::kvm() {
        return;
    }
    let outcome = pass(&config(ring::AUTO, 0), &mut NoHost);
    let slow = outcome.words[LOOP_RING0] > 2 * outcome.words[LOOP_RING3];
    assert_eq!(outcome.words[RING], if slow { 3 } else { 0 });
}

#[test]
fn every_backing_works_lazily_and_populated() {
    if !needs::kvm() {
        return;
    }
    for backing in [Backing::Anon, Backing::Thp, Backing::Memfd] {
        for populate in [Populate::Lazy, Populate::Before] {
            pass(&MachineConfig { backing, populate, ..config(ring::AUTO, 0) }, &mut NoHost);
        }
    }
}

/// Guests of the kernel, on the host's own second level of paging.
#[test]
fn guests_run_where_kvm_offers_vmx_or_svm() {
    if !needs::guests() {
        return;
    }
    let config = MachineConfig { guests: true, ..config(ring::ZERO, flags::NESTED) };
    let outcome = pass(&config, &mut NoHost);
    assert!(matches!(outcome.general()[nested::KIND], 1 | 2));
}

#[test]
fn a_kvm_without_guests_says_so() {
    if !needs::kvm() || quire_vmm::kvm::open().and_then(|kvm| Guests::offered(&kvm)).unwrap().is_some() {
        return;
    }
    let config = MachineConfig { guests: true, ..config(ring::ZERO, flags::NESTED) };
    let error = run(kernel::ELF, &config, &[], &mut NoHost).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_code()), ("this KVM lacks VMX and SVM for guests", 4));
}

/// Looks at the floor's pages through the VMM's walk and KVM's.
struct ReadBack {
    sum: u64,
}

impl Host for ReadBack {
    fn ended(&mut self, paused: &Paused<'_>) -> Result<(), Error> {
        let root = paused.root()?;
        assert_eq!(root, paused.word(ROOT)?);
        for page in 0..PAGES {
            let gva = WINDOW + page * 4096;
            let found = walk::walk(paused.memory(), root, gva)?.unwrap();
            assert_eq!(paused.translate(gva)?, Some(found.gpa));
            assert!(found.write && found.user && !found.execute);
            let word = paused.memory().read(found.gpa)?;
            assert_eq!(word, stamp(SEED, gva >> 12));
            self.sum = checksum(self.sum, word);
        }
        assert_eq!(paused.walk(WINDOW + PAGES * 4096)?, None);
        Ok(())
    }
}

#[test]
fn stored_stamps_are_found_by_walking_the_guests_tables() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        let mut host = ReadBack { sum: 0 };
        pass(&config(ring, 0), &mut host);
        assert_eq!(host.sum, (0..PAGES).fold(0, |sum, i| checksum(sum, stamp(SEED, (WINDOW >> 12) + i))));
    }
}

/// Looks at the rights of the upper half.
struct Rights {
    ring: u64,
}

impl Host for Rights {
    fn ended(&mut self, paused: &Paused<'_>) -> Result<(), Error> {
        let open = self.ring == 3;
        let text = paused.walk(quire::abi::KERNEL_BASE + quire::abi::KERNEL_GPA)?.unwrap();
        assert_eq!((text.write, text.user, text.execute), (false, open, true), "image");
        let alias = paused.walk(quire::abi::ALIAS_BASE + quire::abi::KERNEL_GPA)?.unwrap();
        assert_eq!((alias.write, alias.user, alias.execute), (true, open, false), "alias");
        let touch = paused.walk(quire::abi::TOUCH_BASE)?.unwrap();
        assert_eq!((touch.write, touch.user, touch.execute), (false, true, true), "touch program");
        assert_eq!(paused.walk(quire::abi::KERNEL_GPA)?, None, "identity map");
        Ok(())
    }
}

#[test]
fn the_upper_half_is_open_to_ring_3_only_when_the_manager_is_there() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        pass(&config(ring, 0), &mut Rights { ring });
    }
}

#[test]
fn a_panic_arrives_with_file_and_line() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        let outcome = run(kernel::ELF, &config(ring, flags::PANIC), &[], &mut NoHost).unwrap();
        assert_eq!(outcome.status, Status::Panic);
        let text = outcome.panic.unwrap();
        let place = text.strip_prefix("quire: panic at ").unwrap();
        let (file, rest) = place.split_once(".rs:").unwrap();
        assert!(file.ends_with("src/bin/kernel/selftest"), "{text}");
        assert!(
            rest.split_once(": ").is_some_and(|(line, what)| line.parse::<u32>().is_ok() && what == "asked to panic"),
            "{text}"
        );
    }
}

#[test]
fn a_wild_access_arrives_with_its_address() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        let outcome = run(kernel::ELF, &config(ring, flags::STRAY), &[], &mut NoHost).unwrap();
        let text = outcome.panic.unwrap();
        assert!(text.contains("page fault in the manager: cr2 0x1000 "), "{text}");
    }
}

#[test]
fn a_stack_overflow_arrives_as_an_exception() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        let outcome = run(kernel::ELF, &config(ring, flags::OVERFLOW), &[], &mut NoHost).unwrap();
        let text = outcome.panic.unwrap();
        assert!(text.contains("exception 8 (#DF)") || text.contains("page fault in the manager"), "{text}");
    }
}

#[test]
fn a_hang_ends_by_the_watchdog() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        let config = MachineConfig { watchdog: Duration::from_millis(400), ..config(ring, flags::HANG) };
        match run(kernel::ELF, &config, &[], &mut NoHost) {
            Err(error @ Error::Hang(..)) => assert_eq!(error.exit_code(), 1),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_first_instruction_is_timed_on_request() {
    if !needs::kvm() {
        return;
    }
    let outcome = pass(&config(ring::AUTO, flags::START_BELL), &mut NoHost);
    assert!(outcome.timings.first_instruction.is_some_and(|time| time > Duration::ZERO));
}

#[test]
fn an_image_that_is_no_kernel_is_refused_in_one_line() {
    if !needs::kvm() {
        return;
    }
    let cut = &kernel::ELF[..kernel::ELF.len() / 2];
    for image in [&b""[..], &b"#!/bin/sh"[..], &[0; 4096][..], cut] {
        let error = run(image, &config(ring::AUTO, 0), &[], &mut NoHost).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn a_bell_that_nobody_answers_is_an_error_and_an_answered_one_is_not() {
    if !needs::kvm() {
        return;
    }
    struct Answer(u32);
    impl Host for Answer {
        fn bell(&mut self, command: u32, paused: &Paused<'_>) -> Result<(), Error> {
            self.0 += 1;
            assert_eq!(paused.argument(0)?, 20);
            assert_eq!(command, quire::abi::bell::FIRST_FREE);
            paused.answer(1, 22)
        }
    }
    for ring in RINGS {
        let config = config(ring, flags::ASK);
        assert!(matches!(run(kernel::ELF, &config, &[], &mut NoHost), Err(Error::Bell(_))));
        let mut host = Answer(0);
        let outcome = pass(&config, &mut host);
        assert_eq!((host.0, outcome.general()[0]), (1, 42));
    }
}

#[test]
fn the_trace_arrives_whole() {
    if !needs::kvm() {
        return;
    }
    let ops: Vec<[u64; OP_WORDS]> = (0..3000).map(|i| [i, !i, i << 32, 3, 4, 5, 6, i * i]).collect();
    let sum = ops.as_flattened().iter().fold(0, |sum, word| checksum(sum, *word));
    for ring in RINGS {
        let outcome = run(kernel::ELF, &config(ring, 0), &ops, &mut NoHost).unwrap();
        assert_eq!(outcome.general()[1..3], [3000, sum]);
    }
}

/// Takes a frame of the guest's away in the host.
struct Withhold;

impl Host for Withhold {
    fn bell(&mut self, _command: u32, paused: &Paused<'_>) -> Result<(), Error> {
        let memory = paused.memory();
        let last = memory.host_address() + memory.bytes() / 2;
        let (at, bytes) = (std::ptr::with_exposed_provenance_mut(last as usize), memory.bytes() as usize / 2);
        // SAFETY: the guest's memory, of which this process reads only the low part from now on.
        assert_eq!(unsafe { libc::mprotect(at, bytes, libc::PROT_NONE) }, 0);
        Ok(())
    }
}

#[test]
fn memory_that_the_host_withholds_is_a_host_fault() {
    if !needs::kvm() {
        return;
    }
    for ring in RINGS {
        // Half of the guest is above the shared regions and in the middle of what the floor uses.
        let config = MachineConfig { memory: 10 << 20, ..config(ring, flags::ASK) };
        match run(kernel::ELF, &config, &[], &mut Withhold) {
            Err(error @ Error::HostFault(_)) => assert_eq!(error.exit_code(), 1),
            other => panic!("{other:?}"),
        }
    }
}
