//! A launch: from `exec` of this program until the guest's first instruction, what that time goes into, and the end of the VM.
//!
//! The program starts itself again and again and says when it did so; the child boots the kernel and prints where the time went.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quire::abi::{boot, flags};

use super::rows::{Distribution, Row, Turn};
use crate::error::Error;
use crate::run::{MachineConfig, NoHost};
use crate::{kernel, run};

/// What a child is told by: microseconds of the clock that all processes share, when it was started.
pub const LAUNCHED_AT: &str = "--launched-at";

/// The parts, in order; the first is the sum of the others but for the last.
const PARTS: [&str; 9] = [
    "launch",
    "launch: exec to main",
    "launch: open /dev/kvm",
    "launch: guest memory",
    "launch: VM",
    "launch: vCPU",
    "launch: load the kernel",
    "launch: enter the guest",
    "launch: teardown of the VM",
];

/// Launches so often that a turn's median stands on some.
const TURNS: usize = 10;

/// A row for each part, over `count` launches.
///
/// # Errors
/// When a child fails.
pub fn rows(count: u64) -> Result<Vec<Row>, Error> {
    let failed = |error: String| Error::Exit(format!("a launch for the benchmark failed: {error}"));
    let program = env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut values = vec![Vec::new(); PARTS.len()];
    for _ in 0..count {
        let output = Command::new(&program)
            .args(["bench", "boot", LAUNCHED_AT, &now().to_string()])
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let parts = text.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
        let parts = parts.map_err(|error| failed(error.to_string()))?;
        if parts.len() != PARTS.len() {
            return Err(failed(format!("it said {text:?}")));
        }
        values.iter_mut().zip(parts).for_each(|(values, part)| values.push(part));
    }
    Ok(PARTS.iter().zip(values).filter_map(|(name, values)| row(name, &values)).collect())
}

fn row(name: &str, values: &[f64]) -> Option<Row> {
    let mut all = Distribution::default();
    values.iter().for_each(|&value| all.record(value));
    let percentiles = all.percentiles()?;
    let turns = values.chunks(values.len().div_ceil(TURNS)).map(|turn| {
        let mut turn = turn.to_vec();
        turn.sort_by(f64::total_cmp);
        Turn { quire: turn[turn.len() / 2], floor: None }
    });
    Some(Row {
        what: name.to_owned(),
        order: None,
        leaf: None,
        frames: None,
        scheme: None,
        headline: true,
        quire: percentiles.p50,
        floor: None,
        peers: BTreeMap::new(),
        unit: "ns".to_owned(),
        percentiles: Some(percentiles),
        floor_percentiles: None,
        turns: turns.collect(),
        histogram: all.buckets(),
    })
}

/// The child: boots the kernel once; the parts in nanoseconds, on one line.
///
/// # Errors
/// Those of a run.
pub fn child(began_us: f64) -> Result<String, Error> {
    let main = (now() - began_us) * 1e3;
    let mut config = MachineConfig::default();
    config.boot[boot::FLAGS] = flags::START_BELL;
    let outcome = run(kernel::ELF, &config, &[], &mut NoHost)?;
    let ns = |time: Duration| time.as_secs_f64() * 1e9;
    let times = outcome.timings;
    let first = times.first_instruction.map(ns).ok_or_else(|| Error::Exit("the guest did not ring".to_owned()))?;
    let setup = [times.open, times.memory, times.vm, times.vcpu, times.load].map(ns);
    let enter = first - setup.iter().sum::<f64>();
    let parts = [&[main + first, main], &setup[..], &[enter, ns(times.teardown)]].concat();
    Ok(parts.iter().map(f64::to_string).collect::<Vec<_>>().join(" ") + "\n")
}

/// Microseconds of the clock that all processes share.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e6
}
