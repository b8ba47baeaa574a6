//! The vmas of a space, found by address: a treap whose priorities are a hash of the record's number, so that it
//! needs no state beyond two links per vma. Under the space lock.

use core::sync::atomic::Ordering::Relaxed;

use super::vma::Vma;
use super::{Manager, Space};
use crate::folio::Record;
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::sync::AtomicU64;

/// A record's number, 0 for none.
type Node = u32;

fn priority(node: Node) -> u32 {
    // Fibonacci hashing; neighbours in a slab must not form a path.
    node.wrapping_mul(0x9e37_79b1).rotate_left(15).wrapping_mul(0x85eb_ca6b)
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    pub(super) fn vma(&self, record: Record) -> Vma<'_> {
        Vma::new(record, self.frames.record_of(record))
    }

    fn node(&self, node: Node) -> Vma<'_> {
        self.vma(Record::from_raw(node))
    }

    fn left(&self, node: Node) -> Node {
        self.node(node).children().load(Relaxed) as u32
    }

    fn right(&self, node: Node) -> Node {
        (self.node(node).children().load(Relaxed) >> 32) as u32
    }

    fn set_children(&self, node: Node, left: Node, right: Node) {
        self.node(node).children().store(u64::from(left) | u64::from(right) << 32, Relaxed);
    }

    /// The vma that holds `page`.
    pub(crate) fn find_vma(&self, space: &Space<'_>, page: u64) -> Option<Vma<'_>> {
        self.vma_at_or_above(space, page).filter(|vma| vma.start() <= page)
    }

    /// The vma that holds `page`, or else the next one above.
    pub(super) fn vma_at_or_above(&self, space: &Space<'_>, page: u64) -> Option<Vma<'_>> {
        let mut node = space.tree().load(Relaxed) as Node;
        let mut best = None;
        while node != 0 {
            let vma = self.node(node);
            if vma.end() > page {
                best = Some(vma);
                node = self.left(node);
            } else {
                node = self.right(node);
            }
        }
        best
    }

    /// The last vma that ends at or below `page`.
    pub(super) fn vma_below(&self, space: &Space<'_>, page: u64) -> Option<Vma<'_>> {
        let mut node = space.tree().load(Relaxed) as Node;
        let mut best = None;
        while node != 0 {
            let vma = self.node(node);
            if vma.end() <= page {
                best = Some(vma);
                node = self.right(node);
            } else {
                node = self.left(node);
            }
        }
        best
    }

    pub(super) fn insert_in_tree(&self, tree: &AtomicU64, vma: Vma<'_>) {
        let node = vma.record.raw();
        self.set_children(node, 0, 0);
        let (below, above) = self.cut_tree(tree.load(Relaxed) as Node, vma.start());
        tree.store(u64::from(self.join(self.join(below, node), above)), Relaxed);
    }

    pub(super) fn remove_from_tree(&self, tree: &AtomicU64, vma: Vma<'_>) {
        let (below, rest) = self.cut_tree(tree.load(Relaxed) as Node, vma.start());
        let (node, above) = self.cut_tree(rest, vma.start() + 1);
        debug_assert_eq!(node, vma.record.raw(), "the vma was not in the tree");
        tree.store(u64::from(self.join(below, above)), Relaxed);
    }

    /// Nodes that start below `page`, and the others.
    fn cut_tree(&self, node: Node, page: u64) -> (Node, Node) {
        if node == 0 {
            return (0, 0);
        }
        if self.node(node).start() < page {
            let (below, above) = self.cut_tree(self.right(node), page);
            self.set_children(node, self.left(node), below);
            (node, above)
        } else {
            let (below, above) = self.cut_tree(self.left(node), page);
            self.set_children(node, above, self.right(node));
            (below, node)
        }
    }

    /// One tree of two, all of `below` before all of `above`.
    fn join(&self, below: Node, above: Node) -> Node {
        if below == 0 || above == 0 {
            return below | above;
        }
        if priority(below) > priority(above) {
            self.set_children(below, self.left(below), self.join(self.right(below), above));
            below
        } else {
            self.set_children(above, self.join(below, self.left(above)), self.right(above));
            above
        }
    }
}
