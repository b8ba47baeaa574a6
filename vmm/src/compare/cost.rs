//! What the schemes cost: each alone, in rounds, so that what drifts on the host falls on all of them.

use quire::abi::replay::{event_word, word};
use quire::mapcount::{Accounting, Scheme, UnderScheme};
use quire::sync::tally;
use quire::trace::Event;
use serde::Serialize;

use crate::doctor::Host;
use crate::error::Error;
use crate::replay::{Backend, Config, Measured, replay};
use crate::report::{KINDS, Latency, Metadata, Report};
use crate::workload::Workload;

/// A quantity over the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    /// Median of the rounds, in nanoseconds.
    pub ns: f64,
    /// The least.
    pub ns_min: f64,
    /// The most.
    pub ns_max: f64,
    /// Median of the ratios to `none` in the same round.
    pub ratio: f64,
    /// The least.
    pub ratio_min: f64,
    /// The most.
    pub ratio_max: f64,
}

/// The times of a scheme: medians of each run. What did not happen has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// All operations of the trace and the faults they cause, divided by the operations.
    pub op: Option<Figure>,
    /// All faults.
    pub fault: Option<Figure>,
    /// First touches.
    pub first_touch: Option<Figure>,
    /// Copies on write.
    pub copy_on_write: Option<Figure>,
    /// Faults that take a page back.
    pub reuse: Option<Figure>,
    /// Faults on pages that are there.
    pub refault: Option<Figure>,
    /// Forks.
    pub fork: Option<Figure>,
    /// Ends of address spaces.
    pub teardown: Option<Figure>,
    /// munmap.
    pub unmap: Option<Figure>,
    /// What the manager spent on knowing what it has, under this scheme alone.
    pub metadata: Metadata,
}

const FIGURES: usize = 9;

/// Runs every scheme alone, `rounds` times, one after the other in each round.
///
/// # Errors
/// Those of a replay, and one that did not pass.
pub fn measure(
    workload: &Workload,
    config: &Config,
    rounds: u64,
    schemes: &[Scheme],
    host: &Host,
) -> Result<Vec<Cost>, Error> {
    let mut figures = vec![Vec::new(); schemes.len()];
    let mut metadata = vec![Metadata::default(); schemes.len()];
    for _ in 0..rounds {
        for (i, &scheme) in schemes.iter().enumerate() {
            let config = Config { scheme, survey: false, checkpoints: 4, floor: 0, ..*config };
            let measured = replay(workload, &config)?;
            let report = Report::new(workload, &config, &measured, host.clone());
            if !measured.passed {
                return Err(Error::Exit(format!("under `{scheme}`: {}", report.failure(workload, &measured))));
            }
            figures[i].push(figures_of(&measured, &report));
            metadata[i] = report.metadata;
        }
    }
    let base = schemes.iter().position(|&scheme| scheme == Scheme::None).unwrap_or(0);
    let cost = |(i, metadata): (usize, Metadata)| {
        let figure = |n: usize| {
            let ns = sorted(figures[i].iter().map(|run| run[n]))?;
            let ratio = sorted(figures[i].iter().zip(&figures[base]).map(|(run, base)| Some(run[n]? / base[n]?)))?;
            let median = |values: &[f64]| {
                let half = values.len() / 2;
                if values.len().is_multiple_of(2) { (values[half - 1] + values[half]) / 2.0 } else { values[half] }
            };
            let last = ns.len() - 1;
            Some(Figure {
                ns: median(&ns),
                ns_min: ns[0],
                ns_max: ns[last],
                ratio: median(&ratio),
                ratio_min: ratio[0],
                ratio_max: ratio[last],
            })
        };
        Cost {
            op: figure(0),
            fault: figure(1),
            first_touch: figure(2),
            copy_on_write: figure(3),
            reuse: figure(4),
            refault: figure(5),
            fork: figure(6),
            teardown: figure(7),
            unmap: figure(8),
            metadata,
        }
    };
    Ok(metadata.into_iter().enumerate().map(cost).collect())
}

/// Ascending; nothing if any is missing, or there are none.
fn sorted(values: impl Iterator<Item = Option<f64>>) -> Option<Vec<f64>> {
    let mut values = values.collect::<Option<Vec<_>>>()?;
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then_some(values)
}

fn figures_of(measured: &Measured, report: &Report) -> [Option<f64>; FIGURES] {
    let some = |latency: Latency| (latency.p50_ns > 0).then_some(latency.p50_ns as f64);
    let kind = |n: usize| {
        let samples = measured.samples.iter().filter(|sample| sample.kind == KINDS[n].0 as u8);
        some(Latency::of(samples.map(|sample| (f64::from(sample.ticks) * measured.tick_ns) as u64)))
    };
    let events = [Event::Fork, Event::Teardown, Event::Unmap, Event::Protect, Event::Remap, Event::Advise, Event::Map];
    let w = &measured.words;
    let ticks = w[word::TOUCH_TICKS] + events.iter().map(|&event| w[event_word(event) + 2]).sum::<u64>();
    let op = (w[word::OPS] > 0).then(|| ticks as f64 * measured.tick_ns / w[word::OPS] as f64);
    [
        op,
        some(report.fault),
        kind(0),
        kind(1),
        kind(2),
        kind(3),
        some(report.fork.latency),
        some(report.teardown.latency),
        some(report.unmap.latency),
    ]
}

/// Bytes of state of a large folio, and bytes for each page, of a scheme.
#[must_use]
pub fn state_bytes(scheme: Scheme) -> (usize, usize) {
    struct Bytes;
    impl UnderScheme for Bytes {
        type Output = (usize, usize);
        fn run<A: Accounting>(self) -> Self::Output {
            (A::STATE_WORDS * 8, A::PAGE_COUNTS * 4)
        }
    }
    scheme.run(Bytes)
}

/// Locked operations of `scheme` in each call of the count layer, counted where they are done: in this process, since what a trace makes of the
/// counts is the same everywhere.
///
/// # Errors
/// Those of a replay.
pub fn atomics(workload: &Workload, config: &Config, scheme: Scheme) -> Result<f64, Error> {
    tally::reset();
    replay(workload, &Config { backend: Backend::Model, scheme, checkpoints: 1, floor: 0, survey: false, ..*config })?;
    let (calls, locked) =
        tally::costs().iter().fold((0, 0), |(calls, locked), cost| (calls + cost.calls, locked + cost.locked));
    Ok(locked as f64 / calls.max(1) as f64)
}
