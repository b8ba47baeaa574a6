//! The rounds of one shape.

use core::slice;
use core::sync::atomic::Ordering::Relaxed;

use quire::abi::bench::{Operation, Shape, frames, word};
use quire::abi::replay::metadata_words;
use quire::addr::Level;
use quire::audit::Recount;
use quire::mapcount::Accounting;
use quire::memory::Memory;
use quire::space::{Advice, LargeFolios, Manager, Policy, Prot};

use super::bare::Bare;
use super::layers;
use super::plan::Plan;
use super::stage::{AT, Clock, Stage};
use crate::log;
use crate::machine::Machine;
use crate::manager::Run;

/// Times every operation of the plan on folios of one shape. Of frames that nobody has touched, `used` are no longer.
///
/// # Errors
/// What was wrong; the log says more.
pub fn run<A: Accounting>(run: &Run<'_>, plan: &Plan, shape: Shape, used: &mut u64) -> Result<(), &'static str> {
    let mut bare = Bare::new(run.machine, plan, shape);
    for round in 0..=plan.rounds(shape) {
        let clock = Clock { runs: round > 0, shape, is_floor: false };
        if plan.wants(Operation::Touch) && !scene::<A>(run, plan, clock, used, |round| round.touch())? {
            break;
        }
        if !scene::<A>(run, plan, clock, used, |round| round.rest())? {
            break;
        }
        if plan.has_layers && !scene::<A>(run, plan, clock, used, |round| layers::play(round.stage))? {
            break;
        }
        bare.play(plan, clock.runs);
        run.results.general(word::ROUNDS + shape.index()).store(round, Relaxed);
    }
    Ok(())
}

/// Plays a part of a round on a manager of its own; whether there were frames for it.
fn scene<A: Accounting>(
    run: &Run<'_>,
    plan: &Plan,
    clock: Clock,
    used: &mut u64,
    play: fn(&Round<'_, '_, A>) -> Result<(), &'static str>,
) -> Result<bool, &'static str> {
    on_manager(run, plan, clock, used, |manager, _, recount| {
        let stage = Stage { machine: run.machine, manager, clock, pages: plan.pages, has_layers: plan.has_layers };
        play(&Round { run, plan, stage: &stage, recount })
    })
}

/// Has something done on a manager whose frames are as the plan says, with its policy, and its recount in the round that is not timed; whether there were such frames.
pub(super) fn on_manager<'m, A: Accounting>(
    run: &Run<'m>,
    plan: &Plan,
    clock: Clock,
    used: &mut u64,
    play: impl FnOnce(&Manager<&'m Machine, A>, Policy, Option<Recount>) -> Result<(), &'static str>,
) -> Result<bool, &'static str> {
    let Some(managed) = plan.managed(used) else { return Ok(false) };
    if plan.frames == frames::KNOWN_ZERO {
        run.machine.zero(managed.start, managed.end.raw() - managed.start.raw());
    }
    let shape = clock.shape;
    let policy = Policy { orders: 1 << shape.order.get() | 1, large: LargeFolios::Always, max_leaf: shape.level };
    let are_zero = plan.frames != frames::TO_CLEAR;
    let manager = Manager::new(run.machine, slice::from_ref(&managed), are_zero, policy)
        .map_err(|_| "benchmark: too few frames for a manager")?;
    let recount = (plan.is_recounted && !clock.runs).then(|| {
        let span = manager.frames().span();
        Recount::new(run.room.rows, span.start, span.end.raw() - span.start.raw())
    });
    play(&manager, policy, recount)?;
    run.machine.load_no_tenant();
    if manager.trim() { Ok(true) } else { Err("benchmark: frames are left when everything is gone") }
}

/// One round.
struct Round<'a, 'm, A: Accounting> {
    run: &'a Run<'m>,
    plan: &'a Plan,
    stage: &'a Stage<'a, 'm, A>,
    /// The recount, in the round that is not timed.
    recount: Option<Recount>,
}

impl<A: Accounting> Round<'_, '_, A> {
    /// Every page stored to.
    fn touch(&self) -> Result<(), &'static str> {
        let space = self.stage.space()?;
        let before = self.stage.cleared();
        self.stage.store_to_all(space)?;
        self.check_zeroing(before)?;
        self.stage.destroy(space);
        Ok(())
    }

    /// Everything else.
    fn rest(&self) -> Result<(), &'static str> {
        self.life_of_a_folio()?;
        let Self { plan, stage, .. } = self;
        let Stage { manager, clock, .. } = stage;
        if plan.wants(Operation::Unmap) {
            let space = stage.full_space()?;
            clock
                .time(Operation::Unmap, || manager.unmap(space, AT, plan.pages))
                .map_err(|_| "benchmark: munmap was refused")?;
            stage.destroy(space);
        }
        if plan.wants(Operation::Teardown) {
            let space = stage.full_space()?;
            stage.machine.load_no_tenant();
            clock.time(Operation::Teardown, || manager.destroy_space(space));
        }
        if plan.wants(Operation::Split) && clock.shape.level > Level::ONE {
            self.split()?;
        }
        Ok(())
    }

    /// Faulted in, shared, copied, alone again, cut.
    fn life_of_a_folio(&self) -> Result<(), &'static str> {
        let Self { plan, stage, .. } = self;
        let Stage { manager, clock, .. } = stage;
        let order = clock.shape.order;
        let space = stage.space()?;
        let before = stage.cleared();
        let faults = plan.wants(Operation::Fault).then_some(Operation::Fault);
        self.note_otherwise(stage.store_to_each(space, faults, 0)?);
        self.check_zeroing(before)?;
        self.check(true)?;
        if [Operation::Fork, Operation::Cow, Operation::Reuse].into_iter().any(|operation| plan.wants(operation)) {
            let runs = clock.runs && plan.wants(Operation::Fork);
            let child = Clock { runs, ..*clock }
                .time(Operation::Fork, || manager.fork(space))
                .map_err(|_| "benchmark: no frames for a fork")?;
            self.check(false)?;
            if plan.wants(Operation::Cow) {
                stage.machine.load_root(manager.root(child));
                self.note_otherwise(stage.store_to_each(child, Some(Operation::Cow), 0)?);
                self.check(false)?;
            }
            stage.destroy(child);
            if plan.wants(Operation::Reuse) {
                stage.machine.load_root(manager.root(space));
                self.note_otherwise(stage.store_to_each(space, Some(Operation::Reuse), order.pages() / 2)?);
                self.check(false)?;
            }
        }
        if plan.wants(Operation::ZapOne) {
            stage.machine.load_root(manager.root(space));
            for nth in 0..stage.folios() {
                // Inside, where it has an inside.
                let at = stage.folio_at(nth).add_pages(u64::from(order.get() > 0));
                clock
                    .time(Operation::ZapOne, || manager.advise(space, at, 1, Advice::DontNeed))
                    .map_err(|_| "benchmark: madvise was refused")?;
            }
            self.check(false)?;
        }
        stage.destroy(space);
        Ok(())
    }

    fn split(&self) -> Result<(), &'static str> {
        let Self { stage, .. } = self;
        let space = stage.full_space()?;
        for nth in 0..stage.folios() {
            let at = stage.folio_at(nth).add_pages(7);
            let read = Prot { read: true, write: false, exec: false };
            stage
                .clock
                .time(Operation::Split, || stage.manager.protect(space, at, 1, read))
                .map_err(|_| "benchmark: mprotect was refused")?;
        }
        if stage.manager.statistics().splits.load(Relaxed) < stage.folios() {
            return Err("benchmark: a leaf was not split");
        }
        self.check(false)?;
        stage.destroy(space);
        Ok(())
    }

    /// In the round that is not timed: recounts all leaves, and notes what the metadata takes if `is_full`.
    fn check(&self, is_full: bool) -> Result<(), &'static str> {
        let Some(recount) = &self.recount else { return Ok(()) };
        let (manager, results) = (self.stage.manager, self.run.results);
        let found = recount.run(manager);
        let checks = results.general(word::CHECKS);
        checks.store(checks.load(Relaxed) + found.checks, Relaxed);
        if let Some((what, frame)) = found.first {
            log!(
                "recount: {} of {} comparisons failed, the first at frame {frame:#x}: {what}",
                found.mismatches,
                found.checks
            );
            return Err("the recount disagrees with the counts");
        }
        if is_full {
            let index = self.stage.clock.shape.index();
            results.general(word::FOLIOS + index).store(found.folios, Relaxed);
            for (i, value) in metadata_words(&manager.metadata()).into_iter().enumerate() {
                results.general(word::metadata(index) + i).store(value, Relaxed);
            }
        }
        Ok(())
    }

    /// That the frames handed out since `before` were of the kind that was asked for, all of them.
    fn check_zeroing(&self, before: (u64, u64)) -> Result<(), &'static str> {
        let now = self.stage.cleared();
        let (cleared, known) = (now.0 - before.0, now.1 - before.1);
        let (right, wrong) = if self.plan.frames == frames::TO_CLEAR { (cleared, known) } else { (known, cleared) };
        if right == self.plan.pages && wrong == 0 {
            Ok(())
        } else {
            log!("benchmark: {cleared} frames were cleared, {known} known to be zero, of {}", self.plan.pages);
            Err("benchmark: frames were not as they should be")
        }
    }

    fn note_otherwise(&self, faults: u64) {
        if self.stage.clock.runs {
            let word = self.run.results.general(word::OTHERWISE + self.stage.clock.shape.index());
            word.store(word.load(Relaxed) + faults, Relaxed);
        }
    }
}
