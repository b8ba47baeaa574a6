//! One folio on page tables in this process, and what tenants do to it.

use quire::addr::{Gva, Level, Order, Pfn};
use quire::folio::Folio;
use quire::mapcount::{Accounting, Target};
use quire::model::Machine;
use quire::space::{Access, Manager, Map, Policy, SpaceId};
use quire::space::{Advice, ObjectKind, Prot};

const READ: Prot = Prot { read: true, write: false, exec: false };
const READ_WRITE: Prot = Prot { read: true, write: true, exec: false };
/// Where the folio is mapped.
const AT: Gva = Gva::new(1 << 30);

/// A machine on which a scheme shows what it does.
pub(super) struct Stage<'m, A> {
    manager: Manager<&'m Machine, A>,
    /// The first tenant.
    pub(super) first: SpaceId,
    /// A frame of the folio.
    frame: Pfn,
    /// Its pages.
    pages: u64,
}

/// The folio, and how it is mapped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// 2 MiB, by pages.
    ByPages,
    /// 2 MiB, by one leaf.
    Huge,
    /// 1 GiB, by one leaf.
    Gigantic,
}

impl Size {
    fn order(self) -> Order {
        if self == Self::Gigantic { Order::GIGANTIC } else { Order::HUGE }
    }
}

/// Plays `scene` on a machine of its own.
pub(super) fn play<A: Accounting, T>(size: Size, scene: impl FnOnce(&mut Stage<'_, A>) -> T) -> T {
    // Room for the metadata, and for the folio to be aligned.
    let frames = 2 * size.order().pages() + 4096;
    let machine = Machine::new(frames);
    let max_leaf = match size {
        Size::ByPages => Level::ONE,
        Size::Huge => Level::TWO,
        Size::Gigantic => Level::THREE,
    };
    let policy = Policy { max_leaf, ..Policy::only(size.order()) };
    // Known to be zero: nothing is cleared, and of a machine's memory only what is written is ever there.
    let manager = Manager::new(&machine, &[Pfn::new(0)..Pfn::new(frames)], true, policy).expect("frames for a stage");
    let first = manager.create_space().expect("frames for a space");
    scene(&mut Stage { manager, first, frame: Pfn::new(0), pages: size.order().pages() })
}

impl<A: Accounting> Stage<'_, A> {
    /// The first tenant stores to anonymous memory: one folio, mapped at once.
    pub(super) fn anon(&mut self) {
        self.manager.map(self.first, AT, self.pages, READ_WRITE, Map::Anon).expect("a free range");
        self.touch(self.first, 0, Access::Write);
        self.find();
    }

    /// Each of `tenants` maps pages of a file of one folio from page `from` on and reads one: `pages` of them, at once.
    pub(super) fn file(&mut self, tenants: usize, from: u64, pages: u64) -> Vec<SpaceId> {
        let file = self.manager.create_object(ObjectKind::File, 0, 512, Order::HUGE).expect("frames for a file");
        let others = (1..tenants).map(|_| self.manager.create_space().expect("frames for a space"));
        let spaces: Vec<_> = std::iter::once(self.first).chain(others).collect();
        for &space in &spaces {
            let at = AT.add_pages(from);
            self.manager.map(space, at, pages, READ_WRITE, Map::Shared(file, from)).expect("a free range");
            self.touch(space, from, Access::Read);
        }
        let (_, leaf) = self.manager.page_table(self.first).lookup(&self.manager, AT.page() + from).expect("a leaf");
        self.frame = leaf.pfn;
        spaces
    }

    fn find(&mut self) {
        let (_, leaf) = self.manager.page_table(self.first).lookup(&self.manager, AT.page()).expect("a leaf");
        self.frame = leaf.pfn;
    }

    /// The folio.
    pub(super) fn folio(&self) -> Folio<'_> {
        self.manager.folio(self.frame).expect("the folio of the stage")
    }

    /// Its counts.
    pub(super) fn counts(&self) -> Target<'_, &Machine> {
        self.manager.counts(self.folio())
    }

    pub(super) fn touch(&self, space: SpaceId, page: u64, access: Access) {
        self.manager.fault(space, AT.add_pages(page), access).expect("a page");
    }

    pub(super) fn fork(&self) -> SpaceId {
        self.manager.fork(self.first).expect("frames for a child")
    }

    pub(super) fn exit(&self, space: SpaceId) {
        self.manager.destroy_space(space);
    }

    pub(super) fn drop_pages(&self, space: SpaceId, page: u64, pages: u64) {
        self.manager.advise(space, AT.add_pages(page), pages, Advice::DontNeed).expect("dropped");
    }

    /// Cuts the region behind the first MiB of the folio, which splits the leaves that are in the way.
    pub(super) fn cut(&self, space: SpaceId) {
        self.manager.protect(space, AT.add_pages(256), self.pages - 256, READ).expect("protected");
    }

    /// Takes the cut back.
    pub(super) fn join(&self, space: SpaceId) {
        self.manager.protect(space, AT.add_pages(256), self.pages - 256, READ_WRITE).expect("protected");
    }
}
