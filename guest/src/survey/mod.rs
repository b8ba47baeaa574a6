//! The survey: what every observing scheme answers, to every question and about everything that is mapped, against what a recount has just found.
//!
//! It leaves nothing but [words](mod@crate::abi::survey), so that it is the same in a VM and in process. The oracle is not surveyed: it is
//! told every page.

mod spread;
mod tally;

use crate::sync::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::abi::survey::{self, Question, SCHEMES};
use crate::audit::Recount;
use crate::folio::Folio;
use crate::format::Attrs;
use crate::mapcount::{Accounting, Answer, Answers, Scheme, Share};
use crate::memory::{Memory, Tlb};
use crate::space::{Manager, PAGES_END, SpaceId};
use tally::Tally;

/// Pages that a scheme says are mapped, and what it says of one process; `None` once it did not say.
type Sum = [Option<u64>; SCHEMES];

/// Adds a checkpoint to the words of a survey. `recount` must have run, and nothing changed since.
pub fn take<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>, recount: &Recount, words: &[AtomicU64]) {
    let mut survey = Survey { manager, recount, words, numbers: [None; 2 * SCHEMES], known: false };
    add(&words[survey::CHECKPOINTS], 1);
    survey.folios();
    for space in manager.spaces().filter(|&space| manager.rss(space) > 0) {
        survey.space(space);
    }
}

struct Survey<'a, M, A> {
    manager: &'a Manager<M, A>,
    recount: &'a Recount,
    words: &'a [AtomicU64],
    /// Which scheme is the n-th to be visited; none for the oracle. Found out once: names are long to compare.
    numbers: [Option<usize>; 2 * SCHEMES],
    known: bool,
}

impl<M: Memory + Tlb, A: Accounting> Survey<'_, M, A> {
    /// Visits each scheme's answers about a folio, by its number.
    fn each(&mut self, folio: Folio<'_>, mut visit: impl FnMut(usize, &dyn Answers)) {
        let target = self.manager.counts(folio);
        if !self.known {
            let mut nth = 0;
            A::each(&target, &mut |answers| {
                self.numbers[nth] = answers.scheme().parse::<Scheme>().ok().map(|scheme| scheme as usize);
                nth += 1;
            });
            self.known = true;
        }
        let mut nth = 0;
        A::each(&target, &mut |answers| {
            if let Some(scheme) = self.numbers[nth] {
                visit(scheme, answers);
            }
            nth += 1;
        });
    }

    /// Asks about every mapped folio and each of its pages.
    fn folios(&mut self) {
        let span = self.manager.frames().span();
        let mut pfn = span.start;
        // Anonymous pages, then those of objects: mapped, and said to be.
        let (mut mapped, mut said): ([u64; 2], [Sum; 2]) = ([0; 2], [[Some(0); SCHEMES]; 2]);
        while pfn < span.end {
            let Some(folio) = self.manager.folio(pfn).filter(|folio| folio.head() == pfn) else {
                pfn = pfn.add(1);
                continue;
            };
            pfn = folio.end();
            self.folio(folio, &mut mapped, &mut said);
        }
        for kind in 0..2 {
            add(&self.words[survey::MAPPED + kind], mapped[kind]);
            for scheme in 0..SCHEMES {
                let word = survey::said(scheme) + kind;
                let said = said[kind][scheme].unwrap_or(0);
                add(&self.words[word], said);
                if let Some(ratio) = (said << 20).checked_div(mapped[kind]) {
                    raise(&self.words[word + 2], ratio);
                }
            }
        }
    }

    fn folio(&mut self, folio: Folio<'_>, mapped: &mut [u64; 2], said: &mut [Sum; 2]) {
        let (manager, recount, words) = (self.manager, self.recount, self.words);
        let truth = recount.truth(manager, folio);
        if truth.leaves == 0 {
            return;
        }
        let (order, pages, refs) = (folio.order(), folio.pages(), folio.refs());
        let anon = folio.is_anon();
        let counts = &words[survey::FOLIOS + usize::from(order.get()) * survey::FOLIO_WORDS..];
        add(&counts[0], 1);
        add(&counts[1], u64::from(truth.owners > 1));
        add(&counts[2], u64::from(anon));
        add(&counts[3], u64::from(anon && truth.distinct < pages));
        let kind = usize::from(!anon);
        mapped[kind] += truth.distinct;
        let most = (0..pages).map(|page| recount.cover(manager, folio, page)).max().unwrap_or(0);
        self.each(folio, |scheme, answers| {
            let tally = Tally { words, scheme, order };
            let about = answers.folio(truth.owner, refs);
            tally.folio(&about, &truth, anon, refs);
            sum(&mut said[kind][scheme], about.mapped_pages.value());
            let known = about.partially_mapped.value() == Some(true) && anon && truth.distinct < pages;
            add(&words[survey::said(scheme) + 4], u64::from(known));
            let mut largest = Answer::Exact(0);
            for page in 0..pages {
                let count = answers.page(page, truth.owner).page_count;
                let cover = recount.cover(manager, folio, page);
                tally.enter(Question::PageCount, count, |said| said.cmp(&cover));
                largest = larger(largest, count);
            }
            tally.enter(Question::MapMax, largest, |said| said.cmp(&most));
        });
    }

    /// Asks about every page that a space maps, as that space, and what it all sums up to.
    fn space(&mut self, space: SpaceId) {
        let (manager, recount, words) = (self.manager, self.recount, self.words);
        let (mut pss, mut uss) = (0, 0);
        let (mut said_pss, mut said_uss): (Sum, Sum) = ([Some(0); SCHEMES], [Some(0); SCHEMES]);
        let mut present = [false; SCHEMES];
        manager.page_table(space).for_each_leaf(manager, PAGES_END, &mut |place, leaf| {
            let Some(folio) = manager.folio(leaf.pfn).filter(|_| !leaf.attrs.has(Attrs::UNTRACKED)) else { return };
            let first = leaf.pfn.raw() - folio.head().raw();
            let pages = first..first + place.level.entry_pages();
            for page in pages.clone() {
                let cover = recount.cover(manager, folio, page);
                pss += Share::one_of(cover).fixed();
                uss += u64::from(cover == 1);
            }
            self.each(folio, |scheme, answers| {
                present[scheme] = true;
                let tally = Tally { words, scheme, order: folio.order() };
                for page in pages.clone() {
                    let said = answers.page(page, space.raw());
                    tally.leaf(&said, recount.cover(manager, folio, page));
                    sum(&mut said_pss[scheme], said.charge.value().map(Share::fixed));
                    sum(&mut said_uss[scheme], said.exclusive.value().map(u64::from));
                }
            });
        });
        if pss == 0 {
            return;
        }
        add(&words[survey::PROCESSES], 1);
        for scheme in (0..SCHEMES).filter(|&scheme| present[scheme]) {
            spread::enter(&words[survey::pss(scheme)..], said_pss[scheme], pss, pss);
            // Many a process has nothing of its own: what it errs by is a part of what it maps.
            spread::enter(&words[survey::uss(scheme)..], said_uss[scheme], uss, manager.rss(space));
        }
    }
}

/// The larger of two answers, as sure as the less sure of them.
fn larger(a: Answer<u64>, b: Answer<u64>) -> Answer<u64> {
    match (a, b) {
        (Answer::Cannot, _) | (_, Answer::Cannot) => Answer::Cannot,
        (Answer::Walk, _) | (_, Answer::Walk) => Answer::Walk,
        (Answer::Exact(a), Answer::Exact(b)) => Answer::Exact(a.max(b)),
        (
            Answer::Exact(a) | Answer::Errs(a) | Answer::About(a),
            Answer::Exact(b) | Answer::Errs(b) | Answer::About(b),
        ) => Answer::About(a.max(b)),
    }
}

fn sum(sum: &mut Option<u64>, more: Option<u64>) {
    *sum = sum.zip(more).map(|(sum, more)| sum + more);
}

fn add(word: &AtomicU64, n: u64) {
    word.store(word.load(Relaxed) + n, Relaxed);
}

fn raise(word: &AtomicU64, n: u64) {
    word.store(word.load(Relaxed).max(n), Relaxed);
}
