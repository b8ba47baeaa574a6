//! Writing operations as lines.

use core::fmt::{self, Write as _};

use super::MAX_NAME;
use crate::space::{Advice, ObjectKind, Prot};
use crate::trace::{Backing, MapKind, Op};

/// One operation as its line, without the newline. `name` is for people and stands on lines of objects only.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The operation.
    pub op: Op,
    /// The object's name. What cannot stand in a name becomes `_`, and what is too long is cut.
    pub name: Option<&'a str>,
}

/// The last line of a trace of so many operations, without the newline.
#[derive(Clone, Copy, Debug)]
pub struct End(pub u64);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "end {}", self.0)
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.op.fmt(f)?;
        let (Op::Object { .. }, Some(name)) = (self.op, self.name) else { return Ok(()) };
        if !name.is_empty() {
            f.write_char(' ')?;
        }
        for c in name.chars().take(MAX_NAME) {
            f.write_char(if c.is_ascii_graphic() { c } else { '_' })?;
        }
        Ok(())
    }
}

/// The line of the text form, without newline.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Object { object, kind, pages, order } => {
                let kind = match kind {
                    ObjectKind::File => "file",
                    ObjectKind::Shared => "shared",
                };
                write!(f, "object {object} {kind} {pages} {order}")
            }
            Self::Start { proc } => write!(f, "start {proc}"),
            Self::Map { proc, at, pages, prot, backing, kind, fixed } => {
                write!(f, "map {proc} {:x} {pages} {prot} {backing}", at.raw())?;
                if kind == MapKind::Stack {
                    f.write_str(" stack")?;
                }
                if fixed {
                    f.write_str(" fixed")?;
                }
                Ok(())
            }
            Self::Unmap { proc, at, pages } => write!(f, "unmap {proc} {:x} {pages}", at.raw()),
            Self::Protect { proc, at, pages, prot } => write!(f, "protect {proc} {:x} {pages} {prot}", at.raw()),
            Self::Remap { proc, from, pages, to, new_pages } => {
                write!(f, "remap {proc} {:x} {pages} {:x} {new_pages}", from.raw(), to.raw())
            }
            Self::Advise { proc, at, pages, advice } => {
                let advice = match advice {
                    Advice::DontNeed => "dontneed",
                    Advice::HugePage => "hugepage",
                    Advice::NoHugePage => "nohugepage",
                };
                write!(f, "advise {proc} {:x} {pages} {advice}", at.raw())
            }
            Self::Brk { proc, start, end } => write!(f, "brk {proc} {:x} {:x}", start.raw(), end.raw()),
            Self::Fork { proc, child } => write!(f, "fork {proc} {child}"),
            Self::Share { proc, child } => write!(f, "share {proc} {child}"),
            Self::Exec { proc } => write!(f, "exec {proc}"),
            Self::Exit { proc } => write!(f, "exit {proc}"),
            Self::Access { proc, at, pages, write } => {
                write!(f, "{} {proc} {:x}", if write { 'w' } else { 'r' }, at.raw())?;
                if pages != 1 {
                    write!(f, " {pages}")?;
                }
                Ok(())
            }
            Self::Look { proc, at, label, repaired } => {
                write!(f, "look {proc} {:x} {}", at.raw(), label.as_str())?;
                if repaired { f.write_str(" repaired") } else { Ok(()) }
            }
        }
    }
}

/// `rwx` with `-` for what is missing.
impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (allowed, letter) in [(self.read, 'r'), (self.write, 'w'), (self.exec, 'x')] {
            f.write_char(if allowed { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// The backing as it stands in a `map` line.
impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Anon => f.write_str("anon"),
            Self::Object { object, offset, private } => {
                write!(f, "{} {object} {offset}", if private { "private" } else { "shared" })
            }
            Self::Device { first } => write!(f, "device {first}"),
        }
    }
}
