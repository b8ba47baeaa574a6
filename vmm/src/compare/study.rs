//! The study: which questions go wrong, under which scheme, over traces, folio orders and leaves. Answers only, so every run gives the same.

use quire::addr::{Level, Order};

use super::text::{cell, errors};
use super::{Comparison, answers, compare};
use crate::error::Error;
use crate::replay::{Backend, Config};
use crate::workload::Workload;

/// A largest order, and whether folios of order 9 are mapped by 4 KiB leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// `--max-order`.
    pub max_order: u8,
    /// `--small-leaves`.
    pub small_leaves: bool,
}

/// The variants that the study has.
pub const VARIANTS: [Variant; 4] = [
    Variant { max_order: 0, small_leaves: false },
    Variant { max_order: 4, small_leaves: false },
    Variant { max_order: 9, small_leaves: false },
    Variant { max_order: 9, small_leaves: true },
];

/// Heads of the table, in Markdown.
pub const HEADS: &str = "\
| trace | order | scheme | wrong answers | no answer | Pss error: mean, p99, max | Uss error: mean, max | read as shared | read as exclusive | missed partial | anon x | file x |
|---|---|---|---|---|---|---|---|---|---|---|---|";

/// The lines of the table for `workload` under one variant, replayed in this process.
///
/// # Errors
/// Those of a replay.
pub fn lines(workload: &Workload, variant: Variant) -> Result<Vec<String>, Error> {
    let config = Config {
        backend: Backend::Model,
        orders: (2 << Order::new(variant.max_order).get()) - 1,
        max_leaf: if variant.small_leaves { Level::ONE } else { Level::TWO },
        checkpoints: 32,
        ..Config::default()
    };
    Ok(of(&compare(workload, &config, 0)?))
}

fn of(comparison: &Comparison) -> Vec<String> {
    let order = format!("{}{}", comparison.max_order, if comparison.small_leaves { ", small" } else { "" });
    let (_, errors) = errors(comparison);
    let line = |(row, (_, e)): (&super::Row, (&str, Vec<String>))| {
        let names = |wanted: &dyn Fn(&answers::Count) -> bool, show: bool| {
            let named = quire::abi::survey::Question::EACH.into_iter().filter_map(|question| {
                let count = &row.queries.count(question).all;
                let name = answers::name(question).replace('_', " ");
                let wanted = wanted(count);
                wanted.then(|| if show { format!("{name} {}", cell(count)) } else { name })
            });
            named.collect::<Vec<_>>().join(", ")
        };
        let wrong = names(&|count| count.wrong + count.broken > 0, true);
        let asked = |count: &answers::Count| count.asked() > 0 && count.unanswered() == count.asked();
        let none = if row.queries.counts.values().all(|query| asked(&query.all)) {
            "all".to_owned()
        } else {
            names(&|count| count.asked() > 0 && count.unanswered() > 0, false)
        };
        format!(
            "| `{}` | {order} | `{}` | {wrong} | {none} | {}, {}, {} | {}, {} | {} | {} | {} | {} | {} |",
            comparison.trace, row.name, e[0], e[1], e[2], e[4], e[5], e[6], e[7], e[8], e[9], e[10]
        )
    };
    comparison.schemes.iter().zip(errors).map(line).collect()
}
