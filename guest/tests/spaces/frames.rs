//! The frame allocator against a reference set, and the look-up from a frame to its folio.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use crate::world::{BASE, World, at, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::folio::Frames;
use quire::mapcount::Total;
use quire::memory::Memory;
use quire::model::EmulatedMemory;
use quire::space::{Advice, Policy, SpaceId};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Runs that are out, by first frame.
#[derive(Default)]
struct Held(BTreeMap<u64, Order>);

/// Whether the ends of a run still hold nothing: then it goes back as known to be zero.
fn is_untouched(memory: &EmulatedMemory, first: u64, order: Order) -> bool {
    let last = first + order.pages() - 1;
    memory.frame(Pfn::new(first)).0[9].load(Relaxed) == 0 && memory.frame(Pfn::new(last)).0[511].load(Relaxed) == 0
}

impl Held {
    fn add(&mut self, pfn: Pfn, order: Order) {
        let (first, end) = (pfn.raw(), pfn.raw() + order.pages());
        assert_eq!(first % order.pages(), 0, "{pfn:?} is not aligned to order {order}");
        if let Some((&before, before_order)) = self.0.range(..end).next_back() {
            assert!(before + before_order.pages() <= first, "{pfn:?} of order {order} is handed out twice");
        }
        self.0.insert(first, order);
    }
    fn pages(&self) -> u64 {
        self.0.values().map(|order| order.pages()).sum()
    }
}

fn exercise(seed: u64, slot_words: usize, orders: &[u8], ranges: &[std::ops::Range<Pfn>], frames: u64) {
    let memory = EmulatedMemory::new(frames);
    let buddy = Frames::new(&memory, ranges, true, slot_words, 0).unwrap();
    let total = buddy.stats().total;
    assert_eq!(buddy.stats().free, total);
    let mut random = Random(seed);
    let mut held = Held::default();
    for step in 0..4000 {
        let order = Order::new(orders[random.below(orders.len() as u64) as usize]);
        // Long phases of growing and of shrinking.
        if random.below(8) < if step / 500 % 2 == 0 { 5 } else { 3 } {
            let want_zero = random.below(2) == 0;
            if let Some(run) = buddy.alloc(order, want_zero) {
                held.add(run.pfn, order);
                assert!(ranges.iter().any(|r| r.start <= run.pfn && run.pfn.add(order.pages()) <= r.end));
                let words = [&memory.frame(run.pfn).0[9], &memory.frame(run.pfn.add(order.pages() - 1)).0[511]];
                if run.zeroed {
                    for i in [0, order.pages() / 2, order.pages() - 1] {
                        let dirty = memory.frame(run.pfn.add(i)).0.iter().any(|word| word.load(Relaxed) != 0);
                        assert!(!dirty, "{:?} is not zero", run.pfn);
                    }
                }
                // Some are given back as they came.
                if !run.zeroed || random.below(4) != 0 {
                    for word in words {
                        word.store(seed, Relaxed);
                    }
                }
            }
        } else if !held.0.is_empty() {
            let nth = random.below(held.0.len() as u64) as usize;
            let (&first, &order) = held.0.iter().nth(nth).unwrap();
            held.0.remove(&first);
            buddy.free(Pfn::new(first), order, is_untouched(&memory, first, order));
        }
        let stats = buddy.stats();
        assert_eq!(stats.free + stats.slots + held.pages(), total, "step {step}");
    }
    for (first, order) in std::mem::take(&mut held.0) {
        buddy.free(Pfn::new(first), order, false);
    }
    assert!(buddy.all_free());
    // Everything has grown together again: the largest run there ever was is there.
    let stats = buddy.stats();
    // One block with slots at most stays as it is, and those that hold tables, which are given back when a whole block is wanted.
    let tables = 2 * (total / 512).div_ceil(8);
    let most = (1 + tables) * (slot_words as u64 * 8 * 512).div_ceil(4096) + tables;
    assert!(stats.slots <= most, "{} frames of at most {most}", stats.slots);
    let mut runs = Vec::new();
    while let Some(run) = buddy.alloc(Order::HUGE, false) {
        held.add(run.pfn, Order::HUGE);
        runs.push(run.pfn);
    }
    assert_eq!(held.pages(), total, "every block is whole again");
    for pfn in runs {
        buddy.free(pfn, Order::HUGE, false);
    }
    assert_eq!((buddy.stats().free, buddy.stats().slots), (total, 0));
}

#[test]
fn random_orders_against_a_reference() {
    let whole = |frames| [Pfn::new(0)..Pfn::new(frames)];
    for seed in 1..9 {
        exercise(seed * 0x9e37_79b9, 2, &[0, 0, 0, 1, 2, 4, 8], &whole(4096), 4096);
        exercise(seed * 0x85eb_ca6b, 16, &[0, 3, 7, 8, 9, 10, 11], &whole(8192), 8192);
        exercise(seed * 0xc2b2_ae35, 4, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], &whole(16384), 16384);
    }
}

#[test]
fn ranges_with_holes_and_ragged_edges() {
    let ranges = [Pfn::new(3)..Pfn::new(1300), Pfn::new(2050)..Pfn::new(7000), Pfn::new(8192)..Pfn::new(9000)];
    for seed in 1..5 {
        exercise(seed * 0x1234_5671, 8, &[0, 1, 5, 8, 9, 10], &ranges, 9000);
    }
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let memory = EmulatedMemory::new(4096);
    for end in [0, 1, 511, 512] {
        assert!(Frames::new(&memory, &[Pfn::new(0)..Pfn::new(end)], true, 2, 0).is_err(), "{end}");
    }
    assert!(Frames::new(&memory, &[], true, 2, 0).is_err());
    assert!(Frames::new(&memory, &[Pfn::new(0)..Pfn::new(1024)], true, 2, 0).is_ok());
}

#[test]
fn the_reserve_is_kept_back() {
    let memory = EmulatedMemory::new(4096);
    let buddy = Frames::new(&memory, &[Pfn::new(0)..Pfn::new(4096)], true, 2, 0).unwrap();
    buddy.set_reserve(40);
    let mut runs = Vec::new();
    while let Some(run) = buddy.alloc(Order::BASE, true) {
        runs.push(run.pfn);
    }
    assert_eq!(buddy.stats().free, 40);
    assert!(buddy.alloc(Order::new(3), false).is_none());
    buddy.set_reserve(0);
    for _ in 0..40 {
        runs.push(buddy.alloc(Order::BASE, false).unwrap().pfn);
    }
    assert!(buddy.alloc(Order::BASE, false).is_none());
    runs.into_iter().for_each(|pfn| buddy.free(pfn, Order::BASE, false));
    assert!(buddy.all_free());
}

#[test]
fn every_frame_of_a_folio_of_every_order_finds_it() {
    let frames = 3 << 18;
    for order in 0..=18 {
        let order = Order::new(order);
        let machine = machine_of(frames);
        let policy = Policy { max_leaf: Level::THREE, ..Policy::only(order) };
        let world: World<'_, Total> = World::with_scheme(&machine, policy, frames);
        let space = world.anon(3 * order.pages());
        for i in [1, 0, 2] {
            world.write(space, BASE + i * order.pages(), i + 1);
            if order == Order::MAX && i == 0 {
                break;
            }
        }
        let touched = if order == Order::MAX { 1..2 } else { 0..3 };
        for i in touched {
            let (head, _) = world.leaf(space, BASE + i * order.pages()).unwrap();
            for frame in 0..order.pages() {
                let folio = world.manager.folio(head.add(frame)).expect("a folio");
                assert_eq!((folio.head(), folio.order()), (head, order), "frame {frame}");
            }
            for outside in [head.raw().wrapping_sub(1), head.raw() + order.pages()] {
                let other = world.manager.folio(Pfn::new(outside));
                assert!(other.is_none_or(|folio| folio.head() != head), "order {order}");
            }
        }
        world.leave(space);
        for pfn in (0..frames).step_by(61) {
            assert!(world.manager.folio(Pfn::new(pfn)).is_none());
        }
        assert!(world.manager.trim());
    }
}

#[test]
fn frames_outside_are_no_folio() {
    let machine = machine_of(2048);
    let world: World<'_, Total> = World::with_scheme(&machine, Policy::up_to(Order::BASE), 2048);
    for pfn in [2048, 4096, 1 << 30, u64::MAX >> 12] {
        assert!(world.manager.folio(Pfn::new(pfn)).is_none());
    }
}

/// Every frame of every folio that `space` maps, and what it must find.
fn heads(world: &World<'_, Total>, space: SpaceId, pages: u64, order: Order) -> Vec<Pfn> {
    (0..pages)
        .step_by(order.pages() as usize)
        .filter_map(|page| world.leaf(space, BASE + page))
        .map(|(pfn, _)| {
            assert_eq!(pfn.raw() % order.pages(), 0);
            pfn
        })
        .collect()
}

fn all_find(world: &World<'_, Total>, heads: &[Pfn], order: Order) {
    for &head in heads {
        for frame in 0..order.pages() {
            let folio = world.manager.folio(head.add(frame)).expect("a folio");
            assert_eq!((folio.head(), folio.order()), (head, order), "frame {frame}");
        }
    }
}

/// Memory full of folios of one order, of which some go: the room serves single frames to the last, and the folios that stay are found by all of their frames.
#[test]
fn blocks_of_units_serve_single_frames_when_nothing_else_is_left() {
    let frames = 16 * 512;
    for order in 3..=8 {
        // Which folios go: the first of each block or not, so that the slots stand in its first frames or elsewhere.
        for (every, gone) in [(2, 0), (2, 1), (32, 31), (5, 3)] {
            let order = Order::new(order);
            let machine = machine_of(frames);
            let mut world: World<'_, Total> = World::with_scheme(&machine, Policy::only(order), frames);
            let space = world.anon(frames);
            let mut filled = 0;
            while world.access(space, BASE + filled, Some(filled)).is_ok() {
                if world.folio_order(space, BASE + filled) != order {
                    world.manager.advise(space, at(BASE + filled), 1, Advice::DontNeed).unwrap();
                    break;
                }
                filled += order.pages();
                assert!(filled < frames, "it never ends");
            }
            let before = world.manager.frames().stats();
            let of_all = heads(&world, space, filled, order);
            all_find(&world, &of_all, order);
            // Slots must not be taken from what tenants have stored.
            for pfn in of_all.iter().flat_map(|&head| (0..order.pages()).step_by(8).map(move |i| head.add(i))) {
                for word in machine.frame(pfn).0.iter().chain(&machine.frame(pfn.add(1)).0) {
                    word.store(0x1234_5678_9abc_def1, Relaxed);
                }
            }
            for nth in (0..of_all.len() as u64).filter(|nth| nth % every == gone) {
                let first = at(BASE + nth * order.pages());
                world.manager.advise(space, first, order.pages(), Advice::DontNeed).unwrap();
            }
            world.audit();
            let kept = heads(&world, space, filled, order);
            assert!(kept.len() < of_all.len() || of_all.len() as u64 <= gone);
            // All of it in single frames, but for those of the slots that need them.
            world.manager.set_policy(Policy::only(Order::BASE));
            world.manager.frames().set_reserve(0);
            let singles = world.anon(frames);
            let (mut served, mut page) = (Vec::new(), 0);
            while world.access(singles, BASE + page, Some(page)).is_ok() {
                served.push(world.leaf(singles, BASE + page).unwrap().0);
                page += 1;
            }
            let after = world.manager.frames().stats();
            assert_eq!(after.free, 0, "order {order}, {gone} of {every}: {before:?} {after:?}");
            if kept.len() < of_all.len() {
                assert!(after.slots > before.slots, "no block was given slots: {before:?} {after:?}");
            }
            all_find(&world, &kept, order);
            all_find(&world, &served, Order::BASE);
            world.audit();
            for (nth, &pfn) in served.iter().enumerate() {
                assert_eq!(machine.frame(pfn).0[0].load(Relaxed), nth as u64, "{pfn:?} is somebody else's too");
            }
            // Half of the single frames go, larger folios come where they fit.
            for page in (0..page).filter(|page| page % 16 < 9) {
                world.manager.advise(singles, at(BASE + page), 1, Advice::DontNeed).unwrap();
            }
            world.manager.set_policy(Policy::up_to(Order::HUGE));
            let mixed = world.anon(frames);
            let mut page = 0;
            while world.access(mixed, BASE + page, Some(page)).is_ok() {
                page += 1;
            }
            all_find(&world, &kept, order);
            world.audit();
            // The folios that stayed go too, and all that is free is taken, frame by frame, and given back, twice.
            world.leave(space);
            world.manager.set_policy(Policy::only(Order::BASE));
            for _ in 0..2 {
                let space = world.anon(frames);
                let mut page = 0;
                while world.access(space, BASE + page, Some(page)).is_ok() {
                    page += 1;
                }
                assert_eq!(world.manager.frames().stats().free, 0);
                world.leave(space);
            }
            for space in [mixed, singles] {
                world.leave(space);
            }
            assert!(world.manager.trim());
            let mut whole = 0;
            while world.manager.frames().alloc(Order::HUGE, false).is_some() {
                whole += 1;
            }
            assert_eq!(whole, before.total / 512, "every block is whole again");
        }
    }
}

/// Buddies that are both free make one run, whether one is known to be zero or not.
#[test]
fn units_are_one_run_whatever_is_known_of_them() {
    let memory = EmulatedMemory::new(4 * 512);
    let buddy = Frames::new(&memory, &[Pfn::new(0)..Pfn::new(4 * 512)], false, 2, 0).unwrap();
    for order in [3, 6] {
        let units: Vec<_> = std::iter::from_fn(|| buddy.alloc(Order::new(order), false)).map(|run| run.pfn).collect();
        let larger = Order::new(order + 2);
        let four_at = |first: Pfn| [0, 1, 2, 3].map(|i| first.add(i << order));
        let is_first =
            |pfn: &&Pfn| pfn.align_down(larger) == **pfn && four_at(**pfn).iter().all(|pfn| units.contains(pfn));
        let four = four_at(*units.iter().find(is_first).expect("a whole block of units"));
        for zeros in 0..16 {
            for (i, &pfn) in four.iter().enumerate() {
                for frame in 0..if zeros >> i & 1 == 1 { 1 << order } else { 0 } {
                    memory.zero(pfn.add(frame), 1);
                }
                buddy.free(pfn, Order::new(order), zeros >> i & 1 == 1);
            }
            let run = buddy.alloc(larger, zeros % 3 == 0).expect("four units are free");
            assert_eq!((run.pfn, run.zeroed), (four[0], zeros == 15));
            buddy.free(run.pfn, larger, run.zeroed);
            for _ in 0..4 {
                let run = buddy.alloc(Order::new(order), true).expect("four units are free");
                assert!(four.contains(&run.pfn));
                assert_eq!(run.zeroed, zeros == 15);
            }
        }
        units.into_iter().for_each(|pfn| buddy.free(pfn, Order::new(order), false));
        assert!(buddy.all_free());
    }
}

/// Folios of every order and table pages side by side cost what they should: metadata by folio, whatever the order.
#[test]
fn metadata_is_by_folio() {
    let frames = 64 * 512;
    for order in 0..=9 {
        let order = Order::new(order);
        let machine = machine_of(frames);
        let world: World<'_, Total> = World::with_scheme(&machine, Policy::only(order), frames);
        let pages = 48 * 512;
        let space = world.anon(pages);
        for page in (0..pages).step_by(order.pages() as usize) {
            world.write(space, BASE + page, page);
        }
        let found = world.manager.metadata();
        let bytes = found.carved_bytes + found.slot_bytes + found.folio_bytes;
        let folios = pages / order.pages();
        let most = if order == Order::BASE { 16 } else { 128 };
        // The directory, the slots of the block where page tables and records are, and what is left of frames of records and tables.
        let rest = (1 + 2 + 2) * 4096;
        assert!(bytes <= folios * most + rest, "order {order}: {bytes} bytes for {folios} folios");
        world.leave(space);
        assert!(world.manager.trim());
    }
}
