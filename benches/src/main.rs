//! `quire-benches library`: the manager's own cost in this process, beside a loop of bare stores, by folio order and scheme.
//!
//! Clearing frames is left out on both sides, folios are mapped by 4 KiB leaves, and nobody walks the tables. Floor and schemes take turns within every
//! repetition; medians are shown.

mod library;
mod machine;
mod operation;
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
            operation::run(op, work::Shape::new(order.parse().expect("an order"), level), scheme.parse().expect("a scheme"));
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
        println!("{:<10} {:>5}  {:<10} {:>9} {:>9} {:>7}", "what", "order", "scheme", "ns", "floor ns", "ratio");
        for row in &rows {
            let ratio = row.quire / row.floor;
            let (what, order, scheme) = (row.what, row.order, row.scheme);
            println!("{what:<10} {order:>5}  {scheme:<10} {:>9.2} {:>9.2} {ratio:>7.1}", row.quire, row.floor);
        }
        println!("nanoseconds for each 4 KiB page, medians of {} repetitions over 64 MiB", library::REPETITIONS);
    }
    ExitCode::SUCCESS
}
