//! A replay in this process: the same manager over emulated frames, with a TLB that stays stale until it is flushed.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use quire::addr::Pfn;
use quire::audit::Recount;
use quire::mapcount::{Accounting, UnderScheme};
use quire::model::{Machine, ModelTenant};
use quire::space::{LargeFolios, Manager, Policy};
use quire::trace::MAX_DEVICE_PAGES;
use quire::trace::session::Session;

use super::{Backend, Config, Measured};
use crate::error::Error;
use crate::workload::Workload;

pub(super) fn replay(workload: &Workload, config: &Config) -> Result<Measured, Error> {
    config.scheme.run(InProcess { workload, config })
}

struct InProcess<'a> {
    workload: &'a Workload,
    config: &'a Config,
}

impl UnderScheme for InProcess<'_> {
    type Output = Result<Measured, Error>;

    fn run<A: Accounting>(self) -> Self::Output {
        let Self { workload, config } = self;
        let memory = config.memory(workload)?;
        let frames = memory >> 12;
        let rows = Recount::scratch_frames(frames);
        let machine = Machine::new(frames + rows + MAX_DEVICE_PAGES);
        let policy = Policy { orders: config.orders, large: LargeFolios::Always, max_leaf: config.max_leaf };
        let managed = Pfn::new(0)..Pfn::new(frames);
        let manager = Manager::<_, A>::new(&machine, &[managed], true, policy)
            .map_err(|error| Error::Lacks(error.to_string()))?;
        let session = Session {
            trace: &workload.encoded,
            interval: config.interval(workload),
            pages: config.pages,
            rows: Pfn::new(frames),
            device: Pfn::new(frames + rows),
        };
        let mut tenant = ModelTenant::new(&machine, workload.seed, nanoseconds);
        if config.survey {
            tenant = tenant.surveying();
        }
        let verdict = session.run(&manager, &mut tenant);
        let mut log = tenant.log;
        if let Err(what) = verdict {
            log += what;
            log.push('\n');
        }
        Ok(Measured {
            backend: Backend::Model,
            ring: None,
            loops_ns: None,
            words: tenant.words,
            survey: tenant.survey.into_iter().map(AtomicU64::into_inner).collect(),
            samples: tenant.samples,
            memory_stats: tenant.stats,
            samples_lost: 0,
            tick_ns: 1.0,
            bracket_ns: 0.0,
            log,
            passed: verdict.is_ok(),
            memory,
            timings: None,
            exits: 0,
            stats: Vec::new(),
        })
    }
}

/// Nanoseconds since the first call.
fn nanoseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
