//! How many locked operations were done, counted where they are done: so that what a scheme is said to cost is what it does.
//!
//! Only with the feature `tally`, which needs `std`; elsewhere nothing is left of it. Each thread counts for itself.

/// A call through the door of the count layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Leaves appear.
    Add,
    /// Leaves are duplicated by fork.
    Dup,
    /// Leaves go.
    Sub,
    /// A leaf is split.
    Split,
    /// Leaves are collapsed.
    Collapse,
    /// Leaves are moved.
    Moved,
    /// Regions are cut or merged.
    Cut,
}

impl Call {
    /// All of them.
    pub const EACH: [Self; 7] = [Self::Add, Self::Dup, Self::Sub, Self::Split, Self::Collapse, Self::Moved, Self::Cut];
}

#[cfg(feature = "tally")]
mod counting {
    extern crate std;

    use core::cell::Cell;

    use super::Call;

    /// Calls of one kind, and the locked operations in them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Cost {
        /// Calls.
        pub calls: u64,
        /// Locked operations of the scheme; references are apart.
        pub locked: u64,
    }

    std::thread_local! {
        static LOCKED: Cell<u64> = const { Cell::new(0) };
        static COSTS: Cell<[Cost; Call::EACH.len()]> = const { Cell::new([Cost { calls: 0, locked: 0 }; Call::EACH.len()]) };
    }

    /// One more.
    pub(crate) fn note() {
        LOCKED.set(LOCKED.get() + 1);
    }

    /// Does `f`, which is such a call.
    pub(crate) fn counting<T>(call: Call, f: impl FnOnce() -> T) -> T {
        let before = LOCKED.get();
        let result = f();
        let mut costs = COSTS.get();
        let cost = &mut costs[call as usize];
        (cost.calls, cost.locked) = (cost.calls + 1, cost.locked + LOCKED.get() - before);
        COSTS.set(costs);
        result
    }

    /// What the calls of this thread have cost so far.
    #[must_use]
    pub fn costs() -> [Cost; Call::EACH.len()] {
        COSTS.get()
    }

    /// Forgets them.
    pub fn reset() {
        COSTS.set([Cost::default(); Call::EACH.len()]);
    }
}

#[cfg(feature = "tally")]
pub use counting::{Cost, costs, reset};
#[cfg(feature = "tally")]
pub(crate) use counting::{counting, note};

/// Nothing.
#[cfg(not(feature = "tally"))]
#[inline(always)]
pub(crate) const fn note() {}

/// Does `f`.
#[cfg(not(feature = "tally"))]
#[inline(always)]
pub(crate) fn counting<T>(_call: Call, f: impl FnOnce() -> T) -> T {
    f()
}
