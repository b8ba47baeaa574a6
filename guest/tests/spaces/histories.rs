//! Random histories under every scheme, on real page tables walked by an emulated MMU.

use crate::replaying::{Checked, machine};
use quire::addr::Order;
use quire::mapcount::{
    Accounting, Everything, FullPartial, MmOwner, None, Observe, Oracle, PerLevel, PerPage, RmapIds, Total, Tuples,
    Vmas, ZeroOneTwoMany,
};
use quire::space::Policy;
use quire_fixtures::history;

fn policies() -> [Policy; 4] {
    [
        Policy::up_to(Order::BASE),
        Policy::up_to(Order::new(4)),
        Policy::up_to(Order::HUGE),
        Policy { max_leaf: quire::addr::Level::ONE, ..Policy::only(Order::HUGE) },
    ]
}

/// Runs `count` histories from `first` on, or as many times that as QUIRE_LONG says.
fn run<A: Accounting>(first: u64, count: u64, length: usize) {
    let times = std::env::var("QUIRE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + count * times {
        let machine = machine();
        let policy = policies()[(seed % 4) as usize];
        let checked = Checked::<A>::new(&machine, policy, seed);
        println!("seed {seed}");
        checked.run(&history(seed, length), |_, _, _| {});
    }
}

#[test]
fn all_schemes_agree_with_the_oracle() {
    run::<Everything>(0, 40, 150);
}

#[test]
fn partly_mapped_folios_are_split_on_the_way() {
    let mut split = 0;
    for seed in 5000000..5000040 {
        let machine = machine();
        let policy = policies()[1 + (seed % 3) as usize];
        let checked = Checked::<Everything>::new(&machine, policy, seed);
        checked.run(&history(seed, 150), |checked, _, i| {
            if i % 5 == 4 {
                split += checked.manager.split_deferred(2).split;
                checked.audit();
                assert_eq!(machine.stale(), Option::None, "a flush is missing");
            }
        });
    }
    assert!(split > 20, "only {split} folios were split");
}

#[test]
fn total_alone() {
    run::<Observe<Total, Oracle>>(1000000, 20, 150);
}

#[test]
fn without_counts() {
    run::<Observe<None, Oracle>>(2000000, 20, 150);
}

#[test]
fn per_page_alone() {
    run::<PerPage>(3000000, 20, 150);
}

#[test]
fn tuples_alone() {
    run::<Tuples>(4000000, 20, 150);
}

#[test]
fn mm_owner_alone() {
    run::<MmOwner>(6000000, 20, 150);
}

#[test]
fn zero_one_two_many_alone() {
    run::<ZeroOneTwoMany>(7000000, 20, 150);
}

#[test]
fn vmas_alone() {
    run::<Vmas>(8000000, 20, 150);
}

#[test]
fn full_partial_alone() {
    run::<FullPartial>(9000000, 20, 150);
}

#[test]
fn rmap_ids_alone() {
    run::<RmapIds>(10000000, 20, 150);
}

#[test]
fn per_level_alone() {
    run::<PerLevel>(11000000, 20, 150);
}
