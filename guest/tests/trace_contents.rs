//! What memory must contain: the reference against what Linux does, and the checker of whole traces.
#![cfg(feature = "model")]

use proptest::prelude::*;
use quire::addr::Gva;
use quire::model::contents::{Contents, Refusal};
use quire::space::file_word;
use quire::trace::check::{CheckError, Misplaced, check};
use quire::trace::text::Reader;
use quire::trace::{Op, stamp};

const SEED: u64 = 7;

/// Memory that lines of the text form act on.
struct Memory(Contents);

impl Memory {
    /// A process 0, an object 0 that is a file and an object 1 that is shared memory, 64 pages each.
    fn new() -> Self {
        let mut memory = Self(Contents::new());
        for line in ["object 0 file 64 4", "object 1 shared 64 4", "start 0"] {
            memory.run(line).unwrap();
        }
        memory
    }

    fn run(&mut self, line: &str) -> Result<Option<u64>, Refusal> {
        // Introduce whatever the line may name, then take the line itself.
        let mut text = String::from("quire-trace 1\n");
        if !line.starts_with("object") {
            text += "object 0 file 64 4\nobject 1 shared 64 4\n";
        } else if line.starts_with("object 1") {
            text += "object 0 file 64 4\n";
        }
        let known = match line.split(' ').collect::<Vec<_>>()[..] {
            ["start", proc] | ["fork" | "share", _, proc] => proc.parse().unwrap(),
            _ => 9,
        };
        for proc in 0..known {
            text += &format!("start {proc}\n");
        }
        text += &format!("{line}\nend 0\n");
        let ops: Vec<Op> = Reader::new(text.as_bytes()).unwrap().filter_map(Result::ok).collect();
        let op = ops.last().unwrap();
        assert_eq!(op.to_string(), line);
        self.0.apply(op, SEED).map_err(|refused| {
            assert_eq!(refused.op, *op);
            refused.reason
        })
    }

    #[track_caller]
    fn fine(&mut self, lines: &[&str]) -> &mut Self {
        for line in lines {
            self.run(line).unwrap_or_else(|refusal| panic!("{line}: {refusal}"));
        }
        self
    }

    #[track_caller]
    fn reads(&mut self, line: &str, words: &[u64]) -> &mut Self {
        let sum = words.iter().fold(0u64, |sum, word| sum.rotate_left(5) ^ word);
        assert_eq!(self.run(line), Ok(Some(sum)), "{line}");
        self
    }

    #[track_caller]
    fn refused(&mut self, line: &str, refusal: Refusal) -> &mut Self {
        assert_eq!(self.run(line), Err(refusal), "{line}");
        self
    }
}

const fn st(page: u64) -> u64 {
    stamp(SEED, page)
}

const fn at(raw: u64) -> Gva {
    Gva::new(raw)
}

#[test]
fn anonymous_memory_is_zero_until_written() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 4 rw- anon"]).reads("r 0 10000 4", &[0; 4]).reads("w 0 11000 2", &[0, 0]);
    memory.reads("r 0 10000 4", &[0, st(0x11), st(0x12), 0]);
    memory.fine(&["advise 0 10000 2 dontneed"]).reads("r 0 10000 4", &[0, 0, st(0x12), 0]);
    memory.fine(&["unmap 0 12000 1"]).refused("r 0 12000", Refusal::NotMapped(at(0x12000)));
    memory.refused("w 0 11000 2", Refusal::NotMapped(at(0x12000))).reads("r 0 11000", &[0]);
    memory.refused("map 0 f000 4 rw- anon", Refusal::Occupied(at(0x10000)));
    memory.fine(&["map 0 f000 4 rw- anon fixed"]).reads("r 0 f000 4", &[0; 4]);
}

#[test]
fn private_file_pages_are_copied_on_the_first_store() {
    let file = |page| file_word(0, page);
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 2 rw- private 0 5", "map 0 20000 2 rw- shared 0 5"]);
    memory.reads("w 0 10000", &[file(5)]).reads("r 0 10000 2", &[st(0x10), file(6)]);
    memory.reads("w 0 20000 2", &[file(5), file(6)]);
    // The copy hides what others store to the object, the page that was only read shows it.
    memory.reads("r 0 10000 2", &[st(0x10), st(0x21)]);
    memory.fine(&["advise 0 10000 2 dontneed", "advise 0 20000 2 dontneed"]);
    memory.reads("r 0 10000 2", &[st(0x20), st(0x21)]).reads("r 0 20000 2", &[st(0x20), st(0x21)]);
}

#[test]
fn forks_copy_private_pages_and_share_objects() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 2 rw- anon", "map 0 20000 1 rw- shared 1 0", "w 0 10000", "fork 0 1"]);
    memory.reads("r 1 10000 2", &[st(0x10), 0]).reads("w 1 11000", &[0]).reads("r 0 11000", &[0]);
    memory.reads("w 0 20000", &[0]).reads("r 1 20000", &[st(0x20)]);
    memory.fine(&["exit 0"]).reads("r 1 10000 2", &[st(0x10), st(0x11)]);
    memory.refused("r 0 10000", Refusal::NotAlive);
}

#[test]
fn threads_share_and_exec_leaves() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 1 rw- anon", "share 0 1"]);
    memory.reads("w 1 10000", &[0]).reads("r 0 10000", &[st(0x10)]);
    memory.fine(&["exec 1"]).refused("r 1 10000", Refusal::NotMapped(at(0x10000)));
    memory.fine(&["map 1 10000 1 rw- anon"]).reads("r 1 10000", &[0]).reads("r 0 10000", &[st(0x10)]);
}

#[test]
fn moves_take_private_pages_along() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 4 rw- anon", "w 0 10000 4", "remap 0 11000 2 20000 3"]);
    memory.reads("r 0 20000 3", &[st(0x11), st(0x12), 0]);
    memory.refused("r 0 11000", Refusal::NotMapped(at(0x11000))).reads("r 0 13000", &[st(0x13)]);
    // A move over something replaces it; shrinking drops the tail.
    memory.fine(&["remap 0 20000 3 13000 1"]).reads("r 0 13000", &[st(0x11)]);
    memory.refused("r 0 22000", Refusal::NotMapped(at(0x22000)));
    // In place: what is in the way stays there.
    memory.refused("remap 0 10000 1 10000 5", Refusal::Occupied(at(0x13000)));
    memory.fine(&["remap 0 10000 1 10000 3"]).reads("r 0 10000 4", &[st(0x10), 0, 0, st(0x11)]);
    // Now 10000..14000 is three mappings that Linux would have merged.
    memory.fine(&["remap 0 10000 4 30000 4"]).reads("r 0 30000 4", &[st(0x10), 0, 0, st(0x11)]);
    memory.fine(&["protect 0 31000 1 r--"]).refused("remap 0 30000 4 10000 4", Refusal::NotOneMapping);
    memory.refused("remap 0 33000 2 10000 2", Refusal::NotMapped(at(0x34000)));
}

#[test]
fn moves_of_object_mappings_keep_their_offset() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 2 r-- private 0 3", "map 0 12000 2 r-- private 0 5", "remap 0 11000 2 20000 4"]);
    memory.reads("r 0 20000 4", &[4, 5, 6, 7].map(|page| file_word(0, page)));
    memory.refused("remap 0 20000 4 20000 61", Refusal::BeyondObject);
    memory.fine(&["map 0 30000 1 r-- device 0"]).refused("remap 0 30000 1 30000 2", Refusal::DeviceGrows);
    memory.fine(&["map 0 50000 1 r-- private 0 0", "map 0 51000 1 r-- private 0 2"]);
    memory.refused("remap 0 50000 2 60000 2", Refusal::NotOneMapping);
}

#[test]
fn the_heap_grows_and_is_cut() {
    let mut memory = Memory::new();
    memory.fine(&["brk 0 10000 12000", "w 0 10000 2", "brk 0 10000 11000", "brk 0 10000 13000"]);
    memory.reads("r 0 10000 3", &[st(0x10), 0, 0]).refused("brk 0 11000 13000", Refusal::HeapMoved);
    memory.fine(&["map 0 14000 1 r-- anon"]).refused("brk 0 10000 15000", Refusal::Occupied(at(0x14000)));
    memory.fine(&["fork 0 1", "brk 1 10000 10000"]).reads("r 0 10000", &[st(0x10)]);
    memory.refused("r 1 10000", Refusal::NotMapped(at(0x10000)));
}

#[test]
fn stacks_grow_by_accesses() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 7fffff000 1 rw- anon stack", "map 0 7fe000000 1 rw- anon"]);
    memory.reads("w 0 7ffffb000 5", &[0; 5]).reads("r 0 7ffffb000", &[st(0x7ff_ffb)]);
    let below = |pages: u64| format!("r 0 {:x}", 0x7_ffff_b000 - pages * 0x1000);
    memory.refused(&below(2049), Refusal::NotMapped(at(0x7_ff7f_a000)));
    memory.fine(&[&below(2048)]);
    // 256 pages stay free above the neighbour.
    memory.fine(&["map 0 7ff6fb000 1 rw- anon"]);
    memory.fine(&["r 0 7ff7fb000"]).refused("r 0 7ff7fa000", Refusal::NotMapped(at(0x7_ff7f_a000)));
    memory.fine(&["unmap 0 7ff6fb000 1", "r 0 7ff7fa000"]);
    // A plain mapping does not grow.
    memory.refused("r 0 7fdfff000", Refusal::NotMapped(at(0x7_fdff_f000)));
}

#[test]
fn permissions_are_those_of_x86() {
    let mut memory = Memory::new();
    memory.fine(&[
        "map 0 10000 1 --- anon",
        "map 0 11000 1 r-- anon",
        "map 0 12000 1 -w- anon",
        "map 0 13000 1 --x anon",
    ]);
    memory.refused("r 0 10000", Refusal::NoPermission(at(0x10000)));
    memory.refused("w 0 11000", Refusal::NoPermission(at(0x11000)));
    memory.refused("w 0 12000 2", Refusal::NoPermission(at(0x13000)));
    memory.reads("r 0 11000 3", &[0; 3]).reads("w 0 12000", &[0]);
    memory.fine(&["protect 0 f000 2 rw-"]).reads("w 0 10000", &[0]);
}

#[test]
fn devices_are_not_modelled() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 1 rw- anon", "map 0 11000 1 rw- device 0"]);
    assert_eq!(memory.run("w 0 11000"), Ok(None));
    assert_eq!(memory.run("w 0 10000 2"), Ok(None));
    memory.reads("r 0 10000", &[st(0x10)]);
}

#[test]
fn numbers_and_bounds_are_checked() {
    let mut memory = Memory::new();
    memory.refused("start 0", Refusal::NumberTaken).refused("fork 5 6", Refusal::NotAlive);
    memory.refused("object 1 file 1 0", Refusal::NumberTaken);
    memory.refused("map 0 10000 2 r-- private 0 63 fixed", Refusal::BeyondObject);
    memory.fine(&["fork 0 1"]).refused("share 0 1", Refusal::NumberTaken).refused("fork 0 1", Refusal::NumberTaken);
}

#[test]
fn frames_are_counted_once_per_copy() {
    let mut memory = Memory::new();
    memory.fine(&["map 0 10000 4 rw- anon", "w 0 10000 4", "map 0 20000 2 rw- private 0 0", "r 0 20000 2"]);
    assert_eq!(memory.0.frames(), 6);
    memory.fine(&["w 0 20000", "fork 0 1"]);
    assert_eq!(memory.0.frames(), 7);
    memory.fine(&["w 1 10000 2", "r 1 12000 2"]);
    assert_eq!(memory.0.frames(), 9);
    memory.fine(&["w 0 10000 2", "remap 1 10000 4 30000 2", "unmap 0 12000 2"]);
    assert_eq!(memory.0.frames(), 7);
    memory.fine(&["exit 0"]);
    assert_eq!(memory.0.frames(), 5);
    memory.fine(&["exit 1"]);
    assert_eq!((memory.0.frames(), memory.0.peak_frames()), (2, 9));
}

#[test]
fn the_checker_knows_who_is_alive_and_what_exists() {
    let trace = |body: &str| check(format!("quire-trace 1\n{body}end {}\n", body.lines().count()).as_bytes());
    let misplaced = |body: &str, line, reason| {
        assert_eq!(trace(body), Err(CheckError::Misplaced { line, reason }), "{body}");
    };
    misplaced("start 0\nexit 0\nr 0 1000\n", 4, Misplaced::NotAlive(0));
    misplaced("start 0\nfork 0 1\nexit 1\nexit 1\n", 5, Misplaced::NotAlive(1));
    misplaced("start 0\nexit 0\nfork 0 1\n", 4, Misplaced::NotAlive(0));
    misplaced("object 0 file 4 0\nstart 0\nmap 0 1000 2 r-- private 0 3\n", 4, Misplaced::BeyondObject(0));
    let summary = trace("start 0\nmap 0 1000 4 rw- anon\nfork 0 1\nexec 1\nw 0 1000 4\nr 0 1000\nexit 1\n").unwrap();
    assert_eq!((summary.ops, summary.runs, summary.accesses, summary.writes), (7, 2, 5, 4));
    assert_eq!((summary.procs, summary.procs_at_once, summary.forks, summary.execs), (2, 2, 1, 1));
    let unreadable = trace("start 0\nr 0 1\n").unwrap_err();
    assert_eq!(unreadable.to_string(), "line 3: address is not a multiple of 0x1000");
}

proptest! {
    /// What is refused changes nothing, and no history makes the count of frames go wrong.
    #[test]
    fn frames_return_when_everybody_left(
        steps in proptest::collection::vec((0..12u8, 0..4u32, 0..24u64, 1..8u64, 0..24u64, any::<bool>()), 1..120),
    ) {
        let mut memory = Memory::new();
        let mut procs = 1;
        for (what, proc, page, pages, other, flag) in steps {
            let (from, to) = (0x10000 + page * 0x1000, 0x10000 + other * 0x1000);
            let run = if pages == 1 { String::new() } else { format!(" {pages}") };
            let line = match what {
                0 => format!("map {proc} {from:x} {pages} rw- anon{}", if flag { " fixed" } else { "" }),
                1 => format!("map {proc} {from:x} {pages} rw- private 0 {other} fixed"),
                2 => format!("map {proc} {from:x} {pages} rw- shared 1 {other} fixed"),
                3 => format!("unmap {proc} {from:x} {pages}"),
                4 => format!("advise {proc} {from:x} {pages} dontneed"),
                5 if page == other || page + pages <= other || other + pages <= page => {
                    format!("remap {proc} {from:x} {pages} {to:x} {pages}")
                }
                6 if procs < 8 => {
                    procs += 1;
                    let line = format!("fork 0 {}", procs - 1);
                    memory.run(&line).unwrap();
                    continue;
                }
                7 if proc != 0 => format!("exec {proc}"),
                8 | 9 => format!("r {proc} {from:x}{run}"),
                _ => format!("w {proc} {from:x}{run}"),
            };
            let before = memory.0.frames();
            if memory.run(&line).is_err() {
                prop_assert_eq!(memory.0.frames(), before);
            }
        }
        for proc in 0..procs {
            memory.run(&format!("exit {proc}")).unwrap();
        }
        // Only the pages of the two objects are left.
        prop_assert!(memory.0.frames() <= 2 * 64);
        prop_assert!(memory.0.peak_frames() >= memory.0.frames());
    }
}
