//! What a trace must satisfy as a whole: who lives, what exists.
//!
//! The reader keeps no table, so it cannot know that a process ended. This checker keeps one bit for each process and the
//! length of each object, a quarter of a megabyte at the most; the VMM runs it over a trace before it boots anything.
//! It does not follow mappings: whether an access hits one is for [`Contents`](crate::model::contents::Contents) or the
//! manager to say.

use alloc::vec::Vec;
use core::fmt;

use super::text::{ParseError, Reader};
use super::{Backing, Flaw, Op};

/// Why an operation cannot stand where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// The operation is ill formed wherever it stands.
    Flaw(Flaw),
    /// Objects or processes are not numbered in order.
    Number {
        /// The number that should stand here.
        expected: usize,
    },
    /// The process never started or ended earlier.
    NotAlive(u32),
    /// The object was not introduced.
    NoObject(u32),
    /// A mapping reaches beyond the end of its object.
    BeyondObject(u32),
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flaw(flaw) => flaw.fmt(f),
            Self::Number { expected } => write!(f, "numbers must count up: {expected} comes here"),
            Self::NotAlive(proc) => write!(f, "process {proc} is not alive here"),
            Self::NoObject(object) => write!(f, "no earlier line introduces object {object}"),
            Self::BeyondObject(object) => write!(f, "the mapping reaches beyond the end of object {object}"),
        }
    }
}

impl core::error::Error for Misplaced {}

/// What a checked trace amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations.
    pub ops: u64,
    /// Operations that are accesses (runs).
    pub runs: u64,
    /// Pages that the runs touch, each time counted.
    pub accesses: u64,
    /// Of these, stores.
    pub writes: u64,
    /// Processes and threads.
    pub procs: u64,
    /// The most processes and threads alive at one time.
    pub procs_at_once: u64,
    /// Objects.
    pub objects: u64,
    /// `fork` operations.
    pub forks: u64,
    /// `exec` operations.
    pub execs: u64,
}

/// Follows a trace operation by operation.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    alive: Vec<bool>,
    objects: Vec<u64>,
    alive_now: u64,
    summary: Summary,
}

impl Checker {
    /// A checker before the first operation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was seen so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { procs: self.alive.len() as u64, objects: self.objects.len() as u64, ..self.summary }
    }

    /// Takes the next operation.
    ///
    /// # Errors
    /// When it cannot stand here; the checker is then as it was.
    pub fn op(&mut self, op: &Op) -> Result<(), Misplaced> {
        op.check().map_err(Misplaced::Flaw)?;
        if !matches!(op, Op::Start { .. })
            && let Some(proc) = op.proc()
            && self.alive.get(proc as usize) != Some(&true)
        {
            return Err(Misplaced::NotAlive(proc));
        }
        match *op {
            Op::Object { object, pages, .. } => {
                if object as usize != self.objects.len() {
                    return Err(Misplaced::Number { expected: self.objects.len() });
                }
                self.objects.push(pages);
            }
            Op::Start { proc } => self.appears(proc)?,
            Op::Fork { child, .. } => {
                self.appears(child)?;
                self.summary.forks += 1;
            }
            Op::Share { child, .. } => self.appears(child)?,
            Op::Exit { proc } => {
                self.alive[proc as usize] = false;
                self.alive_now -= 1;
            }
            Op::Exec { .. } => self.summary.execs += 1,
            Op::Map { pages, backing: Backing::Object { object, offset, .. }, .. } => {
                match self.objects.get(object as usize) {
                    None => return Err(Misplaced::NoObject(object)),
                    Some(&length) if offset + pages > length => return Err(Misplaced::BeyondObject(object)),
                    Some(_) => {}
                }
            }
            Op::Access { pages, write, .. } => {
                self.summary.runs += 1;
                self.summary.accesses += pages;
                self.summary.writes += if write { pages } else { 0 };
            }
            _ => {}
        }
        self.summary.ops += 1;
        Ok(())
    }

    fn appears(&mut self, proc: u32) -> Result<(), Misplaced> {
        if proc as usize != self.alive.len() {
            return Err(Misplaced::Number { expected: self.alive.len() });
        }
        self.alive.push(true);
        self.alive_now += 1;
        self.summary.procs_at_once = self.summary.procs_at_once.max(self.alive_now);
        Ok(())
    }
}

/// Why a text is no trace that can be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckError {
    /// A line is refused by itself.
    Parse(ParseError),
    /// An operation stands where it cannot.
    Misplaced {
        /// Its line, from 1.
        line: u64,
        /// Why.
        reason: Misplaced,
    },
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parse(error) => error.fmt(f),
            Self::Misplaced { line, reason } => write!(f, "line {line}: {reason}"),
        }
    }
}

impl core::error::Error for CheckError {}

/// Reads and checks a whole trace.
///
/// # Errors
/// The first line that is refused.
pub fn check(bytes: &[u8]) -> Result<Summary, CheckError> {
    let mut reader = Reader::new(bytes).map_err(CheckError::Parse)?;
    let mut checker = Checker::new();
    while let Some(op) = reader.next() {
        let op = op.map_err(CheckError::Parse)?;
        checker.op(&op).map_err(|reason| CheckError::Misplaced { line: reader.line(), reason })?;
    }
    Ok(checker.summary())
}
