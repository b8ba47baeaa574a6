//! Prints `fixtures/STUDY.md`: what every scheme answers, on every recorded trace, by folio orders.
//!
//! `cargo run --release -p quire-vmm --example study > fixtures/STUDY.md`. Answers only, in this process: every run prints the same.

use std::error::Error;

use quire_fixtures::TRACES;
use quire_vmm::compare::study::{HEADS, VARIANTS, lines};
use quire_vmm::workload::Workload;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{}\n\n{HEADS}", include_str!("study.md").trim_end());
    for (name, text) in TRACES {
        let workload = Workload::parse(name, name, text.as_bytes(), 1)?;
        for variant in VARIANTS {
            lines(&workload, variant)?.iter().for_each(|line| println!("{line}"));
        }
    }
    Ok(())
}
