//! The `quire` program.

use std::process::ExitCode;

use quire_vmm::{MachineConfig, NoHost, kernel, run};

fn main() -> ExitCode {
    let mut config = MachineConfig::default();
    config.stats = true;
    if let Some(ring) = std::env::args().nth(1) {
        config.boot[quire::abi::boot::RING] = ring.parse().unwrap();
    }
    match run(kernel::ELF, &config, &[], &mut NoHost) {
        Ok(outcome) => {
            println!("{:?} {:?}", outcome.status, outcome.panic);
            print!("{}", outcome.log);
            println!("{:?}", &outcome.words[..16]);
            println!("{:?} exits {} khz {}", outcome.timings, outcome.exits, outcome.tsc_khz);
            let mut ticks: Vec<u32> = outcome.samples.iter().map(|s| s.ticks).collect();
            ticks.sort_unstable();
            if let Some(m) = ticks.get(ticks.len() / 2) {
                println!(
                    "{} samples p50 {} ns min {} p99 {}",
                    ticks.len(),
                    outcome.nanoseconds((*m).into()),
                    outcome.nanoseconds(ticks[0].into()),
                    outcome.nanoseconds(ticks[ticks.len() * 99 / 100].into())
                );
            }
            println!(
                "{:?}",
                outcome
                    .stats
                    .iter()
                    .filter(|s| s.value > 0)
                    .map(|s| format!("{}={}", s.name, s.value))
                    .collect::<Vec<_>>()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("quire: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
