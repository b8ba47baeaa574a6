//! Where the manager is plugged in.

use quire::abi::{BootInfo, flags};

use crate::floor::{Floor, PAGES};
use crate::machine::Machine;
use crate::results::{Finish, Results};
use crate::{log, selftest};

/// The run, from the boot words to the results. Frames that the floor has used are dirty.
pub fn main(machine: &Machine, boot: &BootInfo, results: &Results) -> Finish {
    let ended = if boot.has(flags::FLOOR_ONLY) { selftest::run(machine, boot, results) } else { floor(machine) };
    match ended {
        Ok(()) => Finish::Pass,
        Err(what) => {
            log!("{what}");
            Finish::Fail
        }
    }
}

fn floor(machine: &Machine) -> Result<(), &'static str> {
    Floor::new(machine, machine.frames().0, PAGES)?.run()?;
    machine.load_no_tenant();
    Ok(())
}
