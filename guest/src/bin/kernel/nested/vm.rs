//! A tenant VM: a guest that runs the library [inside](crate::inside), on frames that its second level gives it on demand.
#![expect(unsafe_code, reason = "the bounds of the image")]

use core::ops::Range;
use core::str;
use core::sync::atomic::Ordering::Relaxed;

use quire::abi::{ALIAS_BASE, KERNEL_BASE};
use quire::addr::{Level, PAGE_SHIFT, Pfn};
use quire::format::{Attrs, Format};
use quire::memory::Memory;
use quire::page_table::Tables;
use quire::space::Access;

use super::Exit;
use super::guest::{ALL, Counts, Guest, OWN_TABLES, PAGES};
use crate::inside::{self, STACK, board, call};
use crate::log;
use crate::machine::Machine;

/// The guest-physical page that the image's physical page 0 would be at: far above the guest's memory.
const IMAGE: u64 = 1 << 18;
/// Guest-physical pages of the library inside; the first half is mapped by small leaves, the second by large ones.
const FRAMES: Range<u64> = 512..PAGES;
const LARGE: u64 = 1024;
const OUTSIDE: &str = "the guest has left its memory";

unsafe extern "C" {
    static text_start: u8;
    static data_start: u8;
    static data_end: u8;
}

/// The page number of an address, as tables of four levels have it.
const fn page_of(address: u64) -> u64 {
    address << 16 >> (16 + PAGE_SHIFT)
}

/// Text in the part of the image that is never written, by what a guest says of it.
fn text(address: u64, length: u64) -> &'static str {
    let (first, end) = ((&raw const text_start).addr() as u64, (&raw const data_start).addr() as u64);
    if address < first || length > end - first || address > end - length {
        return "(no text)";
    }
    let at = core::ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: inside code and constants of this image, which live for ever and do not change.
    str::from_utf8(unsafe { core::slice::from_raw_parts(at, length as usize) }).unwrap_or("(no text)")
}

/// Runs the library in a guest whose memory is at `memory`, free and zero, and gives the guest up.
///
/// # Errors
/// The first thing that was wrong, inside or here.
pub fn check<F: Format, T: Tables>(machine: &Machine, tables: &T, memory: Pfn) -> Result<Counts, &'static str> {
    let mut guest = Guest::<F, T>::new(machine, tables, memory)?;
    let (preset, image) = (Attrs::ACCESSED_DIRTY, image());
    let (at, pages) = (page_of(KERNEL_BASE) + image.start, image.end - image.start);
    guest.map_own(at, Pfn::new(IMAGE + image.start), pages, ALL.without(Attrs::WRITE).or(preset))?;
    guest.map_own(page_of(ALIAS_BASE), Pfn::new(0), PAGES, ALL.without(Attrs::EXEC).or(preset))?;
    let on_board = &machine.frame(guest.frame(board::PAGE)).0;
    for (word, value) in [
        (board::KIND, guest.guests().kind()),
        (board::FIRST, FRAMES.start),
        (board::COUNT, FRAMES.end - FRAMES.start),
        (board::ROOT, OWN_TABLES.start),
    ] {
        on_board[word].store(value, Relaxed);
    }
    let registers = guest.registers();
    registers.rip = inside::start as *const () as u64;
    // As if it had been called.
    registers.rsp = ALIAS_BASE + (STACK.end << PAGE_SHIFT) - 8;
    serve(&mut guest)?;
    let counts = guest.counts();
    trespass(&mut guest)?;
    guest.end();
    Ok(counts)
}

/// Frames of the image.
fn image() -> Range<u64> {
    let [first, end] =
        [&raw const text_start, &raw const data_end].map(|at| (at.addr() as u64 - KERNEL_BASE) >> PAGE_SHIFT);
    first..end
}

/// What a violation at `address` is answered with: memory, or a page of the image.
fn resolve<F: Format, T: Tables>(guest: &Guest<'_, F, T>, address: u64) -> Result<(), &'static str> {
    let page = address >> PAGE_SHIFT;
    if page < PAGES {
        let level = if page < LARGE { Level::ONE } else { Level::TWO };
        let first = page & !(level.entry_pages() - 1);
        return guest.map(first, level, guest.frame(first), ALL);
    }
    // The image is nobody's folio, and nobody's to write.
    let frame = page.checked_sub(IMAGE).filter(|frame| image().contains(frame)).ok_or(OUTSIDE)?;
    guest.map(page, Level::ONE, Pfn::new(frame), ALL.without(Attrs::WRITE).or(Attrs::UNTRACKED))
}

/// Answers the guest until it is done.
fn serve<F: Format, T: Tables>(guest: &mut Guest<'_, F, T>) -> Result<(), &'static str> {
    let mut stored = 0;
    loop {
        let exit = guest.run(resolve)?;
        let registers = *guest.registers();
        match (exit, registers.rax) {
            (Exit::Hypercall, call::STORED) => {
                let (frame, value) = (registers.rsi, registers.rdx);
                if !FRAMES.contains(&frame) || guest.word(frame).load(Relaxed) != value {
                    return Err("what the guest stored is not there");
                }
                stored += 1;
            }
            (Exit::Hypercall, call::DONE) if registers.rdi == 0 => break,
            (Exit::Hypercall, call::DONE) => return Err(text(registers.rsi, registers.rdx)),
            (Exit::Hypercall, call::PANIC) => {
                log!("guest: panic at {}:{}", text(registers.rsi, registers.rdx), registers.rdi);
                return Err("the guest panicked");
            }
            (Exit::Exception { vector, error, address }, _) => {
                log!("guest: exception {vector}, error {error:#x}, address {address:#x}, rip {:#x}", registers.rip);
                return Err("the guest has an exception");
            }
            (other, _) => {
                log!("guest: {other:?} at rip {:#x}", registers.rip);
                return Err("the guest does what it should not");
            }
        }
    }
    // Everything but the end was a page that was stored to.
    if stored + 1 == guest.counts().hypercalls { Ok(()) } else { Err("a hypercall was lost") }
}

/// Even where its own tables allow it, the guest cannot write the image, nor reach what is not its memory.
fn trespass<F: Format, T: Tables>(guest: &mut Guest<'_, F, T>) -> Result<(), &'static str> {
    let preset = Attrs::ACCESSED_DIRTY;
    let window = page_of(ALIAS_BASE) + PAGES;
    let (frame, outside) = (image().end - 1, PAGES + 5);
    guest.map_own(window, Pfn::new(IMAGE + frame), 1, ALL.or(preset))?;
    guest.map_own(window + 1, Pfn::new(outside), 1, ALL.or(preset))?;
    let mut store_to = |page: u64| {
        let registers = guest.registers();
        registers.rip = inside::trespass as *const () as u64;
        registers.rdi = ALIAS_BASE + ((PAGES + page) << PAGE_SHIFT);
        guest.run(resolve)
    };
    let address = (IMAGE + frame) << PAGE_SHIFT;
    if store_to(0) != Ok(Exit::Violation { address, access: Access::Write, guest_walk: false }) {
        return Err("a guest wrote to the image");
    }
    if store_to(1) == Err(OUTSIDE) { Ok(()) } else { Err("a guest reached what is not its memory") }
}
