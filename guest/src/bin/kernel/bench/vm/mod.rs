//! The rounds of one shape for VMs: their memory is that of a VMM's space, in folios of that order, and their stage-2 leaves are of that level.
//!
//! ```text
//! tenant     a VM and its VMM, and how they are filled
//! scenes     what is done to a VM as a whole: stage-2 faults, dirty log, clone, teardown
//! composed   nested leaves for a tenant of the tenant, and the ledger's part alone
//! process    a process inside of the VM, whose faults come through the MMU
//! bare       the floor
//! ```

mod bare;
mod composed;
mod process;
mod scenes;
mod tenant;

use core::sync::atomic::Ordering::Relaxed;

use quire::abi::bench::{Operation, Shape, WARM_PAGES, frames, word};
use quire::abi::replay::metadata_words;
use quire::audit::Recount;
use quire::mapcount::{Accounting, Classes};
use quire::space::{Manager, Policy};
use quire::stage2::Stage2Format;

use super::plan::Plan;
use super::session::on_manager;
use super::stage::Clock;
use crate::log;
use crate::machine::Machine;
use crate::manager::Run;
use bare::Bare;

/// The manager of VMs.
pub(super) type Host<'m, A> = Manager<&'m Machine, Classes<A>>;

pub(super) use bare::Bare as Floor;

/// What is done on one manager, and the operations that it has samples of.
type Act<A> = (&'static [Operation], fn(&Scene<'_, '_, A>) -> Result<(), &'static str>);

/// Times every operation of the plan on VMs of one shape. Of frames that nobody has touched, `used` are no longer.
///
/// # Errors
/// What was wrong; the log says more.
pub(super) fn run<A: Accounting>(run: &Run<'_>, plan: &Plan, shape: Shape, used: &mut u64) -> Result<(), &'static str> {
    let acts: [Act<A>; 6] = [
        (&[Operation::Stage2Fault, Operation::VmTeardown, Operation::VmmTeardown], scenes::life),
        (&[Operation::HostFault], scenes::host_faults),
        (&[Operation::LogStart, Operation::LogStore, Operation::LogTake, Operation::LogStop], scenes::log),
        (&[Operation::Clone], scenes::clone),
        (&[Operation::ComposeFault], composed::play),
        (&[Operation::NestedFault], process::play),
    ];
    let mut bare = Bare::new(run.machine, plan, shape);
    for round in 0..=plan.rounds(shape) {
        let clock = Clock { runs: round > 0, shape, is_floor: false };
        // What nobody has touched is not for warming up.
        let is_short = plan.frames == frames::FRESH && !plan.is_recounted && round == 0;
        let warm = plan.of_pages(WARM_PAGES.min(plan.pages));
        let plan = if is_short { &warm } else { plan };
        for (operations, act) in acts {
            let is_wanted = operations.iter().any(|&operation| plan.wants(operation));
            if is_wanted && !scene(run, plan, clock, used, act)? {
                return Ok(());
            }
        }
        if plan.has_layers && !scene::<A>(run, plan, clock, used, composed::ledger)? {
            return Ok(());
        }
        bare.play(plan, clock.runs);
        run.results.general(word::ROUNDS + shape.index()).store(round, Relaxed);
    }
    Ok(())
}

/// Plays on a manager of its own; whether there were frames for it.
fn scene<A: Accounting>(
    run: &Run<'_>,
    plan: &Plan,
    clock: Clock,
    used: &mut u64,
    act: fn(&Scene<'_, '_, A>) -> Result<(), &'static str>,
) -> Result<bool, &'static str> {
    let format = plan.format()?;
    on_manager(run, plan, clock, used, |host, policy, recount| {
        act(&Scene { run, plan, host, clock, format, policy, recount })
    })
}

/// A manager of VMs in a round.
struct Scene<'a, 'm, A: Accounting> {
    run: &'a Run<'m>,
    plan: &'a Plan,
    host: &'a Host<'m, A>,
    clock: Clock,
    /// Of stage 2.
    format: Stage2Format,
    policy: Policy,
    /// The recount, in the round that is not timed.
    recount: Option<Recount>,
}

impl<A: Accounting> Scene<'_, '_, A> {
    /// In the round that is not timed: recounts all leaves of every class, and notes what the metadata takes if `is_full`.
    fn check(&self, is_full: bool) -> Result<(), &'static str> {
        let Some(recount) = &self.recount else { return Ok(()) };
        let results = self.run.results;
        let found = recount.run_classes(self.host);
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
            let index = self.clock.shape.index();
            results.general(word::FOLIOS + index).store(found.folios, Relaxed);
            self.note_metadata(word::metadata(index));
        }
        Ok(())
    }

    /// Notes what the metadata takes now, from word `first` on.
    fn note_metadata(&self, first: usize) {
        for (i, value) in metadata_words(&self.host.metadata()).into_iter().enumerate() {
            self.run.results.general(first + i).store(value, Relaxed);
        }
    }

    /// Notes faults that were not what their operation means.
    fn note_otherwise(&self, faults: u64) {
        if self.clock.runs {
            let word = self.run.results.general(word::OTHERWISE + self.clock.shape.index());
            word.store(word.load(Relaxed) + faults, Relaxed);
        }
    }
}
