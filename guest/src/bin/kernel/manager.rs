//! Where the manager is plugged in: the floor, then the trace replayed under the scheme that was asked for, or the benchmark.

use core::ops::Range;
use quire::abi::replay as words;
use quire::abi::{BootInfo, OP_WORDS, bench, boot, flags, nest};
use quire::addr::{Level, Pfn};
use quire::audit::Recount;
use quire::mapcount::{Accounting, Everything, Scheme, Total, UnderScheme};
use quire::memory::Memory;
use quire::space::{LargeFolios, Manager, Policy};
use quire::trace::MAX_DEVICE_PAGES;

use crate::floor::{self, Floor};
use crate::machine::Machine;
use crate::results::{Finish, Results};
use crate::window::Window;
use crate::{log, replay, selftest};

/// The run, from the boot words and the encoded trace to the results.
pub fn main(machine: &Machine, boot: &BootInfo, trace: &[[u64; OP_WORDS]], results: &Results) -> Finish {
    let ended = if boot.has(flags::FLOOR_ONLY) {
        selftest::run(machine, boot, trace, results)
    } else {
        run(machine, boot, trace, results)
    };
    match ended {
        Ok(()) => Finish::Pass,
        Err(what) => {
            log!("{what}");
            Finish::Fail
        }
    }
}

fn run(machine: &Machine, boot: &BootInfo, trace: &[[u64; OP_WORDS]], results: &Results) -> Result<(), &'static str> {
    measure_floor(machine, boot[words::FLOOR_PAGES])?;
    let scheme = Scheme::from_number(boot[boot::SCHEME]).ok_or("no scheme has this number")?;
    let run = Run { machine, boot, trace, results, room: Room::new(machine, boot)? };
    if bench::Operation::is_of_vms(boot[bench::OPERATIONS]) {
        return match scheme {
            Scheme::None => crate::bench::run_vms::<quire::mapcount::None>(&run),
            Scheme::Total => crate::bench::run_vms::<Total>(&run),
            _ => Err("a VM is benchmarked under `none` or `total`"),
        };
    }
    match scheme {
        _ if boot[nest::ENGINE] == nest::engine::NONE => scheme.run(run),
        // Every scheme at two levels would be an image of many megabytes: one alone, and all of them beside the oracle.
        Scheme::Total => crate::nest::run::<Total>(&run),
        Scheme::All => crate::nest::run::<Everything>(&run),
        _ => Err("a tenant VM is counted by `total` or by all schemes"),
    }
}

/// The floor in the run's own frames, which are zero again afterwards.
fn measure_floor(machine: &Machine, pages: u64) -> Result<(), &'static str> {
    if pages == 0 {
        return Ok(());
    }
    let pages = pages.min(floor::PAGES);
    let (first, _) = machine.frames();
    Floor::new(machine, first, pages)?.run()?;
    machine.load_no_tenant();
    machine.zero(first, Window::frames(pages) + pages);
    Ok(())
}

/// Who gets which frames.
#[derive(Clone, Debug)]
pub struct Room {
    /// The manager.
    pub managed: Range<Pfn>,
    /// The recount: its rows.
    pub rows: Pfn,
    /// The device window, if the trace has one.
    pub device: Pfn,
}

impl Room {
    fn new(machine: &Machine, boot: &BootInfo) -> Result<Self, &'static str> {
        let (first, count) = machine.frames();
        let device = if boot[words::DEVICE] == 0 { 0 } else { MAX_DEVICE_PAGES };
        let rows = Recount::scratch_frames(count);
        let managed = count.checked_sub(device + rows).ok_or("too few frames")?;
        let end = first.add(managed);
        Ok(Self { managed: first..end, rows: end, device: end.add(rows) })
    }
}

/// One replay, whatever the scheme.
#[derive(Debug)]
pub struct Run<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// What was asked for.
    pub boot: &'a BootInfo,
    /// The operations.
    pub trace: &'a [[u64; OP_WORDS]],
    /// Where results go.
    pub results: &'a Results,
    /// Who gets which frames.
    pub room: Room,
}

impl UnderScheme for Run<'_> {
    type Output = Result<(), &'static str>;

    fn run<A: Accounting>(self) -> Self::Output {
        if self.boot[bench::OPERATIONS] != 0 {
            return crate::bench::run::<A>(&self);
        }
        let policy = Policy {
            orders: self.boot[words::ORDERS] as u32 | 1,
            large: LargeFolios::Always,
            max_leaf: Level::new(self.boot[words::MAX_LEAF].clamp(1, 3) as u8),
        };
        let managed = core::slice::from_ref(&self.room.managed);
        let manager =
            Manager::<_, A>::new(self.machine, managed, true, policy).map_err(|_| "too few frames for a manager")?;
        replay::run(&self, &manager)
    }
}
