//! `quire-benches library`: the manager's own cost in this process, beside a loop of bare stores, by folio order and scheme.
//!
//! Clearing frames is left out on both sides, folios are mapped by 4 KiB leaves, and nobody walks the tables. Floor and schemes take turns within every
//! repetition; medians are shown.

mod library;
mod machine;
mod operation;
mod peers;
mod work;

use std::process::ExitCode;

const USAGE: &str = "usage: quire-benches library [--json]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["library"] => false,
        ["library", "--json"] => true,
        ["operation", op, order, level, scheme] => {
            let op = work::Op::of_name(op).expect("an operation");
            let level = quire::addr::Level::new(level.parse().expect("a level"));
            operation::run(
                op,
                work::Shape::new(order.parse().expect("an order"), level),
                scheme.parse().expect("a scheme"),
            );
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
