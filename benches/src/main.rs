//! `quire-benches library`: the manager's own cost in this process, beside a loop of bare stores, by folio order and scheme.
//!
//! Clearing and copying frames is left out on both sides, and nobody walks the tables. Floor, schemes and peers take turns within every repetition;
//! medians and quartiles are shown, and `total` twice, as a measure of the noise. `quire-benches instructions` counts instructions instead.

mod beside;
mod emulator;
mod golden;
mod kernel;
mod library;
mod linux;
mod machine;
mod operation;
mod peers;
mod work;

use std::process::ExitCode;

use quire::addr::Level;

const USAGE: &str =
    "usage: quire-benches library [--json] | instructions [--update] | operation NAME ORDER LEVEL SCHEME";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["library"] => false,
        ["library", "--json"] => true,
        ["instructions"] => {
            match beside::Beside::measure() {
                Ok(beside) => beside.show(),
                Err(failure) => println!("{failure}"),
            }
            return golden::run(false);
        }
        ["instructions", "--update"] => return golden::run(true),
        ["operation", op, order, level, scheme] => {
            let shape =
                || Some((work::Op::of_name(op)?, order.parse().ok()?, level.parse().ok()?, scheme.parse().ok()?));
            let Some((op, order @ 0..=18, level @ 1..=3, scheme)) = shape() else {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            };
            operation::run(op, work::Shape::new(order, Level::new(level)), scheme);
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let rows = library::measure();
    if json {
        println!("{}", serde_json::json!({ "rows": rows }));
    } else {
        library::show(&rows);
        let [hot, cold] = library::REPETITIONS;
        println!(
            "nanoseconds for each leaf or call, medians of {hot} repetitions (cold: {cold}) over 16 MiB; peers have no accounting"
        );
    }
    ExitCode::SUCCESS
}
