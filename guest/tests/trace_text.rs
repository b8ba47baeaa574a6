//! The text form: what is written is read back, and nothing else is read.

mod ops;

use proptest::prelude::*;
use quire::trace::text::{End, Header, Line, ParseError, Reader, Reason};
use quire::trace::{Backing, Flaw, Op};

fn write(ops: &[Op]) -> String {
    let mut text = Header::default().to_string();
    for op in ops {
        text += &format!("{op}\n");
    }
    text + &format!("{}\n", End(ops.len() as u64))
}

fn read(text: &[u8]) -> Result<Vec<Op>, ParseError> {
    Reader::new(text)?.collect()
}

/// The error of a trace that has `body` between first line and a proper end.
fn refusal(body: &str) -> ParseError {
    let lines = body.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    read(format!("quire-trace 1\n{body}\nend {lines}\n").as_bytes()).expect_err(body)
}

#[track_caller]
fn refused(body: &str, line: u64, reason: Reason) {
    assert_eq!(refusal(body), ParseError { line, reason }, "{body}");
}

const SMALL: &str = "\
quire-trace 1
title a small trace
command true --verbose
recorded-by hand
unknown-accesses 2
lost 0
dropped 1
ignored 3
# comments mean nothing

object 0 file 12 4 libc.so.6
start 0
map 0 7f0000000000 12 r-x private 0 0
map 0 7ffffffde000 33 rw- anon stack fixed
map 0 7f0000100000 2 r-- device 4
r 0 7f0000000000
w 0 7ffffffff000
share 0 1
exit 1
exit 0
end 10
";

#[test]
fn a_trace_is_read_with_its_header_and_names() {
    let mut reader = Reader::new(SMALL.as_bytes()).unwrap();
    let header = *reader.header();
    assert_eq!(header.title, Some("a small trace"));
    assert_eq!(header.command, Some("true --verbose"));
    assert_eq!(header.recorded_by, Some("hand"));
    assert_eq!(
        (header.unknown_accesses, header.lost, header.dropped, header.ignored),
        (Some(2), Some(0), Some(1), Some(3))
    );
    let object = reader.next().unwrap().unwrap();
    assert_eq!(reader.name(), Some("libc.so.6"));
    assert_eq!(reader.line(), 11);
    assert_eq!(Line { op: object, name: reader.name() }.to_string(), "object 0 file 12 4 libc.so.6");
    let rest: Vec<Op> = reader.collect::<Result<_, _>>().unwrap();
    assert_eq!(rest.len(), 9);
    let again = format!("{header}{}\n", Line { op: object, name: Some("libc.so.6") })
        + &rest.iter().map(|op| format!("{op}\n")).collect::<String>()
        + "end 10\n";
    assert_eq!(again, SMALL.replace("# comments mean nothing\n\n", ""));
}

#[test]
fn every_prefix_of_a_trace_is_refused() {
    for length in 0..SMALL.len() {
        let result = read(&SMALL.as_bytes()[..length]);
        assert!(result.is_err(), "{length} bytes are taken for a trace");
    }
    let lines: u64 = SMALL.lines().count() as u64;
    let cut = SMALL.strip_suffix("end 10\n").unwrap();
    assert_eq!(read(cut.as_bytes()), Err(ParseError { line: lines, reason: Reason::Truncated }));
    assert_eq!(read(SMALL.trim_end().as_bytes()), Err(ParseError { line: lines, reason: Reason::Unfinished }));
}

#[test]
fn a_look_has_a_short_label() {
    for line in ["look 0 1000 S6c", "look 0 1000 S6s repaired", "look 0 1000 12345678"] {
        let ops = read(format!("quire-trace 1\nstart 0\n{line}\nend 2\n").as_bytes()).unwrap();
        assert_eq!(ops[1].to_string(), line);
    }
    refused("start 0\nlook 0 1000 123456789", 3, Reason::Text);
    refused("start 0\nlook 0 1000", 3, Reason::Missing("label"));
    refused("start 0\nlook 0 1000 S1 again", 3, Reason::Trailing);
    refused("start 0\nlook 1 1000 S1", 3, Reason::Unknown("process"));
    refused("start 0\nlook 0 1001 S1", 3, Reason::Flaw(Flaw::Unaligned));
    refused("start 0\nlook 0 800000000000 S1", 3, Reason::Flaw(Flaw::AboveHalf));
}

#[test]
fn the_first_line_is_the_magic() {
    let magic = Err(ParseError { line: 1, reason: Reason::Magic });
    for text in [
        "",
        "quire-trace 2\nend 0\n",
        "quire-trace 1\r\nend 0\n",
        "\x7fELF\x02\x01",
        "quire-trace 1",
        " quire-trace 1\n",
    ] {
        assert_eq!(read(text.as_bytes()), magic, "{text:?}");
    }
    assert_eq!(read(b"quire-trace 1\nend 0\n"), Ok(vec![]));
}

#[test]
fn bytes_that_are_not_printable_ascii_are_refused() {
    for byte in [0u8, b'\t', b'\r', 0x1b, 0x7f, 0x80, 0xc3, 0xff] {
        let mut text = b"quire-trace 1\nstart 0\n# ".to_vec();
        text.extend([byte, b'\n']);
        text.extend(b"end 1\n");
        assert_eq!(read(&text), Err(ParseError { line: 3, reason: Reason::Byte(byte) }));
    }
}

#[test]
fn long_lines_are_refused_without_reading_them() {
    refused(&format!("#{}", " ".repeat(400)), 2, Reason::LineLength);
    let mut endless = b"quire-trace 1\n".to_vec();
    endless.resize(1 << 26, b'7');
    assert_eq!(read(&endless), Err(ParseError { line: 2, reason: Reason::LineLength }));
}

#[test]
fn header_lines_stand_once_and_first() {
    refused("title a\ntitle b", 3, Reason::HeaderTwice);
    refused("lost 1\nlost 1", 3, Reason::HeaderTwice);
    refused("title", 2, Reason::Text);
    refused(&format!("title {}", "x".repeat(321)), 2, Reason::Text);
    refused("lost -1", 2, Reason::Field("number"));
    refused("lost 01", 2, Reason::Field("number"));
    refused("start 0\ntitle late", 3, Reason::LateHeader);
    refused("colour green", 2, Reason::Keyword);
}

#[test]
fn fields_are_separated_by_one_space_and_complete() {
    refused("start", 2, Reason::Missing("process number"));
    refused("start ", 2, Reason::Missing("process number"));
    refused("start  0", 2, Reason::Missing("process number"));
    refused(" start 0", 2, Reason::Missing("operation"));
    refused("start 0 ", 2, Reason::Trailing);
    refused("start 0 0", 2, Reason::Trailing);
    refused("start 0\nmap 0 1000 1 rw- anon fixed stack", 3, Reason::Trailing);
    refused("start 0\nmap 0 1000 1 rw-", 3, Reason::Missing("backing"));
    refused("object 0 file 1 4 two names", 2, Reason::Trailing);
    refused(&format!("object 0 file 1 4 {}", "n".repeat(65)), 2, Reason::Text);
}

#[test]
fn numbers_have_one_form() {
    for number in ["-1", "+1", "01", "0x1", "1e3", "1,0", "one", "18446744073709551616"] {
        refused(&format!("start {number}"), 2, Reason::Field("process number"));
    }
    for address in ["0x1000", "01000", "+1000", "100g", "FF000", "10000000000000000"] {
        refused(&format!("start 0\nr 0 {address}"), 3, Reason::Field("address"));
    }
    refused("start 0\nr 0 1000 1", 3, Reason::Field("number of pages above 1"));
    refused("start 0\nr 0 1000 -2", 3, Reason::Field("number of pages above 1"));
    refused("object 0 file 1 19", 2, Reason::Field("order"));
    refused("object 0 pipe 1 4", 2, Reason::Field("kind of object"));
    refused("start 0\nprotect 0 1000 1 rwxx", 3, Reason::Field("protection"));
    refused("start 0\nprotect 0 1000 1 wr-", 3, Reason::Field("protection"));
    refused("start 0\nadvise 0 1000 1 free", 3, Reason::Field("advice"));
    refused("start 0\nmap 0 1000 1 rw- swap", 3, Reason::Field("backing"));
}

#[test]
fn ill_formed_operations_are_refused() {
    let flaw = |line: &str, flaw: Flaw| {
        refused(&format!("object 0 file 16 4\nstart 0\n{line}"), 4, Reason::Flaw(flaw));
    };
    flaw("start 65536", Flaw::Proc);
    flaw("fork 0 65536", Flaw::Proc);
    flaw("fork 0 0", Flaw::OwnChild);
    flaw("map 0 1000 1 rw- private 65536 0", Flaw::Object);
    flaw("map 0 1000 0 rw- anon", Flaw::Empty);
    flaw("unmap 0 1000 0", Flaw::Empty);
    flaw("r 0 1000 0", Flaw::Empty);
    flaw("remap 0 1000 1 2000 0", Flaw::Empty);
    flaw("object 1 file 0 4", Flaw::Empty);
    flaw("r 0 1001", Flaw::Unaligned);
    flaw("brk 0 1000 1fff", Flaw::Unaligned);
    flaw("remap 0 1000 1 2800 1", Flaw::Unaligned);
    flaw("r 0 800000000000", Flaw::AboveHalf);
    flaw("r 0 7ffffffff000 2", Flaw::AboveHalf);
    flaw("r 0 ffffffffff600000", Flaw::AboveHalf);
    flaw("unmap 0 1000 18446744073709551615", Flaw::AboveHalf);
    flaw("map 0 1000 4503599627370496 rw- anon", Flaw::AboveHalf);
    flaw("map 0 1000 2 rw- shared 0 18446744073709551615", Flaw::ObjectLength);
    flaw("object 1 file 34359738369 4", Flaw::ObjectLength);
    flaw("map 0 1000 2 rw- device 4095", Flaw::DeviceLength);
    flaw("map 0 1000 2 rw- device 18446744073709551615", Flaw::DeviceLength);
    flaw("w 0 1000 1048577", Flaw::RunLength);
    flaw("map 0 1000 1 rw- private 0 0 stack", Flaw::StackBacking);
    flaw("remap 0 1000 2 2000 2", Flaw::Overlap);
    flaw("brk 0 2000 1000", Flaw::HeapBackwards);
}

#[test]
fn numbers_count_up() {
    refused("start 1", 2, Reason::Number { expected: 0 });
    refused("start 0\nstart 0", 3, Reason::Number { expected: 1 });
    refused("start 0\nfork 0 2", 3, Reason::Number { expected: 1 });
    refused("start 0\nexit 0\nstart 0", 4, Reason::Number { expected: 1 });
    refused("object 1 file 1 0", 2, Reason::Number { expected: 0 });
    refused("object 0 file 1 0\nobject 0 file 1 0", 3, Reason::Number { expected: 1 });
    refused("exit 0", 2, Reason::Unknown("process"));
    refused("start 0\nfork 1 0", 3, Reason::Unknown("process"));
    refused("start 0\nmap 0 1000 1 rw- private 0 0", 3, Reason::Unknown("object"));
}

#[test]
fn the_end_line_is_exact() {
    let error =
        |text: &str, line, reason| assert_eq!(read(text.as_bytes()), Err(ParseError { line, reason }), "{text:?}");
    error("quire-trace 1\nstart 0\nend 2\n", 3, Reason::Count { found: 1 });
    error("quire-trace 1\nend\n", 2, Reason::Missing("number of operations"));
    error("quire-trace 1\nend 0 0\n", 2, Reason::Trailing);
    error("quire-trace 1\nend 0\n\n", 3, Reason::AfterEnd);
    error("quire-trace 1\nend 0\nstart 0\n", 3, Reason::AfterEnd);
}

#[test]
fn too_many_operations_are_refused() {
    let mut text = String::from("quire-trace 1\nstart 0\n");
    text += &"r 0 0\n".repeat(1 << 22);
    text += "end 4194305\n";
    assert_eq!(read(text.as_bytes()), Err(ParseError { line: (1 << 22) + 2, reason: Reason::TooManyOps }));
}

#[test]
fn what_a_header_cannot_hold_is_replaced() {
    let long = "é".repeat(500);
    let header = Header { title: Some("two\nlines"), command: Some(&long), recorded_by: Some(""), ..Header::default() };
    let text = format!("{header}end 0\n");
    let reader = Reader::new(text.as_bytes()).unwrap();
    assert_eq!(reader.header().title, Some("two?lines"));
    assert_eq!(reader.header().command.map(str::len), Some(320));
    assert_eq!(reader.header().recorded_by, Some("?"));
    let op = Op::Object { object: 0, kind: quire::space::ObjectKind::File, pages: 1, order: quire::addr::Order::BASE };
    assert_eq!(Line { op, name: Some("my file\u{e9}") }.to_string(), "object 0 file 1 0 my_file_");
    assert_eq!(Line { op, name: Some("") }.to_string(), "object 0 file 1 0");
}

#[test]
fn errors_read_as_one_line() {
    let error = refusal("start 0\nr 0 1001");
    assert_eq!(error.to_string(), "line 3: address is not a multiple of 0x1000");
}

/// Operations numbered as a trace demands: objects and processes count up, nobody is named before.
fn numbered_ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(ops::op(), 0..60).prop_map(renumber)
}

fn renumber(ops: Vec<Op>) -> Vec<Op> {
    let (mut procs, mut objects) = (0u32, 0u32);
    let mut numbered = Vec::new();
    for mut op in ops {
        match &mut op {
            Op::Object { object, .. } => {
                *object = objects;
                objects += 1;
            }
            Op::Start { proc } => {
                *proc = procs;
                procs += 1;
            }
            Op::Fork { proc, child } | Op::Share { proc, child } => {
                if procs == 0 {
                    continue;
                }
                *proc %= procs;
                *child = procs;
                procs += 1;
            }
            Op::Map { backing: Backing::Object { .. }, .. } if objects == 0 => continue,
            Op::Map { proc, .. }
            | Op::Unmap { proc, .. }
            | Op::Protect { proc, .. }
            | Op::Remap { proc, .. }
            | Op::Advise { proc, .. }
            | Op::Brk { proc, .. }
            | Op::Exec { proc }
            | Op::Exit { proc }
            | Op::Access { proc, .. }
            | Op::Look { proc, .. } => {
                if procs == 0 {
                    continue;
                }
                *proc %= procs;
            }
        }
        if let Op::Map { backing: Backing::Object { object, .. }, .. } = &mut op {
            *object %= objects;
        }
        numbered.push(op);
    }
    numbered
}

proptest! {
    #[test]
    fn operations_survive_text(ops in numbered_ops()) {
        let text = write(&ops);
        let back = read(text.as_bytes()).unwrap();
        prop_assert_eq!(&back, &ops);
        prop_assert_eq!(write(&back), text);
    }

    #[test]
    fn random_bytes_are_refused_or_well_formed(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut text = b"quire-trace 1\n".to_vec();
        text.extend(&bytes);
        for text in [&bytes, &text] {
            if let Ok(reader) = Reader::new(text) {
                for op in reader.flatten() {
                    prop_assert!(op.check().is_ok());
                }
            }
        }
    }

    /// A damaged trace is refused, or it is another trace that writes back as itself.
    #[test]
    fn damaged_traces_never_yield_ill_formed_operations(
        ops in numbered_ops(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![0x20u8..0x7f, any::<u8>()], 0..3u8), 1..4),
    ) {
        let mut text = write(&ops).into_bytes();
        for (place, byte, how) in damage {
            let place = place.index(text.len());
            match how {
                0 => text[place] = byte,
                1 => text.insert(place, byte),
                _ => { text.remove(place); }
            }
        }
        if let Ok(back) = read(&text) {
            for op in &back {
                prop_assert!(op.check().is_ok());
            }
            prop_assert_eq!(read(write(&back).as_bytes()), Ok(back));
        }
    }
}
