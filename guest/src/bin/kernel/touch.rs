//! The tenant's program: it touches pages, times each access, and notes those that faulted.
//!
//! It is the only code that runs on a tenant's behalf, in a section of its own whose two pages (code and data) every
//! root maps with the user bit. At ring 3 the manager calls it like a function. At ring 0 [`user_call`] takes it to
//! ring 3 and its last `ret` finds an `int3` there.
//!
//! A sample is made only where the fault handler left a mark (see [`mark`]), so resident pages cost no memory.
//! Nothing is subtracted from the ticks; [`stamp_pair`] tells what an empty bracket takes.
//!
//! A write stores to the page's second word first, then loads the first word and stores the stamp there. That is
//! one write fault whatever the host: `xchg` would be one on a CPU, but an emulator may load before it stores.
#![expect(unsafe_code, reason = "calls the program's assembly and meets its faults")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};
use core::{ptr, slice};

use quire::abi::sample::Sample;
use quire::abi::{self, TOUCH_BASE, TOUCH_SAMPLES};
use quire::addr::{Gva, Order, PAGE_SIZE};

use crate::cpu;
use crate::trap::Frame;

/// Who answers the tenant's page faults.
pub trait Tenant {
    /// The access at `address` faulted with the CPU's `error` code (SDM vol. 3, 4.7). Called on the fault stack,
    /// at the manager's ring, with the tenant's root loaded.
    fn fault(&mut self, address: Gva, error: u64) -> Verdict;
}

/// What becomes of the access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried again.
    Resume,
    /// The touching ends; the code is the handler's to choose.
    Abort(u64),
}

/// Bits of a page fault's error code.
pub mod error {
    /// The entry was present: a right is missing.
    pub const PRESENT: u64 = 1 << 0;
    /// A store.
    pub const WRITE: u64 = 1 << 1;
    /// From ring 3.
    pub const USER: u64 = 1 << 2;
    /// A reserved bit is set in an entry: the tables are broken.
    pub const RESERVED: u64 = 1 << 3;
}

/// How pages are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads the first word.
    Load,
    /// Loads the first word and stores [`abi::stamp`] of this seed there.
    Store(u64),
}

/// What came of touching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// [`abi::checksum`] over the first words as they were before any store, in order, from 0.
    pub sum: u64,
    /// The handler's code and the page it stopped at, when it ended the touching early.
    pub aborted: Option<(u64, Gva)>,
}

unsafe extern "C" {
    fn touch_load(first: u64, end: u64, unused: u64) -> u64;
    fn touch_store(first: u64, end: u64, seed: u64) -> u64;
    fn touch_pair(repetitions: u64, unused: u64, unused2: u64) -> u64;
    fn touch_spin(rounds: u64, unused: u64, unused2: u64) -> u64;
    fn touch_zero(to: u64, words: u64, unused: u64) -> u64;
    fn touch_copy(to: u64, from: u64, words: u64) -> u64;
    fn touch_abort();
    static touch_mark: AtomicU64;
    static touch_sample_next: AtomicU64;
    static touch_sample_end: AtomicU64;
    static touch_samples_lost: AtomicU64;
    fn user_call(program: Program, first: u64, second: u64, third: u64) -> u64;
}

type Program = unsafe extern "C" fn(u64, u64, u64) -> u64;

/// The touching that goes on, for the fault handler.
struct Going {
    tenant: *mut (),
    fault: unsafe fn(*mut (), Gva, u64) -> Verdict,
    aborted: Option<(u64, Gva)>,
}

static GOING: AtomicPtr<Going> = AtomicPtr::new(ptr::null_mut());

/// Touches `pages` pages from `first` on, one access each; `tenant` answers the faults.
///
/// # Panics
/// When the pages reach beyond the tenant's half, or a fault handler touches.
pub fn run<T: Tenant>(tenant: &mut T, first: Gva, pages: u64, access: Access) -> Touched {
    let end = first.add_pages(pages).raw();
    let mut going = Going { tenant: (&raw mut *tenant).cast(), fault: resolve::<T>, aborted: None };
    let going = &raw mut going;
    assert!(GOING.load(Relaxed).is_null(), "a fault handler may not touch");
    GOING.store(going, Relaxed);
    let sum = match access {
        Access::Load => at_user_ring(touch_load, first.raw(), end, 0),
        Access::Store(seed) => at_user_ring(touch_store, first.raw(), end, seed),
    };
    GOING.store(ptr::null_mut(), Relaxed);
    // SAFETY: the object lives until this function returns, and only this pointer reaches it.
    Touched { sum, aborted: unsafe { (*going).aborted } }
}

/// Tells the touch program what the fault was that it is about to resume from; it makes the sample.
pub fn mark(order: Order, kind: u8, spare: u16) {
    // SAFETY: a word of the touch program's data page, used only as an atomic here and by single moves there.
    unsafe { &touch_mark }.store(abi::sample::mark(order, kind, spare), Relaxed);
}

/// Sets the sample buffer to the mapped samples region, empty, with room for `capacity`.
pub fn open_samples(capacity: u64) {
    // SAFETY: as in `mark`.
    let (next, end) = unsafe { (&touch_sample_next, &touch_sample_end) };
    next.store(TOUCH_SAMPLES, Relaxed);
    end.store(TOUCH_SAMPLES + 8 * capacity, Relaxed);
}

/// Samples made so far, and how many found the buffer full.
pub fn samples() -> (u64, u64) {
    // SAFETY: as in `mark`.
    let (next, lost) = unsafe { (&touch_sample_next, &touch_samples_lost) };
    (next.load(Relaxed).saturating_sub(TOUCH_SAMPLES) / 8, lost.load(Relaxed))
}

/// Adds a sample of the manager's own.
pub fn record(sample: Sample) {
    // SAFETY: as in `mark`.
    let (next, end, lost) = unsafe { (&touch_sample_next, &touch_sample_end, &touch_samples_lost) };
    let at = next.load(Relaxed);
    if at >= end.load(Relaxed) {
        lost.fetch_add(1, Relaxed);
        return;
    }
    // SAFETY: below the end of the mapped samples region, which only this CPU's programs and this function write.
    unsafe { ptr::with_exposed_provenance_mut::<u64>(at as usize).write_volatile(sample.encode()) };
    next.store(at + 8, Relaxed);
}

/// Puts the samples in the order of their words: by spare bits, kind and folio order, then by ticks.
pub fn sort_samples() {
    let at = ptr::with_exposed_provenance_mut::<u64>(TOUCH_SAMPLES as usize);
    // SAFETY: the program has written that many words to the mapped samples region, and does not run.
    unsafe { slice::from_raw_parts_mut(at, samples().0 as usize) }.sort_unstable();
}

/// Sample `index`, if so many were made.
pub fn sample(index: u64) -> Option<Sample> {
    if index >= samples().0 {
        return None;
    }
    // SAFETY: the program has written that many words to the mapped samples region.
    let word = unsafe { ptr::with_exposed_provenance::<u64>((TOUCH_SAMPLES + 8 * index) as usize).read_volatile() };
    Sample::decode(word)
}

/// TSC ticks of a bracket with nothing in it, at the tenant's ring: the least of several.
pub fn stamp_pair() -> u64 {
    at_user_ring(touch_pair, 32, 0, 0)
}

/// TSC ticks of a fixed loop of integer instructions at this ring.
pub fn spin_here(rounds: u64) -> u64 {
    // SAFETY: the loop uses registers of the C ABI only.
    unsafe { touch_spin(rounds, 0, 0) }
}

/// The same at ring 3.
pub fn spin_at_user_ring(rounds: u64) -> u64 {
    at_user_ring(touch_spin, rounds, 0, 0)
}

/// Clears `words` words at `to`, at ring 3.
///
/// # Safety
/// The words must be mapped for ring 3 in the current root, and be atomics to everyone else.
pub unsafe fn zero(to: u64, words: u64) {
    at_user_ring(touch_zero, to, words, 0);
}

/// Copies `words` words from `from` to `to`, at ring 3.
///
/// # Safety
/// As [`zero`], for both ranges.
pub unsafe fn copy(to: u64, from: u64, words: u64) {
    at_user_ring(touch_copy, to, from, words);
}

/// Whether `rip` lies in the touch program, which is one page.
pub fn owns(rip: u64) -> bool {
    rip & !(PAGE_SIZE - 1) == TOUCH_BASE
}

/// A page fault of the touch program: its tenant resolves it, or the program is sent to its end.
///
/// # Panics
/// When the fault is none of a tenant's: nobody touches, the address is not in the lower half, or a reserved bit is set.
pub fn fault(frame: &mut Frame, address: u64) {
    let going = GOING.load(Relaxed);
    let Some(address) = Gva::try_new(address).filter(|_| !going.is_null() && frame.error & error::RESERVED == 0) else {
        nobodys(frame, address);
    };
    // SAFETY: not null, so `run` waits for the program and its `Going` is alive, reached by this pointer only.
    let (tenant, resolve) = unsafe { ((*going).tenant, (*going).fault) };
    // SAFETY: `run` paired the function with the tenant's type.
    if let Verdict::Abort(code) = unsafe { resolve(tenant, address, frame.error) } {
        // SAFETY: as above.
        unsafe { (*going).aborted = Some((code, Gva::from_page(address.page()))) };
        frame.rip = touch_abort as *const () as u64;
    }
}

#[cold]
#[inline(never)]
fn nobodys(frame: &Frame, address: u64) -> ! {
    panic!("page fault in the touch program: cr2 {address:#x} error {:#x} rip {:#x}", frame.error, frame.rip);
}

/// Calls the tenant behind a pointer that [`run`] made.
///
/// # Safety
/// `tenant` must come from a `&mut T` that `run` holds for as long.
unsafe fn resolve<T: Tenant>(tenant: *mut (), address: Gva, error: u64) -> Verdict {
    // SAFETY: by contract; `run` does not use its reference while the program runs.
    unsafe { &mut *tenant.cast::<T>() }.fault(address, error)
}

/// Runs a program of the touch section at ring 3.
fn at_user_ring(program: Program, first: u64, second: u64, third: u64) -> u64 {
    if cpu::ring() == 3 {
        // SAFETY: the programs follow the C ABI; what they touch is their caller's promise.
        unsafe { program(first, second, third) }
    } else {
        // SAFETY: as above; `user_call` saves what the C ABI wants saved, and may be nested.
        unsafe { user_call(program, first, second, third) }
    }
}

const _: () = assert!(PAGE_SIZE == 4096, "the assembly steps by this");
const _: () = assert!(abi::STAMP_FACTOR == 0x9e37_79b9_7f4a_7c15, "the assembly multiplies by this");

global_asm!(
    r#"
    .section .touch.text, "ax"
# rdi: address, rsi: end, r8: checksum, r9d: first time stamp
    .global touch_load
touch_load:
    xor r8d, r8d
    jmp 3f
1:
    lfence
    rdtsc
    lfence
    mov r9d, eax
    mov rcx, [rdi]
    lfence
    rdtsc
    sub eax, r9d
    rol r8, 5
    xor r8, rcx
    mov r10, [rip + touch_mark]
    test r10, r10
    jnz 4f
2:
    add rdi, 4096
3:
    cmp rdi, rsi
    jb 1b
    .global touch_abort
touch_abort:
    mov rax, r8
    ret
4:
    mov qword ptr [rip + touch_mark], 0
    mov rcx, [rip + touch_sample_next]
    cmp rcx, [rip + touch_sample_end]
    jae 5f
    or rax, r10
    mov [rcx], rax
    add rcx, 8
    mov [rip + touch_sample_next], rcx
    jmp 2b
5:
    inc qword ptr [rip + touch_samples_lost]
    jmp 2b

# as above; r11: seed, r10: stamp
    .global touch_store
touch_store:
    xor r8d, r8d
    mov r11, rdx
    jmp 3f
1:
    mov r10, rdi
    shr r10, 12
    xor r10, r11
    imul r10, [rip + touch_stamp_factor]
    or r10, 1
    lfence
    rdtsc
    lfence
    mov r9d, eax
    mov [rdi + 8], r10
    mov rcx, [rdi]
    mov [rdi], r10
    lfence
    rdtsc
    sub eax, r9d
    rol r8, 5
    xor r8, rcx
    mov r10, [rip + touch_mark]
    test r10, r10
    jnz 4f
2:
    add rdi, 4096
3:
    cmp rdi, rsi
    jb 1b
    mov rax, r8
    ret
4:
    mov qword ptr [rip + touch_mark], 0
    mov rcx, [rip + touch_sample_next]
    cmp rcx, [rip + touch_sample_end]
    jae 5f
    or rax, r10
    mov [rcx], rax
    add rcx, 8
    mov [rip + touch_sample_next], rcx
    jmp 2b
5:
    inc qword ptr [rip + touch_samples_lost]
    jmp 2b

# rdi: repetitions. The least ticks of an empty bracket.
    .global touch_pair
touch_pair:
    mov r8d, -1
1:
    lfence
    rdtsc
    lfence
    mov r9d, eax
    lfence
    rdtsc
    sub eax, r9d
    cmp eax, r8d
    cmovb r8d, eax
    dec rdi
    jnz 1b
    mov eax, r8d
    ret

# rdi: rounds of five integer instructions. Ticks.
    .global touch_spin
touch_spin:
    rdtsc
    mov r9d, eax
1:
    lea rcx, [rcx + rdi * 2]
    xor rcx, r9
    imul rcx, rcx, 13
    dec rdi
    jnz 1b
    rdtsc
    sub eax, r9d
    ret

# rdi: to, rsi: words
    .global touch_zero
touch_zero:
    mov rcx, rsi
    xor eax, eax
    rep stosq
    ret

# rdi: to, rsi: from, rdx: words
    .global touch_copy
touch_copy:
    mov rcx, rdx
    rep movsq
    ret

touch_exit:
    int3

    .section .touch.data, "aw"
    .align 64
touch_stamp_factor:
    .quad 0x9e3779b97f4a7c15
    .global touch_mark
    .global touch_sample_next
    .global touch_sample_end
    .global touch_samples_lost
touch_mark:
    .quad 0
touch_sample_next:
    .quad 0
touch_sample_end:
    .quad 0
touch_samples_lost:
    .quad 0
    .align 64
# The whole stack of a program at ring 3 under a manager at ring 0: where its `ret` goes.
touch_stack:
    .quad touch_exit

    .text
# rdi: program, rsi, rdx, rcx: its arguments. Goes to ring 3; comes back through `user_return`. May be nested: a
# fault handler that clears a page uses it while the program that faulted waits.
    .global user_call
user_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push [user_return_rsp]
    mov [user_return_rsp], rsp
    mov rax, rdi
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
    push 0x2b
    push offset touch_stack
    push 2
    push 0x33
    push rax
    iretq

# The breakpoint gate while the manager is at ring 0: on a stack of its own, which is simply left.
    .global user_return
user_return:
    mov rsp, [user_return_rsp]
    pop [user_return_rsp]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .section .data.user_call, "aw"
    .align 8
user_return_rsp:
    .quad 0
"#
);
