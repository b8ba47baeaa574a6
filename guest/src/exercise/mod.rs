//! Exercises of nested levels, the same on every machine: in the kernel on composed tables, on EPT and on NPT, and in process.
//!
//! ```text
//! example   the worked example of the specification, n0 to n9
//! history   random histories: every level maps, unmaps, forks, logs and moves what it has while tenants touch it
//! deepest   the memory and the tables of a tenant's tenant
//! ```
//!
//! A VMM gives a VM a memory object of its own for memory; a second manager runs on that, whose processes and VMs touch theirs through the MMU of whoever does the exercise, its
//! [`Cpu`].

pub mod deepest;
pub mod example;
pub mod history;

use core::fmt;

use crate::addr::{Gva, Order, Pfn};
use crate::audit::{Mismatch, Recount};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::nest::{GuestMemory, NestError};
use crate::space::{Manager, Map, ObjectId, ObjectKind, PAGES_END, Policy, Prot, SpaceId};
use crate::stage2::{AsId, Backing, Slot, SlotFlags, SlotId, Stage2Format, VmId};

/// Where spaces of all levels have their pages: a multiple of 1 GiB.
const BASE: u64 = 1 << 18;
const READ: Prot = Prot { read: true, write: false, exec: false };
const READ_WRITE: Prot = Prot { read: true, write: true, exec: false };
/// Of memory that a program of a tenant may lie in.
const ALL: Prot = Prot { read: true, write: true, exec: true };

fn at(page: u64) -> Gva {
    Gva::from_page(page)
}

/// A manager of level 1.
pub type Guest<'n, M, A> = Manager<&'n GuestMemory<'n, M, A>, Classes<A>>;

/// Tenants of level 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A process.
    Process(SpaceId),
    /// A VM, on the tables that it has [booted](deepest::boot) with: its pages are its guest frames.
    Vm(VmId),
}

/// What tenants run on.
pub trait Cpu<M: Memory + Tlb, A: Accounting> {
    /// Has a tenant load the first word of a page and then, with a seed, store its [stamp](crate::abi::stamp) there; faults are served at their level. The word loaded.
    ///
    /// # Errors
    /// What no level can serve.
    fn touch(&mut self, nest: &Nest<'_, M, A>, who: Who, page: u64, store: Option<u64>) -> Result<u64, NestError>;

    /// Puts whatever program it has tenants run into the memory of a tenant's tenant, from guest frame `page` on, [`deepest::PROGRAM_PAGES`] at most, by `store`: the page
    /// counted from there, the word, and what goes there. The entry that the root is to have in its last slot.
    fn program(&self, page: u64, store: &mut dyn FnMut(u64, usize, u64)) -> u64 {
        let _ = (page, store);
        0
    }

    /// Leaves all roots that it runs on: one of them is about to go.
    fn leave(&mut self) {}
}

/// How an exercise is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The format of the VM's tables.
    pub format: Stage2Format,
    /// Frames that the manager of level 1 has.
    pub frames: u64,
    /// The order of folios of the VM's memory.
    pub order: Order,
    /// What the manager of level 1 does.
    pub policy: Policy,
}

impl Setup {
    /// Pages of the VM's memory, with what the recount of level 1 takes, and a program of the [`Cpu`]'s at the end: a multiple of 512.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        (self.frames + Recount::scratch_frames(self.frames) + deepest::PROGRAM_PAGES).next_multiple_of(512)
    }
}

/// A VM with a manager in it.
pub struct Nest<'n, M, A> {
    /// The VM's memory.
    pub memory: &'n GuestMemory<'n, M, A>,
    /// The manager in it.
    pub guest: Guest<'n, M, A>,
    vmm: SpaceId,
    file: ObjectId,
    slot: SlotId,
    pages: u64,
    rows: &'n Recount,
    guest_rows: Recount,
}

impl<M, A> fmt::Debug for Nest<'_, M, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nest({:?})", self.memory)
    }
}

/// What an exercise found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The recount of a level disagrees with its counts.
    Recount {
        /// The level.
        level: u8,
        /// About what.
        what: Mismatch,
        /// At which frame.
        frame: u64,
    },
    /// An access found another word, or another end.
    Access {
        /// Whose.
        who: Who,
        /// To which page.
        page: u64,
        /// What came of it.
        found: Result<u64, NestError>,
        /// What should have.
        expected: Result<u64, NestError>,
    },
    /// A level below reads another word.
    Below {
        /// The level.
        level: u8,
        /// The page of the process above.
        page: u64,
    },
    /// The counts are not those of the worked example.
    Step {
        /// The step.
        step: usize,
        /// What was counted.
        found: example::Columns,
    },
    /// A manager refused what it should do.
    Refused(&'static str),
    /// A manager has lost frames.
    Frames {
        /// Its level.
        level: u8,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recount { level, what, frame } => write!(f, "recount of level {level}, frame {frame:#x}: {what}"),
            Self::Access { who, page, found, expected } => {
                write!(f, "{who:?}, page {page:#x}: {found:x?} where {expected:x?} was expected")
            }
            Self::Below { level, page } => {
                write!(f, "level {level} reads another word than was stored to page {page:#x}")
            }
            Self::Step { step, found } => write!(f, "step n{step}: {found:?}"),
            Self::Refused(what) => write!(f, "refused: {what}"),
            Self::Frames { level } => write!(f, "level {level} has lost frames"),
        }
    }
}

impl core::error::Error for Wrong {}

/// Something that a manager does unless it lacks frames.
fn must<T, E>(what: &'static str, result: Result<T, E>) -> Result<T, Wrong> {
    result.map_err(|_| Wrong::Refused(what))
}

/// Makes the nest, has `work` done in it, and takes it down; everything must be free then, at both levels. `host` has nothing else, and `rows` recount it.
///
/// # Errors
/// What was wrong.
pub fn in_nest<M: Memory + Tlb, A: Accounting, T>(
    host: &Manager<M, Classes<A>>,
    rows: &Recount,
    setup: Setup,
    work: impl FnOnce(&Nest<'_, M, A>) -> Result<T, Wrong>,
) -> Result<T, Wrong> {
    let pages = setup.pages();
    let file = must("a memory object", host.create_object(ObjectKind::Shared, 0, pages, setup.order))?;
    let vmm = must("a space", host.create_space())?;
    must("a mapping", host.map(vmm, at(BASE), pages, ALL, Map::Shared(file, 0)))?;
    let vm = must("a VM", host.create_vm(vmm, setup.format))?;
    let slot = Slot { gfn: 0, pages, backing: Backing::Host(BASE), flags: SlotFlags::default() };
    let slot = must("a slot", host.add_slot(vm, AsId::NORMAL, slot))?;
    let result = {
        let memory = GuestMemory::new(host, vm);
        let frames = Pfn::new(0)..Pfn::new(setup.frames);
        let guest = must("a manager of level 1", Manager::new(&memory, &[frames], true, setup.policy))?;
        let guest_rows = Recount::new(Pfn::new(setup.frames), Pfn::new(0), setup.frames);
        let nest = Nest { memory: &memory, guest, vmm, file, slot, pages, rows, guest_rows };
        let result = work(&nest)?;
        nest.recount()?;
        if !nest.guest.trim() {
            return Err(Wrong::Frames { level: 1 });
        }
        memory.leave_all();
        result
    };
    host.destroy_vm(vm);
    host.destroy_space(vmm);
    host.destroy_object(file);
    recount(host, rows, 0)?;
    if host.trim() { Ok(result) } else { Err(Wrong::Frames { level: 0 }) }
}

fn recount<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    rows: &Recount,
    level: u8,
) -> Result<(), Wrong> {
    match rows.run_classes(manager).first {
        None => Ok(()),
        Some((what, frame)) => Err(Wrong::Recount { level, what, frame }),
    }
}

impl<'n, M: Memory + Tlb, A: Accounting> Nest<'n, M, A> {
    /// The manager of level 0.
    #[must_use]
    pub fn host(&self) -> &'n Manager<M, Classes<A>> {
        self.memory.host()
    }

    /// The VM of level 0.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.memory.vm()
    }

    /// The first of [`deepest::PROGRAM_PAGES`] pages of the VM's memory that are the [`Cpu`]'s.
    #[must_use]
    pub fn program_page(&self) -> u64 {
        self.pages - deepest::PROGRAM_PAGES
    }

    /// Recounts all classes at both levels.
    ///
    /// # Errors
    /// The first mismatch.
    pub fn recount(&self) -> Result<(), Wrong> {
        recount(self.host(), self.rows, 0)?;
        self.memory.look(|| recount(&self.guest, &self.guest_rows, 1))
    }

    /// The guest frame of a page of a process, if it has one.
    fn guest_frame(&self, space: SpaceId, page: u64) -> Option<Pfn> {
        self.memory.look(|| {
            let (place, leaf) = self.guest.page_table(space).lookup(&self.guest, page)?;
            Some(leaf.pfn.add(page - place.page))
        })
    }

    /// Ends a process.
    fn exit<C: Cpu<M, A>>(&self, cpu: &mut C, space: SpaceId) {
        cpu.leave();
        self.memory.leave(None, self.guest.root(space).raw());
        self.guest.destroy_space(space);
    }

    /// Ends a VM of level 1, and with it what is composed for it.
    fn end_vm<C: Cpu<M, A>>(&self, cpu: &mut C, vm: VmId) {
        cpu.leave();
        if let Some(table) = self.guest.stage2_root(vm, AsId::NORMAL) {
            self.memory.leave(None, table.raw());
        }
        self.guest.destroy_vm(vm);
    }
}

const _: () = assert!(BASE + (1 << 18) <= PAGES_END);
