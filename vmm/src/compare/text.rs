//! The comparison in 100 columns.

use std::fmt;

use quire::abi::survey::Question;

use super::Comparison;
use super::answers::Count;
use super::cost::Figure;
use crate::report::Time;

/// The questions as columns of two tables, with the heads of the columns.
pub const TABLES: [[(Question, &str); 7]; 2] = [
    [
        (Question::Mapped, "mapped"),
        (Question::OneLeaf, "one leaf"),
        (Question::Shared, "shared"),
        (Question::Reuse, "reuse"),
        (Question::PageCount, "page count"),
        (Question::MapMax, "mapmax"),
        (Question::Exclusive, "exclusive"),
    ],
    [
        (Question::Charge, "Pss share"),
        (Question::MappedPages, "pages"),
        (Question::HugePages, "huge"),
        (Question::PartiallyMapped, "partly"),
        (Question::Leaves, "leaves"),
        (Question::EarlyStop, "early stop"),
        (Question::ByLevel, "by level"),
    ],
];

/// A part of 1 in percent, with digits that fit.
#[must_use]
pub fn percent(part: f64) -> String {
    match part * 100.0 {
        0.0 => "0%".to_owned(),
        p if p < 0.01 => "<0.01%".to_owned(),
        p if p < 1.0 => format!("{p:.2}%"),
        p if p < 10.0 => format!("{p:.1}%"),
        p => format!("{p:.0}%"),
    }
}

/// What came of one question: wrong answers, else how sure they were.
#[must_use]
pub fn cell(count: &Count) -> String {
    let asked = count.asked() as f64;
    match *count {
        _ if count.asked() == 0 => "-".to_owned(),
        Count { broken: 1.., .. } => "BROKEN".to_owned(),
        Count { wrong: 1.., .. } => percent(count.wrong as f64 / asked),
        _ if count.walk == count.asked() => "walk".to_owned(),
        _ if count.unanswered() == count.asked() => "cannot".to_owned(),
        _ if count.unanswered() > 0 => format!("?{}", percent(count.unanswered() as f64 / asked)),
        Count { right: 1.., .. } => "right".to_owned(),
        _ => "exact".to_owned(),
    }
}

/// A part in percent, where there is one.
#[must_use]
pub fn part(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), percent)
}

fn factor(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// What the tables of answers mean.
pub const LEGEND: &str = "exact: always right and known to be; right: always right here, but the scheme would not swear; N%: wrong; ?N%: no answer \
from the state for so many, right otherwise; walk, cannot: none ever";

/// How far wrong the schemes were: heads, and for each scheme cells. `?` counts processes for which a scheme has no Pss.
#[must_use]
pub fn errors(comparison: &Comparison) -> (Vec<&'static str>, Vec<(&'static str, Vec<String>)>) {
    let heads = vec!["Pss", "p99", "max", "no Pss", "Uss", "max", "shared", "f.excl", "missed", "anon x", "file x"];
    let rows = comparison.schemes.iter().map(|row| {
        let q = &row.queries;
        let unknown = if q.pss.samples == 0 { None } else { Some(q.pss.unknown as f64 / q.pss.samples as f64) };
        let excl = if q.count(Question::Shared).all.unanswered() == q.count(Question::Shared).all.asked() {
            "-".to_owned()
        } else {
            q.false_exclusive.to_string()
        };
        (
            row.name,
            vec![
                part(q.pss.error_mean),
                part(q.pss.error_p99),
                part(q.pss.error_max),
                part(unknown),
                part(q.uss.error_mean),
                part(q.uss.error_max),
                part(q.false_shared),
                excl,
                part(q.missed_partial),
                factor(q.inflation.anon),
                factor(q.inflation.file),
            ],
        )
    });
    (heads, rows.collect())
}

/// What the table of errors means.
pub const ERRORS_LEGEND: &str = "Pss, Uss: mean error of a process at a checkpoint, with its p99 and max, relative to its Pss and its Rss; no Pss: processes with a page of which the state \
says no share; shared: folios of one owner that read as shared; f.excl: folios of several that read as exclusive; missed: partly mapped anonymous \
folios not known as such; anon x, file x: pages counted as mapped for each that is";

/// Lines of at most 100 columns, each after `indent`.
fn wrap(f: &mut fmt::Formatter<'_>, indent: &str, text: &str) -> fmt::Result {
    let mut column = 0;
    for word in text.split(' ') {
        if column + word.len() + 1 > 100 || column == 0 {
            write!(f, "{}{indent}{word}", if column == 0 { "" } else { "\n" })?;
            column = indent.len() + word.len();
        } else {
            write!(f, " {word}")?;
            column += 1 + word.len();
        }
    }
    writeln!(f)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = self.title.as_deref().map(|title| format!(" ({title})")).unwrap_or_default();
        wrap(f, "", &format!("{}{title}", self.trace))?;
        let leaves = if self.small_leaves { ", by 4 KiB leaves" } else { "" };
        writeln!(
            f,
            "{} operations, orders up to {}{leaves}; every scheme asked at {} checkpoints, of {} processes in all",
            self.ops, self.max_order, self.truth.checkpoints, self.truth.processes
        )?;
        for (i, table) in TABLES.iter().enumerate() {
            let head = if i == 0 { "answers" } else { "" };
            write!(f, "\n  {head:<18}")?;
            table.iter().try_for_each(|(_, head)| write!(f, "{head:>11}"))?;
            writeln!(f)?;
            for row in &self.schemes {
                write!(f, "  {:<18}", row.name)?;
                for (question, _) in table {
                    write!(f, "{:>11}", cell(&row.queries.count(*question).all))?;
                }
                writeln!(f)?;
            }
        }
        wrap(f, "  ", LEGEND)?;

        let (heads, rows) = errors(self);
        write!(f, "\n  {:<17}", "how far wrong")?;
        heads.iter().try_for_each(|head| write!(f, "{head:>7}"))?;
        writeln!(f)?;
        for (name, cells) in rows {
            write!(f, "  {name:<17}")?;
            cells.iter().try_for_each(|cell| write!(f, "{cell:>7}"))?;
            writeln!(f)?;
        }
        wrap(f, "  ", ERRORS_LEGEND)?;

        self.write_cost(f)?;
        let a = &self.audit;
        writeln!(
            f,
            "\n  checked while observing: {} recounts with {} comparisons, {} wrong; {} accesses read back",
            a.recounts, a.checks, a.mismatches, a.contents
        )
    }
}

const COSTS: &str =
    "a folio, a page: bytes of state; atomics: locked operations in each call of the count layer, counted";

impl Comparison {
    fn write_cost(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rounds == 0 {
            writeln!(f, "\n  {:<18}{:>8}{:>7}{:>9}", "cost", "a folio", "a page", "atomics")?;
            for row in &self.schemes {
                writeln!(f, "  {:<18}{:>8}{:>7}{:>9.2}", row.name, row.state_bytes, row.page_bytes, row.atomics)?;
            }
            return wrap(f, "  ", COSTS);
        }
        writeln!(
            f,
            "\n  {:<18}{:>8}{:>7}{:>9}{:>9}{:>10}{:>9}{:>9}{:>9}{:>9}",
            "cost", "a folio", "a page", "atomics", "metadata", "operation", "fault", "fork", "teardown", "munmap"
        )?;
        let time = |figure: Option<Figure>| figure.map_or_else(|| "-".to_owned(), |f| Time(f.ns).to_string());
        for row in &self.schemes {
            let Some(cost) = &row.cost else { continue };
            let times = [cost.op, cost.fault, cost.fork, cost.teardown, cost.unmap].map(time);
            write!(
                f,
                "  {:<18}{:>8}{:>7}{:>9.2}{:>9.1}",
                row.name, row.state_bytes, row.page_bytes, row.atomics, cost.metadata.bytes_per_folio
            )?;
            let [first, rest @ ..] = &times;
            write!(f, "{first:>10}")?;
            rest.iter().try_for_each(|time| write!(f, "{time:>9}"))?;
            writeln!(f)?;
        }
        writeln!(f, "\n  {:<18}{:>16}{:>16}{:>16}{:>16}", "ratio to `none`", "operation", "fault", "fork", "teardown")?;
        let ratio = |figure: Option<Figure>| {
            figure.map_or_else(|| "-".to_owned(), |f| format!("{:.2} {:.2}-{:.2}", f.ratio, f.ratio_min, f.ratio_max))
        };
        for row in &self.schemes {
            let Some(cost) = &row.cost else { continue };
            write!(f, "  {:<18}", row.name)?;
            let ratios = [cost.op, cost.fault, cost.fork, cost.teardown].map(ratio);
            ratios.iter().try_for_each(|ratio| write!(f, "{ratio:>16}"))?;
            writeln!(f)?;
        }
        wrap(
            f,
            "  ",
            &format!(
                "{COSTS}; times: each scheme alone, {} rounds, in turn; medians, of ratios within a round with the least and the most; metadata: \
                 bytes of look-up, descriptors and counts for each mapped folio",
                self.rounds
            ),
        )
    }
}
