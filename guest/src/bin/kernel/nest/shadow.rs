//! Processes of level 1 on composed tables: the MMU walks what level 0 has made of the guest's table and stage 2, and every fault comes to level 0 first.

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::nest::word;
use quire::abi::replay::{SAMPLE_CLEARED, SAMPLE_PAGES, word as replay};
use quire::abi::sample;
use quire::addr::{Gva, Order};
use quire::mapcount::Accounting;
use quire::space::{Access, Fault, FaultError, SpaceId};
use quire::stage2::{ComposeError, RootId};

use super::{Guest, Memory};
use crate::machine::Machine;
use crate::replay::Findings;
use crate::touch::{self, Verdict, error};
use crate::{cpu, log};

/// Touches pages of a process; see [`Tenant::touch`](quire::trace::Tenant::touch). With a seed, stores its stamps.
#[expect(clippy::too_many_arguments, reason = "who touches what, where and by whom it is served")]
pub(super) fn touch<A: Accounting>(
    machine: &Machine,
    findings: &Findings<'_>,
    memory: &Memory<'_, '_, A>,
    guest: &Guest<'_, '_, A>,
    space: SpaceId,
    at: Gva,
    pages: u64,
    store: Option<u64>,
) -> Result<u64, (Gva, FaultError)> {
    let root = memory.shadow_root(None, guest.root(space).raw());
    findings.switch(machine, memory.table_of(root));
    let access = store.map_or(touch::Access::Load, touch::Access::Store);
    let mut faulting = Faulting { findings, memory, guest, space, root, served: None, error: None };
    let since = cpu::tsc();
    let touched = machine.touch(&mut faulting, at, pages, access);
    findings.add(replay::TOUCH_TICKS, cpu::tsc() - since);
    findings.add(replay::TOUCH_PAGES, pages);
    match faulting.error {
        None => Ok(touched.sum),
        Some(error) => Err((touched.aborted.map_or(at, |(_, at)| at), error)),
    }
}

/// Serves the faults of one touch, at the level that can.
struct Faulting<'t, 'r, 'h, 'm, A: Accounting> {
    findings: &'t Findings<'r>,
    memory: &'t Memory<'h, 'm, A>,
    guest: &'t Guest<'h, 'm, A>,
    space: SpaceId,
    root: RootId,
    /// What level 1 has served of the access that goes on, and whether it had to clear.
    served: Option<(Fault, bool)>,
    error: Option<FaultError>,
}

impl<A: Accounting> Faulting<'_, '_, '_, '_, A> {
    /// Level 1's own fault.
    fn reflect(&mut self, address: Gva, access: Access) -> Verdict {
        let cleared = self.guest.statistics().cleared.load(Relaxed);
        let since = cpu::tsc();
        let result = self.guest.fault(self.space, address, access);
        self.findings.add(word::GUEST_TICKS, cpu::tsc() - since);
        match result {
            Ok(fault) => {
                self.findings.add(word::GUEST_FAULTS, 1);
                self.findings.add(replay::FAULTS, 1);
                self.served = Some((fault, self.guest.statistics().cleared.load(Relaxed) != cleared));
                Verdict::Resume
            }
            Err(error) => {
                self.error = Some(error);
                Verdict::Abort(0)
            }
        }
    }
}

impl<A: Accounting> touch::Tenant for Faulting<'_, '_, '_, '_, A> {
    fn fault(&mut self, address: Gva, code: u64) -> Verdict {
        let access = if code & error::WRITE != 0 { Access::Write } else { Access::Read };
        self.findings.add(word::EXITS, 1);
        let since = cpu::tsc();
        let composed = self.memory.host().compose_fault(self.memory.vm(), self.root, address.page(), access);
        self.findings.add(word::STAGE2_TICKS, cpu::tsc() - since);
        match composed {
            Ok(composed) => {
                self.findings.add(word::STAGE2_FAULTS, 1);
                self.findings.add(word::STAGE2_PAGES, composed.pages);
                self.findings.add(word::HOST_FAULTS, u64::from(composed.stage2_faults));
                // The access is one sample, whoever served it last.
                match self.served.take() {
                    Some((fault, cleared)) => {
                        let flag = if cleared { SAMPLE_CLEARED } else { 0 };
                        let pages = fault.pages.min(u64::from(SAMPLE_PAGES)) as u16;
                        touch::mark(fault.order, fault.kind as u8, flag | pages);
                    }
                    None => {
                        let pages = composed.pages.min(u64::from(SAMPLE_PAGES)) as u16;
                        touch::mark(Order::BASE, sample::STAGE2, pages);
                    }
                }
                Verdict::Resume
            }
            Err(ComposeError::Reflected(reflection)) => self.reflect(address, reflection.access),
            Err(what) => {
                log!("level 0 cannot serve {address}: {what}");
                self.error = Some(FaultError::OutOfFrames);
                Verdict::Abort(0)
            }
        }
    }
}
