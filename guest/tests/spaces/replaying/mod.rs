//! A replay on the in-process machine in which nothing is believed: after every operation the oracle recounts all leaves, the TLB
//! is compared with the tables, and every word that a tenant reads is compared with the reference of contents.
#![allow(dead_code, reason = "each test uses a part of it")]

use quire::addr::Pfn;
use quire::audit::{Audit, Recount};
use quire::mapcount::Accounting;
use quire::model::contents::Contents;
use quire::model::{Machine, ModelTenant};
use quire::space::{Manager, Policy};
use quire::trace::{MAX_DEVICE_PAGES, Op, Replay};

/// Frames a run manages, and what it sets aside for the recount.
pub const FRAMES: u64 = 16 * 1024;
const DEVICE: u64 = FRAMES + Recount::scratch_frames(FRAMES);

pub struct Checked<'m, A> {
    pub manager: Manager<&'m Machine, A>,
    pub recount: Recount,
    machine: &'m Machine,
    seed: u64,
}

pub fn machine() -> Machine {
    Machine::new(DEVICE + MAX_DEVICE_PAGES)
}

impl<'m, A: Accounting> Checked<'m, A> {
    pub fn new(machine: &'m Machine, policy: Policy, seed: u64) -> Self {
        let managed = Pfn::new(0)..Pfn::new(FRAMES);
        let manager = Manager::new(machine, &[managed], true, policy).expect("enough frames");
        let recount = Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES).exhaustive();
        Self { manager, recount, machine, seed }
    }

    pub fn audit(&self) -> Audit {
        let audit = self.recount.run(&self.manager);
        assert_eq!(audit.mismatches, 0, "the recount disagrees: {:?}", audit.first);
        audit
    }

    /// A recount that looks at the tables only, not from every folio: for long runs.
    pub fn recount_only(&self) -> Recount {
        Recount::new(Pfn::new(FRAMES), Pfn::new(0), FRAMES)
    }

    /// Replays `ops`, calling `each` after every one; everything is gone at the end.
    pub fn run(&self, ops: &[Op], each: impl FnMut(&Self, &Replay<'_, &'m Machine, A>, usize)) {
        self.run_every(1, ops, each);
    }

    /// As [`run`](Self::run), but with the recount, and the look at the TLB, after every `step` operations only.
    pub fn run_every(&self, step: usize, ops: &[Op], mut each: impl FnMut(&Self, &Replay<'_, &'m Machine, A>, usize)) {
        let mut contents = Contents::default();
        let mut tenant = ModelTenant::new(self.machine, self.seed, || 0);
        let mut replay = Replay::new(&self.manager, Pfn::new(DEVICE)).expect("frames for the replay");
        for (i, op) in ops.iter().enumerate() {
            let expected = contents.apply(op, self.seed).unwrap_or_else(|refused| panic!("operation {i}: {refused}"));
            match replay.step(op, &mut tenant) {
                Ok(sum) => {
                    if expected.is_some() {
                        assert_eq!(sum, expected, "operation {i}, {op:?}: the tenant read other words");
                    }
                }
                Err(error) => panic!("operation {i}, {op:?}: {error}"),
            }
            if (i + 1).is_multiple_of(step) {
                let audit = self.recount.run(&self.manager);
                assert_eq!(audit.mismatches, 0, "operation {i}, {op:?}: {:?}", audit.first);
                assert_eq!(self.machine.stale(), None, "operation {i}, {op:?}: a flush is missing");
            }
            each(self, &replay, i);
        }
        assert!(replay.finish(&mut tenant), "frames or counts are left: {:?}", self.manager.frames().stats());
    }
}
