//! A whole replay with its checks: contents compared at every access, all leaves recounted at checkpoints, everything gone at the end.
//!
//! The same in a VM and in process; what differs is the [`Site`].

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use super::{Event, Op, Replay, ReplayError, Tenant, encode, look};
use crate::abi::OP_WORDS;
use crate::abi::replay::{self as words, word};
use crate::abi::stats;
use crate::addr::Pfn;
use crate::audit::{Audit, Recount};
use crate::mapcount::Accounting;
use crate::memory::{Memory, Tlb};
use crate::space::{FaultError, Manager, MapError};
use crate::survey;
use crate::sync::AtomicU64;

/// Where a session runs: who touches memory, and where its findings go.
pub trait Site<M, A>: Tenant<M, A> {
    /// Sets one of the words of [`abi::replay`](mod@crate::abi::replay).
    fn put(&mut self, index: usize, value: u64);

    /// Adds to one of the words.
    fn add(&mut self, index: usize, value: u64);

    /// Raises one of the words to `value` if it is lower.
    fn raise(&mut self, index: usize, value: u64);

    /// Sets one of the [`STATS_WORDS`](crate::abi::results::STATS_WORDS) words of [`abi::stats`](mod@crate::abi::stats).
    fn stat(&mut self, index: usize, value: u64);

    /// Says one line.
    fn say(&mut self, line: fmt::Arguments<'_>);

    /// Checks of its own at a checkpoint, beside the recount: another walk of the tables.
    ///
    /// # Errors
    /// What was wrong.
    fn checkpoint(&mut self, manager: &Manager<M, A>) -> Result<(), &'static str>;

    /// The words of a [survey](mod@crate::survey) at each checkpoint, if one is wanted.
    fn survey(&self) -> Option<&[AtomicU64]>;

    /// Ticks spent on clearing frames so far.
    fn clear_ticks(&self) -> u64;
}

/// What a session works on.
#[derive(Debug)]
pub struct Session<'a> {
    /// The encoded operations, with what their accesses must read.
    pub trace: &'a [[u64; OP_WORDS]],
    /// Operations between two checkpoints; 0 for one at the end only.
    pub interval: u64,
    /// Scratch memory of the recount.
    pub rows: Pfn,
    /// Whether the statistics are to tell of every page.
    pub pages: bool,
    /// First frame of the device window.
    pub device: Pfn,
}

impl Session<'_> {
    /// Replays the trace on `manager`, which must be empty.
    ///
    /// # Errors
    /// What was wrong; the site was told the details.
    pub fn run<M: Memory + Tlb, A: Accounting>(
        &self,
        manager: &Manager<M, A>,
        site: &mut impl Site<M, A>,
    ) -> Result<(), &'static str> {
        let mut replay = Replay::new(manager, self.device).map_err(|_| "too few frames for a replay")?;
        let span = manager.frames().span();
        let recount = Recount::new(self.rows, span.start, span.end.raw() - span.start.raw());
        let (mut most_leaves, mut looked_at) = (0, None);
        // What was cleared before the session is no work of it.
        let before = site.clear_ticks();
        site.add(word::OTHER_CLEAR_TICKS, before);
        for (i, encoded) in self.trace.iter().enumerate() {
            let op = self.step(i, encoded, &mut replay, site)?;
            if let Op::Look { .. } = op {
                looked_at = Some(show(&op, &replay, looked_at, &recount, site)?);
            }
            let stats = manager.frames().stats();
            site.raise(word::PEAK_FRAMES, stats.total - stats.free);
            let done = i as u64 + 1;
            site.put(word::OPS, done);
            if self.interval > 0 && done.is_multiple_of(self.interval) || i + 1 == self.trace.len() {
                let found = check(manager, &recount, site)?;
                if found.leaves > most_leaves || most_leaves == 0 {
                    most_leaves = found.leaves;
                    note_knowledge(manager, &found, site);
                    // Behind the rest: a scheme may learn from being read.
                    stats::write(manager, self.pages, |index, word| site.stat(index, word));
                }
            }
        }
        note_work(manager, site);
        let clean = replay.finish(site);
        site.put(word::CLEAN, u64::from(clean));
        if clean { Ok(()) } else { Err("frames or counts are left when everything is gone") }
    }

    fn step<M: Memory + Tlb, A: Accounting>(
        &self,
        i: usize,
        encoded: &[u64; OP_WORDS],
        replay: &mut Replay<'_, M, A>,
        site: &mut impl Site<M, A>,
    ) -> Result<Op, &'static str> {
        let mut plain = *encoded;
        (plain[words::HAS_EXPECTED], plain[words::EXPECTED]) = (0, 0);
        let op = encode::decode(&plain).map_err(|_| "an operation of the trace does not decode")?;
        let sum = match replay.step(&op, site) {
            Ok(sum) => sum,
            Err(error) => {
                site.put(word::FAILED_OP, i as u64 + 1);
                site.put(word::OUT_OF_FRAMES, u64::from(wants_frames(error)));
                site.say(format_args!("operation {i}, `{op}`: {error}"));
                return Err("the replay ended early");
            }
        };
        if encoded[words::HAS_EXPECTED] == 1 {
            site.add(word::VERIFIED, 1);
            if sum != Some(encoded[words::EXPECTED]) {
                site.put(word::FAILED_OP, i as u64 + 1);
                site.say(format_args!("operation {i}, `{op}`: the tenant read other words than were stored"));
                return Err("contents were lost");
            }
        }
        Ok(op)
    }
}

/// Shows the folio that `op` looks at, which the tables are recounted for; where the folio begins.
fn show<M: Memory + Tlb, A: Accounting>(
    op: &Op,
    replay: &Replay<'_, M, A>,
    before: Option<Pfn>,
    recount: &Recount,
    site: &mut impl Site<M, A>,
) -> Result<Pfn, &'static str> {
    let &Op::Look { proc, at, label, repaired } = op else { return Err("only a look is shown") };
    let (manager, space) = (replay.manager(), replay.space(proc).ok_or("nobody looks")?);
    let Some(folio) = look::folio_at(manager, space, at, before) else {
        site.say(format_args!("`{op}`: no folio is mapped there, and none was looked at before"));
        return Err("a look found no folio");
    };
    if repaired {
        manager.repair(folio);
    }
    check(manager, recount, site)?;
    look::show(replay, recount, site, label, folio, space);
    Ok(folio.head())
}

fn wants_frames(error: ReplayError) -> bool {
    matches!(error, ReplayError::Map(MapError::OutOfFrames) | ReplayError::Access(_, FaultError::OutOfFrames))
}

/// Recounts every leaf.
fn check<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, A>,
    recount: &Recount,
    site: &mut impl Site<M, A>,
) -> Result<Audit, &'static str> {
    let before = site.clear_ticks();
    let found = recount.run(manager);
    // The recount clears its own rows: no work of the manager's.
    let rows = site.clear_ticks() - before;
    site.add(word::OTHER_CLEAR_TICKS, rows);
    site.add(word::AUDITS, 1);
    site.add(word::CHECKS, found.checks);
    site.add(word::MISMATCHES, found.mismatches);
    site.add(word::FALSE_EXCLUSIVE, found.false_exclusive);
    if let Some((what, frame)) = found.first {
        let (wrong, checks) = (found.mismatches, found.checks);
        site.say(format_args!(
            "recount: {wrong} of {checks} comparisons failed, the first at frame {frame:#x}: {what}"
        ));
        return Err("the recount disagrees with the counts");
    }
    site.checkpoint(manager)?;
    if let Some(words) = site.survey() {
        survey::take(manager, recount, words);
    }
    Ok(found)
}

fn note_knowledge<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>, found: &Audit, site: &mut impl Site<M, A>) {
    for (i, value) in words::audit_words(found).into_iter().enumerate() {
        site.put(word::KNOWN + i, value);
    }
    for (i, value) in words::metadata_words(&manager.metadata()).into_iter().enumerate() {
        site.put(word::METADATA + i, value);
    }
}

fn note_work<M: Memory + Tlb, A: Accounting>(manager: &Manager<M, A>, site: &mut impl Site<M, A>) {
    let statistics = manager.statistics();
    for (index, value) in [
        (word::CLEARED, &statistics.cleared),
        (word::KNOWN_ZERO, &statistics.known_zero),
        (word::COPIED, &statistics.copied),
        (word::SPLITS, &statistics.splits),
    ] {
        site.put(index, value.load(Relaxed));
    }
    let ticks = site.clear_ticks();
    site.put(word::CLEAR_TICKS, ticks);
}

/// Notes an event in the words: its count, pages and ticks.
pub fn note_event<M, A>(site: &mut impl Site<M, A>, event: Event, pages: u64, ticks: u64) {
    let index = words::event_word(event);
    site.add(index, 1);
    site.add(index + 1, pages);
    site.add(index + 2, ticks);
}
