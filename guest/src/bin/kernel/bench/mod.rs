//! The benchmark: rounds of operations on real page tables, each timed by itself, beside the floor.
//!
//! ```text
//! plan       what was asked for
//! session    the rounds of one shape: which frames they have, what is done in which order
//! stage      a manager and its tenant, and how an operation is timed
//! layers     the parts of a fault in loops of their own
//! bare       the floor: the same operations with nothing but the loads and stores of entries that they cannot do without
//! vm         the same for VMs
//! tell       medians as text, where no VMM of ours reads samples
//! ```

mod bare;
mod layers;
mod plan;
mod session;
mod stage;
mod tell;
mod vm;

use quire::abi::bench::Shape;
use quire::abi::boot;
use quire::mapcount::Accounting;

use crate::manager::Run;
use crate::{results, touch};
use plan::Plan;

/// Runs what the boot words ask for.
///
/// # Errors
/// What was wrong; the log says more.
pub fn run<A: Accounting>(run: &Run<'_>) -> Result<(), &'static str> {
    each_shape(run, session::run::<A>)
}

/// The same where operations on VMs are asked for.
///
/// # Errors
/// As [`run`].
pub fn run_vms<A: Accounting>(run: &Run<'_>) -> Result<(), &'static str> {
    each_shape(run, vm::run::<A>)
}

fn each_shape(
    run: &Run<'_>,
    play: fn(&Run<'_>, &Plan, Shape, &mut u64) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let plan = Plan::new(run)?;
    let mut used = 0;
    for shape in plan.shapes() {
        play(run, &plan, shape, &mut used)?;
        if results::speaks() {
            tell::rows();
            touch::open_samples(run.boot[boot::SAMPLES_CAPACITY]);
        }
    }
    Ok(())
}
