//! The mappings of one address space: ranges of pages and what they map. Contents are not kept here.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::space::Prot;
use crate::trace::{Backing, MapKind};

/// One mapping, from its key in [`Vmas`] up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vma {
    /// First page after it.
    pub(super) end: u64,
    pub(super) prot: Prot,
    /// What its first page maps.
    pub(super) backing: Backing,
    pub(super) kind: MapKind,
}

/// Mappings by first page. They never overlap; adjacent ones are not merged.
#[derive(Clone, Debug, Default)]
pub(super) struct Vmas(BTreeMap<u64, Vma>);

/// `backing`, `pages` pages further on.
pub(super) fn advance(backing: Backing, pages: u64) -> Backing {
    match backing {
        Backing::Anon => Backing::Anon,
        Backing::Object { object, offset, private } => Backing::Object { object, offset: offset + pages, private },
        Backing::Device { first } => Backing::Device { first: first + pages },
    }
}

impl Vmas {
    /// The mapping that holds `page`, and where it starts.
    pub(super) fn find(&self, page: u64) -> Option<(u64, Vma)> {
        let (&start, &vma) = self.0.range(..=page).next_back()?;
        (page < vma.end).then_some((start, vma))
    }

    /// The first mapping that starts after `page`.
    pub(super) fn next_after(&self, page: u64) -> Option<(u64, Vma)> {
        self.0.range(page + 1..).next().map(|(&start, &vma)| (start, vma))
    }

    /// Where the mappings below `page` end; 0 when there are none.
    pub(super) fn end_below(&self, page: u64) -> u64 {
        self.0.range(..page).next_back().map_or(0, |(_, vma)| vma.end)
    }

    /// The first page of `start..end` that is mapped.
    pub(super) fn first_mapped(&self, start: u64, end: u64) -> Option<u64> {
        if self.find(start).is_some() {
            return Some(start);
        }
        self.next_after(start).map(|(next, _)| next).filter(|&next| next < end)
    }

    /// The mappings that overlap `start..end`, cut so that none reaches beyond it.
    pub(super) fn within(&mut self, start: u64, end: u64) -> Vec<u64> {
        self.cut(start);
        self.cut(end);
        self.0.range(start..end).map(|(&start, _)| start).collect()
    }

    /// Adds a mapping to a range that is free.
    pub(super) fn insert(&mut self, start: u64, vma: Vma) {
        self.0.insert(start, vma);
    }

    pub(super) fn remove(&mut self, start: u64) -> Option<Vma> {
        self.0.remove(&start)
    }

    pub(super) fn get(&self, start: u64) -> Option<Vma> {
        self.0.get(&start).copied()
    }

    pub(super) fn get_mut(&mut self, start: u64) -> Option<&mut Vma> {
        self.0.get_mut(&start)
    }

    /// Makes two mappings of one that holds `page` in its middle, the second starting there.
    fn cut(&mut self, page: u64) {
        let Some((start, vma)) = self.find(page) else { return };
        if start == page {
            return;
        }
        self.0.insert(start, Vma { end: page, ..vma });
        self.0.insert(page, Vma { backing: advance(vma.backing, page - start), ..vma });
    }
}
