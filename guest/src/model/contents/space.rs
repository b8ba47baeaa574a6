//! One address space: its mappings, its private pages and its heap.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use super::Refusal;
use super::vmas::{Vma, Vmas, advance};
use crate::addr::Gva;
use crate::space::{Advice, Prot, stack_grows};
use crate::trace::{Backing, MapKind};

/// A private page. Forked spaces hold the same one until a store replaces it, which is how frames are counted.
pub(super) type Page = Rc<u64>;

/// The heap, in pages.
#[derive(Clone, Copy, Debug)]
struct Heap {
    start: u64,
    end: u64,
}

#[derive(Debug, Default)]
pub(super) struct Space {
    vmas: Vmas,
    pages: BTreeMap<u64, Page>,
    heap: Option<Heap>,
}

impl Space {
    pub(super) fn fork(&self) -> Self {
        Self { vmas: self.vmas.clone(), pages: self.pages.clone(), heap: self.heap }
    }

    pub(super) fn map(
        &mut self,
        at: u64,
        pages: u64,
        prot: Prot,
        backing: Backing,
        kind: MapKind,
    ) -> Result<(), Refusal> {
        self.check_free(at, at + pages)?;
        self.vmas.insert(at, Vma { end: at + pages, prot, backing, kind });
        Ok(())
    }

    pub(super) fn unmap(&mut self, at: u64, pages: u64, frames: &mut u64) {
        for start in self.vmas.within(at, at + pages) {
            self.vmas.remove(start);
        }
        self.drop_pages(at, at + pages, frames);
    }

    pub(super) fn protect(&mut self, at: u64, pages: u64, prot: Prot) {
        for start in self.vmas.within(at, at + pages) {
            if let Some(vma) = self.vmas.get_mut(start) {
                vma.prot = prot;
            }
        }
    }

    pub(super) fn advise(&mut self, at: u64, pages: u64, advice: Advice, frames: &mut u64) {
        match advice {
            // Only private pages are kept here; what an object holds survives.
            Advice::DontNeed => self.drop_pages(at, at + pages, frames),
            Advice::HugePage | Advice::NoHugePage => {}
        }
    }

    pub(super) fn brk(&mut self, start: u64, end: u64, frames: &mut u64) -> Result<(), Refusal> {
        let heap = self.heap.unwrap_or(Heap { start, end: start });
        if heap.start != start {
            return Err(Refusal::HeapMoved);
        }
        if end > heap.end {
            let prot = Prot { read: true, write: true, exec: false };
            self.map(heap.end, end - heap.end, prot, Backing::Anon, MapKind::Plain)?;
        } else if end < heap.end {
            self.unmap(end, heap.end - end, frames);
        }
        self.heap = Some(Heap { start, end });
        Ok(())
    }

    /// The first page of `at..at + pages` as a mapping, if the whole range is one or could be merged into one.
    pub(super) fn one_mapping(&self, at: u64, pages: u64) -> Result<Vma, Refusal> {
        let (start, vma) = self.vmas.find(at).ok_or(Refusal::NotMapped(Gva::from_page(at)))?;
        let first = Vma { backing: advance(vma.backing, at - start), ..vma };
        let mut end = vma.end;
        while end < at + pages {
            let next = self.vmas.get(end).ok_or(Refusal::NotMapped(Gva::from_page(end)))?;
            let expected = Vma { end: next.end, backing: advance(first.backing, end - at), ..first };
            if next != expected {
                return Err(Refusal::NotOneMapping);
            }
            end = next.end;
        }
        Ok(first)
    }

    /// Moves `pages` pages from `from`, which [`one_mapping`](Self::one_mapping) said is `first`, to `new_pages` pages at `to`.
    pub(super) fn remap(
        &mut self,
        from: u64,
        pages: u64,
        to: u64,
        new_pages: u64,
        first: Vma,
        frames: &mut u64,
    ) -> Result<(), Refusal> {
        if from == to {
            if new_pages > pages {
                self.check_free(from + pages, from + new_pages)?;
                let backing = advance(first.backing, pages);
                self.vmas.insert(from + pages, Vma { end: from + new_pages, backing, ..first });
            } else if new_pages < pages {
                self.unmap(from + new_pages, pages - new_pages, frames);
            }
            return Ok(());
        }
        let kept = from + pages.min(new_pages);
        let moved: Vec<(u64, Page)> =
            self.pages.range(from..kept).map(|(&page, word)| (page - from + to, Rc::clone(word))).collect();
        // The clones keep the moved pages' frames alive while both ranges are cleared.
        self.unmap(from, pages, frames);
        self.unmap(to, new_pages, frames);
        self.vmas.insert(to, Vma { end: to + new_pages, ..first });
        self.pages.extend(moved);
        Ok(())
    }

    /// The stack mapping that an access to `page` grows, by its first page.
    pub(super) fn stack_below(&self, page: u64) -> Option<u64> {
        if self.vmas.find(page).is_some() {
            return None;
        }
        let (start, vma) = self.vmas.next_after(page)?;
        let below = Gva::from_page(self.vmas.end_below(page));
        let grows = vma.kind == MapKind::Stack && stack_grows(Gva::from_page(start), Gva::from_page(page), below);
        grows.then_some(start)
    }

    pub(super) fn grow_stack(&mut self, start: u64, page: u64) {
        if let Some(vma) = self.vmas.remove(start) {
            self.vmas.insert(page, vma);
        }
    }

    /// Whether every page from `at` on allows the access, once the stack that starts at `grown` reaches down to `at`.
    pub(super) fn check_access(&self, at: u64, pages: u64, write: bool, grown: Option<u64>) -> Result<(), Refusal> {
        let mut page = at;
        while page < at + pages {
            let held_from = grown.filter(|&start| page < start).unwrap_or(page);
            let (_, vma) = self.vmas.find(held_from).ok_or(Refusal::NotMapped(Gva::from_page(page)))?;
            if !vma.prot.allows(write) {
                return Err(Refusal::NoPermission(Gva::from_page(page)));
            }
            page = vma.end;
        }
        Ok(())
    }

    /// What `page` maps.
    pub(super) fn backing(&self, page: u64) -> Option<Backing> {
        let (start, vma) = self.vmas.find(page)?;
        Some(advance(vma.backing, page - start))
    }

    /// The word of a private page, if there is one.
    pub(super) fn private(&self, page: u64) -> Option<u64> {
        self.pages.get(&page).map(|word| **word)
    }

    /// Puts `new` at `page`, unless it is there and only to be looked at.
    pub(super) fn store(&mut self, page: u64, new: Page, write: bool, frames: &mut u64) {
        match self.pages.get_mut(&page) {
            Some(_) if !write => {}
            Some(old) => {
                // Alone with the page, a store reuses its frame; otherwise it leaves the others theirs.
                if Rc::strong_count(old) > 1 {
                    *frames += 1;
                }
                *old = new;
            }
            None => {
                *frames += 1;
                self.pages.insert(page, new);
            }
        }
    }

    pub(super) fn clear(&mut self, frames: &mut u64) {
        self.drop_pages(0, u64::MAX, frames);
    }

    fn check_free(&self, start: u64, end: u64) -> Result<(), Refusal> {
        match self.vmas.first_mapped(start, end) {
            Some(page) => Err(Refusal::Occupied(Gva::from_page(page))),
            None => Ok(()),
        }
    }

    fn drop_pages(&mut self, start: u64, end: u64, frames: &mut u64) {
        let mut dropped = self.pages.split_off(&start);
        self.pages.append(&mut dropped.split_off(&end));
        for page in dropped.into_values() {
            if Rc::strong_count(&page) == 1 {
                *frames -= 1;
            }
        }
    }
}
