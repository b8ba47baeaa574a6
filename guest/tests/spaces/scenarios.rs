//! The worked scenarios of `SCHEMES.md`, caused as a tenant would cause them: every counter and answer must be what the tables there
//! say, under every scheme alone and under all at once. The tables are read from that file, so it cannot lie.

use std::sync::atomic::Ordering::Relaxed;

use quire::addr::{Gva, Level, Order, Pfn};
use quire::audit::Recount;
use quire::folio::{Folio, FolioFlags};
use quire::mapcount::{
    Accounting, Answer, Everything, FullPartial, MmOwner, None, Observe, Oracle, PerLevel, PerPage, Refused, RmapIds,
    Target, Total, Tuples, Vmas, ZeroOneTwoMany,
};
use quire::model::{Machine, ModelTenant};
use quire::space::{
    Access, Advice, FaultError, Manager, Map, MapError, ObjectId, ObjectKind, PAGES_END, Policy, Prot, SpaceId,
};
use quire::trace::Tenant;

const FRAMES: u64 = 4096;
const READ: Prot = Prot { read: true, write: false, exec: false };
const READ_WRITE: Prot = Prot { read: true, write: true, exec: false };
/// Where things are mapped: a 1 GiB border.
const AT: Gva = Gva::new(1 << 30);
const ELSEWHERE: Gva = Gva::new(3 << 30);

/// The cells of `scenario` in the table under `heading`, without the first.
fn row(heading: &str, scenario: &str) -> Vec<&'static str> {
    let text = include_str!("../../SCHEMES.md");
    let (_, section) = text.split_once(&format!("\n### {heading}\n")).expect("the heading");
    let section = section.split("\n#").next().unwrap_or(section);
    let line = section
        .lines()
        .find(|line| line.strip_prefix("| ").and_then(|line| line.split(' ').next()) == Some(scenario))
        .unwrap_or_else(|| panic!("no row {scenario} under {heading}"));
    line.split('|').skip(2).map(str::trim).collect()
}

/// The parts of a cell such as `yes / no`.
fn parts(cell: &'static str) -> Vec<&'static str> {
    cell.split('/').map(str::trim).collect()
}

/// Consecutive equal values, as `value x pages`.
fn runs(values: impl Iterator<Item = u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for value in values {
        match runs.last_mut() {
            Some((last, pages)) if *last == value => *pages += 1,
            _ => runs.push((value, 1)),
        }
    }
    runs.iter().map(|(value, pages)| format!("{value}x{pages}")).collect::<Vec<_>>().join(" ")
}

fn yes(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

fn pages<T: ToString>(answer: Answer<T>) -> String {
    answer.value().map_or("?".into(), |n| n.to_string())
}

fn said(answer: Answer<bool>) -> &'static str {
    answer.value().map_or("?", yes)
}

fn exclusive(answer: Answer<bool>) -> &'static str {
    answer.value().map_or("?", |shared| yes(!shared))
}

/// Owner slots as the tables show them.
fn slots(slots: [(u32, u64); 2], shared: bool, name: &dyn Fn(u32) -> &'static str) -> String {
    let slots: Vec<_> = slots.iter().filter(|slot| slot.0 != 0).map(|s| format!("{}:{}", name(s.0), s.1)).collect();
    format!("{}; {}", slots.join(" "), yes(shared))
}

/// The rows of one scenario, beside what a scheme says.
struct Rows {
    counters: Vec<&'static str>,
    answers: Vec<&'static str>,
    others: Vec<&'static str>,
}

/// Leaves larger than a page and smaller than the folio, as M and T have it beside `entire` larger ones.
fn between(t: &Target<'_, &Machine>, rows: &Rows, entire: u64) -> u64 {
    let (leaves, pages) = rows.counters[4].split_once(", ").expect("M, T");
    let number = |cell: &str| cell.parse::<u64>().expect("a number");
    (number(pages) - number(leaves) - entire * (t.pages() - 1)) / 511
}

/// A scheme whose columns the tables have.
trait Shown: Accounting {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, name: &dyn Fn(u32) -> &'static str);

    /// Its part of the table of three owners.
    fn compare_three(_t: &Target<'_, &Machine>, _row: &[&'static str], _name: &dyn Fn(u32) -> &'static str) {}
}

impl Shown for None {
    fn compare(t: &Target<'_, &Machine>, _rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        assert_eq!(Self::mapped(t), Answer::Walk);
        assert_eq!(Self::maybe_shared(t, 1), Answer::Walk);
        assert_eq!(Self::mapped_pages(t), Answer::Walk);
        assert_eq!(Self::page_count(t, 0), Answer::Walk);
        assert_eq!(Self::may_reuse(t, 1, 1), Answer::Cannot);
    }
}

impl Shown for PerPage {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        let visible = match c.visible.checked_sub(Self::ENTIRE_MAPPED) {
            Some(pages) => format!("EM+{pages}"),
            _ => c.visible.to_string(),
        };
        assert_eq!(format!("{} / {visible} / {}", c.entire, c.leaves), rows.counters[1], "entire / visible / leaves");
        assert_eq!(runs((0..t.pages()).map(|page| u64::from(Self::page(t, page)))), rows.counters[2], "page counts");
        assert_eq!(u64::from(c.between), between(t, rows, u64::from(c.entire)));
        assert_eq!(pages(Self::mapped_pages(t)), parts(rows.answers[1])[0], "mapped pages, per-page");
        assert_eq!(pages(Self::huge_pages(t)), parts(rows.answers[2])[0], "huge pages, per-page");
        assert_eq!(said(Self::partially_mapped(t)), parts(rows.answers[5])[1], "partly mapped, per-page");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(rows.answers[6])[1], "exclusive, per-page");
    }
}

impl Shown for Tuples {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        assert_eq!(Self::count(t).to_string(), rows.counters[3], "K");
        assert_eq!(pages(Self::mapped_pages(t)), parts(rows.answers[1])[1], "mapped pages, tuples");
        assert_eq!(Self::partially_mapped(t), Answer::Cannot);
        assert_eq!(Self::page_count(t, 0), Answer::Cannot);
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(rows.answers[6])[2], "exclusive, tuples");
    }
}

impl Shown for Total {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(format!("{}, {}", c.leaves, c.pages), rows.counters[4], "M, T");
        assert_eq!(slots(c.slots, c.shared, name), rows.counters[5], "slots; shared");
        assert_eq!(pages(Self::page_count(t, 0)), rows.answers[0], "average");
        assert_eq!(pages(Self::mapped_pages(t)), parts(rows.answers[1])[2], "mapped pages, total");
        assert_eq!(pages(Self::huge_pages(t)), parts(rows.answers[2])[1], "huge pages, total");
        assert_eq!(said(Self::partially_mapped(t)), parts(rows.answers[5])[2], "partly mapped, total");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(rows.answers[6])[3], "exclusive, total");
    }

    fn compare_three(t: &Target<'_, &Machine>, row: &[&'static str], name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(format!("{}, {}", c.leaves, c.pages), row[0], "M, T");
        assert_eq!(slots(c.slots, c.shared, name), row[1], "slots; shared");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(row[2])[1], "exclusive, total");
    }
}

impl Shown for MmOwner {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(format!("{}, {}", c.leaves, c.extent.entire), rows.counters[6], "M, entire");
        assert_eq!(c.extent.between, between(t, rows, c.extent.entire));
        assert_eq!(slots(c.slots, c.shared, name), rows.counters[5], "slots; shared");
        assert_eq!(pages(Self::page_count(t, 0)), rows.answers[0], "average");
        assert_eq!(pages(Self::mapped_pages(t)), parts(rows.answers[1])[2], "mapped pages, mm-owner");
        assert_eq!(pages(Self::huge_pages(t)), parts(rows.answers[2])[1], "huge pages, mm-owner");
        assert_eq!(said(Self::partially_mapped(t)), parts(rows.answers[5])[2], "partly mapped, mm-owner");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(rows.answers[6])[3], "exclusive, mm-owner");
    }

    fn compare_three(t: &Target<'_, &Machine>, row: &[&'static str], name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(slots(c.slots, c.shared, name), row[1], "slots; shared");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(row[2])[1], "exclusive, mm-owner");
    }
}

fn state_name(state: u32) -> &'static str {
    ["zero", "one", "two", "many"][state as usize]
}

impl Shown for ZeroOneTwoMany {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        assert_eq!(state_name(Self::state(t)), rows.counters[7], "the state");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(rows.answers[7])[0], "exclusive, zero-one-two-many");
        assert_eq!(Self::mapped(t).value(), Some(true));
        assert_eq!(Self::mapped_pages(t), Answer::Cannot);
    }

    fn compare_three(t: &Target<'_, &Machine>, row: &[&'static str], _name: &dyn Fn(u32) -> &'static str) {
        let exclusive = exclusive(Self::maybe_shared(t, 1));
        assert_eq!(format!("{}; {exclusive}", state_name(Self::state(t))), row[3], "the state; exclusive");
    }
}

impl Shown for Vmas {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        assert_eq!(Self::count(t).to_string(), rows.counters[8], "V");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(rows.answers[7])[1], "exclusive, vmas");
        assert_eq!(pages(Self::mapped_pages(t)), parts(rows.answers[1])[1], "mapped pages, vmas as tuples");
    }

    fn compare_three(t: &Target<'_, &Machine>, row: &[&'static str], _name: &dyn Fn(u32) -> &'static str) {
        let exclusive = exclusive(Self::maybe_shared(t, 1));
        assert_eq!(format!("{}; {exclusive}", Self::count(t)), row[4], "V; exclusive");
    }
}

impl Shown for FullPartial {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(format!("{}, {}", c.full, c.partial), rows.others[0], "full, partial");
        let pages = runs((0..t.pages()).map(|page| u64::from(Self::page(t, page))));
        assert_eq!(pages, rows.others[1], "page counts of partial regions");
        compare_other::<Self>(t, rows, 0);
    }
}

impl Shown for RmapIds {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(format!("{}, {}", c.leaves, c.sizes.entire), rows.others[2], "M, entire");
        assert_eq!(c.sizes.between, between(t, rows, c.sizes.entire));
        compare_other::<Self>(t, rows, 1);
    }
}

impl Shown for PerLevel {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        let small = c.leaves - c.extent.two - c.extent.three;
        assert_eq!(format!("{small}, {}, {}", c.extent.two, c.extent.three), rows.others[3], "leaves of each size");
        assert_eq!(slots(c.slots, c.shared, name), rows.counters[5], "slots; shared");
        compare_other::<Self>(t, rows, 2);
    }

    fn compare_three(t: &Target<'_, &Machine>, row: &[&'static str], name: &dyn Fn(u32) -> &'static str) {
        let c = Self::counters(t);
        assert_eq!(slots(c.slots, c.shared, name), row[1], "slots; shared");
        assert_eq!(exclusive(Self::maybe_shared(t, 1)), parts(row[2])[1], "exclusive, per-level");
    }
}

/// Answers of the scheme with column `nth` in the table of the other three.
fn compare_other<A: Accounting>(t: &Target<'_, &Machine>, rows: &Rows, nth: usize) {
    assert_eq!(pages(A::mapped_pages(t)), parts(rows.others[4])[nth], "mapped pages, {}", A::NAME);
    assert_eq!(said(A::partially_mapped(t)), parts(rows.others[7])[nth], "partly mapped, {}", A::NAME);
    assert_eq!(exclusive(A::maybe_shared(t, 1)), parts(rows.others[8])[nth], "exclusive, {}", A::NAME);
}

impl Shown for Oracle {
    fn compare(_t: &Target<'_, &Machine>, _rows: &Rows, _name: &dyn Fn(u32) -> &'static str) {}
}

impl<A: Shown, B: Shown> Shown for Observe<A, B> {
    fn compare(t: &Target<'_, &Machine>, rows: &Rows, name: &dyn Fn(u32) -> &'static str) {
        A::compare(&Self::first(t), rows, name);
        B::compare(&Self::second(t), rows, name);
    }

    fn compare_three(t: &Target<'_, &Machine>, row: &[&'static str], name: &dyn Fn(u32) -> &'static str) {
        A::compare_three(&Self::first(t), row, name);
        B::compare_three(&Self::second(t), row, name);
    }
}

/// A machine with a manager, and the folio that the scenario is about.
struct Stage<'m, A> {
    machine: &'m Machine,
    manager: Manager<&'m Machine, A>,
    recount: Recount,
    p: SpaceId,
    /// The folio's first frame.
    head: Pfn,
}

/// Order 9 only, with leaves of 2 MiB.
fn huge() -> Policy {
    Policy::only(Order::HUGE)
}

/// Order 9 only, mapped by pages.
fn by_pages() -> Policy {
    Policy { max_leaf: Level::ONE, ..huge() }
}

/// Plays a scenario on a fresh machine; nothing may be left at its end.
fn play<A: Shown>(policy: Policy, scenario: impl FnOnce(&mut Stage<'_, A>)) {
    play_in(FRAMES, policy, scenario);
}

/// As [`play`], with `frames` frames.
fn play_in<A: Shown>(frames: u64, policy: Policy, scenario: impl FnOnce(&mut Stage<'_, A>)) {
    let machine = Machine::new(frames + Recount::scratch_frames(frames));
    let manager = Manager::new(&machine, &[Pfn::new(0)..Pfn::new(frames)], true, policy).expect("enough frames");
    let recount = Recount::new(Pfn::new(frames), Pfn::new(0), frames).exhaustive();
    let p = manager.create_space().expect("a frame");
    let mut stage = Stage { machine: &machine, manager, recount, p, head: Pfn::new(0) };
    scenario(&mut stage);
    let spaces: Vec<_> = stage.manager.spaces().collect();
    for space in spaces {
        stage.exit(space);
    }
    stage.recount();
}

impl<A: Shown> Stage<'_, A> {
    /// Maps `pages` pages of anonymous memory at [`AT`] and stores to the first.
    fn anon(&mut self, pages: u64) {
        self.manager.map(self.p, AT, pages, READ_WRITE, Map::Anon).expect("a free range");
        self.touch(self.p, AT, true);
        self.find(AT);
    }

    /// Maps `pages` pages of a new order-9 file at `at`, twice if `again`, and reads the first.
    fn file(&mut self, at: Gva, pages: u64, again: Option<Gva>) -> ObjectId {
        let file = self.manager.create_object(ObjectKind::File, 0, 512, Order::HUGE).expect("frames");
        for at in [Some(at), again].into_iter().flatten() {
            self.manager.map(self.p, at, pages, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
            self.touch(self.p, at, false);
        }
        self.find(at);
        file
    }

    fn find(&mut self, at: Gva) {
        let (_, leaf) = self.manager.page_table(self.p).lookup(&self.manager, at.page()).expect("a leaf");
        self.head = self.manager.folio(leaf.pfn).expect("a folio").head();
    }

    fn touch(&self, space: SpaceId, at: Gva, write: bool) {
        ModelTenant::new(self.machine, 1, || 0).touch(&self.manager, space, at, 1, write).expect("a page");
    }

    /// mprotect of the upper half of the 512 pages at [`AT`].
    fn protect_half(&self, space: SpaceId, prot: Prot) {
        self.manager.protect(space, AT.add_pages(256), 256, prot).expect("protected");
    }

    /// Splits the leaf at [`AT`] and leaves no other trace: half of it is protected, and unprotected again.
    fn split(&self, space: SpaceId) {
        self.protect_half(space, READ);
        self.protect_half(space, READ_WRITE);
        // The cut may have been one region too many.
        self.manager.repair(self.folio());
    }

    fn unmap(&self, space: SpaceId, pages: std::ops::Range<u64>) {
        self.manager.unmap(space, AT.add_pages(pages.start), pages.end - pages.start).expect("unmapped");
    }

    fn fork(&self) -> SpaceId {
        self.manager.fork(self.p).expect("a child")
    }

    fn exit(&self, space: SpaceId) {
        assert!(self.manager.leave_space(space));
        self.machine.leave(self.manager.root(space));
        self.manager.destroy_space(space);
    }

    fn folio(&self) -> Folio<'_> {
        self.manager.folio(self.head).expect("the folio")
    }

    fn recount(&self) {
        let audit = self.recount.run(&self.manager);
        assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
        assert_eq!(self.machine.stale(), Option::None, "a flush is missing");
    }

    /// Everything must be as the tables say in the rows of `scenario`. `others`: pages mapped of other folios.
    fn see(&self, scenario: &str, others: u64) {
        println!("{scenario} under {}", A::NAME);
        self.recount();
        let folio = self.folio();
        let target = self.manager.counts(folio);

        let truth = self.recount.truth(&self.manager, folio);
        let cover = |page| self.recount.cover(&self.manager, folio, page);
        let found =
            [truth.leaves, truth.total, truth.entire, truth.distinct, truth.tuples, truth.regions, truth.owners];
        let expected = row("The ground truth", scenario);
        assert_eq!(found.map(|n| n.to_string())[..], expected[..7], "M T E U K V O");
        assert_eq!(runs((0..folio.pages()).map(cover)), expected[7], "leaves over each page");

        let rows = Rows {
            counters: row("The counters", scenario),
            answers: row("The answers", scenario),
            others: row("Full and partial, ids, levels", scenario),
        };
        let leaf_refs = folio.refs() - u64::from(folio.flags().has(FolioFlags::CACHE));
        assert_eq!(leaf_refs.to_string(), rows.counters[0], "references");
        let name = |owner| if owner == self.p.raw() { "p" } else { "c" };
        A::compare(&target, &rows, &name);

        let partly = 0 < truth.distinct && truth.distinct < folio.pages();
        assert_eq!(yes(partly), parts(rows.answers[5])[0], "partly mapped, truth");
        assert_eq!(yes(truth.owners == 1), parts(rows.answers[6])[0], "exclusive, truth");

        // The statistics are those of the first scheme; pages of order 0 are the same in every scheme that keeps any.
        let statistics = self.manager.statistics();
        let mapped = statistics.anon_mapped.get() + statistics.file_mapped.get();
        let expected = A::mapped_pages(&target).value().map_or(0, |pages| pages + others);
        assert_eq!(mapped, expected as i64, "AnonPages and Mapped");
        assert_eq!(statistics.huge_mapped.get(), A::huge_pages(&target).value().unwrap_or(0) as i64, "AnonHugePages");

        let average: f64 = rows.answers[0].parse().expect("an average");
        for (space, cell) in self.manager.spaces().zip([rows.answers[3], rows.answers[4]]) {
            let exact = (self.pss(space, |page| cover(page) as f64) * 1e4).round() / 1e4;
            assert_eq!(format!("{exact} / {}", self.pss(space, |_| average)), cell, "Pss of {}", name(space.raw()));
        }
        // Of `per-level`, which makes it of T: the parts sum to min(T, P).
        let per_page = truth.total as f64 / truth.total.min(folio.pages()) as f64;
        for (space, cell) in self.manager.spaces().zip([rows.others[5], rows.others[6]]) {
            let ours = (self.pss(space, |_| per_page) * 1e4).round() / 1e4;
            assert_eq!(ours.to_string(), cell, "Pss of {} under per-level", name(space.raw()));
        }
    }

    /// The pages of the folio that are charged to `space`, when page i is mapped by `leaves(i)` leaves.
    fn pss(&self, space: SpaceId, leaves: impl Fn(u64) -> f64) -> f64 {
        let folio = self.folio();
        let mut sum = 0.0;
        self.manager.page_table(space).for_each_leaf(&self.manager, PAGES_END, &mut |place, leaf| {
            if folio.head() <= leaf.pfn && leaf.pfn < folio.end() {
                let first = leaf.pfn.raw() - folio.head().raw();
                sum += (first..first + place.level.entry_pages()).map(|page| 1.0 / leaves(page)).sum::<f64>();
            }
        });
        sum
    }
}

// --- the scenarios -------------------------------------------------------------------------------------------

fn s1_s2_s4_split_and_partial_unmap<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        stage.see("S1", 0);
        stage.split(stage.p);
        stage.see("S2", 0);
        stage.unmap(stage.p, 100..512);
        stage.see("S4", 0);
    });
}

fn s2_mapped_by_pages<A: Shown>() {
    play::<A>(by_pages(), |stage| {
        stage.anon(512);
        stage.see("S2", 0);
    });
}

fn s3_across_a_table_border<A: Shown>() {
    play::<A>(huge(), |stage| {
        let at = AT.add_pages(312);
        stage.file(at, 512, Option::None);
        stage.see("S3a", 0);
        stage.touch(stage.p, at.add_pages(200), false);
        stage.see("S3b", 0);
    });
}

fn s5_three_pages_less_two<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.file(AT, 3, Option::None);
        stage.see("S5a", 0);
        stage.manager.advise(stage.p, AT.add_pages(1), 2, Advice::DontNeed).expect("advised");
        stage.see("S5b", 0);
    });
}

fn s6_fork_of_a_huge_leaf<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        let child = stage.fork();
        stage.see("S6", 0);
        stage.split(child);
        stage.see("S6s", 0);
        stage.touch(child, AT.add_pages(7), true);
        // The child's copy is a folio of its own.
        stage.see("S6c", 1);
    });
}

fn s6c_without_a_split_before<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        let child = stage.fork();
        stage.touch(child, AT.add_pages(7), true);
        stage.see("S6c", 1);
    });
}

fn s7_fork_of_pages<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        stage.split(stage.p);
        let child = stage.fork();
        stage.see("S7", 0);
        stage.unmap(stage.p, 256..512);
        stage.unmap(child, 256..512);
        stage.see("S7b", 0);
        stage.exit(child);
        stage.see("S7c", 0);
    });
}

fn s8_511_forks<A: Shown>() {
    play_in::<A>(2 * FRAMES, by_pages(), |stage| {
        stage.anon(512);
        let children: Vec<_> = (0..511).map(|_| stage.fork()).collect();
        stage.see("S8", 0);
        for space in children.into_iter().chain([stage.p]) {
            stage.unmap(space, 1..512);
        }
        stage.see("S8b", 0);
    });
}

fn s8c_seven_forks_of_a_huge_leaf<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        for _ in 0..7 {
            stage.fork();
        }
        stage.see("S8c", 0);
    });
}

fn s9_twice_by_one_owner<A: Shown>() {
    play::<A>(by_pages(), |stage| {
        stage.file(AT, 512, Some(ELSEWHERE));
        stage.see("S9", 0);
    });
}

fn s10_moved_across_a_table_border<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        stage.manager.remap(stage.p, AT, 512, ELSEWHERE.add_pages(16), 512).expect("moved");
        stage.see("S10", 0);
    });
}

fn s11_cut_by_mprotect<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        stage.split(stage.p);
        stage.protect_half(stage.p, READ);
        stage.see("S11", 0);
    });
}

/// Splits the leaf at [`AT`], which is larger than `pages`, and leaves no other trace.
fn split_at_the_start<A: Shown>(stage: &Stage<'_, A>, pages: u64) {
    for prot in [READ, READ_WRITE] {
        stage.manager.protect(stage.p, AT, pages, prot).expect("protected");
    }
    stage.manager.repair(stage.folio());
}

fn s12_a_gigabyte<A: Shown>() {
    play_in::<A>(1 << 19, Policy { max_leaf: Level::THREE, ..huge() }, |stage| {
        let file = stage.manager.create_object(ObjectKind::Shared, 0, 1 << 18, Order::MAX).expect("frames");
        stage.manager.map(stage.p, AT, 1 << 18, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
        stage.touch(stage.p, AT, true);
        stage.find(AT);
        stage.see("S12a", 0);
        split_at_the_start(stage, 512);
        stage.see("S12b", 0);
        split_at_the_start(stage, 1);
        stage.see("S12c", 0);
        let second = stage.manager.create_space().expect("a frame");
        stage.manager.map(second, AT, 1 << 18, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
        stage.touch(second, AT, true);
        stage.see("S12d", 0);
        stage.unmap(stage.p, 300..1 << 17);
        stage.recount();
    });
}

fn s13_larger_than_its_leaves<A: Shown>() {
    play_in::<A>(4 * FRAMES, Policy::only(Order::new(11)), |stage| {
        stage.anon(2048);
        stage.see("S13a", 0);
        // To where the second half lies behind the border: congruent, so nothing is split.
        let across = Gva::new(4 << 30).page() - 1024;
        stage.manager.remap(stage.p, AT, 2048, Gva::from_page(across), 2048).expect("moved");
        stage.see("S13c", 0);
        stage.manager.remap(stage.p, Gva::from_page(across), 2048, AT, 2048).expect("moved");
        stage.see("S13a", 0);
        split_at_the_start(stage, 100);
        stage.see("S13b", 0);
        stage.unmap(stage.p, 300..700);
        stage.recount();
        let child = stage.fork();
        stage.touch(child, AT.add_pages(1600), true);
        stage.recount();
        stage.exit(child);
    });
}

fn s14_small_copy_of_a_large_folio<A: Shown>() {
    play::<A>(Policy::only(Order::new(4)), |stage| {
        stage.anon(16);
        let child = stage.fork();
        stage.touch(child, AT.add_pages(3), true);
        stage.see("S14", 1);
    });
}

fn s16_two_huge_leaves_and_a_page<A: Shown>() {
    play::<A>(huge(), |stage| {
        let file = stage.file(AT, 512, Option::None);
        let second = stage.manager.create_space().expect("a frame");
        for (at, pages) in [(AT, 512), (ELSEWHERE, 1)] {
            stage.manager.map(second, at, pages, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
            stage.touch(second, at, false);
        }
        stage.see("S16", 0);
    });
}

/// 1 GiB of anonymous memory by one leaf, a fork, and a store: the leaf is split twice, and one page copied.
fn a_gigabyte_is_copied_by_the_page<A: Shown>() {
    play_in::<A>(1 << 19, Policy { max_leaf: Level::THREE, ..Policy::only(Order::MAX) }, |stage| {
        stage.anon(1 << 18);
        let truth = |stage: &Stage<'_, A>| {
            stage.recount();
            let truth = stage.recount.truth(&stage.manager, stage.folio());
            (truth.leaves, truth.total, truth.entire)
        };
        assert_eq!(truth(stage), (1, 1 << 18, 1));
        let child = stage.fork();
        assert_eq!(truth(stage), (2, 1 << 19, 2));
        stage.touch(child, AT.add_pages(70_000), true);
        assert_eq!(truth(stage), (1 + 511 + 511, (1 << 19) - 1, 1));
        stage.unmap(child, 100..150_000);
        stage.unmap(stage.p, 0..1);
        stage.recount();
    });
}

macro_rules! under {
    ($module:ident, $scheme:ty, $($scenario:ident)*) => {
        mod $module {
            $(#[test]
            fn $scenario() {
                super::$scenario::<$scheme>();
            })*
        }
    };
}

macro_rules! under_every_scheme {
    ($($scenario:ident),* $(,)?) => {
        under!(none, super::None, $($scenario)*);
        under!(per_page, super::PerPage, $($scenario)*);
        under!(tuples, super::Tuples, $($scenario)*);
        under!(total, super::Total, $($scenario)*);
        under!(mm_owner, super::MmOwner, $($scenario)*);
        under!(zero_one_two_many, super::ZeroOneTwoMany, $($scenario)*);
        under!(vmas, super::Vmas, $($scenario)*);
        under!(full_partial, super::FullPartial, $($scenario)*);
        under!(rmap_ids, super::RmapIds, $($scenario)*);
        under!(per_level, super::PerLevel, $($scenario)*);
        under!(all_at_once, super::Everything, $($scenario)*);
    };
}

under_every_scheme!(
    s1_s2_s4_split_and_partial_unmap,
    s2_mapped_by_pages,
    s3_across_a_table_border,
    s5_three_pages_less_two,
    s6_fork_of_a_huge_leaf,
    s6c_without_a_split_before,
    s7_fork_of_pages,
    s8_511_forks,
    s8c_seven_forks_of_a_huge_leaf,
    s9_twice_by_one_owner,
    s10_moved_across_a_table_border,
    s11_cut_by_mprotect,
    s12_a_gigabyte,
    s14_small_copy_of_a_large_folio,
    s15_three_owners,
    s16_two_huge_leaves_and_a_page,
    a_gigabyte_is_copied_by_the_page,
);

/// Shapes that `per-page`, `mm-owner` and `rmap-ids` refuse.
mod larger_than_a_leaf {
    use super::{
        FullPartial, None, Observe, Oracle, PerLevel, Total, Tuples, Vmas, ZeroOneTwoMany, s13_larger_than_its_leaves,
    };

    type AllOthers = Observe<Total, Observe<Tuples, Rest>>;
    type Rest = Observe<Vmas, Observe<ZeroOneTwoMany, More>>;
    type More = Observe<FullPartial, Observe<PerLevel, Oracle>>;

    under!(none, super::None, s13_larger_than_its_leaves);
    under!(tuples, super::Tuples, s13_larger_than_its_leaves);
    under!(total, super::Total, s13_larger_than_its_leaves);
    under!(zero_one_two_many, super::ZeroOneTwoMany, s13_larger_than_its_leaves);
    under!(vmas, super::Vmas, s13_larger_than_its_leaves);
    under!(full_partial, super::FullPartial, s13_larger_than_its_leaves);
    under!(per_level, super::PerLevel, s13_larger_than_its_leaves);
    under!(all_at_once, super::AllOthers, s13_larger_than_its_leaves);
}

/// What they refuse becomes smaller folios, or smaller leaves of a folio that is there; nothing else changes.
#[test]
fn refused_shapes_become_smaller_ones() {
    fn first_leaf<A: Shown>(order: u8, file: bool) -> (u8, u64) {
        let mut found = (0, 0);
        let order = Order::new(order);
        play_in::<A>(1 << 19, Policy::up_to(order), |stage| {
            if file {
                let pages = order.pages();
                let file = stage.manager.create_object(ObjectKind::Shared, 0, pages, order).expect("frames");
                stage.manager.map(stage.p, AT, pages, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
                stage.touch(stage.p, AT, true);
                stage.find(AT);
            } else {
                stage.anon(order.pages());
            }
            stage.recount();
            let (place, _) = stage.manager.page_table(stage.p).lookup(&stage.manager, AT.page()).expect("a leaf");
            found = (stage.folio().order().get(), place.level.entry_pages());
            stage.touch(stage.p, AT.add_pages(order.pages() - 1), true);
            let child = stage.fork();
            stage.touch(child, AT.add_pages(700), true);
            stage.recount();
        });
        found
    }
    assert_eq!([first_leaf::<Total>(11, false), first_leaf::<Vmas>(11, true)], [(11, 512); 2]);
    assert_eq!([first_leaf::<Tuples>(18, false), first_leaf::<Total>(18, true)], [(18, 512); 2]);
    for order in [11, 18] {
        assert_eq!(first_leaf::<PerPage>(order, false), (9, 512));
        assert_eq!(first_leaf::<MmOwner>(order, false), (9, 512));
        assert_eq!(first_leaf::<Everything>(order, false), (9, 512));
        assert_eq!(first_leaf::<PerPage>(order, true), (order, 1));
        assert_eq!(first_leaf::<MmOwner>(order, true), (order, 1));
        assert_eq!(first_leaf::<Everything>(order, true), (order, 1));
    }
}

// --- beyond the tables ---------------------------------------------------------------------------------------

/// S1, a fork, and the child exits: a store takes the leaf back as a whole, where the scheme knows that it is alone.
fn whole_leaf_is_reused<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        let child = stage.fork();
        stage.exit(child);
        stage.touch(stage.p, AT.add_pages(9), true);
        stage.see("S1", 0);
        assert_eq!(stage.manager.statistics().copied.load(Relaxed), 0);
    });
}

#[test]
fn whole_leaf_is_reused_under_total() {
    whole_leaf_is_reused::<Total>();
}

#[test]
fn whole_leaf_is_reused_under_mm_owner() {
    whole_leaf_is_reused::<MmOwner>();
}

#[test]
fn whole_leaf_is_reused_under_per_page() {
    whole_leaf_is_reused::<PerPage>();
}

/// At the limit a fork and a fault are refused and leave no trace; splits and removals go through.
fn refused_at_the_limit<A: Shown>() {
    play::<A>(huge(), |stage| {
        stage.anon(512);
        stage.manager.set_count_limit(512);
        assert_eq!(stage.manager.fork(stage.p), Err(MapError::Refused(Refused::Overflow)));
        stage.see("S1", 0);
        stage.split(stage.p);
        stage.see("S2", 0);
        stage.unmap(stage.p, 100..512);
        stage.see("S4", 0);
    });
    play::<A>(by_pages(), |stage| {
        let file = stage.file(AT, 512, Option::None);
        stage.manager.set_count_limit(512);
        stage.manager.map(stage.p, ELSEWHERE, 512, READ, Map::Shared(file, 0)).expect("a free range");
        let refused = stage.manager.fault(stage.p, ELSEWHERE, Access::Read);
        assert_eq!(refused, Err(FaultError::Refused(Refused::Overflow)));
        stage.recount();
        stage.unmap(stage.p, 0..512);
        stage.touch(stage.p, ELSEWHERE, false);
        stage.recount();
    });
}

#[test]
fn refused_at_the_limit_under_total() {
    refused_at_the_limit::<Total>();
}

#[test]
fn refused_at_the_limit_under_mm_owner() {
    refused_at_the_limit::<MmOwner>();
}

#[test]
fn refused_at_the_limit_under_per_page() {
    refused_at_the_limit::<PerPage>();
}

#[test]
fn refused_at_the_limit_under_tuples() {
    play::<Tuples>(huge(), |stage| {
        stage.anon(512);
        stage.manager.set_count_limit(1);
        assert_eq!(stage.manager.fork(stage.p), Err(MapError::Refused(Refused::Overflow)));
        stage.see("S1", 0);
        // A move makes no mapping, even where it makes a tuple.
        stage.manager.remap(stage.p, AT, 512, ELSEWHERE.add_pages(16), 512).expect("moved");
        stage.see("S10", 0);
    });
}

/// S15: three owners map a file folio; the first two exit, and the third goes on alone.
fn s15_three_owners<A: Shown>() {
    play::<A>(by_pages(), |stage| {
        let file = stage.file(AT, 512, Option::None);
        let others = [(); 2].map(|()| {
            let space = stage.manager.create_space().expect("a frame");
            stage.manager.map(space, AT, 512, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
            stage.touch(space, AT, false);
            stage.recount();
            space
        });
        let [p, second, third] = [stage.p, others[0], others[1]];
        let see = |stage: &Stage<'_, A>, scenario: &str| {
            stage.recount();
            let name = |owner| if owner == p.raw() { "p" } else { "c" };
            A::compare_three(&stage.manager.counts(stage.folio()), &row("Three owners", scenario), &name);
        };
        see(stage, "S15");
        stage.exit(p);
        stage.exit(second);
        see(stage, "S15b");
        stage.unmap(third, 0..511);
        see(stage, "S15c");
        stage.unmap(third, 511..512);
        see(stage, "S15d");
    });
}

/// *Many* stays when everybody has gone, until a walk sets it right.
#[test]
fn many_until_repaired() {
    play::<ZeroOneTwoMany>(by_pages(), |stage| {
        let file = stage.file(AT, 512, Some(ELSEWHERE));
        let state = |stage: &Stage<'_, ZeroOneTwoMany>| {
            stage.recount();
            ZeroOneTwoMany::state(&stage.manager.counts(stage.folio()))
        };
        assert_eq!(state(stage), 2);
        // Three regions, two of them on the two sides of a cut.
        stage.protect_half(stage.p, READ);
        assert_eq!(state(stage), 3);
        stage.protect_half(stage.p, READ_WRITE);
        assert_eq!(state(stage), 3, "two regions, and many");
        stage.manager.repair(stage.folio());
        assert_eq!(state(stage), 2);
        stage.unmap(stage.p, 0..512);
        assert_eq!(state(stage), 1);
        stage.manager.map(stage.p, AT, 512, READ, Map::Shared(file, 0)).expect("a free range");
        stage.touch(stage.p, AT, false);
        assert_eq!(state(stage), 2);
    });
}

/// A region with leaves of one folio in tables of two levels, and another region's between: it is one region.
#[test]
fn regions_in_tables_of_two_levels() {
    fn regions<A: Shown>() {
        play::<A>(huge(), |stage| {
            let file = stage.manager.create_object(ObjectKind::Shared, 0, 2048, Order::new(11)).expect("frames");
            stage.manager.map(stage.p, AT, 2048, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
            for part in 0..4 {
                stage.touch(stage.p, AT.add_pages(512 * part), false);
            }
            stage.find(AT);
            stage.manager.protect(stage.p, AT.add_pages(1024), 1024, READ).expect("protected");
            stage.manager.advise(stage.p, AT.add_pages(700), 100, Advice::DontNeed).expect("advised");
            stage.recount();
            let truth = stage.recount.truth(&stage.manager, stage.folio());
            assert_eq!((truth.regions, truth.owners), (2, 1));
        });
    }
    regions::<Vmas>();
    regions::<Tuples>();
    regions::<Everything>();
}

/// Leaves smaller than the folio: `per-page` has no count for them when they are mapped, so its folio is mapped by pages.
#[test]
fn huge_leaves_of_a_larger_folio() {
    fn counted<A: Shown>() -> u64 {
        let mut leaves = 0;
        play::<A>(huge(), |stage| {
            let file = stage.manager.create_object(ObjectKind::Shared, 0, 2048, Order::new(11)).expect("frames");
            stage.manager.map(stage.p, AT, 2048, READ, Map::Shared(file, 0)).expect("a free range");
            for part in 0..4 {
                stage.touch(stage.p, AT.add_pages(512 * part), false);
            }
            stage.find(AT);
            stage.recount();
            leaves = stage.recount.truth(&stage.manager, stage.folio()).leaves;
            // Collapsing makes such leaves under any scheme, and splitting takes them apart again.
            stage.manager.collapse(stage.p, AT);
            stage.recount();
            stage.manager.protect(stage.p, AT.add_pages(5), 700, READ_WRITE).expect("protected");
            stage.recount();
            stage.manager.collapse(stage.p, AT.add_pages(1536));
            stage.recount();
            stage.unmap(stage.p, 700..1600);
            stage.recount();
        });
        leaves
    }
    assert_eq!(counted::<Total>(), 4, "S13a");
    assert_eq!(counted::<Tuples>(), 4);
    assert_eq!(counted::<PerPage>(), 2048);
    assert_eq!(counted::<MmOwner>(), 2048);
    assert_eq!(counted::<Everything>(), 2048);
}

/// Two owners map other halves of one folio: `per-page`, which knows no owners, takes it for exclusive. The others do not.
#[test]
fn false_exclusive() {
    fn found<A: Shown>() -> u64 {
        let mut found = 0;
        play::<A>(by_pages(), |stage| {
            let file = stage.file(AT, 256, Option::None);
            let second = stage.manager.create_space().expect("a frame");
            stage.manager.map(second, AT, 256, READ, Map::Shared(file, 256)).expect("a free range");
            stage.touch(second, AT, false);
            stage.recount();
            found = stage.recount.run(&stage.manager).false_exclusive;
        });
        found
    }
    assert_eq!(found::<PerPage>(), 1);
    assert_eq!(found::<Tuples>(), 0);
    assert_eq!(found::<MmOwner>(), 0);
    assert_eq!(found::<Vmas>(), 0);
    assert_eq!(found::<ZeroOneTwoMany>(), 0);
    assert_eq!(found::<Total>(), 0);
}
