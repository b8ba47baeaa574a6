//! Which guest frames were accessed: the accessed bits of stage-2 leaves, read and cleared.

use core::ops::Range;

use super::cut::Change;
use super::{AsId, VmId, in_format};
use crate::format::{Attrs, Format};
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::page_table::{Flush, PageTable};
use crate::space::{Manager, Removed};

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// Calls `visit` with the guest frames of every leaf in `gfns` that was accessed since the last harvest, and clears the mark. A leaf that a fault has entered since
    /// counts as accessed. Where tables are composed from these an access sets the mark when it is composed, and so anew after every harvest.
    pub fn harvest_accessed(&self, id: VmId, view: AsId, gfns: Range<u64>, mut visit: impl FnMut(Range<u64>)) {
        let vm = self.vm(id);
        let _guard = self.read_vm(&vm);
        let Some(root) = vm.root(view) else { return };
        let mut flush = Flush::<Removed<'_>>::new();
        in_format!(vm.format(), F => self.harvest_in::<F>(PageTable::new(root), gfns, &mut flush, &mut visit));
        self.finish_stage2(&vm, view, root, &mut flush, Change::Narrowed);
    }

    fn harvest_in<F: Format>(
        &self,
        table: PageTable<F>,
        gfns: Range<u64>,
        flush: &mut Flush<Removed<'_>>,
        visit: &mut impl FnMut(Range<u64>),
    ) {
        let mut cursor = table.cursor(self, gfns.start, gfns.end);
        while let Some(part) = cursor.next() {
            for i in part.range() {
                if part.leaf(i).is_some_and(|leaf| leaf.attrs.has(Attrs::ACCESSED)) {
                    part.change(i, 1, Attrs::ACCESSED, Attrs::NONE);
                    let pages = part.level().entry_pages();
                    self.narrowed(table.root(), flush, part.page(i), pages);
                    visit(part.page(i)..part.page(i) + pages);
                }
            }
        }
    }
}
