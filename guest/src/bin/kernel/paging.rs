//! The upper half of every address space: kernel image, touch program, alias map.
//!
//! The CPU starts on tables whose identity map and executable data the kernel has no use for. This builds its own: the
//! image page by page with the rights of each section and holes below the stacks, the touch program's pages and the
//! samples for ring 3, and the alias map taken over from the start tables.
//!
//! The user bit: leaves of image and alias always carry it; one entry above them, and for the alias the root's, decides.
//! It is clear while the manager runs at ring 0.
#![expect(unsafe_code, reason = "section bounds and the root register")]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::abi::{
    ALIAS_SLOT, BootInfo, KERNEL_BASE, KERNEL_END, KERNEL_SLOT, LARGE_PAGE, StartTables, TOUCH_BASE, TOUCH_SAMPLES,
    boot,
};
use quire::addr::{ENTRIES, PAGE_SIZE};
use quire::memory::Frame;

use crate::{cpu, descriptors};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const TABLE: u64 = PRESENT | WRITE | ACCESSED;
const LEAF: u64 = PRESENT | USER | ACCESSED | DIRTY;

const IMAGE_TABLES: usize = (KERNEL_END / LARGE_PAGE) as usize;
/// The samples' leaves fill what is left of their table.
pub const SAMPLES_MAX: u64 = (ENTRIES as u64 - (TOUCH_SAMPLES - TOUCH_BASE) / LARGE_PAGE) * LARGE_PAGE / 8;

static ROOT: Frame = empty();
static SCRUB_ROOT: Frame = empty();
static KERNEL_3: Frame = empty();
static IMAGE_2: Frame = empty();
static IMAGE_1: [Frame; IMAGE_TABLES] = [const { empty() }; IMAGE_TABLES];
static TOUCH_2: Frame = empty();
static TOUCH_1: Frame = empty();

unsafe extern "C" {
    static text_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static data_end: u8;
}

const fn empty() -> Frame {
    Frame([const { AtomicU64::new(0) }; ENTRIES])
}

/// Physical address of something in the image.
fn physical<T>(of: &'static T) -> u64 {
    (&raw const *of).addr() as u64 - KERNEL_BASE
}

/// Leaves the start tables for the kernel's own.
///
/// # Panics
/// When the samples region is larger than its window.
pub fn enter(boot: &BootInfo) {
    assert!(boot[boot::SAMPLES_CAPACITY] <= SAMPLES_MAX, "more samples than their window holds");
    let bounds = |symbol: *const u8| symbol.addr() as u64;
    let data = bounds(&raw const data_start);
    let image_end = bounds(&raw const data_end);
    map_image(bounds(&raw const text_start), bounds(&raw const rodata_start), 0);
    map_image(bounds(&raw const rodata_start), data, NO_EXECUTE);
    map_image(data, image_end, NO_EXECUTE | WRITE);
    for guard in descriptors::guard_pages() {
        image_entry(guard).store(0, Relaxed);
    }
    for (entry, table) in IMAGE_2.0.iter().zip(&IMAGE_1) {
        entry.store(physical(table) | TABLE, Relaxed);
    }

    let touch = image_end - KERNEL_BASE;
    TOUCH_1.0[0].store(touch | LEAF, Relaxed);
    TOUCH_1.0[1].store((touch + PAGE_SIZE) | LEAF | WRITE | NO_EXECUTE, Relaxed);
    TOUCH_2.0[0].store(physical(&TOUCH_1) | TABLE | USER, Relaxed);
    let first = ((TOUCH_SAMPLES - TOUCH_BASE) / LARGE_PAGE) as usize;
    for large in 0..(8 * boot[boot::SAMPLES_CAPACITY]).div_ceil(LARGE_PAGE) {
        let leaf = (boot[boot::SAMPLES_GPA] + large * LARGE_PAGE) | LEAF | LARGE | WRITE | NO_EXECUTE;
        TOUCH_2.0[first + large as usize].store(leaf, Relaxed);
    }

    KERNEL_3.0[510].store(physical(&IMAGE_2) | TABLE | USER, Relaxed);
    KERNEL_3.0[511].store(physical(&TOUCH_2) | TABLE | USER, Relaxed);
    let alias = StartTables::new(boot[boot::MEMORY_END]).alias_entry();
    for (root, rights) in [(&ROOT, 0), (&SCRUB_ROOT, USER)] {
        root.0[KERNEL_SLOT].store(physical(&KERNEL_3) | TABLE | USER, Relaxed);
        root.0[ALIAS_SLOT].store(alias | rights, Relaxed);
    }
    // SAFETY: the new root maps this code, its stack and its data where the old one did.
    unsafe { cpu::load_root(root()) };
}

/// Gives ring 3 the image and the alias map.
pub fn open_to_user() {
    for entry in &IMAGE_2.0[..IMAGE_TABLES] {
        entry.fetch_or(USER, Relaxed);
    }
    ROOT.0[ALIAS_SLOT].fetch_or(USER, Relaxed);
    // SAFETY: the same root, with more rights; loading it again drops what is cached.
    unsafe { cpu::load_root(root()) };
}

/// The root with an empty lower half.
pub fn root() -> u64 {
    physical(&ROOT)
}

/// The root for clearing and copying at ring 3 under a manager at ring 0: the alias map is open to ring 3.
pub fn scrub_root() -> u64 {
    physical(&SCRUB_ROOT)
}

/// The entries of the upper half that every root must have, with their slots.
pub fn upper_half() -> [(usize, u64); 2] {
    [ALIAS_SLOT, KERNEL_SLOT].map(|slot| (slot, ROOT.0[slot].load(Relaxed)))
}

fn map_image(from: u64, to: u64, rights: u64) {
    for page in (from..to).step_by(PAGE_SIZE as usize) {
        image_entry(page).store((page - KERNEL_BASE) | LEAF | rights, Relaxed);
    }
}

fn image_entry(address: u64) -> &'static AtomicU64 {
    let page = ((address - KERNEL_BASE) / PAGE_SIZE) as usize;
    &IMAGE_1[page / ENTRIES].0[page % ENTRIES]
}
