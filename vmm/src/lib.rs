//! A small VMM that boots Quire's page-table manager under KVM.
//!
//! From file to results, one module for each step: [`kvm`] opens the device, [`layout`] says where things go,
//! [`memory`] gets them memory, [`mod@boot`] fills it, [`vcpu`] runs the guest, [`exit`] says why it stopped, and [`mod@run`] is
//! all of it in order. [`walk`] is the VMM's own view of the guest's tables, [`stats`] what KVM counted.
//! Above that, [`workload`] reads a trace, [`mod@replay`] runs it in a VM or in this process, and [`report`] says what came of it; [`mod@compare`] does so under every scheme;
//! [`mod@explain`] runs the worked scenarios; [`mod@bench`] times every operation by itself; [`cli`] is the program around it all.
//! [`kernel`] is the guest itself; [`flat`] makes it fit for other machines. [`doctor`] tells what this host offers.
//! [`mod@record`] makes the traces that the guest replays. [`schemes`] shows what each way of counting keeps, costs and answers.

pub mod bench;
pub mod boot;
pub mod cli;
pub mod compare;
pub mod cpuid;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod explain;
pub mod flat;
pub mod image;
pub mod kernel;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod memory_stats;
pub mod nested;
mod output;
mod page;
mod progress;
pub mod record;
pub mod replay;
pub mod report;
pub mod run;
pub mod schemes;
pub mod stats;
mod svg;
pub mod vcpu;
pub mod walk;
mod watchdog;
pub mod workload;

pub use error::Error;
pub use run::{Host, MachineConfig, NoHost, Outcome, Paused, Status, Timings, run};
