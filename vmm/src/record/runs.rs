//! Coalesces single accesses to runs.

use quire::addr::Gva;
use quire::trace::{MAX_RUN_PAGES, Op};

/// Runs that may still grow, one for each process, in the order in which they began.
///
/// Processes on several CPUs take turns by the page, which would cut every run to pieces; between two operations of any
/// other kind the order of accesses of different processes does not matter, so each gets a run of its own.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Run>);

#[derive(Clone, Copy, Debug)]
struct Run {
    proc: u32,
    page: u64,
    pages: u64,
    write: bool,
    /// Device pages have no checksum, so runs do not mix them with others.
    device: bool,
}

impl Runs {
    /// Adds an access to the run of its process; a run that it does not continue moves to `ops`.
    pub(super) fn add(&mut self, proc: u32, page: u64, write: bool, device: bool, ops: &mut Vec<Op>) {
        let new = Run { proc, page, pages: 1, write, device };
        let Some(place) = self.0.iter().position(|run| run.proc == proc) else {
            self.0.push(new);
            return;
        };
        let run = &mut self.0[place];
        let continues = page == run.page + run.pages && (write, device) == (run.write, run.device);
        if continues && run.pages < MAX_RUN_PAGES {
            run.pages += 1;
        } else {
            ops.push(self.0.remove(place).op());
            self.0.push(new);
        }
    }

    /// Moves all runs to `ops`.
    pub(super) fn flush(&mut self, ops: &mut Vec<Op>) {
        ops.extend(self.0.drain(..).map(Run::op));
    }
}

impl Run {
    const fn op(self) -> Op {
        Op::Access { proc: self.proc, at: Gva::from_page(self.page), pages: self.pages, write: self.write }
    }
}
