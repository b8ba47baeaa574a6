//! A program that embeds the manager: it brings frames and a way to flush, and asks who maps what.

use quire::addr::{ENTRIES, Gva, Order, Pfn};
use quire::mapcount::{Accounting, Total};
use quire::memory::{FlushScope, Frame, Memory, Tlb};
use quire::space::{Access, Manager, Map, Policy, Prot};
use std::sync::atomic::AtomicU64;

const FRAMES: u64 = 2048;

/// 8 MiB of memory. A kernel would give frames of the machine, and flush its TLBs; here no MMU caches anything.
struct Host(Box<[Frame]>);

impl Memory for Host {
    fn frame(&self, pfn: Pfn) -> &Frame {
        &self.0[pfn.raw() as usize]
    }
}

impl Tlb for Host {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Host((0..FRAMES).map(|_| Frame([const { AtomicU64::new(0) }; ENTRIES])).collect());
    let policy = Policy::up_to(Order::HUGE);
    let manager: Manager<_, Total> = Manager::new(host, &[Pfn::new(0)..Pfn::new(FRAMES)], true, policy)?;

    let parent = manager.create_space()?;
    let at = Gva::new(0x4000_0000);
    manager.map(parent, at, 1024, Prot { read: true, write: true, exec: false }, Map::Anon)?;
    let fault = manager.fault(parent, at, Access::Write)?;
    println!("the first store: {:?}, order {}, {} pages mapped", fault.kind, fault.order, fault.pages);

    let child = manager.fork(parent)?;
    let (_, leaf) = manager.page_table(parent).lookup(&manager, at.page()).ok_or("no leaf")?;
    let folio = manager.folio(leaf.pfn).ok_or("no folio")?;
    println!("after fork: {:?}", Total::counters(&manager.counts(folio)));
    println!("maybe shared: {:?}", Total::maybe_shared(&manager.counts(folio), parent.raw()));

    manager.fault(child, at, Access::Write)?;
    println!("the child stored: {:?}", Total::counters(&manager.counts(folio)));
    manager.destroy_space(child);
    println!("the child exited: maybe shared: {:?}", Total::maybe_shared(&manager.counts(folio), parent.raw()));
    manager.destroy_space(parent);
    println!("all frames are free: {}", manager.trim());
    Ok(())
}
