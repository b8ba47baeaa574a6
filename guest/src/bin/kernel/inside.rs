//! What this image does in a guest: the library once more, on guest-physical frames.
//!
//! The guest shares the image of the kernel below, which it may read and execute but not write; so nothing here uses a static. Its
//! memory appears to it in an alias map of its own at the same address as the kernel's, stack included; [`Board`] lies there too.
//! It has no fault handlers: every exception of its goes to the kernel below, so it calls the manager's before it touches a page.
#![expect(unsafe_code, reason = "hypercalls, and memory by address")]

use core::arch::asm;
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

use quire::abi::{ALIAS_BASE, ALIAS_SLOT, KERNEL_SLOT, stamp};
use quire::addr::{ENTRIES, Gva, Level, Order, PAGE_SHIFT, Pfn};
use quire::mapcount::Total;
use quire::memory::{FlushScope, Frame, Memory, Tlb};
use quire::space::{Access, Manager, Map, Policy, Prot, SpaceId};

use crate::cpu;

/// Hypercalls: the number in RAX, arguments in RDI, RSI and RDX.
pub mod call {
    /// A page was stored to: its number in the space, the guest-physical frame that the library chose for it, the word there.
    pub const STORED: u64 = 1;
    /// The end: 0, or 1 and what was wrong as address and length of text in the image.
    pub const DONE: u64 = 2;
    /// A panic: its line, and the file's name as address and length of text in the image.
    pub const PANIC: u64 = 3;
}

/// Words of the guest-physical page at [`board::PAGE`], which the kernel below fills in.
pub mod board {
    /// Where it is.
    pub const PAGE: u64 = 64;
    /// The [kind](crate::nested::Guests::kind) of the CPU.
    pub const KIND: usize = 0;
    /// First guest-physical frame that is the library's.
    pub const FIRST: usize = 1;
    /// How many follow it.
    pub const COUNT: usize = 2;
    /// Frame of the root that the guest starts on.
    pub const ROOT: usize = 3;
}

/// Guest-physical pages of the stack.
pub const STACK: core::ops::Range<u64> = 65..97;

/// Where the guest's spaces have pages: a stretch of base pages, and one of a large one.
const SMALL: Gva = Gva::new(0x40_0000_0000);
const SMALL_PAGES: u64 = 48;
const LARGE: Gva = Gva::new(0x50_0000_0000);
const LARGE_PAGES: u64 = 512;
const SEED: u64 = 0x1_5eed;
/// What the child stores.
const CHILD_SEED: u64 = 0x2_5eed;

/// Whether this code runs in a guest: only its stack lies in the alias map.
pub fn is_here() -> bool {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    let alias = |page: u64| ALIAS_BASE + (page << PAGE_SHIFT);
    (alias(STACK.start)..=alias(STACK.end)).contains(&stack)
}

fn on_board(word: usize) -> u64 {
    Inside.frame(Pfn::new(board::PAGE)).0[word].load(Relaxed)
}

fn hypercall(number: u64, arguments: [u64; 3]) {
    let [first, second, third] = arguments;
    // SAFETY: the kernel below keeps all registers but RAX, and reads memory of ours at most.
    unsafe {
        if on_board(board::KIND) == 1 {
            asm!("vmcall", inout("rax") number => _, in("rdi") first, in("rsi") second, in("rdx") third);
        } else {
            asm!("vmmcall", inout("rax") number => _, in("rdi") first, in("rsi") second, in("rdx") third);
        }
    }
}

/// The end by a panic.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("", 0), |at| (at.file(), at.line()));
    loop {
        hypercall(call::PANIC, [u64::from(line), file.as_ptr().addr() as u64, file.len() as u64]);
    }
}

/// The guest's first function.
pub extern "C" fn start() -> ! {
    let done = match run() {
        Ok(()) => [0; 3],
        Err(what) => [1, what.as_ptr().addr() as u64, what.len() as u64],
    };
    loop {
        hypercall(call::DONE, done);
    }
}

/// Stores where it is told, which the kernel below must not allow.
pub extern "C" fn trespass(at: u64) -> ! {
    // SAFETY: nothing of this guest's lies there; it ends before the store is done.
    unsafe { ptr::with_exposed_provenance_mut::<u64>(at as usize).write_volatile(0) };
    loop {
        hypercall(call::DONE, [0; 3]);
    }
}

/// The guest's memory.
#[derive(Clone, Copy, Debug)]
struct Inside;

impl Memory for Inside {
    fn frame(&self, pfn: Pfn) -> &Frame {
        // SAFETY: the alias map has all of the guest's memory, and outside of it the kernel below ends the guest. Nobody holds a frame as
        // anything but words that are atomics.
        unsafe { &*ptr::with_exposed_provenance((ALIAS_BASE + pfn.address()) as usize) }
    }
}

impl Tlb for Inside {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        let current = cpu::control_registers()[1];
        if current != root.address() {
            // Loading a root drops everything.
            return;
        }
        match scope {
            FlushScope::Pages { first, pages } => cpu::flush_pages(first << PAGE_SHIFT, pages),
            // SAFETY: the root in force.
            FlushScope::Space => unsafe { cpu::load_root(current) },
        }
    }

    fn new_root(&self, root: Pfn) {
        for slot in [ALIAS_SLOT, KERNEL_SLOT] {
            let entry = self.frame(Pfn::new(on_board(board::ROOT))).0[slot].load(Relaxed);
            self.frame(root).0[slot].store(entry, Relaxed);
        }
    }
}

/// A word of the space whose root is loaded; it must be mapped.
fn word(at: Gva) -> *mut u64 {
    ptr::with_exposed_provenance_mut(at.raw() as usize)
}

fn load_root(root: Pfn) {
    // SAFETY: a root of the manager's, with image and alias map in its upper half, or the one the guest started on.
    unsafe { cpu::load_root(root.address()) };
}

type Library = Manager<Inside, Total>;

/// Spaces, demand faults, a fork, copies on write, a large folio; every page checked through its address and through the alias map.
fn run() -> Result<(), &'static str> {
    let frames = Pfn::new(on_board(board::FIRST))..Pfn::new(on_board(board::FIRST) + on_board(board::COUNT));
    let manager = Library::new(Inside, &[frames], true, Policy::up_to(Order::HUGE)).map_err(|_| "too few frames")?;
    let parent = manager.create_space().map_err(|_| "no space")?;
    for (at, pages) in [(SMALL, SMALL_PAGES), (LARGE, LARGE_PAGES)] {
        let rights = Prot { read: true, write: true, exec: false };
        manager.map(parent, at, pages, rights, Map::Anon).map_err(|_| "a mapping was refused")?;
    }
    fill(&manager, parent, SEED)?;
    let large = manager.page_table(parent).lookup(&manager, LARGE.page()).ok_or("the large page is not mapped")?;
    if large.0.level != Level::TWO {
        return Err("a large page is mapped by small leaves");
    }
    let child = manager.fork(parent).map_err(|_| "no fork")?;
    load_root(manager.root(child));
    verify(SEED)?;
    fill(&manager, child, CHILD_SEED)?;
    verify(CHILD_SEED)?;
    load_root(manager.root(parent));
    verify(SEED)?;
    load_root(Pfn::new(on_board(board::ROOT)));
    manager.destroy_space(child);
    manager.destroy_space(parent);
    if manager.trim() { Ok(()) } else { Err("frames are lost") }
}

/// Stores a stamp to every page of `space`, whose fault handler is called wherever the leaf does not allow that.
fn fill(manager: &Library, space: SpaceId, seed: u64) -> Result<(), &'static str> {
    load_root(manager.root(space));
    for at in pages() {
        let allowed = |page| {
            let found = manager.page_table(space).lookup(manager, page);
            found.filter(|(_, leaf)| leaf.attrs.has(quire::format::Attrs::WRITE))
        };
        if allowed(at.page()).is_none() {
            manager.fault(space, at, Access::Write).map_err(|_| "a fault was refused")?;
        }
        let (place, leaf) = allowed(at.page()).ok_or("a fault made no leaf")?;
        let value = stamp(seed, at.page());
        // SAFETY: mapped, and used by this code alone.
        unsafe { word(at).write_volatile(value) };
        let frame = leaf.pfn.add(at.page() - place.page);
        if Inside.frame(frame).0[0].load(Relaxed) != value {
            return Err("a stamp is not in its frame");
        }
        hypercall(call::STORED, [at.page(), frame.raw(), value]);
    }
    Ok(())
}

/// Loads every page of the space whose root is loaded.
fn verify(seed: u64) -> Result<(), &'static str> {
    // SAFETY: mapped in both spaces, and used by this code alone.
    let good = |at: Gva| unsafe { word(at).read_volatile() } == stamp(seed, at.page());
    if pages().all(good) { Ok(()) } else { Err("a page does not hold its stamp") }
}

/// The pages that are touched: every eighth of the large one, which comes first as there are few blocks for it, and all of the small ones.
fn pages() -> impl Iterator<Item = Gva> {
    let large = (0..LARGE_PAGES).step_by(8).map(|page| LARGE.add_pages(page));
    large.chain((0..SMALL_PAGES).map(|page| SMALL.add_pages(page)))
}

const _: () = assert!(STACK.end < ENTRIES as u64);
