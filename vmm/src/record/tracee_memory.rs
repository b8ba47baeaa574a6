//! Reading the memory of a traced process.
#![expect(unsafe_code, reason = "process_vm_readv is a foreign function")]

use std::ptr;

/// Reads from `address` of process `pid` on; says how many bytes it got.
pub(super) fn read(pid: i32, address: u64, into: &mut [u8]) -> usize {
    let Ok(place) = usize::try_from(address) else { return 0 };
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(place), iov_len: into.len() };
    // SAFETY: the kernel writes at most `iov_len` bytes to `into`, and reads the remote address in the other process only.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).unwrap_or(0)
}

/// Reads one word of process `pid`.
pub(super) fn read_word(pid: i32, address: u64) -> Option<u64> {
    let mut word = [0; 8];
    (read(pid, address, &mut word) == word.len()).then(|| u64::from_ne_bytes(word))
}
