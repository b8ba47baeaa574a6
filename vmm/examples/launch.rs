//! How long from `exec` of this program until the guest's first instruction.
//!
//! Starts itself again and again with the time it did so, boots the kernel in the child, and prints the median of what
//! the children say, with where the time goes. `cargo run --release -p quire-vmm --example launch -- [RUNS]`.

use std::env;
use std::error::Error;
use std::process::Command;
use std::time::{Duration, SystemTime};

use quire::abi::{boot, flags, ring};
use quire_vmm::{MachineConfig, NoHost, kernel, run};

const CHILD: &str = "QUIRE_LAUNCHED_AT";

fn main() -> Result<(), Box<dyn Error>> {
    match env::var(CHILD) {
        Ok(began) => child(began.parse()?),
        Err(_) => parent(env::args().nth(1).map_or(Ok(50), |runs| runs.parse())?),
    }
}

fn parent(runs: usize) -> Result<(), Box<dyn Error>> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    let mut names = Vec::new();
    for _ in 0..runs {
        let output = Command::new(env::current_exe()?).env(CHILD, now()?.to_string()).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let row = text.lines().filter_map(|line| line.split_once(' '));
        names = row.clone().map(|(name, _)| name.to_owned()).collect();
        rows.push(row.map(|(_, value)| value.parse()).collect::<Result<_, _>>()?);
    }
    println!("median and best of {runs}, microseconds");
    for (column, name) in names.iter().enumerate() {
        let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
        values.sort_by(f64::total_cmp);
        println!("{name:<20} {:>8.0} {:>8.0}", values[values.len() / 2], values[0]);
    }
    Ok(())
}

fn child(began: f64) -> Result<(), Box<dyn Error>> {
    let main = now()? - began;
    let mut config = MachineConfig::default();
    config.boot[boot::FLAGS] = flags::START_BELL;
    config.boot[boot::RING] = ring::AUTO;
    let outcome = run(kernel::ELF, &config, &[], &mut NoHost)?;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let times = outcome.timings;
    let first = times.first_instruction.map_or(f64::NAN, us);
    println!("exec-to-first {}", main + first);
    println!("exec-to-main {main}");
    println!("run-to-first {first}");
    for (name, time) in [
        ("open", times.open),
        ("vm", times.vm),
        ("memory", times.memory),
        ("vcpu", times.vcpu),
        ("load", times.load),
        ("guest", times.guest),
        ("teardown", times.teardown),
    ] {
        println!("{name} {}", us(time));
    }
    Ok(())
}

/// Microseconds of the clock that all processes share.
fn now() -> Result<f64, Box<dyn Error>> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() * 1e6)
}
