//! Several CPUs at once: an emulated MMU for each, which sets accessed and dirty by locked operations, and a flush that waits for every access in flight.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Barrier, RwLock};
use std::thread;

use quire::addr::Pfn;
use quire::audit::Recount;
use quire::mapcount::Accounting;
use quire::memory::{FlushScope, Frame, Memory, Tlb};
use quire::model::EmulatedMemory;
use quire::space::{Access, FaultError, Manager, SpaceId};

use super::at;

pub struct Cpus {
    memory: EmulatedMemory,
    /// Held shared by an access from walk to store: no CPU caches a translation for longer.
    accesses: RwLock<()>,
    stage2: AtomicU64,
}

// What the next flush of stage 2 does.
const GOES_ON: u64 = 0;
const STOPS: u64 = 1;
const HAS_STOPPED: u64 = 2;

impl Memory for Cpus {
    fn frame(&self, pfn: Pfn) -> &Frame {
        self.memory.frame(pfn)
    }
}

impl Tlb for Cpus {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {
        drop(self.accesses.write().unwrap());
    }

    fn flush_stage2(&self, root: Pfn, scope: FlushScope) {
        if self.stage2.compare_exchange(STOPS, HAS_STOPPED, AcqRel, Acquire).is_ok() {
            while self.stage2.load(Acquire) == HAS_STOPPED {
                thread::yield_now();
            }
        }
        self.flush(root, scope);
    }
}

impl Cpus {
    /// With so many frames for the manager, what a recount of them takes, and so many behind that.
    pub fn new(frames: u64, devices: u64) -> Self {
        let memory = EmulatedMemory::new(Self::device(frames).raw() + devices);
        Self { memory, accesses: RwLock::new(()), stage2: AtomicU64::new(GOES_ON) }
    }

    /// The first frame behind all that the manager and a recount have.
    pub const fn device(frames: u64) -> Pfn {
        Pfn::new(frames + Recount::scratch_frames(frames))
    }

    /// Adds `more` to word `word` of `page` under the tables at `root`, as one store instruction; of 0, one load. The word after, or `None` for a fault.
    pub fn access(&self, root: Pfn, page: u64, word: usize, more: u64) -> Option<u64> {
        let _in_flight = self.accesses.read().unwrap();
        let write = more != 0;
        let mut table = root;
        for shift in [27, 18, 9, 0] {
            let entry = &self.memory.frame(table).0[(page >> shift) as usize & 511];
            let mut raw = entry.load(Acquire);
            loop {
                let leaf = shift == 0 || raw & 0x80 != 0;
                if raw & 5 != 5 || leaf && write && raw & 2 == 0 {
                    return None;
                }
                let bits = if leaf && write { 0x60 } else { 0x20 };
                match entry.compare_exchange(raw, raw | bits, AcqRel, Acquire) {
                    Ok(_) if leaf => {
                        let frame = Pfn::from_address(raw & 0x000f_ffff_ffff_f000).add(page & ((1 << shift) - 1));
                        return Some(self.memory.frame(frame).0[word].fetch_add(more, Relaxed) + more);
                    }
                    Ok(_) => break,
                    Err(now) => raw = now,
                }
            }
            table = Pfn::from_address(raw & 0x000f_ffff_ffff_f000);
        }
        None
    }

    /// As [`access`](Self::access) by a tenant, whose faults are handled.
    pub fn touch<A: Accounting>(
        &self,
        manager: &Manager<&Self, A>,
        space: SpaceId,
        page: u64,
        word: usize,
        more: u64,
    ) -> Result<u64, FaultError> {
        let access = if more != 0 { Access::Write } else { Access::Read };
        loop {
            if let Some(value) = self.access(manager.root(space), page, word, more) {
                return Ok(value);
            }
            manager.fault(space, at(page), access)?;
        }
    }

    /// Looks at the world while `change` stands in a flush of stage 2; `None` when it ended without one.
    pub fn look_within_flush<T>(&self, change: impl FnOnce() + Send, look: impl FnOnce() -> T) -> Option<T> {
        self.stage2.store(STOPS, Release);
        thread::scope(|scope| {
            let change = scope.spawn(change);
            while self.stage2.load(Acquire) != HAS_STOPPED && !change.is_finished() {
                thread::yield_now();
            }
            let seen = (self.stage2.load(Acquire) == HAS_STOPPED).then(look);
            self.stage2.store(GOES_ON, Release);
            seen
        })
    }
}

/// Runs both at once.
pub fn both(one: impl FnOnce() + Send, two: impl FnOnce() + Send) {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            barrier.wait();
            one();
        });
        barrier.wait();
        two();
    });
}
