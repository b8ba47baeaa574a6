//! What the words that the [contract](super) leaves to the manager mean in a replay.
//!
//! An encoded access whose contents are predictable carries what it must read: word [`EXPECTED`] of the operation is the folded words, and
//! word [`HAS_EXPECTED`] is 1.

use super::boot;
use super::results::GENERAL_COUNT;
use crate::audit::Audit;
use crate::space::Metadata;
use crate::trace::Event;

/// Word of an encoded access that says whether [`EXPECTED`] counts.
pub const HAS_EXPECTED: usize = 6;
/// Word of an encoded access with the checksum of what it must read.
pub const EXPECTED: usize = 7;

/// Boot word: orders that anonymous faults may use, as a mask.
pub const ORDERS: usize = boot::OPTIONS;
/// Boot word: the highest level of leaves.
pub const MAX_LEAF: usize = boot::OPTIONS + 1;
/// Boot word: faults that the floor is measured over.
pub const FLOOR_PAGES: usize = boot::OPTIONS + 2;
/// Boot word: 1 when the trace maps device memory, and frames must be set aside for its window.
pub const DEVICE: usize = boot::OPTIONS + 3;

/// The general words of the results, counted from 0.
pub mod word {
    /// Operations done.
    pub const OPS: usize = 0;
    /// Index of the operation that failed, plus one.
    pub const FAILED_OP: usize = 1;
    /// 1 when it failed for want of frames.
    pub const OUT_OF_FRAMES: usize = 2;
    /// Faults served.
    pub const FAULTS: usize = 3;
    /// Accesses whose contents were checked, in operations.
    pub const VERIFIED: usize = 4;
    /// Changes of the current space, and the ticks they took.
    pub const SWITCHES: usize = 5;
    /// See [`SWITCHES`].
    pub const SWITCH_TICKS: usize = 6;
    /// Ticks of touching, faults included, and the pages touched.
    pub const TOUCH_TICKS: usize = 7;
    /// See [`TOUCH_TICKS`].
    pub const TOUCH_PAGES: usize = 8;
    /// Recounts.
    pub const AUDITS: usize = 9;
    /// Comparisons in them.
    pub const CHECKS: usize = 10;
    /// Comparisons that failed.
    pub const MISMATCHES: usize = 11;
    /// Folios called exclusive though two owners map them.
    pub const FALSE_EXCLUSIVE: usize = 12;
    /// Translations that the VMM's walks were compared with.
    pub const WALKED: usize = 13;
    /// Ticks of clearing frames.
    pub const CLEAR_TICKS: usize = 14;
    /// Frames cleared, taken as known to be zero, copied.
    pub const CLEARED: usize = 15;
    /// See [`CLEARED`].
    pub const KNOWN_ZERO: usize = 16;
    /// See [`CLEARED`].
    pub const COPIED: usize = 17;
    /// Leaves split.
    pub const SPLITS: usize = 18;
    /// The most frames in use at the end of any operation, records and tables included.
    pub const PEAK_FRAMES: usize = 19;
    /// 1 when everything was free at the end.
    pub const CLEAN: usize = 20;
    /// Of [`CLEAR_TICKS`], those that were not spent for a fault.
    pub const OTHER_CLEAR_TICKS: usize = 21;
    /// Metadata at the checkpoint with the most leaves: see [`metadata_words`](super::metadata_words).
    pub const METADATA: usize = 24;
    /// What was found and known at the checkpoint with the most leaves: see [`audit_words`](super::audit_words).
    pub const KNOWN: usize = 32;
    /// Count, pages and ticks of every kind of event: three words each.
    pub const EVENTS: usize = 64;
}

/// The first of the three words of `event`: its count, then pages, then ticks.
#[must_use]
pub const fn event_word(event: Event) -> usize {
    word::EVENTS + 3 * (event as usize - Event::Fork as usize)
}

/// How many words [`audit_words`] has.
pub const AUDIT_WORDS: usize = 11;

/// What an audit found, as words.
#[must_use]
pub const fn audit_words(audit: &Audit) -> [u64; AUDIT_WORDS] {
    [
        audit.folios,
        audit.large_folios,
        audit.leaves,
        audit.mapped_pages,
        audit.distinct_pages,
        audit.said_pages,
        audit.shared,
        audit.said_shared,
        audit.unknown_shared,
        audit.partial,
        audit.said_partial,
    ]
}

/// The audit of [`audit_words`].
#[must_use]
pub fn audit_of(words: &[u64]) -> Audit {
    Audit {
        folios: words[0],
        large_folios: words[1],
        leaves: words[2],
        mapped_pages: words[3],
        distinct_pages: words[4],
        said_pages: words[5],
        shared: words[6],
        said_shared: words[7],
        unknown_shared: words[8],
        partial: words[9],
        said_partial: words[10],
        ..Audit::default()
    }
}

/// How many words [`metadata_words`] has.
pub const METADATA_WORDS: usize = 7;

/// Metadata as words.
#[must_use]
pub const fn metadata_words(m: &Metadata) -> [u64; METADATA_WORDS] {
    [m.carved_bytes, m.slot_bytes, m.folio_bytes, m.large_folios, m.frames, m.vma_bytes, m.directory_bytes]
}

/// The metadata of [`metadata_words`].
#[must_use]
pub fn metadata_of(words: &[u64]) -> Metadata {
    Metadata {
        carved_bytes: words[0],
        slot_bytes: words[1],
        folio_bytes: words[2],
        large_folios: words[3],
        frames: words[4],
        vma_bytes: words[5],
        directory_bytes: words[6],
    }
}

/// Spare bits of a sample: the frames of the folio had to be cleared first.
pub const SAMPLE_CLEARED: u16 = 1 << 15;
/// Spare bits of a sample: pages mapped, at most this.
pub const SAMPLE_PAGES: u16 = SAMPLE_CLEARED - 1;

const _: () = assert!(event_word(Event::Map) + 3 <= GENERAL_COUNT);
const _: () = assert!(word::METADATA + METADATA_WORDS <= word::KNOWN && word::KNOWN + AUDIT_WORDS <= word::EVENTS);
