//! Composing: an access that a composed table does not allow is looked up in the guest's table, and what that says in what stands below it, stage 2 or a nested root; the
//! leaf that is entered is as large as both allow, and allows what both do.
//!
//! The guest's entries get their accessed and dirty bits as an MMU would set them. What the guest's own table does not allow is the guest's business: the fault is
//! reflected to it.
//!
//! A leaf is entered with the shadow lock held since what it is composed from was looked up. Whoever takes that away clears it first and then takes the lock to look for
//! what was composed from it: either the change is seen here, or the leaf is found there.

use core::fmt;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::cut::{Change, Cut, nested_batch};
use super::fault::HOST_WRITE;
use super::shadow_page::{ALL_RIGHTS, Kind, Role, ShadowPage};
use super::slot::SlotFlags;
use super::{AsId, RootId, Vm, VmAccess, VmFaultError, VmId, in_format};
use crate::addr::{ENTRIES, Level, Pfn};
use crate::format::{Attrs, Entry, Format, Leaf};
use crate::mapcount::{Accounting, Class, Classes, Refused};
use crate::memory::{Memory, Tlb};
use crate::page_table::{PageTable, Place, Tables};
use crate::space::{Access, Manager, PAGES_END};
use crate::sync::{AtomicU64, lock_word};

/// What a fault on a composed table turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComposedKind {
    /// Leaves were entered.
    Mapped,
    /// A leaf allows more than before.
    Upgraded,
    /// Nothing was missing.
    Spurious,
}

/// A fault on a composed table that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Composed {
    /// What it was.
    pub kind: ComposedKind,
    /// The level of the leaves.
    pub level: Level,
    /// Pages mapped.
    pub pages: u64,
    /// Stage-2 faults taken on the way.
    pub stage2_faults: u32,
    /// Faults of the nested root below, taken on the way.
    pub nested_faults: u32,
}

/// What a guest's table lacks for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The entry is absent.
    Entry,
    /// The entries on the way do not allow the access.
    Right,
    /// The entry is none that an MMU could follow.
    Reserved,
}

/// A fault that a guest must be told of: a page fault in its stage-1 table, or a violation of the stage-2 table that it has built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// The root composed from the table that does not allow the access: that of the fault, or the nested root below it.
    pub root: RootId,
    /// The page of that table's input that was accessed: for a nested root below, maybe one that holds a table.
    pub page: u64,
    /// What was tried there.
    pub access: Access,
    /// The level of the entry.
    pub level: Level,
    /// What it lacks.
    pub missing: Missing,
}

/// Why a fault on a composed table could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComposeError {
    /// The guest's own tables do not allow it.
    Reflected(Reflection),
    /// What stage 2 says of a guest frame that they lead to, or lie in.
    Stage2(u64, VmFaultError),
    /// The folio has as many leaves as it may.
    Refused(Refused),
    /// The VM has no such root.
    NoRoot,
    /// The VM or the root is retired.
    Zombie,
    /// No frame for a table, or for the counts of the folio.
    OutOfFrames,
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reflected(Reflection { page, level, missing, .. }) => {
                write!(f, "the guest's table of level {} lacks the {missing:?} for page {page:#x}", level.get())
            }
            Self::Stage2(gfn, error) => write!(f, "guest frame {gfn:#x}: {error}"),
            Self::Refused(refused) => refused.fmt(f),
            Self::NoRoot => f.write_str("the VM has no such root"),
            Self::Zombie => f.write_str("the VM or the root is retired"),
            Self::OutOfFrames => f.write_str("out of frames"),
        }
    }
}

impl core::error::Error for ComposeError {}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Access(Access),
    /// Bits of a table at the page are to be set: it must be possible to store to it, but the leaf need not allow it.
    Walker,
}

impl Goal {
    fn access(self) -> Access {
        match self {
            Self::Access(access) => access,
            Self::Walker => Access::Write,
        }
    }

    /// What the guest's entries must allow.
    fn rights(self) -> Attrs {
        match self.access() {
            Access::Read => Attrs::USER,
            Access::Write => Attrs::USER.or(Attrs::WRITE),
            Access::Fetch => Attrs::USER.or(Attrs::EXEC),
        }
    }

    /// What the leaf below, and the composed one, must have.
    fn leaf_rights(self) -> Attrs {
        match self {
            Self::Walker => Attrs::USER.or(HOST_WRITE),
            Self::Access(_) => self.rights(),
        }
    }

    fn stores(self) -> bool {
        self.access() == Access::Write
    }
}

/// How far an attempt came.
enum Step {
    Done(Composed),
    /// Something changed meanwhile, or had to be cut first.
    Again,
    /// Stage 2 must map this guest frame first.
    Stage2(u64, Goal),
    /// The nested root below must map this page first.
    Below(u64, Goal),
}

/// Where an attempt ends early.
enum Stop {
    Step(Step),
    Error(ComposeError),
}

impl From<Step> for Stop {
    fn from(step: Step) -> Self {
        Self::Step(step)
    }
}

impl From<ComposeError> for Stop {
    fn from(error: ComposeError) -> Self {
        Self::Error(error)
    }
}

/// What stands below a page that the guest's entry names.
pub(crate) struct Below {
    /// The frame, and what the leaf allows.
    pub(crate) leaf: Leaf,
    /// The size of the leaf there.
    pub(crate) level: Level,
    /// The guest frame of the VM.
    pub(crate) gfn: u64,
}

/// A leaf as it ought to be composed.
#[derive(Clone, Copy)]
pub(crate) struct Due {
    pub(crate) leaf: Leaf,
    /// The guest frame of the VM that it leads to first.
    pub(crate) gfn: u64,
    /// The guest's entry.
    origin: u64,
}

/// Where entries beside each other of one shadow page have their origins, found once for all of them. With the shadow lock held it stays so.
#[derive(Default)]
struct Origins {
    /// The frame of the guest's table.
    guest: Option<Pfn>,
    /// The stage-2 table that the last of them was looked up in.
    stage2: Option<Place>,
}

/// The guest's entry for an access.
struct Found {
    /// What all entries so far allow.
    rights: Attrs,
    what: FoundEntry,
}

enum FoundEntry {
    /// A table at this page.
    Table(u64),
    /// Memory, from this page on; whether it is marked dirty.
    Leaf(u64, bool),
}

/// Entries of a guest's table and of stage 2 below it, and what both say at one place.
struct Alike<'a> {
    /// The index there, the guest's entry, and how much the next would be larger.
    first: (usize, u64, u64),
    guest: &'a [AtomicU64; ENTRIES],
    /// The same of stage 2.
    below: (usize, u64, u64),
    stage2: &'a [AtomicU64; ENTRIES],
}

impl Alike<'_> {
    /// The guest's entry at `j`, if there too both say the same, for memory so much further on.
    #[inline]
    fn origin(&self, j: usize) -> Option<u64> {
        // Before the first place as well: all of it wraps.
        let ahead = j.wrapping_sub(self.first.0);
        let expected = |(_, raw, step): (usize, u64, u64)| raw.wrapping_add(step.wrapping_mul(ahead as u64));
        let below = self.stage2.get(self.below.0.wrapping_add(ahead))?;
        let origin = expected(self.first);
        (self.guest[j].load(Relaxed) == origin && below.load(Relaxed) == expected(self.below)).then_some(origin)
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// Serves an access to `page` that the composed table of `root` does not allow.
    ///
    /// # Errors
    /// [`ComposeError`]; among them [`ComposeError::Reflected`], which the guest must be told.
    pub fn compose_fault(&self, id: VmId, root: RootId, page: u64, access: Access) -> Result<Composed, ComposeError> {
        self.serve_composed(id, root, page, Goal::Access(access))
    }

    fn serve_composed(&self, id: VmId, root: RootId, page: u64, goal: Goal) -> Result<Composed, ComposeError> {
        let vm = self.vm(id);
        let (mut stage2_faults, mut nested_faults) = (0, 0);
        loop {
            let (step, view, over) = {
                let _vm = self.read_vm(&vm);
                if vm.is_zombie() {
                    return Err(ComposeError::Zombie);
                }
                let _region = A::NEEDS.region.then(|| lock_word(vm.region_lock()));
                let _shadows = vm.lock_shadows();
                let root = self.find_root(&vm, root).ok_or(ComposeError::NoRoot)?;
                if self.is_retired(root) {
                    return Err(ComposeError::Zombie);
                }
                let Role { view, over, format, .. } = root.role();
                let step = match in_format!(format, G => self.compose::<G>(&vm, root, page, goal)) {
                    Ok(step) | Err(Stop::Step(step)) => step,
                    Err(Stop::Error(error)) => return Err(error),
                };
                (step, view, over)
            };
            match step {
                Step::Done(done) => return Ok(Composed { stage2_faults, nested_faults, ..done }),
                Step::Again => {}
                Step::Stage2(gfn, goal) => {
                    // The guest's tables say what it may fetch.
                    let access = if goal.stores() { Access::Write } else { Access::Read };
                    self.serve_vm(id, VmAccess { view, gfn, access }, goal == Goal::Walker)
                        .map_err(|error| ComposeError::Stage2(gfn, error))?;
                    stage2_faults += 1;
                }
                Step::Below(page, goal) => {
                    let served = self.serve_composed(id, RootId::of(self.shadow_page(over)), page, goal)?;
                    stage2_faults += served.stage2_faults;
                    nested_faults += 1;
                }
            }
        }
    }

    fn compose<G: Format>(&self, vm: &Vm<'_>, root: ShadowPage<'_>, page: u64, goal: Goal) -> Result<Step, Stop> {
        let limit = if root.role().kind == Kind::Stage1 { PAGES_END } else { G::ROOT.table_pages() };
        if page >= limit {
            return Err(reflect(root, page, goal, G::ROOT, Missing::Entry));
        }
        if !root.is_tracked() {
            self.wake_root(vm, root)?;
        }
        let mut at = root;
        // The page that holds the guest's table, in its own terms.
        let mut table_page = root.top();
        loop {
            let role = at.role();
            let (level, i) = (role.level, role.level.index(page));
            let found = if role.direct {
                let first = at.gfn() + i as u64 * level.entry_pages();
                Found { rights: role.rights, what: FoundEntry::Leaf(first, role.rights.has(Attrs::WRITE)) }
            } else {
                self.read_entry::<G>(vm, root, at, table_page, page, goal)?
            };
            match found.what {
                FoundEntry::Table(next) => {
                    let gfn = self.guest_frame(vm, role, next)?;
                    let below = level.below().expect("tables are pointed to from above");
                    at = self.child(vm, at, i, gfn, Role { level: below, rights: found.rights, ..role })?;
                    table_page = next;
                }
                FoundEntry::Leaf(first, is_dirty) => {
                    if !found.rights.has(goal.rights()) {
                        return Err(reflect(root, page, goal, level, Missing::Right));
                    }
                    let wanted = first + (page & (level.entry_pages() - 1));
                    let below = self.below(vm, role, wanted).ok_or_else(|| lacks(role, wanted, goal))?;
                    if !below.leaf.attrs.has(goal.leaf_rights()) {
                        return Err(lacks(role, wanted, goal).into());
                    }
                    if role.over == 0 {
                        self.mark_accessed(vm, role.view, wanted);
                    }
                    if below.level >= level {
                        return self.enter_composed::<G>(vm, at, i, goal);
                    }
                    // What is dirty already may be stored to; for the rest the first store comes back here.
                    let rights = if is_dirty { found.rights } else { found.rights.without(Attrs::WRITE) };
                    let smaller = level.below().expect("smaller leaves exist");
                    at = self.child(vm, at, i, first, Role { level: smaller, direct: true, rights, ..role })?;
                }
            }
        }
    }

    /// Finds out where a root's table lies, and tracks it.
    fn wake_root(&self, vm: &Vm<'_>, root: ShadowPage<'_>) -> Result<(), Stop> {
        let gfn = self.guest_frame(vm, root.role(), root.top())?;
        if gfn != root.gfn() {
            self.remove_shadow(vm, root);
            self.insert_shadow(vm, root, gfn);
        }
        self.start_tracking(vm, root.role(), gfn)?;
        root.set_tracked(true);
        Ok(())
    }

    /// Write-protects a table from which something is about to be composed, unless it is tracked.
    fn start_tracking(&self, vm: &Vm<'_>, role: Role, gfn: u64) -> Result<(), Stop> {
        if self.is_tracked(vm, role.view, gfn) {
            return Ok(());
        }
        match self.protect_table(vm, role.view, gfn) {
            Some(Change::Gone) => Err(ComposeError::OutOfFrames.into()),
            // The nested leaf over it is cut, and with that any table above may be gone.
            Some(Change::Narrowed) if role.over != 0 => Err(Step::Again.into()),
            Some(Change::Narrowed) | None => Ok(()),
        }
    }

    /// The guest frame of the VM that a page named by a guest's table is.
    fn guest_frame(&self, vm: &Vm<'_>, role: Role, page: u64) -> Result<u64, Stop> {
        if role.over == 0 {
            return Ok(page);
        }
        let goal = Goal::Access(Access::Read);
        self.below(vm, role, page).map(|below| below.gfn).ok_or_else(|| lacks(role, page, goal).into())
    }

    /// Reads the guest's entry for `page` in the table of `at`, and sets what an MMU would set in it.
    fn read_entry<G: Format>(
        &self,
        vm: &Vm<'_>,
        root: ShadowPage<'_>,
        at: ShadowPage<'_>,
        table_page: u64,
        page: u64,
        goal: Goal,
    ) -> Result<Found, Stop> {
        let role = at.role();
        let level = role.level;
        let gfn = at.gfn();
        let Some((frame, attrs)) = self.table_frame(vm, at) else {
            return Err(Step::Stage2(gfn, Goal::Access(Access::Read)).into());
        };
        if attrs.has(Attrs::UNTRACKED) {
            return Err(ComposeError::Stage2(gfn, VmFaultError::NoSlot).into());
        }
        let word = &self.entries(frame)[level.index(page)];
        let raw = word.load(Relaxed);
        let entry = G::decode(raw, level);
        let (rights, mut bits) = match entry {
            Entry::Absent => return Err(reflect(root, page, goal, level, Missing::Entry)),
            Entry::Table(_) => (G::table_rights(raw), Attrs::ACCESSED),
            Entry::Leaf(leaf) => (leaf.attrs, Attrs::ACCESSED),
        };
        let rights = both(role.rights, rights);
        if let Entry::Leaf(leaf) = entry {
            if level > G::MAX_LEAF || !leaf.pfn.raw().is_multiple_of(level.entry_pages()) {
                return Err(reflect(root, page, goal, level, Missing::Reserved));
            }
            // An access that is refused sets nothing.
            if !rights.has(goal.rights()) {
                return Err(reflect(root, page, goal, level, Missing::Right));
            }
            bits = bits.with_if(goal.stores(), Attrs::DIRTY);
        }
        let marked = raw | G::set_bits(bits);
        if marked != raw {
            if !attrs.has(HOST_WRITE) {
                return Err(Step::Stage2(gfn, Goal::Walker).into());
            }
            if role.over != 0 && !self.below(vm, role, table_page).is_some_and(|below| below.leaf.attrs.has(HOST_WRITE))
            {
                return Err(Step::Below(table_page, Goal::Walker).into());
            }
            if word.compare_exchange(raw, marked, AcqRel, Relaxed).is_err() {
                return Err(Step::Again.into());
            }
            if let Some(entry) = self.find_slot(vm, role.view, gfn)
                && entry.get().flags.has(SlotFlags::LOGGING)
            {
                self.note_dirty(entry, gfn);
            }
        }
        let what = match entry {
            Entry::Leaf(leaf) => FoundEntry::Leaf(leaf.pfn.raw(), leaf.attrs.or(bits).has(Attrs::DIRTY)),
            Entry::Table(next) => FoundEntry::Table(next.raw()),
            Entry::Absent => unreachable!("seen above"),
        };
        Ok(Found { rights, what })
    }

    /// The shadow page of a table, or of the parts of a large leaf, at entry `i` of `at`.
    fn child<'a>(
        &'a self,
        vm: &Vm<'_>,
        at: ShadowPage<'a>,
        i: usize,
        gfn: u64,
        role: Role,
    ) -> Result<ShadowPage<'a>, Stop> {
        match self.shadow_entry(vm, at, i) {
            Entry::Absent => {}
            Entry::Table(_) => {
                let child = self.shadow_page(self.origin(at, i) as u32);
                if child.gfn() == gfn && child.role() == role {
                    return Ok(child);
                }
                self.replace(vm, at, i);
                return Err(Step::Again.into());
            }
            Entry::Leaf(_) => {
                self.replace(vm, at, i);
                return Err(Step::Again.into());
            }
        }
        let child = match self.find_shadow(vm, gfn, role) {
            Some(child) if child.is_unsync() => {
                // A new way to it: what the guest has changed since it went unsync would show through it, though it need not flush for that.
                self.sync_page(vm, child);
                return Err(Step::Again.into());
            }
            Some(child) => child,
            None => {
                if !role.direct {
                    self.start_tracking(vm, role, gfn)?;
                }
                let child = self.alloc_shadow(vm, gfn, role).ok_or(ComposeError::OutOfFrames)?;
                child.set_tracked(!role.direct);
                child
            }
        };
        self.link_shadow(vm, at, i, child);
        Ok(child)
    }

    /// Cuts what stands at entry `i`, to make room for something else.
    fn replace(&self, vm: &Vm<'_>, at: ShadowPage<'_>, i: usize) {
        let mut cut = Cut::new();
        self.cut_entry(vm, at, i, &mut cut);
        self.finish_cut(vm, &mut cut);
    }

    /// Enters the leaf at entry `i` of `at`, and those around it that the same folio has there.
    fn enter_composed<G: Format>(&self, vm: &Vm<'_>, at: ShadowPage<'_>, i: usize, goal: Goal) -> Result<Step, Stop> {
        let role = at.role();
        let Role { kind, level, view, .. } = role;
        let mut origins = Origins::default();
        let due = self.due_near::<G>(vm, at, role, i, &mut origins);
        let due = due.filter(|due| due.leaf.attrs.has(goal.leaf_rights())).ok_or(Step::Again)?;
        let done = |kind, pages| Composed { kind, level, pages, stage2_faults: 0, nested_faults: 0 };
        match self.shadow_entry(vm, at, i) {
            Entry::Absent => {}
            Entry::Leaf(now) if now.pfn == due.leaf.pfn && due.leaf.attrs.has(now.attrs.without(Attrs::DIRTY)) => {
                self.set_origin(at, i, due.origin);
                if now.attrs.has(due.leaf.attrs) {
                    return Ok(Step::Done(done(ComposedKind::Spurious, 0)));
                }
                self.set_leaves(vm, at, i..i + 1, due.leaf);
                return Ok(Step::Done(done(ComposedKind::Upgraded, level.entry_pages())));
            }
            _ => {
                self.replace(vm, at, i);
                return Ok(Step::Again);
            }
        }
        let entry = self.find_slot(vm, view, due.gfn).ok_or(Step::Again)?;
        let slot = entry.get();
        let step = level.entry_pages();
        let mut range = i..i + 1;
        let mut first = due.leaf.pfn;
        self.set_origin(at, i, due.origin);
        let folio = (!due.leaf.attrs.has(Attrs::UNTRACKED))
            .then(|| self.folio(due.leaf.pfn).expect("a tracked leaf maps a folio"));
        if let Some(folio) = folio
            && !slot.flags.has(SlotFlags::LOGGING)
        {
            let here = self.entries(at.table());
            let (frames, gfns) = (folio.head().raw()..folio.end().raw(), slot.gfns());
            let alike = self.alike::<G>(vm, role, i, &due, &origins);
            let mut fits = |j: usize| {
                let (ahead, behind) = (j.saturating_sub(i) as u64 * step, i.saturating_sub(j) as u64 * step);
                let pfn = (due.leaf.pfn.raw() + ahead).checked_sub(behind)?;
                let gfn = (due.gfn + ahead).checked_sub(behind)?;
                // An entry that holds nothing is zero in a table of ours.
                let is_absent = here[j].load(Relaxed) == 0;
                let there = frames.contains(&pfn) && gfns.contains(&gfn) && gfn + step <= gfns.end;
                if !is_absent || !there {
                    return None;
                }
                if let Some(origin) = alike.as_ref().and_then(|alike| alike.origin(j)) {
                    return Some(Due { leaf: Leaf { pfn: Pfn::new(pfn), ..due.leaf }, gfn, origin });
                }
                self.due_near::<G>(vm, at, role, j, &mut origins).filter(|other| {
                    other.leaf == Leaf { pfn: Pfn::new(pfn), attrs: due.leaf.attrs } && other.gfn == gfn
                })
            };
            while range.start > 0
                && let Some(other) = fits(range.start - 1)
            {
                range.start -= 1;
                first = other.leaf.pfn;
                self.set_origin(at, range.start, other.origin);
            }
            let end = at.end();
            while range.end < end
                && let Some(other) = fits(range.end)
            {
                self.set_origin(at, range.end, other.origin);
                range.end += 1;
            }
        }
        let n = range.len() as u64;
        if let Some(folio) = folio.filter(|_| kind == Kind::Nested) {
            let batch = nested_batch(vm, at, entry.id().raw(), folio, first, n);
            let beside = self.beside_nested(vm, at, folio, &slot.gfns());
            let counted = if self.make_room(folio, Class::Nested) {
                Classes::<A>::add(&self.counts(folio), &batch, beside).map_err(ComposeError::Refused)
            } else {
                Err(ComposeError::OutOfFrames)
            };
            if let Err(error) = counted {
                range.for_each(|i| self.set_origin(at, i, 0));
                return Err(error.into());
            }
        }
        self.set_leaves(vm, at, range, Leaf { pfn: first, attrs: due.leaf.attrs });
        at.set_leaves(at.leaves() + n);
        vm.note_composed(kind, n as i64);
        Ok(Step::Done(done(ComposedKind::Mapped, n * step)))
    }

    /// What stands around the origins of `due`, entry `i` of a shadow page in `role`, where both levels have leaves of that size.
    fn alike<G: Format>(&self, vm: &Vm<'_>, role: Role, i: usize, due: &Due, origins: &Origins) -> Option<Alike<'_>> {
        let (guest, place) = (origins.guest?, origins.stage2?);
        if role.direct || role.over != 0 || place.level != role.level {
            return None;
        }
        let (guest, stage2) = (self.entries(guest), self.entries(place.table));
        let at = place.level.index(due.gfn);
        let raw = stage2[at].load(Relaxed);
        let (entry, step) = in_format!(vm.format(), F => (F::decode(raw, place.level), F::leaf_step(place.level)));
        matches!(entry, Entry::Leaf(leaf) if leaf.pfn == due.leaf.pfn).then_some(Alike {
            first: (i, due.origin, G::leaf_step(role.level)),
            guest,
            below: (at, raw, step),
            stage2,
        })
    }

    /// Marks the stage-2 leaf of `gfn` accessed, as an MMU that walks it would.
    fn mark_accessed(&self, vm: &Vm<'_>, view: AsId, gfn: u64) {
        let Some(root) = vm.root(view) else { return };
        in_format!(vm.format(), F => {
            let mut cursor = PageTable::<F>::new(root).cursor(self, gfn, gfn + 1);
            if let Some(part) = cursor.next() {
                let i = part.index(gfn);
                if part.leaf(i).is_some_and(|leaf| !leaf.attrs.has(Attrs::ACCESSED)) {
                    part.change(i, 1, Attrs::NONE, Attrs::ACCESSED);
                }
            }
        });
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The frame of a guest's table, and what stage 2 allows there.
    pub(crate) fn table_frame(&self, vm: &Vm<'_>, page: ShadowPage<'_>) -> Option<(Pfn, Attrs)> {
        let below = self.stage2_below(vm, page.role().view, page.gfn())?;
        Some((below.leaf.pfn, below.leaf.attrs))
    }

    fn stage2_below(&self, vm: &Vm<'_>, view: AsId, gfn: u64) -> Option<Below> {
        self.stage2_near(vm, view, gfn, &mut None)
    }

    /// The same, looked up first in the table where the last one was; or left there for the next.
    fn stage2_near(&self, vm: &Vm<'_>, view: AsId, gfn: u64, near: &mut Option<Place>) -> Option<Below> {
        in_format!(vm.format(), F => {
            let last = near.filter(|place| (gfn ^ place.page) & !(place.level.table_pages() - 1) == 0);
            let here = last.and_then(|place| {
                match F::decode(self.entries(place.table)[place.level.index(gfn)].load(Relaxed), place.level) {
                    Entry::Leaf(leaf) => Some((Place { page: gfn & !(place.level.entry_pages() - 1), ..place }, leaf)),
                    _ => None,
                }
            });
            let (place, leaf) = match here {
                Some(here) => here,
                None if gfn < F::ROOT.table_pages() => self.stage2_lookup(vm.id, view, gfn)?,
                None => return None,
            };
            *near = Some(place);
            let pfn = leaf.pfn.add(gfn - place.page);
            Some(Below { leaf: Leaf { pfn, ..leaf }, level: place.level, gfn })
        })
    }

    /// What stands below a page that a guest's table names.
    pub(crate) fn below(&self, vm: &Vm<'_>, role: Role, page: u64) -> Option<Below> {
        if role.over == 0 {
            return self.stage2_below(vm, role.view, page);
        }
        let nested = self.shadow_page(role.over);
        if page >= nested.role().level.table_pages() {
            return None;
        }
        let (at, i) = self.deepest_shadow(vm, nested, page);
        let Entry::Leaf(leaf) = self.shadow_entry(vm, at, i) else { return None };
        let level = at.role().level;
        let offset = page & (level.entry_pages() - 1);
        let pfn = leaf.pfn.add(offset);
        Some(Below { leaf: Leaf { pfn, ..leaf }, level, gfn: self.shadowed_page(at, i) + offset })
    }

    /// The leaf that entry `i` of a shadow page ought to be, by the guest's entry and what stands below; `None` where there is none, or the guest's entry was never used.
    pub(crate) fn due<G: Format>(&self, vm: &Vm<'_>, at: ShadowPage<'_>, i: usize) -> Option<Due> {
        self.due_near::<G>(vm, at, at.role(), i, &mut Origins::default())
    }

    fn due_near<G: Format>(
        &self,
        vm: &Vm<'_>,
        at: ShadowPage<'_>,
        role: Role,
        i: usize,
        origins: &mut Origins,
    ) -> Option<Due> {
        let (first, rights, is_dirty, origin) = if role.direct {
            (at.gfn() + i as u64 * role.level.entry_pages(), role.rights, role.rights.has(Attrs::WRITE), 0)
        } else {
            let frame = match origins.guest {
                Some(frame) => frame,
                None => self.table_frame(vm, at)?.0,
            };
            origins.guest = Some(frame);
            let raw = self.entries(frame)[i].load(Relaxed);
            let Entry::Leaf(leaf) = G::decode(raw, role.level) else { return None };
            if !leaf.attrs.has(Attrs::ACCESSED)
                || role.level > G::MAX_LEAF
                || !leaf.pfn.raw().is_multiple_of(role.level.entry_pages())
            {
                return None;
            }
            (leaf.pfn.raw(), both(role.rights, leaf.attrs), leaf.attrs.has(Attrs::DIRTY), raw)
        };
        let below = match role.over {
            0 => self.stage2_near(vm, role.view, first, &mut origins.stage2),
            _ => self.below(vm, role, first),
        };
        let below = below.filter(|below| below.level >= role.level)?;
        let theirs = below.leaf.attrs;
        let stores = rights.has(Attrs::WRITE) && is_dirty;
        let attrs = Attrs::ACCESSED
            .with_if(rights.has(Attrs::USER) && theirs.has(Attrs::USER), Attrs::USER)
            .with_if(rights.has(Attrs::EXEC) && theirs.has(Attrs::EXEC), Attrs::EXEC)
            .with_if(stores && theirs.has(Attrs::WRITE), Attrs::WRITE.or(Attrs::DIRTY))
            .with_if(stores && theirs.has(HOST_WRITE), HOST_WRITE)
            .with_if(theirs.has(Attrs::UNTRACKED), Attrs::UNTRACKED);
        Some(Due { leaf: Leaf { pfn: below.leaf.pfn, attrs }, gfn: below.gfn, origin })
    }
}

/// The rights that both give.
fn both(one: Attrs, other: Attrs) -> Attrs {
    one.without(ALL_RIGHTS.without(other))
}

/// The level below must map a page first.
fn lacks(role: Role, page: u64, goal: Goal) -> Step {
    if role.over == 0 { Step::Stage2(page, goal) } else { Step::Below(page, goal) }
}

fn reflect(root: ShadowPage<'_>, page: u64, goal: Goal, level: Level, missing: Missing) -> Stop {
    let root = RootId::of(root);
    Stop::Error(ComposeError::Reflected(Reflection { root, page, access: goal.access(), level, missing }))
}
