//! How often an order-9 folio can be mapped before each scheme refuses, and what its references are then. The count layer is driven through its door, as if each mapping were a
//! region with a table of its own: 2^22 real ones by pages would be 16 GiB of entries.

use quire::addr::{Gva, Order, Pfn};
use quire::folio::REF_LIMIT;
use quire::mapcount::{
    self, Accounting, Batch, COUNT_LIMIT, Class, MmOwner, Neighbours, PerPage, Target, Total, Tuples, Vmas,
    ZeroOneTwoMany,
};
use quire::model::Machine;
use quire::space::{Access, Manager, Map, Policy};
use quire::trace::{ObjectKind, Prot};

/// Maps the folio until the scheme or the limit of the references refuses; how often, or `None` beyond 2^24.
fn mappings<A: Accounting>(leaf: Order, limit: u64) -> Option<u64> {
    let machine = Machine::new(4096);
    let policy = Policy::up_to(Order::HUGE);
    let manager: Manager<_, A> = Manager::new(&machine, &[Pfn::new(0)..Pfn::new(4096)], true, policy).ok()?;
    let (space, at) = (manager.create_space().ok()?, Gva::new(1 << 30));
    let file = manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).ok()?;
    manager.map(space, at, 512, Prot { read: true, write: true, exec: false }, Map::Shared(file, 0)).ok()?;
    manager.fault(space, at, Access::Read).ok()?;
    let (_, first) = manager.page_table(space).lookup(&manager, at.page())?;
    let folio = manager.folio(first.pfn)?;
    manager.unmap(space, at, 512).ok()?;
    let target = Target::new(manager.frames(), folio, limit);
    (0..1 << 24)
        .find(|&i| {
            let batch =
                Batch { class: Class::Process, first: 0, pages: 512, leaf, region: i, table: Pfn::new(0), owner: 1 };
            let refused = folio.refs() + u64::from(batch.leaves()) > REF_LIMIT;
            folio.get(batch.leaves());
            refused || A::add(&target, &batch, Neighbours::default()).is_err()
        })
        .map(u64::from)
}

fn row<A: Accounting>() {
    let count = |leaf, limit| mappings::<A>(leaf, limit).map_or("2^24 and more".into(), |n| n.to_string());
    let [pages, huge] = [Order::BASE, Order::HUGE].map(|leaf| [COUNT_LIMIT, 1 << 31].map(|limit| count(leaf, limit)));
    println!("{:18} {:>16} {:>16} {:>16} {:>16}", A::NAME, pages[0], pages[1], huge[0], huge[1]);
}

fn main() {
    println!(
        "{:18} {:>16} {:>16} {:>16} {:>16}",
        "mappings", "pages, 2^30", "pages, 2^31", "2 MiB, 2^30", "2 MiB, 2^31"
    );
    row::<mapcount::None>();
    row::<Total>();
    row::<MmOwner>();
    row::<PerPage>();
    row::<Tuples>();
    row::<Vmas>();
    row::<ZeroOneTwoMany>();
}
