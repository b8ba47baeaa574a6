//! The memory operations of a workload: what a trace says, how it is written down, how it is replayed.

mod op;

pub use op::{Advice, Backing, MapKind, ObjectKind, Op, Prot};
