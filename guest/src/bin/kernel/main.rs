//! The bare-metal kernel: the manager on real hardware page tables.
//!
//! From the first instruction to the manager:
//!
//! ```text
//! entry        three ways in, all at ring 0 on provisional tables
//! descriptors  segments, gates, stacks
//! boot         what to do, from whoever loaded us
//! paging       the kernel's own upper half; the identity map goes
//! ring         a loop timed at both rings; the manager's ring is chosen
//! machine      frames, flushes and the touch program, as the manager sees them
//! nested       guests of this kernel, where the CPU has VMX or SVM
//! inside       what this image does in a guest: the library on guest-physical frames
//! ```
//!
//! Everything above the machine is the library `quire`; this bin adds what touches hardware.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the entry from assembly, and the step to ring 3")]

mod audit;
mod bench;
mod boot;
mod checks;
mod cpu;
mod descriptors;
mod entry;
mod floor;
mod inside;
mod machine;
mod manager;
mod mem;
mod nest;
mod nested;
mod paging;
mod panic;
mod replay;
mod results;
mod ring;
mod selftest;
mod shim;
mod touch;
mod trap;
mod window;

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering::Relaxed};

use quire::abi::{self, BootInfo, results as word};

use crate::entry::way;
use crate::machine::Machine;
use crate::results::Results;
use crate::ring::Speed;

/// The boot words, for the manager's first function.
static BOOT: AtomicPtr<BootInfo> = AtomicPtr::new(ptr::null_mut());
static RING0_IS_SLOW: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static main_stack_top: u8;
}

/// Where the entries end: at ring 0, on the main stack, on the start tables or the stub's.
#[unsafe(no_mangle)]
extern "C" fn kernel_start(entered: u64, info: u64, first_tsc: u64) -> ! {
    descriptors::load();
    if entered != way::DIRECT {
        results::speak();
    }
    let boot = boot::find(entered, info);
    paging::enter(boot);
    // SAFETY: the boot words name a region for this; it is opened once.
    let results = unsafe { Results::open(boot) };
    results.word(word::FIRST_TSC).store(first_tsc, Relaxed);
    touch::open_samples(boot[abi::boot::SAMPLES_CAPACITY]);
    BOOT.store((&raw const *boot).cast_mut(), Relaxed);

    let speed = Speed::measure();
    let ring = speed.choose(boot[abi::boot::RING]);
    RING0_IS_SLOW.store(speed.ring0_is_slow(), Relaxed);
    results.word(word::LOOP_RING0).store(speed.ring0, Relaxed);
    results.word(word::LOOP_RING3).store(speed.ring3, Relaxed);
    if ring == 0 {
        start_manager();
    }
    paging::open_to_user();
    descriptors::use_shim();
    // SAFETY: ring 3 may now use image and stack; the stack is left behind with nothing on it.
    unsafe {
        asm!(
            "push 0x2b", "push {stack}", "push 2", "push 0x33", "push {start}", "iretq",
            stack = in(reg) (&raw const main_stack_top).addr() - 8,
            start = in(reg) start_manager as *const () as u64,
            options(noreturn)
        );
    }
}

/// The manager's first function, at its ring.
extern "C" fn start_manager() -> ! {
    // SAFETY: set by `kernel_start`, which is the only way here; nobody writes the boot words any more.
    let words: &'static BootInfo = unsafe { &*BOOT.load(Relaxed) };
    // SAFETY: once; the VMM gave these frames to the manager alone.
    let machine = unsafe { Machine::new(words, RING0_IS_SLOW.load(Relaxed)) };
    let Some(results) = Results::current() else { panic!("no results region") };
    results.word(word::RING).store(machine.ring(), Relaxed);
    results.word(word::STAMP_PAIR).store(touch::stamp_pair(), Relaxed);
    results.word(word::READY_TSC).store(cpu::tsc(), Relaxed);
    let finish = manager::main(&machine, words, boot::trace(words), &results);
    if let Some(root) = machine.current_root() {
        results.word(word::ROOT).store(root.address(), Relaxed);
    }
    results.finish(finish)
}
