//! What the schemes answered, out of the words of a survey.

use std::collections::BTreeMap;

use quire::abi::survey::{self, Question, Verdict};
use quire::mapcount::Scheme;
use serde::Serialize;

/// How often a question was answered how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Exactly, and so it was.
    pub exact: u64,
    /// Rightly, though the scheme would not have sworn to it.
    pub right: u64,
    /// Wrongly.
    pub wrong: u64,
    /// Of these, with too much, or with yes for no.
    pub more: u64,
    /// And with too little, or no for yes.
    pub less: u64,
    /// Only by a walk.
    pub walk: u64,
    /// Not at all.
    pub cannot: u64,
    /// As exact, and wrong: a bug.
    pub broken: u64,
}

impl Count {
    fn of(words: &[u64]) -> Self {
        let word = |verdict: Verdict| words[verdict as usize];
        let (more, less) = (word(Verdict::More), word(Verdict::Less));
        Self {
            exact: word(Verdict::Exact),
            right: word(Verdict::Right),
            wrong: more + less,
            more,
            less,
            walk: word(Verdict::Walk),
            cannot: word(Verdict::Cannot),
            broken: word(Verdict::Broken),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            exact: self.exact + other.exact,
            right: self.right + other.right,
            wrong: self.wrong + other.wrong,
            more: self.more + other.more,
            less: self.less + other.less,
            walk: self.walk + other.walk,
            cannot: self.cannot + other.cannot,
            broken: self.broken + other.broken,
        }
    }

    /// How often it was asked.
    #[must_use]
    pub const fn asked(&self) -> u64 {
        self.exact + self.right + self.wrong + self.walk + self.cannot + self.broken
    }

    /// How often the state had no answer.
    #[must_use]
    pub const fn unanswered(&self) -> u64 {
        self.walk + self.cannot
    }
}

/// A question in all, and by order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Query {
    /// In all.
    #[serde(flatten)]
    pub all: Count,
    /// Of folios of each order that there were.
    pub by_order: Vec<OfOrder>,
}

/// Answers about folios of one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfOrder {
    /// The order.
    pub order: usize,
    /// The answers.
    #[serde(flatten)]
    pub count: Count,
}

/// Errors of a sum, one sample for each process at each checkpoint, as parts of 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Processes, summed over the checkpoints.
    pub samples: u64,
    /// Of these, where the scheme's state had no answer for some page.
    pub unknown: u64,
    /// Mean of the errors without their signs; nothing when no sample had an answer.
    pub error_mean: Option<f64>,
    /// 99 of 100 are at most this (and up to an eighth less).
    pub error_p99: Option<f64>,
    /// The largest.
    pub error_max: Option<f64>,
    /// Mean with signs: above 0 the scheme says too much.
    pub bias: Option<f64>,
    /// How many samples are at most that far off: pairs, ascending.
    pub at_most: Vec<(f64, u64)>,
}

/// 1 in the fixed point of errors.
const ONE: f64 = (1u64 << 20) as f64;

impl Spread {
    fn of(words: &[u64]) -> Self {
        let (samples, unknown, above, below) = (words[0], words[1], words[2] as f64 / ONE, words[3] as f64 / ONE);
        let known = samples - unknown;
        let some = |value: f64| (known > 0).then_some(value);
        let mut sum = 0;
        let mut at_most = Vec::new();
        for (bucket, &count) in words[6..][..survey::BUCKETS].iter().enumerate().filter(|(_, count)| **count > 0) {
            sum += count;
            // No bucket reaches beyond the largest.
            at_most.push((survey::bucket_end(bucket).min(words[4]) as f64 / ONE, sum));
        }
        let p99 = at_most.iter().find(|(_, sum)| sum * 100 >= known * 99).map(|(error, _)| *error);
        Self {
            samples,
            unknown,
            error_mean: some((above + below) / known as f64),
            error_p99: p99,
            error_max: some(words[4] as f64 / ONE),
            bias: some((above - below) / known as f64),
            at_most,
        }
    }
}

/// Pages said to be mapped for each that was: AnonPages and Mapped. 1 is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Inflation {
    /// Of anonymous memory, over all checkpoints; nothing when the scheme does not say, or there was none.
    pub anon: Option<f64>,
    /// Of objects.
    pub file: Option<f64>,
    /// The highest at any checkpoint.
    pub anon_max: Option<f64>,
    /// See `anon_max`.
    pub file_max: Option<f64>,
}

/// All that a scheme answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Queries {
    /// By the name of the question.
    #[serde(flatten)]
    pub counts: BTreeMap<&'static str, Query>,
    /// Errors of Pss, relative to it.
    pub pss: Spread,
    /// Errors of Uss, relative to Rss.
    pub uss: Spread,
    /// Errors of the statistics.
    pub inflation: Inflation,
    /// Part of the folios of one owner that read as shared; nothing when the scheme never says.
    pub false_shared: Option<f64>,
    /// Folios of several owners that read as exclusive.
    pub false_exclusive: u64,
    /// Part of the partly mapped anonymous folios that are not known as such; or told by a walk only; nothing when there were none.
    pub missed_partial: Option<f64>,
}

/// Mapped folios of one order, summed over the checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Folios {
    /// The order.
    pub order: usize,
    /// Folios.
    pub folios: u64,
    /// Of these, with several owners.
    pub shared: u64,
    /// Anonymous.
    pub anon: u64,
    /// Anonymous and partly mapped.
    pub partial: u64,
}

/// What was there to be known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Truth {
    /// Checkpoints.
    pub checkpoints: u64,
    /// Processes with mapped pages, summed over them.
    pub processes: u64,
    /// Anonymous pages mapped, each once, summed over the checkpoints.
    pub anon_pages: u64,
    /// Pages of objects.
    pub file_pages: u64,
    /// Folios by order.
    pub folios: Vec<Folios>,
}

/// The name of a question in tables and JSON.
#[must_use]
pub const fn name(question: Question) -> &'static str {
    match question {
        Question::Mapped => "mapped",
        Question::OneLeaf => "one_leaf",
        Question::Shared => "shared",
        Question::Reuse => "reuse",
        Question::PageCount => "page_count",
        Question::MapMax => "mapmax",
        Question::Exclusive => "exclusive",
        Question::Charge => "charge",
        Question::MappedPages => "mapped_pages",
        Question::HugePages => "huge_pages",
        Question::PartiallyMapped => "partially_mapped",
        Question::Leaves => "leaves",
        Question::EarlyStop => "early_stop",
        Question::ByLevel => "by_level",
    }
}

impl Truth {
    /// The truth in the words of a survey.
    #[must_use]
    pub fn of(words: &[u64]) -> Self {
        let folios = (0..survey::ORDERS).map(|order| {
            let at = &words[survey::FOLIOS + order * survey::FOLIO_WORDS..];
            Folios { order, folios: at[0], shared: at[1], anon: at[2], partial: at[3] }
        });
        Self {
            checkpoints: words[survey::CHECKPOINTS],
            processes: words[survey::PROCESSES],
            anon_pages: words[survey::MAPPED],
            file_pages: words[survey::MAPPED + 1],
            folios: folios.filter(|row| row.folios > 0).collect(),
        }
    }

    fn sum(&self, of: impl Fn(&Folios) -> u64) -> u64 {
        self.folios.iter().map(of).sum()
    }
}

impl Queries {
    /// What `scheme` answered.
    #[must_use]
    pub fn of(words: &[u64], scheme: Scheme, truth: &Truth) -> Self {
        let scheme = scheme as usize;
        let query = |question| {
            let by_order = (0..survey::ORDERS)
                .map(|order| OfOrder { order, count: Count::of(&words[survey::tally(scheme, question, order)..]) })
                .filter(|row| row.count.asked() > 0)
                .collect::<Vec<_>>();
            Query { all: by_order.iter().fold(Count::default(), |sum, row| sum.plus(row.count)), by_order }
        };
        let counts: BTreeMap<_, _> = Question::EACH.map(|question| (name(question), query(question))).into();
        let shared = counts[name(Question::Shared)].all;
        let alone = truth.sum(|row| row.folios - row.shared);
        let partly = truth.sum(|row| row.partial);
        let says_pages = counts[name(Question::MappedPages)].all.unanswered() == 0;
        let said = &words[survey::said(scheme)..][..5];
        let part = |part: u64, of: u64| (of > 0).then(|| part as f64 / of as f64);
        let inflation = |kind: usize, mapped| part(said[kind], mapped).filter(|_| says_pages);
        let highest = |kind: usize, mapped| (says_pages && mapped > 0).then(|| said[2 + kind] as f64 / ONE);
        Self {
            pss: Spread::of(&words[survey::pss(scheme)..]),
            uss: Spread::of(&words[survey::uss(scheme)..]),
            inflation: Inflation {
                anon: inflation(0, truth.anon_pages),
                file: inflation(1, truth.file_pages),
                anon_max: highest(0, truth.anon_pages),
                file_max: highest(1, truth.file_pages),
            },
            false_shared: part(shared.more, alone).filter(|_| shared.unanswered() < shared.asked()),
            false_exclusive: shared.less,
            // Who has no answer misses it too.
            missed_partial: part(partly - said[4], partly),
            counts,
        }
    }

    /// The answers to `question`.
    #[must_use]
    pub fn count(&self, question: Question) -> &Query {
        &self.counts[name(question)]
    }
}
