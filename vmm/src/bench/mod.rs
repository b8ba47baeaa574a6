//! Benchmarks inside the VM: every operation by itself, by folio order and scheme, beside the floor in the same run.
//!
//! ```text
//! plan        one run of the kernel: what it is told
//! measure     all runs, in turns; from samples to rows
//! launch      from exec to the guest's first instruction
//! vms         the same for VMs: operations of stage 2 and of nested levels, and what the ledger costs
//! rows        what was found
//! text, html  the same for people
//! beside      instructions of an emulated machine, beside Linux, for the page
//! compare     two of them beside each other, by bootstrap
//! ```

pub mod beside;
mod bootstrap;
pub mod compare;
pub mod html;
pub mod launch;
mod measure;
mod plan;
mod rows;
mod text;
mod vms;

pub use measure::{ORDERS, Options, measure};
pub use plan::{Frames, Plan};
pub use rows::{Bench, Distribution, Layers, Ledger, NestedLayers, Percentiles, Recording, Row, Turn};
pub use vms::Vms;
