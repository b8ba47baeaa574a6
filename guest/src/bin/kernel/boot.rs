//! Finding the boot words, whichever way the kernel was entered.
//!
//! Our VMM leaves them where they belong. The other ways find at most a blob: a page of boot words with the trace behind
//! it, right behind the image (flat) or as the first module (PVH). They complete the words for the memory there is, and
//! build the start tables that our VMM would have built.
#![expect(unsafe_code, reason = "reads and writes memory that the loader left")]

use core::{ptr, slice};

use quire::abi::replay::FLOOR_PAGES;
use quire::abi::{
    ALIAS_BASE, BOOT_INFO_GPA, BootInfo, KERNEL_BASE, KERNEL_GPA, LARGE_PAGE, MAGIC, MAX_MEMORY, OP_WORDS, Placement,
    START_TABLES_GPA, StartTables, boot,
};
use quire::addr::PAGE_SIZE;

use crate::cpu;
use crate::entry::way;
use crate::floor;

/// What the 32-bit entries' tables map.
const STUB_MAPS: u64 = 1 << 30;
/// Memory of a machine that nobody described.
const DEFAULT_MEMORY: u64 = 128 << 20;
const DEFAULT_SAMPLES: u64 = 1 << 18;

unsafe extern "C" {
    static image_end: u8;
}

/// The boot words, in place, with the start tables in force.
///
/// # Panics
/// When they are not boot words of this version, or the loader left something this kernel cannot use.
pub fn find(entered: u64, info: u64) -> &'static BootInfo {
    if entered != way::DIRECT {
        let words = describe(entered, info);
        build_start_tables(&words);
        // SAFETY: low RAM that nothing uses, mapped by the alias map from here on.
        unsafe { ptr::with_exposed_provenance_mut::<BootInfo>((ALIAS_BASE + BOOT_INFO_GPA) as usize).write(words) };
    }
    let at = if entered == way::DIRECT { info } else { BOOT_INFO_GPA };
    // SAFETY: written by the VMM before the start or just above, and by nobody after.
    let words: &'static BootInfo = unsafe { &*ptr::with_exposed_provenance((ALIAS_BASE + at) as usize) };
    if let Err(error) = words.check() {
        panic!("{error}");
    }
    words
}

/// The encoded operations of the trace, in place.
///
/// # Panics
/// When the boot words put the trace outside memory.
pub fn trace(words: &'static BootInfo) -> &'static [[u64; OP_WORDS]] {
    let (at, count) = (words[boot::TRACE_GPA], words[boot::TRACE_WORDS]);
    let end = count.checked_mul(8).and_then(|bytes| at.checked_add(bytes));
    assert!(
        at.is_multiple_of(8) && end.is_some_and(|end| end <= words[boot::MEMORY_END]),
        "the trace at {at:#x} of {count} words is not in memory"
    );
    let first = ptr::with_exposed_provenance((ALIAS_BASE + at) as usize);
    // SAFETY: memory in the alias map, aligned, written by the loader before the start and by nobody after; the manager's
    // frames begin above it or, behind a PVH module, end below it.
    unsafe { slice::from_raw_parts(first, count as usize / OP_WORDS) }
}

/// End of the image in physical memory.
fn end_of_image() -> u64 {
    (&raw const image_end).addr() as u64
}

/// The boot words of a machine that is not our VMM's.
fn describe(entered: u64, info: u64) -> BootInfo {
    let end = end_of_image();
    let (blob, memory_end, blob_limit) = match entered {
        way::PVH => pvh(info),
        way::FLAT => (Some(end), None, u64::MAX),
        other => panic!("no such way in: {other}"),
    };
    let mut words = BootInfo::new();
    // Nothing to replay, as far as is known yet: at least the floor.
    words[FLOOR_PAGES] = floor::PAGES;
    let mut taken = end;
    let mut trace = None;
    if let Some(at) = blob.filter(|at| low::<u64>(*at) == MAGIC) {
        words = low(at);
        trace = Some(at + PAGE_SIZE);
        if at == end {
            taken = end + PAGE_SIZE + 8 * words[boot::TRACE_WORDS];
        }
    }
    let memory_end = match (memory_end, words[boot::MEMORY_END]) {
        (Some(end), _) => end,
        (None, 0) => DEFAULT_MEMORY,
        (None, end) => end,
    };
    let samples = match words[boot::SAMPLES_CAPACITY] {
        0 => DEFAULT_SAMPLES,
        n => n,
    };
    let memory_end = memory_end.min(MAX_MEMORY);
    let place = Placement::above(taken, samples, 0);
    place.describe(&mut words, memory_end.min(blob_limit) & !(LARGE_PAGE - 1));
    // The alias map reaches to the end of the last large page: a module may lie there.
    words[boot::MEMORY_END] = memory_end.next_multiple_of(LARGE_PAGE);
    words[boot::IMAGE_END] = end;
    words[boot::TRACE_GPA] = trace.unwrap_or(0);
    assert!(words[boot::FRAMES_COUNT] > 0, "no memory left above {:#x}", place.frames);
    words
}

/// What a PVH loader says: the first module, the end of the RAM that the kernel lies in, and where modules begin.
fn pvh(info: u64) -> (Option<u64>, Option<u64>, u64) {
    assert!(low::<u32>(info) == 0x336e_c578, "no PVH start info at {info:#x}");
    let modules = low::<u32>(info + 12);
    let module = (modules > 0).then(|| low::<u64>(low::<u64>(info + 16)));
    if let Some(at) = module {
        assert!(at < STUB_MAPS, "the module at {at:#x} is beyond the first GiB");
    }
    let (map, entries) = (low::<u64>(info + 40), u64::from(low::<u32>(info + 48)));
    let memory_end = (0..entries).map(|i| map + 24 * i).find_map(|entry| {
        let (start, bytes, kind) = (low::<u64>(entry), low::<u64>(entry + 8), low::<u32>(entry + 16));
        (kind == 1 && (start..start + bytes).contains(&KERNEL_GPA)).then_some(start + bytes)
    });
    (module, memory_end, module.unwrap_or(u64::MAX))
}

/// A value in the low gigabyte, as the stub tables map it.
fn low<T: Copy>(at: u64) -> T {
    assert!(at < STUB_MAPS - PAGE_SIZE, "{at:#x} is beyond the first GiB");
    // SAFETY: mapped; whatever lies there is read as plain words, and `T` is integers only.
    unsafe { ptr::with_exposed_provenance::<T>((KERNEL_BASE + at) as usize).read_unaligned() }
}

fn build_start_tables(words: &BootInfo) {
    let tables = StartTables::new(words[boot::MEMORY_END]);
    let at = |gpa: u64| ptr::with_exposed_provenance_mut::<u64>((KERNEL_BASE + gpa) as usize);
    // SAFETY: the room is low RAM that nothing uses any more: what the loader left there has been read.
    unsafe { at(START_TABLES_GPA).write_bytes(0, (StartTables::bytes(words[boot::MEMORY_END]) / 8) as usize) };
    // SAFETY: `write` stays inside that room.
    tables.write(|gpa, entry| unsafe { at(gpa).write(entry) });
    // SAFETY: the start tables map the kernel where the stub's do.
    unsafe { cpu::load_root(tables.root()) };
}
