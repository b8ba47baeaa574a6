//! What is known of a page, and what follows for a sum over many.

use crate::folio::Folio;
use crate::mapcount::{Accounting, Answer, PageAnswers, Share};
use crate::memory::{Memory, Tlb};
use crate::space::Manager;

/// What a reader does where the scheme says that only a walk can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fill {
    /// Says so.
    #[default]
    Scheme,
    /// Walks, for each page over all vmas of its object: exact, and as slow as tenants make it. Where a space is busy it stays untold.
    Walk,
}

/// How far an answer is from sure.
const fn doubt<T>(answer: &Answer<T>) -> u8 {
    match answer {
        Answer::Exact(_) => 0,
        Answer::Errs(_) => 1,
        Answer::About(_) => 2,
        Answer::Walk => 3,
        Answer::Cannot => 4,
    }
}

/// `f` of both values, as sure as the less sure of them.
pub(super) fn both<T: Copy>(a: Answer<T>, b: Answer<T>, f: impl FnOnce(T, T) -> T) -> Answer<T> {
    let (sure, other) = if doubt(&a) < doubt(&b) { (a, b) } else { (b, a) };
    match sure.value() {
        Some(value) => other.map(|other| f(value, other)),
        None => other,
    }
}

/// The sum of two answers: as sure as the less sure of them, and missing where one is.
#[must_use]
pub fn sum(a: Answer<u64>, b: Answer<u64>) -> Answer<u64> {
    both(a, b, |a, b| a + b)
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// What is known of page `page` of `folio`, as `owner` would ask. With [`Fill::Walk`] the caller holds a reference and no lock but spaces, shared.
    pub(super) fn ask(&self, folio: Folio<'_>, page: u64, owner: u32, fill: Fill) -> PageAnswers {
        let t = self.counts(folio);
        let said = PageAnswers {
            page_count: A::page_count(&t, page),
            exclusive: A::exclusive(&t, page, owner),
            charge: A::charge(&t, page),
        };
        if fill == Fill::Scheme || said.page_count != Answer::Walk {
            return said;
        }
        match self.page_leaves_by_walk(folio, page) {
            Ok(leaves) => PageAnswers {
                page_count: Answer::Exact(leaves),
                exclusive: Answer::Exact(leaves == 1),
                charge: Answer::Exact(Share::one_of(leaves)),
            },
            Err(_) => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, sum};

    #[test]
    fn a_sum_is_as_sure_as_its_least_sure_part() {
        assert_eq!(sum(Answer::Exact(1), Answer::Exact(2)), Answer::Exact(3));
        assert_eq!(sum(Answer::Errs(1), Answer::Exact(2)), Answer::Errs(3));
        assert_eq!(sum(Answer::Errs(1), Answer::About(2)), Answer::About(3));
        for missing in [Answer::Walk, Answer::Cannot] {
            assert_eq!(sum(missing, Answer::Exact(2)), missing);
            assert_eq!(sum(Answer::About(2), missing), missing);
        }
        assert_eq!(sum(Answer::Walk, Answer::Cannot), Answer::Cannot);
    }
}
