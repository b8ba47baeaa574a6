//! Verdicts on answers.

use crate::sync::AtomicU64;
use core::cmp::Ordering::{self, Equal, Greater, Less};

use super::add;
use crate::abi::survey::{Question, Verdict, tally};
use crate::addr::Order;
use crate::mapcount::{Answer, Countdown, FolioAnswers, PageAnswers, Share, Truth};

/// Counts verdicts about one folio under one scheme.
#[derive(Clone, Copy)]
pub(super) struct Tally<'a> {
    pub words: &'a [AtomicU64],
    pub scheme: usize,
    pub order: Order,
}

impl Tally<'_> {
    /// Enters `answer`, which `compare` holds against the truth.
    pub fn enter<T>(self, question: Question, answer: Answer<T>, compare: impl FnOnce(T) -> Ordering) {
        let verdict = match answer {
            Answer::Exact(said) => match compare(said) {
                Equal => Verdict::Exact,
                _ => Verdict::Broken,
            },
            Answer::Errs(said) | Answer::About(said) => match compare(said) {
                Equal => Verdict::Right,
                Greater => Verdict::More,
                Less => Verdict::Less,
            },
            Answer::Walk => Verdict::Walk,
            Answer::Cannot => Verdict::Cannot,
        };
        add(&self.words[tally(self.scheme, question, self.order.get().into()) + verdict as usize], 1);
    }

    fn is<T: Ord>(self, question: Question, answer: Answer<T>, truth: &T) {
        self.enter(question, answer, |said| said.cmp(truth));
    }

    /// Enters what was said about an anonymous folio or not, with `refs` references.
    pub fn folio(self, said: &FolioAnswers, truth: &Truth, anon: bool, refs: u64) {
        let (pages, order) = (self.order.pages(), self.order);
        self.is(Question::Mapped, said.mapped, &(truth.leaves > 0));
        self.is(Question::OneLeaf, said.one_leaf, &(truth.leaves == 1));
        self.is(Question::Shared, said.maybe_shared, &(truth.owners > 1));
        self.is(Question::MappedPages, said.mapped_pages, &truth.distinct);
        let huge = if order == Order::HUGE && truth.entire > 0 { pages } else { 0 };
        self.is(Question::HugePages, said.huge_pages, &huge);
        self.is(Question::Leaves, said.leaves, &truth.leaves);
        self.is(Question::ByLevel, said.by_level, &truth.levels);
        self.enter(Question::EarlyStop, said.early_stop, |said| match said {
            Countdown::Leaves(leaves) => leaves.cmp(&truth.leaves),
            Countdown::Tables(tables) => tables.cmp(&truth.tuples),
            Countdown::Regions(regions) => regions.cmp(&truth.regions),
        });
        if anon {
            self.is(Question::Reuse, said.may_reuse, &(truth.owners == 1 && refs == truth.leaves));
            self.is(Question::PartiallyMapped, said.partially_mapped, &(truth.distinct < pages));
        }
    }

    /// Enters what was said about a page under `cover` leaves, to one of their owners.
    pub fn leaf(self, said: &PageAnswers, cover: u64) {
        self.is(Question::Exclusive, said.exclusive, &(cover == 1));
        // Of two parts the one of more leaves is less.
        self.enter(Question::Charge, said.charge, |Share { pages, of }| (pages * cover).cmp(&of));
    }
}
