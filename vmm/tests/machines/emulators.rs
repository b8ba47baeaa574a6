//! The kernel under full-system emulation, by both of its 32-bit entries: no VMM of ours, text for results.
//!
//! QEMU and Bochs are two MMUs more that are not ours, and Bochs' TLB keeps what is not flushed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::needs;
use quire::abi::{BootInfo, OP_WORDS, bell, boot, checksum, flags, nested, results, ring};
use quire::exercise::example::EXPECTED;
use quire::mapcount::Scheme;
use quire_vmm::nested::{Exercise, Job, steps};
use quire_vmm::replay::{Backend, Config, Ring, Stage2, boot_words, replay};
use quire_vmm::workload::Workload;
use quire_vmm::{flat, kernel};

const MEMORY_MIB: u64 = 64;
/// Something for a trace; the kernel's own run only counts and sums it.
static OPS: [[u64; OP_WORDS]; 700] = [[1, 2, 3, 4, 5, 6, 7, 8]; 700];
const LIMIT: Duration = Duration::from_secs(900);

/// A directory of this test's own, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A ROM for the top of the first 4 GiB: `image`, compressed, and 64 KiB whose reset vector enters flat 32-bit protected mode, unpacks the image to
/// 1 MiB and jumps there. (Bochs loads files into RAM only in pieces of 128 KiB, and takes ROMs of 2 MiB at most.)
fn rom(image: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(image);
    let mut rom = packed.clone();
    rom.resize(packed.len().next_multiple_of(0x1_0000) + 0x1_0000, 0);
    let from = rom.len().wrapping_neg() as u32;
    let last = rom.len() - 0x1_0000;
    let mut put = |at: usize, bytes: &[u8]| rom[last + at..][..bytes.len()].copy_from_slice(bytes);
    let hex =
        |text: &str| -> Vec<u8> { text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect() };
    // cli; lgdt; CR0.PE with caches on; far jump to the 32-bit part
    put(0x0, &hex("fa 2e 66 0f 01 16 58 00 0f 20 c0 66 25 ff ff ff 9f 0c 01 0f 22 c0 66 ea 1e 00 ff ff 08 00"));
    // segments; A20; jmp 0x80
    put(0x1e, &hex("66 b8 10 00 8e d8 8e c0 8e d0 8e e0 8e e8 e4 92 0c 02 24 fe e6 92 eb 4a"));
    // a flat GDT and its pointer
    put(0x48, &hex("ff ff 00 00 00 9b cf 00 ff ff 00 00 00 93 cf 00 17 00 40 00 ff ff"));
    let code = [
        // mov esp, 0x7000; mov esi, from; mov edi, 1 MiB; mov edx, the end; cld
        &hex("bc 00 70 00 00 be")[..],
        &from.to_le_bytes(),
        &hex("bf 00 00 10 00 ba"),
        &from.wrapping_add(packed.len() as u32).to_le_bytes(),
        &hex("fc"),
        // A block of LZ4, sequence by sequence: a token, its literals; nothing behind the last of them
        &hex("0f b6 1e 46 89 d9 c1 e9 04 e8 23 00 00 00 f3 a4 39 d6 73 31"),
        // and a copy of what was unpacked before.
        &hex("0f b7 06 83 c6 02 89 d9 83 e1 0f e8 0d 00 00 00 83 c1 04 56 89 fe 29 c6 f3 a4 5e eb cf"),
        // A length of 15 goes on in the next bytes, up to one that is not 255.
        &hex("83 f9 0f 75 0e 0f b6 2e 46 01 e9 81 fd ff 00 00 00 74 f2 c3"),
        // eax = ebx = 0; mov ecx, 1 MiB; jmp ecx
        &hex("31 c0 31 db b9 00 00 10 00 ff e1"),
    ];
    put(0x80, &code.concat());
    // the reset vector
    put(0xfff0, &hex("e9 0d 00"));
    assert!(rom.len() <= 2 << 20, "the image outgrows Bochs' ROM: {} bytes packed", packed.len());
    rom
}

/// The boot words for a run at `ring`.
fn words(ring: u64) -> BootInfo {
    let mut words = BootInfo::new();
    words[boot::RING] = ring;
    words[boot::MEMORY_END] = MEMORY_MIB << 20;
    words[boot::FLAGS] = flags::FLOOR_ONLY;
    words
}

/// Runs QEMU with the machine's arguments and these; returns what the kernel wrote. The run must pass.
fn qemu(program: &Path, arguments: &[&str]) -> String {
    qemu_with(MEMORY_MIB, program, arguments)
}

fn qemu_with(mib: u64, program: &Path, arguments: &[&str]) -> String {
    passes(qemu_command(mib, program, arguments), 2 * bell::QEMU_PASS as i32 + 1)
}

fn qemu_command(mib: u64, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-m", &mib.to_string(), "-debugcon", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(arguments);
    command
}

/// What Bochs needs beside its command line; the files are in the directory it runs in. It is Debian's debugger build,
/// which waits for a `c` and, after the kernel's last magic break, obeys the `q`.
const BOCHS: &str = "\
plugin_ctrl: unmapped=1, biosdev=0, speaker=0, extfpuirq=0, parallel=0, serial=0, gameport=0, iodebug=0
config_interface: textconfig
display_library: term
cpu: model=corei7_skylake_x, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=64, host=64
romimage: file=rom.bin
vgaromimage: file=vga.bin
pci: enabled=1, chipset=i440fx
ata0: enabled=0
ata1: enabled=0
boot: disk
clock: sync=none, time0=utc
mouse: enabled=0
port_e9_hack: enabled=1
magic_break: enabled=1
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
";

/// Bochs' memory, [`MEMORY_MIB`] unless a test wants more.
const BOCHS_MEMORY: &str = "memory: guest=64, host=64";
/// The CPU that Bochs is, unless a test wants another.
const BOCHS_CPU: &str = "corei7_skylake_x";

/// Runs Bochs on `image`; returns what the kernel wrote. The run must pass.
fn bochs(program: &Path, scratch: &Scratch, image: &[u8]) -> String {
    passes(bochs_command(program, scratch, image, BOCHS_CPU), 0)
}

fn bochs_command(program: &Path, scratch: &Scratch, image: &[u8], cpu: &str) -> Command {
    bochs_command_with(MEMORY_MIB, program, scratch, image, cpu)
}

fn bochs_command_with(mib: u64, program: &Path, scratch: &Scratch, image: &[u8], cpu: &str) -> Command {
    let memory = format!("memory: guest={mib}, host={mib}");
    scratch.file("bochs.rc", BOCHS.replace(BOCHS_CPU, cpu).replace(BOCHS_MEMORY, &memory).as_bytes());
    scratch.file("debugger.rc", b"c\nq\n");
    scratch.file("rom.bin", &rom(image));
    scratch.file("vga.bin", &[0; 512]);
    let mut command = Command::new(program);
    command.args(["-q", "-f", "bochs.rc", "-rc", "debugger.rc"]).current_dir(&scratch.0).env("TERM", "vt100");
    command
}

/// Runs an emulator, and checks that the kernel's run passed.
fn passes(command: Command, status: i32) -> String {
    let (code, text, errors) = ends(command);
    assert_eq!(code, Some(status), "it said: {errors}\nthe kernel: {text}");
    assert!(text.lines().any(|line| line == "quire: RESULT PASS"), "{text}");
    text
}

/// Runs an emulator, and kills it when it takes too long: its exit code, what the kernel wrote, and what it said itself.
fn ends(mut command: Command) -> (Option<i32>, String, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text, errors)
}

/// The results word `index` among the lines of `text`.
fn word(text: &str, index: usize) -> u64 {
    let prefix = format!("quire: word {index} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |value| value.parse().unwrap())
}

/// The flat image with orders for a run at `ring`.
fn flat_image(ring: u64) -> Vec<u8> {
    image_for(&words(ring))
}

fn image_for(words: &BootInfo) -> Vec<u8> {
    let mut image = flat::flatten(kernel::ELF).unwrap();
    image.extend(flat::orders(words, &OPS));
    image
}

fn check(text: &str, ring: u64) {
    assert_eq!(word(text, results::RING), if ring == ring::AUTO { 0 } else { ring }, "{text}");
    assert_eq!(word(text, results::SAMPLES), 2000, "{text}");
    let sum = OPS.as_flattened().iter().fold(0, |sum, word| checksum(sum, *word));
    assert_eq!((word(text, results::GENERAL + 1), word(text, results::GENERAL + 2)), (700, sum), "{text}");
}

fn boots_flat(name: &str, ring: u64) {
    let Some(program) = needs::qemu() else { return };
    let scratch = Scratch::new(name);
    let rom = scratch.file("rom.bin", &rom(&flat_image(ring)));
    check(&qemu(&program, &["-bios", rom.to_str().unwrap()]), ring);
}

#[test]
fn the_flat_image_runs_on_bochs_at_both_rings() {
    let Some(program) = needs::bochs() else { return };
    for ring in [ring::ZERO, ring::THREE, ring::AUTO] {
        check(&bochs(&program, &Scratch::new("bochs"), &flat_image(ring)), ring);
    }
}

#[test]
fn the_flat_image_runs_at_ring_0() {
    boots_flat("flat-0", ring::ZERO);
}

#[test]
fn the_flat_image_runs_at_ring_3() {
    boots_flat("flat-3", ring::THREE);
}

#[test]
fn an_emulator_with_even_rings_is_given_ring_0() {
    boots_flat("flat-auto", ring::AUTO);
}

#[test]
fn the_elf_boots_by_its_pvh_note() {
    let Some(program) = needs::qemu() else { return };
    let scratch = Scratch::new("pvh");
    let kernel = scratch.file("kernel.elf", kernel::ELF);
    let text = qemu(&program, &["-kernel", kernel.to_str().unwrap()]);
    assert_eq!(word(&text, results::SAMPLES), 2000, "{text}");
}

#[test]
fn a_pvh_module_carries_the_orders() {
    let Some(program) = needs::qemu() else { return };
    let scratch = Scratch::new("pvh-module");
    let kernel = scratch.file("kernel.elf", kernel::ELF);
    let orders = scratch.file("orders.bin", &flat::orders(&words(ring::THREE), &OPS));
    let text = qemu(&program, &["-kernel", kernel.to_str().unwrap(), "-initrd", orders.to_str().unwrap()]);
    check(&text, 3);
}

/// A random history with every scheme observing, small enough for the emulators' memory.
fn history() -> (Workload, Config) {
    let workload = Workload::of_ops("history", &quire_fixtures::history(7, 120), 7).unwrap();
    let config = Config {
        scheme: Scheme::All,
        memory: Some(32 << 20),
        checkpoints: 30,
        ring: Ring::Zero,
        floor: 100,
        ..Config::default()
    };
    (workload, config)
}

/// The words of a replay that do not depend on the machine: what was done, found and known, and no times.
const SAME_EVERYWHERE: [usize; 11] = {
    use quire::abi::replay::word::*;
    [OPS, FAULTS, VERIFIED, AUDITS, MISMATCHES, KNOWN_ZERO, CLEARED, COPIED, SPLITS, CHECKS, CLEAN]
};

/// The trace runs on an emulator as it does in this process: same faults, same leaves, same answers.
fn replays_as_in_process(run: impl FnOnce(&[u8]) -> String) {
    let (workload, config) = history();
    replays(&workload, &config, MEMORY_MIB, run);
}

fn replays(workload: &Workload, config: &Config, mib: u64, run: impl FnOnce(&[u8]) -> String) {
    let here = replay(workload, &Config { backend: Backend::Model, ..*config }).unwrap();
    assert!(here.passed, "{}", here.log);
    let words = boot_words(workload, config, mib << 20);
    let mut image = flat::flatten(kernel::ELF).unwrap();
    image.extend(flat::orders(&words, &workload.encoded));
    let text = run(&image);
    for index in SAME_EVERYWHERE {
        assert_eq!(word(&text, results::GENERAL + index), here.words[index], "word {index}\n{text}");
    }
    let known = quire::abi::replay::word::KNOWN;
    for index in known..known + quire::abi::replay::AUDIT_WORDS {
        assert_eq!(word(&text, results::GENERAL + index), here.words[index], "word {index}\n{text}");
    }
}

#[test]
fn a_history_ends_under_qemu_as_in_process() {
    let Some(program) = needs::qemu() else { return };
    replays_as_in_process(|image| {
        let scratch = Scratch::new("history-qemu");
        let rom = scratch.file("rom.bin", &rom(image));
        qemu(&program, &["-bios", rom.to_str().unwrap()])
    });
}

#[test]
fn a_history_ends_on_bochs_as_in_process() {
    let Some(program) = needs::bochs() else { return };
    replays_as_in_process(|image| bochs(&program, &Scratch::new("history-bochs"), image));
}

/// A folio of 1 GiB behind one leaf of 1 GiB, in tables that QEMU's MMU walks: shared by fork, and split down to pages by a store and by munmap.
#[test]
fn a_gigabyte_in_one_leaf_under_qemu() {
    let Some(program) = needs::qemu() else { return };
    let trace = "quire-trace 1\nstart 0\nmap 0 40000000 262144 rw- anon\nw 0 40000000 3\nw 0 7ffff000\nfork 0 1\nr 1 40000000 3\n\
                 w 1 40000000\nr 0 40000000 3\nunmap 0 40600000 512\nr 0 7ffff000\nr 1 40600000 2\nexit 1\nexit 0\nend 13\n";
    let workload = Workload::parse("gigabyte", "gigabyte", trace.as_bytes(), 3).unwrap();
    let config = Config {
        scheme: Scheme::All,
        memory: Some(2200 << 20),
        orders: 1 | 1 << 18,
        max_leaf: quire::addr::Level::THREE,
        checkpoints: 12,
        ring: Ring::Zero,
        floor: 100,
        ..Config::default()
    };
    replays(&workload, &config, 3072, |image| {
        let scratch = Scratch::new("gigabyte-qemu");
        let rom = scratch.file("rom.bin", &rom(image));
        let text = qemu_with(3072, &program, &["-bios", rom.to_str().unwrap()]);
        // The child's leaf, a part of it, and the parent's.
        assert_eq!(word(&text, results::GENERAL + quire::abi::replay::word::SPLITS), 3, "{text}");
        text
    });
}

/// The image whose run is the checks of guests, with these flags more.
fn nested_image(ring: u64, more: u64) -> Vec<u8> {
    let mut words = words(ring);
    words[boot::FLAGS] |= flags::NESTED | more;
    image_for(&words)
}

/// What the kernel should have found out about the CPU's second level of paging, and done with it; how many pages the library inside a guest
/// needed.
fn check_nested(text: &str, kind: u64, accessed_dirty: bool, gigabyte_leaves: bool) -> u64 {
    let get = |index| word(text, results::GENERAL + index);
    assert_eq!(get(nested::KIND), kind, "{text}");
    assert_eq!(get(nested::ACCESSED_DIRTY), u64::from(accessed_dirty), "{text}");
    assert_eq!(get(nested::GIGABYTE_LEAVES), u64::from(gigabyte_leaves), "{text}");
    assert_eq!(get(nested::FAULT_PAGES), 256, "{text}");
    assert!(get(nested::FAULT_TICKS) > 0 && get(nested::HYPERCALL_TICKS) > 0, "{text}");
    // Every entry ends in a violation, a hypercall, or one of the few exits that the checks make: misconfigured, undefined, two page
    // faults, halt, port.
    let counts = [nested::ENTRIES, nested::VIOLATIONS, nested::GUEST_WALKS, nested::HYPERCALLS].map(get);
    assert_eq!(counts[0], counts[1] + counts[3] + 6, "{text}");
    // The library inside a guest reports every page it has stored to, in two spaces, and its end.
    assert_eq!(get(nested::INSIDE_HYPERCALLS), 2 * (48 + 64) + 1, "{text}");
    // The same on every CPU that has all of it.
    if accessed_dirty && gigabyte_leaves {
        assert_eq!(counts, [588, 293, 7, 289], "{text}");
    }
    get(nested::INSIDE_VIOLATIONS)
}

#[test]
fn guests_run_on_npt_under_qemu() {
    let Some(program) = needs::qemu() else { return };
    let scratch = Scratch::new("nested-qemu");
    let rom = scratch.file("rom.bin", &rom(&nested_image(ring::ZERO, 0)));
    let pages = check_nested(&qemu(&program, &["-bios", rom.to_str().unwrap()]), 2, true, true);
    assert!(pages > 30, "{pages}");
}

/// Both vendors, and CPUs with and without accessed and dirty bits and leaves of 1 GiB in EPT.
#[test]
fn guests_run_on_ept_and_npt_on_bochs() {
    let Some(program) = needs::bochs() else { return };
    let cpus = [(BOCHS_CPU, 1, true), ("corei5_lynnfield_750", 1, false), ("ryzen", 2, true)];
    let pages = cpus.map(|(cpu, kind, all)| {
        let scratch = Scratch::new(cpu);
        let text = passes(bochs_command(&program, &scratch, &nested_image(ring::ZERO, 0), cpu), 0);
        check_nested(&text, kind, all, all)
    });
    assert!(pages[0] > 30 && pages == [pages[0]; 3], "{pages:?}");
}

/// Emulators do not show that a flush was forgotten: the kernel itself must refuse to enter the guest.
#[test]
fn no_guest_is_entered_on_stale_translations() {
    let stops = |(_, text, errors): (Option<i32>, String, String)| {
        assert!(text.contains("a guest is entered on stale translations"), "{errors}{text}");
        assert!(text.lines().any(|line| line == "quire: RESULT PANIC"), "{text}");
    };
    let image = nested_image(ring::ZERO, flags::STALE);
    if let Some(program) = needs::qemu() {
        let scratch = Scratch::new("stale-qemu");
        let rom = scratch.file("rom.bin", &rom(&image));
        stops(ends(qemu_command(MEMORY_MIB, &program, &["-bios", rom.to_str().unwrap()])));
    }
    if let Some(program) = needs::bochs() {
        let scratch = Scratch::new("stale-bochs");
        stops(ends(bochs_command(&program, &scratch, &image, BOCHS_CPU)));
    }
}

/// What a guest needs and is not there is one line and a run that failed.
#[test]
fn a_cpu_without_guests_and_a_ring_without_them_say_so() {
    let Some(program) = needs::qemu() else { return };
    for (ring, cpu, line) in [
        (ring::ZERO, "max,svm=off", "quire: the CPU has neither VMX nor SVM"),
        (ring::ZERO, "max,npt=off", "quire: SVM without nested paging or ASIDs"),
        (ring::THREE, "max", "quire: guests need a manager at ring 0"),
    ] {
        let scratch = Scratch::new("lacks-qemu");
        let rom = scratch.file("rom.bin", &rom(&nested_image(ring, 0)));
        let (code, text, errors) =
            ends(qemu_command(MEMORY_MIB, &program, &["-cpu", cpu, "-bios", rom.to_str().unwrap()]));
        assert_eq!(code, Some(2 * bell::QEMU_FAIL as i32 + 1), "{errors}{text}");
        assert!(text.lines().any(|found| found == line), "{cpu}: {text}");
    }
}

/// Random histories inside of a tenant VM whose two levels the emulator's CPU walks: both are recounted after every operation, the VMM is at work on the VM's memory
/// meanwhile, and the processes fault as they do in this process.
fn histories_in_a_vm(stage2: Stage2, histories: std::ops::Range<u64>, run: impl Fn(&[u8]) -> String) {
    use quire::abi::nest::word as vm;
    let mut disturbances = 0;
    for seed in histories {
        let workload = Workload::of_ops(&format!("history {seed}"), &quire_fixtures::history(seed, 60), seed).unwrap();
        let config = Config {
            stage2,
            disturb: seed,
            memory: Some(24 << 20),
            orders: 0b10_0001_0101,
            checkpoints: u64::MAX,
            ring: Ring::Zero,
            floor: 100,
            ..Config::default()
        };
        let here = replay(&workload, &Config { backend: Backend::Model, stage2: Stage2::None, ..config }).unwrap();
        assert!(here.passed, "{}", here.log);
        let mut image = flat::flatten(kernel::ELF).unwrap();
        image.extend(flat::orders(&boot_words(&workload, &config, NEST_MIB << 20), &workload.encoded));
        let text = run(&image);
        let get = |index| word(&text, results::GENERAL + index);
        use quire::abi::replay::word::{CHECKS, CLEAN, FAULTS, MISMATCHES, OPS, VERIFIED};
        for index in [OPS, FAULTS, VERIFIED, CHECKS, MISMATCHES, CLEAN] {
            assert_eq!(get(index), here.words[index], "word {index} of history {seed}\n{text}");
        }
        assert_eq!((get(vm::MISMATCHES), get(vm::CLEAN)), (0, 1), "{text}");
        assert!(get(vm::RECOUNTS) >= 60 && get(vm::STAGE2_FAULTS) > 10, "{text}");
        disturbances += get(vm::DISTURBANCES);
    }
    assert!(disturbances > 30, "{disturbances}");
}

const NEST_MIB: u64 = 160;

#[test]
fn histories_in_a_vm_on_npt_under_qemu() {
    let Some(program) = needs::qemu() else { return };
    let scratch = Scratch::new("nest-qemu");
    histories_in_a_vm(Stage2::Npt, 1..7, |image| {
        let rom = scratch.file("rom.bin", &rom(image));
        qemu_with(NEST_MIB, &program, &["-bios", rom.to_str().unwrap()])
    });
}

#[test]
fn histories_in_a_vm_on_ept_on_bochs() {
    let Some(program) = needs::bochs() else { return };
    histories_in_a_vm(Stage2::Ept, 1..5, |image| {
        let scratch = Scratch::new("nest-bochs");
        passes(bochs_command_with(NEST_MIB, &program, &scratch, image, BOCHS_CPU), 0)
    });
}

/// The image that does an exercise of nested levels, and the memory it needs in MiB.
fn exercise(job: Job, stage2: Stage2, scheme: Scheme) -> (Vec<u8>, u64) {
    let exercise = Exercise { job, stage2, scheme, ring: Ring::Zero };
    let mut words = exercise.boot_words();
    words[boot::MEMORY_END] = exercise.memory();
    let mut image = flat::flatten(kernel::ELF).unwrap();
    image.extend(flat::orders(&words, &[]));
    (image, exercise.memory() >> 20)
}

/// The general words of the results of an exercise on the emulator that walks these tables: EPT on Bochs, NPT under QEMU. Nothing where that is missing.
fn exercised(job: Job, stage2: Stage2, scheme: Scheme) -> Option<Vec<u64>> {
    let (image, mib) = exercise(job, stage2, scheme);
    let scratch = Scratch::new(&format!("exercise-{}-{job:?}", stage2.name()).replace([' ', '{', '}', ':', ','], ""));
    let text = if stage2 == Stage2::Ept {
        passes(bochs_command_with(mib, &needs::bochs()?, &scratch, &image, BOCHS_CPU), 0)
    } else {
        let rom = scratch.file("rom.bin", &rom(&image));
        qemu_with(mib, &needs::qemu()?, &["-bios", rom.to_str().unwrap()])
    };
    let general = results::GENERAL..results::GENERAL + results::GENERAL_COUNT;
    Some(general.map(|index| word(&text, index)).collect())
}

/// Worked example n0 to n9: the same ledger as on composed tables and in process, and a tenant's tenant on what is composed of two second levels.
#[test]
fn the_worked_example_counts_the_same_on_ept_and_npt() {
    for stage2 in [Stage2::Ept, Stage2::Npt] {
        for scheme in [Scheme::Total, Scheme::All] {
            let Some(words) = exercised(Job::Example, stage2, scheme) else { continue };
            assert_eq!(steps(&words), EXPECTED, "{}", stage2.name());
        }
    }
}

/// Random histories of nested levels, both recounted behind every operation; in two emulators at once, as each takes minutes and one CPU.
fn histories_of_nested_levels(stage2: Stage2, first: u64, count: u64) {
    thread::scope(|scope| {
        for first in [first, first + count / 2] {
            scope.spawn(move || half_of_the_histories(stage2, first, count / 2));
        }
    });
}

fn half_of_the_histories(stage2: Stage2, first: u64, count: u64) {
    use quire::abi::nest::word as vm;
    const LENGTH: u64 = 4;
    let job = Job::Histories { first, count, length: LENGTH };
    let Some(words) = exercised(job, stage2, Scheme::Total) else { return };
    assert_eq!((words[vm::HISTORIES], words[vm::OPERATIONS]), (count, LENGTH * count));
    assert!(words[vm::BY_VMS] > count / 8 && words[vm::BELOW] > count / 8 && words[vm::RECOUNTS] >= LENGTH * count);
}

#[test]
fn histories_of_nested_levels_on_npt_under_qemu() {
    histories_of_nested_levels(Stage2::Npt, 10_001, 2000);
}

#[test]
fn histories_of_nested_levels_on_ept_on_bochs() {
    histories_of_nested_levels(Stage2::Ept, 20_001, 2000);
}
