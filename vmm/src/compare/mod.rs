//! Every scheme on one replay: what each answers, how far it errs, and what it costs.
//!
//! [`compare`] runs the replay once with all schemes observing beside the oracle, which gives the [`answers`]; and then each scheme
//! alone, in rounds, for the [`cost`]: the observing run is never timed. [`text`] and [`html`] show it, [`svg`] draws; [`study`] repeats the first part
//! over traces and orders.

pub mod answers;
pub mod cost;
pub mod html;
pub mod study;
pub mod text;

use quire::mapcount::Scheme;
use serde::Serialize;

use crate::doctor::Host;
use crate::error::Error;
use crate::progress;
use crate::replay::{Config, replay};
use crate::report::{Audit, Report};
use crate::workload::Workload;
use answers::{Queries, Truth};
use cost::Cost;

/// One scheme.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Bytes of state of a folio of order 1 and above.
    pub state_bytes: usize,
    /// Bytes of counts for each frame beside.
    pub page_bytes: usize,
    /// Locked operations in each call of the count layer, references and table locks apart.
    pub atomics: f64,
    /// Nanoseconds for each operation of the trace, faults included.
    pub ns_per_op: Option<f64>,
    /// Its answers.
    pub queries: Queries,
    /// Its times and bytes, when they were measured.
    pub cost: Option<Cost>,
}

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Version of this program.
    pub quire: &'static str,
    /// `kvm` or `model`.
    pub backend: String,
    /// The ring of the manager, in a VM.
    pub ring: Option<u64>,
    /// What the host offers.
    pub host: Host,
    /// The trace.
    pub trace: String,
    /// What it says it is.
    pub title: Option<String>,
    /// Operations.
    pub ops: u64,
    /// Seed of the words that tenants store.
    pub seed: u64,
    /// The largest order that faults try.
    pub max_order: u32,
    /// Whether folios of order 9 and above are mapped by 4 KiB leaves.
    pub small_leaves: bool,
    /// Rounds of timing runs; 0 for answers only.
    pub rounds: u64,
    /// What there was to be known.
    pub truth: Truth,
    /// What the observing run compared.
    pub audit: Audit,
    /// The schemes.
    pub schemes: Vec<Row>,
}

impl Comparison {
    /// The row of `scheme`.
    #[must_use]
    pub fn scheme(&self, scheme: Scheme) -> Option<&Row> {
        self.schemes.iter().find(|row| row.name == scheme.name())
    }
}

/// Compares all schemes on `workload`, with `rounds` rounds of timing runs.
///
/// # Errors
/// Those of a replay, and one that did not pass.
pub fn compare(workload: &Workload, config: &Config, rounds: u64) -> Result<Comparison, Error> {
    let observing = Config { scheme: Scheme::All, survey: true, floor: 0, ..*config };
    let measured =
        progress::during(&format!("asking every scheme about {}", workload.name), || replay(workload, &observing))?;
    let host = Host::here();
    let report = Report::new(workload, &observing, &measured, host.clone());
    if !measured.passed {
        return Err(Error::Exit(report.failure(workload, &measured)));
    }
    let schemes: Vec<_> = Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All).collect();
    let costs = match rounds {
        0 => Vec::new(),
        _ => progress::during(&format!("timing {} schemes, {rounds} rounds", schemes.len()), || {
            cost::measure(workload, config, rounds, &schemes, &host)
        })?,
    };
    let atomics = progress::during("counting locked operations", || {
        schemes.iter().map(|&scheme| cost::atomics(workload, config, scheme)).collect::<Result<Vec<_>, _>>()
    })?;
    let truth = Truth::of(&measured.survey);
    let rows = schemes.iter().enumerate().map(|(i, &scheme)| {
        let (state_bytes, page_bytes) = cost::state_bytes(scheme);
        let cost = costs.get(i).cloned();
        Row {
            name: scheme.name(),
            state_bytes,
            page_bytes,
            atomics: atomics[i],
            ns_per_op: cost.as_ref().and_then(|cost| cost.op).map(|op| op.ns),
            queries: Queries::of(&measured.survey, scheme, &truth),
            cost,
        }
    });
    Ok(Comparison {
        quire: env!("CARGO_PKG_VERSION"),
        backend: measured.backend.to_string(),
        ring: measured.ring,
        schemes: rows.collect(),
        host,
        trace: workload.name.clone(),
        title: workload.title.clone(),
        ops: report.ops,
        seed: workload.seed,
        max_order: config.orders.ilog2(),
        small_leaves: config.max_leaf == quire::addr::Level::ONE,
        rounds,
        truth,
        audit: report.audit,
    })
}
