//! What memory must contain: a reference for replays, independent of page tables, folios and counts.
//!
//! It knows pages of 4 KiB and nothing larger. Each page has one word, its first: zero in fresh anonymous memory,
//! [`file_word`] in a file, [`stamp`] once it was stored to. A replay on real page tables must read the same words, or it
//! gave a tenant the wrong page. Simplicity is the point: maps of pages, copied on `fork`, no cleverness to get wrong.
//!
//! # What each operation does to contents
//!
//! - Private anonymous pages are zero until written. Private file pages are the object's until the first store makes a
//!   private copy; stores to the object through shared mappings show until then, as on Linux.
//! - Object pages belong to the object, last as long as the trace and are shared by all who map them.
//! - `fork` copies private pages (nobody sees the other's later stores); `share` joins the same address space; `exec`
//!   leaves it for an empty one; an address space goes with the last process in it.
//! - `advise dontneed` drops private pages (zero again, or the file's contents); object pages stay. Other advice and
//!   `protect` change no contents.
//! - `remap` moves private pages along; `brk` maps and unmaps; `unmap` and `fixed` mappings drop private pages.
//! - An access below a stack mapping grows it as [`stack_grows`](crate::space::stack_grows) says.
//! - Device pages are not modelled: [`Contents::apply`] gives no checksum for an access that touches one. Its ordinary
//!   pages are still touched and stored to.
//!
//! # Operations that Linux would refuse
//!
//! They are refused here as well, named in a [`Refused`], and change nothing: an access that hits no mapping or lacks the
//! permission on any of its pages, a mapping that is not `fixed` over an existing one, a heap that would grow into a
//! mapping, a move of a range that is not one mapping (adjacent ones of the same kind with contiguous offsets count as
//! one, since Linux merges them), growth of a device mapping or beyond an object's end, and anything by a process that is
//! not alive. `unmap`, `protect` and `advise` of holes are fine: holes are skipped.

mod space;
mod vmas;

use alloc::collections::BTreeMap;
use core::fmt;

use self::space::{Page, Space};
use crate::addr::Gva;
use crate::space::{ObjectKind, file_word};
use crate::trace::{Backing, Flaw, Op, stamp};

/// An operation that a real kernel would have refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The operation.
    pub op: Op,
    /// Why.
    pub reason: Refusal,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.op, self.reason)
    }
}

impl core::error::Error for Refused {}

/// Why an operation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is ill formed by itself.
    Flaw(Flaw),
    /// The process is not alive.
    NotAlive,
    /// The new process or object has a number that is in use.
    NumberTaken,
    /// The object was not introduced.
    NoObject,
    /// The mapping would reach beyond the end of its object.
    BeyondObject,
    /// Something is mapped where nothing may be.
    Occupied(Gva),
    /// Nothing is mapped here.
    NotMapped(Gva),
    /// The mapping does not allow this.
    NoPermission(Gva),
    /// The range is not one mapping.
    NotOneMapping,
    /// Device mappings cannot grow.
    DeviceGrows,
    /// The heap began elsewhere.
    HeapMoved,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flaw(flaw) => flaw.fmt(f),
            Self::NotAlive => write!(f, "the process is not alive"),
            Self::NumberTaken => write!(f, "the number is in use"),
            Self::NoObject => write!(f, "no such object"),
            Self::BeyondObject => write!(f, "the mapping would reach beyond the end of its object"),
            Self::Occupied(at) => write!(f, "{at} is mapped already"),
            Self::NotMapped(at) => write!(f, "nothing is mapped at {at}"),
            Self::NoPermission(at) => write!(f, "the mapping at {at} does not allow it"),
            Self::NotOneMapping => write!(f, "the range is not one mapping"),
            Self::DeviceGrows => write!(f, "a device mapping cannot grow"),
            Self::HeapMoved => write!(f, "the heap began elsewhere"),
        }
    }
}

/// The memory of all processes of a trace.
#[derive(Debug, Default)]
pub struct Contents {
    objects: BTreeMap<u32, Object>,
    /// Which address space each process is in.
    procs: BTreeMap<u32, u64>,
    spaces: BTreeMap<u64, Shared>,
    next_space: u64,
    frames: u64,
    peak_frames: u64,
}

#[derive(Debug)]
struct Object {
    kind: ObjectKind,
    length: u64,
    /// The pages touched so far.
    pages: BTreeMap<u64, u64>,
}

#[derive(Debug, Default)]
struct Shared {
    space: Space,
    users: u64,
}

impl Contents {
    /// The memory before the first operation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Frames that hold the pages now, when every touched page has one, copies are made on the first store after a fork,
    /// and nothing is larger than a page.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// The most that [`frames`](Self::frames) ever was: what a replay in single pages needs.
    #[must_use]
    pub const fn peak_frames(&self) -> u64 {
        self.peak_frames
    }

    /// Whether `proc` is alive.
    #[must_use]
    pub fn is_alive(&self, proc: u32) -> bool {
        self.procs.contains_key(&proc)
    }

    /// Does `op`. For an access that touches no device page the answer is the checksum that its loads must give, where
    /// each page contributes its first word in order, before the store if there is one:
    /// `sum = sum.rotate_left(5) ^ word`, from 0. A store leaves [`stamp`]`(seed, page number)`.
    ///
    /// # Errors
    /// When a real kernel would refuse the operation. Then nothing changed.
    pub fn apply(&mut self, op: &Op, seed: u64) -> Result<Option<u64>, Refused> {
        let sum = self.try_apply(op, seed).map_err(|reason| Refused { op: *op, reason })?;
        self.peak_frames = self.peak_frames.max(self.frames);
        Ok(sum)
    }

    fn try_apply(&mut self, op: &Op, seed: u64) -> Result<Option<u64>, Refusal> {
        op.check().map_err(Refusal::Flaw)?;
        match *op {
            Op::Object { object, kind, pages, order: _ } => self.object(object, kind, pages)?,
            Op::Start { proc } => self.appear(proc, None)?,
            Op::Map { proc, at, pages, prot, backing, kind, fixed } => {
                self.check_backing(backing, pages)?;
                let (space, frames) = self.space(proc)?;
                if fixed {
                    space.unmap(at.page(), pages, frames);
                }
                space.map(at.page(), pages, prot, backing, kind)?;
            }
            Op::Unmap { proc, at, pages } => {
                let (space, frames) = self.space(proc)?;
                space.unmap(at.page(), pages, frames);
            }
            Op::Protect { proc, at, pages, prot } => self.space(proc)?.0.protect(at.page(), pages, prot),
            Op::Remap { proc, from, pages, to, new_pages } => {
                let first = self.space(proc)?.0.one_mapping(from.page(), pages)?;
                if new_pages > pages {
                    self.check_backing(first.backing, new_pages)?;
                    if matches!(first.backing, Backing::Device { .. }) {
                        return Err(Refusal::DeviceGrows);
                    }
                }
                let (space, frames) = self.space(proc)?;
                space.remap(from.page(), pages, to.page(), new_pages, first, frames)?;
            }
            Op::Advise { proc, at, pages, advice } => {
                let (space, frames) = self.space(proc)?;
                space.advise(at.page(), pages, advice, frames);
            }
            Op::Brk { proc, start, end } => {
                let (space, frames) = self.space(proc)?;
                space.brk(start.page(), end.page(), frames)?;
            }
            Op::Fork { proc, child } => {
                let copy = self.space(proc)?.0.fork();
                self.appear(child, Some(copy))?;
            }
            Op::Share { proc, child } => self.join(proc, child)?,
            Op::Exec { proc } => {
                self.leave(proc)?;
                self.appear(proc, None)?;
            }
            Op::Exit { proc } => self.leave(proc)?,
            Op::Look { proc, .. } => {
                self.space(proc)?;
            }
            Op::Access { proc, at, pages, write } => return self.access(proc, at.page(), pages, write, seed),
        }
        Ok(None)
    }

    fn object(&mut self, object: u32, kind: ObjectKind, length: u64) -> Result<(), Refusal> {
        if self.objects.contains_key(&object) {
            return Err(Refusal::NumberTaken);
        }
        self.objects.insert(object, Object { kind, length, pages: BTreeMap::new() });
        Ok(())
    }

    fn check_backing(&self, backing: Backing, pages: u64) -> Result<(), Refusal> {
        let Backing::Object { object, offset, private: _ } = backing else { return Ok(()) };
        let object = self.objects.get(&object).ok_or(Refusal::NoObject)?;
        if offset + pages > object.length { Err(Refusal::BeyondObject) } else { Ok(()) }
    }

    fn space(&mut self, proc: u32) -> Result<(&mut Space, &mut u64), Refusal> {
        let id = self.procs.get(&proc).ok_or(Refusal::NotAlive)?;
        let shared = self.spaces.get_mut(id).ok_or(Refusal::NotAlive)?;
        Ok((&mut shared.space, &mut self.frames))
    }

    fn appear(&mut self, proc: u32, space: Option<Space>) -> Result<(), Refusal> {
        if self.is_alive(proc) {
            return Err(Refusal::NumberTaken);
        }
        self.procs.insert(proc, self.next_space);
        self.spaces.insert(self.next_space, Shared { space: space.unwrap_or_default(), users: 1 });
        self.next_space += 1;
        Ok(())
    }

    fn join(&mut self, proc: u32, child: u32) -> Result<(), Refusal> {
        let id = *self.procs.get(&proc).ok_or(Refusal::NotAlive)?;
        if self.is_alive(child) {
            return Err(Refusal::NumberTaken);
        }
        self.procs.insert(child, id);
        if let Some(shared) = self.spaces.get_mut(&id) {
            shared.users += 1;
        }
        Ok(())
    }

    fn leave(&mut self, proc: u32) -> Result<(), Refusal> {
        let id = self.procs.remove(&proc).ok_or(Refusal::NotAlive)?;
        let Some(shared) = self.spaces.get_mut(&id) else { return Ok(()) };
        shared.users -= 1;
        if shared.users == 0
            && let Some(mut last) = self.spaces.remove(&id)
        {
            last.space.clear(&mut self.frames);
        }
        Ok(())
    }

    fn access(&mut self, proc: u32, at: u64, pages: u64, write: bool, seed: u64) -> Result<Option<u64>, Refusal> {
        let id = *self.procs.get(&proc).ok_or(Refusal::NotAlive)?;
        let space = &mut self.spaces.get_mut(&id).ok_or(Refusal::NotAlive)?.space;
        let grown = space.stack_below(at);
        space.check_access(at, pages, write, grown)?;
        if let Some(start) = grown {
            space.grow_stack(start, at);
        }
        let (mut sum, mut modelled) = (0u64, true);
        for page in at..at + pages {
            let Some(backing) = space.backing(page) else { return Err(Refusal::NotMapped(Gva::from_page(page))) };
            let new = write.then(|| stamp(seed, page));
            match touch(space, &mut self.objects, &mut self.frames, page, backing, new) {
                Some(word) => sum = sum.rotate_left(5) ^ word,
                None => modelled = false,
            }
        }
        Ok(modelled.then_some(sum))
    }
}

/// Loads the word of `page` and stores `new` if there is one. `None` for a device page.
fn touch(
    space: &mut Space,
    objects: &mut BTreeMap<u32, Object>,
    frames: &mut u64,
    page: u64,
    backing: Backing,
    new: Option<u64>,
) -> Option<u64> {
    match backing {
        Backing::Device { .. } => None,
        Backing::Anon => {
            let old = space.private(page).unwrap_or(0);
            // A load gives the page a frame as well: it is zero, and stays so until somebody stores.
            space.store(page, Page::new(new.unwrap_or(old)), new.is_some(), frames);
            Some(old)
        }
        Backing::Object { object: number, offset, private } => {
            if private && let Some(old) = space.private(page) {
                if let Some(new) = new {
                    space.store(page, Page::new(new), true, frames);
                }
                return Some(old);
            }
            let object = objects.get_mut(&number)?;
            let fresh = match object.kind {
                ObjectKind::File => file_word(number, offset),
                ObjectKind::Shared => 0,
            };
            let word = object.pages.entry(offset).or_insert_with(|| {
                *frames += 1;
                fresh
            });
            let old = *word;
            match new {
                Some(new) if private => space.store(page, Page::new(new), true, frames),
                Some(new) => *word = new,
                None => {}
            }
            Some(old)
        }
    }
}
