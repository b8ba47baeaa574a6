//! Tenants of level 1 on composed tables: the MMU walks what level 0 has made of all tables below, and every fault comes to level 0 first.

use quire::abi::nest::word;
use quire::abi::replay::{SAMPLE_PAGES, word as replay};
use quire::abi::sample;
use quire::addr::{Gva, Order};
use quire::mapcount::Accounting;
use quire::nest::NestError;
use quire::space::Access;
use quire::stage2::RootId;

use super::tenants::{Served, Touching};
use crate::cpu;
use crate::touch::{self, Verdict, error};

/// Touches pages; see [`Tenant::touch`](quire::trace::Tenant::touch). With a seed, stores its stamps.
pub(super) fn touch<A: Accounting>(
    touching: &Touching<'_, '_, '_, '_, A>,
    at: Gva,
    pages: u64,
    store: Option<u64>,
) -> Result<u64, (Gva, NestError)> {
    let Touching { machine, findings, memory, .. } = touching;
    let over = touching.nested_root().map_err(|error| (at, error))?;
    let root = memory.shadow_root(over, touching.table());
    findings.switch(machine, memory.table_of(root));
    let access = store.map_or(touch::Access::Load, touch::Access::Store);
    let mut faulting = Faulting { touching, root, served: None, error: None };
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
struct Faulting<'s, 't, 'r, 'h, 'm, A: Accounting> {
    touching: &'s Touching<'t, 'r, 'h, 'm, A>,
    root: RootId,
    /// What level 1 has served of the access that goes on.
    served: Served,
    error: Option<NestError>,
}

impl<A: Accounting> touch::Tenant for Faulting<'_, '_, '_, '_, '_, A> {
    fn fault(&mut self, address: Gva, code: u64) -> Verdict {
        let Touching { findings, memory, .. } = self.touching;
        let access = if code & error::WRITE != 0 { Access::Write } else { Access::Read };
        findings.add(word::EXITS, 1);
        let since = cpu::tsc();
        let composed = memory.host().compose_fault(memory.vm(), self.root, address.page(), access);
        findings.add(word::STAGE2_TICKS, cpu::tsc() - since);
        match composed {
            Ok(composed) => {
                findings.add(word::STAGE2_FAULTS, 1);
                findings.add(word::STAGE2_PAGES, composed.pages);
                findings.add(word::HOST_FAULTS, u64::from(composed.stage2_faults));
                // The access is one sample, whoever served it last.
                match self.served.take() {
                    Some((fault, flag)) => {
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
            Err(error) => match self.touching.reflected(Some(self.root), error) {
                Ok(served) => {
                    self.served = served;
                    Verdict::Resume
                }
                Err(error) => {
                    self.error = Some(error);
                    Verdict::Abort(0)
                }
            },
        }
    }
}
