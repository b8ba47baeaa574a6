//! A scenario explained: for people as text, for programs as JSON.

use std::fmt;

use serde::Serialize;

use super::look::{Answered, Look, Owner, Run, Said, Sure, Told, Truth, Word};
use super::script::Script;
use crate::replay::Measured;

/// Columns that the text fits.
const WIDTH: usize = 118;
/// The widest that a list of runs may be in a table.
const CELL: usize = 34;

/// One worked scenario, as it was played.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// Its name in SCHEMES.md.
    pub scenario: &'static str,
    /// What has happened.
    pub title: &'static str,
    /// The trace up to here, with its comments.
    pub steps: Vec<&'static str>,
    /// The file of `scenarios/`.
    pub trace: String,
    /// `kvm` or `model`.
    pub backend: String,
    /// The ring of the manager, in a VM.
    pub ring: Option<u64>,
    /// Why it ran in this process, though a VM was asked for.
    pub lacks: Option<&'static str>,
    /// Each scheme ran alone, as some refuse the shape; else all observed one run.
    pub alone: bool,
    /// The folio's order.
    pub order: u64,
    /// Its references.
    pub references: u64,
    /// One of the references is the page cache's.
    pub cached: bool,
    /// What a recount found.
    pub truth: Truth,
    /// Leaves over each page.
    pub cover: Vec<Run>,
    /// Who maps it.
    pub owners: Vec<Owner>,
    /// What each scheme told.
    pub schemes: Vec<Told>,
}

impl Explained {
    pub(super) fn new(
        (scenario, title, steps): (&'static str, &'static str, Vec<&'static str>),
        script: &Script,
        measured: &Measured,
        lacks: Option<&'static str>,
        look: Look,
    ) -> Self {
        let Look { label: _, order, references, cached, truth, cover, owners, schemes } = look;
        Self {
            scenario,
            title,
            steps,
            trace: format!("vmm/scenarios/{}.trace", script.name),
            backend: measured.backend.to_string(),
            ring: measured.ring,
            lacks,
            alone: script.alone,
            order,
            references,
            cached,
            truth,
            cover,
            owners,
            schemes,
        }
    }

    /// The true answer to a question about the folio, where there is one.
    #[must_use]
    pub fn truly(&self, question: &str) -> Option<Word> {
        let (truth, pages) = (&self.truth, 1 << self.order);
        Some(match question {
            "mapped" => Word::Is(truth.m > 0),
            "one_leaf" => Word::Is(truth.m == 1),
            "maybe_shared" => Word::Is(truth.o > 1),
            "mapped_pages" => Word::Count(truth.u),
            // As Linux counts: of folios of 2 MiB, as soon as one leaf is as large.
            "huge_pages" => Word::Count(if self.order == 9 && truth.e > 0 { pages } else { 0 }),
            "partially_mapped" => Word::Is(0 < truth.u && truth.u < pages),
            "leaves" => Word::Count(truth.m),
            "by_level" => Word::Text(truth.by_level.map(|leaves| leaves.to_string()).join(",")),
            _ => return None,
        })
    }

    /// The leaves over each page, as `NxPAGES` for runs of equal ones.
    #[must_use]
    pub fn cover(&self) -> String {
        self.cover.iter().map(|run| format!("{}x{}", run.leaves, run.pages)).collect::<Vec<_>>().join(" ")
    }

    /// Name and counters of each scheme, one line each.
    #[must_use]
    pub fn in_short(&self) -> String {
        let Truth { m, t, e, u, k, v, o, .. } = self.truth;
        let truth = format!("M {m}, T {t}, E {e}, U {u}, K {k}, V {v}, O {o}; pages {}", self.cover());
        let schemes = self.schemes.iter().map(|told| (told.scheme.as_str(), told.counters()));
        let mut text = format!(
            "{:<5} {}{}\n",
            self.scenario,
            self.title,
            self.lacks.map(|why| format!(" (in process: {why})")).unwrap_or_default()
        );
        for (name, line) in std::iter::once(("truth", truth.as_str())).chain(schemes) {
            text += &clip(&format!("      {name:<18} {line}"), WIDTH);
            text += "\n";
        }
        text + "\n"
    }

    fn heading(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", self.scenario, self.title)?;
        let place = match self.ring {
            Some(ring) => format!("in a VM, on real page tables, the manager at ring {ring}"),
            None => "in this process, over emulated frames".to_owned(),
        };
        let lacks = self.lacks.map(|why| format!(" ({why})")).unwrap_or_default();
        let schemes = if self.alone { "each scheme in a run of its own" } else { "all schemes observing one run" };
        writeln!(f, "{}: {place}{lacks}\n{schemes}\n", self.trace)?;
        // The last comment is the title.
        let mut steps = self.steps.split_last().map_or(&[][..], |(_, steps)| steps);
        // A fork or a munmap by each of hundreds is one to a reader.
        let word = |line: &'static str| line.split_once(' ').map(|(word, _)| word);
        while let Some((&first, rest)) = steps.split_first() {
            let alike = rest.iter().take_while(|&&line| word(line) == word(first) && word(line) != Some("#")).count();
            let shown = if alike > 4 { 1 } else { alike + 1 };
            for line in &steps[..shown] {
                writeln!(f, "  {line}")?;
            }
            if alike > 4 {
                writeln!(f, "  ... {} more\n  {}", alike - 1, steps[alike])?;
            }
            steps = &steps[alike + 1..];
        }
        Ok(())
    }

    fn ground_truth(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Truth { m, t, e, u, k, v, o, by_level: [small, two, three] } = self.truth;
        writeln!(f, "\nthe ground truth, of a folio of order {}", self.order)?;
        writeln!(
            f,
            "  M {m} leaves ({small} of 4 KiB, {two} of 2 MiB, {three} of 1 GiB), E {e} as large as the folio"
        )?;
        writeln!(f, "  T {t} pages mapped, each as often as it is; U {u} of the {} at all", 1u64 << self.order)?;
        writeln!(f, "  K {k} tables with a leaf, by region; V {v} regions; O {o} owners")?;
        let cache = if self.cached { ", one of them the page cache's" } else { "" };
        writeln!(f, "  {} references{cache}", self.references)?;
        writeln!(f, "  leaves over each page: {}", clip(&self.cover(), WIDTH - 25))
    }

    /// What `word` makes of the leaves over each page, run by run.
    fn over_pages(&self, word: fn(u64) -> Option<Word>) -> Vec<(u64, Option<Word>)> {
        self.cover.iter().map(|run| (run.pages, word(run.leaves))).collect()
    }

    /// What is shown of p and c: the pages charged to them.
    fn two_owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.iter().take(2)
    }

    fn answers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FOLIO: [(&str, &str); 8] = [
            ("mapped", "mapped"),
            ("one_leaf", "one leaf"),
            ("maybe_shared", "shared"),
            ("may_reuse", "reuse"),
            ("mapped_pages", "pages mapped"),
            ("huge_pages", "in huge leaves"),
            ("partially_mapped", "partly"),
            ("leaves", "leaves"),
        ];
        writeln!(f, "\nthe answers; `~` may err to one side, `?` to either, `!` does, `-` cannot be told")?;
        let truly = |question| self.truly(question).map_or_else(String::new, |word| word.to_string());
        let mut rows = vec![row("", FOLIO.iter().map(|(_, heading)| (*heading).to_owned()))];
        rows.push(row("truth", FOLIO.iter().map(|(question, _)| truly(question))));
        for told in &self.schemes {
            rows.push(row(&told.scheme, FOLIO.iter().map(|(question, _)| told.said(question, self.truly(question)))));
        }
        table(f, &rows)?;

        writeln!(f)?;
        let owners = || self.two_owners().map(|owner| format!("Pss of {}", owner.name));
        let mut rows = vec![row(
            "",
            ["a walk ends with".to_owned(), "4K,2M,1G leaves".to_owned()]
                .into_iter()
                .chain(owners())
                .chain(["leaves over pages".to_owned(), "pages alone".to_owned()]),
        )];
        let truths = [
            ("page_count", self.over_pages(|leaves| Some(Word::Count(leaves)))),
            // Asked about pages that are mapped.
            ("exclusive", self.over_pages(|leaves| (leaves > 0).then_some(Word::Is(leaves == 1)))),
        ];
        let word = |word: &Option<Word>| word.as_ref().map_or_else(|| "-".to_owned(), Word::to_string);
        let shown = truths.each_ref().map(|(_, truth)| runs(truth.iter().map(|(pages, truly)| (*pages, word(truly)))));
        rows.push(row(
            "truth",
            [String::new(), truly("by_level")]
                .into_iter()
                .chain(self.two_owners().map(|owner| number(owner.pss)))
                .chain(shown),
        ));
        for told in &self.schemes {
            let pss = self.two_owners().map(|owner| match told.pss.get(&owner.name) {
                None => told.unsaid("charge"),
                Some(pss) if number(*pss) == number(owner.pss) => number(*pss),
                Some(pss) => format!("{}!", number(*pss)),
            });
            let stop_and_levels = ["early_stop", "by_level"].map(|question| told.said(question, self.truly(question)));
            let pages = truths.each_ref().map(|(question, truth)| told.over_pages(question, truth));
            rows.push(row(&told.scheme, stop_and_levels.into_iter().chain(pss).chain(pages)));
        }
        table(f, &rows)
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.heading(f)?;
        self.ground_truth(f)?;
        writeln!(f, "\nthe counters")?;
        for told in &self.schemes {
            wrap(f, &format!("  {:<18} ", told.scheme), told.counters())?;
        }
        self.answers(f)?;
        writeln!(f)
    }
}

impl Told {
    fn counters(&self) -> &str {
        if self.refused {
            "refused: it has no count for this shape, and maps something smaller"
        } else {
            &self.counters
        }
    }

    /// Its answer, marked by how sure it is and whether it is wrong.
    fn said(&self, question: &str, truly: Option<Word>) -> String {
        mark(&self.answers, question, truly.as_ref())
    }

    /// Its answers about pages that `pss` has none of.
    fn unsaid(&self, question: &str) -> String {
        self.pages.first().map_or_else(|| "-".to_owned(), |(_, said)| mark(said, question, None))
    }

    /// Its answers about every page, each run of them wrong if it is for one page.
    fn over_pages(&self, question: &str, truth: &[(u64, Option<Word>)]) -> String {
        if self.refused {
            return "-".to_owned();
        }
        let mut start = 0;
        runs(self.pages.iter().map(|(pages, said)| {
            let (first, end) = (start, start + pages);
            start = end;
            let value = said.get(question).and_then(|said| said.value.as_ref());
            let wrong = spans(truth).find(|(from, to, truly)| from.max(&first) < to.min(&end) && value != Some(truly));
            (*pages, mark(said, question, wrong.map(|(.., truly)| truly).or(value)))
        }))
    }
}

/// First page, end and value of each run that has one.
fn spans(runs: &[(u64, Option<Word>)]) -> impl Iterator<Item = (u64, u64, &Word)> {
    let places = runs.iter().scan(0, |end, (pages, word)| {
        let start = *end;
        *end += pages;
        Some((start, *end, word.as_ref()))
    });
    places.filter_map(|(start, end, word)| Some((start, end, word?)))
}

fn mark(answers: &Answered, question: &str, truly: Option<&Word>) -> String {
    let Some(Said { sure, value }) = answers.get(question) else { return "-".to_owned() };
    let word = value.as_ref().map(Word::to_string).unwrap_or_default();
    let wrong = if truly.is_some() && value.is_some() && value.as_ref() != truly { "!" } else { "" };
    match sure {
        Sure::Exact => word + wrong,
        Sure::Errs => word + "~" + wrong,
        Sure::About => word + "?" + wrong,
        Sure::Walk => "walk".to_owned(),
        Sure::Cannot => "-".to_owned(),
    }
}

/// The values of runs of pages; equal neighbours are one, and a single one needs no number of pages.
fn runs(values: impl Iterator<Item = (u64, String)>) -> String {
    let mut runs: Vec<(u64, String)> = Vec::new();
    for (pages, value) in values {
        match runs.last_mut() {
            Some((run, last)) if *last == value => *run += pages,
            _ => runs.push((pages, value)),
        }
    }
    match runs.as_slice() {
        [(_, one)] => one.clone(),
        _ => {
            let all: Vec<_> = runs.iter().map(|(pages, value)| format!("{value} x{pages}")).collect();
            clip(&all.join(", "), CELL)
        }
    }
}

/// To four places, as in SCHEMES.md.
pub(super) fn number(value: f64) -> String {
    ((value * 1e4).round() / 1e4).to_string()
}

fn clip(text: &str, width: usize) -> String {
    if text.len() <= width { text.to_owned() } else { format!("{}..", &text[..width - 2]) }
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(cells).collect()
}

/// Columns as wide as they must be.
fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    for row in rows {
        let cells: Vec<_> = row.iter().enumerate().map(|(i, cell)| format!("{cell:<0$}", width(i))).collect();
        writeln!(f, "  {}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// `text` behind `first`, its further lines below its beginning.
fn wrap(f: &mut fmt::Formatter<'_>, first: &str, text: &str) -> fmt::Result {
    let mut line = first.to_owned();
    for word in text.split(' ') {
        if line.len() + word.len() > WIDTH {
            writeln!(f, "{}", line.trim_end())?;
            line = " ".repeat(first.len());
        }
        line = line + word + " ";
    }
    writeln!(f, "{}", line.trim_end())
}
