//! Address spaces of processes: every operation of the manager on the in-process machine, under every scheme, recounted. One crate, as each compiles the manager for every scheme.

mod advise;
mod collapse;
mod device;
mod driver;
mod exhaustion;
mod files;
mod flushes;
mod fork;
mod frames;
mod histories;
mod invariants;
mod migrate;
mod moves;
mod overflow;
mod page_table;
mod protect;
mod reclaim;
mod relearn;
mod remap;
mod replaying;
mod rmap;
mod scenarios;
mod seeds;
mod split_deferred;
mod stats;
mod survey;
mod two_cpus;
mod unmap;
#[path = "../world/mod.rs"]
mod world;
