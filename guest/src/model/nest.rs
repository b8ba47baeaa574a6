//! A [nest](crate::nest) on the emulated machine: accesses of the tenants at every level through its MMU, each compared with a walk of all tables. The manager of the [`Machine`]
//! is level 0; a [`NestedMemory`] is the memory of a VM of level 1, for a level-2 manager.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::Machine;
use super::walk2d::{Reached, walk_through};
use crate::addr::{Gva, Pfn};
use crate::exercise::{Cpu, Nest, Who, deepest};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{FlushScope, Frame, Memory, Tlb};
pub use crate::nest::NestError;
use crate::space::{Access, Manager, SpaceId};
use crate::stage2::{AsId, ComposeError, GuestFlush, Reflection, RootId, VmAccess, VmFaultError, VmId};
use crate::trace::stamp;

/// The manager of the machine.
pub type Host<'m, A> = Manager<&'m Machine, Classes<A>>;

/// The memory of a VM on the machine.
pub type GuestMemory<'m, A> = crate::nest::GuestMemory<'m, &'m Machine, A>;

impl<'m, A: Accounting> GuestMemory<'m, A> {
    fn machine(&self) -> &'m Machine {
        self.host().memory()
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
            self.host().compose_fault(self.vm(), root, page, access)?;
        }
    }

    /// Where `page` leads by the guest's own tables `roots`, each in the memory that the one before translates, the first in the guest's.
    #[must_use]
    pub fn walk(&self, roots: &[u64], page: u64) -> Option<Reached> {
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

    /// As [`vm_access`](Self::vm_access), at an address of what the VM has [booted](deepest::boot) with.
    ///
    /// # Errors
    /// What no level can serve.
    fn booted_access<B: Accounting>(
        &self,
        guest: &Manager<&Self, Classes<B>>,
        of: VmId,
        page: u64,
        store: Option<u64>,
    ) -> Result<u64, NestError> {
        let table = guest.stage2_root(of, AsId::NORMAL).ok_or(NestError::Vm(VmFaultError::NoSlot))?.raw();
        let root = self.shadow_root(Some(self.nested_root(table)), deepest::ROOT);
        loop {
            match self.access(root, page, store) {
                Ok(word) => {
                    self.compare(root, &[table, deepest::ROOT], page, store.is_some());
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
            if let Err(error) = self.below.host().compose_fault(self.below.vm(), root, pfn.raw(), Access::Write) {
                self.below.serve_vm(self.guest, self.vm, error).unwrap_or_else(|error| panic!("{pfn:?}: {error:?}"));
            }
        }
    }
}

impl<A: Accounting, B: Accounting> Tlb for NestedMemory<'_, '_, A, B> {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {
        self.below.host().vm_flush(self.below.vm(), GuestFlush::All);
    }
}

/// The machine's MMU, as what the tenants of an [exercise](crate::exercise) run on: always on composed tables, each access compared with a walk of all tables.
#[derive(Debug)]
pub struct Mmu;

impl<'m, A: Accounting> Cpu<&'m Machine, A> for Mmu {
    fn touch(
        &mut self,
        nest: &Nest<'_, &'m Machine, A>,
        who: Who,
        page: u64,
        store: Option<u64>,
    ) -> Result<u64, NestError> {
        let store = store.map(|seed| stamp(seed, page));
        match who {
            Who::Process(space) => nest.memory.process_access(&nest.guest, space, page, store),
            Who::Vm(vm) => nest.memory.booted_access(&nest.guest, vm, page, store),
        }
    }
}
