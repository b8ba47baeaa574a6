//! The text form of a trace: one line for one operation, for people, diffs and version control.
//!
//! # The format, version 1
//!
//! A trace is lines of printable ASCII (bytes 0x20 to 0x7e), each ended by a newline and at most [`MAX_LINE`] bytes long
//! without it. Fields are separated by exactly one space. There is one way to write each operation, so reading and writing
//! again gives the same bytes, comments apart. Lines in order:
//!
//! 1. `quire-trace 1`, the first line.
//! 2. Header lines, each at most once, in any order, all optional:
//!
//!    | line | meaning |
//!    |---|---|
//!    | `title TEXT` | what the trace is, for people |
//!    | `command TEXT` | the command that was recorded |
//!    | `recorded-by TEXT` | program and system that recorded it |
//!    | `unknown-accesses N` | accesses whose direction could not be told; they stand as reads |
//!    | `lost N` | page faults that the recorder knows it did not see |
//!    | `dropped N` | accesses and calls left out because the trace could not explain them |
//!    | `ignored N` | memory calls that worked but that the format cannot express |
//!
//! 3. Operations, in the order in which they happened.
//! 4. `end N`, where N is the number of operations. Nothing follows it: a trace without it was cut short.
//!
//! Empty lines and lines that begin with `#` may stand anywhere between the first line and `end`; they mean nothing.
//!
//! Numbers are decimal, addresses hexadecimal in lower case without prefix; neither has leading zeros or a sign. Lengths
//! and offsets are in pages of 4096 bytes, addresses are multiples of 1000 (hexadecimal) and ranges end at most at
//! 800000000000: the upper half of the address space is not the tenant's. In the table P and C are processes (or threads),
//! O an object, A and B addresses, N and M lengths:
//!
//! | line | operation | example |
//! |---|---|---|
//! | `object O KIND N ORDER [NAME]` | [`Object`](super::Op::Object): KIND is `file` or `shared`; NAME has no spaces | `object 3 file 482 4 libc.so.6` |
//! | `start P` | [`Start`](super::Op::Start) | `start 0` |
//! | `map P A N PROT BACKING [stack] [fixed]` | [`Map`](super::Op::Map): PROT is `rwx` with `-` for what is missing; BACKING is `anon`, `private O OFFSET`, `shared O OFFSET` or `device FIRST` | `map 0 7f10a2000000 38 r-x private 3 26 fixed` |
//! | `unmap P A N` | [`Unmap`](super::Op::Unmap) | `unmap 0 7f10a2000000 38` |
//! | `protect P A N PROT` | [`Protect`](super::Op::Protect) | `protect 0 7f10a2000000 4 r--` |
//! | `remap P A N B M` | [`Remap`](super::Op::Remap) from A, N pages, to B, M pages | `remap 0 7f10a2000000 33 7f10a3000000 65` |
//! | `advise P A N ADVICE` | [`Advise`](super::Op::Advise): `dontneed`, `hugepage` or `nohugepage` | `advise 0 7f10a2000000 8 dontneed` |
//! | `brk P A B` | [`Brk`](super::Op::Brk): the heap starts at A and now ends at B | `brk 0 555557a2b000 555557a4c000` |
//! | `fork P C` | [`Fork`](super::Op::Fork): C is new | `fork 0 1` |
//! | `share P C` | [`Share`](super::Op::Share): C is new | `share 0 2` |
//! | `exec P` | [`Exec`](super::Op::Exec) | `exec 1` |
//! | `exit P` | [`Exit`](super::Op::Exit) | `exit 1` |
//! | `r P A [N]` | [`Access`](super::Op::Access): load from each of N pages; N is left out when it is 1 | `r 0 7ffd4c5e1000` |
//! | `w P A [N]` | [`Access`](super::Op::Access): store to each of N pages | `w 0 7f10a3000000 16` |
//! | `look P A LABEL [repaired]` | [`Look`](super::Op::Look): LABEL has at most 8 characters | `look 0 7f10a2000000 S6c` |
//!
//! Limits: [`MAX_PROCS`](super::MAX_PROCS) processes, [`MAX_OBJECTS`](super::MAX_OBJECTS) objects,
//! [`MAX_OPS`](super::MAX_OPS) operations, runs of [`MAX_RUN_PAGES`](super::MAX_RUN_PAGES) pages, objects of
//! [`MAX_OBJECT_PAGES`](super::MAX_OBJECT_PAGES) pages, a device window of [`MAX_DEVICE_PAGES`](super::MAX_DEVICE_PAGES)
//! frames. Objects are numbered from 0 in the order of their lines, and so are processes in the order of `start`, `fork` and
//! `share`; no number is used again.
//!
//! # Reading
//!
//! [`Reader`] pulls operations out of bytes in memory without allocating. It refuses everything that this page does not
//! allow, with line and reason; but what needs memory for each process (does it live?) it leaves to `trace::check`.

mod header;
mod read;
mod write;

pub use header::Header;
pub use read::{ParseError, Reader, Reason};
pub use write::{End, Line};

/// The longest line, in bytes without its newline.
pub const MAX_LINE: usize = 400;
/// The longest value of a header line, in bytes.
pub const MAX_TEXT: usize = 320;
/// The longest name of an object, in bytes.
pub const MAX_NAME: usize = 64;
/// The first line.
pub const MAGIC: &str = "quire-trace 1";
