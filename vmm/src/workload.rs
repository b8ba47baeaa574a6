//! A trace, read, checked, and made ready to be replayed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use quire::abi::OP_WORDS;
use quire::abi::replay::{EXPECTED, HAS_EXPECTED};
use quire::model::contents::Contents;
use quire::trace::check::{Checker, Summary};
use quire::trace::encode::encode;
use quire::trace::text::Reader;
use quire::trace::{Backing, Op};

use crate::error::Error;

/// The trace that is replayed when none is named.
pub const DEFAULT_NAME: &str = "bank";
const DEFAULT: &[u8] = include_bytes!("../traces/bank.trace");

/// The longest trace file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// A trace whose every operation a real kernel would accept, with what each access must read.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What to call it.
    pub name: String,
    /// What it says it is.
    pub title: Option<String>,
    /// The operations as the kernel takes them; accesses carry what they must read.
    pub encoded: Vec<[u64; OP_WORDS]>,
    /// Counts of what is in it.
    pub summary: Summary,
    /// The most frames its pages take at one time, in single pages.
    pub peak_frames: u64,
    /// Whether it maps device memory.
    pub has_device: bool,
    /// The seed of what its tenants store.
    pub seed: u64,
}

impl Workload {
    /// The trace in the file `path`.
    ///
    /// # Errors
    /// [`Error::Trace`] when it cannot be read or is no good.
    pub fn read(path: &Path, seed: u64) -> Result<Self, Error> {
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let refuse = |reason: String| Error::Trace { file: path.display().to_string(), line: None, reason };
        let mut bytes = Vec::new();
        // Whatever kind of file it is: no more than a trace may have.
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| refuse(error.to_string()))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(refuse(format!("longer than a trace may be ({MAX_BYTES} bytes)")));
        }
        Self::parse(&name, &path.display().to_string(), &bytes, seed)
    }

    /// The trace that comes with the program.
    ///
    /// # Errors
    /// None that a build that passed its tests has.
    pub fn shipped(seed: u64) -> Result<Self, Error> {
        Self::parse(DEFAULT_NAME, "(shipped)", DEFAULT, seed)
    }

    /// The trace in `bytes`, said to be from `file`.
    ///
    /// # Errors
    /// [`Error::Trace`], with the line.
    pub fn parse(name: &str, file: &str, bytes: &[u8], seed: u64) -> Result<Self, Error> {
        let refuse = |line: u64, reason: String| Error::Trace { file: file.to_owned(), line: Some(line), reason };
        let mut reader = Reader::new(bytes).map_err(|error| refuse(error.line, error.reason.to_string()))?;
        let title = reader.header().title.map(str::to_owned);
        let mut checker = Checker::new();
        let mut contents = Contents::new();
        let mut encoded = Vec::new();
        let mut has_device = false;
        while let Some(op) = reader.next() {
            let op = op.map_err(|error| refuse(error.line, error.reason.to_string()))?;
            checker.op(&op).map_err(|reason| refuse(reader.line(), reason.to_string()))?;
            let expected = contents.apply(&op, seed).map_err(|refused| refuse(reader.line(), refused.to_string()))?;
            let mut words = encode(&op);
            if let Some(sum) = expected.filter(|_| matches!(op, Op::Access { .. })) {
                (words[HAS_EXPECTED], words[EXPECTED]) = (1, sum);
            }
            encoded.push(words);
            has_device |= matches!(op, Op::Map { backing: Backing::Device { .. }, .. });
        }
        Ok(Self {
            name: name.to_owned(),
            title,
            encoded,
            summary: checker.summary(),
            peak_frames: contents.peak_frames(),
            has_device,
            seed,
        })
    }

    /// A workload of operations that were not read from a file.
    ///
    /// # Errors
    /// [`Error::Trace`]: a real kernel would refuse one; the line is its number from 1.
    pub fn of_ops(name: &str, ops: &[Op], seed: u64) -> Result<Self, Error> {
        let mut text = quire::trace::text::Header::default().to_string();
        for op in ops {
            text += &format!("{op}\n");
        }
        text += &format!("{}\n", quire::trace::text::End(ops.len() as u64));
        Self::parse(name, name, text.as_bytes(), seed)
    }

    /// Bytes of frames that a replay needs at least: pages, their tables and records.
    #[must_use]
    pub fn least_memory(&self) -> u64 {
        // Tables and descriptors are well below an eighth of the pages, unless these lie far apart.
        (self.peak_frames * 9 / 8) * 4096 + (8 << 20)
    }

    /// Bytes of frames that let large folios be had everywhere.
    #[must_use]
    pub fn ample_memory(&self) -> u64 {
        (self.peak_frames * 4096 * 4 + (64 << 20)).next_multiple_of(2 << 20)
    }
}
