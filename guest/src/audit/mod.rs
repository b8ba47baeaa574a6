//! The recount: every leaf of every table, against what the counts say.
//!
//! Nothing here trusts the count layer. A [`Recount`] walks the tables of all spaces into rows of its own, one per
//! frame, in memory that the manager does not manage, and then asks the scheme about every folio.

mod composed;
pub(crate) mod stage2;

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use crate::addr::{Level, Order, Pfn};
use crate::folio::{Folio, FolioFlags};
use crate::format::{Attrs, Leaf};
use crate::mapcount::{Accounting, Evidence, Truth};
use crate::memory::{Memory, Tlb};
use crate::page_table::Place;
use crate::space::{Manager, PAGES_END, SpaceId, Tracking, VmaFlags};
use crate::sync::AtomicU64;

/// Words of a row.
const ROW: usize = 8;
// A row holds, for its frame: the leaves over it; and, where a folio starts, what was seen of the folio: its leaves of each size, and so on.
const COVER: usize = 0;
const LEVELS: usize = 1;
const TUPLES: usize = 4;
const REGIONS_OWNERS: usize = 5;
const LAST_TABLE: usize = 6;
const LAST_REGION_OWNER: usize = 7;

/// What disagreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The scheme's state or answer, by name.
    Scheme(&'static str),
    /// References other than leaves plus page cache.
    References {
        /// What the descriptor says.
        has: u64,
        /// What was found.
        expected: u64,
    },
    /// A leaf that maps no folio.
    NoFolio,
    /// A leaf outside every vma, or with rights beyond its vma's.
    Rights,
    /// A leaf that maps another page than the vma's linear mapping says.
    Place,
    /// A leaf of a kind that the vma's tracking class does not have, or one marked uncounted that maps memory of the manager.
    Class,
    /// A page marked exclusive that another leaf maps too.
    Exclusive,
    /// A space's resident pages.
    Rss {
        /// What the space says.
        has: u64,
        /// What was found.
        expected: u64,
    },
    /// Leaves that a walk from the folio finds.
    Reverse {
        /// What the walk found.
        has: u64,
        /// What the tables hold.
        expected: u64,
    },
    /// The quantities of one folio contradict each other: T >= M >= K >= V >= O and so on.
    Quantities,
    /// A statistic of the manager: AnonPages, Mapped or AnonHugePages.
    Statistic {
        /// What the manager says.
        has: i64,
        /// The sum over all folios.
        expected: i64,
    },
    /// What is composed for a tenant's own tenant, or for an MMU: what is wrong with it.
    Composed(&'static str),
    /// Memory that no folio, table or record accounts for.
    Frames,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(what) | Self::Composed(what) => f.write_str(what),
            Self::References { has, expected } => write!(f, "{has} references where {expected} were found"),
            Self::NoFolio => f.write_str("a leaf maps no folio"),
            Self::Rights => f.write_str("a leaf allows more than its vma"),
            Self::Place => f.write_str("a leaf maps another page than its vma says"),
            Self::Class => f.write_str("a leaf of a kind that its vma does not map"),
            Self::Exclusive => f.write_str("a page marked exclusive is mapped elsewhere too"),
            Self::Rss { has, expected } => write!(f, "Rss {has} where {expected} pages are mapped"),
            Self::Reverse { has, expected } => write!(f, "{has} leaves found from the folio where {expected} are"),
            Self::Quantities => f.write_str("the recount contradicts itself"),
            Self::Statistic { has, expected } => {
                write!(f, "a statistic of {has} pages where the folios make {expected}")
            }
            Self::Frames => f.write_str("frames are lost"),
        }
    }
}

/// What a recount found, and what the scheme knew of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Comparisons made.
    pub checks: u64,
    /// Comparisons that failed.
    pub mismatches: u64,
    /// The first that failed, and the frame it was about.
    pub first: Option<(Mismatch, u64)>,
    /// Folios that the scheme calls exclusive though two owners map them.
    pub false_exclusive: u64,
    /// Mapped folios.
    pub folios: u64,
    /// Of those, of order 1 and above.
    pub large_folios: u64,
    /// Leaves, of any order.
    pub leaves: u64,
    /// Pages mapped, multiplicity counted.
    pub mapped_pages: u64,
    /// Distinct pages mapped.
    pub distinct_pages: u64,
    /// What the scheme's statistics say of the former, where it says anything.
    pub said_pages: u64,
    /// Folios mapped by two owners or more.
    pub shared: u64,
    /// Folios the scheme says may be.
    pub said_shared: u64,
    /// Folios the scheme cannot place without a walk.
    pub unknown_shared: u64,
    /// Anonymous folios partly mapped.
    pub partial: u64,
    /// Of those, the ones the scheme knows.
    pub said_partial: u64,
}

impl Audit {
    fn check(&mut self, good: bool, frame: Pfn, what: Mismatch) {
        self.checks += 1;
        if !good {
            self.mismatches += 1;
            self.first.get_or_insert((what, frame.raw()));
        }
    }
}

/// Memory for recounts.
#[derive(Clone, Copy, Debug)]
pub struct Recount {
    rows: Pfn,
    base: u64,
    frames: u64,
    exhaustive: bool,
}

/// One folio before a recount.
struct Seen<'a, M, A> {
    recount: &'a Recount,
    manager: &'a Manager<M, A>,
    folio: Folio<'a>,
}

impl<M: Memory + Tlb, A: Accounting> Evidence for Seen<'_, M, A> {
    fn cover(&self, page: u64) -> u64 {
        self.recount.cover(self.manager, self.folio, page)
    }
    fn whole_regions(&self) -> Option<u64> {
        self.recount.exhaustive.then(|| self.manager.count_whole_regions(self.folio))
    }
    fn leaves_of(&self, owner: u32) -> Option<u64> {
        self.recount.exhaustive.then(|| self.manager.count_leaves_of(self.folio, owner))
    }
}

/// Pages that the scheme says are mapped, summed over all folios: what the statistics should be.
#[derive(Clone, Copy, Default)]
struct Said {
    anon: i64,
    file: i64,
    huge: i64,
}

impl Recount {
    /// Frames of scratch memory that `frames` managed frames take.
    #[must_use]
    pub const fn scratch_frames(frames: u64) -> u64 {
        (frames * ROW as u64 * 8).div_ceil(4096)
    }

    /// Recounts in the scratch frames from `rows` on, for a manager whose frames span `base..base + frames`.
    #[must_use]
    pub const fn new(rows: Pfn, base: Pfn, frames: u64) -> Self {
        Self { rows, base: base.raw(), frames, exhaustive: false }
    }

    /// Also walks from every folio to its leaves, and counts them by owner. The time may grow with the square of the vmas: for tests.
    #[must_use]
    pub const fn exhaustive(self) -> Self {
        Self { exhaustive: true, ..self }
    }

    fn row<'a, M: Memory>(&self, memory: &'a M, pfn: Pfn) -> &'a [AtomicU64] {
        let word = (pfn.raw() - self.base) as usize * ROW;
        &memory.frame(self.rows.add((word / 512) as u64)).0[word % 512..word % 512 + ROW]
    }

    /// Recounts all leaves and compares. Nothing may change meanwhile.
    pub fn run<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, A>) -> Audit {
        let mut audit = Audit::default();
        let memory = manager.memory();
        memory.zero(self.rows, Self::scratch_frames(self.frames));
        for space in manager.spaces() {
            self.count_space(manager, space, &mut audit);
        }
        let mut said = Said::default();
        let span = manager.frames().span();
        for folio in folios(manager) {
            self.check_folio(manager, folio, &mut audit, &mut said);
        }
        let statistics = manager.statistics();
        for (statistic, expected) in [
            (&statistics.anon_mapped, said.anon),
            (&statistics.file_mapped, said.file),
            (&statistics.huge_mapped, said.huge),
        ] {
            let has = statistic.get();
            audit.check(has == expected, span.start, Mismatch::Statistic { has, expected });
        }
        // Exclusive marks can only be judged when all leaves are counted.
        for space in manager.spaces() {
            manager.page_table(space).for_each_leaf(manager, PAGES_END, &mut |place, leaf| {
                if leaf.attrs.has(Attrs::EXCLUSIVE) && !leaf.attrs.has(Attrs::UNTRACKED) {
                    let alone = (0..place.level.entry_pages())
                        .all(|i| self.row(memory, leaf.pfn.add(i))[COVER].load(Relaxed) == 1);
                    audit.check(alone, leaf.pfn, Mismatch::Exclusive);
                }
            });
        }
        audit
    }

    fn count_space<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, A>, space: SpaceId, audit: &mut Audit) {
        let (mut rss, mut is_large) = (0, false);
        let mut vmas = manager.vmas(space).peekable();
        // Leaves come table by table, a large leaf before the tables beside it: look a vma up for each that is out of order.
        let mut current = vmas.next();
        manager.page_table(space).for_each_leaf(manager, PAGES_END, &mut |place, leaf| {
            let inside = |vma: &crate::space::Vma<'_>| vma.start() <= place.page && place.page < vma.end();
            if !current.as_ref().is_some_and(inside) {
                current = manager.vmas(space).find(inside);
            }
            rss += self.count_leaf(manager, space, current, place, leaf, audit);
            is_large |= manager.folio(leaf.pfn).is_some_and(|folio| folio.order() > Order::HUGE);
        });
        if is_large {
            self.count_regions(manager, space);
        }
        let has = manager.rss(space);
        audit.check(has == rss, manager.root(space), Mismatch::Rss { has, expected: rss });
    }

    /// Counts the regions of folios above order 9, of which one region may have leaves in tables of two levels, with those of another region in between.
    fn count_regions<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, A>, space: SpaceId) {
        for vma in manager.vmas(space) {
            let seen = 1 << 63 | u64::from(vma.region());
            manager.page_table(space).for_each_leaf_in(manager, vma.start()..vma.end(), &mut |_, leaf| {
                if leaf.attrs.has(Attrs::UNTRACKED) {
                    return;
                }
                let Some(folio) = manager.folio(leaf.pfn).filter(|folio| folio.order() > Order::HUGE) else { return };
                let row = self.row(manager.memory(), folio.head());
                // No table has such a number, and the next space's regions are others: tuples do not mind.
                if row[LAST_TABLE].load(Relaxed) != seen {
                    row[LAST_TABLE].store(seen, Relaxed);
                    add(&row[REGIONS_OWNERS], 1 << 32);
                }
            });
        }
    }

    /// Enters one leaf; the pages it adds to Rss.
    fn count_leaf<M: Memory + Tlb, A: Accounting>(
        &self,
        manager: &Manager<M, A>,
        space: SpaceId,
        vma: Option<crate::space::Vma<'_>>,
        place: Place,
        leaf: Leaf,
        audit: &mut Audit,
    ) -> u64 {
        let pages = place.level.entry_pages();
        let Some(vma) = vma.filter(|vma| place.page + pages <= vma.end()) else {
            audit.check(false, leaf.pfn, Mismatch::Rights);
            return pages;
        };
        let flags = vma.flags();
        let rights = (!leaf.attrs.has(Attrs::WRITE) || flags.has(VmaFlags::WRITE))
            && (!leaf.attrs.has(Attrs::EXEC) || flags.has(VmaFlags::EXEC))
            && (!leaf.attrs.has(Attrs::USER) || flags.is_accessible());
        audit.check(rights, leaf.pfn, Mismatch::Rights);
        if leaf.attrs.has(Attrs::UNTRACKED) {
            let in_place = match vma.tracking() {
                Tracking::Tracked => false,
                Tracking::Pfn => leaf.pfn == vma.frame_at(place.page),
                Tracking::Mixed => true,
            };
            audit.check(in_place && place.level == Level::ONE, leaf.pfn, Mismatch::Place);
            audit.check(!manager.frames().owns_any(leaf.pfn..leaf.pfn.add(1)), leaf.pfn, Mismatch::Class);
            let is_safe = !leaf.attrs.has(Attrs::WRITE) || !vma.is_private();
            audit.check(is_safe, leaf.pfn, Mismatch::Exclusive);
            return 0;
        }
        let Some(folio) = manager.folio(leaf.pfn) else {
            audit.check(false, leaf.pfn, Mismatch::NoFolio);
            return pages;
        };
        // What is counted in a region of class Pfn is a private copy.
        let in_class = vma.tracking() != Tracking::Pfn || (folio.is_anon() && folio.order() == Order::BASE);
        audit.check(in_class, leaf.pfn, Mismatch::Class);
        let mapping = manager.mapping(folio);
        let object = if folio.is_anon() { vma.family() } else { vma.object() };
        let linear = mapping.index + (leaf.pfn.raw() - folio.head().raw()) == vma.index(place.page);
        audit.check(linear && object == mapping.object, leaf.pfn, Mismatch::Place);
        // A private page that may be written must be ours alone, and a file's own page never may.
        let private_write = leaf.attrs.has(Attrs::WRITE) && vma.is_private();
        let safe = !private_write || (folio.is_anon() && leaf.attrs.has(Attrs::EXCLUSIVE));
        audit.check(safe, leaf.pfn, Mismatch::Exclusive);

        // The regions of larger folios are counted apart.
        self.enter(manager, folio, place, leaf, space.raw(), vma.region(), folio.order() <= Order::HUGE);
        pages
    }

    /// Enters one leaf of `folio`. Owners, and in each the leaves of a table within a region, come one after the other: a change of any is a new one.
    #[expect(clippy::too_many_arguments, reason = "a leaf, and whose it is")]
    fn enter<M: Memory + Tlb, A: Accounting>(
        &self,
        manager: &Manager<M, A>,
        folio: Folio<'_>,
        place: Place,
        leaf: Leaf,
        owner: u32,
        region: u32,
        count_region: bool,
    ) {
        let memory = manager.memory();
        let row = self.row(memory, folio.head());
        add(&row[LEVELS + (place.level.get() - Level::ONE.get()) as usize], 1);
        for i in 0..place.level.entry_pages() {
            add(&self.row(memory, leaf.pfn.add(i))[COVER], 1);
        }
        let (owner, region) = (u64::from(owner), u64::from(region));
        let last = row[LAST_REGION_OWNER].load(Relaxed);
        if last & 0xffff_ffff != owner {
            add(&row[REGIONS_OWNERS], 1);
        }
        if last >> 32 != region && count_region {
            add(&row[REGIONS_OWNERS], 1 << 32);
        }
        if last >> 32 != region || row[LAST_TABLE].load(Relaxed) != place.table.raw() {
            add(&row[TUPLES], 1);
        }
        row[LAST_TABLE].store(place.table.raw(), Relaxed);
        row[LAST_REGION_OWNER].store(region << 32 | owner, Relaxed);
    }

    /// What the last [`run`](Self::run) found about a folio.
    pub fn truth<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, A>, folio: Folio<'_>) -> Truth {
        let memory = manager.memory();
        let row = self.row(memory, folio.head());
        let distinct = (0..folio.pages()).filter(|&i| self.cover(manager, folio, i) > 0).count() as u64;
        let regions_owners = row[REGIONS_OWNERS].load(Relaxed);
        let levels = [0, 1, 2].map(|level| row[LEVELS + level].load(Relaxed));
        Truth {
            leaves: levels.iter().sum(),
            total: levels[0] + levels[1] * Order::HUGE.pages() + levels[2] * Order::GIGANTIC.pages(),
            entire: match folio.order() {
                Order::HUGE => levels[1],
                Order::GIGANTIC => levels[2],
                _ => 0,
            },
            levels,
            owner: row[LAST_REGION_OWNER].load(Relaxed) as u32,
            distinct,
            tuples: row[TUPLES].load(Relaxed),
            regions: regions_owners >> 32,
            owners: regions_owners & 0xffff_ffff,
        }
    }

    /// Leaves over page `page` of a folio, as the last [`run`](Self::run) found.
    pub fn cover<M: Memory + Tlb, A: Accounting>(&self, manager: &Manager<M, A>, folio: Folio<'_>, page: u64) -> u64 {
        self.row(manager.memory(), folio.head().add(page))[COVER].load(Relaxed)
    }

    fn check_folio<M: Memory + Tlb, A: Accounting>(
        &self,
        manager: &Manager<M, A>,
        folio: Folio<'_>,
        audit: &mut Audit,
        said: &mut Said,
    ) {
        let truth = self.truth(manager, folio);
        audit.check(truth.is_coherent(folio.pages()), folio.head(), Mismatch::Quantities);
        if self.exhaustive {
            let has = manager.count_leaves(folio);
            audit.check(has == truth.leaves, folio.head(), Mismatch::Reverse { has, expected: truth.leaves });
        }
        let target = manager.counts(folio);
        let verdict = A::check(&target, &truth, &Seen { recount: self, manager, folio });
        let wrong = verdict.err();
        audit.check(wrong.is_none(), folio.head(), Mismatch::Scheme(wrong.unwrap_or_default()));
        let expected = truth.leaves + u64::from(folio.flags().has(FolioFlags::CACHE));
        let has = folio.refs();
        audit.check(has == expected, folio.head(), Mismatch::References { has, expected });
        if truth.leaves == 0 {
            return;
        }
        audit.folios += 1;
        audit.large_folios += u64::from(folio.order() > Order::BASE);
        audit.leaves += truth.leaves;
        audit.mapped_pages += truth.total;
        audit.distinct_pages += truth.distinct;
        let pages = A::mapped_pages(&target).value().unwrap_or(0);
        audit.said_pages += pages;
        *(if folio.is_anon() { &mut said.anon } else { &mut said.file }) += pages as i64;
        said.huge += A::huge_pages(&target).value().unwrap_or(0) as i64;
        audit.shared += u64::from(truth.owners > 1);
        match A::maybe_shared(&target, truth.owner).value() {
            Some(said) => {
                audit.said_shared += u64::from(said);
                audit.false_exclusive += u64::from(!said && truth.owners > 1);
            }
            None => audit.unknown_shared += 1,
        }
        if folio.is_anon() && truth.distinct < folio.pages() {
            audit.partial += 1;
            audit.said_partial += u64::from(A::partially_mapped(&target).value() == Some(true));
        }
    }
}

/// Every folio, by its first frame.
fn folios<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>) -> impl Iterator<Item = Folio<'_>> {
    let Range { start: mut pfn, end } = manager.frames().span();
    core::iter::from_fn(move || {
        while pfn < end {
            let folio = manager.folio(pfn).filter(|folio| folio.head() == pfn);
            pfn = pfn.add(folio.map_or_else(|| manager.frames().gap(pfn), |folio| folio.pages()));
            if folio.is_some() {
                return folio;
            }
        }
        None
    })
}

fn add(word: &AtomicU64, n: u64) {
    word.store(word.load(Relaxed) + n, Relaxed);
}
