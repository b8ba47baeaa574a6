//! References and stand-ins that tests and the in-process machine use; they need `alloc`, the manager itself does not.

pub mod contents;
