//! Composed roots: made for a table that the guest names, retired, reaped.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::cut::Cut;
use super::shadow_page::{ALL_RIGHTS, Kind, Role, ShadowPage};
use super::{AsId, Stage2Format, Vm, VmId, in_format};
use crate::addr::{Level, Order, Pfn};
use crate::format::{Entry, Format, Leaf, LongMode};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Place, Tables};
use crate::space::Manager;

/// Names a composed root of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(u32);

impl RootId {
    pub(super) fn of(root: ShadowPage<'_>) -> Self {
        Self(root.record().raw())
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// Why there is no such root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootError {
    /// The VM has no such nested root, or it is retired.
    NoRoot,
    /// The table lies beyond what the level below can address.
    Range,
    /// Tables of this format have another depth than the VM's.
    Format,
    /// The VM is retired.
    Zombie,
    /// No frame for a table.
    OutOfFrames,
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoot => "no such nested root in service",
            Self::Range => "the table lies beyond the guest's memory",
            Self::Format => "tables of another depth than the VM's",
            Self::Zombie => "the VM is retired",
            Self::OutOfFrames => "out of frames",
        })
    }
}

impl core::error::Error for RootError {}

/// The level of the root in a format.
pub(super) fn root_level(format: Stage2Format) -> Level {
    in_format!(format, F => F::ROOT)
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// A root for a tenant of the tenant: the stage-2 table that the guest has built in `format` with its root in guest frame `gfn`, composed with the guest's own memory
    /// in the VM's format. Who asks again for the same table gets the same root, once more.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn create_nested_root(
        &self,
        id: VmId,
        view: AsId,
        gfn: u64,
        format: Stage2Format,
    ) -> Result<RootId, RootError> {
        let level = root_level(format);
        if level != root_level(self.vm(id).format()) {
            return Err(RootError::Format);
        }
        let role = Role { kind: Kind::Nested, level, direct: false, view, rights: ALL_RIGHTS, format, over: 0 };
        self.create_root(id, role, gfn)
    }

    /// A root for the stage-1 table (long mode) that the guest has at `page`, one of its guest frames; or, with `over`, for one of the tenant's tenant that runs on that nested
    /// root. An MMU walks it as any stage-1 table; its upper half is the embedder's.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn create_shadow_root(
        &self,
        id: VmId,
        view: AsId,
        over: Option<RootId>,
        page: u64,
    ) -> Result<RootId, RootError> {
        let role = Role {
            kind: Kind::Stage1,
            level: LongMode::ROOT,
            direct: false,
            view,
            rights: ALL_RIGHTS,
            format: Stage2Format::LongMode,
            over: over.map_or(0, |root| root.0),
        };
        self.create_root(id, role, page)
    }

    fn create_root(&self, id: VmId, role: Role, top: u64) -> Result<RootId, RootError> {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        if vm.is_zombie() {
            return Err(RootError::Zombie);
        }
        if top >= root_level(vm.format()).table_pages() {
            return Err(RootError::Range);
        }
        if role.over != 0 {
            let below = self.find_root(&vm, RootId(role.over)).ok_or(RootError::NoRoot)?;
            if below.role().kind != Kind::Nested || below.role().view != role.view || below.is_zombie() {
                return Err(RootError::NoRoot);
            }
        }
        if vm.shadows().is_none() {
            let frame = self.alloc_table().ok_or(RootError::OutOfFrames)?;
            vm.shadows_word().store(frame.raw(), Relaxed);
        }
        let same = |root: &ShadowPage<'_>| root.role() == role && root.top() == top && !root.is_zombie();
        if let Some(root) = self.shadow_roots(&vm).find(same) {
            root.set_uses(root.uses() + 1);
            return Ok(RootId::of(root));
        }
        // Where its table lies is found out when it is used.
        let root = self.alloc_shadow(&vm, top, role).ok_or(RootError::OutOfFrames)?;
        root.set_root();
        root.set_top(top);
        root.set_uses(1);
        let first = &self.entries(vm.shadows().expect("made above"))[0];
        root.set_next_root(first.load(Relaxed));
        first.store(u64::from(root.record().raw()), Relaxed);
        if role.kind == Kind::Stage1 {
            self.memory().new_root(root.table());
        }
        Ok(RootId::of(root))
    }

    /// Takes a root out of service: it gets no new leaves. Those that it has stay, and count, until it is reaped (R6).
    ///
    /// # Panics
    /// When the VM has no such root.
    pub fn retire_root(&self, id: VmId, root: RootId) {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        self.find_root(&vm, root).expect("the VM has this root").set_zombie();
    }

    /// Frees a root that was asked for once, or counts one use less; with a nested root go the roots over it. No MMU walks any of them any more.
    ///
    /// # Panics
    /// As [`retire_root`](Self::retire_root).
    pub fn reap_root(&self, id: VmId, root: RootId) {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        let page = self.find_root(&vm, root).expect("the VM has this root");
        if page.uses() > 1 {
            page.set_uses(page.uses() - 1);
            return;
        }
        self.reap_root_locked(&vm, page);
    }

    /// Frees all roots of a VM, however often they were asked for: its guest ends.
    pub fn reap_all_roots(&self, id: VmId) {
        let vm = self.vm(id);
        let _guard = self.write_vm(&vm);
        self.reap_roots(&vm);
    }

    fn reap_root_locked(&self, vm: &Vm<'_>, root: ShadowPage<'_>) {
        let number = root.record().raw();
        while let Some(over) = self.shadow_roots(vm).find(|other| other.role().over == number) {
            self.reap_root_locked(vm, over);
        }
        let mut cut = Cut::new();
        self.kill_shadow(vm, root, &mut cut);
        // Still in the list of roots: what was cached of it is flushed.
        self.flush_cut(vm, &mut cut);
        self.unlist_root(vm, root);
        self.free_dead(&mut cut);
    }

    fn unlist_root(&self, vm: &Vm<'_>, root: ShadowPage<'_>) {
        let number = u64::from(root.record().raw());
        match self.shadow_roots(vm).find(|other| other.next_root() == number) {
            Some(before) => before.set_next_root(root.next_root()),
            None => self.entries(vm.shadows().expect("a VM with roots"))[0].store(root.next_root(), Relaxed),
        }
    }

    /// Reaps all roots of a VM that is being reaped.
    pub(super) fn reap_roots(&self, vm: &Vm<'_>) {
        while let Some(root) = self.shadow_roots(vm).next() {
            self.reap_root_locked(vm, root);
        }
        let frame = vm.shadows_word().swap(0, Relaxed);
        if frame != 0 {
            debug_assert_eq!(vm.composed_word().load(Relaxed), 0, "composed leaves are left");
            self.frames.free(Pfn::new(frame), Order::BASE, false);
        }
    }

    /// The root in service of a kind that was asked for for the guest's table at `page`, over a nested root or none, in the normal address space.
    pub fn find_root_over(&self, id: VmId, kind: Kind, over: Option<RootId>, page: u64) -> Option<RootId> {
        self.find_root_where(id, kind, over, page, |root| !root.is_zombie())
    }

    /// Such a root, in service or [retired](Self::retire_root).
    pub fn find_any_root_over(&self, id: VmId, kind: Kind, over: Option<RootId>, page: u64) -> Option<RootId> {
        self.find_root_where(id, kind, over, page, |_| true)
    }

    fn find_root_where(
        &self,
        id: VmId,
        kind: Kind,
        over: Option<RootId>,
        page: u64,
        is_wanted: impl Fn(&ShadowPage<'_>) -> bool,
    ) -> Option<RootId> {
        let vm = self.vm(id);
        let _guard = self.read_vm(&vm);
        let over = over.map_or(0, |root| root.0);
        let is_it = |root: &ShadowPage<'_>| {
            let role = root.role();
            role.kind == kind && role.view == AsId::NORMAL && role.over == over && root.top() == page
        };
        self.shadow_roots(&vm).find(|root| is_it(root) && is_wanted(root)).map(RootId::of)
    }

    /// The root of the composed table: what an MMU is given.
    pub fn root_table(&self, id: VmId, root: RootId) -> Option<Pfn> {
        let vm = self.vm(id);
        let _guard = self.read_vm(&vm);
        self.find_root(&vm, root).map(|root| root.table())
    }

    /// Visits every nested leaf that leads to guest frames `gfns`, each shadow page once, by guest frame: a snapshot, for audits.
    pub fn for_each_nested_leaf(&self, id: VmId, view: AsId, gfns: Range<u64>, visit: &mut impl FnMut(Place, Leaf)) {
        let vm = self.vm(id);
        for at in self.shadow_pages(&vm) {
            let Role { kind, level, view: of, .. } = at.role();
            if kind != Kind::Nested || of != view {
                continue;
            }
            for i in 0..at.end() {
                let Entry::Leaf(leaf) = self.shadow_entry(&vm, at, i) else { continue };
                let page = self.shadowed_page(at, i);
                if gfns.contains(&page) {
                    visit(Place { page, table: at.table(), level }, leaf);
                }
            }
        }
    }

    /// Table pages that are composed for a VM, roots included.
    pub fn composed_tables(&self, id: VmId) -> u64 {
        self.shadow_pages(&self.vm(id)).count() as u64
    }

    /// Tables of the guest in frames `gfns` that something is composed from: what forbids large stage-2 leaves there (N7).
    pub fn shadowed_tables(&self, id: VmId, view: AsId, gfns: Range<u64>) -> u64 {
        self.shadowed(&self.vm(id), view, gfns) as u64
    }

    /// Leaves that were composed for a VM, of a kind.
    pub fn composed_leaves(&self, id: VmId, kind: Kind) -> u64 {
        self.vm(id).composed(kind)
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    pub(super) fn find_root(&self, vm: &Vm<'_>, root: RootId) -> Option<ShadowPage<'_>> {
        self.shadow_roots(vm).find(|page| page.record().raw() == root.0)
    }

    /// Whether a root, or the nested root it is over, is retired.
    pub(super) fn is_retired(&self, root: ShadowPage<'_>) -> bool {
        root.is_zombie() || (root.role().over != 0 && self.shadow_page(root.role().over).is_zombie())
    }
}
