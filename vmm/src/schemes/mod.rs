//! What the schemes keep, cost and answer: found out by running each, not written down.
//!
//! `stage` sets situations up on page tables in this process; `atomics` counts the locked operations of every step, `answers` asks every
//! question in every situation and keeps the least sure answer.

mod answers;
mod atomics;
mod stage;

use std::fmt;

use quire::mapcount::{Accounting, Scheme, UnderScheme, large_descriptor_words};
use serde::Serialize;

pub use answers::{QUESTIONS, Sureness};
pub use atomics::STEPS;

/// One scheme.
#[derive(Clone, Debug, Serialize)]
pub struct SchemeReport {
    /// Its name.
    pub name: &'static str,
    /// Bytes of state of a folio of order 1 and above.
    pub state_bytes: usize,
    /// Further bytes for every page.
    pub bytes_per_page: usize,
    /// Bytes of such a folio's descriptor, the state included.
    pub descriptor_bytes: usize,
    /// What it must be told of the leaves beside a batch.
    pub needs: &'static str,
    /// Locked operations of each of [`STEPS`], in all calls of the step.
    pub atomics: Vec<u64>,
    /// How sure it answers each of [`QUESTIONS`], of folios of order 1 and above.
    pub answers: Vec<Sureness>,
}

/// All schemes.
#[derive(Clone, Debug, Serialize)]
pub struct Schemes {
    /// What the numbers of `atomics` count.
    pub steps: Vec<&'static str>,
    /// What the answers are to.
    pub questions: Vec<&'static str>,
    /// The schemes.
    pub schemes: Vec<SchemeReport>,
}

struct Examine;

impl UnderScheme for Examine {
    type Output = SchemeReport;

    fn run<A: Accounting>(self) -> SchemeReport {
        SchemeReport {
            name: A::NAME,
            state_bytes: A::STATE_WORDS * 8,
            bytes_per_page: A::PAGE_COUNTS * 4,
            descriptor_bytes: large_descriptor_words::<A>() * 8,
            needs: match (A::NEEDS.tuple, A::NEEDS.region) {
                (false, false) => "nothing",
                (true, false) => "leaves in the same region and table",
                (false, true) => "pages in the same region",
                (true, true) => "both",
            },
            atomics: atomics::count::<A>(),
            answers: answers::ask::<A>(),
        }
    }
}

/// Runs every scheme.
#[must_use]
pub fn examine() -> Schemes {
    let alone = Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All);
    Schemes {
        steps: STEPS.iter().map(|step| step.name).collect(),
        questions: QUESTIONS.iter().map(|question| question.name).collect(),
        schemes: alone.map(|scheme| scheme.run(Examine)).collect(),
    }
}

/// Columns of a table, as wide as their widest cell; the first one, and column `words`, are words.
fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>], words: Option<usize>) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            // Numbers and signs stand under each other at their ends, words at their beginnings.
            let words = column == 0 || words == Some(column);
            line += &if words { format!(" {cell:<width$} ") } else { format!(" {cell:>width$} ") };
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

impl fmt::Display for Schemes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "State of a folio of order 1 and above; one of order 0 has a count of 32 bits under every scheme that counts.\n"
        )?;
        let mut rows =
            vec![["scheme", "state", "per page", "descriptor", "must be told of"].map(str::to_owned).to_vec()];
        for scheme in &self.schemes {
            rows.push(vec![
                scheme.name.to_owned(),
                format!("{} B", scheme.state_bytes),
                format!("{} B", scheme.bytes_per_page),
                format!("{} B", scheme.descriptor_bytes),
                scheme.needs.to_owned(),
            ]);
        }
        table(f, &rows, Some(4))?;

        writeln!(
            f,
            "\nLocked operations of the scheme in one step on an order-9 folio, counted; references and table locks are apart.\n"
        )?;
        let mut rows = vec![
            std::iter::once("scheme".to_owned())
                .chain(STEPS.iter().map(|step| step.short.to_owned()))
                .collect::<Vec<_>>(),
        ];
        for scheme in &self.schemes {
            rows.push(
                std::iter::once(scheme.name.to_owned()).chain(scheme.atomics.iter().map(u64::to_string)).collect(),
            );
        }
        table(f, &rows, None)?;
        writeln!(f)?;
        for step in STEPS {
            writeln!(f, "  {:<10} {}", step.short, step.name)?;
        }

        writeln!(
            f,
            "\nThe least sure answer in any situation: = exact, > errs to one side, ~ errs to either, w needs a walk, - cannot say.\n"
        )?;
        let mut rows = vec![
            std::iter::once("question".to_owned())
                .chain(self.schemes.iter().map(|scheme| scheme.name.to_owned()))
                .collect::<Vec<_>>(),
        ];
        for (i, question) in QUESTIONS.iter().enumerate() {
            let signs = self.schemes.iter().map(|scheme| scheme.answers[i].sign().to_owned());
            rows.push(std::iter::once(question.name.to_owned()).chain(signs).collect());
        }
        table(f, &rows, None)?;
        writeln!(
            f,
            "\nRss is exact under every scheme: the spaces count it. numa_maps' mapmax is the largest kpagecount."
        )
    }
}
