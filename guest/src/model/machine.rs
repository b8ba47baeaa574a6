//! Emulated frames, and an MMU over them with a TLB that stays stale until it is flushed.
//!
//! The walk here is written from the manual, not from [`format`](crate::format): it is a second opinion on every table.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use once_cell::race::OnceBox;

use crate::addr::{ENTRIES, Gva, Pfn};
use crate::memory::{FlushScope, Frame, Memory, Tlb};
use crate::space::Access;
use crate::sync::AtomicU64;

const CHUNK: usize = 512;

/// Frames in this process, numbered from 0, each made when first touched.
pub struct EmulatedMemory {
    chunks: Vec<OnceBox<Vec<Frame>>>,
    frames: u64,
}

impl fmt::Debug for EmulatedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmulatedMemory({} frames)", self.frames)
    }
}

impl EmulatedMemory {
    /// `frames` frames of zeroes.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        let chunks = (frames as usize).div_ceil(CHUNK);
        Self { chunks: (0..chunks).map(|_| OnceBox::new()).collect(), frames }
    }

    /// All of them.
    #[must_use]
    pub fn range(&self) -> Range<Pfn> {
        Pfn::new(0)..Pfn::new(self.frames)
    }
}

impl Memory for EmulatedMemory {
    fn frame(&self, pfn: Pfn) -> &Frame {
        assert!(pfn.raw() < self.frames, "{pfn:?} is no frame of this machine");
        let at = pfn.raw() as usize;
        let chunk = self.chunks[at / CHUNK].get_or_init(|| {
            let frame = || Frame([const { AtomicU64::new(0) }; ENTRIES]);
            Box::new((0..CHUNK).map(|_| frame()).collect())
        });
        &chunk[at % CHUNK]
    }
}

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cached {
    pfn: Pfn,
    write: bool,
    exec: bool,
    dirty: bool,
}

/// A cached translation that the tables no longer give: what a missing flush leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The root of its address space.
    pub root: Pfn,
    /// The page it translates.
    pub page: u64,
}

/// One emulated CPU with its TLB, over emulated frames.
pub struct Machine {
    memory: EmulatedMemory,
    tlb: RefCell<BTreeMap<(Pfn, u64), Cached>>,
    flushes: Cell<u64>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({:?}, {} cached)", self.memory, self.tlb.borrow().len())
    }
}

// Bits of a long-mode entry (SDM vol. 3, tables 4-14 to 4-20).
const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Machine {
    /// A machine with `frames` frames.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        Self { memory: EmulatedMemory::new(frames), tlb: RefCell::default(), flushes: Cell::new(0) }
    }

    /// All frames.
    #[must_use]
    pub fn range(&self) -> Range<Pfn> {
        self.memory.range()
    }

    /// Flushes so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// One access of a tenant at CPL 3: through the TLB if the page is cached, else by a walk that sets accessed and dirty. The frame, or `None` for a page fault.
    pub fn translate(&self, root: Pfn, at: Gva, access: Access) -> Option<Pfn> {
        let key = (root, at.page());
        let cached = self.tlb.borrow().get(&key).copied();
        let allowed = |c: &Cached| match access {
            Access::Read => true,
            // A store through a clean translation walks again, to set dirty.
            Access::Write => c.write && c.dirty,
            Access::Fetch => c.exec,
        };
        if let Some(cached) = cached.filter(allowed) {
            return Some(cached.pfn);
        }
        let walked = self.walk(root, at, access);
        match walked {
            // A walk after a hit without the right replaces the translation; so does a fault (SDM vol. 3, 4.10.4.1).
            Some(new) => self.tlb.borrow_mut().insert(key, new),
            None => self.tlb.borrow_mut().remove(&key),
        };
        walked.map(|new| new.pfn)
    }

    /// The word at the start of the page `at` lies in, through [`translate`](Self::translate).
    pub fn word(&self, root: Pfn, at: Gva, access: Access) -> Option<&AtomicU64> {
        let pfn = self.translate(root, at, access)?;
        Some(&self.memory.frame(pfn).0[(at.raw() as usize & 0xfff) / 8])
    }

    /// A cached translation that allows what the tables no longer allow, or leads elsewhere, if there is one.
    #[must_use]
    pub fn stale(&self) -> Option<Stale> {
        self.tlb.borrow().iter().find_map(|(&(root, page), cached)| {
            let now = self.peek(root, Gva::from_page(page));
            let good = now.is_some_and(|(raw, pfn)| {
                pfn == cached.pfn && (raw & RW != 0 || !cached.write) && (raw & XD == 0 || !cached.exec)
            });
            (!good).then_some(Stale { root, page })
        })
    }

    /// Forgets what is cached of the space rooted at `root` before its frames are used for something else: what loading another root does.
    pub fn leave(&self, root: Pfn) {
        self.tlb.borrow_mut().retain(|&(of, _), _| of != root);
    }

    /// The leaf entry for `at` with the rights of all levels folded in, and the frame: a walk without side effects.
    #[must_use]
    pub fn peek(&self, root: Pfn, at: Gva) -> Option<(u64, Pfn)> {
        let mut table = root;
        let mut rights = RW | US;
        let mut xd = 0;
        for shift in [39u32, 30, 21, 12] {
            let raw = self.memory.frame(table).0[(at.raw() >> shift) as usize & 511].load(Relaxed);
            if raw & P == 0 {
                return None;
            }
            rights &= raw;
            xd |= raw & XD;
            if shift == 12 || raw & PS != 0 {
                let offset = at.raw() & ((1 << shift) - 1);
                let raw = raw & !(RW | US) | rights | xd;
                return Some((raw, Pfn::from_address((raw & ADDRESS & !((1 << shift) - 1)) + offset)));
            }
            table = Pfn::from_address(raw & ADDRESS);
        }
        None
    }

    fn walk(&self, root: Pfn, at: Gva, access: Access) -> Option<Cached> {
        let (raw, pfn) = self.peek(root, at)?;
        let (write, exec) = (raw & RW != 0, raw & XD == 0);
        let refused = match access {
            Access::Read => false,
            Access::Write => !write,
            Access::Fetch => !exec,
        };
        if raw & US == 0 || refused {
            return None;
        }
        // Accessed at every level, dirty in the leaf.
        let mut table = root;
        for shift in [39u32, 30, 21, 12] {
            let word = &self.memory.frame(table).0[(at.raw() >> shift) as usize & 511];
            let raw = word.load(Relaxed);
            let leaf = shift == 12 || raw & PS != 0;
            word.fetch_or(if leaf && access == Access::Write { A | D } else { A }, Relaxed);
            if leaf {
                break;
            }
            table = Pfn::from_address(raw & ADDRESS);
        }
        Some(Cached { pfn, write, exec, dirty: raw & D != 0 || access == Access::Write })
    }
}

impl Memory for Machine {
    fn frame(&self, pfn: Pfn) -> &Frame {
        self.memory.frame(pfn)
    }
}

impl Tlb for Machine {
    /// Stage-2 tables in long mode's format are walked as any other here.
    fn flush_stage2(&self, root: Pfn, scope: FlushScope) {
        self.flush(root, scope);
    }

    fn flush(&self, root: Pfn, scope: FlushScope) {
        self.flushes.set(self.flushes.get() + 1);
        self.tlb.borrow_mut().retain(|&(of, page), _| {
            of != root
                || match scope {
                    FlushScope::Space => false,
                    FlushScope::Pages { first, pages } => !(first..first + pages).contains(&page),
                }
        });
    }
}
