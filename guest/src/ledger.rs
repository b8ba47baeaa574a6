//! The counts of all classes of leaves together, and the questions that only they answer together (SCHEMES.md, nested levels, N1 to N8).
//!
//! A [`Ledger`] is what the scheme says of one folio, class by class, read at once; each question is answered from it in constant time, as surely as
//! the scheme's own answers allow. Beside it stands a [`Walked`] folio, of which every leaf of every table was looked at: it answers the same questions
//! without the scheme, for whoever checks it, or runs one that cannot tell.
//!
//! A manager inside a VM keeps one for the folios that it made of guest memory, and the manager below it one for what stands behind: questions about both levels take both.

use core::fmt;
use core::ops::Range;

use crate::addr::{Level, Order, Pfn};
use crate::audit::stage2::for_each_leaf_by_region;
use crate::folio::{Folio, FolioFlags};
use crate::format::{Attrs, Leaf};
use crate::mapcount::{Accounting, Answer, ByLevel, Class, Classes, Countdown};
use crate::memory::{Memory, Tlb};
use crate::page_table::Place;
use crate::space::{Manager, PAGES_END, SpaceId};
use crate::stage2::{AsId, Backing, Slot, SlotFlags, VmId};

/// The classes of leaves through which a VM reaches a folio.
pub const OF_VMS: [Class; 2] = [Class::Vm, Class::Nested];

/// What the scheme says of a folio's leaves of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfClass {
    /// Whether there are any. Errs to yes.
    pub mapped: Answer<bool>,
    /// M: how many.
    pub leaves: Answer<u64>,
    /// T: the pages that they map, multiplicity counted.
    pub pages: Answer<u64>,
    /// How many of each size.
    pub by_level: Answer<ByLevel>,
    /// Whether another owner than the one who asks, and who maps it in this class, does so too. Errs to yes.
    pub shared: Answer<bool>,
    /// After how much a walk to them may stop.
    pub early_stop: Answer<Countdown>,
}

/// What the scheme says of a folio, class by class: a snapshot, which nobody keeps from changing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The folio's order.
    pub order: Order,
    /// References.
    pub refs: u64,
    /// Of those, the page cache's.
    pub cache_refs: u64,
    classes: [OfClass; 3],
}

/// In which classes whoever asks maps the folio: what it finds in its own tables.
pub type Mine = [bool; 3];

impl Ledger {
    /// One class.
    #[must_use]
    pub const fn class(&self, class: Class) -> &OfClass {
        &self.classes[class as usize]
    }

    fn mapped(&self, among: &[Class]) -> Answer<bool> {
        among.iter().fold(Answer::Exact(false), |mapped, &class| mapped.or(self.class(class).mapped))
    }

    /// N1a: no process and no VM has the folio mapped; of a guest's folio: no leaf of the guest needs what stands behind it. Errs to no. Unmapping what stands behind is legal in
    /// any case, and worth it where this is so (N1b): a fault brings it back.
    #[must_use]
    pub fn unreached(&self) -> Answer<bool> {
        self.mapped(&Class::ALL).map(|mapped| !mapped)
    }

    /// N2: does another owner map the folio than the one who asks, through any class of `among`? `mine` says in which of them it does so itself. A VM and its VMM are one owner (R4). Errs to
    /// yes.
    #[must_use]
    pub fn maybe_shared(&self, among: &[Class], mine: Mine) -> Answer<bool> {
        among.iter().fold(Answer::Exact(false), |shared, &class| {
            let of = self.class(class);
            // Whatever is there when the asker is not is somebody else's.
            shared.or(if mine[class as usize] { of.shared } else { of.mapped })
        })
    }

    /// The one size of all leaves of some classes; order 0 if they differ, or there are none.
    fn uniform(&self, among: &[Class]) -> Answer<Order> {
        among
            .iter()
            .map(|&class| self.class(class).by_level)
            .fold(Answer::Exact([0; 3]), |sum, levels| sum.join(levels, added))
            .map(only_order)
    }

    /// N3, of a guest's folio: by how large leaves it is mapped at both levels, and so the order of what one TLB entry can hold. Order 0 unless all of the guest's own leaves
    /// have one size, and so have all stage-2 leaves of every folio `behind` it. `congruent` says up to which order the addresses of all levels agree ([`congruence`]).
    pub fn huge_at_both<'a>(&self, behind: impl IntoIterator<Item = &'a Self>, congruent: Order) -> Answer<Order> {
        let own = self.uniform(&[Class::Process]).map(|own| own.min(congruent));
        if own == Answer::Exact(Order::BASE) {
            return own;
        }
        behind.into_iter().fold(own, |least, host| least.join(host.uniform(&OF_VMS), Order::min))
    }

    /// N4: is the folio reached by processes only, and by no VM? Of memory behind a guest: by its VMM, and not by the guest.
    #[must_use]
    pub fn only_by_processes(&self) -> Answer<bool> {
        match (self.class(Class::Process).mapped, self.mapped(&OF_VMS)) {
            (Answer::Exact(false), _) | (_, Answer::Exact(true)) => Answer::Exact(false),
            // One errs to yes and the other to no.
            (Answer::Errs(process), Answer::Errs(vm)) => Answer::About(process && !vm),
            (process, vm) => process.join(vm, |process, vm| process && !vm),
        }
    }

    /// N5: are all references those of leaves and of the page cache, so that nobody keeps the folio from being moved? By policy P1 stage-2 leaves hold none.
    #[must_use]
    pub fn held_by_leaves_only(&self) -> Answer<bool> {
        self.class(Class::Process).leaves.map(|leaves| self.refs == leaves + self.cache_refs)
    }

    /// N6: after how much a walk to the leaves of all classes may stop: a hint, as ever.
    #[must_use]
    pub fn early_stop(&self) -> Answer<Countdown> {
        let [process, vm, nested] = self.classes.map(|class| class.early_stop.map(Some));
        let sum = process.join(vm, after_both).join(nested, after_both);
        match sum.map(|sum| sum.map(Answer::Exact)) {
            Answer::Exact(Some(sum)) => sum,
            Answer::Walk => Answer::Walk,
            // Things that cannot be added, or are not counted.
            _ => Answer::Cannot,
        }
    }

    /// N1c, the last question before what stands behind a guest's folio may be discarded: nobody reaches it, nobody holds it, and it is `isolated`, so that nobody gets it
    /// meanwhile. Never a guess: "may be unreached" is no.
    #[must_use]
    pub fn may_discard(&self, isolated: bool) -> bool {
        isolated && self.refs == 0 && self.unreached() == Answer::Exact(true)
    }
}

fn added(a: ByLevel, b: ByLevel) -> ByLevel {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

fn only_order(levels: ByLevel) -> Order {
    match levels {
        [0, two, 0] if two > 0 => Order::HUGE,
        [0, 0, three] if three > 0 => Order::GIGANTIC,
        _ => Order::BASE,
    }
}

/// One walk after the other: their counts are added where they are of one kind, or one is of nothing.
fn after_both(a: Option<Countdown>, b: Option<Countdown>) -> Option<Countdown> {
    use Countdown::{Leaves, Regions, Tables};
    match (a?, b?) {
        (Leaves(a), Leaves(b)) => Some(Leaves(a + b)),
        (Tables(a), Tables(b)) => Some(Tables(a + b)),
        (Regions(a), Regions(b)) => Some(Regions(a + b)),
        (Leaves(0) | Tables(0) | Regions(0), some) | (some, Leaves(0) | Tables(0) | Regions(0)) => Some(some),
        _ => None,
    }
}

/// Up to which order page numbers agree: those of one byte as the guest's program, the guest, its VMM and the machine name it.
#[must_use]
pub fn congruence(pages: [u64; 4]) -> Order {
    let differ = |order: Order| pages.iter().any(|page| (page ^ pages[0]) & (order.pages() - 1) != 0);
    [Order::GIGANTIC, Order::HUGE].into_iter().find(|&order| !differ(order)).unwrap_or(Order::BASE)
}

/// What a walk over every table found of a folio's leaves of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Leaves of each size.
    pub by_level: ByLevel,
    /// The first owner met.
    pub owner: Option<u32>,
    /// Another one was met.
    pub more_owners: bool,
    /// The owner who asks was met.
    pub mine: bool,
}

impl Found {
    /// M.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.by_level.iter().sum()
    }

    /// T.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let orders = [Order::BASE, Order::HUGE, Order::GIGANTIC];
        self.by_level.iter().zip(orders).map(|(leaves, order)| leaves << order.get()).sum()
    }
}

/// A folio whose leaves were all looked at: the same questions as of a [`Ledger`], answered by what stands in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    refs: u64,
    cache_refs: u64,
    classes: [Found; 3],
}

impl Walked {
    /// One class.
    #[must_use]
    pub const fn class(&self, class: Class) -> &Found {
        &self.classes[class as usize]
    }

    /// In which classes the owner who asks maps the folio.
    #[must_use]
    pub fn mine(&self) -> Mine {
        self.classes.map(|found| found.mine)
    }

    /// N1a.
    #[must_use]
    pub fn unreached_by_walk(&self) -> bool {
        self.classes.iter().all(|found| found.leaves() == 0)
    }

    /// N2, of `owner`.
    #[must_use]
    pub fn shared_by_walk(&self, among: &[Class], owner: u32) -> bool {
        let found = among.iter().map(|&class| self.class(class));
        found.into_iter().any(|found| found.more_owners || found.owner.is_some_and(|first| first != owner))
    }

    /// N3.
    pub fn huge_at_both_by_walk<'a>(&self, behind: impl IntoIterator<Item = &'a Self>, congruent: Order) -> Order {
        let own = only_order(self.class(Class::Process).by_level).min(congruent);
        behind.into_iter().fold(own, |least, host| {
            let levels = added(host.class(Class::Vm).by_level, host.class(Class::Nested).by_level);
            least.min(only_order(levels))
        })
    }

    /// N4.
    #[must_use]
    pub fn only_by_processes_by_walk(&self) -> bool {
        self.class(Class::Process).leaves() > 0 && OF_VMS.iter().all(|&class| self.class(class).leaves() == 0)
    }

    /// N5.
    #[must_use]
    pub fn held_by_leaves_only_by_walk(&self) -> bool {
        self.refs == self.class(Class::Process).leaves() + self.cache_refs
    }

    /// N6: leaves that a walk from the folio has to visit.
    #[must_use]
    pub fn leaves_by_walk(&self) -> u64 {
        self.classes.iter().map(Found::leaves).sum()
    }
}

/// Why stage 2 has no large leaf at a guest frame (N7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHuge {
    /// No slot has all of the block, or it is a device's.
    Slot,
    /// The slot's stores are logged.
    Logged,
    /// The VMM has nothing mapped there, smaller leaves, or a folio of a smaller order.
    Behind,
    /// The addresses do not agree up to the order of the leaf.
    Congruence,
    /// Tables that somebody composes from lie in the block.
    Shadowed,
}

impl fmt::Display for NotHuge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slot => "no slot has all of the block",
            Self::Logged => "stores to the slot are logged",
            Self::Behind => "the memory behind is in smaller pieces",
            Self::Congruence => "guest frames and frames are not congruent",
            Self::Shadowed => "tables that are shadowed lie in the block",
        })
    }
}

impl core::error::Error for NotHuge {}

/// How much of what a VM has mapped is huge at both levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlignmentYield {
    /// Pages that the guest's own tables map and stage 2 does too.
    pub pages: u64,
    /// Of those, pages under a leaf of 2 MiB or more at either level.
    pub huge: u64,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// What the scheme says of `folio`, in constant time; `owner` asks.
    pub fn ledger(&self, folio: Folio<'_>, owner: u32) -> Ledger {
        let counts = self.counts(folio);
        let classes = Class::ALL.map(|class| {
            let t = Classes::<A>::class(&counts, class);
            OfClass {
                mapped: A::mapped(&t),
                leaves: A::leaves(&t),
                pages: A::total(&t),
                by_level: A::by_level(&t),
                shared: A::maybe_shared(&t, owner),
                early_stop: A::early_stop(&t),
            }
        });
        Ledger { order: folio.order(), refs: folio.refs(), cache_refs: cache_refs(folio), classes }
    }

    /// The same by looking at every leaf of every table, while nothing changes.
    pub fn ledger_by_walk(&self, folio: Folio<'_>, owner: u32) -> Walked {
        let classes = Class::ALL.map(|class| {
            let mut found = Found::default();
            for_each_leaf(self, class, &mut |of, place, leaf| {
                if leaf.attrs.has(Attrs::UNTRACKED) || leaf.pfn < folio.head() || folio.end() <= leaf.pfn {
                    return;
                }
                found.by_level[usize::from(place.level.get()) - 1] += 1;
                found.more_owners |= *found.owner.get_or_insert(of) != of;
                found.mine |= of == owner;
            });
            found
        });
        Walked { refs: folio.refs(), cache_refs: cache_refs(folio), classes }
    }

    /// N7: may stage 2 translate guest frame `gfn` by a leaf of `level`? `shadowed` counts the tables within the guest frames it is given from which somebody composes: they must be
    /// write-protected one by one. A snapshot, whatever the scheme.
    ///
    /// # Errors
    /// [`NotHuge`]: the first reason found.
    pub fn may_be_huge(
        &self,
        vm: VmId,
        view: AsId,
        gfn: u64,
        level: Level,
        shadowed: impl FnOnce(Range<u64>) -> u64,
    ) -> Result<(), NotHuge> {
        let pages = level.entry_pages();
        let block = gfn & !(pages - 1);
        let (_, slot) = self.slot_at(vm, view, gfn).ok_or(NotHuge::Slot)?;
        let Backing::Host(start) = slot.backing else { return Err(NotHuge::Slot) };
        if block < slot.gfn || slot.gfns().end < block + pages {
            return Err(NotHuge::Slot);
        }
        if slot.flags.has(SlotFlags::LOGGING) {
            return Err(NotHuge::Logged);
        }
        let page = start + (block - slot.gfn);
        let (pfn, mapped) = self.behind_page(self.vm_space(vm), &slot, page, level).ok_or(NotHuge::Behind)?;
        let folio = self.folio(pfn).ok_or(NotHuge::Behind)?;
        if folio.order() < level.leaf_order() {
            return Err(NotHuge::Behind);
        }
        if !pfn.raw().is_multiple_of(pages) {
            return Err(NotHuge::Congruence);
        }
        if mapped.end < page + pages {
            return Err(NotHuge::Behind);
        }
        if shadowed(block..block + pages) > 0 {
            return Err(NotHuge::Shadowed);
        }
        Ok(())
    }

    /// The frame at page `page` of a slot's VMM, if what is mapped there is mapped by leaves of `level` or more, or need not be; and the pages that are mapped with it.
    fn behind_page(&self, space: SpaceId, slot: &Slot, page: u64, level: Level) -> Option<(Pfn, Range<u64>)> {
        if slot.flags.has(SlotFlags::UNMAPPED)
            && let Some(pfn) = self.cached_page(space, page)
        {
            let vma = self.find_vma(&self.space(space), page).filter(|vma| vma.flags().is_accessible())?;
            return Some((pfn, vma.start()..vma.end()));
        }
        let (place, leaf) = self.page_table(space).lookup(self, page)?;
        let counted = place.level >= level && leaf.attrs.has(Attrs::USER) && !leaf.attrs.has(Attrs::UNTRACKED);
        counted.then(|| (leaf.pfn.add(page - place.page), place.page..place.page + place.level.entry_pages()))
    }

    /// N7 page by page: each has the frame behind it that one leaf over all of the block would give it.
    pub fn may_be_huge_by_walk(&self, vm: VmId, view: AsId, gfn: u64, level: Level) -> bool {
        let pages = level.entry_pages();
        let block = gfn & !(pages - 1);
        let mut first = None;
        (0..pages).all(|i| {
            let Some((id, slot)) = self.slot_at(vm, view, block + i) else { return false };
            let Backing::Host(start) = slot.backing else { return false };
            let page = start + (block + i - slot.gfn);
            let Some((pfn, mapped)) = self.behind_page(self.vm_space(vm), &slot, page, level) else { return false };
            let Some(folio) = self.folio(pfn) else { return false };
            let &mut (of, head, at, start) = first.get_or_insert((id, folio.head(), pfn, mapped.start));
            let fits = at.raw().is_multiple_of(pages) && pfn == at.add(i);
            fits && (of, head, start) == (id, folio.head(), mapped.start) && !slot.flags.has(SlotFlags::LOGGING)
        })
    }

    /// N8: the working set of a VM, in pages, found in its tables; [`vm_pages`](Self::vm_pages) keeps it as a number, whatever the scheme.
    pub fn working_set_by_walk(&self, vm: VmId) -> u64 {
        let mut pages = 0;
        for view in AsId::ALL {
            self.for_each_stage2_leaf(vm, view, 0..u64::MAX, &mut |place, _| pages += place.level.entry_pages());
        }
        pages
    }

    /// How much of what both a guest's tables and stage 2 map is huge at both levels. `guest` calls what it is given for each leaf of the guest: with its first guest frame and its level.
    pub fn alignment_yield(
        &self,
        vm: VmId,
        view: AsId,
        guest: impl FnOnce(&mut dyn FnMut(u64, Level)),
    ) -> AlignmentYield {
        let mut sum = AlignmentYield::default();
        guest(&mut |gfn, own| {
            let gfns = gfn..gfn + own.entry_pages();
            self.for_each_stage2_leaf(vm, view, gfns.clone(), &mut |place, _| {
                let end = (place.page + place.level.entry_pages()).min(gfns.end);
                let pages = end - place.page.max(gfns.start);
                sum.pages += pages;
                sum.huge += if own.min(place.level) > Level::ONE { pages } else { 0 };
            });
        });
        sum
    }
}

fn cache_refs(folio: Folio<'_>) -> u64 {
    u64::from(folio.flags().has(FolioFlags::CACHE))
}

/// Every leaf of a class, owner by owner.
fn for_each_leaf<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    class: Class,
    visit: &mut dyn FnMut(u32, Place, Leaf),
) {
    if class == Class::Process {
        for space in manager.spaces() {
            let table = manager.page_table(space);
            table.for_each_leaf(manager, PAGES_END, &mut |place, leaf| visit(space.raw(), place, leaf));
        }
    } else {
        for_each_leaf_by_region(manager, class, &mut |owner, _, leaves| {
            leaves(&mut |place, leaf| visit(owner, place, leaf));
        });
    }
}
