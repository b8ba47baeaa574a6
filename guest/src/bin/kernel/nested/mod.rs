//! Guests of this kernel: a CPU's second level of paging, behind one interface for VMX and SVM.
//!
//! ```text
//! guest's address ──(the guest's own tables, stage 1)──> guest-physical ──(EPT or NPT, stage 2)──> a frame of ours
//! ```
//!
//! A guest is paravirtual: it runs in 64-bit mode at its ring 0, on tables in its own memory, without interrupts, and speaks by hypercall
//! (`vmcall` or `vmmcall`). Whatever else it does that touches the machine (ports, model-specific registers, control registers, CPUID) ends in an
//! [`Exit`], and so does each of its exceptions.
//!
//! Translations are cached below, and emulators hide it when a flush of them is forgotten: they drop everything at each entry. So this is
//! kept by account: whoever narrows or redirects a leaf [owes](Guests::owe) a flush, and no guest is entered on debts.

pub mod check;
mod guest;
mod program;
mod svm;
pub mod vm;
mod vmx;

use core::cell::RefCell;

use arrayvec::ArrayVec;
use quire::addr::Pfn;
use quire::space::Access;

use svm::Svm;
use vmx::Vmx;

use crate::cpu;
use crate::machine::Machine;

/// A CPU's way to run guests.
#[derive(Debug)]
pub enum Guests {
    /// With [`Ept`](quire::format::Ept) below.
    Vmx(Vmx),
    /// With [`Npt`](quire::format::Npt) below.
    Svm(Svm),
}

impl Guests {
    /// Frames that the CPU's own structures take, at most.
    pub const FRAMES: u64 = svm::FRAMES;

    /// Turns on what the CPU has, with structures in the frames from `first` on, which must be free until this is dropped.
    ///
    /// # Errors
    /// What the CPU lacks.
    pub fn start(machine: &Machine, first: Pfn) -> Result<Self, &'static str> {
        if cpu::ring() != 0 {
            return Err("guests need a manager at ring 0");
        }
        if Vmx::is_there() {
            Vmx::start(machine, first).map(Self::Vmx)
        } else if Svm::is_there() {
            Svm::start(machine, first).map(Self::Svm)
        } else {
            Err("the CPU has neither VMX nor SVM")
        }
    }

    /// A number for the results and for guests: 1 for VMX, 2 for SVM.
    pub fn kind(&self) -> u64 {
        match self {
            Self::Vmx(_) => 1,
            Self::Svm(_) => 2,
        }
    }

    /// What the CPU can do.
    pub fn abilities(&self) -> Abilities {
        match self {
            Self::Vmx(vmx) => vmx.abilities(),
            Self::Svm(svm) => svm.abilities(),
        }
    }

    /// Runs a guest, on the second level at `root`, until it exits. Behind a [`Exit::Hypercall`] or [`Exit::Halt`] it goes on after the
    /// instruction; behind any other it repeats what it exited on.
    ///
    /// # Panics
    /// When a flush is owed, or the CPU refuses the guest's state.
    pub fn enter(&self, registers: &mut Registers, root: Pfn) -> Exit {
        self.debts().assert_none();
        match self {
            Self::Vmx(vmx) => vmx.enter(registers, root),
            Self::Svm(svm) => svm.enter(registers, root),
        }
    }

    /// Leaves below `root` that a guest may have used were narrowed or redirected: nothing is entered before a flush of it.
    pub fn owe(&self, root: Pfn) {
        self.debts().owe(root);
    }

    /// Drops what is cached of the second level at `root`, at once or at the next entry. No CPU can do that for single pages.
    pub fn flush(&self, root: Pfn) {
        match self {
            Self::Vmx(vmx) => vmx.flush(root),
            Self::Svm(svm) => svm.flush(),
        }
        self.debts().pay(root);
    }

    fn debts(&self) -> &Debts {
        match self {
            Self::Vmx(vmx) => &vmx.debts,
            Self::Svm(svm) => &svm.debts,
        }
    }
}

/// What differs among CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// The MMU sets accessed and dirty in the second level.
    pub accessed_dirty: bool,
    /// Leaves of 1 GiB.
    pub gigabyte_leaves: bool,
}

/// A guest's registers between an exit and the next entry.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Registers {
    /// RAX: the number of a hypercall.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    /// RBP.
    pub rbp: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// R8 to R15.
    pub r8: [u64; 8],
    /// The stack pointer.
    pub rsp: u64,
    /// The next instruction.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// The root of the guest's own tables, guest-physical.
    pub cr3: u64,
}

/// Why a guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The second level does not allow an access.
    Violation {
        /// Where, guest-physical.
        address: u64,
        /// What was tried. A walk of the guest's tables may be a store, and an access that loads and stores may be called either.
        access: Access,
        /// Whether it was the MMU's, to an entry of the guest's tables.
        guest_walk: bool,
    },
    /// An entry of the second level is wrong.
    Misconfigured {
        /// The guest-physical address it was met for.
        address: u64,
    },
    /// The guest wants something; what stands in its registers.
    Hypercall,
    /// An exception of the guest's.
    Exception {
        /// Its number.
        vector: u8,
        /// Its error code, or 0.
        error: u64,
        /// For a page fault, the guest's address.
        address: u64,
    },
    /// The guest waits for an interrupt that never comes.
    Halt,
    /// The guest cannot go on.
    Shutdown,
    /// Something that a guest of ours does not do, by the CPU's own number.
    Other(u64),
}

/// Roots of which a flush is owed.
#[derive(Debug, Default)]
struct Debts(RefCell<ArrayVec<Pfn, 16>>);

impl Debts {
    fn owe(&self, root: Pfn) {
        let mut roots = self.0.borrow_mut();
        if !roots.contains(&root) {
            roots.push(root);
        }
    }

    fn pay(&self, root: Pfn) {
        self.0.borrow_mut().retain(|owed| *owed != root);
    }

    fn assert_none(&self) {
        assert!(self.0.borrow().is_empty(), "a guest is entered on stale translations");
    }
}

/// Flags of a guest when it starts: the bit that is always set, and no interrupts.
pub const RFLAGS: u64 = 2;
/// Descriptors of a guest's flat segments, as the bits of a VMCB's attributes: 64-bit code, data, a busy task state.
mod attributes {
    pub const CODE: u64 = 0xa9b;
    pub const DATA: u64 = 0xc93;
    pub const TASK: u64 = 0x08b;
}
/// Their selectors.
mod selector {
    pub const CODE: u64 = 0x10;
    pub const DATA: u64 = 0x18;
    pub const TASK: u64 = 0x40;
}
