//! The arrows between the modules of the library, read from its sources: each goes downward, or is an exception with a reason.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the lowest layer up. Those of one layer do not know each other.
const LAYERS: [&[&str]; 15] = [
    &["addr", "flags", "sync"],
    &["memory"],
    &["format"],
    &["page_table", "folio"],
    &["mapcount"],
    &["space"],
    &["stage2"],
    &["nest"],
    &["audit", "stats"],
    &["ledger"],
    &["trace"],
    &["exercise"],
    &["abi"],
    &["survey"],
    &["model"],
];

/// Upward arrows that may stand: the file, and what it knows.
const EXCEPTIONS: [(&str, &str); 3] = [
    // The two halves of the manager: what VMs have derived from a space's pages goes before those do.
    ("space/mod.rs", "stage2"),
    // A session leaves its findings in the words that the kernel and the VMM have agreed on, and `abi` names those words after what a
    // replay measures.
    ("trace/session.rs", "abi"),
    // And it is the session that asks at every checkpoint.
    ("trace/session.rs", "survey"),
];

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&module)).unwrap_or_else(|| panic!("`{module}` has no layer"))
}

/// Rust sources below `dir`, the kernel's own crate left out.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("bin") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("lib.rs") {
            found.push(path);
        }
    }
}

/// The modules that a line names by `crate::`, in code; links of comments may point anywhere.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// Arrows of one source that are not allowed; `file` is its path below `src`.
fn offences(file: &str, source: &str) -> Vec<String> {
    let from = file.split(['/', '.']).next().unwrap();
    let mut wrong = Vec::new();
    // Unit tests, at the end of a source, bring whatever machine they need.
    let is_code = |line: &&str| !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test");
    for (number, line) in source.lines().take_while(is_code).enumerate() {
        for to in named(line) {
            let number = number + 1;
            if to.is_empty() {
                wrong.push(format!("{file}:{number}: `use crate::{{..}}` hides its arrows"));
            } else if to != from && layer(to) >= layer(from) && !EXCEPTIONS.contains(&(file, to)) {
                wrong.push(format!("{file}:{number}: {from} -> {to}"));
            }
        }
    }
    wrong
}

#[test]
fn arrows_go_downward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "only {} sources", files.len());
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
            offences(file, &fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(wrong.is_empty(), "upward arrows:\n{}", wrong.join("\n"));
}

#[test]
fn every_exception_is_needed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (file, to) in EXCEPTIONS {
        let source = fs::read_to_string(root.join(file)).unwrap();
        assert!(source.lines().flat_map(named).any(|name| name == to), "{file} does not know {to}");
    }
}

#[test]
fn an_upward_arrow_is_reported_with_its_place() {
    let source = "use crate::addr::Pfn;\n// crate::trace\nfn f(_: &crate::trace::Op, _: crate::space::Map) {}\n";
    assert_eq!(offences("space/map.rs", source), ["space/map.rs:3: space -> trace"]);
    assert_eq!(offences("folio/slab.rs", "use crate::page_table::Part;"), ["folio/slab.rs:1: folio -> page_table"]);
    assert_eq!(offences("audit.rs", source), ["audit.rs:3: audit -> trace"]);
    assert_eq!(offences("sync.rs", "use crate::{addr, memory};"), ["sync.rs:1: `use crate::{..}` hides its arrows"]);
}

/// Locked operations on words in code: those of schemes must go through [`quire::sync`], where they are counted.
fn locked_operations(source: &str) -> usize {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.filter(|code| ["fetch_", "compare_exchange", ".swap("].iter().any(|operation| code.contains(operation)))
        .count()
}

#[test]
fn schemes_lock_nothing_but_through_sync() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mapcount"), &mut files);
    assert!(files.len() > 15, "only {} sources", files.len());
    for path in files {
        assert_eq!(locked_operations(&fs::read_to_string(&path).unwrap()), 0, "{} does so itself", path.display());
    }
    assert_eq!(locked_operations("word.fetch_add(1, Relaxed);\n// fetch_add\na.swap(1, Acquire);\n"), 2);
}
