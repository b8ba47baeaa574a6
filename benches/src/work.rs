//! The operations that are measured, on one manager that lives through all of them, so that its tables and records are as warm as a running system's.

use std::hint::black_box;

use quire::addr::{ENTRIES, Gva, Level, Order, Pfn};
use quire::mapcount::Accounting;
use quire::space::{Access, Advice, Manager, Map, Policy, Prot, SpaceId};
use serde::Serialize;

use crate::machine::Frames;

/// Pages that the batch operations work on: 16 MiB, and 1 GiB where one leaf maps that.
pub(crate) const PAGES: u64 = 4096;
/// How often an operation on one page is done.
pub(crate) const TIMES: u64 = 512;
const AT: Gva = Gva::new(0x10_0000_0000);
const RW: Prot = Prot { read: true, write: true, exec: false };

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// Faults that map everything, one for each folio.
    Map,
    /// Every page looked up, without a lock.
    Translate,
    /// The copy-on-write copy of the space.
    Fork,
    /// The end of that copy.
    Teardown,
    /// Everything unmapped at once.
    Unmap,
    /// Whether a folio of two owners is shared, asked of the scheme.
    Ask,
    /// The same, found by a walk to its leaves: what a scheme without counts must do.
    Walk,
    /// Stores to shared pages, each of which is copied: one for each folio.
    Cow,
    /// One page faulted in and dropped again.
    Single,
    /// One page of a 2 MiB leaf protected, so that the leaf is split.
    Split,
    /// 512 leaves made one again.
    Collapse,
    /// Stage-2 faults on folios that the VMM has, one for each.
    Stage2,
    /// The end of a VM that has mapped everything.
    VmEnd,
}

impl Op {
    pub(crate) const EACH: [Self; 13] = [
        Self::Map,
        Self::Translate,
        Self::Fork,
        Self::Teardown,
        Self::Unmap,
        Self::Ask,
        Self::Walk,
        Self::Cow,
        Self::Single,
        Self::Split,
        Self::Collapse,
        Self::Stage2,
        Self::VmEnd,
    ];
    /// Those whose cost is told for each page; of the others for each call.
    pub(crate) const BULK: [Self; 7] =
        [Self::Map, Self::Translate, Self::Fork, Self::Teardown, Self::Unmap, Self::Stage2, Self::VmEnd];

    /// Those on VMs, which a world of one space does not do.
    pub(crate) const OF_VMS: [Self; 2] = [Self::Stage2, Self::VmEnd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Translate => "translate",
            Self::Fork => "fork",
            Self::Teardown => "teardown",
            Self::Unmap => "unmap",
            Self::Ask => "ask",
            Self::Walk => "walk",
            Self::Cow => "cow",
            Self::Single => "single",
            Self::Split => "split",
            Self::Collapse => "collapse",
            Self::Stage2 => "stage2 fault",
            Self::VmEnd => "stage2 teardown",
        }
    }
}

/// Which folios, by which leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) order: Order,
    pub(crate) leaf: Level,
}

impl Shape {
    pub(crate) const fn new(order: u8, leaf: Level) -> Self {
        Self { order: Order::new(order), leaf }
    }

    /// Leaves that map everything, and pages that are mapped.
    pub(crate) fn leaves(self) -> u64 {
        self.pages() >> self.leaf.page_shift()
    }

    fn pages(self) -> u64 {
        PAGES.max(self.order.pages())
    }

    /// How many times `op` is done in one go, in the unit that its cost is told in.
    pub(crate) fn units(self, op: Op) -> u64 {
        match op {
            Op::Map | Op::Translate | Op::Fork | Op::Teardown | Op::Unmap | Op::Stage2 | Op::VmEnd => self.leaves(),
            Op::Ask | Op::Walk | Op::Cow => self.blocks().min(TIMES),
            Op::Single => TIMES,
            Op::Split | Op::Collapse => self.blocks(),
        }
    }

    fn blocks(self) -> u64 {
        self.pages() >> self.order.get()
    }

    /// What makes sense for it.
    pub(crate) fn has(self, op: Op) -> bool {
        match op {
            Op::Map | Op::Translate | Op::Fork | Op::Teardown | Op::Unmap => true,
            Op::Stage2 | Op::VmEnd => self.order <= Order::HUGE,
            Op::Ask | Op::Walk | Op::Cow => self.leaf == Level::ONE,
            Op::Single => self.order == Order::BASE,
            Op::Split | Op::Collapse => self.leaf == Level::TWO,
        }
    }
}

/// Who is told of every operation, and does it.
pub(crate) trait Probe {
    fn probe(&mut self, op: Op, f: &mut dyn FnMut());
}

/// A manager with one space.
pub(crate) struct World<A> {
    manager: Manager<Frames, A>,
    space: SpaceId,
    shape: Shape,
}

impl<A: Accounting> World<A> {
    pub(crate) fn new(shape: Shape) -> Self {
        let policy = Policy { max_leaf: shape.leaf, ..Policy::only(shape.order) };
        // The first of two equal ranges is one folio, whose contents nobody touches: no memory stands behind it, nor behind most of the other one.
        let gib = Order::GIGANTIC.pages();
        let small = [Pfn::new(0)..Pfn::new(3 * PAGES)];
        let large = [Pfn::new(gib)..Pfn::new(2 * gib), Pfn::new(0)..Pfn::new(gib)];
        let ranges = if shape.order == Order::GIGANTIC { &large[..] } else { &small[..] };
        let frames =
            Frames::new(3 * PAGES as usize, shape.has(Op::Collapse), quire::mapcount::small_descriptor_words::<A>());
        let manager = Manager::new(frames, ranges, true, policy).expect("enough frames");
        let space = manager.create_space().expect("a frame");
        Self { manager, space, shape }
    }

    /// Whether the scheme can count such leaves at all: folios are smaller where it cannot.
    pub(crate) fn is_possible(&self) -> bool {
        self.reserve();
        let fault = self.manager.fault(self.space, AT, Access::Write).expect("enough frames");
        self.release();
        fault.order == self.shape.order
    }

    /// Every operation that makes sense once, in an order that leaves nothing behind.
    pub(crate) fn cycle(&self, probe: &mut impl Probe) {
        self.bulk(probe);
        if self.shape.has(Op::Cow) {
            self.cow(probe);
        }
        if self.shape.has(Op::Single) {
            self.single(probe);
        }
        if self.shape.has(Op::Split) {
            self.split(probe);
        }
    }

    pub(crate) fn bulk(&self, probe: &mut impl Probe) {
        let Self { manager, space, shape } = self;
        self.reserve();
        probe.probe(Op::Map, &mut || self.fault_all());
        probe.probe(Op::Translate, &mut || {
            let table = manager.page_table(*space);
            for page in (0..shape.pages()).step_by(shape.leaf.entry_pages() as usize) {
                black_box(table.lookup(manager, black_box(AT.page() + page)).expect("a leaf"));
            }
        });
        let mut child = None;
        probe.probe(Op::Fork, &mut || child = Some(manager.fork(*space).expect("enough frames")));
        probe.probe(Op::Teardown, &mut || manager.destroy_space(child.expect("forked")));
        probe.probe(Op::Unmap, &mut || self.release());
    }

    fn cow(&self, probe: &mut impl Probe) {
        let Self { manager, space, shape } = self;
        self.reserve();
        self.fault_all();
        let child = manager.fork(*space).expect("enough frames");
        let table = manager.page_table(*space);
        let folio = |block: u64| {
            let (_, leaf) = table.lookup(manager, AT.page() + (block << shape.order.get())).expect("a leaf");
            manager.folio(leaf.pfn).expect("a folio")
        };
        let folios: Vec<_> = (0..shape.units(Op::Cow)).map(folio).collect();
        probe.probe(Op::Ask, &mut || {
            for folio in &folios {
                black_box(A::maybe_shared(&manager.counts(*folio), space.raw()));
            }
        });
        probe.probe(Op::Walk, &mut || {
            for folio in &folios {
                assert_eq!(black_box(manager.is_shared_by_walk(*folio)), Ok(true));
            }
        });
        probe.probe(Op::Cow, &mut || {
            for block in 0..shape.units(Op::Cow) {
                let at = AT.add_pages(block << shape.order.get());
                manager.fault(*space, at, Access::Write).expect("enough frames");
            }
        });
        manager.destroy_space(child);
        self.release();
    }

    fn single(&self, probe: &mut impl Probe) {
        let Self { manager, space, .. } = self;
        self.reserve();
        // Its neighbour keeps the tables.
        manager.fault(*space, AT, Access::Write).expect("enough frames");
        probe.probe(Op::Single, &mut || {
            for i in 0..TIMES {
                let at = AT.add_pages(1 + i % (ENTRIES as u64 - 1));
                manager.fault(*space, at, Access::Write).expect("enough frames");
                manager.advise(*space, at, 1, Advice::DontNeed).expect("mapped");
            }
        });
        self.release();
    }

    fn split(&self, probe: &mut impl Probe) {
        let Self { manager, space, shape } = self;
        self.reserve();
        self.fault_all();
        let pages = || (0..shape.blocks()).map(|block| AT.add_pages(block << shape.order.get()));
        probe.probe(Op::Split, &mut || {
            for at in pages() {
                manager.protect(*space, at.add_pages(7), 1, Prot { write: false, ..RW }).expect("mapped");
            }
        });
        for at in pages() {
            manager.protect(*space, at.add_pages(7), 1, RW).expect("mapped");
            manager.fault(*space, at.add_pages(7), Access::Write).expect("mapped");
        }
        probe.probe(Op::Collapse, &mut || {
            for at in pages() {
                assert!(manager.collapse(*space, at), "not collapsed");
            }
        });
        self.release();
    }

    /// Ends it; every frame must have come back.
    pub(crate) fn end(self) {
        self.manager.destroy_space(self.space);
        assert!(self.manager.trim(), "frames are left");
    }

    fn reserve(&self) {
        self.manager.map(self.space, AT, self.shape.pages(), RW, Map::Anon).expect("a free range");
    }

    fn fault_all(&self) {
        for block in 0..self.shape.blocks() {
            let at = AT.add_pages(block << self.shape.order.get());
            self.manager.fault(self.space, at, Access::Write).expect("enough frames");
        }
    }

    fn release(&self) {
        self.manager.unmap(self.space, AT, self.shape.pages()).expect("a mapped range");
    }
}
