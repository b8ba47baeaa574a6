//! Where the regions that VMM and kernel share go.

use super::{KERNEL_END, LARGE_PAGE, boot, results};
use crate::abi::BootInfo;
use crate::addr::PAGE_SIZE;

/// The regions above the kernel image, in guest physical addresses. The VMM computes it before it makes
/// the memory; a kernel that was started without our VMM computes the same for the memory it finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Results region: header, panic text, audit list, log.
    pub results: u64,
    /// Samples, 2 MiB aligned.
    pub samples: u64,
    /// How many samples fit.
    pub samples_capacity: u64,
    /// The encoded trace.
    pub trace: u64,
    /// The first byte of the manager's frames, 2 MiB aligned.
    pub frames: u64,
}

impl Placement {
    /// Regions above `taken`, the end of everything that is loaded, for `samples` samples and a trace of `trace_words`.
    #[must_use]
    pub const fn above(taken: u64, samples: u64, trace_words: u64) -> Self {
        let results = if taken <= KERNEL_END { KERNEL_END } else { taken.next_multiple_of(LARGE_PAGE) };
        let samples_at = (results + results::REGION_BYTES).next_multiple_of(LARGE_PAGE);
        let samples_bytes = (8 * samples).next_multiple_of(LARGE_PAGE);
        let trace = samples_at + samples_bytes;
        let frames = (trace + 8 * trace_words).next_multiple_of(LARGE_PAGE);
        Self { results, samples: samples_at, samples_capacity: samples_bytes / 8, trace, frames }
    }

    /// Writes the regions into `boot`, for guest memory that ends at `memory_end`.
    pub const fn describe(&self, boot: &mut BootInfo, memory_end: u64) {
        boot.0[boot::RESULTS_GPA] = self.results;
        boot.0[boot::RESULTS_BYTES] = results::REGION_BYTES;
        boot.0[boot::SAMPLES_GPA] = self.samples;
        boot.0[boot::SAMPLES_CAPACITY] = self.samples_capacity;
        boot.0[boot::TRACE_GPA] = self.trace;
        boot.0[boot::FRAMES_FIRST] = self.frames / PAGE_SIZE;
        boot.0[boot::FRAMES_COUNT] = memory_end.saturating_sub(self.frames) / PAGE_SIZE;
        boot.0[boot::MEMORY_END] = memory_end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_follow_each_other_without_overlap() {
        for (taken, samples, words) in [(0x12_3000, 0, 0), (KERNEL_END, 1, 8), (0x4f_f001, 1 << 20, 1 << 16)] {
            let p = Placement::above(taken, samples, words);
            assert!(taken <= p.results);
            assert!(p.results + results::REGION_BYTES <= p.samples);
            assert!(p.samples_capacity >= samples && p.samples + 8 * p.samples_capacity <= p.trace);
            assert!(p.trace + 8 * words <= p.frames);
            assert!(p.samples.is_multiple_of(LARGE_PAGE) && p.frames.is_multiple_of(LARGE_PAGE));
        }
    }
}
