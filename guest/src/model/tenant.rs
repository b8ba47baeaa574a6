//! The tenants of an in-process [`Machine`], and the site of a session on it.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use core::sync::atomic::Ordering::Relaxed;

use super::Machine;
use crate::abi::checksum;
use crate::abi::replay::{SAMPLE_CLEARED, SAMPLE_PAGES, word};
use crate::abi::results::{GENERAL_COUNT, STATS_WORDS};
use crate::abi::sample::Sample;
use crate::abi::survey;
use crate::addr::{Gva, Order};
use crate::mapcount::Accounting;
use crate::space::{Access, FaultError, Manager, SpaceId};
use crate::sync::AtomicU64;
use crate::trace::session::{Site, note_event};
use crate::trace::{Event, Tenant, stamp};

/// Touches through the emulated MMU, and keeps what the kernel of a VM would leave in shared memory.
#[derive(Debug)]
pub struct ModelTenant<'m> {
    machine: &'m Machine,
    seed: u64,
    clock: fn() -> u64,
    /// The words of [`abi::replay`](mod@crate::abi::replay).
    pub words: Vec<u64>,
    /// The words of [`abi::stats`](mod@crate::abi::stats).
    pub stats: Vec<u64>,
    /// Timed faults and events, in ticks of the clock: the manager's part alone, as there is no trap.
    pub samples: Vec<Sample>,
    /// The words of a [survey](mod@crate::survey); empty when none is wanted.
    pub survey: Vec<AtomicU64>,
    /// Lines said.
    pub log: String,
}

impl<'m> ModelTenant<'m> {
    /// A tenant that stores stamps of `seed` and times with `clock`.
    #[must_use]
    pub fn new(machine: &'m Machine, seed: u64, clock: fn() -> u64) -> Self {
        Self {
            machine,
            seed,
            clock,
            words: vec![0; GENERAL_COUNT],
            stats: vec![0; STATS_WORDS],
            samples: Vec::new(),
            survey: Vec::new(),
            log: String::new(),
        }
    }

    /// The same, with a survey.
    #[must_use]
    pub fn surveying(self) -> Self {
        Self { survey: (0..survey::WORDS).map(|_| AtomicU64::new(0)).collect(), ..self }
    }

    fn fault<A: Accounting>(
        &mut self,
        manager: &Manager<&Machine, A>,
        space: SpaceId,
        at: Gva,
        access: Access,
    ) -> Result<(), FaultError> {
        let cleared = manager.statistics().cleared.load(Relaxed);
        let since = (self.clock)();
        let fault = manager.fault(space, at, access)?;
        let ticks = (self.clock)() - since;
        let was_cleared = manager.statistics().cleared.load(Relaxed) != cleared;
        let flag = if was_cleared { SAMPLE_CLEARED } else { 0 };
        let pages = fault.pages.min(u64::from(SAMPLE_PAGES)) as u16;
        self.words[word::FAULTS] += 1;
        self.samples.push(Sample {
            ticks: ticks.min(u64::from(u32::MAX)) as u32,
            order: fault.order,
            kind: fault.kind as u8,
            spare: flag | pages,
        });
        Ok(())
    }
}

impl<A: Accounting> Tenant<&Machine, A> for ModelTenant<'_> {
    fn touch(
        &mut self,
        manager: &Manager<&Machine, A>,
        space: SpaceId,
        at: Gva,
        pages: u64,
        write: bool,
    ) -> Result<u64, (Gva, FaultError)> {
        let root = manager.root(space);
        let access = if write { Access::Write } else { Access::Read };
        let mut sum = 0u64;
        let since = (self.clock)();
        for i in 0..pages {
            let at = at.add_pages(i);
            let word = loop {
                if let Some(word) = self.machine.word(root, at, access) {
                    break word;
                }
                self.fault(manager, space, at, access).map_err(|error| (at, error))?;
            };
            sum = checksum(sum, word.load(Relaxed));
            if write {
                word.store(stamp(self.seed, at.page()), Relaxed);
            }
        }
        self.words[word::TOUCH_TICKS] += (self.clock)() - since;
        self.words[word::TOUCH_PAGES] += pages;
        Ok(sum)
    }

    fn now(&mut self) -> u64 {
        (self.clock)()
    }

    fn ended(&mut self, event: Event, pages: u64, since: u64) {
        let ticks = (self.clock)() - since;
        note_event::<&Machine, A>(self, event, pages, ticks);
        self.samples.push(Sample {
            ticks: ticks.min(u64::from(u32::MAX)) as u32,
            order: Order::BASE,
            kind: event as u8,
            spare: pages.min(u64::from(SAMPLE_PAGES)) as u16,
        });
    }

    fn leaving(&mut self, manager: &Manager<&Machine, A>, space: SpaceId) {
        self.machine.leave(manager.root(space));
    }
}

impl<A: Accounting> Site<&Machine, A> for ModelTenant<'_> {
    fn put(&mut self, index: usize, value: u64) {
        self.words[index] = value;
    }

    fn add(&mut self, index: usize, value: u64) {
        self.words[index] += value;
    }

    fn raise(&mut self, index: usize, value: u64) {
        self.words[index] = self.words[index].max(value);
    }

    fn stat(&mut self, index: usize, value: u64) {
        self.stats[index] = value;
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.log, "{line}");
    }

    fn checkpoint(&mut self, _manager: &Manager<&Machine, A>) -> Result<(), &'static str> {
        match self.machine.stale() {
            None => Ok(()),
            Some(stale) => {
                let _ =
                    writeln!(self.log, "page {:#x} of root {:?} is cached as it no longer is", stale.page, stale.root);
                Err("a flush is missing")
            }
        }
    }

    fn survey(&self) -> Option<&[AtomicU64]> {
        (!self.survey.is_empty()).then_some(&self.survey)
    }

    fn clear_ticks(&self) -> u64 {
        0
    }
}
