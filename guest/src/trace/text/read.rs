//! Reading a trace without allocating.

use core::fmt;
use core::iter::FusedIterator;
use core::str::Split;

use super::{Header, MAGIC, MAX_LINE, MAX_NAME, MAX_TEXT};
use crate::addr::{Gva, Order};
use crate::space::{Advice, ObjectKind, Prot};
use crate::trace::{Backing, Flaw, Label, MAX_OBJECTS, MAX_OPS, MAX_PROCS, MapKind, Op};

/// Why a trace is refused, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: Reason,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl core::error::Error for ParseError {}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The first line is not `quire-trace 1`.
    Magic,
    /// The trace stops before its `end` line.
    Truncated,
    /// The last line has no newline.
    Unfinished,
    /// A line is longer than [`MAX_LINE`].
    LineLength,
    /// A byte that is not printable ASCII.
    Byte(u8),
    /// The line begins with a word that means nothing.
    Keyword,
    /// A header line after the first operation.
    LateHeader,
    /// A header line that was there before.
    HeaderTwice,
    /// A header text, a name or a label that is empty or too long.
    Text,
    /// A field is missing; this one.
    Missing(&'static str),
    /// A field does not read as what it should be.
    Field(&'static str),
    /// More on the line than belongs there.
    Trailing,
    /// Objects or processes are not numbered in order.
    Number {
        /// The number that should stand here.
        expected: u32,
    },
    /// An object or process that no earlier line introduces.
    Unknown(&'static str),
    /// An operation that is ill formed.
    Flaw(Flaw),
    /// More than [`MAX_OPS`] operations.
    TooManyOps,
    /// The `end` line gives another number of operations.
    Count {
        /// Operations before it.
        found: u64,
    },
    /// Something follows the `end` line.
    AfterEnd,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "not a trace: the first line must be `{MAGIC}`"),
            Self::Truncated => write!(f, "the trace stops here without an `end` line"),
            Self::Unfinished => write!(f, "the last line has no newline"),
            Self::LineLength => write!(f, "line is longer than {MAX_LINE} bytes"),
            Self::Byte(byte) => write!(f, "byte {byte:#04x} is not printable ASCII"),
            Self::Keyword => write!(f, "the first word is no operation"),
            Self::LateHeader => write!(f, "header line after the first operation"),
            Self::HeaderTwice => write!(f, "this header line was there before"),
            Self::Text => write!(f, "text, name or label is empty or too long"),
            Self::Missing(field) => write!(f, "{field} is missing"),
            Self::Field(field) => write!(f, "this is no {field}"),
            Self::Trailing => write!(f, "more on the line than belongs there"),
            Self::Number { expected } => write!(f, "numbers must count up: {expected} comes here"),
            Self::Unknown(what) => write!(f, "no earlier line introduces this {what}"),
            Self::Flaw(flaw) => flaw.fmt(f),
            Self::TooManyOps => write!(f, "more than {MAX_OPS} operations"),
            Self::Count { found } => write!(f, "wrong count: there are {found} operations before this line"),
            Self::AfterEnd => write!(f, "something follows the `end` line"),
        }
    }
}

/// Pulls the operations out of a trace. Ends after the `end` line or the first error.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    lines: Lines<'a>,
    header: Header<'a>,
    /// The first line after the header, which `new` had to read.
    pending: Option<&'a str>,
    name: Option<&'a str>,
    ops: u64,
    objects: u32,
    procs: u32,
    done: bool,
}

impl<'a> Reader<'a> {
    /// A reader of the trace in `bytes`, its header read.
    ///
    /// # Errors
    /// When the header is refused.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Self {
            lines: Lines { rest: bytes, number: 0 },
            header: Header::default(),
            pending: None,
            name: None,
            ops: 0,
            objects: 0,
            procs: 0,
            done: false,
        };
        reader.read_header().map_err(|reason| reader.error(reason))?;
        Ok(reader)
    }

    /// What the trace says about itself.
    #[must_use]
    pub const fn header(&self) -> &Header<'a> {
        &self.header
    }

    /// The number of the line read last, from 1.
    #[must_use]
    pub const fn line(&self) -> u64 {
        self.lines.number
    }

    /// The name on the line read last; only lines of objects have one.
    #[must_use]
    pub const fn name(&self) -> Option<&'a str> {
        self.name
    }

    const fn error(&self, reason: Reason) -> ParseError {
        ParseError { line: self.lines.number, reason }
    }

    fn read_header(&mut self) -> Result<(), Reason> {
        // Whatever else is wrong with the first line, the file is no trace.
        if self.lines.next().map_err(|_| Reason::Magic)? != Some(MAGIC) {
            return Err(Reason::Magic);
        }
        while let Some(line) = self.next_line()? {
            if !self.header_line(line)? {
                self.pending = Some(line);
                break;
            }
        }
        Ok(())
    }

    /// The next line that means something.
    fn next_line(&mut self) -> Result<Option<&'a str>, Reason> {
        if let Some(line) = self.pending.take() {
            return Ok(Some(line));
        }
        while let Some(line) = self.lines.next()? {
            if !line.is_empty() && !line.starts_with('#') {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Takes `line` into the header; false when it is none of the header's.
    fn header_line(&mut self, line: &'a str) -> Result<bool, Reason> {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let header = &mut self.header;
        let (text, count) = match key {
            "title" => (Some(&mut header.title), None),
            "command" => (Some(&mut header.command), None),
            "recorded-by" => (Some(&mut header.recorded_by), None),
            "unknown-accesses" => (None, Some(&mut header.unknown_accesses)),
            "lost" => (None, Some(&mut header.lost)),
            "dropped" => (None, Some(&mut header.dropped)),
            "ignored" => (None, Some(&mut header.ignored)),
            _ => return Ok(false),
        };
        if self.ops > 0 {
            return Err(Reason::LateHeader);
        }
        if let Some(slot) = text {
            if value.is_empty() || value.len() > MAX_TEXT {
                return Err(Reason::Text);
            }
            if slot.replace(value).is_some() {
                return Err(Reason::HeaderTwice);
            }
        }
        if let Some(slot) = count {
            let value = decimal(value).ok_or(Reason::Field("number"))?;
            if slot.replace(value).is_some() {
                return Err(Reason::HeaderTwice);
            }
        }
        Ok(true)
    }

    fn next_op(&mut self) -> Result<Option<Op>, Reason> {
        self.name = None;
        let Some(line) = self.next_line()? else { return Err(Reason::Truncated) };
        let mut fields = Fields(line.split(' '));
        let keyword = fields.next("operation")?;
        if keyword == "end" {
            let count = fields.decimal("number of operations")?;
            fields.finish()?;
            if count != self.ops {
                return Err(Reason::Count { found: self.ops });
            }
            return if self.lines.rest.is_empty() {
                Ok(None)
            } else {
                self.lines.number += 1;
                Err(Reason::AfterEnd)
            };
        }
        let Some(op) = self.operation(keyword, &mut fields)? else {
            return Err(if self.header_line(line)? { Reason::LateHeader } else { Reason::Keyword });
        };
        fields.finish()?;
        op.check().map_err(Reason::Flaw)?;
        self.check_numbers(&op)?;
        if self.ops == MAX_OPS {
            return Err(Reason::TooManyOps);
        }
        self.ops += 1;
        Ok(Some(op))
    }

    fn operation(&mut self, keyword: &str, fields: &mut Fields<'a>) -> Result<Option<Op>, Reason> {
        let op = match keyword {
            "object" => {
                let object = fields.object()?;
                let kind = match fields.next("kind of object")? {
                    "file" => ObjectKind::File,
                    "shared" => ObjectKind::Shared,
                    _ => return Err(Reason::Field("kind of object")),
                };
                let pages = fields.pages()?;
                let order = fields.order()?;
                self.name = fields.name()?;
                Op::Object { object, kind, pages, order }
            }
            "start" => Op::Start { proc: fields.proc()? },
            "map" => Op::Map {
                proc: fields.proc()?,
                at: fields.address()?,
                pages: fields.pages()?,
                prot: fields.prot()?,
                backing: fields.backing()?,
                kind: if fields.flag("stack") { MapKind::Stack } else { MapKind::Plain },
                fixed: fields.flag("fixed"),
            },
            "unmap" => Op::Unmap { proc: fields.proc()?, at: fields.address()?, pages: fields.pages()? },
            "protect" => Op::Protect {
                proc: fields.proc()?,
                at: fields.address()?,
                pages: fields.pages()?,
                prot: fields.prot()?,
            },
            "remap" => Op::Remap {
                proc: fields.proc()?,
                from: fields.address()?,
                pages: fields.pages()?,
                to: fields.address()?,
                new_pages: fields.pages()?,
            },
            "advise" => Op::Advise {
                proc: fields.proc()?,
                at: fields.address()?,
                pages: fields.pages()?,
                advice: fields.advice()?,
            },
            "brk" => Op::Brk { proc: fields.proc()?, start: fields.address()?, end: fields.address()? },
            "fork" => Op::Fork { proc: fields.proc()?, child: fields.proc()? },
            "share" => Op::Share { proc: fields.proc()?, child: fields.proc()? },
            "exec" => Op::Exec { proc: fields.proc()? },
            "exit" => Op::Exit { proc: fields.proc()? },
            "r" | "w" => {
                Op::Access { proc: fields.proc()?, at: fields.address()?, pages: fields.run()?, write: keyword == "w" }
            }
            "look" => Op::Look {
                proc: fields.proc()?,
                at: fields.address()?,
                label: Label::new(fields.next("label")?).ok_or(Reason::Text)?,
                repaired: fields.flag("repaired"),
            },
            _ => return Ok(None),
        };
        Ok(Some(op))
    }

    /// Numbers count up: that alone says whether one was introduced, without a table.
    fn check_numbers(&mut self, op: &Op) -> Result<(), Reason> {
        let introduced = |number: u32, next: &mut u32| {
            if number != *next {
                return Err(Reason::Number { expected: *next });
            }
            *next += 1;
            Ok(())
        };
        match *op {
            Op::Object { object, .. } => return introduced(object, &mut self.objects),
            Op::Start { proc } => return introduced(proc, &mut self.procs),
            _ => {}
        }
        if op.proc().is_some_and(|proc| proc >= self.procs) {
            return Err(Reason::Unknown("process"));
        }
        match *op {
            Op::Fork { child, .. } | Op::Share { child, .. } => introduced(child, &mut self.procs),
            Op::Map { backing: Backing::Object { object, .. }, .. } if object >= self.objects => {
                Err(Reason::Unknown("object"))
            }
            _ => Ok(()),
        }
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Op, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.next_op() {
            Ok(Some(op)) => Some(Ok(op)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(reason) => {
                self.done = true;
                Some(Err(self.error(reason)))
            }
        }
    }
}

impl FusedIterator for Reader<'_> {}

/// Lines of printable ASCII.
#[derive(Clone, Debug)]
struct Lines<'a> {
    rest: &'a [u8],
    /// Lines handed out, and so the number of the line read last.
    number: u64,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a str>, Reason> {
        self.number += 1;
        if self.rest.is_empty() {
            return Ok(None);
        }
        // Nothing beyond the longest line is looked at: a gigabyte without a newline costs no more than one line.
        let window = &self.rest[..self.rest.len().min(MAX_LINE + 1)];
        let end = window.iter().position(|&byte| byte == b'\n');
        let line = &window[..end.unwrap_or(window.len())];
        if let Some(&byte) = line.iter().find(|byte| !(0x20..=0x7e).contains(*byte)) {
            return Err(Reason::Byte(byte));
        }
        let Some(end) = end else {
            return Err(if line.len() > MAX_LINE { Reason::LineLength } else { Reason::Unfinished });
        };
        self.rest = &self.rest[end + 1..];
        let line = str::from_utf8(line).map_err(|_| Reason::Byte(line[0]))?;
        Ok(Some(line))
    }
}

/// The fields of a line. The name of a field stands in the error.
struct Fields<'a>(Split<'a, char>);

impl<'a> Fields<'a> {
    fn next(&mut self, what: &'static str) -> Result<&'a str, Reason> {
        match self.0.next() {
            Some("") | None => Err(Reason::Missing(what)),
            Some(field) => Ok(field),
        }
    }

    fn finish(&mut self) -> Result<(), Reason> {
        if self.0.next().is_some() { Err(Reason::Trailing) } else { Ok(()) }
    }

    /// Takes the next field when it is `word`.
    fn flag(&mut self, word: &str) -> bool {
        let mut ahead = self.0.clone();
        let found = ahead.next() == Some(word);
        if found {
            self.0 = ahead;
        }
        found
    }

    fn decimal(&mut self, what: &'static str) -> Result<u64, Reason> {
        decimal(self.next(what)?).ok_or(Reason::Field(what))
    }

    fn proc(&mut self) -> Result<u32, Reason> {
        let number = self.decimal("process number")?;
        u32::try_from(number).ok().filter(|&n| n < MAX_PROCS).ok_or(Reason::Flaw(Flaw::Proc))
    }

    fn object(&mut self) -> Result<u32, Reason> {
        let number = self.decimal("object number")?;
        u32::try_from(number).ok().filter(|&n| n < MAX_OBJECTS).ok_or(Reason::Flaw(Flaw::Object))
    }

    fn pages(&mut self) -> Result<u64, Reason> {
        self.decimal("number of pages")
    }

    /// The length of a run: left out for one page, so that there is one way to write it.
    fn run(&mut self) -> Result<u64, Reason> {
        const WHAT: &str = "number of pages above 1";
        match self.0.next() {
            None => Ok(1),
            Some(field) => decimal(field).filter(|&pages| pages != 1).ok_or(Reason::Field(WHAT)),
        }
    }

    fn order(&mut self) -> Result<Order, Reason> {
        let order = self.decimal("order")?;
        u8::try_from(order).ok().and_then(Order::try_new).ok_or(Reason::Field("order"))
    }

    fn address(&mut self) -> Result<Gva, Reason> {
        let raw = hexadecimal(self.next("address")?).ok_or(Reason::Field("address"))?;
        Gva::try_new(raw).ok_or(Reason::Flaw(Flaw::AboveHalf))
    }

    fn prot(&mut self) -> Result<Prot, Reason> {
        let letter = |byte: u8, letter: u8| match byte {
            b'-' => Ok(false),
            _ if byte == letter => Ok(true),
            _ => Err(Reason::Field("protection")),
        };
        match *self.next("protection")?.as_bytes() {
            [r, w, x] => Ok(Prot { read: letter(r, b'r')?, write: letter(w, b'w')?, exec: letter(x, b'x')? }),
            _ => Err(Reason::Field("protection")),
        }
    }

    fn backing(&mut self) -> Result<Backing, Reason> {
        match self.next("backing")? {
            "anon" => Ok(Backing::Anon),
            "device" => Ok(Backing::Device { first: self.decimal("first frame")? }),
            kind @ ("private" | "shared") => Ok(Backing::Object {
                object: self.object()?,
                offset: self.decimal("offset")?,
                private: kind == "private",
            }),
            _ => Err(Reason::Field("backing")),
        }
    }

    fn advice(&mut self) -> Result<Advice, Reason> {
        match self.next("advice")? {
            "dontneed" => Ok(Advice::DontNeed),
            "hugepage" => Ok(Advice::HugePage),
            "nohugepage" => Ok(Advice::NoHugePage),
            _ => Err(Reason::Field("advice")),
        }
    }

    fn name(&mut self) -> Result<Option<&'a str>, Reason> {
        match self.0.next() {
            None => Ok(None),
            Some(name) if name.is_empty() || name.len() > MAX_NAME => Err(Reason::Text),
            Some(name) => Ok(Some(name)),
        }
    }
}

/// A decimal number without sign or leading zeros.
fn decimal(field: &str) -> Option<u64> {
    let plain = field == "0" || !field.starts_with(['0', '+']);
    if plain { field.parse().ok() } else { None }
}

/// A hexadecimal number in lower case without prefix, sign or leading zeros.
fn hexadecimal(field: &str) -> Option<u64> {
    let plain = field == "0" || !field.starts_with('0');
    let lower = field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if plain && lower { u64::from_str_radix(field, 16).ok() } else { None }
}
