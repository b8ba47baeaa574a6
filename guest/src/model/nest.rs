//! Managers inside of VMs: the same library, with a VM's guest frames for its frames, and a hypercall for its flushes.
//!
//! The manager of the [`Machine`] is level 0. A [`GuestMemory`] is the memory of one of its VMs: a level-1 manager over it has processes (class `process` there), which run on
//! composed stage-1 tables, and VMs (class `vm`), which run on nested roots. A [`NestedMemory`] is the memory of such a VM, for a level-2 manager.
//!
//! A manager stores to its tables through references to frames, so every frame that it asks for is one it may store to: to level 0 a manager that is at work stores to each
//! table that it looks at. While somebody only looks ([`GuestMemory::look`]) stores are not announced.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::Machine;
use super::walks::{Walked, walk_through};
use crate::addr::{Gva, Pfn};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{FlushScope, Frame, Memory, Tlb};
use crate::space::{Access, FaultError, Manager, SpaceId};
use crate::stage2::{AsId, ComposeError, GuestFlush, Reflection, RootId, Stage2Format, VmAccess, VmFaultError, VmId};

/// The manager of the machine.
pub type Host<'m, A> = Manager<&'m Machine, Classes<A>>;

/// A guest's table, the root composed from it, and the nested root that it is over.
#[derive(Clone, Copy, Debug)]
struct Known {
    table: u64,
    over: Option<RootId>,
    root: RootId,
}

/// The memory of a VM as its guest sees it: frames are guest frames of the normal address space.
pub struct GuestMemory<'m, A> {
    host: &'m Host<'m, A>,
    vm: VmId,
    looking: Cell<bool>,
    roots: RefCell<Vec<Known>>,
}

impl<A> fmt::Debug for GuestMemory<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestMemory({:?}, {} roots)", self.vm, self.roots.borrow().len())
    }
}

/// Why an access of a tenant's tenant failed, at the level that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestError {
    /// Level 0 could not serve it.
    Compose(ComposeError),
    /// A process of a guest has no such page, says its manager.
    Process(FaultError),
    /// A VM of a guest has no such guest frame, says its manager.
    Vm(VmFaultError),
}

impl<'m, A: Accounting> GuestMemory<'m, A> {
    /// The memory of `vm`.
    #[must_use]
    pub fn new(host: &'m Host<'m, A>, vm: VmId) -> Self {
        Self { host, vm, looking: Cell::new(false), roots: RefCell::default() }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The manager below.
    #[must_use]
    pub fn host(&self) -> &'m Host<'m, A> {
        self.host
    }

    fn machine(&self) -> &'m Machine {
        self.host.memory()
    }

    /// Does `what`, which only reads tables.
    pub fn look<T>(&self, what: impl FnOnce() -> T) -> T {
        let before = self.looking.replace(true);
        let result = what();
        self.looking.set(before);
        result
    }

    fn stage2(&self) -> Pfn {
        self.host.stage2_root(self.vm, AsId::NORMAL).expect("a VM with memory")
    }

    /// The frame behind guest frame `gfn`, by the MMU.
    fn reach(&self, gfn: u64, access: Access) -> Pfn {
        loop {
            if let Some(pfn) = self.machine().translate(self.stage2(), Gva::from_page(gfn), access) {
                return pfn;
            }
            let fault = VmAccess { view: AsId::NORMAL, gfn, access };
            self.host.vm_fault(self.vm, fault).unwrap_or_else(|error| panic!("guest frame {gfn:#x}: {error}"));
        }
    }

    /// The root composed from the stage-1 table at `table`, which may be that of a tenant over a nested root.
    pub fn shadow_root(&self, over: Option<RootId>, table: u64) -> RootId {
        self.root(over, table, || self.host.create_shadow_root(self.vm, AsId::NORMAL, over, table).expect("frames"))
    }

    /// The root composed from the stage-2 table of one of the guest's VMs.
    pub fn nested_root(&self, table: u64) -> RootId {
        self.root(None, table, || {
            self.host.create_nested_root(self.vm, AsId::NORMAL, table, Stage2Format::LongMode).expect("frames")
        })
    }

    fn root(&self, over: Option<RootId>, table: u64, make: impl FnOnce() -> RootId) -> RootId {
        let known = self.roots.borrow().iter().find(|known| known.table == table && known.over == over).copied();
        known.map_or_else(
            || {
                let root = make();
                self.roots.borrow_mut().push(Known { table, over, root });
                root
            },
            |known| known.root,
        )
    }

    /// Leaves the table at `table`, and those over it: the guest is about to free it.
    pub fn leave(&self, over: Option<RootId>, table: u64) {
        let known = self.roots.borrow().iter().find(|known| known.table == table && known.over == over).copied();
        let Some(Known { root, .. }) = known else { return };
        let goes = |known: &Known| known.root == root || known.over == Some(root);
        for known in self.roots.borrow().iter().filter(|known| goes(known)) {
            self.machine().leave(self.table_of(known.root));
        }
        self.host.reap_root(self.vm, root);
        self.roots.borrow_mut().retain(|known| !goes(known));
    }

    /// Leaves all tables: the guest ends.
    pub fn leave_all(&self) {
        while let Some(Known { table, over, .. }) = self.first_root() {
            self.leave(over, table);
        }
    }

    fn first_root(&self) -> Option<Known> {
        self.roots.borrow().first().copied()
    }

    /// The table that the MMU is given for a root.
    #[must_use]
    pub fn table_of(&self, root: RootId) -> Pfn {
        self.host.root_table(self.vm, root).expect("a root in service")
    }

    /// One access through a composed root, served by level 0 alone; what it reflects is for the caller.
    ///
    /// # Errors
    /// What must be served above, or why it cannot be served.
    pub fn access(&self, root: RootId, page: u64, store: Option<u64>) -> Result<u64, ComposeError> {
        let access = if store.is_some() { Access::Write } else { Access::Read };
        loop {
            if let Some(word) = self.machine().word(self.table_of(root), Gva::from_page(page), access) {
                let before = word.load(Relaxed);
                if let Some(value) = store {
                    word.store(value, Relaxed);
                }
                return Ok(before);
            }
            self.host.compose_fault(self.vm, root, page, access)?;
        }
    }

    /// Where `page` leads by the guest's own tables `roots`, each in the memory that the one before translates, the first in the guest's.
    #[must_use]
    pub fn walk(&self, roots: &[u64], page: u64) -> Option<Walked> {
        let mut all = Vec::from([self.stage2().raw()]);
        all.extend(roots);
        walk_through(self.machine(), &all, page)
    }

    /// One access of a process of the level-1 manager `guest`, faults served at their level. The word before.
    ///
    /// # Errors
    /// What no level can serve.
    ///
    /// # Panics
    /// When the MMU reached another frame than a walk through all tables.
    pub fn process_access<B: Accounting>(
        &self,
        guest: &Manager<&Self, Classes<B>>,
        space: SpaceId,
        page: u64,
        store: Option<u64>,
    ) -> Result<u64, NestError> {
        let table = guest.root(space).raw();
        let root = self.shadow_root(None, table);
        loop {
            match self.access(root, page, store) {
                Ok(word) => {
                    self.compare(root, &[table], page, store.is_some());
                    return Ok(word);
                }
                Err(ComposeError::Reflected(Reflection { page, access, .. })) => {
                    guest.fault(space, Gva::from_page(page), access).map_err(NestError::Process)?;
                }
                Err(error) => return Err(NestError::Compose(error)),
            }
        }
    }

    /// One access of VM `of` of the level-1 manager `guest` to its frame `gfn`, likewise.
    ///
    /// # Errors
    /// What no level can serve.
    ///
    /// # Panics
    /// As [`process_access`](Self::process_access).
    pub fn vm_access<B: Accounting>(
        &self,
        guest: &Manager<&Self, Classes<B>>,
        of: VmId,
        gfn: u64,
        store: Option<u64>,
    ) -> Result<u64, NestError> {
        let table = guest.stage2_root(of, AsId::NORMAL).ok_or(NestError::Vm(VmFaultError::NoSlot))?.raw();
        let root = self.nested_root(table);
        loop {
            match self.access(root, gfn, store) {
                Ok(word) => {
                    self.compare(root, &[table], gfn, store.is_some());
                    return Ok(word);
                }
                Err(error) => self.serve_vm(guest, of, error)?,
            }
        }
    }

    /// Has the level-1 manager serve what was reflected of its VM.
    fn serve_vm<B: Accounting>(
        &self,
        guest: &Manager<&Self, Classes<B>>,
        of: VmId,
        error: ComposeError,
    ) -> Result<(), NestError> {
        let ComposeError::Reflected(Reflection { page: gfn, access, .. }) = error else {
            return Err(NestError::Compose(error));
        };
        guest.vm_fault(of, VmAccess { view: AsId::NORMAL, gfn, access }).map(|_| ()).map_err(NestError::Vm)
    }

    fn compare(&self, root: RootId, roots: &[u64], page: u64, store: bool) {
        let by_tables = self.walk(roots, page).expect("the tables allow what the MMU did");
        let (_, reached) = self.machine().peek(self.table_of(root), Gva::from_page(page)).expect("just reached");
        assert_eq!(by_tables.pfn, reached, "page {page:#x} leads elsewhere than the tables say");
        assert!(by_tables.write || !store, "page {page:#x} was stored to");
    }
}

impl<A: Accounting> Memory for GuestMemory<'_, A> {
    fn frame(&self, pfn: Pfn) -> &Frame {
        let gfn = pfn.raw();
        let is_table = || self.host.shadowed_tables(self.vm, AsId::NORMAL, gfn..gfn + 1) > 0;
        let access = if self.looking.get() && is_table() { Access::Read } else { Access::Write };
        self.machine().frame(self.reach(gfn, access))
    }
}

/// More pages than this are flushed by one hypercall.
const FEW: u64 = 33;

impl<A: Accounting> Tlb for GuestMemory<'_, A> {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        let known = self.roots.borrow().iter().find(|known| known.table == root.raw() && known.over.is_none()).copied();
        match (known, scope) {
            (Some(known), FlushScope::Pages { first, pages }) if pages < FEW => {
                for page in first..first + pages {
                    self.host.vm_flush(self.vm, GuestFlush::Page { root: known.root, page });
                }
            }
            _ => self.host.vm_flush(self.vm, GuestFlush::All),
        }
    }

    fn flush_stage2(&self, _root: Pfn, _scope: FlushScope) {
        self.host.vm_flush(self.vm, GuestFlush::All);
    }
}

/// The memory of a VM of a level-1 manager as its guest sees it, for a level-2 manager.
pub struct NestedMemory<'n, 'm, A, B: Accounting> {
    below: &'n GuestMemory<'m, A>,
    guest: &'n Manager<&'n GuestMemory<'m, A>, Classes<B>>,
    vm: VmId,
}

impl<A, B: Accounting> fmt::Debug for NestedMemory<'_, '_, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NestedMemory({:?} of {:?})", self.vm, self.below)
    }
}

impl<'n, 'm, A: Accounting, B: Accounting> NestedMemory<'n, 'm, A, B> {
    /// The memory of VM `vm` of `guest`.
    #[must_use]
    pub fn new(
        below: &'n GuestMemory<'m, A>,
        guest: &'n Manager<&'n GuestMemory<'m, A>, Classes<B>>,
        vm: VmId,
    ) -> Self {
        Self { below, guest, vm }
    }

    fn table(&self) -> u64 {
        self.guest.stage2_root(self.vm, AsId::NORMAL).expect("a VM with memory").raw()
    }

    /// One access of a process of the level-2 manager `manager`, faults served at their levels. The word before.
    ///
    /// # Errors
    /// What no level can serve.
    ///
    /// # Panics
    /// As [`GuestMemory::process_access`].
    pub fn process_access<C: Accounting>(
        &self,
        manager: &Manager<&Self, C>,
        space: SpaceId,
        page: u64,
        store: Option<u64>,
    ) -> Result<u64, NestError> {
        let nested = self.below.nested_root(self.table());
        let table = manager.root(space).raw();
        let root = self.below.shadow_root(Some(nested), table);
        loop {
            match self.below.access(root, page, store) {
                Ok(word) => {
                    self.below.compare(root, &[self.table(), table], page, store.is_some());
                    return Ok(word);
                }
                Err(ComposeError::Reflected(Reflection { root: of, page, access, .. })) if of == root => {
                    manager.fault(space, Gva::from_page(page), access).map_err(NestError::Process)?;
                }
                Err(error) => self.below.serve_vm(self.guest, self.vm, error)?,
            }
        }
    }

    /// Leaves the stage-1 table at `table`.
    pub fn leave(&self, table: u64) {
        self.below.leave(Some(self.below.nested_root(self.table())), table);
    }
}

impl<A: Accounting, B: Accounting> Memory for NestedMemory<'_, '_, A, B> {
    fn frame(&self, pfn: Pfn) -> &Frame {
        let root = self.below.nested_root(self.table());
        loop {
            let at = Gva::from_page(pfn.raw());
            if let Some(frame) = self.below.machine().translate(self.below.table_of(root), at, Access::Write) {
                return self.below.machine().frame(frame);
            }
            if let Err(error) = self.below.host.compose_fault(self.below.vm, root, pfn.raw(), Access::Write) {
                self.below.serve_vm(self.guest, self.vm, error).unwrap_or_else(|error| panic!("{pfn:?}: {error:?}"));
            }
        }
    }
}

impl<A: Accounting, B: Accounting> Tlb for NestedMemory<'_, '_, A, B> {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {
        self.below.host.vm_flush(self.below.vm, GuestFlush::All);
    }
}
