//! One perf event of one CPU and the ring that the kernel fills with its records.
#![expect(unsafe_code, reason = "perf_event_open, and memory that the kernel writes")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use perf_event_open_sys as perf;
use perf_event_open_sys::bindings::{perf_event_attr, perf_event_mmap_page};

const PAGE: usize = 4096;
/// Bytes of records, powers of two, the wish first. A program that clears memory fills the second in a few hundredths of a
/// second; but with the page before it that is `kernel.perf_event_mlock_kb` as it comes, all that an unprivileged user may
/// lock for each CPU.
const SIZES: [usize; 2] = [4 << 20, 512 << 10];

/// A perf event and its ring.
#[derive(Debug)]
pub(super) struct Ring {
    event: OwnedFd,
    control: NonNull<perf_event_mmap_page>,
    /// Bytes of records.
    size: usize,
}

// SAFETY: the mapping belongs to this value alone and no thread-bound state goes with it.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens `attr` for process `pid` (and, if it says so, its children) on one CPU.
    pub(super) fn open(mut attr: perf_event_attr, pid: i32, cpu: i32) -> io::Result<Self> {
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = u32::try_from(SIZES[1] / 4).unwrap_or(u32::MAX);
        let flags = perf::bindings::PERF_FLAG_FD_CLOEXEC;
        // SAFETY: the kernel reads `attr`, whose size field is its size, and writes at most to that same field.
        let fd = unsafe { perf::perf_event_open(&raw mut attr, pid, cpu, -1, flags.into()) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an open descriptor that is new and ours alone.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        let (control, size) = match map(&event, SIZES[0]) {
            Ok(control) => (control, SIZES[0]),
            Err(_) => (map(&event, SIZES[1])?, SIZES[1]),
        };
        Ok(Self { event, control, size })
    }

    /// The descriptor that polls as readable when the ring fills up.
    pub(super) fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Moves all records out of the ring, each with its header, to the end of `into`.
    pub(super) fn drain(&mut self, into: &mut Vec<u8>) {
        let control = self.control.as_ptr();
        // SAFETY: both fields lie in the mapping, are aligned and are accessed by us only through these atomics; the
        // kernel's side is the documented protocol: it stores `data_head` with release, we store `data_tail` likewise.
        let (head, tail) = unsafe {
            (AtomicU64::from_ptr(&raw mut (*control).data_head), AtomicU64::from_ptr(&raw mut (*control).data_tail))
        };
        let end = head.load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        while at != end {
            let offset = usize::try_from(at).unwrap_or_default() & (self.size - 1);
            let length = usize::try_from(end - at).unwrap_or(self.size).min(self.size - offset);
            // SAFETY: `PAGE + offset + length` is within the mapping, and the kernel does not write between tail and head.
            let records = unsafe { std::slice::from_raw_parts(control.cast::<u8>().add(PAGE + offset), length) };
            into.extend_from_slice(records);
            at += length as u64;
        }
        tail.store(end, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: `open` made this mapping with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.control.as_ptr().cast(), PAGE + self.size) };
    }
}

/// Maps the control page of `event` and so many bytes for records behind it.
fn map(event: &OwnedFd, size: usize) -> io::Result<NonNull<perf_event_mmap_page>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
    let memory =
        unsafe { libc::mmap(ptr::null_mut(), PAGE + size, protection, libc::MAP_SHARED, event.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::ErrorKind::Other.into())
}

/// Waits until one of `descriptors` is readable, or for so many milliseconds.
pub(super) fn poll(descriptors: &[RawFd], milliseconds: i32) {
    let mut polled: Vec<libc::pollfd> =
        descriptors.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or_default();
    // SAFETY: the array has as many entries as we say. Whether it failed does not matter: the caller looks anyway.
    unsafe { libc::poll(polled.as_mut_ptr(), count, milliseconds) };
}
