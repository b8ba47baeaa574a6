//! The kernel in machines: under KVM, QEMU and Bochs. One crate, so that one machine can run while another emulates for minutes.

mod bench;
mod boot;
mod emulators;
mod explain;
#[path = "../needs/mod.rs"]
mod needs;
mod nest;
mod replay;
