//! The in-process machine: the manager of a VM, without the VM. For hosts without KVM, and for the library's own tests.

mod machine;

pub use machine::{EmulatedMemory, Machine, ModelTenant, Stale};
