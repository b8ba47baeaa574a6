//! Two benchmarks beside each other: which rows differ, and by how much at least and at most.
//!
//! What is compared are the medians of turns, in floors where there is a floor: what makes the whole machine slower for a turn or for the whole of one
//! benchmark does not count then. The intervals hold for all rows at once: of two benchmarks of the same thing at most one in twenty pairs
//! shows any difference at all (Bonferroni over the rows).

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bootstrap::{Random, difference};
use super::rows::{Row, Turn};
use super::text::per;
use crate::error::Error;

/// Pairs of benchmarks of the same thing that may seem to differ.
pub const FALSE_ALARMS: f64 = 0.05;

/// What is said of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The second is faster, or less.
    Less,
    /// The second is slower, or more.
    More,
    /// They cannot be told apart.
    Same,
    /// Too few turns to say anything.
    Unknown,
}

/// A row of both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The row, as it is in the first.
    #[serde(skip)]
    row: Row,
    /// What was done.
    pub what: String,
    /// The order, as in [`Row::shape`].
    pub order: String,
    /// What the frames were like.
    pub frames: Option<String>,
    /// The scheme.
    pub scheme: Option<String>,
    /// What the numbers are in.
    pub unit: String,
    /// The second in firsts, both in floors.
    pub ratio: f64,
    /// The ratio is at least this.
    pub low: f64,
    /// The ratio is at most this.
    pub high: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// A setting that the two were measured with differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its name in the file.
    pub name: &'static str,
    /// The first's.
    pub first: String,
    /// The second's.
    pub second: String,
}

/// The comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What the two were not measured alike with.
    pub settings: Vec<Setting>,
    /// Rows that both have.
    pub rows: Vec<Compared>,
    /// Rows that only one has.
    pub alone: usize,
}

/// A benchmark's JSON, as far as it is compared.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Saved {
    rows: Vec<Row>,
    ring: Option<u64>,
    guest_memory: Option<String>,
    stage2: Option<String>,
    vm_memory: Option<u64>,
}

impl Saved {
    /// What changes the numbers of rows that have the same name; `None` where nothing was measured that depends on it.
    fn settings(&self) -> [(&'static str, Option<String>); 4] {
        [
            ("ring", self.ring.map(|ring| ring.to_string())),
            ("guest_memory", self.guest_memory.clone()),
            ("stage2", self.stage2.clone()),
            ("vm_memory", self.vm_memory.map(|bytes| bytes.to_string())),
        ]
    }

    /// Why no comparison with it says anything, if none does.
    fn flaw(&self) -> Option<String> {
        if self.rows.is_empty() {
            return Some("it has no rows".to_owned());
        }
        self.rows.iter().enumerate().find_map(|(i, row)| {
            let of = |what: &str| format!("row {}, {} of order {}: {what}", i + 1, row.what, row.shape());
            let numbers = [Some(row.quire), row.floor].into_iter().flatten();
            let turns = row.turns.iter().flat_map(|turn| [Some(turn.quire), turn.floor]).flatten();
            if let Some(number) = numbers.chain(turns).find(|number| !(number.is_finite() && *number > 0.0)) {
                return Some(of(&format!("{number} is no number above zero")));
            }
            let same = self.rows[..i].iter().position(|other| other.is_same(row))?;
            Some(of(&format!("the same as row {}", same + 1)))
        })
    }
}

/// The benchmark that was written to `file`.
///
/// # Errors
/// [`Error::BenchFile`].
pub fn read(file: &Path) -> Result<Saved, Error> {
    let refuse = |reason: String| Error::BenchFile { file: file.display().to_string(), reason };
    let text = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    let saved: Saved = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    match saved.flaw() {
        None => Ok(saved),
        Some(flaw) => Err(refuse(flaw)),
    }
}

/// Compares two benchmarks.
#[must_use]
pub fn compare(first: &Saved, second: &Saved) -> Comparison {
    let settings = first.settings().into_iter().zip(second.settings());
    let settings = settings.filter_map(|((name, first), (_, second))| {
        let (first, second) = (first?, second?);
        (first != second).then_some(Setting { name, first, second })
    });
    let settings = settings.collect();
    let (first, second) = (&first.rows, &second.rows);
    let pairs: Vec<(&Row, &Row)> =
        first.iter().filter_map(|row| Some((row, second.iter().find(|other| other.is_same(row))?))).collect();
    let alpha = FALSE_ALARMS / pairs.iter().filter(|(row, _)| !row.turns.is_empty()).count().max(1) as f64;
    let mut random = Random::new(1);
    let rows: Vec<_> = pairs.iter().map(|(a, b)| compared(a, b, alpha, &mut random)).collect();
    Comparison { settings, alone: first.len() + second.len() - 2 * rows.len(), rows }
}

fn compared(a: &Row, b: &Row, alpha: f64, random: &mut Random) -> Compared {
    let (ratio, low, high, verdict) = if a.turns.is_empty() && b.turns.is_empty() {
        // Counted, not timed: the same at every run.
        let ratio = b.quire / a.quire;
        (ratio, ratio, ratio, verdict(ratio, ratio))
    } else {
        let has_floor = a.turns.iter().chain(&b.turns).all(|turn| turn.floor.is_some());
        let logs = |row: &Row| -> Vec<f64> {
            let value = |turn: &Turn| turn.quire / turn.floor.filter(|_| has_floor).unwrap_or(1.0);
            row.turns.iter().map(|turn| value(turn).ln()).collect()
        };
        match difference(&logs(a), &logs(b), alpha, random) {
            Some(found) => {
                let [ratio, low, high] = [found.value, found.low, found.high].map(f64::exp);
                (ratio, low, high, verdict(low, high))
            }
            None => (b.quire / a.quire, 0.0, f64::INFINITY, Verdict::Unknown),
        }
    };
    Compared {
        what: a.what.clone(),
        order: a.shape(),
        frames: a.frames.clone(),
        scheme: a.scheme.clone(),
        unit: a.unit.clone(),
        row: a.clone(),
        ratio,
        low,
        high,
        verdict,
    }
}

fn verdict(low: f64, high: f64) -> Verdict {
    match (low, high) {
        (low, _) if low > 1.0 => Verdict::More,
        (_, high) if high < 1.0 => Verdict::Less,
        _ => Verdict::Same,
    }
}

/// An interval; ends that say nothing as such.
fn interval(low: f64, high: f64) -> String {
    let low = if low < 0.01 { "?".to_owned() } else { format!("{low:.3}") };
    let high = if high > 100.0 { "?".to_owned() } else { format!("{high:.3}") };
    format!("{low} to {high}")
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<26} {:<12} {:<10} {:<18} {:<5} {:>7}  {:<20} verdict",
            "what", "order", "frames", "scheme", "per", "ratio", "interval"
        )?;
        for row in &self.rows {
            let verdict = match (row.verdict, row.row.unit.starts_with("bytes")) {
                (Verdict::Same, _) => "",
                (Verdict::Less, false) => "faster",
                (Verdict::More, false) => "slower",
                (Verdict::Less, true) => "less",
                (Verdict::More, true) => "more",
                (Verdict::Unknown, _) => "too few turns",
            };
            writeln!(
                f,
                "{:<26} {:<12} {:<10} {:<18} {:<5} {:>7.3}  {:<20} {verdict}",
                row.what,
                row.order,
                row.frames.as_deref().unwrap_or("-"),
                row.scheme.as_deref().unwrap_or("-"),
                per(&row.row),
                row.ratio,
                interval(row.low, row.high),
            )?;
        }
        let count = |wanted: Verdict| self.rows.iter().filter(|row| row.verdict == wanted).count();
        write!(
            f,
            "\nof {} rows the second has {} slower or more, {} faster or less; {} cannot be told apart",
            self.rows.len(),
            count(Verdict::More),
            count(Verdict::Less),
            count(Verdict::Same)
        )?;
        if count(Verdict::Unknown) > 0 {
            write!(f, ", {} have too few turns", count(Verdict::Unknown))?;
        }
        if self.alone > 0 {
            write!(f, "; {} rows stand in one of them only", self.alone)?;
        }
        if !self.settings.is_empty() {
            let each = |setting: &Setting| format!("{} {} and {}", setting.name, setting.first, setting.second);
            let all: Vec<_> = self.settings.iter().map(each).collect();
            write!(f, "\nnot measured alike, so the verdicts are of that too: {}", all.join("; "))?;
        }
        writeln!(
            f,
            "\nratios are of medians of turns, in floors where there is one; by chance, at most {:.0} % of pairs of equals show any difference; ? is below 0.01 or above 100",
            100.0 * FALSE_ALARMS
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Comparison, Random, Row, Saved, Turn, Verdict};

    fn saved(rows: &[Row]) -> Saved {
        Saved { rows: rows.to_vec(), ..Saved::default() }
    }

    fn compare(first: &[Row], second: &[Row]) -> Comparison {
        super::compare(&saved(first), &saved(second))
    }

    /// A benchmark of `rows` rows as a noisy machine gives it: all turns drift together, each row has noise of its own, and now and then a turn is an
    /// outlier. `slower` is what the first row is multiplied by.
    fn synthetic(rows: usize, turns: usize, slower: f64, random: &mut Random) -> Vec<Row> {
        let mut uniform = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        let mut normal = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
        let level = (0.3 * normal()).exp();
        let drift: Vec<f64> = (0..turns).map(|_| level * (0.1 * normal()).exp()).collect();
        let row = |i: usize| {
            let noisy = |drift: f64, value: f64, normal: &mut dyn FnMut() -> f64| {
                let outlier = if normal() > 1.6 { 1.5 } else { 1.0 };
                value * drift * outlier * (0.03 * normal()).exp()
            };
            let ours = if i == 0 { 150.0 * slower } else { 150.0 };
            let turns = drift
                .iter()
                .map(|&drift| Turn {
                    quire: noisy(drift, ours, &mut normal),
                    floor: Some(noisy(drift, 100.0, &mut normal)),
                })
                .collect();
            Row {
                what: format!("row {i}"),
                order: Some(0),
                leaf: Some(0),
                frames: None,
                scheme: None,
                headline: true,
                quire: 150.0,
                floor: Some(100.0),
                peers: BTreeMap::new(),
                unit: "ns".to_owned(),
                percentiles: None,
                floor_percentiles: None,
                turns,
                histogram: Vec::new(),
            }
        };
        (0..rows).map(row).collect()
    }

    #[test]
    fn equals_seldom_seem_to_differ() {
        let mut random = Random::new(7);
        let pairs = 200;
        let alarms = (0..pairs)
            .filter(|_| {
                let [a, b] = [(); 2].map(|()| synthetic(8, 10, 1.0, &mut random));
                compare(&a, &b).rows.iter().any(|row| row.verdict != Verdict::Same)
            })
            .count();
        println!("{alarms} of {pairs} pairs of equals seemed to differ");
        assert!(alarms * 20 <= pairs, "{alarms} of {pairs}");
    }

    #[test]
    fn what_is_slower_is_found() {
        let mut random = Random::new(8);
        let pairs = 40;
        let found = (0..pairs)
            .filter(|_| {
                let (a, b) = (synthetic(8, 10, 1.0, &mut random), synthetic(8, 10, 2.0, &mut random));
                compare(&a, &b).rows[0].verdict == Verdict::More
            })
            .count();
        println!("{found} of {pairs} found");
        assert!(found * 10 >= pairs * 9, "{found} of {pairs}");
    }

    #[test]
    fn rows_of_one_side_are_counted() {
        let mut random = Random::new(9);
        let a = synthetic(3, 10, 1.0, &mut random);
        let found = compare(&a, &a[..2]);
        assert_eq!((found.rows.len(), found.alone), (2, 1));
        assert!(found.rows.iter().all(|row| row.verdict == Verdict::Same && row.ratio == 1.0));
        assert!(found.to_string().contains("1 rows stand in one of them only"));
    }

    #[test]
    fn rows_that_say_nothing_are_flaws() {
        let mut random = Random::new(11);
        let sound = synthetic(2, 3, 1.0, &mut random);
        assert_eq!(saved(&sound).flaw(), None);
        let spoilt = |spoil: fn(&mut Vec<Row>)| {
            let mut rows = sound.clone();
            spoil(&mut rows);
            saved(&rows).flaw().unwrap()
        };
        assert_eq!(spoilt(Vec::clear), "it has no rows");
        assert_eq!(spoilt(|rows| rows[1].quire = 0.0), "row 2, row 1 of order 0: 0 is no number above zero");
        assert!(spoilt(|rows| rows[0].floor = Some(f64::INFINITY)).contains("inf is no number"));
        assert!(spoilt(|rows| rows[0].turns[2].quire = -1.0).contains("-1 is no number"));
        assert!(spoilt(|rows| rows[0].turns[1].floor = Some(f64::NAN)).contains("NaN is no number"));
        assert_eq!(spoilt(|rows| rows[1] = rows[0].clone()), "row 2, row 0 of order 0: the same as row 1");
    }

    #[test]
    fn other_settings_are_named() {
        let mut random = Random::new(12);
        let rows = synthetic(1, 3, 1.0, &mut random);
        let a = Saved { ring: Some(0), guest_memory: Some("anon".to_owned()), ..saved(&rows) };
        let b = Saved { ring: Some(3), stage2: Some("shadow".to_owned()), ..a.clone() };
        let found = super::compare(&a, &b);
        // What only one has measured has no rows in the other.
        assert_eq!(found.settings.len(), 1);
        assert!(found.to_string().contains("\nnot measured alike, so the verdicts are of that too: ring 0 and 3\n"));
        assert!(!super::compare(&a, &a).to_string().contains("not measured alike"));
    }

    #[test]
    fn counted_rows_differ_by_their_number_alone() {
        let mut random = Random::new(10);
        let mut a = synthetic(1, 0, 1.0, &mut random);
        a[0].unit = "bytes per frame".to_owned();
        let mut b = a.clone();
        b[0].quire *= 1.01;
        assert_eq!(compare(&a, &b).rows[0].verdict, Verdict::More);
        assert_eq!(compare(&a, &a).rows[0].verdict, Verdict::Same);
    }
}
