//! The words of a [survey](mod@crate::survey): how often each scheme was right, and how far off when it was not.
//!
//! One block for the truth, then one for each scheme, by its number. All are sums of integers or largest values: a kernel has no floats.

/// Boot word: 1 when a survey is wanted.
pub const WANTED: usize = super::boot::OPTIONS + 16;

/// Schemes that there is room for, by number.
pub const SCHEMES: usize = 16;
/// Folio orders.
pub const ORDERS: usize = 19;

/// A question of [`Accounting`](crate::mapcount::Accounting), or one that follows from its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Question {
    /// Q1, of every mapped folio, like all that do not say otherwise.
    Mapped,
    /// Q2.
    OneLeaf,
    /// Q3, as one of the owners would ask.
    Shared,
    /// Q4, of anonymous folios. The truth: one owner, and no reference but its leaves'.
    Reuse,
    /// Q5, of every page of a mapped folio.
    PageCount,
    /// Q7: the largest Q5 of a folio's pages.
    MapMax,
    /// Q8, of every page that a leaf maps, as the leaf's owner.
    Exclusive,
    /// Q10, of every page that a leaf maps.
    Charge,
    /// Q12.
    MappedPages,
    /// Q13.
    HugePages,
    /// Q14, of anonymous folios.
    PartiallyMapped,
    /// Q16.
    Leaves,
    /// Q15.
    EarlyStop,
    /// Q17.
    ByLevel,
}

impl Question {
    /// All of them.
    pub const EACH: [Self; 14] = [
        Self::Mapped,
        Self::OneLeaf,
        Self::Shared,
        Self::Reuse,
        Self::PageCount,
        Self::MapMax,
        Self::Exclusive,
        Self::Charge,
        Self::MappedPages,
        Self::HugePages,
        Self::PartiallyMapped,
        Self::Leaves,
        Self::EarlyStop,
        Self::ByLevel,
    ];
}

/// How an answer was, counted from the word of its question and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Verdict {
    /// Said to be exact, and so it was.
    Exact,
    /// Not said to be exact, and right.
    Right,
    /// Wrong: more than the truth, or yes for no.
    More,
    /// Wrong: less than the truth, or no for yes.
    Less,
    /// Only a walk tells.
    Walk,
    /// The scheme cannot tell.
    Cannot,
    /// Said to be exact, and wrong: never.
    Broken,
}

/// How many verdicts there are, and one to spare.
pub const VERDICTS: usize = 8;

/// The word of the truth block: checkpoints surveyed.
pub const CHECKPOINTS: usize = 0;
/// Processes with mapped pages, summed over the checkpoints.
pub const PROCESSES: usize = 1;
/// Pages mapped, each once, summed over the checkpoints: anonymous ones, then those of objects.
pub const MAPPED: usize = 2;
/// Where the truth about folios of order 0 begins.
pub const FOLIOS: usize = 8;
/// Words of each order: folios mapped, of these with several owners, anonymous, anonymous and partly mapped.
pub const FOLIO_WORDS: usize = 4;

const TRUTH: usize = FOLIOS + ORDERS * FOLIO_WORDS;

/// Words of a distribution: samples, those that had no answer, sum of errors above, sum of errors below, the largest, one to spare, then the buckets.
pub const SPREAD: usize = 6 + BUCKETS;
/// Of [`SPREAD`]: errors of 2^-20 and above in eighths of an octave, one bucket for less.
pub const BUCKETS: usize = 8 * 40 + 1;

const TALLIES: usize = Question::EACH.len() * ORDERS * VERDICTS;
const BLOCK: usize = TALLIES + 2 * SPREAD + SAID;
const SAID: usize = 5;

/// Length of the whole.
pub const WORDS: usize = TRUTH + SCHEMES * BLOCK;

/// The first of the [`VERDICTS`] words about `question`, asked of folios of `order` under scheme number `scheme`.
#[must_use]
pub const fn tally(scheme: usize, question: Question, order: usize) -> usize {
    TRUTH + scheme * BLOCK + (question as usize * ORDERS + order) * VERDICTS
}

/// The distribution of the errors of Pss.
#[must_use]
pub const fn pss(scheme: usize) -> usize {
    TRUTH + scheme * BLOCK + TALLIES
}

/// The distribution of the errors of Uss.
#[must_use]
pub const fn uss(scheme: usize) -> usize {
    pss(scheme) + SPREAD
}

/// Five words: pages said to be mapped, summed over the checkpoints, anonymous and other; the highest ratio of each to those that were, at any
/// checkpoint, in 2^-20; and partly mapped anonymous folios that are known as such.
#[must_use]
pub const fn said(scheme: usize) -> usize {
    uss(scheme) + SPREAD
}

/// The bucket of an error of `error` x 2^-20.
#[must_use]
pub const fn bucket(error: u64) -> usize {
    if error == 0 {
        return 0;
    }
    let octave = error.ilog2();
    let eighth = if octave >= 3 { (error >> (octave - 3)) & 7 } else { (error << (3 - octave)) & 7 };
    let bucket = 1 + 8 * octave as usize + eighth as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The largest error of bucket `bucket`, in 2^-20.
#[must_use]
pub const fn bucket_end(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let (octave, eighth) = ((bucket - 1) / 8, (bucket - 1) as u64 % 8);
    let end = ((9 + eighth) << octave).div_ceil(8) - 1;
    if end >= 1 << octave { end } else { 1 << octave }
}
