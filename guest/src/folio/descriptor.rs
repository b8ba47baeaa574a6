//! The descriptor of a folio, in its two forms.
//!
//! | word | small (a slot, order 0) | large (a record) |
//! |---|---|---|
//! | 0 | count of the scheme (low half), references (high half) | first frame, order |
//! | 1 | home: kind, flags, object, index | references |
//! | 2 | counts of further observers, if any | home |
//! | 3 | | links of the deferred-split queue |
//! | 4.. | | state of the scheme |
//!
//! Object and index say where the folio belongs: to which page of which memory object, file or anonymous. From there the rmap finds its leaves.
//! Once the folio has [grown](super::extension) its home names an extension instead, and they stand there; the flags stay where they are.

use core::fmt;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::slab::Record;
use crate::addr::{Order, Pfn};
use crate::flags::flags;
use crate::sync::{AtomicU64, Count32, Field, tally};

/// What the slot of a frame in a broken block says (word 1, low bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    /// Nothing: inside something whose head is elsewhere, or a slot frame.
    Nothing = 0,
    /// A folio of order 0; the slot is its descriptor.
    Small = 1,
    /// The first frame of a larger folio; word 0 is its record. And the home of that one, which has not grown.
    Large = 2,
    /// The first frame of a free run.
    Free = 3,
    /// A table page; word 0 is its lock.
    Table = 4,
    /// Records or a directory.
    Records = 5,
    /// A free frame that is not merged with its buddies.
    Loose = 6,
    /// A folio that has grown, of whatever order: the home names its extension.
    Grown = 7,
}

pub(super) const KIND: Field<0, 3> = Field;
pub(super) const FLAGS: Field<3, 4> = Field;
const OBJECT: Field<7, 22> = Field;
const INDEX: Field<29, 35> = Field;
/// In the place of object and index.
pub(super) const EXTENSION: Field<7, 57> = Field;

const HEAD: Field<0, 40> = Field;
const ORDER: Field<40, 5> = Field;
const LINK_PREV: Field<0, 32> = Field;
const LINK_NEXT: Field<32, 32> = Field;

/// The default limit of a folio's references: beyond it no mapping is made (SCHEMES.md, overflow). A folio of order 0 has 32 bits for them, of which the upper half
/// of the range is for whoever works on the folio; a larger one has 64, as splits may pass the limit.
pub const REF_LIMIT: u64 = 1 << 31;

/// Words of a large descriptor before the scheme's state.
pub(crate) const HEADER_WORDS: usize = 4;
/// Words of a small descriptor before the counts of further observers.
pub(crate) const SMALL_HEADER_WORDS: usize = 2;

/// Words of the two forms of a descriptor. Whoever knows the scheme knows them when it is compiled: the look-up is half as long then.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// Of a slot.
    pub(crate) slot: usize,
    /// Of a record.
    pub(crate) record: usize,
}

/// What a folio is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FolioFlags(u8);

flags!(FolioFlags);

impl FolioFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Private anonymous memory.
    pub const ANON: Self = Self(1);
    /// In the page cache of its object, which holds one reference.
    pub const CACHE: Self = Self(1 << 1);
    /// Stored to since it was filled (file folios).
    pub const DIRTY: Self = Self(1 << 2);
    /// On the deferred-split queue.
    pub const QUEUED: Self = Self(1 << 3);
}

/// Where a folio belongs: its first page is page `index` of memory object `object`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Number of the object, file or anonymous.
    pub object: u32,
    /// Page of the object.
    pub index: u64,
}

impl Mapping {
    /// What a home says that names no extension.
    #[inline]
    pub(super) const fn of_home(home: u64) -> Self {
        Self { object: OBJECT.of(home) as u32, index: INDEX.of(home) }
    }
}

/// A folio, by its descriptor. A snapshot of what cannot change while the folio lives: frame and order.
#[derive(Clone, Copy)]
pub struct Folio<'a> {
    head: Pfn,
    order: Order,
    words: &'a [AtomicU64],
    record: Option<Record>,
}

impl fmt::Debug for Folio<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folio({:#x}, order {}, refs {})", self.head.raw(), self.order, self.refs())
    }
}

impl PartialEq for Folio<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.head == other.head
    }
}
impl Eq for Folio<'_> {}

impl<'a> Folio<'a> {
    #[inline]
    pub(super) fn small(pfn: Pfn, words: &'a [AtomicU64]) -> Self {
        Self { head: pfn, order: Order::BASE, words, record: None }
    }

    #[inline]
    pub(crate) fn large(record: Record, words: &'a [AtomicU64]) -> Self {
        let word = words[0].load(Relaxed);
        Self { head: Pfn::new(HEAD.of(word)), order: Order::new(ORDER.of(word) as u8), words, record: Some(record) }
    }

    /// The folio of `order` at frame 0 that `words`, once all 0, describe: for models of the counts alone.
    #[cfg(loom)]
    pub fn over(words: &'a [AtomicU64], order: Order) -> Self {
        let record = (order > Order::BASE).then(|| Record::from_raw(1));
        Self { head: Pfn::new(0), order, words, record }
    }

    /// Writes a fresh descriptor: no references, no counts.
    #[inline(always)]
    pub(super) fn init(&self, flags: FolioFlags, mapping: Mapping) {
        let home = |kind: Kind| {
            KIND.bits(kind as u64)
                | FLAGS.bits(u64::from(flags.0))
                | OBJECT.bits(u64::from(mapping.object))
                | INDEX.bits(mapping.index)
        };
        match self.record {
            None => {
                self.words[0].store(0, Relaxed);
                self.words[1].store(home(Kind::Small), Relaxed);
            }
            Some(_) => {
                self.words[0].store(HEAD.bits(self.head.raw()) | ORDER.bits(u64::from(self.order.get())), Relaxed);
                self.words[1].store(0, Relaxed);
                self.words[2].store(home(Kind::Large), Relaxed);
                self.words[3].store(0, Relaxed);
            }
        }
        let header = if self.record.is_none() { SMALL_HEADER_WORDS } else { HEADER_WORDS };
        for word in &self.words[header..] {
            word.store(0, Relaxed);
        }
    }

    /// The descriptor words of a slot or a record that is about to describe the run at `head`.
    #[inline(always)]
    pub(super) fn undescribed(record: Option<Record>, head: Pfn, order: Order, words: &'a [AtomicU64]) -> Self {
        Self { head, order, words, record }
    }

    /// The first frame.
    #[must_use]
    pub fn head(&self) -> Pfn {
        self.head
    }

    /// The order.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    /// Frames in it.
    #[must_use]
    #[inline]
    pub fn pages(&self) -> u64 {
        self.order.pages()
    }

    /// One past the last frame.
    #[must_use]
    #[inline]
    pub fn end(&self) -> Pfn {
        self.head.add(self.order.pages())
    }

    pub(crate) fn record(&self) -> Option<Record> {
        self.record
    }

    /// The word with its flags, and where it belongs or what it has grown to.
    #[inline(always)]
    pub(crate) fn home(&self) -> &'a AtomicU64 {
        match self.record {
            None => &self.words[1],
            Some(_) => &self.words[2],
        }
    }

    /// What it is.
    #[must_use]
    #[inline(always)]
    pub fn flags(&self) -> FolioFlags {
        FolioFlags(FLAGS.get(self.home()) as u8)
    }

    /// Whether it is private anonymous memory.
    #[must_use]
    #[inline(always)]
    pub fn is_anon(&self) -> bool {
        is_anon(self.home())
    }

    /// Sets `flags`; the flags before.
    pub fn set_flags(&self, flags: FolioFlags) -> FolioFlags {
        let bits = FLAGS.bits(u64::from(flags.0));
        FolioFlags(FLAGS.of(self.home().fetch_or(bits, Relaxed)) as u8)
    }

    /// Clears `flags`; the flags before.
    pub fn clear_flags(&self, flags: FolioFlags) -> FolioFlags {
        let bits = FLAGS.bits(u64::from(flags.0));
        FolioFlags(FLAGS.of(self.home().fetch_and(!bits, Relaxed)) as u8)
    }

    /// Where it belongs, of a folio that never grows.
    #[inline]
    pub(crate) fn mapping(&self) -> Mapping {
        Mapping::of_home(self.home().load(Relaxed))
    }

    /// References: one per leaf, one of the page cache, one of whoever works on it. Acquire pairs with the Release of [`put`](Self::put): who finds
    /// references gone, and reuses the folio, sees what their holders did.
    #[must_use]
    #[inline(always)]
    pub fn refs(&self) -> u64 {
        match self.record {
            None => self.words[0].load(Acquire) >> 32,
            Some(_) => self.words[1].load(Acquire),
        }
    }

    /// Takes `n` references. Before the counts when mapping.
    #[inline(always)]
    pub fn get(&self, n: u32) {
        match self.record {
            None => {
                Count32::high(&self.words[0]).add(n);
            }
            Some(_) => {
                tally::note();
                self.words[1].fetch_add(u64::from(n), Relaxed);
            }
        }
    }

    /// Takes a reference unless the last one is gone already.
    #[must_use = "there is no reference when this is false"]
    pub(crate) fn try_get(&self) -> bool {
        let (word, shift) = match self.record {
            None => (&self.words[0], 32),
            Some(_) => (&self.words[1], 0),
        };
        word.fetch_update(Relaxed, Relaxed, |raw| (raw >> shift != 0).then_some(raw + (1 << shift))).is_ok()
    }

    /// The first references of a folio that nobody else can reach yet: a plain store.
    #[inline(always)]
    pub fn init_refs(&self, n: u32) {
        match self.record {
            None => self.words[0].store(u64::from(n) << 32, Relaxed),
            Some(_) => self.words[1].store(u64::from(n), Relaxed),
        }
    }

    /// Drops `n` references; whether they were the last. Behind the counts when unmapping: AcqRel, so that
    /// whoever drops the last one sees everything that the others did.
    #[must_use = "the last reference frees the folio"]
    #[inline(always)]
    pub fn put(&self, n: u32) -> bool {
        tally::note();
        match self.record {
            None => {
                let before = (self.words[0].fetch_sub(u64::from(n) << 32, AcqRel) >> 32) as u32;
                debug_assert!(before >= n, "references below zero");
                before == n
            }
            Some(_) => {
                let before = self.words[1].fetch_sub(u64::from(n), AcqRel);
                debug_assert!(before >= u64::from(n), "references below zero");
                before == u64::from(n)
            }
        }
    }

    /// Whether its order is 0, and its descriptor a slot.
    #[inline(always)]
    pub(crate) fn is_small(&self) -> bool {
        self.record.is_none()
    }

    /// The scheme's count of a [small](Self::is_small) folio.
    #[inline(always)]
    pub(crate) fn small_count(&self) -> Count32<'a> {
        Count32::low(&self.words[0])
    }

    /// Words behind the header: the scheme's state (large) or the counts of further observers (small).
    #[inline(always)]
    pub(crate) fn state(&self) -> &'a [AtomicU64] {
        match self.record {
            None => &self.words[SMALL_HEADER_WORDS..],
            Some(_) => &self.words[HEADER_WORDS..],
        }
    }

    /// Neighbours in the deferred-split queue, by record number, 0 for none. Under the queue's lock.
    pub(crate) fn links(&self) -> (u32, u32) {
        (LINK_PREV.get(&self.words[3]) as u32, LINK_NEXT.get(&self.words[3]) as u32)
    }

    pub(crate) fn set_links(&self, prev: u32, next: u32) {
        self.words[3].store(LINK_PREV.bits(u64::from(prev)) | LINK_NEXT.bits(u64::from(next)), Relaxed);
    }
}

/// Whether the folio with this home is private anonymous memory.
#[inline(always)]
pub(crate) fn is_anon(home: &AtomicU64) -> bool {
    home.load(Relaxed) & FLAGS.bits(FolioFlags::ANON.0 as u64) != 0
}

// The home is full.
const _: () = assert!(INDEX.end() == 64 && EXTENSION.end() == 64);
