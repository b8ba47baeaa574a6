//! Where things are in guest memory.
//!
//! The fixed addresses are the contract's ([`quire::abi`]); what lies above the kernel depends on how much is asked for
//! and is computed here once for a run.

use quire::abi::{
    BOOT_INFO_GPA, BootInfo, KERNEL_END, KERNEL_GPA, LARGE_PAGE, MAX_MEMORY, OP_WORDS, Placement, START_TABLES_END,
    START_TABLES_GPA, boot,
};
use quire::addr::PAGE_SIZE;

use crate::error::Error;

/// Guest memory of one run. It begins at address 0.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Where the shared regions are.
    pub place: Placement,
    /// Where guest memory ends, a multiple of 2 MiB.
    pub memory_end: u64,
}

impl Layout {
    /// Room for `frames_bytes` of frames, `samples` samples and a trace of `ops` operations.
    ///
    /// # Errors
    /// When that is more than a guest can have.
    pub fn new(frames_bytes: u64, samples: u64, ops: usize) -> Result<Self, Error> {
        let place = Placement::above(KERNEL_END, samples, (ops * OP_WORDS) as u64);
        let memory_end = frames_bytes
            .checked_next_multiple_of(LARGE_PAGE)
            .and_then(|bytes| place.frames.checked_add(bytes))
            .filter(|end| *end <= MAX_MEMORY && frames_bytes > 0)
            .ok_or(Error::MemorySize { bytes: frames_bytes, least: 1, most: MAX_MEMORY - place.frames })?;
        Ok(Self { place, memory_end })
    }

    /// Completes the boot words with the addresses of this layout.
    pub fn describe(&self, words: &mut BootInfo, ops: usize) {
        self.place.describe(words, self.memory_end);
        words[boot::TRACE_WORDS] = (ops * OP_WORDS) as u64;
    }
}

const _: () = assert!(BOOT_INFO_GPA.is_multiple_of(PAGE_SIZE) && BOOT_INFO_GPA < START_TABLES_GPA);
const _: () = assert!(START_TABLES_GPA.is_multiple_of(PAGE_SIZE) && START_TABLES_END <= KERNEL_GPA);
const _: () = assert!(KERNEL_GPA < KERNEL_END);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_guest_can_have_are_refused() {
        assert!(Layout::new(0, 0, 0).is_err());
        assert!(Layout::new(u64::MAX, 0, 0).is_err());
        assert!(Layout::new(MAX_MEMORY, 0, 0).is_err());
        assert!(Layout::new(1, 0, 0).is_ok_and(|l| l.memory_end - l.place.frames == LARGE_PAGE));
    }
}
