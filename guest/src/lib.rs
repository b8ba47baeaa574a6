//! Quire: a page-table manager that maps memory in large folios and counts the mappings of each folio in constant space.
//!
//! It does for address spaces what a kernel's memory manager does: mmap, faults, fork, copy-on-write, munmap, mprotect, mremap and
//! madvise, on real x86-64 page tables. A folio of any order up to 1 GiB is mapped, duplicated and removed in batches, one for
//! each vma and table page, with one call to the count layer per batch. How that layer counts is exchangeable: each mapcount
//! scheme is a type behind [`mapcount::Accounting`], and [`space::Manager`] is generic over it. What each scheme keeps, costs and still
//! knows is specified in `SCHEMES.md` beside this crate.
//!
//! # Embedding
//!
//! The library has no allocator, no globals and no `unsafe`. Everything it knows lies in frames. An embedder brings two things:
//! [`memory::Memory`], which turns a frame number into 512 atomic words, and [`memory::Tlb`], which flushes translations on
//! every CPU. In return [`Manager::root`](space::Manager::root) is a table that an MMU can walk, and page faults go to
//! [`Manager::fault`](space::Manager::fault).
//!
//! ```
//! use core::sync::atomic::AtomicU64;
//! use quire::addr::{ENTRIES, Gva, Order, Pfn};
//! use quire::mapcount::{Accounting, Total};
//! use quire::memory::{FlushScope, Frame, Memory, Tlb};
//! use quire::space::{Access, Manager, Map, Policy, Prot};
//!
//! struct Host(Box<[Frame]>);
//! impl Memory for Host {
//!     fn frame(&self, pfn: Pfn) -> &Frame {
//!         &self.0[pfn.raw() as usize]
//!     }
//! }
//! impl Tlb for Host {
//!     fn flush(&self, _root: Pfn, _scope: FlushScope) {} // No MMU walks these tables.
//! }
//!
//! let host = Host((0..2048).map(|_| Frame([const { AtomicU64::new(0) }; ENTRIES])).collect());
//! let frames = Pfn::new(0)..Pfn::new(2048);
//! let manager: Manager<_, Total> = Manager::new(host, &[frames], true, Policy::up_to(Order::HUGE))?;
//!
//! let parent = manager.create_space()?;
//! let at = Gva::new(0x20_0000);
//! manager.map(parent, at, 512, Prot { read: true, write: true, exec: false }, Map::Anon)?;
//! assert_eq!(manager.fault(parent, at, Access::Write)?.order, Order::HUGE);
//!
//! let (_, leaf) = manager.page_table(parent).lookup(&manager, at.page()).unwrap();
//! let folio = manager.folio(leaf.pfn).unwrap();
//! assert_eq!(Total::maybe_shared(&manager.counts(folio), parent.raw()).value(), Some(false));
//! let child = manager.fork(parent)?;
//! assert_eq!(Total::maybe_shared(&manager.counts(folio), parent.raw()).value(), Some(true));
//!
//! manager.destroy_space(child);
//! manager.destroy_space(parent);
//! assert!(manager.trim(), "every frame is free again");
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
//!
//! `examples/embed.rs` is the same as a whole program.
//!
//! # The modules
//!
//! Arrows go downward: a module knows what stands below it, and `tests/layers.rs` reads the sources to see that it stays so.
//!
//! ```text
//!                exercise      nests of managers at work: the worked example, random histories
//!                   │
//!                   v
//!                 trace        operations of a workload, their text form, replay
//!                   │
//!                   v
//!      nest, survey, ledger, audit, stats     what schemes answer, of all classes of leaves together too, beside the recount of every leaf;
//!                   │                   smaps and its kin; a manager inside of a VM
//!                   v
//!                stage2        tenant VMs: memslots, stage-2 tables, dirty log; tables composed of two levels
//!                   │
//!                   v
//!                 space        the Manager: address spaces, vmas, faults, fork, unmap, protect, remap; rmap, split, migration,
//!                   │          collapse, reclaim
//!                   │
//!        ┌──────────┼───────────────┐
//!        v          v               v
//!   page_table    mapcount  ──>   folio      one engine of tables; the schemes and the oracle; frames, descriptors, look-up
//!        │          │               │
//!        v          │               │
//!     format        │               │        bits of an entry
//!        │          │               │
//!        └──────────┼───────────────┘
//!                   v
//!      memory, sync, flags, addr             what an embedder brings; locks in frames; sets of flags; addresses, orders, levels
//! ```
//!
//! Above them stand [`abi`], the contract between the bare-metal kernel built on this library and the VMM that runs it, and (feature
//! `model`) the in-process machine, emulated frames and an MMU whose TLB goes stale until it is flushed. One arrow goes up:
//! [`trace::session`] leaves its findings in the words of [`abi`], and those are named after what a replay measures.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
#[cfg(feature = "model")]
extern crate alloc;

pub mod addr;
pub mod audit;
pub mod exercise;
mod flags;
pub mod folio;
pub mod format;
pub mod ledger;
pub mod mapcount;
pub mod memory;
#[cfg(feature = "model")]
pub mod model;
pub mod nest;
pub mod page_table;
pub mod space;
pub mod stage2;
pub mod stats;
pub mod survey;
pub mod sync;
pub mod trace;
