//! What the manager costs, in two kinds of numbers that never stand in one table.
//!
//! `quire-benches library`: nanoseconds in this process, beside a loop of bare stores, by folio order and scheme. Clearing and copying frames is left out on both
//! sides, and nobody walks the tables. Floor, schemes and peers take turns within every repetition; medians and quartiles are shown, and `total` twice, as a measure
//! of the noise.
//!
//! `quire-benches instructions`: instructions, which come out the same at every run: of the kernel in an emulated machine, beside Linux; and of the library's
//! functions, beside what they were.

mod beside;
mod emulator;
mod engine;
mod golden;
mod kernel;
mod library;
mod linux;
mod machine;
mod operation;
mod peers;
mod vm;
mod work;

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::beside::Beside;
use crate::emulator::is_required;
use crate::golden::Counts;
use crate::operation::Once;

const USAGE: &str = "\
usage: quire-benches library [--json]
       quire-benches instructions [--short] [--json]     --short: three orders instead of six
       quire-benches instructions --update               the library's counts are as they should be
       quire-benches all [--json]
       quire-benches operation NAME ORDER LEVEL SCHEME   one operation, for callgrind

Exit codes: 0 fine; 1 a count is off golden.json, a side failed, or something is missing that QUIRE_REQUIRE lists (qemu, valgrind, linux-6.12);
2 usage; 4 --update without valgrind. Why stands on standard error, with --json too.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let all = beside::ORDERS;
    let (what, passed) = match words.as_slice() {
        [] | ["library"] => (library(false), true),
        ["library", "--json"] => (library(true), true),
        ["instructions"] => instructions(false, all),
        ["instructions", "--json"] => instructions(true, all),
        ["instructions", "--short"] => instructions(false, beside::FEW_ORDERS),
        ["instructions", "--short", "--json"] => instructions(true, beside::FEW_ORDERS),
        ["instructions", "--update"] => {
            let Some(counts) = Counts::measure() else {
                eprintln!("there is no valgrind");
                return ExitCode::from(4);
            };
            counts.update();
            (Value::Null, true)
        }
        ["all"] => {
            library(false);
            println!();
            instructions(false, all)
        }
        ["all", "--json"] => {
            let (instructions, passed) = instructions(true, all);
            (json!({ "library": library(true), "instructions": instructions }), passed)
        }
        ["operation", op, order, level, scheme] => {
            if let Err(why) = Once::parse(op, order, level, scheme).and_then(Once::run) {
                eprintln!("quire-benches operation: {why}");
                return ExitCode::from(2);
            }
            (Value::Null, true)
        }
        _ => return usage(),
    };
    if !what.is_null() {
        println!("{what}");
    }
    ExitCode::from(u8::from(!passed))
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Times the library; prints tables, or returns JSON.
fn library(json: bool) -> Value {
    let rows = library::measure();
    if json {
        return json!({ "rows": rows });
    }
    library::show(&rows);
    let [hot, cold] = library::REPETITIONS;
    println!(
        "nanoseconds for each leaf or call, medians of {hot} repetitions (cold: {cold}) over 16 MiB; peers have no accounting"
    );
    Value::Null
}

/// Counts instructions; prints tables, or returns JSON. False if something went wrong, changed, or is missing though it is required.
fn instructions(json: bool, orders: &[u8]) -> (Value, bool) {
    let mut passed = true;
    let mut value = json!({});
    match Beside::measure(orders) {
        Ok(beside) => {
            passed &= beside.lack().is_none_or(|lack| may_lack("linux-6.12", &lack.to_string()));
            value = beside.json();
            if !json {
                beside.show();
            }
        }
        Err(failure) if failure.is_lack => passed &= may_lack("qemu", &failure.to_string()),
        Err(failure) => {
            eprintln!("{failure}");
            passed = false;
        }
    }
    match Counts::measure() {
        Some(counts) => {
            value["library"] = json!(counts);
            if !json {
                println!();
                counts.show();
            }
            if let Some(complaint) = counts.complaint() {
                eprintln!("{complaint}");
                passed = false;
            }
        }
        None => passed &= may_lack("valgrind", "there is no valgrind"),
    }
    (if json { value } else { Value::Null }, passed)
}

/// Says why `what` is missing; whether that is no failure.
fn may_lack(what: &str, why: &str) -> bool {
    let is_required = is_required(what);
    eprintln!("{}: {why}", if is_required { "missing, though QUIRE_REQUIRE lists it" } else { "skipped" });
    !is_required
}
