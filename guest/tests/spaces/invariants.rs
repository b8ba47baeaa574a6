//! The invariants that SCHEMES.md states, over random histories with every scheme observing: a million operations here, as many as `QUIRE_OPS` says in a long run,
//! which looks every `QUIRE_STEP` of them; `QUIRE_FIRST_SEED` is where the seeds begin.
//!
//! The recount holds every scheme's state and answers against the tables already; here the same facts are stated once more, one by one and between the schemes,
//! so that a mistake in the recount's own idea of a scheme would show.

use std::collections::HashMap;
use std::thread;

use quire::addr::{Gva, Level, Order};
use quire::audit::Recount;
use quire::folio::Folio;
use quire::format::Attrs;
use quire::mapcount::{
    self, Accounting, Answer, Everything, FullPartial, FullPartialCounters, MmOwner, MmOwnerCounters, Observe, Oracle,
    PerLevel, PerLevelCounters, PerPage, PerPageCounters, RmapIds, RmapIdsCounters, Target, Total, TotalCounters,
    Truth, Tuples, Vmas, ZeroOneTwoMany,
};
use quire::memory::Memory;
use quire::model::Machine;

use crate::replaying::{Checked, machine};
use quire::space::{Manager, PAGES_END, Policy, Prot, SpaceId, VmaFlags};
use quire::stats::Fill;
use quire::trace::Replay;
use quire_fixtures::history;

const LENGTH: usize = 2000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What all schemes know of one folio.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    total: Option<TotalCounters>,
    average: [Option<u64>; 2],
    partly: [Option<bool>; 2],
    mapped_pages: [Option<u64>; 2],
    exclusive: Vec<(&'static str, bool)>,
    levels: Option<PerLevelCounters>,
    per_page: Option<PerPageCounters>,
    pages: Vec<u32>,
    visible: Option<u64>,
    mm_owner: Option<MmOwnerCounters>,
    ids: Option<RmapIdsCounters>,
    tuples: u32,
    vmas: u32,
    full_partial: Option<FullPartialCounters>,
    partial_pages: Vec<u32>,
}

impl Known {
    fn calls_exclusive(&self, scheme: &str) -> bool {
        self.exclusive.iter().any(|&(name, alone)| name == scheme && alone)
    }
}

trait Knows: Accounting {
    fn tell<M: Memory>(_t: &Target<'_, M>, _owner: u32, _known: &mut Known) {}
}

/// Whether the scheme is sure that `owner` is the only one.
fn exclusive<A: Accounting, M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
    let alone = matches!(A::maybe_shared(t, owner), Answer::Exact(false) | Answer::Errs(false));
    known.exclusive.push((A::NAME, alone));
}

impl Knows for Total {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.total = Some(Self::counters(t));
        known.average[0] = Self::page_count(t, 0).value();
        known.partly[0] = Self::partially_mapped(t).value();
        known.mapped_pages[0] = Self::mapped_pages(t).value();
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for MmOwner {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.mm_owner = Some(Self::counters(t));
        known.average[1] = Self::page_count(t, 0).value();
        known.partly[1] = Self::partially_mapped(t).value();
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for PerLevel {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.levels = Some(Self::counters(t));
        known.mapped_pages[1] = Self::mapped_pages(t).value();
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for PerPage {
    fn tell<M: Memory>(t: &Target<'_, M>, _owner: u32, known: &mut Known) {
        known.per_page = Some(Self::counters(t));
        known.pages = (0..t.pages()).map(|page| Self::page(t, page)).collect();
        known.visible = Self::mapped_pages(t).value();
    }
}
impl Knows for RmapIds {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.ids = Some(Self::counters(t));
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for Tuples {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.tuples = Self::count(t);
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for Vmas {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.vmas = Self::count(t);
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for FullPartial {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        known.full_partial = Some(Self::counters(t));
        known.partial_pages = (0..t.pages()).map(|page| Self::page(t, page)).collect();
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for ZeroOneTwoMany {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        exclusive::<Self, M>(t, owner, known);
    }
}
impl Knows for mapcount::None {}
impl Knows for Oracle {}
impl<A: Knows, B: Knows> Knows for Observe<A, B> {
    fn tell<M: Memory>(t: &Target<'_, M>, owner: u32, known: &mut Known) {
        A::tell(&Self::first(t), owner, known);
        B::tell(&Self::second(t), owner, known);
    }
}

type World<'m> = Manager<&'m Machine, Everything>;

fn known(manager: &World<'_>, folio: Folio<'_>, owner: u32) -> Known {
    let mut known = Known::default();
    Everything::tell(&manager.counts(folio), owner, &mut known);
    known
}

fn folios<'a>(manager: &'a World<'_>) -> impl Iterator<Item = Folio<'a>> {
    let span = manager.frames().span();
    (span.start.raw()..span.end.raw()).filter_map(|pfn| {
        let pfn = quire::addr::Pfn::new(pfn);
        manager.folio(pfn).filter(|folio| folio.head() == pfn)
    })
}

/// The leaves of every folio in every space, found by walking the tables.
fn leaves_by_owner(manager: &World<'_>) -> HashMap<(u64, u32), u64> {
    let mut leaves = HashMap::new();
    for space in manager.spaces() {
        manager.page_table(space).for_each_leaf(manager, PAGES_END, &mut |_, leaf| {
            if !leaf.attrs.has(Attrs::UNTRACKED) {
                let folio = manager.folio(leaf.pfn).expect("a tracked leaf maps a folio");
                *leaves.entry((folio.head().raw(), space.raw())).or_insert(0) += 1;
            }
        });
    }
    leaves
}

/// Every invariant of one folio at one moment.
fn hold(folio: Folio<'_>, truth: &Truth, covers: &[u64], known: &Known, by_owner: &HashMap<(u64, u32), u64>) {
    let pages = folio.pages();
    let large = folio.order() > Order::BASE;
    let Known { total, levels, per_page, mm_owner, ids, full_partial, .. } = known;
    let (total, levels, per_page) = (total.unwrap(), levels.unwrap(), per_page.unwrap());
    let (mm_owner, ids, full_partial) = (mm_owner.unwrap(), ids.unwrap(), full_partial.unwrap());

    assert!(truth.is_coherent(pages), "I1: T >= M >= K >= V >= O");
    for (leaves, pages) in
        [(total.leaves, total.pages), (levels.leaves, levels.pages), (mm_owner.leaves, mm_owner.pages)]
    {
        assert_eq!((leaves, pages), (truth.leaves, truth.total), "I1: M and T");
    }
    assert_eq!(ids.leaves, truth.leaves, "I1: M of rmap-ids");
    assert_eq!((total.pages - total.leaves) % 511, 0, "I2: T - M");
    assert_eq!(known.visible, Some(truth.distinct), "I3: the statistic is U");
    if large {
        let PerPageCounters { entire, leaves, between, .. } = per_page;
        let sum: u64 = known.pages.iter().map(|&count| u64::from(count)).sum();
        assert_eq!(u64::from(leaves) + 511 * u64::from(between), u64::from(entire) + sum, "I3: M of the pages");
        for (page, &cover) in covers.iter().enumerate() {
            assert_eq!(u64::from(entire + known.pages[page]), cover, "I3: page {page}");
            assert_eq!(full_partial.full + u64::from(known.partial_pages[page]), cover, "I4: page {page}");
        }
        let no_pages = known.partial_pages.iter().all(|&count| count == 0);
        assert!(full_partial.partial > 0 || no_pages, "I4: pages counted though no region is partial");

        for (slots, shared) in
            [(total.slots, total.shared), (levels.slots, levels.shared), (mm_owner.slots, mm_owner.shared)]
        {
            for (owner, count) in slots.into_iter().filter(|slot| slot.0 != 0) {
                let has = by_owner.get(&(folio.head().raw(), owner)).copied().unwrap_or(0);
                assert!(count <= has, "I6: a slot of {count} where its owner has {has}");
            }
            assert!(slots[0].0 != slots[1].0 || slots[0].0 == 0, "I6: one owner twice");
            assert!(truth.owners < 2 || shared, "I7: two owners, and not shared");
            assert!(shared || truth.leaves == 0 || truth.owners == 1, "I7: not shared, and not one owner");
            assert!(truth.leaves > 0 || (slots == [(0, 0); 2] && !shared), "I8: slots of an unmapped folio");
        }
    }
    assert!(folio.refs() >= truth.leaves, "I9: fewer references than leaves");
    if 0 < truth.total && truth.total < pages {
        assert!(truth.distinct < pages, "I10: T < P, and all is mapped");
    }
    if truth.owners == 1 && covers.iter().all(|&cover| cover <= 1) {
        assert_eq!(truth.distinct < pages, truth.total < pages, "I10: one owner, every page once");
    }
    if folio.order() <= Order::HUGE {
        let huge = (total.pages - total.leaves) / 511;
        assert_eq!([total.leaves - huge, huge, 0], truth.levels, "I11: leaves by T and M");
    }
    assert_eq!(
        [levels.leaves - levels.extent.two - levels.extent.three, levels.extent.two, levels.extent.three],
        truth.levels
    );
    assert_eq!(u64::from(known.tuples), truth.tuples, "I13: K");
    assert_eq!(u64::from(known.vmas), truth.regions, "V");
    assert_eq!(known.average[0], known.average[1], "I14: averages");
    assert_eq!(known.partly[0], known.partly[1], "I14: partly mapped");
    for &(scheme, alone) in &known.exclusive {
        assert!(!alone || truth.owners <= 1, "I15: {scheme} calls it exclusive");
    }

    // D12: our own scheme is never further from the truth than `total`.
    let [of_total, ours] = known.mapped_pages.map(|pages| pages.expect("an answer"));
    assert!(truth.distinct <= ours && ours <= of_total, "D12: mapped pages");
    assert_eq!(ours, if large { truth.total.min(pages) } else { truth.distinct });
}

/// The invariants of every folio.
fn look(checked: &Checked<'_, Everything>, recount: &Recount) {
    let manager = &checked.manager;
    let audit = recount.run(manager);
    assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
    let leaves = leaves_by_owner(manager);
    for folio in folios(manager) {
        let truth = recount.truth(manager, folio);
        let covers: Vec<_> = (0..folio.pages()).map(|page| recount.cover(manager, folio, page)).collect();
        let known = known(manager, folio, truth.owner);
        hold(folio, &truth, &covers, &known, &leaves);
        // D12: what `total` knows to be one owner's, `per-level` knows too, at the latest when somebody looks.
        if known.calls_exclusive("total") && !known.calls_exclusive("per-level") {
            let owner = manager.spaces().find(|space| space.raw() == truth.owner).expect("the owner");
            manager.smaps_rollup(owner, Fill::Scheme);
            assert!(self::known(manager, folio, truth.owner).calls_exclusive("per-level"), "D12: `total` knows better");
        }
    }
}

/// What all schemes know of all folios, without what may stay behind when a mapping comes and goes: the shared bits and the answers that hang on them.
fn snapshot(manager: &World<'_>) -> HashMap<u64, Known> {
    let mut all = HashMap::new();
    for folio in folios(manager) {
        let mut known = known(manager, folio, 0);
        known.exclusive.clear();
        for shared in [
            known.total.as_mut().map(|counters| &mut counters.shared),
            known.levels.as_mut().map(|counters| &mut counters.shared),
            known.mm_owner.as_mut().map(|counters| &mut counters.shared),
        ] {
            *shared.expect("counters") = false;
        }
        all.insert(folio.head().raw(), known);
    }
    all
}

/// I12: what a fork adds its child's end takes away.
fn fork_and_exit(manager: &World<'_>, machine: &Machine, space: SpaceId) {
    let before = snapshot(manager);
    let Ok(child) = manager.fork(space) else { return };
    assert!(manager.leave_space(child));
    machine.leave(manager.root(child));
    manager.destroy_space(child);
    assert_eq!(snapshot(manager), before, "I12");
}

/// I5: splits and collapses of leaves change neither T, U, V nor O.
fn split_and_collapse(manager: &World<'_>, space: SpaceId, recount: &Recount) {
    let quantities = |manager: &World<'_>| {
        recount.run(manager);
        let of = |truth: Truth| (truth.total, truth.distinct, truth.regions, truth.owners);
        folios(manager).map(|folio| (folio.head(), of(recount.truth(manager, folio)))).collect::<Vec<_>>()
    };
    let mut huge = Vec::new();
    manager.page_table(space).for_each_leaf(manager, PAGES_END, &mut |place, _| {
        if place.level == Level::TWO {
            huge.push(place.page);
        }
    });
    let Some(&page) = huge.first() else { return };
    let vma = manager.vmas(space).find(|vma| vma.start() <= page && page < vma.end()).expect("a leaf has a vma");
    let has = |flag| vma.flags().has(flag);
    let prot = Prot { read: has(VmaFlags::READ), write: has(VmaFlags::WRITE), exec: has(VmaFlags::EXEC) };
    // A shared mapping that may be written tells dirty pages by a fault: another protection would be seen.
    let other = Prot { exec: !prot.exec, ..prot };
    let before = quantities(manager);
    manager.protect(space, Gva::from_page(page + 256), 256, other).expect("splits never fail");
    manager.protect(space, Gva::from_page(page + 256), 256, prot).expect("splits never fail");
    assert_eq!(quantities(manager), before, "I5: split");
    if manager.collapse(space, Gva::from_page(page)) {
        assert_eq!(quantities(manager), before, "I5: collapse");
    }
}

fn policies() -> [Policy; 4] {
    [
        Policy::up_to(Order::new(4)),
        Policy::up_to(Order::HUGE),
        Policy { max_leaf: Level::ONE, ..Policy::only(Order::HUGE) },
        Policy::only(Order::HUGE),
    ]
}

/// Says which history it was, when it fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("history of seed {}", self.0);
        }
    }
}

fn run(seed: u64, step: usize) {
    let _seed = Seed(seed);
    let machine = machine();
    let checked = Checked::<Everything>::new(&machine, policies()[(seed % 4) as usize], seed);
    let recount = checked.recount_only();
    checked.run_every(step, &history(seed, LENGTH), |checked, _: &Replay<'_, &Machine, Everything>, i| {
        if i % step != step - 1 {
            return;
        }
        look(checked, &recount);
        let spaces: Vec<_> = checked.manager.spaces().collect();
        let space = spaces[i / step % spaces.len().max(1)];
        // A child needs the parent's exclusive bits, and the reference of contents does not mind.
        fork_and_exit(&checked.manager, &machine, space);
        split_and_collapse(&checked.manager, space, &recount);
    });
}

/// At least 10^6 operations, on two threads.
#[test]
fn over_a_million_operations() {
    let (ops, step) = (number("QUIRE_OPS", 1_000_000), number("QUIRE_STEP", 80) as usize);
    let first_seed = number("QUIRE_FIRST_SEED", 0);
    let seeds = first_seed + ops.div_ceil(LENGTH as u64);
    thread::scope(|scope| {
        for first in 0..2 {
            scope.spawn(move || {
                (first_seed + first..seeds).step_by(2).for_each(|seed| {
                    if seeds > 1000 && seed % 1000 < 2 {
                        println!("seed {seed} of {seeds}");
                    }
                    run(seed, step);
                })
            });
        }
    });
}
