//! Replays the operations of a trace on a manager.
//!
//! What touches memory, and what measures, is the machine's: it brings a [`Tenant`]. Everything else is the same in a VM and in process.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::{Backing, MapKind, Op};
use crate::addr::{ENTRIES, Gva, Order, Pfn};
use crate::folio::Frames;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::space::{FaultError, Manager, Map, MapError, ObjectId, SpaceId};

/// What is timed besides faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// A fork; size in pages resident in the parent.
    Fork = 16,
    /// The end of an address space; size in pages resident.
    Teardown = 17,
    /// munmap, or what MAP_FIXED replaced; size in pages of the range.
    Unmap = 18,
    /// mprotect.
    Protect = 19,
    /// mremap.
    Remap = 20,
    /// madvise.
    Advise = 21,
    /// mmap and brk.
    Map = 22,
}

/// A machine that can touch memory as a tenant.
pub trait Tenant<M, A> {
    /// Touches `pages` pages from `at` on in `space`, one access at the start of each: a load of the first word, and for a write a store of
    /// [`stamp`](super::stamp) behind it. Page faults go to [`Manager::fault`]. Returns the words loaded, folded: `sum = rotl(sum, 5) ^ word`.
    ///
    /// # Errors
    /// The first address that cannot be accessed, and why.
    fn touch(
        &mut self,
        manager: &Manager<M, A>,
        space: SpaceId,
        at: Gva,
        pages: u64,
        write: bool,
    ) -> Result<u64, (Gva, FaultError)>;

    /// A clock.
    fn now(&mut self) -> u64;

    /// An operation of `event` on `pages` pages began at `since`, and has just ended.
    fn ended(&mut self, event: Event, pages: u64, since: u64);

    /// The space is about to be torn down: nothing of it may be in use by the machine.
    fn leaving(&mut self, manager: &Manager<M, A>, space: SpaceId);
}

/// Why a replay ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// An operation names a process that does not exist, or one that exists already.
    Process(u32),
    /// An operation names an object that does not exist.
    Object(u32),
    /// The manager refused the operation.
    Map(MapError),
    /// The tenant could not access an address.
    Access(Gva, FaultError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(proc) => write!(f, "process {proc} does not exist, or exists already"),
            Self::Object(object) => write!(f, "object {object} does not exist"),
            Self::Map(error) => error.fmt(f),
            Self::Access(at, error) => write!(f, "access to {at}: {error}"),
        }
    }
}

impl core::error::Error for ReplayError {}

impl From<MapError> for ReplayError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Processes and objects of a trace, and the spaces and objects they became.
pub struct Replay<'m, M, A> {
    manager: &'m Manager<M, A>,
    device: Pfn,
    procs: Numbers,
    objects: Numbers,
}

impl<M, A> fmt::Debug for Replay<'_, M, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replay(..)")
    }
}

impl<'m, M: Memory + Tlb, A: Accounting> Replay<'m, M, A> {
    /// A replay on `manager`, which should be empty. Device mappings show the frames from `device` on, which the manager must not own:
    /// [`MAX_DEVICE_PAGES`](super::MAX_DEVICE_PAGES) of them.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`].
    pub fn new(manager: &'m Manager<M, A>, device: Pfn) -> Result<Self, MapError> {
        let procs = Numbers::new(manager.frames()).ok_or(MapError::OutOfFrames)?;
        let objects = Numbers::new(manager.frames()).ok_or(MapError::OutOfFrames)?;
        Ok(Self { manager, device, procs, objects })
    }

    /// The manager that it runs on.
    #[must_use]
    pub const fn manager(&self) -> &'m Manager<M, A> {
        self.manager
    }

    /// The space of a process of the trace.
    #[must_use]
    pub fn space(&self, proc: u32) -> Option<SpaceId> {
        self.procs.get(self.manager.frames(), proc).map(SpaceId)
    }

    /// The memory object of an object of the trace.
    #[must_use]
    pub fn object(&self, object: u32) -> Option<ObjectId> {
        self.objects.get(self.manager.frames(), object).map(ObjectId)
    }

    /// A process of the trace that is in `space`.
    #[must_use]
    pub fn proc_in(&self, space: SpaceId) -> Option<u32> {
        self.procs.find(self.manager.frames(), |value| value == space.raw()).map(|(proc, _)| proc)
    }

    /// Executes one operation; for an access the folded words.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn step(&mut self, op: &Op, tenant: &mut impl Tenant<M, A>) -> Result<Option<u64>, ReplayError> {
        let manager = self.manager;
        let since = tenant.now();
        let mut done = None;
        match *op {
            Op::Object { object, kind, pages, order } => {
                let id = manager.create_object(kind, object, pages, order)?;
                self.objects.set(manager.frames(), object, id.0).ok_or(MapError::OutOfFrames)?;
            }
            Op::Start { proc } => {
                if self.space(proc).is_some() {
                    return Err(ReplayError::Process(proc));
                }
                let space = manager.create_space()?;
                self.enter(proc, space)?;
            }
            Op::Map { proc, at, pages, prot, backing, kind, fixed } => {
                let space = self.of(proc)?;
                let what = match (backing, kind) {
                    (Backing::Anon, MapKind::Plain) => Map::Anon,
                    (Backing::Anon, MapKind::Stack) => Map::Stack,
                    (Backing::Object { object, offset, private }, _) => {
                        let id = self.object(object).ok_or(ReplayError::Object(object))?;
                        if private { Map::Private(id, offset) } else { Map::Shared(id, offset) }
                    }
                    (Backing::Device { first }, _) => Map::Device(self.device.add(first)),
                };
                if fixed {
                    manager.map_fixed(space, at, pages, prot, what)?;
                } else {
                    manager.map(space, at, pages, prot, what)?;
                }
                done = Some((Event::Map, pages));
            }
            Op::Unmap { proc, at, pages } => {
                manager.unmap(self.of(proc)?, at, pages)?;
                done = Some((Event::Unmap, pages));
            }
            Op::Protect { proc, at, pages, prot } => {
                manager.protect(self.of(proc)?, at, pages, prot)?;
                done = Some((Event::Protect, pages));
            }
            Op::Remap { proc, from, pages, to, new_pages } => {
                manager.remap(self.of(proc)?, from, pages, to, new_pages)?;
                done = Some((Event::Remap, pages));
            }
            Op::Advise { proc, at, pages, advice } => {
                manager.advise(self.of(proc)?, at, pages, advice)?;
                done = Some((Event::Advise, pages));
            }
            Op::Brk { proc, start, end } => {
                manager.brk(self.of(proc)?, start, end)?;
                done = Some((Event::Map, end.pages_from(start)));
            }
            Op::Fork { proc, child } => {
                let parent = self.of(proc)?;
                if self.space(child).is_some() {
                    return Err(ReplayError::Process(child));
                }
                let space = manager.fork(parent)?;
                tenant.ended(Event::Fork, manager.rss(parent), since);
                self.enter(child, space)?;
            }
            Op::Share { proc, child } => {
                let space = self.of(proc)?;
                if self.space(child).is_some() {
                    return Err(ReplayError::Process(child));
                }
                manager.share_space(space);
                self.enter(child, space)?;
            }
            Op::Exec { proc } => {
                let old = self.of(proc)?;
                let space = manager.create_space()?;
                self.leave(old, tenant);
                self.enter(proc, space)?;
            }
            Op::Exit { proc } => {
                let space = self.of(proc)?;
                self.procs.clear(manager.frames(), proc);
                self.leave(space, tenant);
            }
            // The session shows it, with what only a recount knows.
            Op::Look { proc, .. } => {
                self.of(proc)?;
            }
            Op::Access { proc, at, pages, write } => {
                let space = self.of(proc)?;
                let sum = tenant.touch(manager, space, at, pages, write);
                return sum.map(Some).map_err(|(at, error)| ReplayError::Access(at, error));
            }
        }
        if let Some((event, pages)) = done {
            tenant.ended(event, pages, since);
        }
        Ok(None)
    }

    /// Ends every process and drops every object, as at the end of a trace, and gives all memory back. Whether every frame is
    /// free and every count gone then.
    pub fn finish(self, tenant: &mut impl Tenant<M, A>) -> bool {
        let frames = self.manager.frames();
        while let Some((proc, space)) = self.procs.find(frames, |_| true) {
            self.procs.clear(frames, proc);
            self.leave(SpaceId(space), tenant);
        }
        while let Some((object, id)) = self.objects.find(frames, |_| true) {
            self.objects.clear(frames, object);
            self.manager.destroy_object(ObjectId(id));
        }
        self.procs.free(frames);
        self.objects.free(frames);
        let statistics = self.manager.statistics();
        self.manager.trim()
            && statistics.anon_mapped.get() == 0
            && statistics.file_mapped.get() == 0
            && statistics.huge_mapped.get() == 0
    }

    fn of(&self, proc: u32) -> Result<SpaceId, ReplayError> {
        self.space(proc).ok_or(ReplayError::Process(proc))
    }

    fn enter(&self, proc: u32, space: SpaceId) -> Result<(), ReplayError> {
        self.procs.set(self.manager.frames(), proc, space.raw()).ok_or(ReplayError::Map(MapError::OutOfFrames))
    }

    fn leave(&self, space: SpaceId, tenant: &mut impl Tenant<M, A>) {
        if self.manager.leave_space(space) {
            let pages = self.manager.rss(space);
            tenant.leaving(self.manager, space);
            let since = tenant.now();
            self.manager.destroy_space(space);
            tenant.ended(Event::Teardown, pages, since);
        }
    }
}

/// Numbers of a trace to numbers of the manager: a table of two levels in frames. Numbers are below 2^18.
#[derive(Debug)]
struct Numbers {
    root: Pfn,
}

impl Numbers {
    fn new<M: Memory>(frames: &Frames<M>) -> Option<Self> {
        Self::frame(frames).map(|root| Self { root })
    }

    fn frame<M: Memory>(frames: &Frames<M>) -> Option<Pfn> {
        let run = frames.alloc(Order::BASE, true)?;
        if !run.zeroed {
            frames.memory().zero(run.pfn, 1);
        }
        Some(run.pfn)
    }

    fn get<M: Memory>(&self, frames: &Frames<M>, number: u32) -> Option<u32> {
        let leaf = frames.memory().frame(self.root).0.get(number as usize / ENTRIES)?.load(Relaxed);
        if leaf == 0 {
            return None;
        }
        match frames.memory().frame(Pfn::new(leaf)).0[number as usize % ENTRIES].load(Relaxed) {
            0 => None,
            value => Some(value as u32),
        }
    }

    fn set<M: Memory>(&self, frames: &Frames<M>, number: u32, value: u32) -> Option<()> {
        let link = frames.memory().frame(self.root).0.get(number as usize / ENTRIES)?;
        if link.load(Relaxed) == 0 {
            link.store(Self::frame(frames)?.raw(), Relaxed);
        }
        let leaf = Pfn::new(link.load(Relaxed));
        frames.memory().frame(leaf).0[number as usize % ENTRIES].store(u64::from(value), Relaxed);
        Some(())
    }

    fn clear<M: Memory>(&self, frames: &Frames<M>, number: u32) {
        let leaf = frames.memory().frame(self.root).0[number as usize / ENTRIES].load(Relaxed);
        frames.memory().frame(Pfn::new(leaf)).0[number as usize % ENTRIES].store(0, Relaxed);
    }

    /// The first entry whose value is `wanted`.
    fn find<M: Memory>(&self, frames: &Frames<M>, wanted: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
        let memory = frames.memory();
        memory.frame(self.root).0.iter().enumerate().find_map(|(i, link)| {
            let leaf = link.load(Relaxed);
            (leaf != 0).then_some(())?;
            memory.frame(Pfn::new(leaf)).0.iter().enumerate().find_map(|(j, word)| {
                let value = word.load(Relaxed) as u32;
                (value != 0 && wanted(value)).then_some(((i * ENTRIES + j) as u32, value))
            })
        })
    }

    fn free<M: Memory>(&self, frames: &Frames<M>) {
        for link in &frames.memory().frame(self.root).0 {
            let leaf = link.load(Relaxed);
            if leaf != 0 {
                frames.free(Pfn::new(leaf), Order::BASE, false);
            }
        }
        frames.free(self.root, Order::BASE, false);
    }
}
