//! A cursor over a range of pages: the only way to change a table.
//!
//! [`Cursor::next`] walks what is there; [`Cursor::open`] makes tables where there are none. Both hand out a [`Part`],
//! which holds the lock of one table page and reaches a stretch of its entries. A large leaf that the range covers
//! only in part comes alone in a `Part` with [`Part::straddles`] set: the caller splits it (and tells the counts), and asks again.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::{Flush, Place, Tables};
use crate::addr::{ENTRIES, Level, Pfn};
use crate::format::{Attrs, Entry, Format, Leaf};
use crate::sync::AtomicU64;

/// Why no part could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A table was needed and there is no frame left.
    OutOfFrames,
    /// A leaf or a table stands where the other was asked for.
    InTheWay,
}

/// A position in a range of pages of one tree of tables.
pub struct Cursor<'a, F, T> {
    tables: &'a T,
    root: Pfn,
    at: u64,
    end: u64,
    format: PhantomData<F>,
}

impl<F, T> fmt::Debug for Cursor<'_, F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({:#x}..{:#x})", self.at, self.end)
    }
}

impl<'a, F: Format, T: Tables> Cursor<'a, F, T> {
    pub(super) fn new(tables: &'a T, root: Pfn, first: u64, end: u64) -> Self {
        Self { tables, root, at: first, end, format: PhantomData }
    }

    /// Goes to `page`, at or behind the current position or before it.
    pub fn seek(&mut self, page: u64) {
        self.at = page;
    }

    /// The next stretch of entries that are no tables, locked; `None` at the end of the range. The cursor moves behind it.
    #[expect(
        clippy::should_implement_trait,
        reason = "a part borrows the tables, not the cursor, but holds a lock: not an iterator"
    )]
    #[inline]
    pub fn next(&mut self) -> Option<Part<'a, F, T>> {
        if self.at < self.end { Some(self.next_part()) } else { None }
    }

    fn next_part(&mut self) -> Part<'a, F, T> {
        loop {
            let (table, level, _) = descend::<F, T>(self.tables, self.root, self.at);
            let guard = self.tables.lock(table);
            let entries = self.tables.entries(table);
            let base = self.at & !(level.table_pages() - 1);
            let first = level.index(self.at);
            let last = level.index((self.end - 1).min(base + level.table_pages() - 1));
            let page_of = |i: usize| base + i as u64 * level.entry_pages();
            let mut i = first;
            let mut straddles = false;
            if level == Level::ONE {
                i = last + 1;
            } else {
                while i <= last {
                    match F::decode(entries[i].load(Relaxed), level) {
                        Entry::Table(_) => break,
                        Entry::Leaf(_) if page_of(i) < self.at || page_of(i + 1) > self.end => {
                            straddles = i == first;
                            i += usize::from(straddles);
                            break;
                        }
                        _ => i += 1,
                    }
                }
                if i == first {
                    // Somebody linked a table here between the walk and the lock.
                    continue;
                }
            }
            let part = Part {
                tables: self.tables,
                table,
                entries,
                level,
                base,
                range: first..i,
                straddles,
                is_fresh: false,
                _guard: Some(guard),
                format: PhantomData,
            };
            self.at = page_of(i);
            return part;
        }
    }

    /// The table at `level` that spans the current position, from its entry on to the end of the range or of the table; tables that
    /// are missing on the way are made. The cursor moves behind the part.
    ///
    /// # Errors
    /// [`OpenError::InTheWay`] when a larger leaf stands on the way.
    pub fn open(&mut self, level: Level) -> Result<Part<'a, F, T>, OpenError> {
        self.open_unless_held(level, None)
    }

    /// As [`open`](Self::open), while `held` is held, which may be of the same table: then there is one lock for both, and `held` must stay
    /// as long as the new part.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_beside(&mut self, held: &Part<'a, F, T>) -> Result<Part<'a, F, T>, OpenError> {
        self.open_unless_held(held.level, Some(held.table))
    }

    fn open_unless_held(&mut self, level: Level, held: Option<Pfn>) -> Result<Part<'a, F, T>, OpenError> {
        let mut at_level = F::ROOT;
        let mut table = self.root;
        while at_level > level {
            // Acquire pairs with the Release below.
            let raw = self.tables.look(table)[at_level.index(self.at)].load(Acquire);
            if let (Some(next), Some(below)) = (F::next_table(raw, at_level), at_level.below()) {
                (table, at_level) = (next, below);
                continue;
            }
            table = match F::decode(raw, at_level) {
                Entry::Table(next) => next,
                Entry::Leaf(_) => return Err(OpenError::InTheWay),
                Entry::Absent => {
                    let new = self.tables.alloc_table().ok_or(OpenError::OutOfFrames)?;
                    // The table that was asked for is ours before anybody can reach it.
                    let new_guard = (at_level.below() == Some(level)).then(|| self.tables.lock(new));
                    let guard = self.tables.lock(table);
                    let word = &self.tables.entries(table)[at_level.index(self.at)];
                    match F::decode(word.load(Relaxed), at_level) {
                        Entry::Absent => {
                            // Release: whoever sees the link sees the cleared table.
                            word.store(F::table(new), Release);
                            if new_guard.is_some() {
                                return Ok(Part { is_fresh: true, ..self.part_of(new, level, new_guard) });
                            }
                            new
                        }
                        // Another CPU was faster; ours was never reachable.
                        other => {
                            drop((guard, new_guard));
                            self.tables.free_table(new, true);
                            match other {
                                Entry::Table(next) => next,
                                _ => return Err(OpenError::InTheWay),
                            }
                        }
                    }
                }
            };
            at_level = at_level.below().ok_or(OpenError::InTheWay)?;
        }
        let guard = (held != Some(table)).then(|| self.tables.lock(table));
        Ok(self.part_of(table, level, guard))
    }

    /// As [`open`](Self::open), of the table where a walk to a page of it has ended: the caller has kept it from going since.
    #[inline(always)]
    pub fn open_at(&mut self, place: Place) -> Part<'a, F, T> {
        self.part_of(place.table, place.level, Some(self.tables.lock(place.table)))
    }

    /// As [`open`](Self::open), of the table at `level`, when a walk to a page of it has ended at `place`: no second walk if that is there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[inline(always)]
    pub fn open_from(&mut self, place: Place, level: Level) -> Result<Part<'a, F, T>, OpenError> {
        if place.level == level { Ok(self.open_at(place)) } else { self.open(level) }
    }

    /// The entries of `table` from the current position on to the end of the range or of the table; the cursor moves behind them.
    #[inline(always)]
    fn part_of(&mut self, table: Pfn, level: Level, guard: Option<T::Guard<'a>>) -> Part<'a, F, T> {
        let base = self.at & !(level.table_pages() - 1);
        let first = level.index(self.at);
        let end = self.end.min(base + level.table_pages());
        self.at = end;
        Part {
            tables: self.tables,
            table,
            entries: self.tables.entries(table),
            level,
            base,
            range: first..level.index(end - 1) + 1,
            straddles: false,
            is_fresh: false,
            _guard: guard,
            format: PhantomData,
        }
    }

    /// Turns the table that spans the 512 entries around the current position, all of them leaves of consecutive memory
    /// with the same rights, into one leaf at `level`. Returns the leaf's place and what it is; `None` when the
    /// entries are anything else. The old table goes into `flush`.
    pub fn collapse<I>(&mut self, level: Level, flush: &mut Flush<I>) -> Option<(Place, Leaf)> {
        let below = level.below()?;
        let page = self.at & !(level.entry_pages() - 1);
        let mut parent = (F::ROOT, self.root);
        while parent.0 > level {
            parent = (parent.0.below()?, self.next_table(parent.1, parent.0)?);
        }
        let _parent_guard = self.tables.lock(parent.1);
        let child = self.next_table(parent.1, level)?;
        {
            let _child_guard = self.tables.lock(child);
            let entries = self.tables.entries(child);
            let Entry::Leaf(first) = F::decode(entries[0].load(Relaxed), below) else { return None };
            if first.pfn.raw() & (level.entry_pages() - 1) != 0
                || run::<F>(entries, below, Attrs::ACCESSED_DIRTY).leaves < ENTRIES
            {
                return None;
            }
            // An MMU may set bits through the old table until the flush. Accessed is claimed anyway; dirty is claimed where a store
            // is possible, which errs to the safe side.
            let mut attrs = first.attrs.or(Attrs::ACCESSED).with_if(first.attrs.has(Attrs::WRITE), Attrs::DIRTY);
            let union = entries.iter().fold(0, |union, word| union | word.load(Relaxed));
            attrs = attrs.with_if(union & F::set_bits(Attrs::DIRTY) != 0, Attrs::DIRTY);
            let leaf = Leaf { pfn: first.pfn, attrs };
            self.tables.entries(parent.1)[level.index(page)].store(F::leaf(leaf, level), Release);
            flush.add_pages(page, level.entry_pages());
            flush.push_table(self.tables, child, false);
            Some((Place { page, table: parent.1, level }, leaf))
        }
    }

    fn next_table(&self, table: Pfn, level: Level) -> Option<Pfn> {
        F::next_table(self.tables.look(table)[level.index(self.at)].load(Acquire), level)
    }
}

/// The deepest table on the way to `page`, its level, and its entry there.
#[inline]
pub(super) fn descend<F: Format, T: Tables>(tables: &T, root: Pfn, page: u64) -> (Pfn, Level, u64) {
    let (mut table, mut level) = (root, F::ROOT);
    loop {
        // Acquire pairs with the Release that links a table: its cleared entries are seen.
        let raw = tables.look(table)[level.index(page)].load(Acquire);
        let (Some(next), Some(below)) = (F::next_table(raw, level), level.below()) else {
            return (table, level, raw);
        };
        (table, level) = (next, below);
    }
}

/// Whether all of `words` hold nothing.
#[inline]
pub(crate) fn are_absent(words: &[AtomicU64]) -> bool {
    let union = |words: &[AtomicU64]| words.iter().fold(0, |union, word| union | word.load(Relaxed));
    let (chunks, rest) = words.as_chunks::<CHUNK>();
    chunks.iter().all(|chunk| union(chunk) == 0) && union(rest) == 0
}

/// The leaf that `raw` is, or was before it was frozen.
pub(super) fn held<F: Format>(raw: u64, level: Level) -> Option<Leaf> {
    match F::decode(F::thaw(raw).unwrap_or(raw), level) {
        Entry::Leaf(leaf) => Some(leaf),
        _ => None,
    }
}

/// Entries that the loops below take together: as many loads, or stores, with one branch behind them.
const CHUNK: usize = 8;
type Chunk = [AtomicU64; CHUNK];

/// The bits in which entries may differ from a run that starts with `first`, as a union.
#[inline(always)]
fn difference(chunk: &Chunk, first: u64, step: u64) -> u64 {
    // Each from the first, not from the one before: a chain of sums would take a cycle for each.
    (0..CHUNK).fold(0, |difference, k| difference | chunk[k].load(Relaxed) ^ first.wrapping_add(step * k as u64))
}

/// Writes a run of leaves at `level` that starts with `first`.
fn fill<F: Format>(words: &[AtomicU64], first: u64, level: Level) {
    // Nearly all leaves stand at level 1: where the step is a constant, it costs nothing to know what the next entry is.
    if level == Level::ONE {
        fill_by(words, first, F::leaf_step(Level::ONE));
    } else {
        fill_by(words, first, F::leaf_step(level));
    }
}

#[inline(always)]
fn fill_by(words: &[AtomicU64], first: u64, step: u64) {
    let put = |words: &[AtomicU64], raw: u64| {
        for (k, word) in words.iter().enumerate() {
            // Release: the memory's contents and counts are there before a walk can reach it.
            word.store(raw.wrapping_add(step * k as u64), Release);
        }
    };
    let (chunks, rest) = words.as_chunks::<CHUNK>();
    let mut raw = first;
    for chunk in chunks {
        put(chunk, raw);
        raw = raw.wrapping_add(step * CHUNK as u64);
    }
    for word in rest {
        put(core::slice::from_ref(word), raw);
        raw = raw.wrapping_add(step);
    }
}

/// The leaves at the start of `words`, one at least, that map consecutive memory and differ at most in `ignore`.
fn run<F: Format>(words: &[AtomicU64], level: Level, ignore: Attrs) -> Run {
    if level == Level::ONE {
        run_by::<F>(words, F::leaf_step(Level::ONE), ignore)
    } else {
        run_by::<F>(words, F::leaf_step(level), ignore)
    }
}

#[inline(always)]
fn run_by<F: Format>(words: &[AtomicU64], step: u64, ignore: Attrs) -> Run {
    let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
    let ignore = F::set_bits(ignore) | F::clear_bits(ignore);
    let first = words[0].load(Relaxed);
    let expected = |n: usize| first.wrapping_add(step.wrapping_mul(n as u64));
    let (mut n, mut union) = (0, 0);
    for chunk in words.as_chunks::<CHUNK>().0 {
        let difference = difference(chunk, expected(n), step);
        if difference & !ignore != 0 {
            break;
        }
        union |= difference;
        n += CHUNK;
    }
    for word in &words[n..] {
        let difference = word.load(Relaxed) ^ expected(n);
        if difference & !ignore != 0 {
            break;
        }
        union |= difference;
        n += 1;
    }
    Run { leaves: n, alike: (first & settled == settled && union == 0).then_some(first) }
}

#[inline(always)]
fn change_one<F: Format>(word: &AtomicU64, changed: impl Fn(u64) -> u64) {
    let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
    let raw = word.load(Relaxed);
    if raw & settled == settled {
        word.store(changed(raw), Relaxed);
    } else {
        // Cannot fail for ever: the MMU only sets bits, and we hold the lock against everybody else.
        let _ = word.fetch_update(AcqRel, Relaxed, |raw| Some(changed(raw)));
    }
}

#[inline(never)]
fn change_each<F: Format>(words: &[AtomicU64], changed: impl Fn(u64) -> u64) {
    let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
    let (chunks, rest) = words.as_chunks::<CHUNK>();
    for chunk in chunks {
        let raws = chunk.each_ref().map(|word| word.load(Relaxed));
        if raws.into_iter().fold(settled, |all, raw| all & raw) == settled {
            chunk.iter().zip(raws).for_each(|(word, raw)| word.store(changed(raw), Relaxed));
        } else {
            chunk.iter().for_each(|word| change_one::<F>(word, &changed));
        }
    }
    rest.iter().for_each(|word| change_one::<F>(word, &changed));
}

/// Leaves of consecutive memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub leaves: usize,
    /// The first of them, when all are settled (accessed and dirty, so that no MMU changes them) and differ in nothing but the frame.
    alike: Option<u64>,
}

impl Run {
    /// One entry, whatever it is.
    pub const ONE: Self = Self { leaves: 1, alike: None };
}

/// A stretch of entries of one table page, under the lock of that page. Indexes are those of the table, within
/// [`Part::range`]. None of the entries is a table.
pub struct Part<'a, F, T: Tables> {
    tables: &'a T,
    table: Pfn,
    entries: &'a [AtomicU64; ENTRIES],
    level: Level,
    base: u64,
    range: Range<usize>,
    straddles: bool,
    is_fresh: bool,
    /// `None` when another part of the same table, which its owner holds as long, has the lock.
    _guard: Option<T::Guard<'a>>,
    format: PhantomData<F>,
}

impl<F, T: Tables> fmt::Debug for Part<'_, F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({:?}, level {:?}, {:?})", self.table, self.level, self.range)
    }
}

impl<F: Format, T: Tables> Part<'_, F, T> {
    /// The entries that belong to the part.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The table page.
    #[must_use]
    pub fn table(&self) -> Pfn {
        self.table
    }

    /// Its level.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether the part is one leaf that reaches beyond the cursor's range.
    #[must_use]
    pub fn straddles(&self) -> bool {
        self.straddles
    }

    /// Whether the table was made for this part: all of its entries were absent when the part was handed out.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// The first page that entry `i` translates.
    #[must_use]
    pub fn page(&self, i: usize) -> u64 {
        self.base + i as u64 * self.level.entry_pages()
    }

    /// Pages that the whole table spans: `first..end`.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        self.base..self.base + self.level.table_pages()
    }

    /// The index of the entry that translates `page`, which must lie in [`Part::span`].
    #[must_use]
    pub fn index(&self, page: u64) -> usize {
        debug_assert!(self.span().contains(&page));
        self.level.index(page)
    }

    /// Entry `i`.
    #[must_use]
    pub fn entry(&self, i: usize) -> Entry {
        F::decode(self.entries[i].load(Relaxed), self.level)
    }

    /// The leaf at `i`, if one is there.
    #[must_use]
    pub fn leaf(&self, i: usize) -> Option<Leaf> {
        match self.entry(i) {
            Entry::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// The leaf at `i`, frozen or not: what is counted.
    #[must_use]
    pub fn held(&self, i: usize) -> Option<Leaf> {
        held::<F>(self.entries[i].load(Relaxed), self.level)
    }

    /// Whether the leaf at `i` is frozen.
    #[must_use]
    pub fn is_frozen(&self, i: usize) -> bool {
        F::thaw(self.entries[i].load(Relaxed)).is_some()
    }

    /// Whether entry `i` holds nothing, not even a frozen leaf.
    #[must_use]
    pub fn is_absent(&self, i: usize) -> bool {
        self.entries[i].load(Relaxed) == 0
    }

    /// Whether all of `range` [is absent](Self::is_absent).
    #[must_use]
    #[inline(always)]
    pub fn are_absent(&self, range: Range<usize>) -> bool {
        if range.len() == 1 {
            return self.is_absent(range.start);
        }
        are_absent(&self.entries[range])
    }

    /// The entries around `i`, within `within`, that hold nothing; `i` is one of them.
    #[must_use]
    pub fn absent_around(&self, i: usize, within: Range<usize>) -> Range<usize> {
        let mut range = i..i + 1;
        while range.start > within.start && self.is_absent(range.start - 1) {
            range.start -= 1;
        }
        while range.end < within.end && self.is_absent(range.end) {
            range.end += 1;
        }
        range
    }

    /// How many leaves from `i` on, at most `max`, map consecutive memory and differ at most in `ignore`.
    #[must_use]
    pub fn run_length(&self, i: usize, max: usize, ignore: Attrs) -> usize {
        self.run(i, max, ignore).leaves
    }

    /// How many leaves before the one at `i`, at most `max`, map the memory before its own and differ from it at most in `ignore`.
    #[must_use]
    pub fn run_before(&self, i: usize, max: usize, ignore: Attrs) -> usize {
        let ignore = F::set_bits(ignore) | F::clear_bits(ignore);
        let step = F::leaf_step(self.level);
        let is_before = |j: usize, next: u64| (self.entries[j].load(Relaxed) ^ next.wrapping_sub(step)) & !ignore == 0;
        let mut next = self.entries[i].load(Relaxed);
        let mut n = 0;
        let (_, chunks) = self.entries[i - max..i].as_rchunks::<CHUNK>();
        for chunk in chunks.iter().rev() {
            let first = next.wrapping_sub(step * CHUNK as u64);
            if difference(chunk, first, step) & !ignore != 0 {
                break;
            }
            (n, next) = (n + CHUNK, first);
        }
        while n < max && is_before(i - n - 1, next) {
            (n, next) = (n + 1, next.wrapping_sub(step));
        }
        n
    }

    /// As [`run_length`](Self::run_length), with what [`copy_to`](Self::copy_to) wants to know.
    #[must_use]
    #[inline]
    pub fn run(&self, i: usize, max: usize, ignore: Attrs) -> Run {
        if max == 1 {
            return Run::ONE;
        }
        run::<F>(&self.entries[i..i + max], self.level, ignore)
    }

    /// How many of the entries `range` are leaves, frozen or not, that map a frame of `first..end`.
    #[must_use]
    pub fn count_leaves_of(&self, range: Range<usize>, first: Pfn, end: Pfn) -> u32 {
        self.entries[range]
            .iter()
            .filter(|word| {
                held::<F>(word.load(Relaxed), self.level).is_some_and(|leaf| first <= leaf.pfn && leaf.pfn < end)
            })
            .count() as u32
    }

    /// Writes `n` leaves of consecutive memory from `i` on over absent entries. Not-present entries are never
    /// cached, so nothing needs a flush (SDM vol. 3, 4.10.2.3).
    #[inline(always)]
    pub fn install(&self, i: usize, n: usize, leaf: Leaf) {
        debug_assert!(self.are_absent(i..i + n), "an entry in the way");
        if n == 1 {
            // Release: as in a run.
            return self.entries[i].store(F::leaf(leaf, self.level), Release);
        }
        fill::<F>(&self.entries[i..i + n], F::leaf(leaf, self.level), self.level);
    }

    /// Clears `n` entries from `i` on; the union of the attributes of their leaves.
    #[inline]
    pub fn clear(&self, i: usize, n: usize) -> Attrs {
        if n == 1 {
            let Some(leaf) = self.held(i) else {
                // Nothing, or what no MMU follows.
                self.entries[i].swap(0, AcqRel);
                return Attrs::NONE;
            };
            return self.take_one(i, leaf);
        }
        let (mut i, end) = (i, i + n);
        let mut union = Attrs::NONE;
        while i < end {
            let (n, attrs) = self.take_run(i, end - i);
            union = union.or(attrs);
            i += n;
        }
        union
    }

    /// Clears the leaves from `i` on, at most `max`, that map consecutive memory and differ at most in their attributes: how many they are, one at least, and the
    /// union of their attributes. An entry with accessed and dirty set holds nothing that the MMU could still change, so a load and a store are
    /// enough; any other is exchanged, so that no late bit is lost.
    pub fn take_run(&self, i: usize, max: usize) -> (usize, Attrs) {
        if self.level == Level::ONE {
            self.take_run_by(i, max, F::leaf_step(Level::ONE))
        } else {
            self.take_run_by(i, max, F::leaf_step(self.level))
        }
    }

    #[inline(always)]
    fn take_run_by(&self, i: usize, max: usize, step: u64) -> (usize, Attrs) {
        let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
        let ignore = F::set_bits(Attrs::ALL) | F::clear_bits(Attrs::ALL);
        let words = &self.entries[i..i + max];
        let attrs_of = |raw| held::<F>(raw, self.level).map_or(Attrs::NONE, |leaf| leaf.attrs);
        let mut expected = words[0].load(Relaxed);
        let mut n = 0;
        // Most runs differ in nothing: while entries are settled and exactly what is expected they go together.
        let mut alike = expected & settled == settled;
        let mut union = if alike { attrs_of(expected) } else { Attrs::NONE };
        loop {
            while alike && let Some(chunk) = words[n..].first_chunk::<CHUNK>() {
                alike = difference(chunk, expected, step) == 0;
                if alike {
                    chunk.iter().for_each(|word| word.store(0, Relaxed));
                    n += CHUNK;
                    expected = expected.wrapping_add(step.wrapping_mul(CHUNK as u64));
                }
            }
            let Some(word) = words.get(n) else { break };
            let mut raw = word.load(Relaxed);
            if n > 0 && (raw ^ expected) & !ignore != 0 {
                break;
            }
            if raw & settled == settled {
                word.store(0, Relaxed);
            } else {
                raw = word.swap(0, AcqRel);
            }
            if raw != expected || n == 0 {
                union = union.or(attrs_of(raw));
                alike = raw & settled == settled;
            }
            expected = raw.wrapping_add(step);
            n += 1;
        }
        (n, union)
    }

    /// Clears the entry at `i`, which was seen to be `leaf`, frozen or not; its attributes, with what the MMU has added since.
    #[inline]
    pub fn take_one(&self, i: usize, leaf: Leaf) -> Attrs {
        let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
        let word = &self.entries[i];
        if word.load(Relaxed) & settled == settled {
            word.store(0, Relaxed);
            return leaf.attrs.or(Attrs::ACCESSED_DIRTY);
        }
        held::<F>(word.swap(0, AcqRel), self.level).map_or(Attrs::NONE, |leaf| leaf.attrs)
    }

    /// Freezes `n` leaves from `i` on: to the MMU they are absent from the next flush on. Settled entries by a load and a store, others by a
    /// compare-exchange, so that the last bits of the MMU are kept too.
    pub fn freeze(&self, i: usize, n: usize) {
        let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
        for word in &self.entries[i..i + n] {
            let raw = word.load(Relaxed);
            if raw & settled == settled {
                word.store(F::freeze(raw), Relaxed);
            } else {
                let _ = word.fetch_update(AcqRel, Relaxed, |raw| Some(F::freeze(raw)));
            }
        }
    }

    /// Makes `n` frozen leaves from `i` on what they were before.
    pub fn thaw(&self, i: usize, n: usize) {
        for word in &self.entries[i..i + n] {
            // Plain: no MMU writes to an entry that is not present. Release, as for a new leaf.
            if let Some(raw) = F::thaw(word.load(Relaxed)) {
                word.store(raw, Release);
            }
        }
    }

    /// Puts `leaf` in place of the frozen one at `i`; the attributes of that.
    ///
    /// # Panics
    /// When there is none.
    #[inline]
    pub fn replace_frozen(&self, i: usize, leaf: Leaf) -> Attrs {
        let word = &self.entries[i];
        // Plain, as in `thaw`.
        let raw = F::thaw(word.load(Relaxed)).expect("a frozen leaf");
        word.store(F::leaf(leaf, self.level), Release);
        held::<F>(raw, self.level).map_or(Attrs::NONE, |old| old.attrs)
    }

    /// Puts consecutive memory from `pfn` on in place of what the `n` frozen leaves from `i` on map, and thaws them: their attributes stay.
    ///
    /// # Panics
    /// When one of them is no frozen leaf.
    pub fn thaw_to(&self, i: usize, n: usize, pfn: Pfn) {
        let mut pfn = pfn;
        for i in i..i + n {
            let leaf = self.held(i).filter(|_| self.is_frozen(i)).expect("a frozen leaf");
            // Release: the contents and counts of the new folio are there before a walk can reach it.
            self.entries[i].store(F::leaf(Leaf { pfn, ..leaf }, self.level), Release);
            pfn = pfn.add(self.level.entry_pages());
        }
    }

    /// Takes `remove` away from `n` leaves from `i` on and gives them `add`. Settled entries by a load and a store, others by a
    /// compare-exchange, so that a bit the MMU sets meanwhile stays.
    #[inline]
    pub fn change(&self, i: usize, n: usize, remove: Attrs, add: Attrs) {
        let clear = F::set_bits(remove) | F::clear_bits(add);
        let set = F::set_bits(add) | F::clear_bits(remove);
        let changed = |raw: u64| F::settle(raw & !clear | set);
        if n == 1 {
            change_one::<F>(&self.entries[i], changed)
        } else {
            change_each::<F>(&self.entries[i..i + n], changed)
        }
    }

    /// Copies the leaves of `run`, which starts at `i`, to the same indexes of `to`, a part of another table at the same level, and takes `remove` away
    /// from both. Each entry is written at most once on either side.
    #[inline]
    pub fn copy_to(&self, i: usize, run: Run, to: &Part<'_, F, T>, remove: Attrs) {
        let clear = F::set_bits(remove);
        let settled = F::set_bits(Attrs::ACCESSED_DIRTY);
        let one = |from: &AtomicU64, to: &AtomicU64| {
            let raw = from.load(Relaxed);
            to.store(raw & !clear, Relaxed);
            if raw & clear != 0 {
                if raw & settled == settled {
                    from.store(raw & !clear, Relaxed);
                } else {
                    from.fetch_and(!clear, AcqRel);
                }
            }
        };
        if run.leaves == 1 {
            return one(&self.entries[i], &to.entries[i]);
        }
        let (from, to) = (&self.entries[i..i + run.leaves], &to.entries[i..i + run.leaves]);
        if let Some(first) = run.alike {
            fill::<F>(to, first & !clear, self.level);
            if first & clear != 0 {
                fill::<F>(from, first & !clear, self.level);
            }
            return;
        }
        from.iter().zip(to).for_each(|(from, to)| one(from, to));
    }

    /// Splits the leaf at `i` into a table of 512 leaves a level below with the same rights; the new table. `count` is called when nothing can go wrong any more, and before
    /// anybody can reach the new leaves: while neither they nor the one are there.
    ///
    /// # Errors
    /// [`OpenError::OutOfFrames`]; nothing has changed then.
    ///
    /// # Panics
    /// When `i` is no leaf above level 1.
    pub fn split<I>(&self, i: usize, flush: &mut Flush<I>, count: impl FnOnce()) -> Result<Pfn, OpenError> {
        let below = self.level.below().expect("a leaf above level 1");
        let Entry::Leaf(_) = self.entry(i) else { panic!("no leaf to split at {:#x}", self.page(i)) };
        let table = self.tables.alloc_split_table().ok_or(OpenError::OutOfFrames)?;
        // Taken out with an exchange, so that the last accessed and dirty bits of the MMU reach the new leaves. Until the new table is
        // linked an access faults and waits for our lock.
        let Entry::Leaf(leaf) = F::decode(self.entries[i].swap(0, AcqRel), self.level) else {
            unreachable!("the entry is locked")
        };
        fill::<F>(self.tables.entries(table), F::leaf(leaf, below), below);
        count();
        self.entries[i].store(F::table(table), Release);
        flush.add_pages(self.page(i), self.level.entry_pages());
        Ok(table)
    }
}
