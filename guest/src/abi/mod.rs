//! The contract between the VMM and the bare-metal kernel.
//!
//! Everything that crosses the border is a `u64` word in guest memory, reached by a named index: no
//! structs whose layout two compilers could see differently, no pointers. The VMM writes a [`BootInfo`]
//! and the operations of the trace, the kernel writes the [results](mod@results) and [samples](mod@sample),
//! and rings a [doorbell](bell) when it wants something.
//!
//! Physical memory, low to high, is the same however the kernel was started (see [`Placement`]):
//!
//! ```text
//! 0x0000_1000  BootInfo                    written by our VMM; the other entries build it themselves
//! 0x0000_2000  start tables                StartTables: identity, kernel image, alias map
//! 0x0010_0000  kernel image                and, for a flat image, the appended blob right behind it
//! 0x0040_0000  results                     or the first 2 MiB boundary above all that
//!              samples                     2 MiB aligned: mapped for the tenant in 2 MiB leaves
//!              trace
//!              frames                      2 MiB aligned, up to the end: all the manager's
//! ```

pub mod bench;
pub mod boot;
pub mod nest;
pub mod nested;
mod placement;
pub mod replay;
pub mod results;
pub mod sample;
mod start_tables;
pub mod stats;
pub mod survey;

pub use crate::trace::{STAMP_FACTOR, stamp};
pub use boot::{BootError, BootInfo, flags, ring};
pub use placement::Placement;
pub use start_tables::{StartTables, WORDS_PER_TABLE};

/// `"QUIREBIN"`, the first word of a [`BootInfo`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"QUIREBIN");
/// Version of this contract. The kernel refuses any other.
pub const VERSION: u64 = 1;

/// Where our VMM puts the [`BootInfo`]; its address is also in `rdi` at the 64-bit entry.
pub const BOOT_INFO_GPA: u64 = 0x1000;
/// Where the start tables begin.
pub const START_TABLES_GPA: u64 = 0x2000;
/// Where the room for start tables ends.
pub const START_TABLES_END: u64 = 0x8_0000;
/// Where the kernel image is loaded; also its 32-bit flat entry.
pub const KERNEL_GPA: u64 = 0x10_0000;
/// The image ends below this address.
pub const KERNEL_END: u64 = 0x80_0000;

/// What the kernel's link address adds to a physical address.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where the touch program, its data page and the sample buffer are mapped for the tenant's ring.
pub const TOUCH_BASE: u64 = 0xffff_ffff_c000_0000;
/// Where the samples region appears to the touch program.
pub const TOUCH_SAMPLES: u64 = TOUCH_BASE + 16 * LARGE_PAGE;
/// First address of the alias map: physical address 0 as seen by the manager. Root slot 257; slot 256 stays empty.
pub const ALIAS_BASE: u64 = 0xffff_8080_0000_0000;
/// Root slot of [`ALIAS_BASE`].
pub const ALIAS_SLOT: usize = 257;
/// Root slot of the kernel image and the touch program.
pub const KERNEL_SLOT: usize = 511;
/// Bytes that a leaf of level 2 maps.
pub const LARGE_PAGE: u64 = 2 << 20;
/// The most guest memory the start tables can map.
pub const MAX_MEMORY: u64 = 64 << 30;

/// Words that one encoded trace operation takes.
pub const OP_WORDS: usize = 8;

/// Ports of the virtual machine's own devices, and the commands of the doorbell.
pub mod bell {
    /// The doorbell: a 32-bit `out` of a command. Its arguments stand in
    /// [`results::REQUEST`](super::results::REQUEST), and so do its answers when the `out` returns.
    pub const PORT: u16 = 0x510;
    /// The run is over; [`results::STATUS`](super::results::STATUS) says how.
    pub const EXIT: u32 = 0;
    /// The kernel's first instructions ran (only when [`flags::START_BELL`](super::flags::START_BELL) asks for it).
    pub const START: u32 = 1;
    /// Compare the first `request[0]` pairs of the audit list with the VMM's walk of the current tables.
    /// Answers: `request[1]` mismatches, `request[2]` the first one's index, `request[3]` what the VMM found.
    pub const AUDIT: u32 = 2;
    /// Commands from here on mean what the VMM's caller says.
    pub const FIRST_FREE: u32 = 0x100;

    /// Where an emulator shows text: one byte per `out`.
    pub const TEXT_PORT: u16 = 0xe9;
    /// QEMU's `isa-debug-exit`; its status is `2 * value + 1`.
    pub const QEMU_EXIT_PORT: u16 = 0xf4;
    /// What the kernel sends there when the run passed (status 33).
    pub const QEMU_PASS: u32 = 0x10;
    /// What the kernel sends there when the run failed or panicked (status 35).
    pub const QEMU_FAIL: u32 = 0x11;
    /// Bochs ends with status 1 on the bytes `Shutdown` here.
    pub const BOCHS_EXIT_PORT: u16 = 0x8900;
}

/// The touch program's checksum `sum` after it has loaded `word`.
#[must_use]
pub const fn checksum(sum: u64, word: u64) -> u64 {
    sum.rotate_left(5) ^ word
}

const _: () = assert!(BOOT_INFO_GPA + 8 * boot::WORDS as u64 <= START_TABLES_GPA);
const _: () = assert!(StartTables::bytes(MAX_MEMORY) <= START_TABLES_END - START_TABLES_GPA);
const _: () = assert!(START_TABLES_END <= 0xa_0000 && 0xa_0000 < KERNEL_GPA, "start tables stay in low RAM");
const _: () = assert!(KERNEL_GPA < KERNEL_END && KERNEL_END.is_multiple_of(LARGE_PAGE));
const _: () = assert!((ALIAS_BASE >> 39) & 511 == ALIAS_SLOT as u64);
const _: () =
    assert!((KERNEL_BASE >> 39) & 511 == KERNEL_SLOT as u64 && (TOUCH_BASE >> 39) & 511 == KERNEL_SLOT as u64);
