//! How many instructions each hot operation takes, by callgrind, beside what `golden.json` says. Instructions do not depend on what
//! else the machine does, so a change that costs some is seen where a time would drown.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Serialize;

use crate::work::Op;

/// Beyond this share of the number in the file something has changed: by another compiler a little is different.
const TOLERANCE: f64 = 0.02;
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden.json");

/// Operation, order, level of the leaves.
pub(crate) const EACH: [(Op, u8, u8); 12] = [
    (Op::Map, 0, 1),
    (Op::Single, 0, 1),
    (Op::Map, 4, 1),
    (Op::Fork, 4, 1),
    (Op::Cow, 4, 1),
    (Op::Unmap, 4, 1),
    (Op::Map, 9, 1),
    (Op::Fork, 9, 1),
    (Op::Teardown, 9, 1),
    (Op::Unmap, 9, 1),
    (Op::Translate, 9, 1),
    (Op::Split, 9, 2),
];
const SCHEMES: [&str; 2] = ["none", "total"];

/// Instructions of each, by name.
#[derive(Debug, Serialize)]
pub(crate) struct Counts {
    golden: BTreeMap<String, u64>,
    now: BTreeMap<String, u64>,
}

impl Counts {
    /// Counts everything; nothing without valgrind.
    pub(crate) fn measure() -> Option<Self> {
        Command::new("valgrind").arg("--version").output().ok()?;
        let now = EACH
            .into_iter()
            .flat_map(|of| SCHEMES.map(|scheme| (of, scheme)))
            .map(|((op, order, level), scheme)| {
                (format!("{} {order} {level} {scheme}", op.name()), count(op, order, level, scheme))
            })
            .collect();
        let text = std::fs::read_to_string(FILE).expect("the file is there");
        Some(Self { golden: serde_json::from_str(&text).expect("names and numbers"), now })
    }

    /// Writes the file anew.
    pub(crate) fn update(&self) {
        let text = serde_json::to_string_pretty(&self.now).expect("numbers") + "\n";
        std::fs::write(FILE, text).expect("the file can be written");
    }

    pub(crate) fn show(&self) {
        println!("{:<24} {:>10} {:>10} {:>7}", "what order level scheme", "golden", "now", "change");
        for name in self.now.keys() {
            println!("{}{}", self.line(name), if self.is_near(name) { "" } else { "  <--" });
        }
    }

    /// The rows that are not as they were, and what to do about them; nothing if all are.
    pub(crate) fn complaint(&self) -> Option<String> {
        let names: BTreeSet<&String> = self.golden.keys().chain(self.now.keys()).collect();
        let changed: Vec<_> =
            names.into_iter().filter(|name| !self.is_near(name)).map(|name| self.line(name)).collect();
        (!changed.is_empty()).then(|| {
            format!(
                "{}\nmore or fewer (golden, now) than golden.json says: if that is meant, `quire-benches instructions --update`",
                changed.join("\n")
            )
        })
    }

    fn line(&self, name: &str) -> String {
        let number =
            |counts: &BTreeMap<String, u64>| counts.get(name).map_or_else(|| "none".to_owned(), u64::to_string);
        let change = self.change(name).map_or_else(String::new, |change| format!(" {:>+6.1}%", change * 100.0));
        format!("{name:<24} {:>10} {:>10}{change}", number(&self.golden), number(&self.now))
    }

    /// Where both have it.
    fn change(&self, name: &str) -> Option<f64> {
        Some(*self.now.get(name)? as f64 / *self.golden.get(name)? as f64 - 1.0)
    }

    fn is_near(&self, name: &str) -> bool {
        self.change(name).is_some_and(|change| change.abs() <= TOLERANCE)
    }
}

/// Instructions between entry and exit of the marked function, in a process of its own.
fn count(op: Op, order: u8, level: u8, scheme: &str) -> u64 {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*operation::counted*")
        .arg(this)
        .args(["operation", op.name(), &order.to_string(), &level.to_string(), scheme])
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : ")).unwrap_or_else(|| panic!("{text}"));
    line.1.trim().parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn what_has_changed_is_told_and_nothing_else() {
        let counts = |golden: &[(&str, u64)], now: &[(&str, u64)]| {
            let [golden, now] =
                [golden, now].map(|counts| counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect());
            Counts { golden, now }
        };
        assert_eq!(counts(&[("a", 1000), ("b", 7)], &[("a", 1019), ("b", 7)]).complaint(), None);
        let complaint = counts(&[("a", 1000), ("b", 7), ("gone", 3)], &[("a", 1021), ("b", 7), ("new", 4)]).complaint();
        let complaint = complaint.expect("three differ");
        let first: Vec<_> = complaint.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(first, ["a", "gone", "new", "more"]);
        assert!(complaint.contains("+2.1%") && complaint.ends_with("`quire-benches instructions --update`"));
    }
}
