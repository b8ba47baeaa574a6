//! A false "shared" of the owner slots, and how `per-level` gets over it (SCHEMES.md, `per-level` and S15).

use crate::world::{BASE, FRAMES, World, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::mapcount::{Accounting, MmOwner, PerLevel, Total};
use quire::space::{Fault, FaultKind, Policy, SpaceId};

const PAGES: u64 = 16;

/// The last of three owners of a folio, which had no slot, stores to page 5; what the fault was, and whether the folio reads as shared after it.
fn last_of_three<A: Accounting>(policy: Policy) -> (Fault, bool) {
    let machine = machine_of(FRAMES);
    let world: World<'_, A> = World::with_scheme(&machine, policy, FRAMES);
    let first = world.anon(512);
    world.fill(first, BASE..BASE + PAGES, 1);
    let second = world.manager.fork(first).expect("a child");
    let third = world.manager.fork(first).expect("a child");
    let shared = |space: SpaceId| {
        let (pfn, _) = world.leaf(space, BASE + 1).expect("a leaf");
        let folio = world.manager.folio(pfn).expect("a folio");
        A::maybe_shared(&world.manager.counts(folio), space.raw()).value().expect("an answer")
    };
    assert!(shared(third));
    world.leave(first);
    world.leave(second);
    // Nobody has looked yet; but one leaf has one owner, whatever the bit says.
    assert_eq!(shared(third), world.leaf(third, BASE).expect("a leaf").1 == Level::ONE);
    let fault = world.write(third, BASE + 5, 77).expect("a fault");
    world.audit();
    world.expect(third, BASE..BASE + 5, BASE, 1);
    assert_eq!(world.read(third, BASE + 5), 77);
    let shared = shared(third);
    world.end(&[]);
    (fault, shared)
}

#[test]
fn a_survivor_without_a_slot_copies_under_total_and_reuses_under_per_level() {
    for policy in [Policy::only(Order::new(4)), huge_by_pages()] {
        for (fault, shared) in [last_of_three::<Total>(policy), last_of_three::<MmOwner>(policy)] {
            assert_eq!((fault.kind, shared), (FaultKind::Copy, true));
        }
        let (fault, shared) = last_of_three::<PerLevel>(policy);
        assert_eq!((fault.kind, shared), (FaultKind::Reuse, false));
        assert!(fault.pages >= PAGES, "all of the folio is the last owner's: {fault:?}");
    }
    assert_eq!(last_of_three::<Total>(huge()).0.kind, FaultKind::Reuse);
}

/// Two survivors: each learns of itself once, and then each one's slot tells the other that it is not alone.
#[test]
fn survivors_that_are_two_stay_shared_until_one_goes() {
    let machine = machine_of(FRAMES);
    let world: World<'_, PerLevel> = World::with_scheme(&machine, Policy::only(Order::new(4)), FRAMES);
    let first = world.anon(PAGES);
    world.fill(first, BASE..BASE + PAGES, 1);
    let [second, third, fourth] = [(); 3].map(|()| world.manager.fork(first).expect("a child"));
    world.leave(first);
    world.leave(second);
    let (pfn, _) = world.leaf(third, BASE).expect("a leaf");
    let counters = || PerLevel::counters(&world.manager.counts(world.manager.folio(pfn).expect("the folio")));
    assert_eq!((counters().slots, counters().shared), ([(0, 0); 2], true));
    // The store copies, and the fault before it has counted what the asker has.
    assert_eq!(world.write(third, BASE, 5).expect("a fault").kind, FaultKind::Copy);
    assert_eq!(counters().slots.map(|slot| slot.0), [third.raw(), 0]);
    world.audit();
    // Its slot proves to the other that the folio is shared: nothing is counted, nothing healed.
    assert_eq!(world.write(fourth, BASE + 1, 5).expect("a fault").kind, FaultKind::Copy);
    assert_eq!(counters().slots.map(|slot| slot.0), [third.raw(), 0]);
    world.audit();
    world.leave(third);
    assert_eq!(world.write(fourth, BASE + 2, 5).expect("a fault").kind, FaultKind::Reuse);
    assert_eq!(world.read(fourth, BASE + 3), 1 << 40 | (BASE + 3));
    world.audit();
    world.end(&[]);
}
