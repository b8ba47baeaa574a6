//! The survey against situations made by hand: what it counts must be what SCHEMES.md says of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::abi::survey::{self, Question, Verdict};
use quire::addr::{Gva, Level, Order, Pfn};
use quire::audit::Recount;
use quire::mapcount::{Everything, Scheme};
use quire::model::{Machine, ModelTenant};
use quire::space::{Manager, Map, Policy, SpaceId};
use quire::space::{ObjectKind, Prot};
use quire::trace::Tenant;

const FRAMES: u64 = 4096;
const AT: Gva = Gva::new(1 << 30);
const READ_WRITE: Prot = Prot { read: true, write: true, exec: false };
/// 1 in the fixed point of errors.
const ONE: u64 = 1 << 20;

struct Stage<'m> {
    machine: &'m Machine,
    manager: Manager<&'m Machine, Everything>,
    p: SpaceId,
}

impl Stage<'_> {
    fn touch(&self, space: SpaceId, at: Gva, write: bool) {
        ModelTenant::new(self.machine, 1, || 0).touch(&self.manager, space, at, 1, write).expect("a page");
    }

    fn anon(&self, pages: u64) {
        self.manager.map(self.p, AT, pages, READ_WRITE, Map::Anon).expect("a free range");
        self.touch(self.p, AT, true);
    }

    fn exit(&self, space: SpaceId) {
        assert!(self.manager.leave_space(space));
        self.machine.leave(self.manager.root(space));
        self.manager.destroy_space(space);
    }
}

/// The words of a survey of one checkpoint.
struct Found(Vec<u64>);

impl Found {
    fn count(&self, scheme: Scheme, question: Question, order: usize, verdict: Verdict) -> u64 {
        self.0[survey::tally(scheme as usize, question, order) + verdict as usize]
    }

    /// Samples, those without an answer, errors above, below, the largest.
    fn pss(&self, scheme: Scheme) -> [u64; 5] {
        self.0[survey::pss(scheme as usize)..][..5].try_into().expect("five words")
    }

    fn uss(&self, scheme: Scheme) -> [u64; 5] {
        self.0[survey::uss(scheme as usize)..][..5].try_into().expect("five words")
    }

    fn said(&self, scheme: Scheme) -> &[u64] {
        &self.0[survey::said(scheme as usize)..][..5]
    }
}

/// What a survey finds once `scenario` has played.
fn survey_of(policy: Policy, scenario: impl FnOnce(&Stage<'_>)) -> Found {
    let machine = Machine::new(FRAMES + Recount::scratch_frames(FRAMES));
    let manager = Manager::new(&machine, &[Pfn::new(0)..Pfn::new(FRAMES)], true, policy).expect("enough frames");
    let p = manager.create_space().expect("a frame");
    let stage = Stage { machine: &machine, manager, p };
    scenario(&stage);
    let recount = Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES).exhaustive();
    assert_eq!(recount.run(&stage.manager).mismatches, 0);
    let words: Vec<_> = (0..survey::WORDS).map(|_| AtomicU64::new(0)).collect();
    quire::survey::take(&stage.manager, &recount, &words);
    let words: Vec<_> = words.iter().map(|word| word.load(Relaxed)).collect();
    for scheme in Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All) {
        for question in Question::EACH {
            for order in 0..survey::ORDERS {
                let broken = words[survey::tally(scheme as usize, question, order) + Verdict::Broken as usize];
                assert_eq!(broken, 0, "{scheme}: {question:?} at order {order}");
            }
        }
    }
    Found(words)
}

fn by_pages() -> Policy {
    Policy { max_leaf: Level::ONE, ..Policy::only(Order::HUGE) }
}

/// S4: 412 of 512 pages are unmapped. The statistics of `total` and `tuples` say 512 for 100.
#[test]
fn inflation() {
    let found = survey_of(by_pages(), |stage| {
        stage.anon(512);
        stage.manager.unmap(stage.p, AT.add_pages(100), 412).expect("unmapped");
    });
    assert_eq!(found.0[survey::CHECKPOINTS], 1);
    assert_eq!(found.0[survey::MAPPED..][..2], [100, 0]);
    for scheme in [Scheme::Total, Scheme::Tuples, Scheme::MmOwner] {
        assert_eq!(found.said(scheme)[..3], [512, 0, 512 * ONE / 100], "{scheme}");
        assert_eq!(found.count(scheme, Question::MappedPages, 9, Verdict::More), 1, "{scheme}");
    }
    assert_eq!(found.said(Scheme::PerPage)[..3], [100, 0, ONE]);
    assert_eq!(found.count(Scheme::PerPage, Question::MappedPages, 9, Verdict::Exact), 1);
    assert_eq!(found.count(Scheme::None, Question::MappedPages, 9, Verdict::Walk), 1);
    // kpagecount of the 412 others is 1 under `total`, where nothing maps them.
    assert_eq!(found.count(Scheme::Total, Question::PageCount, 9, Verdict::More), 412);
    assert_eq!(found.count(Scheme::PerPage, Question::PageCount, 9, Verdict::Exact), 512);
    // One owner: `total` knows that it is partly mapped, `tuples` does not.
    assert_eq!(found.said(Scheme::Total)[4], 1);
    assert_eq!(found.said(Scheme::Tuples)[4], 0);
    assert_eq!(found.count(Scheme::Tuples, Question::PartiallyMapped, 9, Verdict::Cannot), 1);
}

/// S7b: two owners map the same half. `total` misses it, and charges each with all of what it maps.
#[test]
fn missed_partial_map() {
    let found = survey_of(by_pages(), |stage| {
        stage.anon(512);
        let child = stage.manager.fork(stage.p).expect("a child");
        for space in [stage.p, child] {
            stage.manager.unmap(space, AT.add_pages(256), 256).expect("unmapped");
        }
    });
    // Folios, of several owners, anonymous, partly mapped.
    assert_eq!(found.0[survey::FOLIOS + 9 * survey::FOLIO_WORDS..][..4], [1, 1, 1, 1]);
    assert_eq!(found.count(Scheme::Total, Question::PartiallyMapped, 9, Verdict::Less), 1);
    assert_eq!(found.count(Scheme::PerPage, Question::PartiallyMapped, 9, Verdict::Exact), 1);
    assert_eq!([Scheme::Total, Scheme::PerPage].map(|scheme| found.said(scheme)[4]), [0, 1]);
    // 256 for 128, twice.
    assert_eq!(found.pss(Scheme::Total), [2, 0, 2 * ONE, 0, ONE]);
    assert_eq!(found.pss(Scheme::PerPage), [2, 0, 0, 0, 0]);
    assert_eq!(found.pss(Scheme::None), [2, 2, 0, 0, 0]);
    assert_eq!(found.count(Scheme::Total, Question::Charge, 9, Verdict::More), 512);
    // Nobody takes it for exclusive.
    assert_eq!(found.uss(Scheme::Total), [2, 0, 0, 0, 0]);
}

/// S14: p's Pss is 8.5 and reads as 8, c's is 7.5 and so it reads; beside each stands a page of its own, of c's copy.
#[test]
fn error_of_pss() {
    let found = survey_of(Policy::only(Order::new(4)), |stage| {
        stage.anon(16);
        let child = stage.manager.fork(stage.p).expect("a child");
        stage.touch(child, AT.add_pages(3), true);
    });
    let error = ONE / 17;
    assert_eq!(found.pss(Scheme::Total), [2, 0, 0, error, error]);
    assert_eq!(found.0[survey::pss(Scheme::Total as usize) + 6 + survey::bucket(error)], 1);
    assert_eq!(found.0[survey::pss(Scheme::Total as usize) + 6], 1, "and the child's is right");
    // p's own page 3 does not show under `total`: 1 of its 16 pages.
    assert_eq!(found.uss(Scheme::Total), [2, 0, 0, ONE / 16, ONE / 16]);
    assert_eq!(found.uss(Scheme::PerPage), [2, 0, 0, 0, 0]);
    assert_eq!(found.count(Scheme::Total, Question::Exclusive, 4, Verdict::Less), 1);
    assert_eq!(found.count(Scheme::Total, Question::MapMax, 4, Verdict::Right), 1);
}

/// S15b: of three owners the third stays, without a slot: `total` reads the folio as shared. `vmas` knows better.
#[test]
fn false_shared() {
    let found = survey_of(by_pages(), |stage| {
        let file = stage.manager.create_object(ObjectKind::File, 0, 512, Order::HUGE).expect("frames");
        let spaces = [0; 2].map(|_| stage.manager.create_space().expect("a frame"));
        for space in [stage.p, spaces[0], spaces[1]] {
            stage.manager.map(space, AT, 512, READ_WRITE, Map::Shared(file, 0)).expect("a free range");
            stage.touch(space, AT, false);
        }
        stage.exit(stage.p);
        stage.exit(spaces[0]);
    });
    for scheme in [Scheme::Total, Scheme::MmOwner, Scheme::ZeroOneTwoMany] {
        assert_eq!(found.count(scheme, Question::Shared, 9, Verdict::More), 1, "{scheme}");
    }
    assert_eq!(found.count(Scheme::Vmas, Question::Shared, 9, Verdict::More), 0);
    // Reuse and partial maps are asked of anonymous folios only.
    assert_eq!(Question::EACH.map(|question| found.count(Scheme::None, question, 9, Verdict::Cannot))[3], 0);
    assert_eq!(found.0[survey::PROCESSES], 1);
}
