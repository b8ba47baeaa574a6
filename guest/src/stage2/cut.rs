//! Taking away what was composed: leaves, and shadow pages with all that hangs on them, as one batch for each run of leaves of a folio (SCHEMES.md, nested levels, R7).
//!
//! Order: clear entries; what was composed from these in turn; flush; subtract; free. A stage-2 leaf that goes has this done before its own flush, so the folio's
//! counts never fall short of what can be reached.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::shadow_page::{Kind, Role, ShadowPage};
use super::{AsId, Vm};
use crate::addr::Pfn;
use crate::folio::Folio;
use crate::format::{Attrs, Entry, Leaf};
use crate::mapcount::{Accounting, Batch, Class, Neighbours};
use crate::memory::{FlushScope, Memory, Tlb};
use crate::space::{Manager, Removed};

/// What happens to the leaves that others were composed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They go, or lead elsewhere: tables read through them may say something else now.
    Gone,
    /// They lead where they did, in other sizes or with other rights.
    Narrowed,
}

/// How many cut leaves wait for one flush at most: few where everything is checked, so that tests of a few leaves come to the end of it.
const CAPACITY: usize = if cfg!(debug_assertions) { 3 } else { 64 };

/// Composed leaves that were cleared, and shadow pages that are dead, until they are flushed. [`Manager::finish_cut`] must follow.
#[must_use = "what was cut is cached until it is finished"]
pub(super) struct Cut<'a> {
    items: ArrayVec<Removed<'a>, CAPACITY>,
    /// Dead shadow pages, chained.
    dead: u64,
    is_dirty: bool,
    /// Frames that nested leaves led to: stage-1 leaves over them follow.
    frames: Range<u64>,
    /// Guest frames that they led to: tables of the tenant's tenant there follow, even when the leaf was only narrowed. When the guest takes its own entry away later, nothing
    /// that is composed would say so any more.
    gfns: Range<u64>,
}

fn widen(hull: &mut Range<u64>, by: Range<u64>) {
    *hull = if hull.is_empty() { by } else { hull.start.min(by.start)..hull.end.max(by.end) };
}

fn meets(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Cut<'_> {
    pub(super) fn new() -> Self {
        Self { items: ArrayVec::new(), dead: 0, is_dirty: false, frames: 0..0, gfns: 0..0 }
    }

    /// Whether nothing was cut.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_dirty
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// The stage-2 leaves of guest frames `gfns` are about to go or to allow less, as `change` says: removes what was composed from them. With the shadow lock.
    pub(super) fn drop_composed(&self, vm: &Vm<'_>, view: AsId, gfns: Range<u64>, change: Change, may_be_nested: bool) {
        if gfns.is_empty() {
            return;
        }
        let mut cut = Cut::new();
        let gone = change == Change::Gone;
        for kind in [Kind::Nested, Kind::Stage1] {
            if vm.composed(kind) == 0 || (kind == Kind::Nested && !may_be_nested) {
                continue;
            }
            for page in self.shadow_pages(vm) {
                let role = page.role();
                if role.kind == kind && role.view == view && role.over == 0 {
                    let step = role.level.entry_pages();
                    let leads = |i| {
                        let first = self.shadowed_page(page, i);
                        meets(&(first..first + step), &gfns)
                    };
                    self.cut_leaves(vm, page, leads, &mut cut);
                }
            }
        }
        if gone {
            self.kill_tables(vm, |page| page.role().view == view && gfns.contains(&page.gfn()), &mut cut);
        }
        self.finish_cut(vm, &mut cut);
    }

    /// Kills the shadow pages of all tables that `which` picks; roots are emptied, and read anew when they are used.
    pub(super) fn kill_tables<'a>(&'a self, vm: &Vm<'_>, which: impl Fn(ShadowPage<'_>) -> bool, cut: &mut Cut<'a>) {
        let is_next =
            |page: &ShadowPage<'_>| !page.role().direct && (page.is_tracked() || !page.is_root()) && which(*page);
        // Each takes others with it.
        while let Some(page) = self.shadow_pages(vm).find(is_next) {
            if page.is_root() {
                self.empty_root(vm, page, cut);
            } else {
                self.kill_shadow(vm, page, cut);
            }
        }
    }

    /// Notes that an entry of a page, or to it, was cleared. Whoever is entered on a nested root may have it cached.
    fn note_cut(&self, vm: &Vm<'_>, page: ShadowPage<'_>, cut: &mut Cut<'_>) {
        if page.role().kind == Kind::Nested {
            let is_nested = |root: &ShadowPage<'_>| root.role().kind == Kind::Nested;
            self.shadow_roots(vm).filter(is_nested).for_each(|root| self.memory().owe_stage2(root.table()));
        }
        cut.is_dirty = true;
    }

    /// Clears the leaves of a page that `which` picks, by index.
    pub(super) fn cut_leaves<'a>(
        &'a self,
        vm: &Vm<'_>,
        page: ShadowPage<'_>,
        which: impl Fn(usize) -> bool,
        cut: &mut Cut<'a>,
    ) {
        let Role { kind, level, .. } = page.role();
        let step = level.entry_pages();
        let leaf_at = |i: usize| match self.shadow_entry(vm, page, i) {
            Entry::Leaf(leaf) if which(i) => Some(leaf),
            _ => None,
        };
        let mut i = 0;
        while i < page.end() && page.leaves() > 0 {
            let Some(first) = leaf_at(i) else {
                i += 1;
                continue;
            };
            let found = self.nested_target(vm, page, i, first);
            if found.is_some() && cut.items.is_full() {
                // Other pages may end by it, but none that has such leaves, as this one: only those composed over them.
                self.finish_cut(vm, cut);
            }
            let (start, gfn) = (i, self.shadowed_page(page, i));
            let mut next = first.pfn;
            while i < page.end() && leaf_at(i).is_some_and(|leaf| leaf.pfn == next) {
                let together = found
                    .as_ref()
                    .is_none_or(|(folio, _, slot)| next < folio.end() && slot.contains(&self.shadowed_page(page, i)));
                if !together
                    || (i > start
                        && kind == Kind::Nested
                        && self.shadowed_page(page, i) != gfn + (i - start) as u64 * step)
                {
                    break;
                }
                self.clear_shadow_entry(page, i);
                next = next.add(step);
                i += 1;
            }
            let n = (i - start) as u64;
            page.set_leaves(page.leaves() - n);
            vm.note_composed(kind, -(n as i64));
            self.note_cut(vm, page, cut);
            if kind == Kind::Nested {
                widen(&mut cut.frames, first.pfn.raw()..next.raw());
                widen(&mut cut.gfns, gfn..gfn + n * step);
            }
            if let Some((folio, region, slot)) = found {
                let batch = nested_batch(vm, page, region, folio, first.pfn, n);
                let beside = self.beside_nested(vm, page, folio, &slot);
                cut.items.push(Removed { folio, batch, beside, dirty: false });
            }
        }
    }

    /// Of a leaf that is counted: its folio, the slot through which it resolves, and that slot's guest frames.
    fn nested_target(
        &self,
        vm: &Vm<'_>,
        page: ShadowPage<'_>,
        i: usize,
        leaf: Leaf,
    ) -> Option<(Folio<'_>, u32, Range<u64>)> {
        let role = page.role();
        if role.kind != Kind::Nested || leaf.attrs.has(Attrs::UNTRACKED) {
            return None;
        }
        let folio = self.folio(leaf.pfn).expect("a tracked leaf maps a folio");
        let slot = self.find_slot(vm, role.view, self.shadowed_page(page, i)).expect("a leaf resolves through a slot");
        Some((folio, slot.id().raw(), slot.get().gfns()))
    }

    /// What the slot with guest frames `slot` has of `folio` among nested leaves, as far as the scheme wants to know: without those that are about to
    /// be entered, and those that were cleared.
    pub(super) fn beside_nested(
        &self,
        vm: &Vm<'_>,
        page: ShadowPage<'_>,
        folio: Folio<'_>,
        slot: &Range<u64>,
    ) -> Neighbours {
        let view = page.role().view;
        let count = |page: ShadowPage<'_>| self.count_nested(vm, page, folio.head()..folio.end(), slot);
        let tuple = if A::NEEDS.tuple { count(page) } else { 0 };
        let region = if A::NEEDS.region {
            let of_view = |page: &ShadowPage<'_>| page.role().kind == Kind::Nested && page.role().view == view;
            let pages = |page: ShadowPage<'_>| count(page) << page.role().level.page_shift();
            self.shadow_pages(vm).filter(of_view).map(pages).sum()
        } else {
            0
        };
        Neighbours { tuple, region }
    }

    /// Leaves of a page that map `frames` through guest frames of `slot`.
    fn count_nested(&self, vm: &Vm<'_>, page: ShadowPage<'_>, frames: Range<Pfn>, slot: &Range<u64>) -> u32 {
        if page.leaves() == 0 {
            return 0;
        }
        let is_one = |i: &usize| match self.shadow_entry(vm, page, *i) {
            Entry::Leaf(leaf) => frames.contains(&leaf.pfn) && slot.contains(&self.shadowed_page(page, *i)),
            _ => false,
        };
        (0..page.end()).filter(is_one).count() as u32
    }

    /// Clears the pointer at `i`; a child that is nobody's then dies.
    pub(super) fn unlink_shadow<'a>(&'a self, vm: &Vm<'_>, page: ShadowPage<'_>, i: usize, cut: &mut Cut<'a>) {
        let child = self.shadow_page(self.origin(page, i) as u32);
        self.clear_shadow_entry(page, i);
        self.note_cut(vm, page, cut);
        child.set_parents(child.parents() - 1);
        if child.parents() == 0 {
            self.kill_shadow(vm, child, cut);
        }
    }

    /// Clears entry `i`, whatever it is.
    pub(super) fn cut_entry<'a>(&'a self, vm: &Vm<'_>, page: ShadowPage<'_>, i: usize, cut: &mut Cut<'a>) {
        match self.shadow_entry(vm, page, i) {
            Entry::Absent => {}
            Entry::Table(_) => self.unlink_shadow(vm, page, i, cut),
            Entry::Leaf(_) => self.cut_leaves(vm, page, |at| at == i, cut),
        }
    }

    /// Clears all entries of a page.
    fn empty_shadow<'a>(&'a self, vm: &Vm<'_>, page: ShadowPage<'_>, cut: &mut Cut<'a>) {
        self.cut_leaves(vm, page, |_| true, cut);
        for i in 0..page.end() {
            if let Entry::Table(_) = self.shadow_entry(vm, page, i) {
                self.unlink_shadow(vm, page, i, cut);
            }
        }
    }

    /// Empties a root, and lets the guest store to its table until it is used again.
    pub(super) fn empty_root<'a>(&'a self, vm: &Vm<'_>, root: ShadowPage<'_>, cut: &mut Cut<'a>) {
        root.set_tracked(false);
        self.empty_shadow(vm, root, cut);
    }

    /// Ends a shadow page: nothing points to it any more, and what only it pointed to ends too.
    pub(super) fn kill_shadow<'a>(&'a self, vm: &Vm<'_>, page: ShadowPage<'_>, cut: &mut Cut<'a>) {
        let role = page.role();
        let number = u64::from(page.record().raw());
        // The count of parents says when all are found: no page knows them by name.
        for parent in self.shadow_pages(vm) {
            if page.parents() == 0 {
                break;
            }
            let above = parent.role();
            if above.kind != role.kind || above.level.below() != Some(role.level) {
                continue;
            }
            for i in 0..parent.end() {
                if self.origin(parent, i) == number && matches!(self.shadow_entry(vm, parent, i), Entry::Table(_)) {
                    self.clear_shadow_entry(parent, i);
                    page.set_parents(page.parents() - 1);
                }
            }
        }
        debug_assert_eq!(page.parents(), 0, "a parent was not found");
        // Found among the others until it is empty: its leaves count beside each other.
        self.empty_shadow(vm, page, cut);
        self.remove_shadow(vm, page);
        self.note_cut(vm, page, cut);
        page.set_next(cut.dead);
        cut.dead = u64::from(page.record().raw());
    }

    /// Flushes what was cut, after what was composed from it in turn; subtracts, and frees.
    pub(super) fn finish_cut<'a>(&'a self, vm: &Vm<'_>, cut: &mut Cut<'a>) {
        if !cut.is_empty() {
            self.flush_cut(vm, cut);
            self.free_dead(cut);
        }
    }

    /// The first part of [`finish_cut`](Self::finish_cut): all but to free.
    pub(super) fn flush_cut<'a>(&'a self, vm: &Vm<'_>, cut: &mut Cut<'a>) {
        self.follow_nested(vm, cut);
        for root in self.shadow_roots(vm) {
            match root.role().kind {
                Kind::Nested => self.memory().flush_stage2(root.table(), FlushScope::Space),
                Kind::Stage1 => self.memory().flush(root.table(), FlushScope::Space),
            }
        }
        for removed in cut.items.drain(..) {
            self.uncount_stage2(removed);
        }
        cut.is_dirty = false;
    }

    /// The second part.
    pub(super) fn free_dead(&self, cut: &mut Cut<'_>) {
        while cut.dead != 0 {
            let page = self.shadow_page(cut.dead as u32);
            cut.dead = page.next();
            self.free_shadow(page);
        }
    }

    /// Stage-1 leaves and tables over nested leaves that were cut go with them.
    fn follow_nested<'a>(&'a self, vm: &Vm<'_>, cut: &mut Cut<'a>) {
        let (frames, gfns) = (cut.frames.clone(), cut.gfns.clone());
        (cut.frames, cut.gfns) = (0..0, 0..0);
        if !frames.is_empty() && vm.composed(Kind::Stage1) > 0 {
            for page in self.shadow_pages(vm).filter(|page| page.role().over != 0) {
                let step = page.role().level.entry_pages();
                let leads = |i| match self.shadow_entry(vm, page, i) {
                    Entry::Leaf(leaf) => meets(&(leaf.pfn.raw()..leaf.pfn.raw() + step), &frames),
                    _ => false,
                };
                self.cut_leaves(vm, page, leads, cut);
            }
        }
        if !gfns.is_empty() {
            self.kill_tables(vm, |page| page.role().over != 0 && gfns.contains(&page.gfn()), cut);
        }
    }
}

/// The batch of `n` leaves of a shadow page that map `folio` from `first` on.
pub(super) fn nested_batch(
    vm: &Vm<'_>,
    page: ShadowPage<'_>,
    region: u32,
    folio: Folio<'_>,
    first: Pfn,
    n: u64,
) -> Batch {
    let level = page.role().level;
    Batch {
        class: Class::Nested,
        first: (first.raw() - folio.head().raw()) as u32,
        pages: (n as u32) << level.page_shift(),
        leaf: level.leaf_order(),
        region,
        table: page.table(),
        owner: vm.owner(),
    }
}

impl Vm<'_> {
    /// Composed leaves of a kind.
    pub(crate) fn composed(&self, kind: Kind) -> u64 {
        let counts = self.composed_word().load(Relaxed);
        if kind == Kind::Nested { counts & 0xffff_ffff } else { counts >> 32 }
    }

    /// Under the shadow lock.
    pub(super) fn note_composed(&self, kind: Kind, leaves: i64) {
        let shift = if kind == Kind::Nested { 0 } else { 32 };
        let word = self.composed_word();
        word.store(word.load(Relaxed).wrapping_add((leaves as u64) << shift), Relaxed);
    }
}
