//! The kernel under QEMU's emulation, by both of its 32-bit entries: no VMM of ours, text for results.

mod needs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use quire::abi::{BootInfo, bell, boot, results, ring};
use quire_vmm::{flat, kernel};

const MEMORY_MIB: u64 = 64;
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
    words
}

/// Runs QEMU with the machine's arguments and these; returns what the kernel wrote. The run must pass.
fn qemu(program: &Path, arguments: &[&str]) -> String {
    let mut child = Command::new(program)
        .args(["-accel", "tcg", "-machine", "pc", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-m", &MEMORY_MIB.to_string(), "-debugcon", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
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
    assert_eq!(output.status.code(), Some(2 * bell::QEMU_PASS as i32 + 1), "QEMU said: {errors}\nthe kernel: {text}");
    assert!(text.lines().any(|line| line == "quire: RESULT PASS"), "{text}");
    text
}

/// The results word `index` among the lines of `text`.
fn word(text: &str, index: usize) -> u64 {
    let prefix = format!("quire: word {index} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |value| value.parse().unwrap())
}

fn boots_flat(name: &str, ring: u64) {
    let Some(program) = needs::qemu() else { return };
    let scratch = Scratch::new(name);
    let rom = scratch.file("rom.bin", &rom());
    let mut image = flat::flatten(kernel::ELF).unwrap();
    image.extend(flat::orders(&words(ring), &[]));
    let image = scratch.file("guest.bin", &image);
    let loader = format!("loader,file={},addr=0x100000,force-raw=on", image.display());
    let text = qemu(&program, &["-bios", rom.to_str().unwrap(), "-device", &loader]);
    assert_eq!(word(&text, results::RING), if ring == ring::AUTO { 0 } else { ring }, "{text}");
    assert_eq!(word(&text, results::SAMPLES), 2000, "{text}");
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
    let orders = scratch.file("orders.bin", &flat::orders(&words(ring::THREE), &[]));
    let text = qemu(&program, &["-kernel", kernel.to_str().unwrap(), "-initrd", orders.to_str().unwrap()]);
    assert_eq!(word(&text, results::RING), 3, "{text}");
}
