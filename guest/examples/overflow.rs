//! How often an order-9 folio can be mapped before each scheme refuses, and what its references are then. The count layer is driven through its door, as if each mapping were a
//! region with a table of its own: 2^22 real ones by pages would be 16 GiB of entries.

use std::error::Error;

use quire::addr::{Gva, Order, Pfn};
use quire::folio::REF_LIMIT;
use quire::mapcount::{
    self, Accounting, Batch, COUNT_LIMIT, Class, MmOwner, Neighbours, PerPage, Target, Total, Tuples, Vmas,
    ZeroOneTwoMany,
};
use quire::model::Machine;
use quire::space::{Access, Manager, Map, Policy};
use quire::space::{ObjectKind, Prot};

/// What is mapped, and up to which limit of the counts.
const COLUMNS: [(Order, u64); 4] =
    [(Order::BASE, COUNT_LIMIT), (Order::BASE, 1 << 31), (Order::HUGE, COUNT_LIMIT), (Order::HUGE, 1 << 31)];

/// Maps the folio until the scheme or the limit of the references refuses; how often, or `None` beyond 2^24.
fn mappings<A: Accounting>(leaf: Order, limit: u64) -> Result<Option<u64>, Box<dyn Error>> {
    let machine = Machine::new(4096);
    let policy = Policy::up_to(Order::HUGE);
    let manager: Manager<_, A> = Manager::new(&machine, &[Pfn::new(0)..Pfn::new(4096)], true, policy)?;
    let (space, at) = (manager.create_space()?, Gva::new(1 << 30));
    let file = manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE)?;
    manager.map(space, at, 512, Prot { read: true, write: true, exec: false }, Map::Shared(file, 0))?;
    manager.fault(space, at, Access::Read)?;
    let (_, first) = manager.page_table(space).lookup(&manager, at.page()).ok_or("no leaf")?;
    let folio = manager.folio(first.pfn).ok_or("no folio")?;
    manager.unmap(space, at, 512)?;
    let target = Target::new(manager.frames(), folio, limit);
    let mut all = 0..1 << 24;
    let refused = all.find(|&i| {
        let batch =
            Batch { class: Class::Process, first: 0, pages: 512, leaf, region: i, table: Pfn::new(0), owner: 1 };
        let too_many = folio.refs() + u64::from(batch.leaves()) > REF_LIMIT;
        folio.get(batch.leaves());
        too_many || A::add(&target, &batch, Neighbours::default()).is_err()
    });
    Ok(refused.map(u64::from))
}

fn row<A: Accounting>() -> Result<(), Box<dyn Error>> {
    print!("{:18}", A::NAME);
    for (leaf, limit) in COLUMNS {
        print!(" {:>16}", mappings::<A>(leaf, limit)?.map_or("2^24 and more".into(), |n| n.to_string()));
    }
    println!();
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "mappings, limit    {:>16} {:>16} {:>16} {:>16}",
        "pages, 2^30", "pages, 2^31", "2 MiB, 2^30", "2 MiB, 2^31"
    );
    row::<mapcount::None>()?;
    row::<Total>()?;
    row::<MmOwner>()?;
    row::<PerPage>()?;
    row::<Tuples>()?;
    row::<Vmas>()?;
    row::<ZeroOneTwoMany>()
}
