//! Tenant VMs: memslots over the address space of their VMM, and a stage-2 table from guest frames to frames.
//!
//! A VM belongs to one space, its VMM's, and shares its owner id (SCHEMES.md, nested levels, R4). A [memslot](slot) gives a range of guest frames (gfn)
//! to a range of the space's pages, as KVM's do, or to the frames of a device. Stage-2 leaves are derived: each stands for what the space maps there, holds no
//! reference (policy P1), and goes before that does. [`space`](crate::space) and this module are the two halves of the manager and know each other by two doors: a stage-2 fault
//! asks the space for the memory behind an address, and the space, which finishes every removal by a flush, has what was derived from those pages
//! removed first (`Manager::invalidate`).
//!
//! | file | what it does |
//! |---|---|
//! | [`slot`] | memslots: add, move, resize, remove |
//! | [`fault`] | a guest access that stage 2 does not allow: the largest leaf, one batch for each folio and table |
//! | [`zap`] | removal, and the order of it |
//! | [`log`] | the dirty log: eager split, harvest, recovery of large leaves |
//! | [`harvest`] | which guest frames were accessed |
//! | [`discard`] | memory that a guest gives back |
//!
//! Engine `shadow`, and tenants of tenants on every engine, need tables that are composed from those that the guest builds in its memory, and what stands below:
//!
//! | file | what it does |
//! |---|---|
//! | [`roots`] | composed tables: made, retired, reaped |
//! | [`compose`] | an access that a composed table does not allow: served, or reflected to the guest |
//! | [`shadow_page`] | one composed table page, and the graph of them |
//! | [`track`] | stores to the guest's tables are noticed |
//! | [`sync`] | the guest's flush: what it changed unnoticed goes |
//! | [`cut`] | removal of what was composed |

pub mod compose;
pub mod cut;
pub mod discard;
pub mod fault;
pub mod harvest;
pub mod log;
pub mod roots;
pub mod shadow_page;
pub mod slot;
pub mod sync;
pub mod track;
pub mod zap;

pub use compose::{ComposeError, Composed, ComposedKind, Missing, Reflection};
pub use fault::{VmAccess, VmFault, VmFaultError, VmFaultKind};
pub use log::LogError;
pub use roots::{RootError, RootId};
pub use shadow_page::Kind;
pub use slot::{Backing, Slot, SlotError, SlotFlags, SlotId};
pub use sync::GuestFlush;

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use crate::addr::{Level, Pfn};
use crate::folio::{Folio, Record};
use crate::format::{Format, Leaf};
use crate::mapcount::{Accounting, Class, Classes, Neighbours};
use crate::memory::{Memory, Tlb};
use crate::page_table::{PageTable, Part, Place, Tables};
use crate::space::{Manager, MapError, SpaceId};
use crate::sync::{AtomicU64, Field, ReadGuard, WordGuard, WriteGuard, lock_word, read_lock, write_lock};
use core::ops::Range;

/// How a VM's stage-2 tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stage2Format {
    /// As a long-mode table, which no MMU walks as stage 2: engine `shadow` composes from it.
    LongMode = 0,
    /// Extended page tables of 4 levels: engine `ept`.
    Ept = 1,
    /// Extended page tables of 5 levels.
    Ept5 = 2,
    /// Nested page tables of 4 levels: engine `npt`.
    Npt = 3,
    /// Nested page tables of 5 levels.
    Npt5 = 4,
}

impl Stage2Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::LongMode, Self::Ept, Self::Ept5, Self::Npt, Self::Npt5];
}

/// Evaluates an expression with a type of the name given standing for the format.
macro_rules! in_format {
    ($format:expr, $F:ident => $what:expr) => {
        match $format {
            $crate::stage2::Stage2Format::LongMode => {
                type $F = $crate::format::LongMode;
                $what
            }
            $crate::stage2::Stage2Format::Ept => {
                type $F = $crate::format::Ept;
                $what
            }
            $crate::stage2::Stage2Format::Ept5 => {
                type $F = $crate::format::Levels5<$crate::format::Ept>;
                $what
            }
            $crate::stage2::Stage2Format::Npt => {
                type $F = $crate::format::Npt;
                $what
            }
            $crate::stage2::Stage2Format::Npt5 => {
                type $F = $crate::format::Levels5<$crate::format::Npt>;
                $what
            }
        }
    };
}
pub(crate) use in_format;

/// Names a tenant VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(u32);

impl VmId {
    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// An address space of a VM: each has memslots and tables of its own, as KVM has one for normal and one for system-management mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AsId(u8);

impl AsId {
    /// The one that every VM uses.
    pub const NORMAL: Self = Self(0);
    /// The second.
    pub const MANAGEMENT: Self = Self(1);
    /// Both.
    pub const ALL: [Self; 2] = [Self::NORMAL, Self::MANAGEMENT];
}

/// The words of a VM's record.
#[derive(Clone, Copy)]
pub(crate) struct Vm<'a> {
    pub(crate) id: VmId,
    words: &'a [AtomicU64],
}

const SPACE: Field<0, 32> = Field;
const FORMAT: Field<32, 8> = Field;
/// Destroyed, and not yet reaped.
const ZOMBIE: Field<40, 1> = Field;

impl<'a> Vm<'a> {
    /// Faults read; what changes slots, or all leaves of a slot, writes. Inside the lock of the space.
    fn lock(&self) -> &'a AtomicU64 {
        &self.words[2]
    }
    pub(crate) fn space(&self) -> SpaceId {
        SpaceId(SPACE.get(&self.words[3]) as u32)
    }
    pub(crate) fn format(&self) -> Stage2Format {
        Stage2Format::ALL[FORMAT.get(&self.words[3]) as usize]
    }
    fn is_zombie(&self) -> bool {
        ZOMBIE.get(&self.words[3]) != 0
    }
    /// The next VM of the space.
    fn next(&self) -> &'a AtomicU64 {
        &self.words[4]
    }
    /// The root of an address space, 0 before its first slot.
    fn root_word(&self, space: AsId) -> &'a AtomicU64 {
        &self.words[5 + usize::from(space.0)]
    }
    /// The first slot of an address space, in the order of guest frames.
    fn slots(&self, space: AsId) -> &'a AtomicU64 {
        &self.words[7 + usize::from(space.0)]
    }
    /// Serialises changes of one VM's leaves, for schemes that count regions.
    fn region_lock(&self) -> &'a AtomicU64 {
        &self.words[9]
    }
    /// Stage-2 leaves of a level.
    fn leaves(&self, level: Level) -> &'a AtomicU64 {
        &self.words[9 + level.get() as usize]
    }
    /// Serialises everything that is composed for the VM, and which guest frames are tracked. Inside its lock and the region lock.
    pub(super) fn shadow_lock(&self) -> &'a AtomicU64 {
        &self.words[13]
    }
    /// The frame of the buckets of shadow pages; 0 before the first root. Written under the VM's lock.
    fn shadows_word(&self) -> &'a AtomicU64 {
        &self.words[14]
    }
    /// Composed leaves, by kind.
    fn composed_word(&self) -> &'a AtomicU64 {
        &self.words[15]
    }
    /// The frame of the buckets, of a VM for which tables are composed.
    fn shadows(&self) -> Option<Pfn> {
        let frame = self.shadows_word().load(Relaxed);
        (frame != 0).then(|| Pfn::new(frame))
    }
    /// The shadow lock, if there is anything to lock. The caller holds the VM.
    fn lock_shadows(&self) -> Option<WordGuard<'a>> {
        self.shadows().map(|_| lock_word(self.shadow_lock()))
    }
    /// How the composed tables of a kind are written.
    pub(crate) fn composed_format(&self, kind: Kind) -> Stage2Format {
        if kind == Kind::Nested { self.format() } else { Stage2Format::LongMode }
    }
    pub(crate) fn root(&self, space: AsId) -> Option<Pfn> {
        let root = self.root_word(space).load(Relaxed);
        (root != 0).then(|| Pfn::new(root))
    }
    /// The owner id of its leaves: its VMM's.
    pub(crate) fn owner(&self) -> u32 {
        self.space().raw()
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// A VM of the VMM whose space is `space`, without memory.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`].
    pub fn create_vm(&self, space: SpaceId, format: Stage2Format) -> Result<VmId, MapError> {
        let number = self.vms.alloc(&self.frames).ok_or(MapError::OutOfFrames)?;
        let vm = self.vm(VmId(number));
        SPACE.set(&vm.words[3], u64::from(space.raw()));
        FORMAT.set(&vm.words[3], format as u64);
        let space = self.space(space);
        let _guard = write_lock(space.lock());
        vm.next().store(space.vms().load(Relaxed), Relaxed);
        space.vms().store(u64::from(number), Relaxed);
        Ok(VmId(number))
    }

    /// Ends a VM: [retires](Self::retire_vm) and [reaps](Self::reap_vm) it.
    pub fn destroy_vm(&self, id: VmId) {
        self.retire_vm(id);
        self.reap_vm(id);
    }

    /// Takes a VM out of service: it gets no new leaves. Those that it has stay, and count, until it is reaped (R6).
    pub fn retire_vm(&self, id: VmId) {
        let vm = self.vm(id);
        let _guard = write_lock(vm.lock());
        ZOMBIE.set(&vm.words[3], 1);
    }

    /// Removes all leaves of a retired VM, and frees its tables and slots.
    ///
    /// # Panics
    /// When it is in service.
    pub fn reap_vm(&self, id: VmId) {
        let vm = self.vm(id);
        let space = self.space(vm.space());
        let _space = write_lock(space.lock());
        {
            let _guard = write_lock(vm.lock());
            assert!(vm.is_zombie(), "a VM in service was reaped");
            self.reap_roots(&vm);
            for view in AsId::ALL {
                while let Some(slot) = self.first_slot(&vm, view) {
                    self.remove_slot_locked(&vm, view, slot);
                }
                if let Some(root) = vm.root(view) {
                    in_format!(vm.format(), F => self.prune_stage2_range::<F>(&vm, view, 0..F::ROOT.table_pages()));
                    self.free_table(root, true);
                }
            }
        }
        let mut link = space.vms();
        while link.load(Relaxed) != u64::from(id.0) {
            link = self.vm(VmId(link.load(Relaxed) as u32)).next();
        }
        link.store(vm.next().load(Relaxed), Relaxed);
        self.vms.free(&self.frames, id.0);
    }

    /// A copy of a VM as it stands: its VMM's space is forked, and the copy has the same slots over the child, which is returned too. Either sees the other's
    /// memory as it was until it stores to it. Leaves come with faults.
    ///
    /// # Errors
    /// [`MapError`]; nothing is left of the copy then.
    pub fn clone_vm(&self, id: VmId) -> Result<(SpaceId, VmId), MapError> {
        let vm = self.vm(id);
        let child = self.fork(vm.space())?;
        let copy = self.create_vm(child, vm.format());
        let result = copy.and_then(|copy| {
            let slots = || AsId::ALL.into_iter().flat_map(|view| self.slots(id, view).map(move |slot| (view, slot)));
            slots()
                .try_for_each(|(view, slot)| {
                    self.add_slot(copy, view, slot).map(|_| ()).map_err(|_| MapError::OutOfFrames)
                })
                .map(|()| copy)
                .inspect_err(|_| self.destroy_vm(copy))
        });
        match result {
            Ok(copy) => Ok((child, copy)),
            Err(error) => {
                self.destroy_space(child);
                Err(error)
            }
        }
    }

    /// Sees to it that leaves of `class` of the folio can be counted: before any are. False without a frame; nothing has changed then. The caller keeps the folio from being freed.
    pub fn make_room(&self, folio: Folio<'_>, class: Class) -> bool {
        let most = Classes::<A>::extensions(folio.is_small(), class);
        most == 0 || self.grow(folio, most)
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    pub(crate) fn vm(&self, id: VmId) -> Vm<'_> {
        Vm { id, words: self.vms.get(&self.frames, id.0) }
    }

    /// VMs that exist, zombies included.
    pub fn vms(&self) -> impl Iterator<Item = VmId> + '_ {
        let end = if self.vms.in_use() == 0 { 1 } else { self.vms.end() };
        (1..end).filter(|&number| self.vms.is_in_use(&self.frames, number)).map(VmId)
    }

    /// The space of a VM's VMM, and the owner of its leaves.
    pub fn vm_space(&self, id: VmId) -> SpaceId {
        self.vm(id).space()
    }

    /// How its tables are written.
    pub fn vm_format(&self, id: VmId) -> Stage2Format {
        self.vm(id).format()
    }

    /// The root of the stage-2 tables of an address space, if it ever had a slot: what an MMU is given.
    pub fn stage2_root(&self, id: VmId, view: AsId) -> Option<Pfn> {
        self.vm(id).root(view)
    }

    /// Stage-2 leaves of the VM by level, over all of its address spaces, and so its working set (N8): exact, whatever the scheme.
    pub fn vm_leaves(&self, id: VmId) -> [u64; 3] {
        let vm = self.vm(id);
        [Level::ONE, Level::TWO, Level::THREE].map(|level| vm.leaves(level).load(Relaxed))
    }

    /// Pages that the VM has mapped at stage 2.
    pub fn vm_pages(&self, id: VmId) -> u64 {
        let levels = [Level::ONE, Level::TWO, Level::THREE];
        self.vm_leaves(id).into_iter().zip(levels).map(|(leaves, level)| leaves << level.page_shift()).sum()
    }

    /// The stage-2 leaf that translates guest frame `gfn`.
    pub fn stage2_lookup(&self, id: VmId, view: AsId, gfn: u64) -> Option<(Place, Leaf)> {
        let vm = self.vm(id);
        let root = vm.root(view)?;
        in_format!(vm.format(), F => PageTable::<F>::new(root).lookup(self, gfn))
    }

    /// Visits every stage-2 leaf of guest frames `gfns`: a snapshot, for audits.
    pub fn for_each_stage2_leaf(&self, id: VmId, view: AsId, gfns: Range<u64>, visit: &mut impl FnMut(Place, Leaf)) {
        let vm = self.vm(id);
        let Some(root) = vm.root(view) else { return };
        in_format!(vm.format(), F => PageTable::<F>::new(root).for_each_leaf_in(self, gfns, visit));
    }

    /// How many pages of guest frames `gfns` have a stage-2 leaf: res2, the residency of a guest's folio.
    pub fn residency(&self, id: VmId, view: AsId, gfns: Range<u64>) -> u64 {
        let mut pages = 0;
        self.for_each_stage2_leaf(id, view, gfns.clone(), &mut |place, _| {
            pages += (place.page + place.level.entry_pages()).min(gfns.end) - place.page.max(gfns.start);
        });
        pages
    }

    /// The slot record `record`.
    pub(crate) fn slot_record(&self, record: Record) -> slot::SlotRecord<'_> {
        slot::SlotRecord::new(record, self.frames.record(record, slot::WORDS))
    }

    /// The VMs of a space, whose lock the caller holds.
    fn vms_of(&self, first: &AtomicU64) -> impl Iterator<Item = Vm<'_>> {
        let vm = |number: u64| (number != 0).then(|| self.vm(VmId(number as u32)));
        core::iter::successors(vm(first.load(Relaxed)), move |last| vm(last.next().load(Relaxed)))
    }

    fn read_vm<'a>(&self, vm: &Vm<'a>) -> ReadGuard<'a> {
        read_lock(vm.lock())
    }

    fn write_vm<'a>(&self, vm: &Vm<'a>) -> WriteGuard<'a> {
        write_lock(vm.lock())
    }

    /// What else `slot` maps of `folio` than the entries `batch`, which are indexes, as far as the scheme wants to know.
    fn beside_in_slot<F: Format>(
        &self,
        root: Pfn,
        part: &Part<'_, F, Self>,
        slot: Range<u64>,
        folio: Folio<'_>,
        batch: Range<usize>,
    ) -> Neighbours {
        let frames = folio.head()..folio.end();
        let tuple = if A::NEEDS.tuple {
            let span = part.span();
            let window = slot.start.max(span.start)..slot.end.min(span.end);
            let window = part.index(window.start)..part.index(window.end - 1) + 1;
            let count = |range: Range<usize>| part.count_leaves_of(range, frames.start, frames.end);
            count(window.start..batch.start) + count(batch.end..window.end)
        } else {
            0
        };
        let region = if A::NEEDS.region {
            // One slot may reach a folio by several ways: only all of it tells.
            let count = |range| PageTable::<F>::new(root).count_of(self, range, frames.clone()).pages as u32;
            count(slot.start..part.page(batch.start)) + count(part.page(batch.end)..slot.end)
        } else {
            0
        };
        Neighbours { tuple, region }
    }
}

impl fmt::Debug for Vm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vm({}, of space {}, {:?})", self.id.0, self.space().raw(), self.format())
    }
}
