//! Shadow pages: host tables that are composed, each from one table that the guest has built in its memory, or from one large leaf of it.
//!
//! As KVM's, a shadow page is named by the guest frame of the table and its role: so one table that several tables of the guest point to is composed once, and the
//! shadow pages of a VM form no tree but a graph without cycles. A leaf in one is one leaf, however many ways lead to it (SCHEMES.md, nested levels, R2); the page
//! knows how many parents it has, and dies with the last. All of it is changed under the VM's shadow lock.
//!
//! Beside its table a page has a frame of *origins*: of a leaf the guest's entry that it was composed from, of a pointer the child. So what the guest has changed since
//! shows, and which guest frame a leaf leads to; a folio has nothing but its counts.

use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use super::{AsId, Stage2Format, Vm, in_format};
use crate::addr::{ENTRIES, Level, Pfn};
use crate::folio::Record;
use crate::format::{Attrs, Entry, Format, Leaf};
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::page_table::Tables;
use crate::space::Manager;
use crate::sync::{AtomicU64, Field};

/// Words of a record.
pub(crate) const WORDS: usize = 8;

const LEVEL: Field<0, 3> = Field;
const KIND: Field<3, 1> = Field;
const DIRECT: Field<4, 1> = Field;
const VIEW: Field<5, 1> = Field;
const RIGHTS: Field<6, 3> = Field;
const FORMAT: Field<9, 4> = Field;
const OVER: Field<32, 32> = Field;

const NEXT: Field<0, 32> = Field;
const NEXT_ROOT: Field<32, 32> = Field;

const PARENTS: Field<0, 32> = Field;
const USES: Field<32, 32> = Field;

const LEAVES: Field<0, 16> = Field;
const TRACKED: Field<16, 1> = Field;
const ROOT: Field<17, 1> = Field;
const ZOMBIE: Field<18, 1> = Field;

/// What a composed table stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// A tenant's stage-2 table for a tenant of its own, composed with the memslots: in the VM's stage-2 format, and its leaves are counted (class `Nested`).
    Nested = 0,
    /// A tenant's stage-1 table, composed with what stands below it: a long-mode table that an MMU walks as any other. A cache of leaves that are counted, and not counted itself.
    Stage1 = 1,
}

/// What a shadow page is composed from, apart from the guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) kind: Kind,
    pub(crate) level: Level,
    /// Composed from (a part of) a large leaf of the guest: its entries lead to consecutive pages from the one that stands for the table.
    pub(crate) direct: bool,
    pub(crate) view: AsId,
    /// The rights that the guest's entries on the way here give.
    pub(crate) rights: Attrs,
    /// How the guest has written its table.
    pub(crate) format: Stage2Format,
    /// The nested root through which the pages lead that the guest's entries name; 0 when they are the VM's own guest frames.
    pub(crate) over: u32,
}

/// The rights that a guest's entry gives or withholds.
pub(super) const ALL_RIGHTS: Attrs = Attrs::WRITE.or(Attrs::USER).or(Attrs::EXEC);

impl Role {
    fn pack(self) -> u64 {
        let right = |attr, bit: u64| if self.rights.has(attr) { bit } else { 0 };
        LEVEL.bits(u64::from(self.level.get()))
            | KIND.bits(self.kind as u64)
            | DIRECT.bits(u64::from(self.direct))
            | VIEW.bits(u64::from(self.view.0))
            | RIGHTS.bits(right(Attrs::WRITE, 1) | right(Attrs::USER, 2) | right(Attrs::EXEC, 4))
            | FORMAT.bits(self.format as u64)
            | OVER.bits(u64::from(self.over))
    }

    fn unpack(raw: u64) -> Self {
        let rights = RIGHTS.of(raw);
        Self {
            kind: if KIND.of(raw) == Kind::Nested as u64 { Kind::Nested } else { Kind::Stage1 },
            level: Level::new(LEVEL.of(raw) as u8),
            direct: DIRECT.of(raw) != 0,
            view: AsId::ALL[VIEW.of(raw) as usize],
            rights: Attrs::NONE
                .with_if(rights & 1 != 0, Attrs::WRITE)
                .with_if(rights & 2 != 0, Attrs::USER)
                .with_if(rights & 4 != 0, Attrs::EXEC),
            format: Stage2Format::ALL[FORMAT.of(raw) as usize],
            over: OVER.of(raw) as u32,
        }
    }
}

/// A shadow page, by its record.
#[derive(Clone, Copy)]
pub(crate) struct ShadowPage<'a> {
    record: Record,
    words: &'a [AtomicU64],
}

impl<'a> ShadowPage<'a> {
    pub(crate) fn record(&self) -> Record {
        self.record
    }
    /// The guest frame of the table; of a direct page, the page that its first entry leads to.
    pub(crate) fn gfn(&self) -> u64 {
        self.words[0].load(Relaxed)
    }
    pub(crate) fn role(&self) -> Role {
        Role::unpack(self.words[1].load(Relaxed))
    }
    /// The host's table.
    pub(crate) fn table(&self) -> Pfn {
        Pfn::new(self.words[2].load(Relaxed))
    }
    pub(super) fn origins(&self) -> Pfn {
        Pfn::new(self.words[3].load(Relaxed))
    }
    pub(super) fn next(&self) -> u64 {
        NEXT.get(&self.words[4])
    }
    pub(super) fn set_next(&self, next: u64) {
        NEXT.set(&self.words[4], next);
    }
    pub(super) fn next_root(&self) -> u64 {
        NEXT_ROOT.get(&self.words[4])
    }
    pub(super) fn set_next_root(&self, next: u64) {
        NEXT_ROOT.set(&self.words[4], next);
    }
    /// Entries of other shadow pages that point here.
    pub(crate) fn parents(&self) -> u64 {
        PARENTS.get(&self.words[5])
    }
    pub(super) fn set_parents(&self, parents: u64) {
        PARENTS.set(&self.words[5], parents);
    }
    /// How many times a root was asked for.
    pub(super) fn uses(&self) -> u64 {
        USES.get(&self.words[5])
    }
    pub(super) fn set_uses(&self, uses: u64) {
        USES.set(&self.words[5], uses);
    }
    pub(crate) fn leaves(&self) -> u64 {
        LEAVES.get(&self.words[6])
    }
    pub(super) fn set_leaves(&self, leaves: u64) {
        LEAVES.set(&self.words[6], leaves);
    }
    /// Whether the guest's table is write-protected for it. If not, one of the last level is *unsync*: the guest stores to it as it likes until it flushes. A root is
    /// empty then.
    pub(crate) fn is_tracked(&self) -> bool {
        TRACKED.get(&self.words[6]) != 0
    }
    pub(super) fn set_tracked(&self, tracked: bool) {
        TRACKED.set(&self.words[6], u64::from(tracked));
    }
    pub(crate) fn is_root(&self) -> bool {
        ROOT.get(&self.words[6]) != 0
    }
    pub(super) fn set_root(&self) {
        ROOT.set(&self.words[6], 1);
    }
    pub(super) fn is_zombie(&self) -> bool {
        ZOMBIE.get(&self.words[6]) != 0
    }
    pub(super) fn set_zombie(&self) {
        ZOMBIE.set(&self.words[6], 1);
    }
    /// Of a root, the page that the guest named as its table: a guest frame, or a page over the nested root.
    pub(crate) fn top(&self) -> u64 {
        self.words[7].load(Relaxed)
    }
    pub(super) fn set_top(&self, page: u64) {
        self.words[7].store(page, Relaxed);
    }
    /// Entries that are composed: of a stage-1 root, the upper half is the embedder's.
    pub(crate) fn end(&self) -> usize {
        if self.is_root() && self.role().kind == Kind::Stage1 { ENTRIES / 2 } else { ENTRIES }
    }
    /// Whether guest's stores to the table are possible though leaves are composed from it.
    pub(crate) fn is_unsync(&self) -> bool {
        let role = self.role();
        !self.is_tracked() && !role.direct && role.level == Level::ONE
    }
}

/// Buckets of shadow pages, by the 2 MiB block that the guest's table lies in; word 0 of their frame starts the list of roots.
fn bucket(gfn: u64) -> usize {
    1 + ((gfn >> 9) % (ENTRIES as u64 - 1)) as usize
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    pub(crate) fn shadow_page(&self, record: u32) -> ShadowPage<'_> {
        let record = Record::from_raw(record);
        ShadowPage { record, words: self.frames.record(record, WORDS) }
    }

    fn chain(&self, first: u64) -> impl Iterator<Item = ShadowPage<'_>> {
        self.walk_chain(first, |page| page.next())
    }

    /// The pages of a list, each found when it is asked for: those behind the last one may go meanwhile.
    fn walk_chain(&self, first: u64, next: impl Fn(&ShadowPage<'_>) -> u64) -> impl Iterator<Item = ShadowPage<'_>> {
        let mut last: Option<ShadowPage<'_>> = None;
        core::iter::from_fn(move || {
            let number = last.as_ref().map_or(first, &next);
            if number != 0 {
                last = Some(self.shadow_page(number as u32));
            }
            last.filter(|_| number != 0)
        })
    }

    /// All shadow pages of a VM.
    pub(crate) fn shadow_pages(&self, vm: &Vm<'_>) -> impl Iterator<Item = ShadowPage<'_>> {
        let heads = vm.shadows().map(|frame| &self.memory().frame(frame).0[1..]).unwrap_or_default();
        heads.iter().flat_map(|head| self.chain(head.load(Relaxed)))
    }

    /// Those whose guest frame lies in the 2 MiB block of `gfn`, and others.
    pub(super) fn shadow_pages_near(&self, vm: &Vm<'_>, gfn: u64) -> impl Iterator<Item = ShadowPage<'_>> {
        let head = vm.shadows().map_or(0, |frame| self.memory().frame(frame).0[bucket(gfn)].load(Relaxed));
        self.chain(head)
    }

    /// The roots of a VM.
    pub(crate) fn shadow_roots(&self, vm: &Vm<'_>) -> impl Iterator<Item = ShadowPage<'_>> {
        let first = vm.shadows().map_or(0, |frame| self.memory().frame(frame).0[0].load(Relaxed));
        self.walk_chain(first, |page| page.next_root())
    }

    pub(super) fn find_shadow(&self, vm: &Vm<'_>, gfn: u64, role: Role) -> Option<ShadowPage<'_>> {
        let role = role.pack();
        self.shadow_pages_near(vm, gfn)
            .find(|page| page.gfn() == gfn && page.words[1].load(Relaxed) == role && !page.is_root())
    }

    /// A shadow page without entries, which nothing points to; `None` without frames for it.
    pub(super) fn alloc_shadow(&self, vm: &Vm<'_>, gfn: u64, role: Role) -> Option<ShadowPage<'_>> {
        let table = self.alloc_table()?;
        let Some(origins) = self.alloc_table() else {
            self.free_table(table, true);
            return None;
        };
        let Some(record) = self.shadows.alloc(&self.frames) else {
            self.free_table(table, true);
            self.free_table(origins, true);
            return None;
        };
        let page = self.shadow_page(record.raw());
        page.words[1].store(role.pack(), Relaxed);
        page.words[2].store(table.raw(), Relaxed);
        page.words[3].store(origins.raw(), Relaxed);
        self.insert_shadow(vm, page, gfn);
        Some(page)
    }

    pub(super) fn insert_shadow(&self, vm: &Vm<'_>, page: ShadowPage<'_>, gfn: u64) {
        page.words[0].store(gfn, Relaxed);
        let frame = vm.shadows().expect("a VM with shadow pages");
        let head = &self.memory().frame(frame).0[bucket(gfn)];
        page.set_next(head.load(Relaxed));
        head.store(u64::from(page.record.raw()), Relaxed);
    }

    /// Takes a page out of its bucket.
    pub(super) fn remove_shadow(&self, vm: &Vm<'_>, page: ShadowPage<'_>) {
        let number = u64::from(page.record.raw());
        match self.shadow_pages_near(vm, page.gfn()).find(|other| other.next() == number) {
            Some(before) => before.set_next(page.next()),
            None => {
                let frame = vm.shadows().expect("a VM with shadow pages");
                self.memory().frame(frame).0[bucket(page.gfn())].store(page.next(), Relaxed);
            }
        }
    }

    /// Frees a page that no MMU can reach.
    pub(super) fn free_shadow(&self, page: ShadowPage<'_>) {
        self.free_table(page.table(), false);
        self.free_table(page.origins(), false);
        self.shadows.free(&self.frames, page.record);
    }

    /// Entry `i` of the host's table.
    pub(crate) fn shadow_entry(&self, vm: &Vm<'_>, page: ShadowPage<'_>, i: usize) -> Entry {
        let raw = self.entries(page.table())[i].load(Relaxed);
        // Most are, and in no format that is anything else.
        if raw == 0 {
            return Entry::Absent;
        }
        let Role { kind, level, .. } = page.role();
        in_format!(vm.composed_format(kind), H => H::decode(raw, level))
    }

    pub(crate) fn origin(&self, page: ShadowPage<'_>, i: usize) -> u64 {
        self.entries(page.origins())[i].load(Relaxed)
    }

    pub(super) fn set_origin(&self, page: ShadowPage<'_>, i: usize, origin: u64) {
        self.entries(page.origins())[i].store(origin, Relaxed);
    }

    /// Sets entries `range` to leaves of consecutive memory, of which `leaf` is the first.
    pub(super) fn set_leaves(&self, vm: &Vm<'_>, page: ShadowPage<'_>, range: Range<usize>, leaf: Leaf) {
        let Role { kind, level, .. } = page.role();
        let (mut raw, step) = in_format!(vm.composed_format(kind), H => (H::leaf(leaf, level), H::leaf_step(level)));
        for entry in &self.entries(page.table())[range] {
            // Release: the counts are there before a walk can reach the memory.
            entry.store(raw, Release);
            raw = raw.wrapping_add(step);
        }
    }

    /// Points entry `i`, which is absent, to `child`.
    pub(super) fn link_shadow(&self, vm: &Vm<'_>, page: ShadowPage<'_>, i: usize, child: ShadowPage<'_>) {
        child.set_parents(child.parents() + 1);
        self.set_origin(page, i, u64::from(child.record.raw()));
        let raw = in_format!(vm.composed_format(page.role().kind), H => H::table(child.table()));
        self.entries(page.table())[i].store(raw, Release);
    }

    /// Clears entry `i`. An MMU may be setting its bits: they are of no use, but must not bring it back.
    pub(super) fn clear_shadow_entry(&self, page: ShadowPage<'_>, i: usize) {
        self.entries(page.table())[i].swap(0, AcqRel);
        self.set_origin(page, i, 0);
    }

    /// The page that the leaf at `i` leads to first, in the terms of the guest's table.
    pub(crate) fn shadowed_page(&self, page: ShadowPage<'_>, i: usize) -> u64 {
        let role = page.role();
        if role.direct {
            return page.gfn() + i as u64 * role.level.entry_pages();
        }
        match in_format!(role.format, G => G::decode(self.origin(page, i), role.level)) {
            Entry::Leaf(leaf) => leaf.pfn.raw(),
            _ => unreachable!("a leaf was composed from a leaf"),
        }
    }

    /// The deepest shadow page on the way to `page` from a root, and the index there.
    pub(crate) fn deepest_shadow<'a>(
        &'a self,
        vm: &Vm<'_>,
        root: ShadowPage<'a>,
        page: u64,
    ) -> (ShadowPage<'a>, usize) {
        let mut at = root;
        loop {
            let i = at.role().level.index(page);
            match self.shadow_entry(vm, at, i) {
                Entry::Table(_) => at = self.shadow_page(self.origin(at, i) as u32),
                _ => return (at, i),
            }
        }
    }
}
