//! Tenant VMs and what is nested in them: stage-2 tables, logs, the ledger over all classes of leaves. One crate, as each compiles the manager for every scheme.

mod grown;
mod ledger;
mod nested;
mod stage2;
mod vm_cpus;
mod vm_histories;
#[path = "../world/mod.rs"]
mod world;
