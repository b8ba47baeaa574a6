//! One operation as eight words: how a trace travels in memory, from the VMM to the kernel.
//!
//! The kernel cannot afford to parse text and must not trust what it shares memory with, so the form is fixed and
//! [`decode`] checks everything the text reader checks. Words that an operation does not use are zero.
//!
//! | word | holds |
//! |---|---|
//! | 0 | bits 0-7 the code of the operation, 8-15 a small field, 16-23 protection (1 read, 2 write, 4 execute), 24-31 flags |
//! | 1 | the process, or the object's number |
//! | 2 | first address, or the child, or the start of the heap |
//! | 3 | length in pages, or the end of the heap, or the label of a look |
//! | 4 | new address of a move; object of a mapping |
//! | 5 | new length of a move; offset into the object, first frame of a device |
//! | 6, 7 | zero |

use core::fmt;

use super::{Backing, Flaw, Label, MapKind, Op};
use crate::addr::{Gva, Order};
use crate::space::{Advice, ObjectKind, Prot};

/// Words in an encoded operation.
pub const WORDS: usize = 8;

/// Why eight words are no operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// No operation has this code.
    Code(u8),
    /// A field has a value without meaning, or bits that must be zero are not.
    Field,
    /// The operation is ill formed.
    Flaw(Flaw),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "no operation has code {code}"),
            Self::Field => write!(f, "a field has a value without meaning"),
            Self::Flaw(flaw) => flaw.fmt(f),
        }
    }
}

impl core::error::Error for DecodeError {}

const OBJECT: u8 = 1;
const START: u8 = 2;
const MAP: u8 = 3;
const UNMAP: u8 = 4;
const PROTECT: u8 = 5;
const REMAP: u8 = 6;
const ADVISE: u8 = 7;
const BRK: u8 = 8;
const FORK: u8 = 9;
const SHARE: u8 = 10;
const EXEC: u8 = 11;
const EXIT: u8 = 12;
const ACCESS: u8 = 13;
const LOOK: u8 = 14;

const ANON: u8 = 0;
const PRIVATE: u8 = 1;
const SHARED: u8 = 2;
const DEVICE: u8 = 3;

const FLAG_STACK: u8 = 1;
const FLAG_FIXED: u8 = 2;

/// The eight words of `op`.
#[must_use]
pub fn encode(op: &Op) -> [u64; WORDS] {
    match *op {
        Op::Object { object, kind, pages, order } => {
            let shared = kind == ObjectKind::Shared;
            [head(OBJECT, order.get(), 0, u8::from(shared)), object.into(), 0, pages, 0, 0, 0, 0]
        }
        Op::Start { proc } => [head(START, 0, 0, 0), proc.into(), 0, 0, 0, 0, 0, 0],
        Op::Map { proc, at, pages, prot, backing, kind, fixed } => {
            let (small, w4, w5) = match backing {
                Backing::Anon => (ANON, 0, 0),
                Backing::Object { object, offset, private } => {
                    (if private { PRIVATE } else { SHARED }, object.into(), offset)
                }
                Backing::Device { first } => (DEVICE, 0, first),
            };
            let stack = if kind == MapKind::Stack { FLAG_STACK } else { 0 };
            let fixed = if fixed { FLAG_FIXED } else { 0 };
            [head(MAP, small, prot_bits(prot), stack | fixed), proc.into(), at.raw(), pages, w4, w5, 0, 0]
        }
        Op::Unmap { proc, at, pages } => [head(UNMAP, 0, 0, 0), proc.into(), at.raw(), pages, 0, 0, 0, 0],
        Op::Protect { proc, at, pages, prot } => {
            [head(PROTECT, 0, prot_bits(prot), 0), proc.into(), at.raw(), pages, 0, 0, 0, 0]
        }
        Op::Remap { proc, from, pages, to, new_pages } => {
            [head(REMAP, 0, 0, 0), proc.into(), from.raw(), pages, to.raw(), new_pages, 0, 0]
        }
        Op::Advise { proc, at, pages, advice } => {
            let small = match advice {
                Advice::DontNeed => 0,
                Advice::HugePage => 1,
                Advice::NoHugePage => 2,
            };
            [head(ADVISE, small, 0, 0), proc.into(), at.raw(), pages, 0, 0, 0, 0]
        }
        Op::Brk { proc, start, end } => [head(BRK, 0, 0, 0), proc.into(), start.raw(), end.raw(), 0, 0, 0, 0],
        Op::Fork { proc, child } => [head(FORK, 0, 0, 0), proc.into(), child.into(), 0, 0, 0, 0, 0],
        Op::Share { proc, child } => [head(SHARE, 0, 0, 0), proc.into(), child.into(), 0, 0, 0, 0, 0],
        Op::Exec { proc } => [head(EXEC, 0, 0, 0), proc.into(), 0, 0, 0, 0, 0, 0],
        Op::Exit { proc } => [head(EXIT, 0, 0, 0), proc.into(), 0, 0, 0, 0, 0, 0],
        Op::Access { proc, at, pages, write } => {
            [head(ACCESS, u8::from(write), 0, 0), proc.into(), at.raw(), pages, 0, 0, 0, 0]
        }
        Op::Look { proc, at, label, repaired } => {
            let label = u64::from_le_bytes(label.bytes());
            [head(LOOK, u8::from(repaired), 0, 0), proc.into(), at.raw(), label, 0, 0, 0, 0]
        }
    }
}

/// The operation that `words` encode. Accepts exactly what [`encode`] makes of well-formed operations.
///
/// # Errors
/// When the words encode no well-formed operation.
pub fn decode(words: &[u64; WORDS]) -> Result<Op, DecodeError> {
    let [code, small, prot, flags, rest @ ..] = words[0].to_le_bytes();
    let op = decode_fields(code, small, prot, flags, words)?;
    op.check().map_err(DecodeError::Flaw)?;
    // Whatever the operation does not use must be zero: then every operation has one encoding.
    if rest != [0; 4] || encode(&op) != *words {
        return Err(DecodeError::Field);
    }
    Ok(op)
}

fn decode_fields(code: u8, small: u8, prot: u8, flags: u8, words: &[u64; WORDS]) -> Result<Op, DecodeError> {
    let proc = number(words[1])?;
    let op = match code {
        OBJECT => Op::Object {
            object: proc,
            kind: if flags == 0 { ObjectKind::File } else { ObjectKind::Shared },
            pages: words[3],
            order: Order::try_new(small).ok_or(DecodeError::Field)?,
        },
        START => Op::Start { proc },
        MAP => Op::Map {
            proc,
            at: address(words[2])?,
            pages: words[3],
            prot: prot_of(prot),
            backing: match small {
                ANON => Backing::Anon,
                PRIVATE | SHARED => {
                    Backing::Object { object: number(words[4])?, offset: words[5], private: small == PRIVATE }
                }
                DEVICE => Backing::Device { first: words[5] },
                _ => return Err(DecodeError::Field),
            },
            kind: if flags & FLAG_STACK == 0 { MapKind::Plain } else { MapKind::Stack },
            fixed: flags & FLAG_FIXED != 0,
        },
        UNMAP => Op::Unmap { proc, at: address(words[2])?, pages: words[3] },
        PROTECT => Op::Protect { proc, at: address(words[2])?, pages: words[3], prot: prot_of(prot) },
        REMAP => {
            Op::Remap { proc, from: address(words[2])?, pages: words[3], to: address(words[4])?, new_pages: words[5] }
        }
        ADVISE => Op::Advise {
            proc,
            at: address(words[2])?,
            pages: words[3],
            advice: match small {
                0 => Advice::DontNeed,
                1 => Advice::HugePage,
                2 => Advice::NoHugePage,
                _ => return Err(DecodeError::Field),
            },
        },
        BRK => Op::Brk { proc, start: address(words[2])?, end: address(words[3])? },
        FORK => Op::Fork { proc, child: number(words[2])? },
        SHARE => Op::Share { proc, child: number(words[2])? },
        EXEC => Op::Exec { proc },
        EXIT => Op::Exit { proc },
        ACCESS => Op::Access { proc, at: address(words[2])?, pages: words[3], write: small != 0 },
        LOOK => Op::Look {
            proc,
            at: address(words[2])?,
            label: Label::from_bytes(words[3].to_le_bytes()).ok_or(DecodeError::Field)?,
            repaired: small != 0,
        },
        _ => return Err(DecodeError::Code(code)),
    };
    Ok(op)
}

const fn head(code: u8, small: u8, prot: u8, flags: u8) -> u64 {
    u64::from_le_bytes([code, small, prot, flags, 0, 0, 0, 0])
}

fn prot_bits(prot: Prot) -> u8 {
    u8::from(prot.read) | u8::from(prot.write) << 1 | u8::from(prot.exec) << 2
}

const fn prot_of(bits: u8) -> Prot {
    Prot { read: bits & 1 != 0, write: bits & 2 != 0, exec: bits & 4 != 0 }
}

fn number(word: u64) -> Result<u32, DecodeError> {
    u32::try_from(word).map_err(|_| DecodeError::Field)
}

fn address(word: u64) -> Result<Gva, DecodeError> {
    Gva::try_new(word).ok_or(DecodeError::Flaw(Flaw::AboveHalf))
}
