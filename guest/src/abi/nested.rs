//! What the general words of the results mean in the checks of guests ([`flags::NESTED`](super::flags::NESTED)), counted from 0.

/// The CPU's way: 1 for VMX, 2 for SVM.
pub const KIND: usize = 0;
/// Whether its MMU sets accessed and dirty in the second level.
pub const ACCESSED_DIRTY: usize = 1;
/// Whether it has leaves of 1 GiB there.
pub const GIGABYTE_LEAVES: usize = 2;
/// Entries.
pub const ENTRIES: usize = 3;
/// Exits because the second level did not allow an access.
pub const VIOLATIONS: usize = 4;
/// Those of the MMU's own accesses to the guest's tables.
pub const GUEST_WALKS: usize = 5;
/// Hypercalls.
pub const HYPERCALLS: usize = 6;
/// Pages that the timed demand faults mapped.
pub const FAULT_PAGES: usize = 7;
/// TSC ticks that they took.
pub const FAULT_TICKS: usize = 8;
/// Hypercalls that were timed.
pub const TIMED_HYPERCALLS: usize = 9;
/// TSC ticks that they took.
pub const HYPERCALL_TICKS: usize = 10;
/// Exits of the guest that has the library inside, because the second level did not allow an access.
pub const INSIDE_VIOLATIONS: usize = 11;
/// Its hypercalls.
pub const INSIDE_HYPERCALLS: usize = 12;
