//! Indices and offsets of the results region, which the kernel writes and the VMM reads.
//!
//! Words first (one page), then the panic text, the audit list, the survey, the log, and the words of [`stats`](mod@super::stats) up to the region's end.

/// How the run stands, one of [`status`](mod@status).
pub const STATUS: usize = 0;
/// The ring the manager runs at: 0 or 3.
pub const RING: usize = 1;
/// TSC ticks that the fixed loop took at ring 0.
pub const LOOP_RING0: usize = 2;
/// TSC ticks that the fixed loop took at ring 3.
pub const LOOP_RING3: usize = 3;
/// TSC ticks between two bracketed time stamps with nothing between them, at the tenant's ring. Samples include it.
pub const STAMP_PAIR: usize = 4;
/// TSC at the first instruction of the 64-bit entry.
pub const FIRST_TSC: usize = 5;
/// TSC when the manager took over.
pub const READY_TSC: usize = 6;
/// Samples taken.
pub const SAMPLES: usize = 7;
/// Samples lost because the region was full.
pub const SAMPLES_LOST: usize = 8;
/// Bytes of log.
pub const LOG_BYTES: usize = 9;
/// Bytes of log that did not fit.
pub const LOG_LOST: usize = 10;
/// Bytes of panic text.
pub const PANIC_BYTES: usize = 11;
/// Root table in force when the run ended.
pub const ROOT: usize = 12;
/// First of [`REQUEST_COUNT`] words: arguments and answers of a doorbell.
pub const REQUEST: usize = 16;
/// How many such words.
pub const REQUEST_COUNT: usize = 16;
/// First of [`GENERAL_COUNT`] words that the manager gives a meaning.
pub const GENERAL: usize = 256;
/// How many such words.
pub const GENERAL_COUNT: usize = 256;

/// Where the panic text begins.
pub const PANIC_OFFSET: u64 = 0x1000;
/// Room for it.
pub const PANIC_CAPACITY: u64 = 0x1000;
/// Where the audit list begins: pairs of a gva and the gpa it should translate to, or [`NOT_MAPPED`].
pub const AUDIT_OFFSET: u64 = 0x2000;
/// Pairs that fit.
pub const AUDIT_PAIRS: u64 = 1024;
/// Where the words of a [survey](mod@super::survey) begin.
pub const SURVEY_OFFSET: u64 = AUDIT_OFFSET + 16 * AUDIT_PAIRS;
/// Where the log begins.
pub const LOG_OFFSET: u64 = SURVEY_OFFSET + 8 * super::survey::WORDS as u64;
/// Room for it.
pub const LOG_CAPACITY: u64 = STATS_OFFSET - LOG_OFFSET;
/// Where the words of [`stats`](mod@super::stats) begin.
pub const STATS_OFFSET: u64 = 0x10_0000;
/// How many fit.
pub const STATS_WORDS: usize = ((REGION_BYTES - STATS_OFFSET) / 8) as usize;
/// Length of the whole region.
pub const REGION_BYTES: u64 = 0x20_0000;

/// In the audit list: the gva should not translate.
pub const NOT_MAPPED: u64 = u64::MAX;

/// Values of [`STATUS`].
pub mod status {
    /// Not finished.
    pub const RUNNING: u64 = 0;
    /// Finished and right.
    pub const PASS: u64 = 1;
    /// Finished and wrong; the log says what.
    pub const FAIL: u64 = 2;
    /// The kernel panicked; the panic text says where.
    pub const PANIC: u64 = 3;
}

const _: () = assert!(REQUEST + REQUEST_COUNT <= GENERAL);
const _: () = assert!(8 * (GENERAL + GENERAL_COUNT) as u64 <= PANIC_OFFSET);
const _: () = assert!(PANIC_OFFSET + PANIC_CAPACITY <= AUDIT_OFFSET);
const _: () = assert!(LOG_OFFSET + 0x4_0000 <= STATS_OFFSET && STATS_OFFSET < REGION_BYTES, "there is room for a log");
