//! Recording real programs: what they do to their memory is in the trace, page by page, and nothing else.

mod needs;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use quire::model::contents::Contents;
use quire::trace::text::Reader;
use quire::trace::{Backing, Op};
use quire_vmm::record::{RecordError, RecordOptions, RecordSummary, record, record_text};

/// A folder of its own for each test, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("quire-record-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Compiles a program of `tests/programs`.
    fn compile(&self, name: &str) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.c"));
        let program = self.0.join(name);
        let status = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
        assert!(status.expect("a C compiler").success());
        program
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn words(command: &[&str]) -> Vec<OsString> {
    command.iter().map(OsString::from).collect()
}

/// Records, and checks what holds for every recording: it reads back, and no access of it is refused.
fn recorded(command: &[&str]) -> (Vec<Op>, RecordSummary) {
    let (text, summary) = record_text(&words(command), &RecordOptions::default()).unwrap();
    let ops: Vec<Op> = Reader::new(text.as_bytes()).unwrap().collect::<Result<_, _>>().unwrap();
    let mut contents = Contents::new();
    for op in &ops {
        contents.apply(op, 0).unwrap();
    }
    assert_eq!(summary.trace.ops, ops.len() as u64);
    assert_eq!(summary.bytes, text.len() as u64);
    assert_eq!((summary.lost, summary.dropped, summary.ignored), (0, 0, 0), "{text}");
    (ops, summary)
}

/// How often each page of `from..from + pages` was touched, as (process, page from there, store).
fn touches(ops: &[Op], from: u64, length: u64) -> BTreeMap<(u32, u64, bool), usize> {
    let mut touches = BTreeMap::new();
    for op in ops {
        if let Op::Access { proc, at, pages, write } = *op {
            for page in (at.page()..at.page() + pages).filter(|page| (from..from + length).contains(page)) {
                *touches.entry((proc, page - from, write)).or_default() += 1;
            }
        }
    }
    touches
}

fn once(proc: u32, pages: std::ops::Range<u64>, write: bool) -> impl Iterator<Item = ((u32, u64, bool), usize)> {
    pages.map(move |page| ((proc, page, write), 1))
}

/// The one mapping of so many pages: where, and its place among the operations.
fn mapping(ops: &[Op], length: u64) -> (u64, usize) {
    let found: Vec<_> = ops
        .iter()
        .enumerate()
        .filter_map(|(i, op)| match op {
            Op::Map { at, pages, .. } if *pages == length => Some((at.page(), i)),
            _ => None,
        })
        .collect();
    assert_eq!(found.len(), 1, "mappings of {length} pages: {found:?}");
    found[0]
}

#[test]
fn every_page_a_program_touches_is_in_the_trace() {
    if !needs::perf() {
        return;
    }
    let scratch = Scratch::new("touch");
    let program = scratch.compile("touch");
    let (ops, summary) = recorded(&[program.to_str().unwrap()]);
    assert_eq!(summary.status.code(), Some(3));
    assert_eq!((summary.trace.procs, summary.trace.forks), (2, 1));

    let (private, _) = mapping(&ops, 100);
    let expected: BTreeMap<_, _> = once(0, 0..100, true).chain(once(1, 40..50, true)).collect();
    assert_eq!(touches(&ops, private, 100), expected);

    let (shared, declared) = mapping(&ops, 30);
    assert!(
        matches!(ops[declared], Op::Map { backing: Backing::Object { private: false, .. }, .. }),
        "{}",
        ops[declared]
    );
    let expected: BTreeMap<_, _> = once(0, 0..20, true).chain(once(1, 20..25, false)).collect();
    // Tables of shared mappings are not copied on fork, so only what the child touches first faults.
    assert_eq!(touches(&ops, shared, 30), expected);

    let (more, declared) = mapping(&ops, 300);
    let remapped = ops.iter().position(|op| matches!(op, Op::Remap { pages: 300, new_pages: 700, .. })).unwrap();
    if summary.sees_kernel {
        let expected: BTreeMap<_, _> = once(0, 200..201, true).chain(once(0, 201..202, false)).collect();
        assert_eq!(touches(&ops[declared..remapped], more, 300), expected);
    }
    let Op::Remap { to, .. } = ops[remapped] else { unreachable!() };
    let dropped = ops[remapped..].iter().position(|op| matches!(op, Op::Advise { pages: 2, .. })).unwrap() + remapped;
    assert_eq!(touches(&ops[dropped..], to.page(), 700), once(0, 200..202, true).collect());
    assert!(ops.contains(&Op::Unmap { proc: 0, at: to, pages: 700 }));
    assert!(matches!(ops.last(), Some(Op::Exit { .. })));
}

#[test]
fn threads_that_race_are_recorded_in_order() {
    if !needs::perf() {
        return;
    }
    let scratch = Scratch::new("threads");
    let program = scratch.compile("threads");
    let (ops, summary) = recorded(&[program.to_str().unwrap()]);
    assert_eq!(summary.status.code(), Some(0));
    assert_eq!((summary.trace.procs, summary.trace.forks, summary.trace.execs), (6, 0, 1));
    let mut written = 0;
    for (i, op) in ops.iter().enumerate() {
        if let Op::Map { proc, at, pages: 7, .. } = *op {
            let gone = |op: &Op| *op == Op::Unmap { proc, at, pages: 7 };
            let end = ops[i..].iter().position(gone).expect("every mapping goes") + i;
            let touches = touches(&ops[i..end], at.page(), 7);
            assert_eq!(touches, once(proc, 0..7, true).collect(), "{op}");
            written += 7;
        }
    }
    assert_eq!(written, 4 * 100 * 7);
    // The last thread took over: it alone is left at the end.
    let exec = ops.iter().position(|op| matches!(op, Op::Exec { .. })).unwrap();
    assert_eq!(ops[exec].proc(), Some(5));
    let after: Vec<_> = ops[exec..].iter().filter_map(Op::proc).filter(|&proc| proc != 5).collect();
    assert_eq!(after, [0; 0]);
}

#[test]
fn shells_and_their_children_are_followed() {
    if !needs::perf() {
        return;
    }
    let (ops, summary) = recorded(&["sh", "-c", "(true; exit 4); /bin/true | cat; exec sh -c 'exit 7'"]);
    assert_eq!(summary.status.code(), Some(7));
    assert!(summary.trace.execs >= 3, "{summary:?}");
    let exits = ops.iter().filter(|op| matches!(op, Op::Exit { .. })).count();
    assert_eq!(exits as u64, summary.trace.procs);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::Start { .. })).count(), 1);
}

#[test]
fn signals_and_stops_do_what_they_do_without_us() {
    if !needs::perf() {
        return;
    }
    let (_, summary) = recorded(&["sh", "-c", "kill -KILL $$"]);
    assert_eq!(summary.status.signal(), Some(9));
    let (_, summary) = recorded(&["sh", "-c", "trap 'exit 5' USR1; kill -USR1 $$; exit 1"]);
    assert_eq!(summary.status.code(), Some(5));
    // A job that is stopped goes on when it is told to, not before.
    let (_, summary) = recorded(&["sh", "-c", "(sleep 0.2; kill -CONT $$) & kill -STOP $$; wait; exit 6"]);
    assert_eq!(summary.status.code(), Some(6));
}

#[test]
fn a_recording_is_written_whole_or_not_at_all() {
    if !needs::perf() {
        return;
    }
    let scratch = Scratch::new("output");
    let output = scratch.0.join("true.trace");
    let options = RecordOptions { title: Some(String::from("nothing")), ..RecordOptions::default() };
    let summary = record(&words(&["true"]), &output, &options).unwrap();
    let text = fs::read_to_string(&output).unwrap();
    assert_eq!(summary.bytes, text.len() as u64);
    assert!(text.starts_with("quire-trace 1\ntitle nothing\ncommand true\nrecorded-by quire "), "{text}");

    let missing = scratch.0.join("missing/true.trace");
    assert!(matches!(record(&words(&["true"]), &missing, &options), Err(RecordError::Output { .. })));
    assert!(matches!(record(&words(&["true"]), &scratch.0, &options), Err(RecordError::Output { .. })));
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
}

#[test]
fn commands_that_cannot_run_are_one_clear_line() {
    let error = |command: &[&str]| record_text(&words(command), &RecordOptions::default()).unwrap_err();
    assert_eq!(error(&[]).to_string(), "no command to record");
    assert_eq!(error(&["no-such-command"]).to_string(), "command not found: no-such-command");
    assert_eq!(error(&["/no/such/command"]).to_string(), "command not found: /no/such/command");
    assert!(!error(&["no-such-command"]).is_host_lack());
    if !needs::perf() {
        return;
    }
    let scratch = Scratch::new("text");
    let text = scratch.0.join("text");
    fs::write(&text, "no program").unwrap();
    let found = error(&[text.to_str().unwrap()]).to_string();
    assert!(found.starts_with("cannot execute ") && found.ends_with("(os error 13)"), "{found}");
    assert!(matches!(error(&["/"]), RecordError::CannotExecute { .. }));
}
