//! The `quire` program.

use std::process::ExitCode;

use quire_vmm::{MachineConfig, NoHost, Outcome, Status, doctor, kernel, run};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == "doctor") {
        print!("{}", doctor::examine());
        return ExitCode::SUCCESS;
    }
    let mut config = MachineConfig { stats: true, ..MachineConfig::default() };
    if let Some(ring) = std::env::args().nth(1).and_then(|ring| ring.parse().ok()) {
        config.boot[quire::abi::boot::RING] = ring;
    }
    match run(kernel::ELF, &config, &[], &mut NoHost) {
        Ok(outcome) => {
            print!("{}", summary(&outcome));
            if outcome.status == Status::Pass { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("quire: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// The floor's faults in a few lines.
fn summary(outcome: &Outcome) -> String {
    use quire::abi::results::{LOOP_RING0, LOOP_RING3, RING, STAMP_PAIR};

    let mut text = format!("{}, {} exits\n{}", outcome.status, outcome.exits, outcome.log);
    if let Some(panic) = &outcome.panic {
        text += panic;
        text.push('\n');
    }
    let word = |index: usize| outcome.words[index];
    text += &format!("ring {}; loop {} and {} ticks at ring 0 and 3\n", word(RING), word(LOOP_RING0), word(LOOP_RING3));
    let mut ticks: Vec<u32> = outcome.samples.iter().map(|sample| sample.ticks).collect();
    ticks.sort_unstable();
    let at =
        |part: usize| ticks.get(ticks.len() * part / 100).map_or(0.0, |ticks| outcome.nanoseconds((*ticks).into()));
    text += &format!("{} faults: min {:.0} p50 {:.0} p99 {:.0} ns", ticks.len(), at(0), at(50), at(99));
    text += &format!(", empty bracket {:.0} ns\n{:?}\n", outcome.nanoseconds(word(STAMP_PAIR)), outcome.timings);
    for stat in outcome.stats.iter().filter(|stat| stat.value > 0) {
        text += &format!("{} {}\n", stat.name, stat.value);
    }
    text
}
