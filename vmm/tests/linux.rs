//! Agreement with the host's Linux: the same operations on its processes and on ours, and then page by page what `/proc` says beside what our statistics
//! say. Under `per-page` all of it, as this Linux counts every page; under `total` and `mm-owner` against what their rules make of Linux's pages.
//!
//! What is not compared, and why, is in SCHEMES.md, agreement with Linux.
#![expect(unsafe_code, reason = "processes that map and touch memory as they are told")]

mod host;
mod needs;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use host::{Host, HostPage, HostProcess, Snapshot};
use quire::addr::{Gva, Level, Order, Pfn};
use quire::mapcount::{Accounting, Scheme, Share, UnderScheme};
use quire::model::contents::Contents;
use quire::model::{Machine, ModelTenant};
use quire::space::{Advice, ObjectKind, Prot};
use quire::space::{LargeFolios, Manager, PAGES_END, Policy};
use quire::stats::{Fill, PagemapEntry, Smaps};
use quire::trace::{Backing, MAX_DEVICE_PAGES, MapKind, Op, Replay};
use quire_fixtures::history;

/// Where scripts map: a multiple of 2 MiB.
const BASE: u64 = 0x20_0000;
/// Where histories map, and scripts.
const WINDOWS: [Range<u64>; 3] =
    [BASE..BASE + 8192, 0x4_0000 - 4096..0x4_0000 + 4096, 0x7_0000_0000 - 4096..0x7_0000_0000 + 4096];
/// Frames of our machine.
const FRAMES: u64 = 16 * 1024;

/// What Linux counts here, what it counts with CONFIG_NO_PAGE_MAPCOUNT, and what may come of that.
const SCHEMES: [Scheme; 3] = [Scheme::PerPage, Scheme::MmOwner, Scheme::Total];

const RW: Prot = Prot { read: true, write: true, exec: false };
const R: Prot = Prot { read: true, write: false, exec: false };

/// As Linux with `transparent_hugepage/enabled` at `madvise` and all other sizes at `never`.
const ADVISED: Policy =
    Policy { orders: 1 | 1 << Order::HUGE.get(), large: LargeFolios::Advised, max_leaf: Level::TWO };

/// What our statistics say of a process.
struct Ours {
    vmas: Vec<(Range<u64>, Smaps)>,
    pages: BTreeMap<u64, (PagemapEntry, Option<u64>)>,
}

/// The operations on our side under a scheme; what the statistics say after each of them.
struct OurSide<'a>(&'a [Op]);

impl UnderScheme for OurSide<'_> {
    type Output = Vec<BTreeMap<u32, Ours>>;

    fn run<A: Accounting>(self) -> Self::Output {
        let machine = Machine::new(FRAMES + MAX_DEVICE_PAGES);
        let manager = Manager::<_, A>::new(&machine, &[Pfn::new(0)..Pfn::new(FRAMES)], true, ADVISED).unwrap();
        let mut replay = Replay::new(&manager, Pfn::new(FRAMES)).unwrap();
        let mut tenant = ModelTenant::new(&machine, 1, || 0);
        let mut procs = BTreeSet::new();
        let mut step = |op: &Op| {
            replay.step(op, &mut tenant).unwrap_or_else(|error| panic!("{op}: {error}"));
            match *op {
                Op::Start { proc } => drop(procs.insert(proc)),
                Op::Fork { child, .. } => drop(procs.insert(child)),
                Op::Exit { proc } => drop(procs.remove(&proc)),
                _ => {}
            }
            procs.iter().map(|&proc| (proc, ours(&manager, replay.space(proc).unwrap()))).collect()
        };
        self.0.iter().map(&mut step).collect()
    }
}

fn ours<A: Accounting>(manager: &Manager<&Machine, A>, space: quire::space::SpaceId) -> Ours {
    let mut ours = Ours { vmas: Vec::new(), pages: BTreeMap::new() };
    manager.smaps(space, Fill::Scheme, |vma, smaps| ours.vmas.push((vma.start()..vma.end(), *smaps)));
    manager.pagemap(space, 0..PAGES_END, Fill::Scheme, |page, entry| {
        ours.pages.insert(page, (entry, None));
    });
    for (entry, count) in ours.pages.values_mut() {
        *count = manager.kpagecount(entry.pfn, Fill::Scheme).value();
    }
    ours
}

/// What a scheme is to say of a page of Linux, by its rules: leaves over it, and whether it is one owner's.
fn expected(scheme: Scheme, page: &HostPage) -> (u64, bool) {
    let folio = page.folio;
    match scheme {
        _ if scheme == Scheme::PerPage || folio.pages == 1 => (page.count, page.count == 1),
        // The average of the folio, rounded to the nearest, at least 1; private is what only one owner maps.
        _ => (((folio.total + folio.pages / 2) / folio.pages).max(1), folio.owners == 1),
    }
}

/// Whether a scheme with two slots may call the page shared though it has one owner: a third one came once, and stayed.
fn may_err(scheme: Scheme, page: &HostPage) -> bool {
    scheme != Scheme::PerPage && page.folio.pages > 1 && page.folio.was_crowded
}

macro_rules! same {
    ($ours:expr, $linux:expr, $($what:tt)*) => {
        let (ours, linux) = ($ours, $linux);
        if ours != linux {
            return Err(format!("{}: we say {ours:?}, Linux {linux:?}", format_args!($($what)*)));
        }
    };
}

/// Compares one process under one scheme.
fn compare(scheme: Scheme, linux: &HostProcess, ours: &Ours) -> Result<(), String> {
    same!(ours.pages.keys().collect::<Vec<_>>(), linux.pages.keys().collect::<Vec<_>>(), "pages that are present");
    for ((page, (entry, count)), host) in ours.pages.iter().zip(linux.pages.values()) {
        let (leaves, exclusive) = expected(scheme, host);
        same!(*count, Some(leaves), "leaves over page {page:#x}");
        if !(may_err(scheme, host) && entry.exclusive.value() == Some(false)) {
            same!(entry.exclusive.value(), Some(exclusive), "exclusive bit of page {page:#x}");
        }
        same!(entry.is_file, host.is_file, "file bit of page {page:#x}");
        // Linux says of every page that a 2 MiB leaf maps what holds of the first one, since v6.15.
        let of_first = host.folio.pages > 1 && host.exclusive == (host.folio.first == 1);
        if host.exclusive != (host.count == 1) && !of_first {
            return Err(format!("Linux's own exclusive bit of page {page:#x} does not follow from its count"));
        }
    }
    // Linux joins vmas by rules of its own: compare between ends of vmas that both sides have.
    let of_linux: BTreeSet<_> = linux.vmas.iter().flat_map(|vma| [vma.start, vma.end]).collect();
    let of_ours: BTreeSet<_> = ours.vmas.iter().flat_map(|(range, _)| [range.start, range.end]).collect();
    let ends: Vec<_> = of_linux.intersection(&of_ours).copied().collect();
    for range in ends.windows(2).map(|ends| ends[0]..ends[1]) {
        compare_range(scheme, &range, linux, ours).map_err(|why| format!("vma at {:#x}: {why}", range.start))?;
    }
    let all = 4 * ours.vmas.iter().map(|(_, smaps)| smaps.size).sum::<u64>();
    same!(all, linux.vmas.iter().map(|vma| vma.fields["Size"]).sum::<u64>(), "size of all vmas");
    Ok(())
}

fn compare_range(scheme: Scheme, range: &Range<u64>, linux: &HostProcess, ours: &Ours) -> Result<(), String> {
    let vmas: Vec<_> = linux.vmas.iter().filter(|vma| range.contains(&vma.start)).collect();
    let kb = |names: &[&str]| -> u64 { vmas.iter().flat_map(|vma| names.iter().map(|&name| vma.fields[name])).sum() };
    let in_range = ours.vmas.iter().filter(|(own, _)| range.contains(&own.start));
    let smaps = in_range.fold(Smaps::default(), |sum, (_, smaps)| sum.plus(smaps));
    let told = |answer: quire::mapcount::Answer<u64>| answer.value().map(|pages| pages * 4);
    for (name, pages) in [
        ("Size", smaps.size),
        ("Rss", smaps.rss),
        ("Anonymous", smaps.anonymous),
        ("AnonHugePages", smaps.anon_huge),
        ("ShmemPmdMapped", smaps.shmem_pmd),
        ("FilePmdMapped", smaps.file_pmd),
    ] {
        same!(pages * 4, kb(&[name]), "{name}");
    }
    let pss = smaps.pss.value().ok_or("no Pss")? as f64 * 4.0 / f64::from(1 << Share::SHIFT);
    if scheme == Scheme::PerPage {
        // Linux rounds down to kB in every vma.
        let host = kb(&["Pss"]) as f64;
        if !(host - 0.01..host + vmas.len() as f64 + 0.01).contains(&pss) {
            return Err(format!("Pss: we say {pss} kB, Linux {host} in {} vmas", vmas.len()));
        }
        let shared = quire::stats::sum(smaps.shared_clean, smaps.shared_dirty);
        same!(told(shared), Some(kb(&["Shared_Clean", "Shared_Dirty"])), "Shared_*");
        same!(told(smaps.uss()), Some(kb(&["Private_Clean", "Private_Dirty"])), "Private_*");
        if smaps.anonymous == smaps.rss {
            for (name, answer) in [
                ("Shared_Clean", smaps.shared_clean),
                ("Shared_Dirty", smaps.shared_dirty),
                ("Private_Clean", smaps.private_clean),
                ("Private_Dirty", smaps.private_dirty),
            ] {
                same!(told(answer), Some(kb(&[name])), "{name}");
            }
        }
    } else {
        let pages = || linux.pages.range(range.clone()).map(|(_, page)| page);
        let share: f64 = pages().map(|page| 4.0 / expected(scheme, page).0 as f64).sum();
        if (pss - share).abs() > 0.01 {
            return Err(format!("Pss: we say {pss} kB, the rule {share}"));
        }
        let private = pages().filter(|page| expected(scheme, page).1);
        let unsure = private.clone().filter(|page| may_err(scheme, page)).count() as u64;
        let (private, uss) = (private.count() as u64, smaps.uss().value().ok_or("no Uss")?);
        if !(private - unsure..=private).contains(&uss) {
            return Err(format!("Uss: we say {uss} pages, the rule {private}, but for {unsure}"));
        }
    }
    Ok(())
}

/// Executes `ops` on Linux until one is refused; what it said after each.
fn on_linux(ops: &[Op]) -> Vec<Snapshot> {
    let mut host = Host::new(ops);
    let mut crowded = BTreeSet::new();
    let mut look = |op| {
        host.step(op).ok()?;
        let mut snapshot = host.look(&WINDOWS);
        for folio in snapshot.values_mut().flat_map(|process| process.pages.values_mut()).map(|page| &mut page.folio) {
            if folio.owners > 2 {
                crowded.insert(folio.head);
            }
            folio.was_crowded = crowded.contains(&folio.head);
        }
        Some(snapshot)
    };
    ops.iter().map_while(&mut look).collect()
}

/// Whether from this store on the sides have other folios: where a table stands in which nothing is mapped any more, ours maps a folio of 2 MiB by 512 leaves,
/// and Linux, which gives 2 MiB only where there is no table, one page.
fn part(op: &Op, linux: &Snapshot, ours: &BTreeMap<u32, Ours>) -> bool {
    let Op::Access { proc, at, pages, write: true } = *op else { return false };
    let blocks = at.page() >> 9..=(at.page() + pages - 1) >> 9;
    let mut more = ours[&proc].pages.keys().filter(|page| !linux[&proc].pages.contains_key(page)).peekable();
    more.peek().is_some() && more.all(|page| blocks.contains(&(page >> 9)))
}

/// Once on Linux, and on our side under each scheme. How many operations both did alike.
fn attempt(ops: &[Op], schemes: &[Scheme]) -> Result<usize, String> {
    let mut linux = on_linux(ops);
    for &scheme in schemes {
        let ours = scheme.run(OurSide(&ops[..linux.len()]));
        let end = ops.iter().zip(&linux).zip(&ours).position(|((op, linux), ours)| part(op, linux, ours));
        linux.truncate(end.unwrap_or(linux.len()));
        for (i, (linux, ours)) in linux.iter().zip(&ours).enumerate() {
            let wrong = |why| format!("under `{scheme}`, after operation {i}, `{}`: {why}", ops[i]);
            same!(ours.keys().collect::<Vec<_>>(), linux.keys().collect::<Vec<_>>(), "processes");
            for ((proc, linux), ours) in linux.iter().zip(ours.values()) {
                compare(scheme, linux, ours).map_err(|why| wrong(format!("process {proc}: {why}")))?;
            }
        }
    }
    Ok(linux.len())
}

/// Linux's own housekeeping may come between: khugepaged, reclaim, or a huge page that is not to be had. What is really different stays so.
fn agrees(ops: &[Op], schemes: &[Scheme]) -> usize {
    attempt(ops, schemes).or_else(|_| attempt(ops, schemes)).unwrap_or_else(|why| panic!("{why}"))
}

/// A script: whole, under all three schemes.
fn script(ops: &[Op]) {
    if needs::linux() {
        assert_eq!(agrees(ops, &SCHEMES), ops.len(), "Linux refused one, or took other folios");
    }
}

// --- scripts; pages count from BASE ------------------------------------------------------------------------------------

fn at(page: u64) -> Gva {
    Gva::from_page(BASE + page)
}

fn start(proc: u32) -> Op {
    Op::Start { proc }
}

fn anon(proc: u32, page: u64, pages: u64) -> Op {
    Op::Map { proc, at: at(page), pages, prot: RW, backing: Backing::Anon, kind: MapKind::Plain, fixed: false }
}

fn huge(proc: u32, page: u64, pages: u64) -> [Op; 3] {
    let advise = Op::Advise { proc, at: at(page), pages, advice: Advice::HugePage };
    [anon(proc, page, pages), advise, write(proc, page, pages)]
}

fn map(proc: u32, page: u64, pages: u64, prot: Prot, (object, offset, private): (u32, u64, bool)) -> Op {
    let backing = Backing::Object { object, offset, private };
    Op::Map { proc, at: at(page), pages, prot, backing, kind: MapKind::Plain, fixed: false }
}

fn object(object: u32, kind: ObjectKind, pages: u64) -> Op {
    Op::Object { object, kind, pages, order: Order::BASE }
}

fn write(proc: u32, page: u64, pages: u64) -> Op {
    Op::Access { proc, at: at(page), pages, write: true }
}

fn read(proc: u32, page: u64, pages: u64) -> Op {
    Op::Access { proc, at: at(page), pages, write: false }
}

fn fork(proc: u32, child: u32) -> Op {
    Op::Fork { proc, child }
}

fn exit(proc: u32) -> Op {
    Op::Exit { proc }
}

fn unmap(proc: u32, page: u64, pages: u64) -> Op {
    Op::Unmap { proc, at: at(page), pages }
}

fn drop_pages(proc: u32, page: u64, pages: u64) -> Op {
    Op::Advise { proc, at: at(page), pages, advice: Advice::DontNeed }
}

fn remap(proc: u32, from: u64, to: u64, pages: u64) -> Op {
    Op::Remap { proc, from: at(from), pages, to: at(to), new_pages: pages }
}

fn protect(proc: u32, page: u64, pages: u64, prot: Prot) -> Op {
    Op::Protect { proc, at: at(page), pages, prot }
}

#[test]
fn fork_and_exit_of_the_child() {
    script(&[start(0), anon(0, 0, 20), write(0, 0, 17), fork(0, 1), exit(1), write(0, 3, 1)]);
}

#[test]
fn fork_and_copy_of_one_page() {
    script(&[
        start(0),
        anon(0, 0, 20),
        write(0, 0, 20),
        fork(0, 1),
        write(1, 7, 1),
        write(0, 7, 1),
        exit(0),
        write(1, 8, 2),
    ]);
}

#[test]
fn a_huge_page_is_forked_and_the_child_stores_to_it() {
    let mut ops = vec![start(0)];
    ops.extend(huge(0, 0, 1024));
    ops.extend([fork(0, 1), write(1, 5, 1), write(0, 5, 1), write(0, 600, 2), exit(1)]);
    script(&ops);
}

#[test]
fn a_huge_page_outlives_its_first_owner() {
    let mut ops = vec![start(0)];
    ops.extend(huge(0, 0, 512));
    ops.extend([fork(0, 1), exit(0), write(1, 9, 3)]);
    script(&ops);
}

#[test]
fn parts_are_unmapped() {
    let mut ops = vec![start(0), anon(0, 2048, 32), write(0, 2048, 32), unmap(0, 2056, 8)];
    ops.extend(huge(0, 0, 1024));
    ops.extend([unmap(0, 500, 24), fork(0, 1), unmap(1, 0, 100), unmap(0, 1000, 24)]);
    script(&ops);
}

#[test]
fn one_file_page_in_two_vmas_of_one_space() {
    for kind in [ObjectKind::File, ObjectKind::Shared] {
        script(&[
            object(0, kind, 16),
            start(0),
            map(0, 0, 16, RW, (0, 0, false)),
            map(0, 64, 8, RW, (0, 4, false)),
            write(0, 0, 16),
            write(0, 64, 1),
            read(0, 64, 8),
            unmap(0, 2, 4),
        ]);
    }
}

#[test]
fn three_processes_share_a_file() {
    for kind in [ObjectKind::File, ObjectKind::Shared] {
        script(&[
            object(0, kind, 16),
            start(0),
            map(0, 0, 16, RW, (0, 0, false)),
            write(0, 0, 16),
            fork(0, 1),
            fork(1, 2),
            read(1, 0, 16),
            read(2, 0, 16),
            unmap(1, 4, 4),
            exit(0),
            write(2, 3, 1),
            exit(1),
        ]);
    }
}

#[test]
fn private_pages_of_a_file() {
    script(&[
        object(0, ObjectKind::File, 16),
        start(0),
        map(0, 0, 16, RW, (0, 0, true)),
        read(0, 0, 16),
        write(0, 3, 2),
        fork(0, 1),
        write(1, 3, 1),
        write(1, 10, 1),
        exit(0),
        drop_pages(1, 2, 4),
    ]);
}

#[test]
fn shared_memory_over_a_fork() {
    script(&[
        object(0, ObjectKind::Shared, 40),
        start(0),
        map(0, 0, 40, RW, (0, 0, false)),
        write(0, 0, 10),
        fork(0, 1),
        write(1, 5, 10),
        drop_pages(0, 0, 8),
        exit(1),
    ]);
}

#[test]
fn mremap_of_small_pages_and_of_huge_ones() {
    let mut ops = vec![start(0), anon(0, 4096, 32), write(0, 4096, 32), remap(0, 4100, 5000, 8), fork(0, 1)];
    ops.push(remap(1, 5000, 5100, 8));
    ops.push(write(1, 5100, 2));
    ops.extend(huge(0, 0, 1024));
    // Congruent, then not.
    ops.extend([remap(0, 0, 2048, 512), remap(0, 512, 2048 + 512 + 7, 512), write(0, 2048, 512)]);
    script(&ops);
}

#[test]
fn pages_are_dropped_and_come_again() {
    let mut ops = vec![start(0), anon(0, 2048, 16), write(0, 2048, 16), drop_pages(0, 2050, 5), write(0, 2052, 1)];
    ops.extend(huge(0, 0, 1024));
    // A part, which splits; and a whole.
    ops.extend([drop_pages(0, 3, 2), write(0, 0, 16), drop_pages(0, 512, 512), write(0, 600, 1), fork(0, 1)]);
    ops.extend([drop_pages(1, 100, 50), exit(0), write(1, 512, 8)]);
    script(&ops);
}

#[test]
fn protection_of_a_part() {
    let mut ops = vec![start(0)];
    ops.extend(huge(0, 0, 512));
    ops.extend([
        protect(0, 100, 50, R),
        fork(0, 1),
        write(1, 0, 3),
        protect(0, 100, 50, RW),
        write(0, 120, 1),
        exit(1),
    ]);
    script(&ops);
}

#[test]
fn three_generations_copy_each_their_part() {
    script(&[
        start(0),
        anon(0, 0, 30),
        write(0, 0, 30),
        fork(0, 1),
        write(1, 0, 10),
        fork(1, 2),
        write(2, 5, 10),
        fork(0, 3),
        exit(1),
        write(0, 0, 1),
        exit(0),
        write(3, 0, 30),
    ]);
}

/// A history as both sides can do it: no device, stack or heap, and stores only (the zero page and the pages that Linux maps around a read have no likeness
/// here). Objects in single pages; anonymous memory too, or in huge pages wherever they fit.
fn both_can(seed: u64, length: usize, huge: bool) -> Vec<Op> {
    let mut contents = Contents::default();
    let change = |op: Op| match op {
        Op::Object { object, kind, pages, .. } => vec![Op::Object { object, kind, pages, order: Order::BASE }],
        Op::Map { backing: Backing::Device { .. }, .. } | Op::Map { kind: MapKind::Stack, .. } => vec![],
        Op::Map { proc, at, pages, backing: Backing::Anon, .. } if huge => {
            vec![op, Op::Advise { proc, at, pages, advice: Advice::HugePage }]
        }
        Op::Advise { advice: Advice::HugePage, .. } if !huge => vec![],
        Op::Brk { .. } | Op::Share { .. } | Op::Exec { .. } => vec![],
        Op::Access { proc, at, pages, .. } => vec![Op::Access { proc, at, pages, write: true }],
        op => vec![op],
    };
    history(seed, length).into_iter().flat_map(change).filter(|op| contents.apply(op, seed).is_ok()).collect()
}

fn histories(seeds: Range<u64>, huge: bool) {
    if !needs::linux() {
        return;
    }
    let (mut done, mut asked) = (0, 0);
    for seed in seeds {
        let ops = both_can(seed, 100, huge);
        asked += ops.len();
        done += agrees(&ops, &SCHEMES);
    }
    // Linux refuses a move of what it has not joined to one vma, or takes other folios: the rest of such a history is left out.
    assert!(done * 2 > asked, "both did {done} of {asked} operations alike");
}

#[test]
fn histories_of_small_pages() {
    histories(0..10, false);
}

#[test]
fn histories_with_huge_pages() {
    histories(100..108, true);
}
