//! Random histories in which pages move under the feet of their tenants: migration, reclaim, splits and collapses between the operations, and a
//! recount of everything behind each. The replay sees that every word is still there.

use crate::replaying::{Checked, machine};
use quire::addr::{Gva, Level, Order};
use quire::mapcount::{Accounting, Everything, MmOwner, None, Observe, Oracle, Total, Tuples, Vmas};
use quire::model::Machine;
use quire::space::{Access, Advice, MigrateFailed, Policy, SpaceId, Vma};
use quire::trace::Replay;
use quire_fixtures::history;

fn policies() -> [Policy; 5] {
    [
        Policy::up_to(Order::BASE),
        Policy::up_to(Order::new(4)),
        Policy::up_to(Order::HUGE),
        Policy { max_leaf: Level::ONE, ..Policy::only(Order::HUGE) },
        Policy { orders: 0x7f, ..Policy::up_to(Order::HUGE) },
    ]
}

/// What was done, and what it came to.
#[derive(Debug, Default)]
struct Done {
    migrated: u64,
    pinned: u64,
    reclaimed: u64,
    used: u64,
    dirty: u64,
    split: u64,
    collapsed: u64,
    refused: u64,
    in_place: u64,
}

/// Whether the 512 pages around `page` lie in one vma.
fn lies_in_a_block(vma: &Vma<'_>, page: u64) -> bool {
    vma.start() <= page & !511 && page & !511 < vma.end() - vma.pages().min(511)
}

struct Mover {
    random: u64,
    done: Done,
}

impl Mover {
    fn below(&mut self, n: u64) -> u64 {
        // Knuth's MMIX generator; its high bits.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    /// A space and a page of it that is mapped, out of those that are `wanted`.
    fn page<A: Accounting>(
        &mut self,
        checked: &Checked<'_, A>,
        wanted: impl Fn(&Vma<'_>, u64) -> bool,
    ) -> Option<(SpaceId, u64)> {
        let manager = &checked.manager;
        let mut pages = Vec::new();
        for space in manager.spaces() {
            for vma in manager.vmas(space) {
                let range = vma.start()..vma.end();
                manager.page_table(space).for_each_leaf_in(manager, range, &mut |place, _| {
                    if wanted(&vma, place.page) {
                        pages.push((space, place.page));
                    }
                });
            }
        }
        (!pages.is_empty()).then(|| pages[self.below(pages.len() as u64) as usize])
    }

    fn step<A: Accounting>(&mut self, checked: &Checked<'_, A>, replay: &Replay<'_, &Machine, A>) {
        let manager = &checked.manager;
        match self.below(9) {
            0..=2 => {
                let Some((space, page)) = self.page(checked, |_, _| true) else { return };
                // A page that may not be touched or has no folio cannot be pinned.
                let Ok(pin) = manager.pin(space, Gva::from_page(page), Access::Read) else { return };
                let other = (self.below(4) == 0).then(|| manager.pin(space, Gva::from_page(page), Access::Read));
                let result = manager.migrate(pin.folio());
                match other {
                    Some(other) => {
                        assert_eq!(result, Err(MigrateFailed::Referenced));
                        manager.unpin(other.unwrap(), false);
                        self.done.pinned += 1;
                    }
                    Option::None => {
                        result.expect("nothing stands against it");
                        self.done.migrated += 1;
                    }
                }
                manager.unpin(pin, false);
            }
            3 | 4 => {
                let (frames, spare_used) = (1 << self.below(12), self.below(2) == 0);
                for object in 0..8 {
                    let Some(object) = replay.object(object) else { break };
                    let report = manager.reclaim(object, frames, spare_used);
                    assert_eq!((report.referenced, report.busy), (0, 0));
                    self.done.reclaimed += report.reclaimed;
                    self.done.used += report.used;
                    self.done.dirty += report.dirty;
                }
            }
            5 => self.done.split += manager.split_deferred(3).split,
            _ => {
                let Some((space, page)) = self.page(checked, lies_in_a_block) else { return };
                let (at, most) = (Gva::from_page(page), [0, 100, 511, 511][self.below(4) as usize]);
                let (place, _) = manager.page_table(space).lookup(manager, page).expect("a leaf");
                if place.level == Level::TWO {
                    // Cut and joined again, so that there is something to collapse.
                    manager.advise(space, at.add_pages(5), 1, Advice::NoHugePage).unwrap();
                    manager.advise(space, at, 512, Advice::HugePage).unwrap();
                }
                if manager.collapse(space, at) {
                    self.done.in_place += 1;
                } else if manager.collapse_by_copy(space, at, most).is_ok() {
                    self.done.collapsed += 1;
                } else {
                    self.done.refused += 1;
                }
            }
        }
        checked.audit();
    }
}

/// Runs `count` histories from `first` on, or as many times that as QUIRE_LONG says.
fn run<A: Accounting>(first: u64, count: u64) -> Done {
    let times = std::env::var("QUIRE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut mover = Mover { random: first, done: Done::default() };
    for seed in first..first + count * times {
        let machine = machine();
        let checked = Checked::<A>::new(&machine, policies()[(seed % 5) as usize], seed);
        println!("seed {seed}");
        checked.run(&history(seed, 150), |checked, replay, i| {
            if i % 3 == 2 {
                mover.step(checked, replay);
                assert_eq!(machine.stale(), Option::None, "a flush is missing");
            }
        });
    }
    println!("{:?}", mover.done);
    mover.done
}

#[test]
fn under_every_scheme() {
    let done = run::<Everything>(9_000_000, 40);
    assert!(done.migrated > 200 && done.pinned > 50, "{done:?}");
    assert!(done.reclaimed > 200 && done.used > 50 && done.dirty > 50, "{done:?}");
    assert!(done.split > 10 && done.collapsed > 10 && done.in_place > 10 && done.refused > 10, "{done:?}");
}

#[test]
fn without_counts() {
    run::<Observe<None, Oracle>>(9_100_000, 15);
}

#[test]
fn total_alone() {
    run::<Total>(9_200_000, 15);
}

#[test]
fn regions_and_tuples() {
    run::<Observe<Tuples, Observe<Vmas, MmOwner>>>(9_300_000, 15);
}
