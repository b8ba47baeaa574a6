//! The in-process machine: the manager of a VM, without the VM. For hosts without KVM, and for the library's own tests.
//!
//! Needs `alloc`, which the manager itself does not.

pub mod contents;
mod machine;
pub mod nest;
mod tenant;
pub mod walk2d;

pub use machine::{EmulatedMemory, Machine, Stale};
pub use tenant::ModelTenant;
