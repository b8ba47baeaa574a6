//! The guest's flush: what it has changed in tables that nobody watched takes effect.

use super::cut::Cut;
use super::shadow_page::ShadowPage;
use super::{RootId, Vm, VmId};
use crate::addr::Level;
use crate::mapcount::{Accounting, Classes};
use crate::memory::{Memory, Tlb};
use crate::page_table::Tables;
use crate::space::Manager;
use crate::sync::lock_word;
use core::sync::atomic::Ordering::Relaxed;

/// What a guest flushes: its words for INVLPG, a load of CR3, INVEPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFlush {
    /// One page of a composed root.
    Page {
        /// The root.
        root: RootId,
        /// The page that the guest's table translates.
        page: u64,
    },
    /// Everything that was composed for the VM.
    All,
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, Classes<A>> {
    /// The guest has changed entries of its tables and flushes: what was composed from them and no longer agrees is removed. It is needed after a change that takes
    /// something away, as on hardware.
    pub fn vm_flush(&self, id: VmId, what: GuestFlush) {
        let vm = self.vm(id);
        let _guard = self.read_vm(&vm);
        let _region = A::NEEDS.region.then(|| lock_word(vm.region_lock()));
        let Some(_shadows) = vm.lock_shadows() else { return };
        match what {
            GuestFlush::All => {
                while let Some(page) = self.shadow_pages(&vm).find(|page| page.is_unsync()) {
                    self.sync_page(&vm, page);
                }
            }
            GuestFlush::Page { root, page } => {
                let Some(root) = self.find_root(&vm, root).filter(|root| page < root.role().level.table_pages()) else {
                    return;
                };
                let (at, i) = self.deepest_shadow(&vm, root, page);
                if at.is_unsync() {
                    let mut cut = Cut::new();
                    self.cut_changed(&vm, at, |at| at == i, &mut cut);
                    self.finish_cut(&vm, &mut cut);
                }
            }
        }
    }
}

impl<M: Memory + Tlb, A: Accounting> Manager<M, A> {
    /// Tracks an unsync table again, and removes what was composed from entries that have changed. With the shadow lock, and that of regions.
    pub(super) fn sync_page(&self, vm: &Vm<'_>, page: ShadowPage<'_>) {
        debug_assert_eq!(page.role().level, Level::ONE, "only tables of the last level go unsync");
        // Protected first: no store comes between the look and the protection.
        let (role, gfn) = (page.role(), page.gfn());
        let was_tracked = self.is_tracked(vm, role.view, gfn);
        page.set_tracked(true);
        if !was_tracked && self.protect_table(vm, role.view, gfn).is_some() && self.find_shadow(vm, gfn, role).is_none()
        {
            // It went with the leaf over it.
            return;
        }
        let mut cut = Cut::new();
        self.cut_changed(vm, page, |_| true, &mut cut);
        self.finish_cut(vm, &mut cut);
    }

    /// Clears the leaves of an unsync page that `which` picks and whose origin is no longer there.
    fn cut_changed<'a>(&'a self, vm: &Vm<'_>, page: ShadowPage<'_>, which: impl Fn(usize) -> bool, cut: &mut Cut<'a>) {
        let guest = self.table_frame(vm, page).map(|(table, _)| self.entries(table));
        let changed = |i: usize| guest.is_none_or(|guest| guest[i].load(Relaxed) != self.origin(page, i));
        self.cut_leaves(vm, page, |i| which(i) && changed(i), cut);
    }
}
