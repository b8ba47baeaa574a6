//! Address spaces of tenant processes: vmas over one page table each, and every operation on them.
//!
//! The [`Manager`] owns the frames, and everything it knows lies in frames: spaces and memory objects in directories, vmas and
//! large descriptors in slabs. All operations take `&self`; see [`sync`](crate::sync) for the lock order.
//!
//! Order of a removal, everywhere: clear entries, flush, subtract counts, drop references, free. Order of a
//! mapping: references, counts, entries.

mod advise;
mod collapse;
mod deferred;
mod driver;
mod fault;
mod fork;
mod map;
mod migrate;
mod object;
mod pin;
mod protect;
mod reclaim;
mod remap;
mod reverse;
mod rights;
mod split;
mod tree;
mod vma;
mod zap;

pub use collapse::CollapseRefused;
pub use deferred::SplitReport;
pub use fault::{Access, Fault, FaultError, FaultKind};
pub use map::{Map, MapError};
pub use migrate::MigrateFailed;
pub use object::ObjectId;
pub use pin::Pin;
pub use reclaim::ReclaimReport;
pub use reverse::{SpaceBusy, UnmapFailed};
pub use rights::{Advice, ObjectKind, Prot, STACK_GAP_PAGES, STACK_REACH_PAGES, file_word, stack_grows};
pub use vma::{Tracking, Vma, VmaFlags};

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use crate::addr::{ENTRIES, GVA_END, Level, Order, PAGE_SHIFT, Pfn};
use crate::folio::{
    Directory, Extensions, Folio, FolioFlags, FrameStats, Frames, InitError, Mapping, REF_LIMIT, Slab, add_to,
};
use crate::format::LongMode;
use crate::mapcount::{
    Accounting, Batch, COUNT_LIMIT, Delta, Neighbours, Refused, Target, descriptor_words, large_descriptor_words,
    small_descriptor_words,
};
use crate::memory::{FlushScope, Memory, Tlb};
use crate::page_table::{Flush, PageTable, Part, Tables};
use crate::sync::tally::{Call, counting};
use crate::sync::{AtomicU64, ReadGuard, WordGuard, lock_word, read_lock};

/// One past the last page number of a tenant.
pub const PAGES_END: u64 = GVA_END >> PAGE_SHIFT;

/// Frames kept back for what removals need: table pages of leaves that are split, records of vmas that are cut. One hole takes at most six.
const RESERVE: u64 = 32;

/// Removed leaves that are released under one lock of the frames: a word has a bit for each.
const RELEASED_AT_ONCE: usize = 64;

/// When anonymous faults use folios above order 0, as in Linux's `transparent_hugepage/enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargeFolios {
    /// Wherever they fit, unless advised against.
    Always,
    /// Only where `MADV_HUGEPAGE` asked for them.
    Advised,
    /// Never.
    Never,
}

/// What faults may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Orders that anonymous faults try, largest first: bit n stands for order n. Order 0 is always tried.
    pub orders: u32,
    /// Where orders above 0 are tried at all.
    pub large: LargeFolios,
    /// The highest level at which leaves are used: 1, 2, or 3 where the CPU has 1 GiB leaves.
    pub max_leaf: Level,
}

impl Policy {
    /// All orders up to `max`, wherever they fit, with 2 MiB leaves.
    #[must_use]
    pub const fn up_to(max: Order) -> Self {
        Self { orders: (2 << max.get()) - 1, large: LargeFolios::Always, max_leaf: Level::TWO }
    }

    /// Order 0 and `order` only.
    #[must_use]
    pub const fn only(order: Order) -> Self {
        Self { orders: 1 | 1 << order.get(), ..Self::up_to(order) }
    }
}

/// Names an address space; also the owner id of its mappings. Recycled only after its last leaf is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub(crate) u32);

impl SpaceId {
    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// What the manager counts for itself, apart from the scheme.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Pages that the scheme says are mapped, of anonymous folios (AnonPages).
    pub anon_mapped: Signed,
    /// Likewise of file folios (Mapped).
    pub file_mapped: Signed,
    /// Likewise by huge leaves (AnonHugePages, FilePmdMapped).
    pub huge_mapped: Signed,
    /// Of these, the pages of file folios (FilePmdMapped).
    pub file_huge_mapped: Signed,
    /// Frames that had to be cleared because they were not known to be zero.
    pub cleared: AtomicU64,
    /// Frames handed out that were known to be zero. Under the lock of the frames.
    pub known_zero: AtomicU64,
    /// Frames copied.
    pub copied: AtomicU64,
    /// Leaves split into a table.
    pub splits: AtomicU64,
}

impl Statistics {
    /// What a change of counts of anonymous or other folios comes to.
    #[inline(always)]
    fn note(&self, is_anon: bool, delta: Delta) {
        if is_anon { &self.anon_mapped } else { &self.file_mapped }.add(delta.mapped);
        self.huge_mapped.add(delta.huge);
        if !is_anon {
            self.file_huge_mapped.add(delta.huge);
        }
    }
}

/// A signed statistic.
#[derive(Debug, Default)]
pub struct Signed(AtomicU64);

impl Signed {
    /// Its value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed).cast_signed()
    }
    #[inline(always)]
    fn add(&self, n: i64) {
        if n != 0 {
            self.0.fetch_add(n.cast_unsigned(), Relaxed);
        }
    }
}

/// Where the metadata stands, in bytes and records; tables and vmas apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Directory words and per-page counts, set aside at start.
    pub carved_bytes: u64,
    /// Slots of broken blocks.
    pub slot_bytes: u64,
    /// Records of large folios, in frames' bytes.
    pub folio_bytes: u64,
    /// Large folios.
    pub large_folios: u64,
    /// Frames managed.
    pub frames: u64,
    /// vmas, memslots and shadow pages, in frames' bytes.
    pub vma_bytes: u64,
    /// Spaces, objects and VMs, in frames' bytes.
    pub directory_bytes: u64,
}

/// The page-table manager: frames, folios and address spaces, with mappings counted by scheme `A`.
pub struct Manager<M, A> {
    pub(crate) frames: Frames<M>,
    folios: Slab,
    /// What folios have grown to.
    extensions: Extensions,
    vmas: Slab,
    spaces: Directory,
    objects: Directory,
    /// Tenant VMs, their memslots, and the table pages that are composed for them.
    pub(crate) vms: Directory,
    pub(crate) slots: Slab,
    pub(crate) shadows: Slab,
    policy: Policy,
    limit: AtomicU64,
    ref_limit: AtomicU64,
    statistics: Statistics,
    deferred: deferred::DeferredQueue,
    /// Held by whoever moves folios, and so holds several spaces.
    moving: AtomicU64,
    /// Anonymous objects go under it, so that who holds it may look at one that might go.
    families: AtomicU64,
    /// The largest order of a folio that there ever was, for schemes that count regions.
    largest: AtomicU64,
    scheme: PhantomData<A>,
}

impl<M, A: Accounting> fmt::Debug for Manager<M, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Manager({}, {:?})", A::NAME, self.frames)
    }
}

/// Leaves that an operation has cleared, until they are flushed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed<'a> {
    pub(crate) folio: Folio<'a>,
    pub(crate) batch: Batch,
    pub(crate) beside: Neighbours,
    pub(crate) dirty: bool,
}

/// What becomes of leaves that a scheme is told of.
#[derive(Clone, Copy)]
enum Change {
    /// They are about to appear.
    Add,
    /// They are about to be duplicated by fork.
    Dup,
    /// They are gone, and flushed.
    Sub,
}

impl Change {
    #[inline(always)]
    fn tell<M: Memory, A: Accounting>(
        self,
        target: &Target<'_, M>,
        batch: &Batch,
        beside: Neighbours,
    ) -> Result<Delta, Refused> {
        match self {
            Self::Add => counting(Call::Add, || A::add(target, batch, beside)),
            Self::Dup => counting(Call::Dup, || A::dup(target, batch, beside)),
            Self::Sub => Ok(counting(Call::Sub, || A::sub(target, batch, beside))),
        }
    }
}

type Table = PageTable<LongMode>;

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Takes over the frames of `ranges`; `zeroed` says that they are all known to be zero.
    ///
    /// # Errors
    /// When the ranges are too small or too far apart; see [`InitError`].
    pub fn new(memory: M, ranges: &[Range<Pfn>], zeroed: bool, policy: Policy) -> Result<Self, InitError> {
        let frames = Frames::new(memory, ranges, zeroed, small_descriptor_words::<A>(), A::PAGE_COUNTS)?;
        frames.set_reserve(RESERVE.min(frames.stats().total / 16));
        Ok(Self {
            frames,
            folios: Slab::new(large_descriptor_words::<A>()),
            extensions: Extensions::new(A::EXTENSION_WORDS[0], A::EXTENSION_WORDS[1]),
            vmas: Slab::new(vma::WORDS),
            spaces: Directory::new(),
            objects: Directory::new(),
            vms: Directory::new(),
            slots: Slab::new(crate::stage2::slot::WORDS),
            shadows: Slab::new(crate::stage2::shadow_page::WORDS),
            policy,
            limit: AtomicU64::new(COUNT_LIMIT),
            ref_limit: AtomicU64::new(REF_LIMIT),
            statistics: Statistics::default(),
            deferred: deferred::DeferredQueue::default(),
            moving: AtomicU64::new(0),
            families: AtomicU64::new(0),
            largest: AtomicU64::new(0),
            scheme: PhantomData,
        })
    }

    /// The frames.
    pub fn frames(&self) -> &Frames<M> {
        &self.frames
    }

    /// The embedder's memory.
    pub fn memory(&self) -> &M {
        self.frames.memory()
    }

    /// What it counted.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Changes the policy; no operation may run meanwhile.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Lowers the limit of a folio's counts, to see mappings refused. It is [`COUNT_LIMIT`] otherwise, and never above.
    pub fn set_count_limit(&self, limit: u64) {
        self.limit.store(limit.min(COUNT_LIMIT), Relaxed);
    }

    /// Lowers the limit of a folio's references, to see mappings refused under any scheme. It is [`REF_LIMIT`] otherwise, and never above.
    pub fn set_ref_limit(&self, limit: u64) {
        self.ref_limit.store(limit.min(REF_LIMIT), Relaxed);
    }

    /// What the metadata costs now.
    pub fn metadata(&self) -> Metadata {
        let FrameStats { total, slots, carved, .. } = self.frames.stats();
        let bytes = |frames: u64| frames << PAGE_SHIFT;
        Metadata {
            carved_bytes: bytes(carved),
            slot_bytes: bytes(slots),
            folio_bytes: bytes(self.folios.nr_frames() + self.extensions.nr_frames()),
            large_folios: self.folios.in_use(),
            frames: total,
            vma_bytes: bytes(self.vmas.nr_frames() + self.slots.nr_frames() + self.shadows.nr_frames()),
            directory_bytes: bytes(self.spaces.nr_frames() + self.objects.nr_frames() + self.vms.nr_frames()),
        }
    }

    /// Gives back the frames of empty slabs and directories; whether every frame is free then: what is left at the end.
    pub fn trim(&self) -> bool {
        self.folios.trim(&self.frames);
        self.extensions.trim(&self.frames);
        self.vmas.trim(&self.frames);
        self.spaces.trim(&self.frames);
        self.objects.trim(&self.frames);
        self.vms.trim(&self.frames);
        self.slots.trim(&self.frames);
        self.shadows.trim(&self.frames);
        self.frames.all_free()
    }

    // --- spaces ----------------------------------------------------------------------------------------------

    /// A new address space with nothing in it.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`].
    pub fn create_space(&self) -> Result<SpaceId, MapError> {
        let root = self.alloc_table().ok_or(MapError::OutOfFrames)?;
        let Some(number) = self.spaces.alloc(&self.frames) else {
            self.free_table(root, true);
            return Err(MapError::OutOfFrames);
        };
        self.memory().new_root(root);
        let space = self.space(SpaceId(number));
        space.root().store(root.raw(), Relaxed);
        space.sharers().store(1, Relaxed);
        Ok(SpaceId(number))
    }

    /// One more process or thread lives in the space.
    pub fn share_space(&self, id: SpaceId) {
        self.space(id).sharers().fetch_add(1, Relaxed);
    }

    /// One process or thread less lives in the space; whether it was the last, who must [destroy](Self::destroy_space) it.
    pub fn leave_space(&self, id: SpaceId) -> bool {
        self.space(id).sharers().fetch_sub(1, AcqRel) == 1
    }

    /// Tears an address space down: everything unmapped, tables freed bottom-up. Its VMs are gone before.
    pub fn destroy_space(&self, id: SpaceId) {
        let space = self.space(id);
        debug_assert_eq!(space.vms().load(Relaxed), 0, "a VM has lost its VMM");
        let guard = crate::sync::write_lock(space.lock());
        let mut flush = Flush::new();
        let (mut at, mut first) = (0, None);
        while let Some(vma) = self.vma_at_or_above(&space, at) {
            at = vma.end();
            first.get_or_insert(vma.start());
            self.zap(&space, vma, vma.start(), vma.end(), &mut flush);
            self.remove_vma(&space, vma);
        }
        let table = space.table();
        // No table stands where no vma is.
        table.prune(self, 0..PAGES_END, first.unwrap_or(at)..at, &mut flush);
        self.finish(&space, &mut flush);
        drop(guard);
        // Its upper half may be the embedder's.
        self.free_table(table.root(), false);
        self.spaces.free(&self.frames, id.0);
    }

    /// The root table of a space: what an MMU is given.
    pub fn root(&self, id: SpaceId) -> Pfn {
        self.space(id).table().root()
    }

    /// The page table of a space, for walks that only look.
    pub fn page_table(&self, id: SpaceId) -> PageTable<LongMode> {
        self.space(id).table()
    }

    /// Pages mapped in a space (Rss), whatever the scheme.
    pub fn rss(&self, id: SpaceId) -> u64 {
        self.space(id).rss().load(Relaxed)
    }

    /// Holds a space shared: its vmas and tables stand as they are, while faults go on.
    pub(crate) fn hold(&self, id: SpaceId) -> ReadGuard<'_> {
        read_lock(self.space(id).lock())
    }

    /// Address spaces that exist.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceId> + '_ {
        let end = if self.spaces.in_use() == 0 { 1 } else { self.spaces.end() };
        (1..end).filter(|&i| self.spaces.get(&self.frames, i)[0].load(Relaxed) != 0).map(SpaceId)
    }

    /// The vmas of a space in address order. A snapshot: for audits and reports while nothing changes.
    pub fn vmas(&self, id: SpaceId) -> impl Iterator<Item = Vma<'_>> {
        let space = self.space(id);
        let mut at = 0;
        core::iter::from_fn(move || {
            let vma = self.vma_at_or_above(&space, at)?;
            at = vma.end();
            Some(vma)
        })
    }

    pub(crate) fn space(&self, id: SpaceId) -> Space<'_> {
        Space { id, words: self.spaces.get(&self.frames, id.0) }
    }

    // --- folios ----------------------------------------------------------------------------------------------

    /// The folio that frame `pfn` belongs to.
    #[inline(always)]
    pub fn folio(&self, pfn: Pfn) -> Option<Folio<'_>> {
        self.frames.folio(pfn, descriptor_words::<A>())
    }

    /// The counts of a folio, for the queries of its scheme.
    #[inline(always)]
    pub fn counts<'a>(&'a self, folio: Folio<'a>) -> Target<'a, M> {
        Target::new(&self.frames, folio, self.limit.load(Relaxed))
    }

    /// Where a folio belongs.
    #[inline(always)]
    pub fn mapping(&self, folio: Folio<'_>) -> Mapping {
        if grows::<A>() { self.frames.mapping_of(folio) } else { folio.mapping() }
    }

    /// The pages at which the linear mapping of `vma` puts `folio`, within its range and `within`.
    #[inline(always)]
    pub(crate) fn window(&self, vma: Vma<'_>, folio: Folio<'_>, within: Range<u64>) -> Range<u64> {
        vma.window(self.mapping(folio).index, folio.pages(), within)
    }

    /// Extensions in use, of folios of order 0 and of larger ones: what they have grown by for leaves of VMs.
    pub fn extensions(&self) -> [u64; 2] {
        self.extensions.in_use()
    }

    /// Makes room for `most` extensions of a folio: to be asked before leaves of a class are counted that it may not have had yet. False without a frame; nothing has changed then.
    pub(crate) fn grow(&self, folio: Folio<'_>, most: usize) -> bool {
        self.frames.grow(folio, &self.extensions, most)
    }

    /// Tells the scheme of leaves of a folio; never refused when leaves go. Of one of order 0 it sees no more than the count: whoever knows that a folio is
    /// one has a few instructions here.
    #[inline(always)]
    fn tell(&self, change: Change, folio: Folio<'_>, batch: &Batch, beside: Neighbours) -> Result<Delta, Refused> {
        let limit = self.limit.load(Relaxed);
        if folio.is_small() {
            change.tell::<M, A>(&Target::small(&self.frames, folio, limit), batch, beside)
        } else {
            change.tell::<M, A>(&Target::large(&self.frames, folio, limit), batch, beside)
        }
    }

    /// A folio of `order` without references; its contents are zero if `clear`.
    #[inline(always)]
    fn new_folio(&self, order: Order, flags: FolioFlags, mapping: Mapping, clear: bool) -> Option<Folio<'_>> {
        let records = (&self.folios, descriptor_words::<A>());
        let (folio, zeroed) = self.frames.new_folio(order, clear, (flags, mapping), records, |run| {
            if clear && run.zeroed {
                add_to(&self.statistics.known_zero, order.pages() as i64);
            }
        })?;
        if A::NEEDS.region {
            self.largest.fetch_max(u64::from(order.get()), Relaxed);
        }
        if clear && !zeroed {
            self.memory().zero(folio.head(), order.pages());
            self.statistics.cleared.fetch_add(order.pages(), Relaxed);
        }
        Some(folio)
    }

    /// Frees a folio whose last reference is gone.
    #[inline(never)]
    fn free_folio(&self, folio: Folio<'_>) {
        self.unqueue(folio);
        self.free_folios([folio]);
    }

    #[inline(always)]
    fn free_folios<'a>(&self, folios: impl IntoIterator<Item = Folio<'a>>) {
        let extensions = if grows::<A>() { Some(&self.extensions) } else { None };
        self.frames.free_folios(folios, &self.folios, extensions);
    }

    /// Takes a folio that goes out of the deferred-split queue, if it is there.
    fn unqueue(&self, folio: Folio<'_>) {
        if folio.flags().has(FolioFlags::QUEUED) {
            self.deferred.remove(&self.frames, &self.folios, folio);
        }
    }

    /// Takes the references of leaves that are about to appear. The look and the taking are two steps, so that CPUs at once may pass the limit by a batch each: the
    /// distance to the width of the count is for that.
    #[inline(always)]
    fn take(&self, folio: Folio<'_>, refs: u32) -> Result<(), Refused> {
        if folio.refs() + u64::from(refs) > self.ref_limit.load(Relaxed) {
            return Err(Refused::Overflow);
        }
        folio.get(refs);
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn put(&self, folio: Folio<'_>, refs: u32) {
        if folio.put(refs) {
            self.free_folio(folio);
        }
    }

    /// A cleared table page; out of the reserve if it must be.
    fn new_table(&self, must: bool) -> Option<Pfn> {
        let run = self.frames.alloc_table_frame(must)?;
        if !run.zeroed {
            self.memory().zero(run.pfn, 1);
        }
        Some(run.pfn)
    }

    // --- counts ----------------------------------------------------------------------------------------------

    #[inline(always)]
    fn note(&self, folio: Folio<'_>, delta: Delta) {
        self.statistics.note(folio.is_anon(), delta);
    }

    /// What else `vma` maps of `folio` than the entries `batch` themselves, which are indexes, as far as the scheme wants to know.
    fn beside(
        &self,
        part: &Part<'_, LongMode, Self>,
        vma: Vma<'_>,
        folio: Folio<'_>,
        batch: Range<usize>,
    ) -> Neighbours {
        self.beside_among(part, vma, folio, folio.head()..folio.end(), batch, 0..PAGES_END)
    }

    /// [`beside`](Self::beside), of leaves of `frames` in pages `within`: what stands there for the folio, or will.
    fn beside_among(
        &self,
        part: &Part<'_, LongMode, Self>,
        vma: Vma<'_>,
        folio: Folio<'_>,
        frames: Range<Pfn>,
        batch: Range<usize>,
        within: Range<u64>,
    ) -> Neighbours {
        let region = if A::NEEDS.region {
            let window = self.window(vma, folio, within.clone());
            let (start, end) = (part.page(batch.start), part.page(batch.end));
            // Nothing to count where the batch is all that this vma can hold of the folio.
            let before = window.start..start.min(window.end);
            let after = end.max(window.start)..window.end;
            self.pages_of(vma, frames.clone(), before) + self.pages_of(vma, frames.clone(), after)
        } else {
            0
        };
        Neighbours { region, tuple: self.tuple_beside(part, vma, folio, frames, batch, within) }
    }

    /// How many of the pages `range` of `vma` map a frame of `frames`, in whatever tables. No lock but those that keep the leaves of this vma as they are: the space
    /// lock, or shared and with the vma's region lock.
    fn pages_of(&self, vma: Vma<'_>, frames: Range<Pfn>, range: Range<u64>) -> u32 {
        let table = self.space(vma.space()).table();
        table.count_of(self, range, frames).pages as u32
    }

    /// Lets the scheme learn how many leaves the owner of `vma` has of `folio`, in that vma and others, if it wants to. The caller holds the space.
    #[inline]
    pub(crate) fn relearn(&self, vma: Vma<'_>, folio: Folio<'_>) {
        let id = vma.space();
        A::relearn(&self.counts(folio), id.0, || {
            let object = |vma: &Vma<'_>| if folio.is_anon() { vma.family() } else { vma.object() };
            let of_object = self.vmas(id).filter(|other| object(other) == object(&vma));
            let leaves = |vma: Vma<'_>| {
                let window = self.window(vma, folio, 0..PAGES_END);
                self.space(id).table().count_of(self, window, folio.head()..folio.end()).leaves
            };
            of_object.map(leaves).sum()
        });
    }

    /// [`beside`](Self::beside), but only in the table of `part`.
    fn beside_in_table(
        &self,
        part: &Part<'_, LongMode, Self>,
        vma: Vma<'_>,
        folio: Folio<'_>,
        batch: Range<usize>,
    ) -> Neighbours {
        let frames = folio.head()..folio.end();
        Neighbours { tuple: self.tuple_beside(part, vma, folio, frames, batch, 0..PAGES_END), region: 0 }
    }

    /// The part of [`beside_among`](Self::beside_among) that lies in the table of `part`.
    fn tuple_beside(
        &self,
        part: &Part<'_, LongMode, Self>,
        vma: Vma<'_>,
        folio: Folio<'_>,
        frames: Range<Pfn>,
        batch: Range<usize>,
        within: Range<u64>,
    ) -> u32 {
        if !A::NEEDS.tuple {
            return 0;
        }
        let span = part.span();
        let window = self.window(vma, folio, span.start.max(within.start)..span.end.min(within.end));
        if window.is_empty() {
            return 0;
        }
        let window = part.index(window.start)..part.index(window.end - 1) + 1;
        if batch == window {
            // The batch is all that this vma and this table can hold of the folio.
            return 0;
        }
        let before = window.start..batch.start.clamp(window.start, window.end);
        let after = batch.end.clamp(window.start, window.end)..window.end;
        let count = |range| part.count_leaves_of(range, frames.start, frames.end);
        count(before) + count(after)
    }

    /// Finishes a flush: what VMs have derived from the entries goes first, what they led to is released behind it.
    fn finish(&self, space: &Space<'_>, flush: &mut Flush<Removed<'_>>) {
        if space.vms().load(Relaxed) != 0 {
            self.invalidate(space.vms(), flush.pages());
        }
        flush.finish(self.memory(), self, space.table().root(), |removed| {
            removed.chunks(RELEASED_AT_ONCE).for_each(|removed| self.release(removed));
        });
    }

    /// Flushes the translation of one page that leads to nothing that must outlive it.
    #[inline]
    fn flush_page(&self, space: &Space<'_>, page: u64) {
        if space.vms().load(Relaxed) != 0 {
            self.invalidate(space.vms(), page..page + 1);
        }
        self.memory().flush(space.table().root(), FlushScope::Pages { first: page, pages: 1 });
    }

    /// Subtracts leaves that are gone and flushed, and drops their references: what the counts say, and whether these were the last. The folio is on no queue then.
    #[inline(always)]
    fn subtract(&self, removed: &Removed<'_>) -> (Delta, bool) {
        let folio = removed.folio;
        if removed.dirty && !folio.is_anon() {
            folio.set_flags(FolioFlags::DIRTY);
        }
        let delta = self.tell(Change::Sub, folio, &removed.batch, removed.beside).unwrap_or_default();
        if delta.maybe_partial {
            self.defer(folio);
        }
        let was_last = folio.put(removed.batch.leaves());
        // One page is never partly mapped.
        if was_last && !folio.is_small() {
            self.unqueue(folio);
        }
        (delta, was_last)
    }

    #[inline(never)]
    fn subtract_large(&self, removed: &Removed<'_>) -> (Delta, bool) {
        self.subtract(removed)
    }

    /// Subtracts leaves that are gone and flushed, and drops their references: of [`RELEASED_AT_ONCE`] at most. Folios that nobody has any more are
    /// freed, all under one lock.
    fn release(&self, removed: &[Removed<'_>]) {
        let (mut anon, mut file) = (Delta::default(), Delta::default());
        // Bit n for the nth.
        let mut gone = 0_u64;
        for (nth, removed) in removed.iter().enumerate() {
            let is_small = removed.folio.is_small();
            // By the same function, once where it is known what the folio is.
            let (delta, was_last) = if is_small { self.subtract(removed) } else { self.subtract_large(removed) };
            let sum = if removed.folio.is_anon() { &mut anon } else { &mut file };
            (sum.mapped, sum.huge) = (sum.mapped + delta.mapped, sum.huge + delta.huge);
            gone |= u64::from(was_last) << nth;
        }
        if gone != 0 {
            let folios = core::iter::from_fn(|| {
                let folio = removed.get(gone.trailing_zeros() as usize)?.folio;
                gone &= gone - 1;
                Some(folio)
            });
            self.free_folios(folios);
        }
        // Every CPU adds to these: once for all that was removed.
        self.statistics.note(false, file);
        self.statistics.note(true, anon);
    }
}

/// Whether folios grow under scheme `A`.
const fn grows<A: Accounting>() -> bool {
    A::EXTENSION_WORDS[0] > 0
}

/// A space, by its record.
pub(crate) struct Space<'a> {
    id: SpaceId,
    words: &'a [AtomicU64; Directory::WORDS],
}

impl<'a> Space<'a> {
    /// Reader-writer lock: faults read, everything that changes vmas writes.
    #[inline]
    pub(crate) fn lock(&self) -> &'a AtomicU64 {
        &self.words[2]
    }
    #[inline]
    fn root(&self) -> &'a AtomicU64 {
        &self.words[3]
    }
    /// Root of the tree of vmas.
    #[inline]
    fn tree(&self) -> &'a AtomicU64 {
        &self.words[4]
    }
    /// Pages that are resident.
    #[inline]
    fn rss(&self) -> &'a AtomicU64 {
        &self.words[5]
    }
    /// One past the heap's last page, 0 before there was one.
    #[inline]
    fn brk(&self) -> &'a AtomicU64 {
        &self.words[6]
    }
    /// Processes and threads that live in it.
    #[inline]
    fn sharers(&self) -> &'a AtomicU64 {
        &self.words[7]
    }
    /// 1 while the move of a folio holds the space lock. Under the move lock.
    #[inline]
    fn held(&self) -> &'a AtomicU64 {
        &self.words[8]
    }
    /// The first VM of which it is the VMM's, 0 for none.
    #[inline]
    pub(crate) fn vms(&self) -> &'a AtomicU64 {
        &self.words[9]
    }
    #[inline]
    pub(crate) fn table(&self) -> Table {
        PageTable::new(Pfn::new(self.root().load(Relaxed)))
    }
}

impl<M: Memory + Tlb, A: Accounting> Tables for Manager<M, A> {
    type Guard<'a>
        = WordGuard<'a>
    where
        Self: 'a;

    #[inline]
    fn entries(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.memory().frame(table).0
    }

    #[inline]
    fn look(&self, table: Pfn) -> &[AtomicU64; ENTRIES] {
        &self.memory().frame_to_look(table).0
    }

    #[inline(always)]
    fn lock(&self, table: Pfn) -> WordGuard<'_> {
        lock_word(self.frames.table_lock(table, descriptor_words::<A>()))
    }

    fn alloc_table(&self) -> Option<Pfn> {
        self.new_table(false)
    }

    fn alloc_split_table(&self) -> Option<Pfn> {
        self.new_table(true)
    }

    fn free_table(&self, table: Pfn, cleared: bool) {
        self.frames.free(table, Order::BASE, cleared);
    }
}
