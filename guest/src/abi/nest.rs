//! What is done with a tenant VM: a replay inside of it, or an exercise of nested levels; and what the general words of the results mean then beside those of
//! [`replay`](super::replay).

use super::boot;
use super::results::GENERAL_COUNT;
use crate::exercise::example::{self, Columns};

/// Boot word: the engine, one of [`engine`](mod@engine).
pub const ENGINE: usize = boot::OPTIONS + 4;
/// Boot word: pages of the VM's memory, what level 1 manages and what its recount and device window take.
pub const PAGES: usize = boot::OPTIONS + 5;
/// Boot word: pages that level 1 manages.
pub const MANAGED: usize = boot::OPTIONS + 6;
/// Boot word: seed of what the VMM does to its VM's memory between the operations, 0 for nothing.
pub const DISTURB: usize = boot::OPTIONS + 7;

/// Boot word: what is done, one of [`job`].
pub const JOB: usize = boot::OPTIONS + 8;
/// Boot word: how many random histories; [`boot::SEED`] is the seed of the first.
pub const HISTORIES: usize = boot::OPTIONS + 9;
/// Boot word: operations of each of them.
pub const LENGTH: usize = boot::OPTIONS + 10;

/// What is done with a tenant VM.
pub mod job {
    /// The trace is replayed in it.
    pub const REPLAY: u64 = 0;
    /// The worked example of nested levels.
    pub const EXAMPLE: u64 = 1;
    /// Random histories of nested levels.
    pub const HISTORIES: u64 = 2;
}

/// How the VM's tables are walked.
pub mod engine {
    /// No VM.
    pub const NONE: u64 = 0;
    /// Composed with the guest's own, in long mode.
    pub const SHADOW: u64 = 1;
    /// By VMX.
    pub const EPT: u64 = 2;
    /// By SVM.
    pub const NPT: u64 = 3;
}

/// The words, counted from 0 behind those of a replay.
pub mod word {
    const FIRST: usize = 128;
    /// Exits of the guest, or traps that a shadow engine took for it.
    pub const EXITS: usize = FIRST;
    /// Faults that level 1 served: the guest's own.
    pub const GUEST_FAULTS: usize = FIRST + 1;
    /// Ticks of these.
    pub const GUEST_TICKS: usize = FIRST + 2;
    /// Faults that level 0 served: of stage 2, or of composed tables with the stage-2 faults that they took.
    pub const STAGE2_FAULTS: usize = FIRST + 3;
    /// Ticks of these.
    pub const STAGE2_TICKS: usize = FIRST + 4;
    /// Pages that they mapped.
    pub const STAGE2_PAGES: usize = FIRST + 5;
    /// Faults that the VMM's space took for them.
    pub const HOST_FAULTS: usize = FIRST + 6;
    /// Recounts of all classes at level 0.
    pub const RECOUNTS: usize = FIRST + 7;
    /// Comparisons in them.
    pub const CHECKS: usize = FIRST + 8;
    /// Those that failed.
    pub const MISMATCHES: usize = FIRST + 9;
    /// Things that the VMM did to its VM's memory.
    pub const DISTURBANCES: usize = FIRST + 10;
    /// At the checkpoint at which the guest has most mapped: leaves of stage 2, of 4 KiB, 2 MiB and 1 GiB.
    pub const LEAVES: usize = FIRST + 11;
    /// There: leaves composed from the guest's tables.
    pub const COMPOSED: usize = FIRST + 14;
    /// There: pages that the guest has mapped, and those of them that are huge at both levels.
    pub const MAPPED: usize = FIRST + 15;
    /// See `MAPPED`.
    pub const HUGE: usize = FIRST + 16;
    /// 1 when everything of level 0 was free at the end.
    pub const CLEAN: usize = FIRST + 17;
    /// Random histories that ended well.
    pub const HISTORIES: usize = FIRST + 18;
    /// Operations in them.
    pub const OPERATIONS: usize = FIRST + 19;
    /// Accesses of level 1's processes in them.
    pub const BY_PROCESSES: usize = FIRST + 20;
    /// Accesses of level 1's VMs.
    pub const BY_VMS: usize = FIRST + 21;
    /// Words stored that levels 1 and 0 read again.
    pub const BELOW: usize = FIRST + 22;
    /// The columns of the worked example, [encoded](crate::exercise::example::Columns::encode), step by step.
    pub const STEPS: usize = FIRST + 24;
}

const _: () = assert!(word::STEPS + example::STEPS * Columns::WORDS <= GENERAL_COUNT);
