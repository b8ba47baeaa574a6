//! What a benchmark found, as rows: the same for text, page, JSON and comparison.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::doctor::Host;

/// A distribution. Whatever the unit is, it is recorded in thousandths of it, to three digits.
#[derive(Clone, Debug)]
pub struct Distribution(Histogram<u64>);

impl Default for Distribution {
    fn default() -> Self {
        let mut histogram = Histogram::new(3).expect("three digits are allowed");
        histogram.auto(true);
        Self(histogram)
    }
}

impl Distribution {
    /// Adds a value.
    pub fn record(&mut self, value: f64) {
        // Cannot fail: the histogram grows with what it records.
        let _ = self.0.record((value * 1000.0).round() as u64);
    }

    /// How many values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that a part `part` of all are at most.
    #[must_use]
    pub fn at(&self, part: f64) -> f64 {
        self.0.value_at_quantile(part) as f64 / 1000.0
    }

    /// Its percentiles; `None` when it is empty.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        (!self.0.is_empty()).then(|| Percentiles {
            count: self.count(),
            p50: self.at(0.5),
            p90: self.at(0.9),
            p99: self.at(0.99),
            p999: self.at(0.999),
            max: self.0.max() as f64 / 1000.0,
        })
    }

    /// The values that there are, ascending, each with how many there are of it.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to() as f64 / 1000.0, step.count_at_value())).collect()
    }
}

/// What rows of metadata are called: of processes alone; with the classes of VMs counted, of folios that no VM has mapped; of folios that one has.
pub const METADATA: [&str; 3] = ["metadata", "metadata_compact", "metadata_grown"];

/// Percentiles, in the unit of the row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many samples.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 90 of 100 are at most this.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The most.
    pub max: f64,
}

/// The medians of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Ours.
    pub quire: f64,
    /// The floor's.
    pub floor: Option<f64>,
}

/// One quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was done.
    pub what: String,
    /// Order of the folios; `None` where folios have no part in it.
    pub order: Option<u8>,
    /// log2 of the pages that each leaf maps.
    pub leaf: Option<u8>,
    /// What the frames were like.
    pub frames: Option<String>,
    /// The scheme.
    pub scheme: Option<String>,
    /// Whether this is the figure to quote of those that differ in their frames alone.
    pub headline: bool,
    /// Ours: the median.
    pub quire: f64,
    /// The floor's median; `None` where there is nothing to be a floor.
    pub floor: Option<f64>,
    /// Others that do the same, by name.
    pub peers: BTreeMap<String, f64>,
    /// What the numbers are in.
    pub unit: String,
    /// Ours.
    pub percentiles: Option<Percentiles>,
    /// The floor's.
    pub floor_percentiles: Option<Percentiles>,
    /// Medians of each turn, for comparisons.
    pub turns: Vec<Turn>,
    /// All samples of ours: a value and how many there were of it.
    pub histogram: Vec<(f64, u64)>,
}

impl Row {
    /// Ours in floors.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.floor.filter(|floor| *floor > 0.0).map(|floor| self.quire / floor)
    }

    /// Where a folio of its shape stands among others: `4`, `9`, `9 (2M leaf)`.
    #[must_use]
    pub fn shape(&self) -> String {
        self.order.map_or_else(|| "-".to_owned(), |order| super::text::shape_of(self.leaf.unwrap_or(0), order))
    }

    /// The same times `factor`, which makes `unit` of it.
    #[must_use]
    pub fn scaled(&self, factor: f64, unit: &str) -> Self {
        let percentiles = |p: Percentiles| Percentiles {
            count: p.count,
            p50: p.p50 * factor,
            p90: p.p90 * factor,
            p99: p.p99 * factor,
            p999: p.p999 * factor,
            max: p.max * factor,
        };
        let turn = |turn: &Turn| Turn { quire: turn.quire * factor, floor: turn.floor.map(|floor| floor * factor) };
        Self {
            quire: self.quire * factor,
            floor: self.floor.map(|floor| floor * factor),
            unit: unit.to_owned(),
            percentiles: self.percentiles.map(percentiles),
            floor_percentiles: self.floor_percentiles.map(percentiles),
            turns: self.turns.iter().map(turn).collect(),
            histogram: self.histogram.iter().map(|&(value, count)| (value * factor, count)).collect(),
            ..self.clone()
        }
    }

    /// Whether `other` is the same quantity, in another benchmark.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.order, self.leaf) == (other.order, other.leaf)
            && (&self.what, &self.unit) == (&other.what, &other.unit)
            && (&self.frames, &self.scheme) == (&other.frames, &other.scheme)
    }
}

/// Where the time of a fault goes, in nanoseconds, medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layers {
    /// Which fault.
    pub what: &'static str,
    /// Order of the folio.
    pub order: u8,
    /// log2 of the pages that each leaf maps.
    pub leaf: u8,
    /// The scheme.
    pub scheme: &'static str,
    /// From before the access until after it, with the stamps inside.
    pub total: f64,
    /// Less the manager: exception, return, the access, and what the host's MMU does meanwhile.
    pub exception_and_return: f64,
    /// The manager.
    pub manager: f64,
    /// Of it: frames found.
    pub allocation: f64,
    /// Frames cleared, or a page copied.
    pub zeroing: f64,
    /// The scheme told.
    pub accounting: f64,
    /// The table found and locked, entries stored.
    pub table_stores: f64,
    /// Translations dropped.
    pub flush: f64,
    /// Of the manager, what none of these explains: locks, vma look-up, walk, descriptor; less than nothing where a loop is slower than the same
    /// thing within a fault.
    pub residue: f64,
    /// What a fault costs more where the host has to give the memory; beside the total, which has none of it.
    pub stage2: Option<f64>,
}

/// Where the time of a nested fault goes, in nanoseconds, medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NestedLayers {
    /// Order of the folio, at every level.
    pub order: u8,
    /// log2 of the pages that each leaf maps.
    pub leaf: u8,
    /// The scheme.
    pub scheme: &'static str,
    /// From before the access until after it.
    pub total: f64,
    /// The floor: the same two round trips, with handlers that store the entries.
    pub exception_and_return: f64,
    /// Level 0 finds that the guest's own table lacks the page.
    pub reflect: f64,
    /// The guest's manager, level 1, serves its own fault.
    pub guest: f64,
    /// The VMM's space makes the memory.
    pub host: f64,
    /// Stage-2 leaves are entered.
    pub stage2: f64,
    /// Leaves of the composed table are entered.
    pub compose: f64,
    /// What these leave of the total: second attempts, and what the host's MMU does meanwhile.
    pub residue: f64,
    /// Of all that, the ledger: the scheme told at three levels.
    pub accounting: f64,
    /// That as a part of the total.
    pub part_of_fault: f64,
    /// And as a part of what the levels take, round trips apart.
    pub part_of_levels: f64,
}

/// What counting costs an operation: `total` beside `none`, turn by turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ledger {
    /// What was done.
    pub what: &'static str,
    /// Order of the folios.
    pub order: u8,
    /// log2 of the pages that each leaf maps.
    pub leaf: u8,
    /// Median of the turns' ratios of their medians.
    pub to_none: f64,
    /// The quartiles around it.
    pub quartiles: [f64; 2],
}

/// What recording itself costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recording {
    /// Nanoseconds of a pair of time stamps, which every sample contains.
    pub stamps_ns: f64,
    /// That as a part of the fastest fault's median.
    pub part_of_fault: f64,
}

/// A benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// Version of this program.
    pub quire: &'static str,
    /// Where it ran.
    pub backend: &'static str,
    /// Ring of the manager.
    pub ring: Option<u64>,
    /// The host.
    pub host: Host,
    /// The host's memory behind the guest's.
    pub guest_memory: &'static str,
    /// How often everything was measured, in VMs of their own.
    pub turns: u64,
    /// Pages of folios in a round.
    pub pages: u64,
    /// Faults that were of another kind than their row says.
    pub otherwise: u64,
    /// Comparisons of the recounts, none of which failed.
    pub checks: u64,
    /// What recording costs.
    pub recording: Option<Recording>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Where the time of a fault goes.
    pub layers: Vec<Layers>,
    /// How the stage-2 tables of the rows of VMs are written; `None` without such rows.
    pub stage2: Option<&'static str>,
    /// Bytes of the VM whose end was timed.
    pub vm_memory: Option<u64>,
    /// Where the time of a nested fault goes.
    pub nested_layers: Vec<NestedLayers>,
    /// What counting costs on VMs.
    pub ledger: Vec<Ledger>,
}

impl Bench {
    /// Rows of `what` that are to be quoted.
    pub fn headlines<'a>(&'a self, what: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.headline && row.what == what)
    }

    /// The first row that is nonsense, if any is: a number that is none, or nothing measured.
    #[must_use]
    pub fn nonsense(&self) -> Option<&Row> {
        self.rows.iter().find(|row| {
            let numbers = [Some(row.quire), row.floor, row.percentiles.map(|p| p.max)];
            numbers.into_iter().flatten().any(|number| !number.is_finite() || number <= 0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Distribution;

    #[test]
    fn percentiles_are_of_the_values() {
        let mut all = Distribution::default();
        assert_eq!(all.percentiles(), None);
        (1..=1000).for_each(|i| all.record(f64::from(i) / 10.0));
        let found = all.percentiles().unwrap();
        assert_eq!(found.count, 1000);
        for (value, expected) in [(found.p50, 50.0), (found.p90, 90.0), (found.p99, 99.0), (found.max, 100.0)] {
            assert!((value / expected - 1.0).abs() < 2e-3, "{value} {expected}");
        }
        assert_eq!(all.buckets().iter().map(|bucket| bucket.1).sum::<u64>(), 1000);
    }
}
