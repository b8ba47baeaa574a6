//! The kernel under full-system emulation, by both of its 32-bit entries: no VMM of ours, text for results.
//!
//! QEMU and Bochs are two MMUs more that are not ours, and Bochs' TLB keeps what is not flushed.

mod needs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use quire::abi::{BootInfo, OP_WORDS, bell, boot, checksum, flags, results, ring};
use quire_vmm::{flat, kernel};

const MEMORY_MIB: u64 = 64;
/// Something for a trace; the kernel's own run only counts and sums it.
static OPS: [[u64; OP_WORDS]; 700] = [[1, 2, 3, 4, 5, 6, 7, 8]; 700];
const LIMIT: Duration = Duration::from_secs(60);

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

/// A 64 KiB ROM whose reset vector enters flat 32-bit protected mode and jumps to 1 MiB.
fn rom() -> Vec<u8> {
    let mut rom = vec![0; 0x1_0000];
    let mut put = |at: usize, hex: &str| {
        for (i, byte) in hex.split_whitespace().enumerate() {
            rom[at + i] = u8::from_str_radix(byte, 16).unwrap();
        }
    };
    // cli; lgdt; CR0.PE with caches on; far jump to the 32-bit part
    put(0x0, "fa 2e 66 0f 01 16 58 00 0f 20 c0 66 25 ff ff ff 9f 0c 01 0f 22 c0 66 ea 1e 00 ff ff 08 00");
    // segments; A20; eax = ebx = 0; jmp 0x100000
    put(0x1e, "66 b8 10 00 8e d8 8e c0 8e d0 8e e0 8e e8 e4 92 0c 02 24 fe e6 92 31 c0 31 db b9 00 00 10 00 ff e1");
    // a flat GDT and its pointer
    put(0x48, "ff ff 00 00 00 9b cf 00 ff ff 00 00 00 93 cf 00 17 00 40 00 ff ff");
    // the reset vector
    put(0xfff0, "e9 0d 00");
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
    let mut command = Command::new(program);
    command
        .args(["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-m", &MEMORY_MIB.to_string(), "-debugcon", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(arguments);
    passes(command, 2 * bell::QEMU_PASS as i32 + 1)
}

/// What Bochs needs beside its command line; the files are in the directory it runs in. It is Debian's debugger build,
/// which waits for a `c` and, after the kernel's last magic break, obeys the `q`.
const BOCHS: &str = "\
plugin_ctrl: unmapped=1, biosdev=0, speaker=0, extfpuirq=0, parallel=0, serial=0, gameport=0, iodebug=0
config_interface: textconfig
display_library: term
cpu: model=corei7_skylake_x, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=0
memory: guest=64, host=64
romimage: file=rom.bin
vgaromimage: file=vga.bin
optramimage1: file=guest.bin, address=0x100000
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

/// Runs Bochs on `image`; returns what the kernel wrote. The run must pass.
fn bochs(program: &Path, scratch: &Scratch, image: &[u8]) -> String {
    scratch.file("bochs.rc", BOCHS.as_bytes());
    scratch.file("debugger.rc", b"c\nq\n");
    scratch.file("rom.bin", &rom());
    scratch.file("vga.bin", &[0; 512]);
    scratch.file("guest.bin", image);
    let mut command = Command::new(program);
    command.args(["-q", "-f", "bochs.rc", "-rc", "debugger.rc"]).current_dir(&scratch.0).env("TERM", "vt100");
    passes(command, 0)
}

/// Runs an emulator, kills it when it takes too long, and checks that the kernel's run passed.
fn passes(mut command: Command, status: i32) -> String {
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
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "it said: {errors}\nthe kernel: {text}");
    assert!(text.lines().any(|line| line == "quire: RESULT PASS"), "{text}");
    text
}

/// The results word `index` among the lines of `text`.
fn word(text: &str, index: usize) -> u64 {
    let prefix = format!("quire: word {index} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |value| value.parse().unwrap())
}

/// The flat image with orders for a run at `ring`.
fn flat_image(ring: u64) -> Vec<u8> {
    let mut image = flat::flatten(kernel::ELF).unwrap();
    image.extend(flat::orders(&words(ring), &OPS));
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
    let rom = scratch.file("rom.bin", &rom());
    let image = scratch.file("guest.bin", &flat_image(ring));
    let loader = format!("loader,file={},addr=0x100000,force-raw=on", image.display());
    check(&qemu(&program, &["-bios", rom.to_str().unwrap(), "-device", &loader]), ring);
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
