//! A replay on real page tables: the tenant's touching program runs natively, the recount and the VMM's walks check what it ran on.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::abi::replay::{SAMPLE_CLEARED, SAMPLE_PAGES, word};
use quire::abi::sample::Sample;
use quire::abi::{boot, stats, survey};
use quire::addr::{Gva, Order, Pfn};
use quire::format::Attrs;
use quire::mapcount::Accounting;
use quire::space::{Access, FaultError, Manager, PAGES_END, SpaceId};
use quire::trace::session::{Session, Site, note_event};
use quire::trace::{Event, Tenant};

use crate::audit::Audit;
use crate::machine::Machine;
use crate::manager::Run;
use crate::results::{self, Results};
use crate::touch::{self, Verdict, error};
use crate::{cpu, log};

/// Replays the trace on `manager`.
///
/// # Errors
/// What was wrong; the log says more.
pub fn run<A: Accounting>(run: &Run<'_>, manager: &Manager<&Machine, A>) -> Result<(), &'static str> {
    let session = Session {
        trace: run.trace,
        interval: run.boot[boot::AUDIT_INTERVAL],
        pages: run.boot[stats::PAGES_WANTED] == 1,
        rows: run.room.rows,
        device: run.room.device,
    };
    let mut site = Touching {
        machine: run.machine,
        results: run.results,
        seed: run.boot[boot::SEED],
        survey: run.boot[survey::WANTED] == 1,
    };
    session.run(manager, &mut site)
}

/// Asks the VMM to walk every space's tables as well, for as many of its leaves as fit a list.
fn compare_walks<A: Accounting>(
    machine: &Machine,
    results: &Results,
    manager: &Manager<&Machine, A>,
) -> Result<u64, &'static str> {
    let mut all = 0;
    if results::speaks() {
        return Ok(all);
    }
    for space in manager.spaces() {
        let root = manager.root(space);
        let before = machine.current_root();
        machine.load_root(root);
        let mut audit = Audit::new(results);
        let mut pairs = 0;
        manager.page_table(space).for_each_leaf(manager, PAGES_END, &mut |place, leaf| {
            // KVM refuses to translate what user mode may not touch only on some hosts: ask for the rest.
            if pairs < Audit::CAPACITY && leaf.attrs.has(Attrs::USER) {
                audit.expect(Gva::from_page(place.page), Some(leaf.pfn.address()));
                pairs += 1;
            }
        });
        let compared = audit.compare();
        match before {
            Some(before) => machine.load_root(before),
            None => machine.load_no_tenant(),
        }
        match compared {
            Ok(pairs) => all += pairs,
            Err(mismatch) => {
                log!("space {}: {mismatch}", space.raw());
                return Err("another walker of the tables disagrees");
            }
        }
    }
    Ok(all)
}

/// The tenants, as the machine runs them.
struct Touching<'a> {
    machine: &'a Machine,
    results: &'a Results,
    seed: u64,
    /// Whether a survey is wanted.
    survey: bool,
}

impl Touching<'_> {
    fn note(&self, index: usize, more: u64) {
        let word = self.results.general(index);
        word.store(word.load(Relaxed) + more, Relaxed);
    }

    fn switch(&self, root: Pfn) {
        if self.machine.current_root() != Some(root) {
            let since = cpu::tsc();
            self.machine.load_root(root);
            self.note(word::SWITCH_TICKS, cpu::tsc() - since);
            self.note(word::SWITCHES, 1);
        }
    }
}

impl<'m, A: Accounting> Tenant<&'m Machine, A> for Touching<'_> {
    fn touch(
        &mut self,
        manager: &Manager<&'m Machine, A>,
        space: SpaceId,
        at: Gva,
        pages: u64,
        write: bool,
    ) -> Result<u64, (Gva, FaultError)> {
        self.switch(manager.root(space));
        let access = if write { touch::Access::Store(self.seed) } else { touch::Access::Load };
        let mut faulting = Faulting { manager, space, faults: 0, error: None };
        let since = cpu::tsc();
        let touched = self.machine.touch(&mut faulting, at, pages, access);
        self.note(word::TOUCH_TICKS, cpu::tsc() - since);
        self.note(word::TOUCH_PAGES, pages);
        self.note(word::FAULTS, faulting.faults);
        match faulting.error {
            None => Ok(touched.sum),
            Some(error) => Err((touched.aborted.map_or(at, |(_, at)| at), error)),
        }
    }

    fn now(&mut self) -> u64 {
        cpu::tsc()
    }

    fn ended(&mut self, event: Event, pages: u64, since: u64) {
        let ticks = cpu::tsc() - since;
        note_event::<&'m Machine, A>(self, event, pages, ticks);
        touch::record(Sample {
            ticks: ticks.min(u64::from(u32::MAX)) as u32,
            order: Order::BASE,
            kind: event as u8,
            spare: pages.min(u64::from(SAMPLE_PAGES)) as u16,
        });
    }

    fn leaving(&mut self, manager: &Manager<&'m Machine, A>, space: SpaceId) {
        if self.machine.current_root() == Some(manager.root(space)) {
            self.machine.load_no_tenant();
        }
    }
}

impl<'m, A: Accounting> Site<&'m Machine, A> for Touching<'_> {
    fn put(&mut self, index: usize, value: u64) {
        self.results.general(index).store(value, Relaxed);
    }

    fn add(&mut self, index: usize, value: u64) {
        self.note(index, value);
    }

    fn raise(&mut self, index: usize, value: u64) {
        let word = self.results.general(index);
        word.store(word.load(Relaxed).max(value), Relaxed);
    }

    fn stat(&mut self, index: usize, value: u64) {
        self.results.stat(index).store(value, Relaxed);
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        log!("{line}");
    }

    fn checkpoint(&mut self, manager: &Manager<&'m Machine, A>) -> Result<(), &'static str> {
        let pairs = compare_walks(self.machine, self.results, manager)?;
        self.note(word::WALKED, pairs);
        Ok(())
    }

    fn survey(&self) -> Option<&[AtomicU64]> {
        self.survey.then(|| self.results.survey())
    }

    fn clear_ticks(&self) -> u64 {
        self.machine.clear_ticks()
    }
}

/// Serves the faults of one touch.
struct Faulting<'a, 'm, A: Accounting> {
    manager: &'a Manager<&'m Machine, A>,
    space: SpaceId,
    faults: u64,
    error: Option<FaultError>,
}

impl<A: Accounting> touch::Tenant for Faulting<'_, '_, A> {
    fn fault(&mut self, address: Gva, code: u64) -> Verdict {
        let access = if code & error::WRITE != 0 { Access::Write } else { Access::Read };
        let cleared = self.manager.statistics().cleared.load(Relaxed);
        match self.manager.fault(self.space, address, access) {
            Ok(fault) => {
                let was_cleared = self.manager.statistics().cleared.load(Relaxed) != cleared;
                let flag = if was_cleared { SAMPLE_CLEARED } else { 0 };
                let pages = fault.pages.min(u64::from(SAMPLE_PAGES)) as u16;
                touch::mark(fault.order, fault.kind as u8, flag | pages);
                self.faults += 1;
                Verdict::Resume
            }
            Err(error) => {
                self.error = Some(error);
                Verdict::Abort(0)
            }
        }
    }
}
