//! Reads what [looks](quire::trace::look) say.

use std::collections::BTreeMap;
use std::fmt;

use quire::mapcount::{Accounting, Oracle, Scheme};
use quire::trace::look::PREFIX;
use serde::Serialize;

/// What a recount found of the folio, in the words of SCHEMES.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "SCHEMES.md, ground truth, has them all")]
pub struct Truth {
    pub m: u64,
    pub t: u64,
    pub e: u64,
    pub u: u64,
    pub k: u64,
    pub v: u64,
    pub o: u64,
    /// Of M, the leaves of order 0, 9 and 18.
    pub by_level: [u64; 3],
}

/// Consecutive pages with the same value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Leaves over each.
    pub leaves: u64,
    /// How many pages.
    pub pages: u64,
}

/// Who maps the folio.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Owner {
    /// p is the first process of the trace, c the second, then c2 and so on.
    pub name: String,
    /// Its number in counters.
    pub number: u64,
    /// First page of the folio and number of pages, in order of address.
    pub maps: Vec<(u64, u64)>,
    /// Pages that are charged to it, each divided by the leaves over it.
    pub pss: f64,
}

/// How sure an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sure {
    /// It is so.
    Exact,
    /// It may be wrong, to one side.
    Errs,
    /// It may be wrong to either side.
    About,
    /// Only a walk can tell.
    Walk,
    /// Nothing tells.
    Cannot,
}

/// The value of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Word {
    /// Yes or no.
    Is(bool),
    /// A number.
    Count(u64),
    /// Any other.
    Text(String),
}

impl Word {
    fn read(text: &str) -> Self {
        match text {
            "yes" => Self::Is(true),
            "no" => Self::Is(false),
            _ => text.parse().map_or_else(|_| Self::Text(text.replace('-', " ")), Self::Count),
        }
    }

    /// A share such as `1/2` as a number.
    fn share(&self) -> Option<f64> {
        let Self::Text(text) = self else { return None };
        let (pages, of) = text.split_once('/')?;
        Some(pages.parse::<f64>().ok()? / of.parse::<f64>().ok()?)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(is) => f.write_str(if *is { "yes" } else { "no" }),
            Self::Count(count) => count.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    /// How sure it is.
    pub sure: Sure,
    /// What it is.
    pub value: Option<Word>,
}

impl Said {
    fn read(text: &str) -> Option<Self> {
        let (sure, value) = text.split_once(':').map_or((text, None), |(sure, value)| (sure, Some(Word::read(value))));
        let sure = match sure {
            "exact" => Sure::Exact,
            "errs" => Sure::Errs,
            "about" => Sure::About,
            "walk" => Sure::Walk,
            "cannot" => Sure::Cannot,
            _ => return None,
        };
        Some(Self { sure, value })
    }
}

/// Answers by question.
pub type Answered = BTreeMap<String, Said>;

/// What one scheme told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// Its name.
    pub scheme: String,
    /// It cannot represent the shape: no such folio was mapped under it.
    pub refused: bool,
    /// Its counters, owners by name.
    pub counters: String,
    /// What it says of the folio.
    pub answers: Answered,
    /// What it says of so many pages, one run after the other.
    pub pages: Vec<(u64, Answered)>,
    /// Pages that it would charge to each owner.
    pub pss: BTreeMap<String, f64>,
}

impl Told {
    pub(super) fn refused(scheme: &str) -> Self {
        Self { refused: true, ..Self::new(scheme, String::new()) }
    }

    fn new(scheme: &str, counters: String) -> Self {
        let (answers, pages, pss) = Default::default();
        Self { scheme: scheme.to_owned(), refused: false, counters, answers, pages, pss }
    }
}

/// All that one look says.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) label: String,
    pub(super) order: u64,
    pub(super) references: u64,
    pub(super) cached: bool,
    pub(super) truth: Truth,
    pub(super) cover: Vec<Run>,
    pub(super) owners: Vec<Owner>,
    pub(super) schemes: Vec<Told>,
}

/// The looks in a log, in order; or the line that does not read.
pub(super) fn read(log: &str) -> Result<Vec<Look>, String> {
    let mut looks: Vec<Look> = Vec::new();
    for line in log.lines() {
        let Some(rest) = line.strip_prefix("quire: ").unwrap_or(line).strip_prefix(PREFIX) else { continue };
        read_line(rest.trim_start(), &mut looks).ok_or_else(|| format!("this line does not read: {line}"))?;
    }
    looks.iter_mut().for_each(Look::finish);
    Ok(looks)
}

fn read_line(line: &str, looks: &mut Vec<Look>) -> Option<()> {
    let (label, line) = line.split_once(' ')?;
    let (what, rest) = line.split_once(' ')?;
    let mut words = rest.split(' ');
    if what == "folio" {
        let mut number = || words.next()?.parse::<u64>().ok();
        let (order, references, cached) = (number()?, number()?, number()? == 1);
        looks.push(Look { label: label.to_owned(), order, references, cached, ..Look::default() });
        return Some(());
    }
    let look = looks.last_mut().filter(|look| look.label == label)?;
    match what {
        "truth" => {
            let mut number = || words.next()?.parse().ok();
            let [m, t, e, u, k, v, o] = [(); 7].map(|()| number());
            let levels: Vec<u64> = words.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
            let by_level = levels.try_into().ok()?;
            look.truth = Truth { m: m?, t: t?, e: e?, u: u?, k: k?, v: v?, o: o?, by_level };
        }
        "cover" => {
            look.cover =
                words.map(|run| pair(run, 'x').map(|(leaves, pages)| Run { leaves, pages })).collect::<Option<_>>()?
        }
        "owner" => {
            let name = match words.next()?.parse::<u64>().ok()? {
                0 => "p".to_owned(),
                1 => "c".to_owned(),
                child => format!("c{child}"),
            };
            let number = words.next()?.parse().ok()?;
            let maps = words.map(|run| pair(run, '+')).collect::<Option<_>>()?;
            look.owners.push(Owner { name, number, maps, pss: 0.0 });
        }
        "counters" => {
            let scheme = words.next()?;
            let counters: Vec<_> = words.map(|word| look.named(word)).collect();
            look.schemes.push(Told::new(scheme, counters.join(" ")));
        }
        "answers" | "pages" => {
            let told = look.schemes.last_mut().filter(|told| Some(told.scheme.as_str()) == words.next())?;
            let run = if what == "pages" { words.next()?.parse().ok()? } else { 0 };
            let answers = words
                .map(|word| {
                    word.split_once('=').and_then(|(question, said)| Some((question.to_owned(), Said::read(said)?)))
                })
                .collect::<Option<Answered>>()?;
            if what == "pages" {
                told.pages.push((run, answers));
            } else {
                told.answers = answers;
            }
        }
        _ => return None,
    }
    Some(())
}

fn pair(text: &str, between: char) -> Option<(u64, u64)> {
    let (a, b) = text.split_once(between)?;
    Some((a.parse().ok()?, b.parse().ok()?))
}

impl Look {
    /// A word of counters, with the number of an owner's slot made its name.
    fn named(&self, word: &str) -> String {
        pair(word, ':')
            .and_then(|(number, leaves)| Some((self.owners.iter().find(|owner| owner.number == number)?, leaves)))
            .map_or_else(|| word.to_owned(), |(owner, leaves)| format!("{}:{leaves}", owner.name))
    }

    fn finish(&mut self) {
        // The oracle is the recount's own check, and its counters are the truth.
        self.schemes.retain(|told| told.scheme != Oracle::NAME);
        self.schemes.sort_by_key(|told| Scheme::EACH.iter().position(|scheme| scheme.name() == told.scheme));
        for owner in &mut self.owners {
            let exact = || self.cover.iter().map(|run| (run.pages, Some(1.0 / run.leaves as f64)));
            owner.pss = charged(&owner.maps, exact).unwrap_or_default();
            for told in &mut self.schemes {
                let charge = |said: &Answered| said.get("charge")?.value.as_ref()?.share();
                let charges = || told.pages.iter().map(|(pages, said)| (*pages, charge(said)));
                if let Some(pss) = charged(&owner.maps, charges) {
                    told.pss.insert(owner.name.clone(), pss);
                }
            }
        }
    }
}

/// What is charged for the pages of `maps`, when runs of pages are charged so much a page; `None` when it is unknown for one.
fn charged<I: Iterator<Item = (u64, Option<f64>)>>(maps: &[(u64, u64)], runs: impl Fn() -> I) -> Option<f64> {
    let mut sum = 0.0;
    for &(first, pages) in maps {
        let mut start = 0;
        for (run, charge) in runs() {
            let both = (first + pages).min(start + run).saturating_sub(first.max(start));
            if both > 0 {
                sum += both as f64 * charge?;
            }
            start += run;
        }
    }
    Some(sum)
}
