//! Out of frames at every allocation that an operation makes: it fails cleanly, the recount agrees, the same operation works when there is
//! room again, and every frame returns at the end.

use crate::world::{BASE, FRAMES, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Order, Pfn};
use quire::space::{Advice, FaultError, Map, MapError, ObjectId, ObjectKind, Policy, Prot, SpaceId};

type Outcome = Result<(), String>;

fn map(result: Result<(), MapError>) -> Outcome {
    result.map_err(|error| {
        assert_eq!(error, MapError::OutOfFrames);
        error.to_string()
    })
}

fn fault<T>(result: Result<T, FaultError>) -> Outcome {
    result.map(drop).map_err(|error| {
        assert_eq!(error, FaultError::OutOfFrames);
        error.to_string()
    })
}

struct Scene<'m> {
    world: World<'m>,
    space: SpaceId,
    file: ObjectId,
}

/// Runs `operation` behind `prepare` with 0, 1, 2... frames left, until it works at the first attempt.
fn at_every_allocation(policy: Policy, prepare: impl Fn(&Scene<'_>), operation: impl Fn(&Scene<'_>) -> Outcome) -> u64 {
    for left in 0..2000 {
        let machine = machine_of(FRAMES);
        let world = World::new(&machine, policy);
        world.manager.frames().set_reserve(0);
        let file = world.manager.create_object(ObjectKind::File, 1, 2048, policy_order(policy)).unwrap();
        let space = world.space();
        let scene = Scene { world, space, file };
        prepare(&scene);
        let world = &scene.world;
        let held = hold_all_but(world, left);
        let outcome = operation(&scene);
        world.audit();
        give_back(world, held);
        if outcome.is_err() {
            assert_eq!(operation(&scene), Ok(()), "with room again, after {left} frames");
            world.audit();
        }
        scene.world.end(&[scene.file]);
        if outcome.is_ok() {
            return left;
        }
    }
    panic!("it never works");
}

/// Takes frames until `left` are free.
fn hold_all_but(world: &World<'_>, left: u64) -> Vec<(Pfn, Order)> {
    let frames = world.manager.frames();
    let mut held = Vec::new();
    // Large runs first, so that it does not take long.
    for order in (0..=10).rev() {
        let order = Order::new(order);
        while frames.stats().free >= order.pages() + left {
            let Some(run) = frames.alloc(order, false) else { break };
            held.push((run.pfn, order));
        }
    }
    assert_eq!(frames.stats().free, left);
    held
}

fn give_back(world: &World<'_>, held: Vec<(Pfn, Order)>) {
    for (pfn, order) in held {
        world.manager.frames().free(pfn, order, false);
    }
}

fn policy_order(policy: Policy) -> Order {
    Order::new((policy.orders.ilog2() as u8).min(9))
}

fn policies() -> [Policy; 3] {
    [Policy::up_to(Order::BASE), huge(), huge_by_pages()]
}

fn nothing(_: &Scene<'_>) {}

fn with_pages(scene: &Scene<'_>) {
    scene.world.map(scene.space, BASE, 1024, RW, Map::Anon);
    scene.world.fill(scene.space, BASE..BASE + 1024, 1);
}

fn intact(scene: &Scene<'_>) {
    scene.world.expect(scene.space, BASE..BASE + 1024, BASE, 1);
}

#[test]
fn new_spaces_objects_and_mappings() {
    for policy in policies() {
        let needs = at_every_allocation(policy, nothing, |scene| {
            map(scene.world.manager.create_space().map(|space| scene.world.leave(space)))
        });
        assert!(needs >= 1);
        at_every_allocation(policy, nothing, |scene| {
            let object = scene.world.manager.create_object(ObjectKind::Shared, 2, 10, Order::BASE);
            map(object.map(|object| scene.world.manager.destroy_object(object)))
        });
        at_every_allocation(policy, nothing, |scene| {
            map(scene.world.manager.map(scene.space, at(BASE), 10, RW, Map::Shared(scene.file, 0)))
        });
        at_every_allocation(policy, nothing, |scene| map(scene.world.manager.brk(scene.space, at(100), at(200))));
    }
}

#[test]
fn faults() {
    for policy in policies() {
        let prepare = |scene: &Scene<'_>| scene.world.map(scene.space, BASE, 1024, RW, Map::Anon);
        let needs =
            at_every_allocation(policy, prepare, |scene| fault(scene.world.access(scene.space, BASE + 5, Some(1))));
        assert!(needs >= 4, "tables, the anonymous object and the page, not {needs}");
        for what in [Map::Shared as fn(_, _) -> _, Map::Private] {
            for store in [None, Some(1)] {
                let prepare = |scene: &Scene<'_>| scene.world.map(scene.space, BASE, 1024, RW, what(scene.file, 3));
                at_every_allocation(policy, prepare, |scene| fault(scene.world.access(scene.space, BASE + 600, store)));
            }
        }
        let prepare = |scene: &Scene<'_>| {
            scene.world.map(scene.space, BASE, 10, RW, Map::Device(scene.world.device()));
        };
        at_every_allocation(policy, prepare, |scene| fault(scene.world.access(scene.space, BASE + 5, Some(1))));
    }
}

#[test]
fn a_copy_on_write() {
    for policy in policies() {
        let prepare = |scene: &Scene<'_>| {
            with_pages(scene);
            let child = scene.world.manager.fork(scene.space).unwrap();
            scene.world.write(child, BASE, 9);
        };
        let needs = at_every_allocation(policy, prepare, |scene| {
            intact(scene);
            fault(scene.world.access(scene.space, BASE + 600, Some(1 << 40 | (BASE + 600))))
        });
        assert!(needs >= 1);
    }
}

#[test]
fn fork() {
    for policy in policies() {
        let needs = at_every_allocation(policy, with_pages, |scene| {
            intact(scene);
            map(scene.world.manager.fork(scene.space).map(|child| {
                scene.world.expect(child, BASE..BASE + 1024, BASE, 1);
            }))
        });
        assert!(needs >= 3, "{needs}");
    }
}

#[test]
fn unmap_protect_and_advise_of_a_part() {
    for policy in policies() {
        at_every_allocation(policy, with_pages, |scene| {
            intact(scene);
            map(scene.world.manager.unmap(scene.space, at(BASE + 100), 800))
        });
        at_every_allocation(policy, with_pages, |scene| {
            intact(scene);
            map(scene.world.manager.protect(scene.space, at(BASE + 100), 800, R))
        });
        at_every_allocation(policy, with_pages, |scene| {
            intact(scene);
            map(scene.world.manager.protect(scene.space, at(BASE + 100), 800, Prot::NONE))?;
            map(scene.world.manager.protect(scene.space, at(BASE), 1024, RW))
        });
        at_every_allocation(policy, with_pages, |scene| {
            map(scene.world.manager.advise(scene.space, at(BASE + 100), 800, Advice::DontNeed))
        });
        at_every_allocation(policy, with_pages, |scene| {
            intact(scene);
            map(scene.world.manager.advise(scene.space, at(BASE + 100), 800, Advice::NoHugePage))
        });
        at_every_allocation(policy, with_pages, |scene| {
            map(scene.world.manager.map_fixed(scene.space, at(BASE + 100), 800, R, Map::Shared(scene.file, 0)))
        });
    }
}

#[test]
fn remap() {
    for policy in policies() {
        for distance in [BASE, BASE + 300] {
            let needs = at_every_allocation(policy, with_pages, |scene| {
                intact(scene);
                let to = BASE + 50 + distance;
                map(scene.world.manager.remap(scene.space, at(BASE + 50), 900, at(to), 900))?;
                scene.world.expect(scene.space, to..to + 900, BASE + 50, 1);
                Ok(())
            });
            assert!(needs >= 2, "{needs}");
        }
    }
}

#[test]
fn a_split_of_folios() {
    for policy in [huge(), huge_by_pages()] {
        let prepare = |scene: &Scene<'_>| {
            with_pages(scene);
            scene.world.manager.advise(scene.space, at(BASE + 20), 480, Advice::DontNeed).unwrap();
        };
        let needs = at_every_allocation(policy, prepare, |scene| {
            let report = scene.world.manager.split_deferred(9);
            scene.world.expect(scene.space, BASE..BASE + 20, BASE, 1);
            scene.world.expect(scene.space, BASE + 500..BASE + 1024, BASE + 500, 1);
            if report.split == 1 { Ok(()) } else { Err(format!("{report:?}")) }
        });
        assert_eq!(needs, 33, "32 copies and the list of them");
    }
}

/// Two vmas, of which the first goes and the second cannot: no table stays where nothing is mapped any more.
#[test]
fn what_ends_half_way_leaves_no_table() {
    type Operation = fn(&World<'_>, SpaceId) -> Result<(), MapError>;
    let of_two: [(Policy, Operation); 2] = [
        (huge_by_pages(), |world, space| world.manager.remap(space, at(BASE), 1024, at(3 * BASE), 1024)),
        (huge(), |world, space| world.manager.unmap(space, at(BASE), 1000)),
    ];
    for (policy, operation) in of_two {
        let mut half_way = 0;
        for left in 0.. {
            let machine = machine_of(FRAMES);
            let world: World<'_> = World::new(&machine, policy);
            world.manager.frames().set_reserve(0);
            let space = world.anon(1024);
            world.manager.advise(space, at(BASE + 512), 512, Advice::HugePage).unwrap();
            world.fill(space, BASE..BASE + 1024, 1);
            // The first is mapped by pages in any case.
            world.manager.advise(space, at(BASE + 3), 1, Advice::DontNeed).unwrap();
            let held = hold_all_but(&world, left);
            let outcome = operation(&world, space);
            half_way += u64::from(outcome.is_err() && world.leaf(space, BASE).is_none());
            world.audit();
            give_back(&world, held);
            // A space that ends looks for tables where vmas are.
            world.end(&[]);
            if outcome.is_ok() {
                break;
            }
        }
        assert!(half_way > 0, "it never ends half way");
    }
}
