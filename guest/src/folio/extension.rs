//! Folios that grow: a descriptor has room for the leaves of processes, as most folios have no others. Before the first leaf of another class is counted the folio gets an
//! *extension* for the counts of that class, which it keeps until it is freed.
//!
//! Its home, the word that says where it belongs, names the extension from then on, and what stood there stands in word 0 of the extension. That may name one more, which was
//! made before: the first made has the mapping. Nothing that is in use ever moves: an extension that can be found stays as it is, but for its counts.
//!
//! | word of an extension | small folio | large folio |
//! |---|---|---|
//! | 0 | what the home was | what the home was |
//! | 1.. | counts of leaves of VMs (low half) and of nested ones (high half); those of further observers, class by class | state of the scheme for one class: the first made is for VMs, the next for nested leaves |

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::buddy::Frames;
use super::descriptor::{EXTENSION, FLAGS, Folio, KIND, Kind, Mapping};
use super::slab::Slab;
use crate::addr::{ENTRIES, Pfn};
use crate::memory::Memory;
use crate::sync::AtomicU64;

/// The pools of extensions.
#[derive(Debug)]
pub struct Extensions {
    small: Slab<1>,
    large: Slab<1>,
}

impl Extensions {
    /// Pools of extensions of so many words, for small folios and for large ones; 0 where folios do not grow.
    #[must_use]
    pub const fn new(small: usize, large: usize) -> Self {
        Self { small: Slab::of_pieces(small), large: Slab::of_pieces(large) }
    }

    /// Extensions in use: of small folios and of large ones.
    #[must_use]
    pub fn in_use(&self) -> [u64; 2] {
        [self.small.in_use(), self.large.in_use()]
    }

    /// Frames spent.
    #[must_use]
    pub fn nr_frames(&self) -> u64 {
        self.small.nr_frames() + self.large.nr_frames()
    }

    /// Gives the frames back of a pool of which nothing is in use.
    pub fn trim<M: Memory>(&self, frames: &Frames<M>) {
        self.small.trim(frames);
        self.large.trim(frames);
    }

    fn of(&self, folio: Folio<'_>) -> &Slab<1> {
        if folio.is_small() { &self.small } else { &self.large }
    }
}

/// Words of an extension at most, of a small folio and of a large one.
pub(crate) const MOST_WORDS: [usize; 2] = [32, 32];

/// What extensions would hold of leaves that a folio never had: for those who ask. Nobody counts in them, but asking may take the lock of a scheme.
#[derive(Debug)]
pub(super) struct Never {
    small: [AtomicU64; MOST_WORDS[0]],
    large: [AtomicU64; MOST_WORDS[1]],
}

impl Default for Never {
    fn default() -> Self {
        Self { small: [const { AtomicU64::new(0) }; _], large: [const { AtomicU64::new(0) }; _] }
    }
}

/// What a home without its flags says: what it names, if anything.
const fn named(home: u64) -> Option<u64> {
    if KIND.of(home) == Kind::Grown as u64 { Some(EXTENSION.of(home)) } else { None }
}

const ALL_FLAGS: u64 = FLAGS.bits(0xf);

impl<M: Memory> Frames<M> {
    /// Word `at` of extension `number` and those behind it in its frame.
    fn extension(&self, number: u64, at: usize) -> &[AtomicU64] {
        let per_frame = ENTRIES as u64;
        let frame = self.memory().frame(Pfn::new(number / per_frame));
        &frame.0[(number % per_frame) as usize + at..]
    }

    /// What is named by the extension that a home names: the one made before.
    #[inline]
    fn before(&self, number: u64) -> Option<u64> {
        named(self.extension(number, 0)[0].load(Relaxed))
    }

    /// Where a folio belongs that may have grown.
    #[inline]
    pub(crate) fn mapping_of(&self, folio: Folio<'_>) -> Mapping {
        // Acquire pairs with the Release of who made the folio grow, here and below. It saw whole whatever was there before.
        let home = folio.home().load(Acquire);
        let Some(last) = named(home) else { return Mapping::of_home(home) };
        let first = self.before(last).unwrap_or(last);
        Mapping::of_home(self.extension(first, 0)[0].load(Relaxed))
    }

    /// The counts in the only extension of the small folio with this home.
    #[inline]
    pub(crate) fn grown_small(&self, home: &AtomicU64) -> Option<&[AtomicU64]> {
        named(home.load(Acquire)).map(|number| self.extension(number, 1))
    }

    /// The counts in the first extension that the large folio with this home got, or in the second.
    #[inline]
    pub(crate) fn grown_large(&self, home: &AtomicU64, second: bool) -> Option<&[AtomicU64]> {
        let last = named(home.load(Acquire))?;
        let number = match (self.before(last), second) {
            (None, false) | (Some(_), true) => last,
            (Some(first), false) => first,
            (None, true) => return None,
        };
        Some(self.extension(number, 1))
    }

    /// How many extensions a home names, at most two.
    #[inline]
    fn count(&self, home: u64) -> usize {
        named(home).map_or(0, |last| if self.before(last).is_some() { 2 } else { 1 })
    }

    /// The counts that a folio does not have yet: all 0.
    pub(crate) fn never_grown(&self, is_small: bool) -> &[AtomicU64] {
        if is_small { &self.never.small } else { &self.never.large }
    }

    /// Sees to it that the folio has `most` extensions at least: one or two. Whether there was memory for that; nothing has changed otherwise, but that it may have got one. The caller
    /// keeps the folio from being freed.
    #[inline]
    pub(crate) fn grow(&self, folio: Folio<'_>, extensions: &Extensions, most: usize) -> bool {
        let home = folio.home().load(Acquire);
        let has_room = if most == 1 { named(home).is_some() } else { self.count(home) >= most };
        has_room || self.make_grow(folio, extensions, most)
    }

    #[inline(never)]
    fn make_grow(&self, folio: Folio<'_>, extensions: &Extensions, most: usize) -> bool {
        let (pool, home) = (extensions.of(folio), folio.home());
        loop {
            let now = home.load(Acquire);
            if self.count(now) >= most {
                return true;
            }
            let number = {
                let _guard = self.lock();
                pool.take(self, false)
            };
            let Some(number) = number else { return false };
            for word in &self.extension(number, 1)[..pool.words() - 1] {
                word.store(0, Relaxed);
            }
            if !self.extend(home, now, number) {
                let _guard = self.lock();
                pool.give(self, number);
            }
        }
    }

    /// Puts extension `number`, of which all but word 0 is cleared, before what the home said: `now`. False when the folio grew meanwhile: it is nobody's then.
    fn extend(&self, home: &AtomicU64, mut now: u64, number: u64) -> bool {
        let found = now & !ALL_FLAGS;
        self.extension(number, 0)[0].store(found, Relaxed);
        while now & !ALL_FLAGS == found {
            let grown = KIND.bits(Kind::Grown as u64) | now & ALL_FLAGS | EXTENSION.bits(number);
            // Release: who finds the extension finds it cleared, and the mapping in it.
            match home.compare_exchange(now, grown, Release, Relaxed) {
                Ok(_) => return true,
                // A flag has changed, or another CPU has made it grow.
                Err(other) => now = other,
            }
        }
        false
    }

    /// Frees the extensions of a folio that goes, under the lock of the frames.
    pub(super) fn free_extensions(&self, folio: Folio<'_>, extensions: &Extensions) {
        let mut next = named(folio.home().load(Acquire));
        while let Some(number) = next {
            next = self.before(number);
            extensions.of(folio).give(self, number);
        }
    }
}
