//! The machine as the manager sees it: frames, translation caches, the tenant's program.
#![expect(unsafe_code, reason = "frames by number are memory by address")]

use core::arch::asm;
use core::cell::{Cell, Ref, RefCell};
use core::ptr;

use quire::abi::{ALIAS_BASE, BootInfo, boot};
use quire::addr::{Gva, PAGE_SHIFT, PAGE_SIZE, Pfn};
use quire::memory::{FlushScope, Frame, Memory, Tlb};

use crate::nested::Guests;
use crate::touch::{self, Access, Tenant, Touched};
use crate::{cpu, paging};

/// From this many pages on a flush reloads the root. Each page costs an instruction, at ring 3 on hosts that emulate
/// ring 0 a few; the reload costs the refill of what was still good.
const FLUSH_ALL_PAGES: u64 = 33;
const WORDS: u64 = PAGE_SIZE / 8;

/// The machine. One CPU: the current root is remembered here, and a flush of any other root is none, since
/// loading a root drops everything cached.
#[derive(Debug)]
pub struct Machine {
    first: u64,
    count: u64,
    /// Where the first frame is in the alias map.
    base: u64,
    root: Cell<Option<Pfn>>,
    slow_ring0: bool,
    clear_ticks: Cell<u64>,
    guests: RefCell<Option<Guests>>,
}

impl Machine {
    /// The machine of this run. `slow_ring0`: bulk work is better sent to ring 3 when the manager is at ring 0.
    ///
    /// # Safety
    /// Once. The frames that `boot` names must be memory, in the alias map, and used by nobody else.
    pub unsafe fn new(boot: &BootInfo, slow_ring0: bool) -> Self {
        Self {
            first: boot[boot::FRAMES_FIRST],
            count: boot[boot::FRAMES_COUNT],
            base: ALIAS_BASE + (boot[boot::FRAMES_FIRST] << PAGE_SHIFT),
            root: Cell::new(None),
            slow_ring0: slow_ring0 && cpu::ring() == 0,
            clear_ticks: Cell::new(0),
            guests: RefCell::new(None),
        }
    }

    /// The manager's frames: the first and how many.
    pub fn frames(&self) -> (Pfn, u64) {
        (Pfn::new(self.first), self.count)
    }

    /// TSC ticks spent on clearing frames so far.
    pub fn clear_ticks(&self) -> u64 {
        self.clear_ticks.get()
    }

    /// The ring the manager runs at, 0 or 3.
    pub fn ring(&self) -> u64 {
        cpu::ring()
    }

    /// Makes guests possible: with the CPU's structures in the [`Guests::FRAMES`] frames from `first` on, which must be free. From here on a
    /// [flush](Tlb::flush_stage2) of a guest's second level reaches the CPU.
    ///
    /// # Errors
    /// What the CPU lacks.
    pub fn start_guests(&self, first: Pfn) -> Result<(), &'static str> {
        let guests = Guests::start(self, first)?;
        self.guests.replace(Some(guests));
        Ok(())
    }

    /// The CPU's way to run guests, between [`start_guests`](Self::start_guests) and [`stop_guests`](Self::stop_guests).
    pub fn guests(&self) -> Option<Ref<'_, Guests>> {
        Ref::filter_map(self.guests.borrow(), Option::as_ref).ok()
    }

    /// Ends that. No guest may be left.
    pub fn stop_guests(&self) {
        self.guests.replace(None);
    }

    /// As [`frame`](Memory::frame), for as long as the kernel runs.
    #[inline]
    pub fn lasting_frame(&self, pfn: Pfn) -> &'static Frame {
        let address = ALIAS_BASE + pfn.address();
        // SAFETY: the manager asks for no frames but those it was given, so the alias map has it and nobody holds it as anything but a `Frame`,
        // whose words are atomics. The memory stays for ever. No check: a fault does this twenty times; one of a frame beyond the memory ends in a panic line.
        unsafe { &*ptr::with_exposed_provenance(address as usize) }
    }

    /// Makes an empty root table fit to be loaded: puts the kernel's half in.
    pub fn adopt_root(&self, root: Pfn) {
        for (slot, entry) in paging::upper_half() {
            self.frame(root).0[slot].store(entry, core::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Loads a root table that was [adopted](Self::adopt_root); nothing cached survives.
    ///
    /// # Panics
    /// When the table's upper half is not the kernel's.
    pub fn load_root(&self, root: Pfn) {
        for (slot, entry) in paging::upper_half() {
            let found = self.frame(root).0[slot].load(core::sync::atomic::Ordering::Relaxed);
            assert!(found == entry, "root {root:?} was not adopted: slot {slot} is {found:#x}");
        }
        // SAFETY: the upper half is the kernel's own, and the manager's frames hold no other part of it.
        unsafe { cpu::load_root(root.address()) };
        self.root.set(Some(root));
    }

    /// Leaves the tenants: loads the kernel's own root, so that the last one may be freed.
    pub fn load_no_tenant(&self) {
        // SAFETY: the kernel's own root.
        unsafe { cpu::load_root(paging::root()) };
        self.root.set(None);
    }

    /// The root loaded last, if it is a tenant's.
    pub fn current_root(&self) -> Option<Pfn> {
        self.root.get()
    }

    /// Drops what the CPU has cached for one page of the current root.
    pub fn flush_page(&self, address: Gva) {
        cpu::flush_pages(address.raw(), 1);
    }

    /// Drops everything the CPU has cached.
    pub fn flush_all(&self) {
        let root = self.root.get().map_or(paging::root(), Pfn::address);
        // SAFETY: it is the root in force.
        unsafe { cpu::load_root(root) };
    }

    /// Stores one entry at ring 0. For single entries of tables that other roots use: where ring 0 is emulated, a
    /// store through the alias at ring 3 costs more there at the next switch.
    pub fn store_entry(&self, table: Pfn, index: usize, entry: u64) {
        let word = &self.frame(table).0[index];
        // SAFETY: a word of a frame, which everyone uses as an atomic.
        unsafe { cpu::store_at_ring0(word.as_ptr(), entry) };
    }

    /// Touches pages as the tenant whose root is loaded; see [`touch::run`].
    pub fn touch<T: Tenant>(&self, tenant: &mut T, first: Gva, pages: u64, access: Access) -> Touched {
        touch::run(tenant, first, pages, access)
    }

    /// The address of `count` frames from `first` on in the alias map.
    ///
    /// # Panics
    /// When one of them is not the manager's.
    #[inline]
    fn alias(&self, first: Pfn, count: u64) -> u64 {
        let offset = first.raw().wrapping_sub(self.first);
        if offset >= self.count || count > self.count - offset {
            not_ours(first);
        }
        self.base + (offset << PAGE_SHIFT)
    }

    /// Runs `work` on a root where ring 3 may use the alias map, then goes back.
    fn on_scrub_root(&self, work: impl FnOnce()) {
        // SAFETY: a root of the kernel's own.
        unsafe { cpu::load_root(paging::scrub_root()) };
        work();
        self.flush_all();
    }
}

// Apart, with its argument by value: every access to a frame has this branch.
#[cold]
#[inline(never)]
fn not_ours(first: Pfn) -> ! {
    panic!("{first:?} is not a frame of the manager's");
}

impl Memory for Machine {
    #[inline]
    fn frame(&self, pfn: Pfn) -> &Frame {
        self.lasting_frame(pfn)
    }

    fn zero(&self, first: Pfn, count: u64) {
        let since = cpu::tsc();
        let to = self.alias(first, count);
        let words = count * WORDS;
        if self.slow_ring0 {
            // SAFETY: the alias map is open to ring 3 on this root, and the words are the manager's.
            self.on_scrub_root(|| unsafe { touch::zero(to, words) });
        } else {
            // SAFETY: the words are the manager's; a string store is as good as a relaxed store of each word.
            unsafe {
                asm!("rep stosq", inout("rcx") words => _, inout("rdi") to => _, in("rax") 0, options(nostack, preserves_flags));
            }
        }
        self.clear_ticks.set(self.clear_ticks.get() + (cpu::tsc() - since));
    }

    fn copy(&self, from: Pfn, to: Pfn) {
        let (from, to) = (self.alias(from, 1), self.alias(to, 1));
        if self.slow_ring0 {
            // SAFETY: as in `zero`.
            self.on_scrub_root(|| unsafe { touch::copy(to, from, WORDS) });
            return;
        }
        // SAFETY: as in `zero`.
        unsafe {
            asm!(
                "rep movsq", inout("rcx") WORDS => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Tlb for Machine {
    fn flush(&self, root: Pfn, scope: FlushScope) {
        if self.root.get() != Some(root) {
            return;
        }
        match scope {
            FlushScope::Pages { pages: 0, .. } => {}
            FlushScope::Pages { first, pages } if pages < FLUSH_ALL_PAGES => {
                cpu::flush_pages(first << PAGE_SHIFT, pages);
            }
            FlushScope::Pages { .. } | FlushScope::Space => self.flush_all(),
        }
    }

    fn flush_stage2(&self, root: Pfn, _scope: FlushScope) {
        if let Some(guests) = &*self.guests.borrow() {
            guests.flush(root);
        }
    }

    fn owe_stage2(&self, root: Pfn) {
        if let Some(guests) = &*self.guests.borrow() {
            guests.owe(root);
        }
    }

    fn new_root(&self, root: Pfn) {
        self.adopt_root(root);
    }
}
