//! Benchmarks inside the VM: every operation by itself, by folio order, beside the floor.

mod plan;

pub use plan::{Frames, Plan};
