//! A manager inside of a VM: the same library, with the VM's guest frames for its frames and a hypercall for its flushes.
//!
//! The manager below is level 0, that of the VM level 1. Level 1 has processes, which run on what level 0 composes from their stage-1 tables (engine `shadow`) or which an MMU walks in
//! two dimensions (EPT, NPT); and VMs of its own, which run on nested roots. A level-1 manager is built on a [`GuestMemory`], whether it runs in the guest or, as here, on its
//! behalf.
//!
//! A manager stores to its tables through references to frames, so every frame that it asks for is one it may store to, and to level 0 that is a store; but for tables that it
//! walks through ([`Memory::frame_to_look`]), and all while somebody only looks ([`GuestMemory::look`]).

use core::cell::Cell;
use core::fmt;

use crate::addr::Pfn;
use crate::mapcount::{Accounting, Classes};
use crate::memory::{FlushScope, Frame, Memory, Tlb};
use crate::space::{Access, FaultError, Manager};
use crate::stage2::{AsId, ComposeError, GuestFlush, Kind, RootId, VmAccess, VmFaultError, VmId};

/// Why an access of a tenant of level 1 failed, at the level that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestError {
    /// Level 0 could not serve it.
    Compose(ComposeError),
    /// A process of a guest has no such page, says its manager.
    Process(FaultError),
    /// A VM of a guest has no such guest frame, says its manager.
    Vm(VmFaultError),
}

impl fmt::Display for NestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compose(error) => error.fmt(f),
            Self::Process(error) => error.fmt(f),
            Self::Vm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for NestError {}

/// The memory of a VM as its guest sees it: frames are guest frames of the normal address space.
pub struct GuestMemory<'h, M, A> {
    host: &'h Manager<M, Classes<A>>,
    vm: VmId,
    looking: Cell<bool>,
}

impl<M, A> fmt::Debug for GuestMemory<'_, M, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestMemory({:?})", self.vm)
    }
}

impl<'h, M: Memory + Tlb, A: Accounting> GuestMemory<'h, M, A> {
    /// The memory of `vm`, which has frames.
    #[must_use]
    pub fn new(host: &'h Manager<M, Classes<A>>, vm: VmId) -> Self {
        Self { host, vm, looking: Cell::new(false) }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The manager below.
    #[must_use]
    pub fn host(&self) -> &'h Manager<M, Classes<A>> {
        self.host
    }

    /// Does `what`, which only reads tables.
    pub fn look<T>(&self, what: impl FnOnce() -> T) -> T {
        let before = self.looking.replace(true);
        let result = what();
        self.looking.set(before);
        result
    }

    /// The stage-2 root of its normal address space.
    ///
    /// # Panics
    /// When the VM never had memory.
    #[must_use]
    pub fn stage2(&self) -> Pfn {
        self.host.stage2_root(self.vm, AsId::NORMAL).expect("a VM with memory")
    }

    /// The frame behind guest frame `gfn`, if stage 2 allows that access.
    fn mapped(&self, gfn: u64, access: Access) -> Option<Pfn> {
        let (place, leaf) = self.host.stage2_lookup(self.vm, AsId::NORMAL, gfn)?;
        access.is_allowed_by(leaf.attrs).then(|| leaf.pfn.add(gfn - place.page))
    }

    /// The frame behind guest frame `gfn`, mapped so that `access` is allowed.
    ///
    /// # Panics
    /// When that cannot be served.
    #[must_use]
    pub fn reach(&self, gfn: u64, access: Access) -> Pfn {
        loop {
            if let Some(frame) = self.mapped(gfn, access) {
                return frame;
            }
            let fault = VmAccess { view: AsId::NORMAL, gfn, access };
            self.host.vm_fault(self.vm, fault).unwrap_or_else(|error| panic!("guest frame {gfn:#x}: {error}"));
        }
    }

    /// The root composed from the stage-1 table at `table`, which may be that of a tenant over a nested root.
    ///
    /// # Panics
    /// When there is no frame for it.
    pub fn shadow_root(&self, over: Option<RootId>, table: u64) -> RootId {
        self.host.find_root_over(self.vm, Kind::Stage1, over, table).unwrap_or_else(|| {
            self.host.create_shadow_root(self.vm, AsId::NORMAL, over, table).expect("a frame for a root")
        })
    }

    /// The root composed from the stage-2 table, in the VM's own format, of one of the guest's VMs.
    ///
    /// # Panics
    /// When there is no frame for it.
    pub fn nested_root(&self, table: u64) -> RootId {
        self.host.find_root_over(self.vm, Kind::Nested, None, table).unwrap_or_else(|| {
            let format = self.host.vm_format(self.vm);
            self.host.create_nested_root(self.vm, AsId::NORMAL, table, format).expect("a frame for a root")
        })
    }

    /// The table that an MMU is given for a root.
    ///
    /// # Panics
    /// When the VM has no such root.
    #[must_use]
    pub fn table_of(&self, root: RootId) -> Pfn {
        self.host.root_table(self.vm, root).expect("a root in service")
    }

    /// Leaves the table at `table`, and those over it: the guest is about to free it, and no MMU walks what was composed from it.
    pub fn leave(&self, over: Option<RootId>, table: u64) {
        for kind in [Kind::Stage1, Kind::Nested] {
            while let Some(root) = self.host.find_any_root_over(self.vm, kind, over, table) {
                self.host.reap_root(self.vm, root);
            }
        }
    }

    /// Leaves all tables: the guest ends.
    pub fn leave_all(&self) {
        self.host.reap_all_roots(self.vm);
    }
}

impl<M: Memory + Tlb, A: Accounting> Memory for GuestMemory<'_, M, A> {
    fn frame(&self, pfn: Pfn) -> &Frame {
        if self.looking.get() {
            return self.frame_to_look(pfn);
        }
        self.host.memory().frame(self.reach(pfn.raw(), Access::Write))
    }

    fn frame_to_look(&self, pfn: Pfn) -> &Frame {
        let gfn = pfn.raw();
        // What may be stored to is no table that anybody watches, and most often that is so.
        let frame = self.mapped(gfn, Access::Write).unwrap_or_else(|| {
            let is_table = self.host.shadowed_tables(self.vm, AsId::NORMAL, gfn..gfn + 1) > 0;
            self.reach(gfn, if is_table { Access::Read } else { Access::Write })
        });
        self.host.memory().frame(frame)
    }

    fn zero(&self, first: Pfn, count: u64) {
        for i in 0..count {
            self.host.memory().zero(self.reach(first.raw() + i, Access::Write), 1);
        }
    }

    fn copy(&self, from: Pfn, to: Pfn) {
        let to = self.reach(to.raw(), Access::Write);
        self.host.memory().copy(self.reach(from.raw(), Access::Read), to);
    }
}

/// More pages than this are flushed by one hypercall.
const FEW: u64 = 33;

impl<M: Memory + Tlb, A: Accounting> Tlb for GuestMemory<'_, M, A> {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        // An MMU that walks both dimensions has combined them: it is told too.
        self.host.memory().flush_stage2(self.stage2(), scope);
        match (self.host.find_root_over(self.vm, Kind::Stage1, None, root.raw()), scope) {
            (Some(root), FlushScope::Pages { first, pages }) if pages < FEW => {
                for page in first..first + pages {
                    self.host.vm_flush(self.vm, GuestFlush::Page { root, page });
                }
            }
            _ => self.host.vm_flush(self.vm, GuestFlush::All),
        }
    }

    fn flush_stage2(&self, _root: Pfn, _scope: FlushScope) {
        self.host.vm_flush(self.vm, GuestFlush::All);
    }
}
