//! What the tenants had mapped at the checkpoint with the most leaves, as words: [`stats`](mod@crate::stats) on its way out of the machine.
//!
//! ```text
//! 0        records that follow: tenants                tenants in the order of their spaces, then vmas in that order and by address;
//! 1        and vmas                                    all tenants come first, so that vmas are what is left out
//! 2        tenants left out for want of room
//! 3        and vmas
//! 4        runs of pages, if they are wanted           behind the vmas, space by space and by address
//! 5        runs left out
//! 6        meminfo                   7 words
//!          tenants                   1 + 12 words each: space, smaps_rollup
//!          vmas                      7 + 12 words each: space, first page, one past the last, flags, object, offset, mapmax, smaps
//!          runs                      6 words each: space, first page, frame, pages and whether they are a file's, kpagecount, exclusive
//! ```
//!
//! An answer is one word: how sure it is in the upper 3 bits, and the value below.

use super::results::STATS_WORDS;
use crate::mapcount::{Accounting, Answer};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, PAGES_END, VmaFlags};
use crate::stats::{Fill, Meminfo, Smaps};

const HEADER_WORDS: usize = 6;
const MEMINFO_WORDS: usize = 7;
const SMAPS_WORDS: usize = 12;
const TENANT_WORDS: usize = 1 + SMAPS_WORDS;
const VMA_WORDS: usize = 7 + SMAPS_WORDS;
const RUN_WORDS: usize = 6;
/// In the word of a run's pages: they are a file's or shared memory.
const IS_FILE: u64 = 1 << 63;

/// Boot word: 1 when runs of pages are wanted.
pub const PAGES_WANTED: usize = super::boot::OPTIONS + 17;

/// Where the value of an answer ends: 2^61 units are far above any Pss.
const SURE_SHIFT: u32 = 61;

const fn answer_word(answer: Answer<u64>) -> u64 {
    match answer {
        Answer::Exact(value) => value,
        Answer::Errs(value) => 1 << SURE_SHIFT | value,
        Answer::About(value) => 2 << SURE_SHIFT | value,
        Answer::Walk => 3 << SURE_SHIFT,
        Answer::Cannot => 4 << SURE_SHIFT,
    }
}

const fn answer_of(word: u64) -> Answer<u64> {
    let value = word & ((1 << SURE_SHIFT) - 1);
    match word >> SURE_SHIFT {
        0 => Answer::Exact(value),
        1 => Answer::Errs(value),
        2 => Answer::About(value),
        3 => Answer::Walk,
        _ => Answer::Cannot,
    }
}

const fn meminfo_words(m: &Meminfo) -> [u64; MEMINFO_WORDS] {
    [
        m.total,
        m.free,
        answer_word(m.anon_pages),
        answer_word(m.mapped),
        answer_word(m.anon_huge),
        answer_word(m.file_pmd),
        m.page_tables,
    ]
}

fn meminfo_of(words: &[u64]) -> Meminfo {
    Meminfo {
        total: words[0],
        free: words[1],
        anon_pages: answer_of(words[2]),
        mapped: answer_of(words[3]),
        anon_huge: answer_of(words[4]),
        file_pmd: answer_of(words[5]),
        page_tables: words[6],
    }
}

const fn smaps_words(s: &Smaps) -> [u64; SMAPS_WORDS] {
    [
        s.size,
        s.rss,
        answer_word(s.pss),
        answer_word(s.shared_clean),
        answer_word(s.shared_dirty),
        answer_word(s.private_clean),
        answer_word(s.private_dirty),
        s.referenced,
        s.anonymous,
        s.anon_huge,
        s.shmem_pmd,
        s.file_pmd,
    ]
}

fn smaps_of(words: &[u64]) -> Smaps {
    Smaps {
        size: words[0],
        rss: words[1],
        pss: answer_of(words[2]),
        shared_clean: answer_of(words[3]),
        shared_dirty: answer_of(words[4]),
        private_clean: answer_of(words[5]),
        private_dirty: answer_of(words[6]),
        referenced: words[7],
        anonymous: words[8],
        anon_huge: words[9],
        shmem_pmd: words[10],
        file_pmd: words[11],
    }
}

/// Words that are given out one by one, as far as there is room.
struct Stream<P> {
    put: P,
    at: usize,
}

impl<P: FnMut(usize, u64)> Stream<P> {
    /// A record; whether it fitted.
    fn push<const N: usize>(&mut self, head: [u64; N], smaps: &Smaps) -> bool {
        self.push_words(N + SMAPS_WORDS, head.into_iter().chain(smaps_words(smaps)))
    }

    fn push_words(&mut self, count: usize, words: impl Iterator<Item = u64>) -> bool {
        let fits = self.at + count <= STATS_WORDS;
        if fits {
            for word in words {
                (self.put)(self.at, word);
                self.at += 1;
            }
        }
        fits
    }
}

/// Consecutive pages in consecutive frames of which pagemap and kpagecount say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Number of the space.
    pub space: u64,
    /// The first page.
    pub page: u64,
    /// Its frame.
    pub pfn: u64,
    /// How many.
    pub pages: u64,
    /// Whether they are a file's or shared memory (PM_FILE).
    pub is_file: bool,
    /// kpagecount of each.
    pub count: Answer<u64>,
    /// PM_MMAP_EXCLUSIVE of each.
    pub exclusive: Answer<bool>,
}

impl PageRun {
    fn words(self) -> [u64; RUN_WORDS] {
        let file = if self.is_file { IS_FILE } else { 0 };
        let exclusive = answer_word(self.exclusive.map(u64::from));
        [self.space, self.page, self.pfn, self.pages | file, answer_word(self.count), exclusive]
    }

    fn of(words: &[u64]) -> Self {
        Self {
            space: words[0],
            page: words[1],
            pfn: words[2],
            pages: words[3] & !IS_FILE,
            is_file: words[3] & IS_FILE != 0,
            count: answer_of(words[4]),
            exclusive: answer_of(words[5]).map(|bit| bit == 1),
        }
    }

    /// Whether `next` goes on as this one is; it is longer then.
    fn takes(&mut self, next: &Self) -> bool {
        let goes_on =
            Self { page: self.page + self.pages, pfn: self.pfn + self.pages, pages: next.pages, ..*self } == *next;
        self.pages += if goes_on { next.pages } else { 0 };
        goes_on
    }
}

/// Writes what is mapped now, and of every page if `pages`; `put` gets the index of a word below [`STATS_WORDS`] and the word. No space may come or go meanwhile.
pub fn write<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>, pages: bool, mut put: impl FnMut(usize, u64)) {
    for (i, word) in meminfo_words(&manager.meminfo()).into_iter().enumerate() {
        put(HEADER_WORDS + i, word);
    }
    let mut counts = [0u64; HEADER_WORDS];
    let mut stream = Stream { put, at: HEADER_WORDS + MEMINFO_WORDS };
    for space in manager.spaces() {
        let smaps = manager.smaps_rollup(space, Fill::Scheme);
        counts[if stream.push([u64::from(space.raw())], &smaps) { 0 } else { 2 }] += 1;
    }
    for space in manager.spaces() {
        manager.read_stats(space, Fill::Scheme, |vma, smaps, numa| {
            let head = [
                u64::from(space.raw()),
                vma.start(),
                vma.end(),
                u64::from(vma.flags().raw()),
                u64::from(vma.object()),
                vma.offset(),
                answer_word(numa.mapmax),
            ];
            counts[if stream.push(head, smaps) { 1 } else { 3 }] += 1;
        });
    }
    for space in manager.spaces().filter(|_| pages) {
        let mut run: Option<PageRun> = None;
        let mut end = |run: PageRun| {
            counts[if stream.push_words(RUN_WORDS, run.words().into_iter()) { 4 } else { 5 }] += 1;
        };
        manager.pagemap(space, 0..PAGES_END, Fill::Scheme, |page, entry| {
            let next = PageRun {
                space: space.raw().into(),
                page,
                pfn: entry.pfn.raw(),
                pages: 1,
                is_file: entry.is_file,
                count: manager.kpagecount(entry.pfn, Fill::Scheme),
                exclusive: entry.exclusive,
            };
            if !run.as_mut().is_some_and(|run| run.takes(&next))
                && let Some(done) = run.replace(next)
            {
                end(done);
            }
        });
        run.map(&mut end);
    }
    for (i, count) in counts.into_iter().enumerate() {
        (stream.put)(i, count);
    }
}

/// What [`write()`] wrote.
#[derive(Clone, Debug)]
pub struct Stats<'a> {
    words: &'a [u64],
}

/// A vma, as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmaStats {
    /// Number of its space.
    pub space: u64,
    /// The first page.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What it allows and is.
    pub flags: VmaFlags,
    /// Number of the object it maps, 0 for private anonymous memory.
    pub object: u64,
    /// The index of its first page in the object.
    pub offset: u64,
    /// numa_maps' mapmax.
    pub mapmax: Answer<u64>,
    /// Its smaps.
    pub smaps: Smaps,
}

impl<'a> Stats<'a> {
    /// Over the words; `None` if they are not what [`write()`] writes, or if it wrote nothing.
    #[must_use]
    pub fn new(words: &'a [u64]) -> Option<Self> {
        let stats = Self { words };
        let has_room = words.len() >= HEADER_WORDS + MEMINFO_WORDS
            && words[0] <= STATS_WORDS as u64
            && words[1] <= STATS_WORDS as u64
            && words[4] <= STATS_WORDS as u64;
        // Every manager has frames.
        (has_room && stats.end() <= words.len() && stats.meminfo().total > 0).then_some(stats)
    }

    fn first_vma(&self) -> usize {
        HEADER_WORDS + MEMINFO_WORDS + self.words[0] as usize * TENANT_WORDS
    }

    fn first_run(&self) -> usize {
        self.first_vma() + self.words[1] as usize * VMA_WORDS
    }

    fn end(&self) -> usize {
        self.first_run() + self.words[4] as usize * RUN_WORDS
    }

    /// meminfo.
    #[must_use]
    pub fn meminfo(&self) -> Meminfo {
        meminfo_of(&self.words[HEADER_WORDS..])
    }

    /// The spaces by number, and smaps_rollup of each.
    pub fn tenants(&self) -> impl Iterator<Item = (u64, Smaps)> + 'a {
        let records = &self.words[HEADER_WORDS + MEMINFO_WORDS..self.first_vma()];
        records.chunks_exact(TENANT_WORDS).map(|words| (words[0], smaps_of(&words[1..])))
    }

    /// The vmas, space by space and by address.
    pub fn vmas(&self) -> impl Iterator<Item = VmaStats> + 'a {
        self.words[self.first_vma()..self.first_run()].chunks_exact(VMA_WORDS).map(|words| VmaStats {
            space: words[0],
            start: words[1],
            end: words[2],
            flags: VmaFlags::from_raw(words[3] as u32),
            object: words[4],
            offset: words[5],
            mapmax: answer_of(words[6]),
            smaps: smaps_of(&words[7..]),
        })
    }

    /// pagemap and kpagecount, space by space and by address; nothing when they were not wanted.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + 'a {
        self.words[self.first_run()..self.end()].chunks_exact(RUN_WORDS).map(PageRun::of)
    }

    /// Tenants, vmas and runs that found no room.
    #[must_use]
    pub fn left_out(&self) -> (u64, u64, u64) {
        (self.words[2], self.words[3], self.words[5])
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, answer_of, answer_word};

    #[test]
    fn answers_survive_the_way() {
        for answer in [Answer::Exact(7), Answer::Errs(0), Answer::About(1 << 60), Answer::Walk, Answer::Cannot] {
            assert_eq!(answer_of(answer_word(answer)), answer);
        }
    }
}
