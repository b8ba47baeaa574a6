//! Where the manager is plugged in.

use quire::abi::{BootInfo, OP_WORDS, flags};

use crate::floor::{Floor, PAGES};
use crate::machine::Machine;
use crate::results::{Finish, Results};
use crate::{log, selftest};

/// The run, from the boot words and the encoded trace to the results. Frames that the floor has used are dirty.
pub fn main(machine: &Machine, boot: &BootInfo, trace: &[[u64; OP_WORDS]], results: &Results) -> Finish {
    let ended = if boot.has(flags::FLOOR_ONLY) { selftest::run(machine, boot, trace, results) } else { floor(machine) };
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
