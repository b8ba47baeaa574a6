//! Two CPUs at the counts of one folio, and a CPU and an MMU at the leaves of one table, in every interleaving and with every value that the orderings let a load see.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p quire --test loom --profile loom
//! ```
//!
//! The words of schemes, references and locks are the library's own, explored; entries of tables are one word each, stored with Release and loaded with
//! Acquire as the page-table engine does it, or the engine's own where an MMU is at them. Of the manager's locks a model has those that the manager holds at that place, and says so. How many
//! preemptions are tried is bounded: none of the races needs more.

#![cfg(loom)]

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, OnceLock};

use quire::addr::{ENTRIES, Level, Order, Pfn};
use quire::folio::{Extensions, Folio, FolioFlags, Frames, Mapping, Slab};
use quire::format::{Attrs, Format, Leaf, LongMode};
use quire::mapcount::{
    Accounting, Batch, COUNT_LIMIT, Class, Classes, Extent, FullPartial, MmOwner, Neighbours, Owned, PerLevel, RmapIds,
    Target, Total, Tuples, Vmas, ZeroOneTwoMany,
};
use quire::memory::{FlushScope, Frame, Memory, Tlb};
use quire::page_table::{Flush, PageTable, Part, Tables};
use quire::sync::{AtomicU64, WordGuard, lock_bit, lock_word, read_lock, write_lock};

const PAIR: Order = Order::new(1);

/// The frame of the counts of pages, for schemes that have them.
struct Counts(Option<Box<Frame>>);

impl Memory for Counts {
    fn frame(&self, _pfn: Pfn) -> &Frame {
        self.0.as_ref().expect("the scheme counts no pages")
    }
}

/// One folio, and what maps it.
struct World {
    order: Order,
    /// Its descriptor.
    words: [AtomicU64; 16],
    frames: Frames<Counts>,
    /// What tables hold: 1 for a leaf of the folio.
    entries: [AtomicU64; 6],
    locks: [AtomicU64; 3],
    freed: AtomicU64,
}

impl World {
    fn new(order: Order) -> Self {
        Self::over(order, Counts(None))
    }

    /// With a count for every page.
    fn with_counts(order: Order) -> Self {
        // On a stack of its own: those of the explored threads have no room for a frame.
        let frame = std::thread::spawn(|| Box::new(Frame([const { AtomicU64::new(0) }; ENTRIES]))).join().unwrap();
        frame.0[0].load(Relaxed);
        Self::over(order, Counts(Some(frame)))
    }

    fn over(order: Order, counts: Counts) -> Self {
        let world = Self {
            order,
            words: [const { AtomicU64::new(0) }; 16],
            frames: Frames::of_counts(counts),
            entries: [const { AtomicU64::new(0) }; 6],
            locks: [const { AtomicU64::new(0) }; 3],
            freed: AtomicU64::new(0),
        };
        // The first touch makes a word known.
        for word in world.words.iter().chain(&world.entries).chain(&world.locks).chain([&world.freed]) {
            word.load(Relaxed);
        }
        world
    }

    fn folio(&self) -> Folio<'_> {
        Folio::over(&self.words, self.order)
    }

    fn target(&self) -> Target<'_, Counts> {
        Target::new(&self.frames, self.folio(), COUNT_LIMIT)
    }

    fn lock(&self, nth: usize) -> WordGuard<'_> {
        lock_word(&self.locks[nth])
    }

    fn is_present(&self, entry: usize) -> bool {
        self.entries[entry].load(Acquire) != 0
    }

    fn enter(&self, entry: usize) {
        self.entries[entry].store(1, Release);
    }

    fn clear(&self, entry: usize) {
        self.entries[entry].store(0, Release);
    }

    /// As `duplicate` does it, or a fault: references, counts, entry.
    fn map<A: Accounting>(&self, b: &Batch, entry: usize) {
        self.folio().get(b.leaves());
        A::dup(&self.target(), b, Neighbours::default()).unwrap();
        self.enter(entry);
    }

    /// As `release` does it, when the entry is gone and flushed: counts, references.
    fn uncount<A: Accounting>(&self, b: &Batch) {
        A::sub(&self.target(), b, Neighbours::default());
        self.put::<A>(b.leaves());
    }

    fn unmap<A: Accounting>(&self, b: &Batch, entry: usize) {
        self.clear(entry);
        self.uncount::<A>(b);
    }

    fn put<A: Accounting>(&self, references: u32) {
        if self.folio().put(references) {
            assert_eq!(A::leaves(&self.target()).value().unwrap_or(0), 0, "freed while leaves are counted");
            assert_eq!(self.freed.fetch_add(1, Relaxed), 0, "freed twice");
        }
    }
}

/// All of a folio of order 9, by one leaf or by 512.
fn whole(owner: u32, leaf: Order) -> Batch {
    pages(owner, 0, 512, leaf)
}

fn pages(owner: u32, first: u32, pages: u32, leaf: Order) -> Batch {
    Batch { class: Class::Process, first, pages, leaf, region: owner, table: Pfn::new(owner.into()), owner }
}

fn huge(owner: u32) -> Batch {
    whole(owner, Order::HUGE)
}

/// All of a folio of `order`, by one leaf.
fn leaf(owner: u32, order: Order) -> Batch {
    pages(owner, 0, order.pages() as u32, order)
}

/// Explores `one` on one CPU and `two` on the other, between `start` and `end`.
fn race(
    name: &str,
    preemptions: usize,
    start: impl Fn() -> World + Send + Sync + 'static,
    one: impl Fn(&World) + Copy + Send + Sync + 'static,
    two: impl Fn(&World) + Send + Sync + 'static,
    end: impl Fn(&World) + Send + Sync + 'static,
) {
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        count.fetch_add(1, Relaxed);
        let world = Arc::new(start());
        let other = Arc::clone(&world);
        let cpu = loom::thread::spawn(move || one(&other));
        two(&world);
        cpu.join().unwrap();
        end(&world);
    });
    println!("{name}: {} interleavings", tried.load(Relaxed));
}

/// What the schemes that count leaves and owners have counted, read together.
struct Seen {
    leaves: u64,
    pages: u64,
    /// Nothing is remembered of any owner.
    is_idle: bool,
}

trait Owners: Accounting {
    fn seen(t: &Target<'_, Counts>) -> Seen;
}

impl<X: Extent> Owners for Owned<X> {
    fn seen(t: &Target<'_, Counts>) -> Seen {
        let c = Self::counters(t);
        Seen { leaves: c.leaves, pages: c.pages, is_idle: c.slots == [(0, 0); 2] && !c.shared }
    }
}

impl Owners for RmapIds {
    fn seen(t: &Target<'_, Counts>) -> Seen {
        let c = Self::counters(t);
        Seen { leaves: c.leaves, pages: c.leaves + 511 * c.sizes.entire, is_idle: c.sums.iter().all(|&sum| sum == 0) }
    }
}

fn is_unmapped<A: Owners>(world: &World) {
    let seen = A::seen(&world.target());
    assert_eq!((seen.leaves, seen.pages), (0, 0));
    assert!(seen.is_idle, "owners are remembered");
    assert_eq!((world.folio().refs(), world.freed.load(Relaxed)), (0, 1));
}

macro_rules! under_each {
    ($($name:ident: $test:ident, $($scheme:ident),*;)*) => { $(
        mod $name {
            $(
                #[test]
                #[expect(non_snake_case, reason = "the scheme's name")]
                fn $scheme() {
                    super::$test::<super::$scheme>();
                }
            )*
        }
    )* };
}

under_each! {
    sums: sums_add_up, Total, MmOwner, PerLevel, RmapIds;
    split: a_split_is_never_seen_in_half, Total, MmOwner, PerLevel, RmapIds;
    fork: exclusive_is_never_wrong_in_a_fork, Total, MmOwner, PerLevel, RmapIds, Tuples, Vmas, ZeroOneTwoMany;
    child: exclusive_is_never_wrong_while_a_child_forks, Total, MmOwner, PerLevel, RmapIds;
    pin: a_pinned_folio_is_not_reused, Total, MmOwner, PerLevel, RmapIds;
    last: the_last_reference_finds_no_leaf, Total, PerLevel, RmapIds;
    references: references_cover_leaves, Total, PerLevel, RmapIds;
    winner: the_winner_is_counted, Total, PerLevel, RmapIds;
    unit: a_unit_with_an_entry_is_counted, Tuples, Vmas, ZeroOneTwoMany;
    units: units_are_counted_once, Tuples, Vmas, ZeroOneTwoMany;
}

/// Two owners map the folio and unmap it at once, without a lock in common: changes of M, of what stands beside it and of the slots that overwrite each other
/// would leave something behind.
fn sums_add_up<A: Owners>() {
    let come_and_go = |owner: u32| {
        move |world: &World| {
            world.map::<A>(&huge(owner), owner as usize);
            world.unmap::<A>(&huge(owner), owner as usize);
        }
    };
    let start = || {
        let world = World::new(Order::HUGE);
        // The cache's, so that the folio is not freed in between.
        world.folio().init_refs(1);
        world
    };
    race(A::NAME, 3, start, come_and_go(1), come_and_go(2), |world| {
        world.put::<A>(1);
        is_unmapped::<A>(world);
    });
}

/// One owner's leaf is split while another maps the folio, looks, and unmaps it. M and T of two moments, or M beside the sizes of another, would not fit.
fn a_split_is_never_seen_in_half<A: Owners>() {
    let start = || {
        let world = World::new(Order::HUGE);
        world.map::<A>(&huge(1), 1);
        world
    };
    let split = |world: &World| {
        world.folio().get(511);
        A::split(&world.target(), &huge(1), Neighbours::default());
    };
    let look = |world: &World| {
        world.map::<A>(&huge(2), 2);
        let Seen { leaves, pages, .. } = A::seen(&world.target());
        assert!(matches!((leaves, pages), (2 | 513, 1024)), "M {leaves}, T {pages}");
        world.unmap::<A>(&huge(2), 2);
        let Seen { leaves, pages, .. } = A::seen(&world.target());
        assert!(matches!((leaves, pages), (1 | 512, 512)), "M {leaves}, T {pages}");
    };
    race(A::NAME, 3, start, split, look, |world| {
        assert_eq!(world.folio().refs(), 512);
        world.unmap::<A>(&whole(1, Order::BASE), 1);
        is_unmapped::<A>(world);
    });
}

/// One CPU duplicates the asker's leaf into another owner: reference, counts, entry. Whoever asks after the entry was there must not be told that it is alone. No lock
/// in common: a fork of the asker's own space is kept out by its space lock, and a fault of another space on the same folio has none with it.
fn exclusive_is_never_wrong_in_a_fork<A: Accounting>() {
    let ask = |world: &World| {
        for _ in 0..2 {
            let was_there = world.is_present(2);
            assert!(!was_there || A::maybe_shared(&world.target(), 1).value() == Some(true), "exclusive");
            // The references are read first, as in a write fault.
            let refs = world.folio().refs();
            let reused = A::may_reuse(&world.target(), 1, refs).value() == Some(true);
            assert!(!was_there || !reused, "reused");
        }
    };
    // The asker has the first slot of an owner, or the second.
    for came_second in [false, true] {
        let start = move || {
            let world = World::new(Order::HUGE);
            if came_second {
                world.map::<A>(&huge(2), 2);
            }
            world.map::<A>(&huge(1), 1);
            if came_second {
                world.unmap::<A>(&huge(2), 2);
            }
            world
        };
        race(
            A::NAME,
            3,
            start,
            |world| world.map::<A>(&huge(2), 2),
            ask,
            |world| {
                assert_eq!(A::maybe_shared(&world.target(), 1).value(), Some(true));
            },
        );
    }
}

/// A child forks in turn and goes, while the parent asks: at every moment one of the two maps the folio, the later without a slot. No lock in common: these are
/// spaces and tables of others.
fn exclusive_is_never_wrong_while_a_child_forks<A: Accounting>() {
    let start = || {
        let world = World::new(Order::HUGE);
        world.map::<A>(&huge(1), 1);
        world.map::<A>(&huge(2), 2);
        world
    };
    let fork_and_go = |world: &World| {
        world.map::<A>(&huge(3), 3);
        world.unmap::<A>(&huge(2), 2);
    };
    let ask = |world: &World| {
        for _ in 0..2 {
            assert_eq!(A::maybe_shared(&world.target(), 1).value(), Some(true));
            let refs = world.folio().refs();
            assert_ne!(A::may_reuse(&world.target(), 1, refs).value(), Some(true));
        }
    };
    race(A::NAME, 3, start, fork_and_go, ask, |world| {
        world.unmap::<A>(&huge(1), 1);
        world.unmap::<A>(&huge(3), 3);
        assert_eq!(world.folio().refs(), 0);
    });
}

/// Another owner's leaf goes, but a pin of it stays a while and what it reads of the memory with it. If the asker is told to reuse the folio, the pin is gone, and all
/// that its holder did is behind. No lock in common: the pin was taken in the other space.
fn a_pinned_folio_is_not_reused<A: Accounting>() {
    for order in [Order::BASE, Order::HUGE] {
        let start = move || {
            let world = World::new(order);
            world.map::<A>(&leaf(1, order), 1);
            world.map::<A>(&leaf(2, order), 2);
            world.folio().get(1);
            world.enter(0);
            world
        };
        let unmap_and_unpin = move |world: &World| {
            world.unmap::<A>(&leaf(2, order), 2);
            // The last that its holder does.
            world.entries[0].store(0, Relaxed);
            world.put::<A>(1);
        };
        let ask = |world: &World| {
            let refs = world.folio().refs();
            if A::may_reuse(&world.target(), 1, refs).value() == Some(true) {
                assert_eq!(world.entries[0].load(Relaxed), 0, "reused under a pin");
            }
        };
        race(A::NAME, 3, start, unmap_and_unpin, ask, |world| {
            assert_eq!(A::may_reuse(&world.target(), 1, world.folio().refs()).value(), Some(true));
        });
    }
}

/// Two owners unmap the folio at once: counts, then references. One of them drops the last reference, and finds no leaf counted (`put` looks).
fn the_last_reference_finds_no_leaf<A: Owners>() {
    for order in [Order::BASE, Order::HUGE] {
        let start = move || {
            let world = World::new(order);
            world.map::<A>(&leaf(1, order), 1);
            world.map::<A>(&leaf(2, order), 2);
            world
        };
        let unmap = |owner: u32| move |world: &World| world.unmap::<A>(&leaf(owner, order), owner as usize);
        race(A::NAME, 3, start, unmap(1), unmap(2), is_unmapped::<A>);
    }
}

/// References are not below M, whoever looks: in front of an addition if M is read first, behind a removal if the references are. (In the other order either may change
/// between the two.)
fn references_cover_leaves<A: Owners>() {
    let start = || {
        let world = World::new(Order::HUGE);
        world.map::<A>(&huge(1), 1);
        world
    };
    let leaves = |world: &World| A::leaves(&world.target()).value().unwrap();
    let add = move |world: &World| {
        let leaves = A::seen(&world.target()).leaves;
        assert!(world.folio().refs() >= leaves, "a leaf without a reference");
    };
    race(A::NAME, 3, start, |world| world.map::<A>(&huge(2), 2), add, |_| ());
    let start = move || {
        let world = start();
        world.map::<A>(&huge(2), 2);
        world
    };
    let sub = move |world: &World| {
        let refs = world.folio().refs();
        assert!(refs >= leaves(world), "a reference was dropped before its leaf");
    };
    race(A::NAME, 3, start, |world| world.unmap::<A>(&huge(2), 2), sub, |_| ());
}

/// Both count, then publish the same entry by compare-exchange; the loser takes its leaf back. M is never below the entry that is there, and one leaf is counted in the end.
/// No lock: the manager publishes under the table lock, and would not have to.
fn the_winner_is_counted<A: Owners>() {
    let publish = |world: &World| {
        world.folio().get(1);
        A::add(&world.target(), &huge(1), Neighbours::default()).unwrap();
        let won = world.entries[0].compare_exchange(0, 1, AcqRel, Acquire).is_ok();
        assert!(A::seen(&world.target()).leaves >= 1 + u64::from(!won), "an entry that is not counted");
        if !won {
            world.uncount::<A>(&huge(1));
            assert!(A::seen(&world.target()).leaves >= 1, "the winner's leaf was taken");
        }
    };
    race(
        A::NAME,
        3,
        || World::new(Order::HUGE),
        publish,
        publish,
        |world| {
            assert_eq!((A::seen(&world.target()).leaves, world.folio().refs()), (1, 1));
            world.unmap::<A>(&huge(1), 0);
            is_unmapped::<A>(world);
        },
    );
}

/// Entries `2 * unit` and the next are those of one unit, which is a region in a table (`tuples`) or a region, under lock `unit`: the table's, or the one that faults of a region hold
/// under the schemes that count regions.
fn beside(world: &World, unit: usize, entry: usize) -> Neighbours {
    let others = (2 * unit..2 * unit + 2).filter(|&i| i != entry && world.is_present(i)).count() as u32;
    Neighbours { tuple: others, region: others }
}

fn unit_of(unit: usize, entry: usize) -> Batch {
    pages(unit as u32 + 1, entry as u32 % 2, 1, Order::BASE)
}

/// Look, count and enter under the lock of the unit.
fn add_to_unit<A: Accounting>(world: &World, unit: usize, entry: usize) {
    let _unit = world.lock(unit);
    let beside = beside(world, unit, entry);
    A::add(&world.target(), &unit_of(unit, entry), beside).unwrap();
    world.enter(entry);
    assert_eq!(A::mapped(&world.target()).value(), Some(true));
}

/// Look and clear under the lock of the unit; the count follows behind the flush, when nothing is locked any more.
fn remove_from_unit<A: Accounting>(world: &World, unit: usize, entry: usize) {
    let beside = {
        let _unit = world.lock(unit);
        let beside = beside(world, unit, entry);
        world.clear(entry);
        beside
    };
    A::sub(&world.target(), &unit_of(unit, entry), beside);
}

/// A unit is counted while it holds an entry.
fn check_unit<A: Accounting>(world: &World, unit: usize) {
    let _unit = world.lock(unit);
    if (2 * unit..2 * unit + 2).any(|entry| world.is_present(entry)) {
        assert_eq!(A::mapped(&world.target()).value(), Some(true), "an entry, and no unit");
    }
}

fn units<A: Accounting>(world: &World) -> String {
    let mut text = String::new();
    A::show(&world.target(), &mut text).unwrap();
    text
}

fn is<A: Accounting>(world: &World, state: usize) {
    let text = units::<A>(world);
    let words = ["zero", "one", "two", "many"];
    assert!(text == state.to_string() || text == words[state], "{text}, not {state}");
}

/// The first and the last of one unit: each CPU puts an entry into it and takes it out again. Were the look not under the lock, both would be the first, or none the last.
fn a_unit_with_an_entry_is_counted<A: Accounting>() {
    let come_and_go = |entry| {
        move |world: &World| {
            add_to_unit::<A>(world, 0, entry);
            remove_from_unit::<A>(world, 0, entry);
        }
    };
    let second = move |world: &World| {
        come_and_go(1)(world);
        check_unit::<A>(world, 0);
    };
    race(A::NAME, 2, || World::new(PAIR), come_and_go(0), second, |world| is::<A>(world, 0));
}

/// Two units of one folio, each under its own lock, so that only the count itself is shared.
fn units_are_counted_once<A: Accounting>() {
    let first = |world: &World| {
        add_to_unit::<A>(world, 0, 0);
        add_to_unit::<A>(world, 0, 1);
        remove_from_unit::<A>(world, 0, 0);
        remove_from_unit::<A>(world, 0, 1);
    };
    let second = |world: &World| {
        add_to_unit::<A>(world, 1, 2);
        add_to_unit::<A>(world, 1, 3);
        remove_from_unit::<A>(world, 1, 2);
        check_unit::<A>(world, 1);
    };
    race(A::NAME, 2, || World::new(PAIR), first, second, |world| is::<A>(world, 1));
}

/// The lock bit of `full-partial`, and the counts under it: *full*, *partial* and the leaves over both pages.
fn full_and_partial(world: &World) -> (u64, u64, [u64; 2]) {
    let _folio = lock_bit(&world.words[4], 1 << 63);
    let t = world.target();
    let counters = FullPartial::counters(&t);
    let cover = [0, 1].map(|page| counters.full + u64::from(FullPartial::page(&t, page)));
    (counters.full, counters.partial, cover)
}

/// One region loses a page, so that its mapping is pushed down into the pages, and gets it back; another maps the folio as a whole, looks, and goes. The two hold
/// the locks of different regions.
#[test]
fn a_mapping_is_pushed_down_in_one_step() {
    let near = |region: u32| Neighbours { tuple: 0, region };
    let both = |owner| pages(owner, 0, 2, Order::BASE);
    let start = move || {
        let world = World::with_counts(PAIR);
        FullPartial::add(&world.target(), &both(1), near(0)).unwrap();
        world
    };
    let push_down = move |world: &World| {
        let page = pages(1, 0, 1, Order::BASE);
        FullPartial::sub(&world.target(), &page, near(1));
        FullPartial::add(&world.target(), &page, near(1)).unwrap();
    };
    let other = move |world: &World| {
        FullPartial::add(&world.target(), &both(2), near(0)).unwrap();
        let seen = full_and_partial(world);
        assert!(matches!(seen, (2, 0, [2, 2]) | (1, 1, [1, 2])), "{seen:?}");
        FullPartial::sub(&world.target(), &both(2), near(0));
        let seen = full_and_partial(world);
        assert!(matches!(seen, (1, 0, [1, 1]) | (0, 1, [0, 1])), "{seen:?}");
    };
    race("full-partial", 2, start, push_down, other, |world| {
        assert_eq!(full_and_partial(world), (1, 0, [1, 1]));
    });
}

/// Owners 3 and 4 map the folio without a slot, and both slots are free.
fn without_slots() -> World {
    let world = World::new(Order::HUGE);
    for owner in [1, 2, 3, 4] {
        world.map::<PerLevel>(&huge(owner), owner as usize);
    }
    world.unmap::<PerLevel>(&huge(1), 1);
    world.unmap::<PerLevel>(&huge(2), 2);
    world
}

/// As a write fault does it: count the asker's leaves if the scheme wants to, and ask. The caller holds the asker's space, so that its entries only go and come with another
/// fault of it.
fn relearn_and_ask(world: &World, owner: u32, entries: &'static [usize]) -> bool {
    let t = world.target();
    PerLevel::relearn(&t, owner, || entries.iter().filter(|&&entry| world.is_present(entry)).count() as u64);
    PerLevel::maybe_shared(&t, owner).value() == Some(false)
}

/// One owner counts its leaves while another forks, and goes: at every moment somebody else maps the folio.
#[test]
fn nobody_learns_to_be_alone_beside_a_fork() {
    let fork_and_go = |world: &World| {
        world.map::<PerLevel>(&huge(5), 5);
        world.unmap::<PerLevel>(&huge(4), 4);
    };
    let learn = |world: &World| {
        for _ in 0..2 {
            assert!(!relearn_and_ask(world, 3, &[3]), "exclusive beside a fork");
        }
    };
    race("per-level", 3, without_slots, fork_and_go, learn, |world| {
        world.unmap::<PerLevel>(&huge(5), 5);
        assert!(relearn_and_ask(world, 3, &[3]), "shared is not forgotten");
    });
}

/// The other owner goes: whoever learns to be alone does so behind the removal, and in the end learns it.
#[test]
fn the_last_owner_learns_to_be_alone() {
    let learn = |world: &World| {
        let was_there = world.is_present(4);
        if relearn_and_ask(world, 3, &[3]) {
            assert!(!world.is_present(4), "exclusive, and another's leaf is there: {was_there} before");
        }
    };
    race(
        "per-level",
        3,
        without_slots,
        |world| world.unmap::<PerLevel>(&huge(4), 4),
        learn,
        |world| {
            assert!(relearn_and_ask(world, 3, &[3]), "shared is not forgotten");
        },
    );
}

/// The asker's own leaves come and go by another fault of its space, which the space lock does not keep out: what is read never makes its slot larger than its leaves, so that
/// the other owner is not forgotten.
#[test]
fn own_leaves_are_learnt_while_they_change() {
    let start = || {
        let world = without_slots();
        world.map::<PerLevel>(&huge(3), 2);
        world
    };
    let change = |world: &World| {
        world.unmap::<PerLevel>(&huge(3), 2);
        world.map::<PerLevel>(&huge(3), 1);
    };
    let learn = |world: &World| {
        for _ in 0..2 {
            assert!(!relearn_and_ask(world, 3, &[1, 2, 3]), "exclusive beside another owner");
        }
        let counters = PerLevel::counters(&world.target());
        assert!(counters.slots.iter().all(|&(id, leaves)| id == 0 || id == 3 && leaves <= 2), "{counters:?}");
    };
    race("per-level", 2, start, change, learn, |world| {
        world.unmap::<PerLevel>(&huge(4), 4);
        assert!(relearn_and_ask(world, 3, &[1, 2, 3]), "shared is not forgotten");
    });
}

/// Frames that come into being when they are first seen.
struct Lazy(Vec<OnceLock<Box<Frame>>>);

impl Memory for Lazy {
    fn frame(&self, pfn: Pfn) -> &Frame {
        // On a stack of its own, as above.
        let make = || std::thread::spawn(|| Box::new(Frame([const { AtomicU64::new(0) }; ENTRIES]))).join().unwrap();
        self.0[pfn.raw() as usize].get_or_init(make)
    }
}

/// Three blocks, of which the first holds the directory, one has slots and is full, and one has units, which hold two folios and but one free unit.
struct Blocks {
    frames: Frames<Lazy>,
    records: Slab,
    folios: [Pfn; 2],
    /// The single frame that came out of the free unit, plus one.
    found: AtomicU64,
}

const UNIT: Order = Order::new(6);

impl Blocks {
    fn new(free_unit: usize) -> Self {
        let memory = Lazy((0..3 * 512).map(|_| OnceLock::new()).collect());
        let frames = Frames::new(memory, &[Pfn::new(0)..Pfn::new(3 * 512)], true, 2, 0).unwrap();
        let records = Slab::new(8);
        let first = frames.folio_for_models(UNIT, &records).unwrap();
        let second = frames.folio_for_models(UNIT, &records).unwrap();
        let rest: Vec<_> = (2..8).map(|_| frames.alloc(UNIT, true).unwrap().pfn).collect();
        for order in (0..6).rev() {
            while frames.alloc(Order::new(order), true).is_some() {}
        }
        assert_eq!(frames.stats().free, 0);
        let free = rest[free_unit];
        frames.free(free, UNIT, true);
        // The first touch makes a word known.
        for frame in free.raw()..free.raw() + 2 {
            frames.memory().frame(Pfn::new(frame)).0.iter().for_each(|word| _ = word.load(Relaxed));
        }
        let found = AtomicU64::new(0);
        found.load(Relaxed);
        Self { frames, records, folios: [first, second], found }
    }
}

/// Does `run` in every interleaving with two preemptions at most, and says how many these were.
fn explore(what: &str, run: impl Fn() + Sync + Send + 'static) {
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 10_000;
    model.check(move || {
        count.fetch_add(1, Relaxed);
        run();
    });
    println!("{what}: {} interleavings", tried.load(Relaxed));
}

/// A folio is found by each of its frames while its block is given slots, and so is what comes out of the block then.
#[test]
fn a_folio_is_found_while_its_block_is_given_slots() {
    explore("slots", || {
        let blocks = Arc::new(Blocks::new(1));
        let other = Arc::clone(&blocks);
        let cpu = loom::thread::spawn(move || {
            let single = other.frames.folio_for_models(Order::BASE, &other.records).expect("the free unit");
            other.found.store(single.raw() + 1, Release);
        });
        let find = |pfn| blocks.frames.find_for_models(pfn, &blocks.records);
        let single = blocks.found.load(Acquire);
        if single != 0 {
            let single = Pfn::new(single - 1);
            assert_eq!(find(single), Some((single, Order::BASE)));
        }
        for (head, frame) in [(blocks.folios[0], 0), (blocks.folios[1], 5)] {
            assert_eq!(find(head.add(frame)), Some((head, UNIT)));
        }
        cpu.join().unwrap();
        assert_eq!(blocks.frames.stats().slots, 2 + 2 + 1, "two blocks with slots, and the table");
    });
}

/// A folio, and another that has grown, so that the frame of extensions is there.
struct Growing {
    frames: Frames<Lazy>,
    records: Slab,
    extensions: Extensions,
    folio: Pfn,
}

impl Growing {
    fn new(order: Order) -> Self {
        let memory = Lazy((0..3 * 512).map(|_| OnceLock::new()).collect());
        let frames = Frames::new(memory, &[Pfn::new(0)..Pfn::new(3 * 512)], true, 2, 0).unwrap();
        let (records, extensions) = (Slab::new(8), Extensions::new(2, 5));
        let before = frames.stats().free;
        let folio = frames.folio_for_models(order, &records).unwrap();
        let other = frames.folio_for_models(order, &records).unwrap();
        let of = |pfn| frames.described_for_models(pfn, &records).unwrap();
        assert!(frames.grow_for_models(of(other), &extensions, 1));
        // The first touch makes a word known: those of slots, records and extensions.
        for frame in 0..before {
            if let Some(frame) = frames.memory().0[frame as usize].get() {
                frame.0.iter().for_each(|word| _ = word.load(Relaxed));
            }
        }
        Self { frames, records, extensions, folio }
    }

    fn folio(&self) -> Folio<'_> {
        self.frames.described_for_models(self.folio, &self.records).expect("it is found whether it has grown or not")
    }

    fn mapping(&self) -> Mapping {
        self.frames.mapping_for_models(self.folio())
    }

    /// As a stage-2 fault, or one of a nested root.
    fn count(&self, class: Class) {
        let most = if self.folio().order() == Order::BASE { 1 } else { class as usize };
        assert!(self.frames.grow_for_models(self.folio(), &self.extensions, most));
        let target = Target::new(&self.frames, self.folio(), COUNT_LIMIT);
        let batch = Batch { class, ..pages(1, 0, 1, Order::BASE) };
        Classes::<Total>::add(&target, &batch, Neighbours::default()).unwrap();
    }

    fn leaves(&self, class: Class) -> u64 {
        let target = Target::new(&self.frames, self.folio(), COUNT_LIMIT);
        Total::leaves(&Classes::<Total>::class(&target, class)).value().unwrap()
    }
}

/// Two CPUs make one folio grow, while one of them changes a flag and both ask where it belongs: nothing of that is lost, and what each counts is there.
#[test]
fn two_cpus_make_one_folio_grow() {
    let expected = Mapping { object: 1, index: 0 };
    for (order, classes) in [
        (Order::BASE, [Class::Vm, Class::Vm]),
        (Order::BASE, [Class::Vm, Class::Nested]),
        (PAIR, [Class::Vm, Class::Vm]),
        (PAIR, [Class::Vm, Class::Nested]),
    ] {
        explore("growing", move || {
            let world = Arc::new(Growing::new(order));
            let other = Arc::clone(&world);
            let cpu = loom::thread::spawn(move || {
                other.count(classes[1]);
                assert_eq!(other.mapping(), expected);
            });
            world.folio().set_flags(FolioFlags::DIRTY);
            assert_eq!(world.mapping(), expected);
            world.count(classes[0]);
            world.folio().set_flags(FolioFlags::QUEUED);
            cpu.join().unwrap();
            assert_eq!(world.mapping(), expected);
            assert!(world.folio().flags().has(FolioFlags::ANON.or(FolioFlags::DIRTY).or(FolioFlags::QUEUED)));
            let is_small = order == Order::BASE;
            let one = if classes[0] == classes[1] || is_small { 1 } else { 2 };
            let in_use = if is_small { [one + 1, 0] } else { [0, one + 1] };
            assert_eq!(world.extensions.in_use(), in_use, "what one CPU had too many is given back");
            for class in classes {
                let leaves = classes.iter().filter(|&&other| other == class).count() as u64;
                assert_eq!(world.leaves(class), leaves);
            }
        });
    }
}

/// Two regions map the folio; a third comes and goes while one of the two goes. Either the third was the second, or *many* stays; it is never below the truth.
#[test]
fn many_stays() {
    let start = || {
        let world = World::new(PAIR);
        add_to_unit::<ZeroOneTwoMany>(&world, 0, 0);
        add_to_unit::<ZeroOneTwoMany>(&world, 1, 2);
        world
    };
    let third = |world: &World| {
        add_to_unit::<ZeroOneTwoMany>(world, 2, 4);
        assert!(ZeroOneTwoMany::state(&world.target()) >= 2, "two regions at least");
        remove_from_unit::<ZeroOneTwoMany>(world, 2, 4);
    };
    let second = |world: &World| remove_from_unit::<ZeroOneTwoMany>(world, 1, 2);
    race("zero-one-two-many", 3, start, third, second, |world| {
        let state = ZeroOneTwoMany::state(&world.target());
        assert!(matches!(state, 1 | ZeroOneTwoMany::MANY), "{state}");
        ZeroOneTwoMany::repair(&world.target(), 1);
        is::<ZeroOneTwoMany>(world, 1);
        remove_from_unit::<ZeroOneTwoMany>(world, 0, 0);
        is::<ZeroOneTwoMany>(world, 0);
    });
}

/// A repair while faults come: it holds the space exclusively over the walk and the store, a fault holds it shared. A fault that came between the two would be lost.
#[test]
fn a_repair_excludes_faults() {
    let start = || {
        let world = World::new(PAIR);
        for unit in 0..3 {
            add_to_unit::<ZeroOneTwoMany>(&world, unit, 2 * unit);
        }
        remove_from_unit::<ZeroOneTwoMany>(&world, 2, 4);
        remove_from_unit::<ZeroOneTwoMany>(&world, 1, 2);
        assert_eq!(ZeroOneTwoMany::state(&world.target()), ZeroOneTwoMany::MANY, "one region is left of three");
        world
    };
    // The lock of unit 2 is the space's here.
    let fault = |world: &World| {
        let _space = read_lock(&world.locks[2]);
        add_to_unit::<ZeroOneTwoMany>(world, 1, 2);
    };
    let repair = |world: &World| {
        let _space = write_lock(&world.locks[2]);
        let regions = (0..2).filter(|&unit| world.is_present(2 * unit)).count() as u64;
        ZeroOneTwoMany::repair(&world.target(), regions);
    };
    race("zero-one-two-many", 3, start, fault, repair, |world| {
        let state = ZeroOneTwoMany::state(&world.target());
        // A region that comes to *many* leaves it so.
        assert!(matches!(state, 2 | ZeroOneTwoMany::MANY), "{state}");
        ZeroOneTwoMany::repair(&world.target(), 2);
        is::<ZeroOneTwoMany>(world, 2);
    });
}

/// Tables in frames that are their own number.
struct Walked {
    memory: Lazy,
    locks: [AtomicU64; Self::FRAMES],
    tables: AtomicUsize,
}

impl Walked {
    const FRAMES: usize = 8;
    const ROOT: Pfn = Pfn::new(0);

    fn new() -> Self {
        let memory = Lazy((0..Self::FRAMES).map(|_| OnceLock::new()).collect());
        Self { memory, locks: [const { AtomicU64::new(0) }; Self::FRAMES], tables: AtomicUsize::new(1) }
    }
}

impl Tables for Walked {
    type Guard<'a> = WordGuard<'a>;

    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.memory.frame(table).0
    }
    fn lock(&self, table: Pfn) -> WordGuard<'_> {
        lock_word(&self.locks[table.raw() as usize])
    }
    fn alloc_table(&self) -> Option<Pfn> {
        Some(Pfn::new(self.tables.fetch_add(1, Relaxed) as u64))
    }
    fn free_table(&self, _table: Pfn, _cleared: bool) {}
}

impl Tlb for Walked {
    fn flush(&self, _root: Pfn, _scope: FlushScope) {}
}

/// Among leaves from the first entry of a table on, the MMU sets dirty in the one at `stored`, if it may still be written, while `work` changes them all.
/// What was set is in the leaf behind it, or `work` says that it found it; and what was not, is not.
fn no_bit_is_lost(
    what: &'static str,
    level: Level,
    leaves: usize,
    work: impl Fn(&Walked, &Part<'_, LongMode, Walked>) -> bool + Copy + Send + Sync + 'static,
) {
    let dirty = LongMode::set_bits(Attrs::DIRTY);
    let writable =
        LongMode::set_bits(Attrs::WRITE) | LongMode::leaf(Leaf { pfn: Pfn::new(0), attrs: Attrs::NONE }, level);
    // The others are as the one, or are settled, so that it ends and begins a stretch that is changed together.
    for (stored, others) in [(0, 0), (leaves - 1, 0), (0, dirty), (leaves / 2, dirty), (leaves - 1, dirty)] {
        let (in_time, too_late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = [Arc::clone(&too_late), Arc::clone(&in_time)];
        explore(what, move || {
            let world = Arc::new(Walked::new());
            let tree: PageTable<LongMode> = PageTable::new(Walked::ROOT);
            let part = tree.cursor(&*world, 0, level.table_pages()).open(level).unwrap();
            let attrs = Attrs::USER.or(Attrs::WRITE).or(Attrs::ACCESSED);
            part.install(0, leaves, Leaf { pfn: Pfn::new(512), attrs });
            let table = part.table();
            drop(part);
            let entries = world.entries(table);
            for entry in (0..leaves).filter(|&entry| entry != stored) {
                entries[entry].store(entries[entry].load(Relaxed) | others, Relaxed);
            }
            let mmu = Arc::clone(&world);
            let cpu = loom::thread::spawn(move || {
                let set = |raw: u64| (raw & writable == writable).then_some(raw | dirty);
                mmu.entries(table)[stored].fetch_update(AcqRel, Acquire, set).is_ok()
            });
            let part = tree.cursor(&*world, 0, level.table_pages()).open(level).unwrap();
            let found = work(&world, &part);
            drop(part);
            let is_stored = cpu.join().unwrap();
            count[usize::from(is_stored)].fetch_add(1, Relaxed);
            let leaf = tree.lookup(&*world, stored as u64 * level.entry_pages()).map(|(_, leaf)| leaf);
            let is_seen = found || leaf.is_some_and(|leaf| leaf.attrs.has(Attrs::DIRTY));
            // What is cleared together is known together: of dirty leaves nobody can tell which.
            let is_stored = is_stored || leaf.is_none() && leaves > 1 && others != 0;
            assert_eq!(is_seen, is_stored, "{what}: dirty of {stored} is lost, or nobody has set it");
        });
        assert!(in_time.load(Relaxed) > 0 && too_late.load(Relaxed) > 0, "{what}: the MMU is seen on one side only");
    }
}

/// Leaves that fill a chunk of those that are changed together, with one more; and one, which has ways of its own.
const LEAVES: [usize; 2] = [1, 9];

#[test]
fn a_leaf_that_is_cleared_loses_no_bit() {
    for leaves in LEAVES {
        no_bit_is_lost("clear", Level::ONE, leaves, move |_, part| part.clear(0, leaves).has(Attrs::DIRTY));
    }
}

#[test]
fn a_leaf_that_is_changed_loses_no_bit() {
    for leaves in LEAVES {
        no_bit_is_lost("change", Level::ONE, leaves, move |_, part| {
            part.change(0, leaves, Attrs::WRITE, Attrs::EXEC);
            false
        });
    }
}

#[test]
fn a_leaf_that_is_copied_loses_no_bit() {
    for leaves in LEAVES {
        no_bit_is_lost("copy", Level::ONE, leaves, move |tables, part| {
            let copy: PageTable<LongMode> = PageTable::new(tables.alloc_table().unwrap());
            let to = copy.cursor(tables, 0, 512).open(Level::ONE).unwrap();
            let mut i = 0;
            while i < leaves {
                let run = part.run(i, leaves - i, Attrs::ACCESSED_DIRTY);
                part.copy_to(i, run, &to, Attrs::WRITE);
                i += run.leaves;
            }
            assert!((0..leaves).all(|i| to.leaf(i).is_some_and(|leaf| !leaf.attrs.has(Attrs::WRITE))));
            false
        });
    }
}

#[test]
fn a_leaf_that_is_frozen_loses_no_bit() {
    for leaves in LEAVES {
        no_bit_is_lost("freeze", Level::ONE, leaves, move |_, part| {
            part.freeze(0, leaves);
            part.thaw(0, leaves);
            false
        });
    }
}

#[test]
fn a_leaf_that_is_split_loses_no_bit() {
    no_bit_is_lost("split", Level::TWO, 1, |tables, part| {
        let mut flush: Flush<()> = Flush::new();
        part.split(0, &mut flush, || ()).unwrap();
        flush.finish(tables, tables, Walked::ROOT, |_: &[()]| {});
        false
    });
}
