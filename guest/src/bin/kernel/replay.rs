//! A replay on real page tables: the tenant's touching program runs natively, the recount and the VMM's walks check what it ran on.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quire::abi::replay::{self as replay_words, SAMPLE_CLEARED, SAMPLE_PAGES, word};
use quire::abi::sample::Sample;
use quire::abi::{boot, stats, survey};
use quire::addr::{Gva, Order, Pfn};
use quire::format::Attrs;
use quire::mapcount::Accounting;
use quire::space::{Access, FaultError, Manager, PAGES_END, SpaceId};
use quire::trace::session::{Session, Site};
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
        findings: Findings::new(run),
        seed: run.boot[boot::SEED],
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

/// Where a replay's findings go: the words of the results.
pub struct Findings<'a> {
    results: &'a Results,
    survey: bool,
}

impl<'a> Findings<'a> {
    /// Those of this run.
    pub fn new(run: &Run<'a>) -> Self {
        Self { results: run.results, survey: run.boot[survey::WANTED] == 1 }
    }

    /// Sets a general word.
    pub fn put(&self, index: usize, value: u64) {
        self.results.general(index).store(value, Relaxed);
    }

    /// Adds to a general word.
    pub fn add(&self, index: usize, more: u64) {
        let word = self.results.general(index);
        word.store(word.load(Relaxed) + more, Relaxed);
    }

    /// Raises a general word to `value`.
    pub fn raise(&self, index: usize, value: u64) {
        let word = self.results.general(index);
        word.store(word.load(Relaxed).max(value), Relaxed);
    }

    /// Sets a word of the memory statistics.
    pub fn stat(&self, index: usize, value: u64) {
        self.results.stat(index).store(value, Relaxed);
    }

    /// The words of a survey, if one is wanted.
    fn survey(&self) -> Option<&[AtomicU64]> {
        self.survey.then(|| self.results.survey())
    }

    /// Notes an operation of `event` on `pages` pages that began at `since` and has just ended.
    pub fn ended(&self, event: Event, pages: u64, since: u64) {
        let ticks = cpu::tsc() - since;
        let index = replay_words::event_word(event);
        self.add(index, 1);
        self.add(index + 1, pages);
        self.add(index + 2, ticks);
        touch::record(Sample {
            ticks: ticks.min(u64::from(u32::MAX)) as u32,
            order: Order::BASE,
            kind: event as u8,
            spare: pages.min(u64::from(SAMPLE_PAGES)) as u16,
        });
    }

    /// Loads a root, if it is another than the one in force.
    pub fn switch(&self, machine: &Machine, root: Pfn) {
        if machine.current_root() != Some(root) {
            let since = cpu::tsc();
            machine.load_root(root);
            self.add(word::SWITCH_TICKS, cpu::tsc() - since);
            self.add(word::SWITCHES, 1);
        }
    }
}

/// The tenants, as the machine runs them.
struct Touching<'a> {
    machine: &'a Machine,
    results: &'a Results,
    findings: Findings<'a>,
    seed: u64,
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
        self.findings.switch(self.machine, manager.root(space));
        let access = if write { touch::Access::Store(self.seed) } else { touch::Access::Load };
        let mut faulting = Faulting { manager, space, faults: 0, error: None };
        let since = cpu::tsc();
        let touched = self.machine.touch(&mut faulting, at, pages, access);
        self.findings.add(word::TOUCH_TICKS, cpu::tsc() - since);
        self.findings.add(word::TOUCH_PAGES, pages);
        self.findings.add(word::FAULTS, faulting.faults);
        match faulting.error {
            None => Ok(touched.sum),
            Some(error) => Err((touched.aborted.map_or(at, |(_, at)| at), error)),
        }
    }

    fn now(&mut self) -> u64 {
        cpu::tsc()
    }

    fn ended(&mut self, event: Event, pages: u64, since: u64) {
        self.findings.ended(event, pages, since);
    }

    fn leaving(&mut self, manager: &Manager<&'m Machine, A>, space: SpaceId) {
        if self.machine.current_root() == Some(manager.root(space)) {
            self.machine.load_no_tenant();
        }
    }
}

impl<'m, A: Accounting> Site<&'m Machine, A> for Touching<'_> {
    fn put(&mut self, index: usize, value: u64) {
        self.findings.put(index, value);
    }

    fn add(&mut self, index: usize, value: u64) {
        self.findings.add(index, value);
    }

    fn raise(&mut self, index: usize, value: u64) {
        self.findings.raise(index, value);
    }

    fn stat(&mut self, index: usize, value: u64) {
        self.findings.stat(index, value);
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        log!("{line}");
    }

    fn checkpoint(&mut self, manager: &Manager<&'m Machine, A>) -> Result<(), &'static str> {
        let pairs = compare_walks(self.machine, self.results, manager)?;
        self.findings.add(word::WALKED, pairs);
        Ok(())
    }

    fn survey(&self) -> Option<&[AtomicU64]> {
        self.findings.survey()
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
