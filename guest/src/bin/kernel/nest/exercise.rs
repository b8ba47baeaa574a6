//! Exercises of nested levels on this machine's MMU: the worked example, and random histories.

use quire::abi::boot;
use quire::abi::nest::{self as abi, word};
use quire::addr::Gva;
use quire::audit::Recount;
use quire::exercise::history::History;
use quire::exercise::{Cpu, Nest, Who, example};
use quire::mapcount::Accounting;
use quire::nest::NestError;
use quire::stage2::Stage2Format;

use super::entered::{self, Program};
use super::tenants::Touching;
use super::{Host, shadow};
use crate::log;
use crate::machine::Machine;
use crate::manager::Run;
use crate::replay::Findings;

/// Plays the worked example; what was counted goes to the results.
pub(super) fn example<A: Accounting>(
    run: &Run<'_>,
    host: &Host<'_, A>,
    rows: &Recount,
    format: Stage2Format,
) -> Result<(), &'static str> {
    let mut tenants = Tenants::new(run, format);
    let counted = example::run(host, rows, format, &mut tenants).map_err(|wrong| {
        log!("{wrong}");
        "the worked example goes otherwise"
    })?;
    for (step, columns) in counted.iter().enumerate() {
        for (i, encoded) in columns.encode().into_iter().enumerate() {
            tenants.findings.put(word::STEPS + step * example::Columns::WORDS + i, encoded);
        }
    }
    Ok(())
}

/// Goes through random histories, each with a VM of its own.
pub(super) fn histories<A: Accounting>(
    run: &Run<'_>,
    host: &Host<'_, A>,
    rows: &Recount,
    format: Stage2Format,
) -> Result<(), &'static str> {
    let first = run.boot[boot::SEED];
    for seed in first..first + run.boot[abi::HISTORIES] {
        let mut tenants = Tenants::new(run, format);
        let history = History { seed, length: run.boot[abi::LENGTH], step: 1, format };
        let done = history.run(host, rows, &mut tenants).map_err(|(operation, wrong)| {
            log!("history {seed}, behind operation {operation}: {wrong}");
            "a history goes wrong"
        })?;
        for (index, more) in [
            (word::HISTORIES, 1),
            (word::OPERATIONS, done.operations),
            (word::BY_PROCESSES, done.by_processes),
            (word::BY_VMS, done.by_vms),
            (word::BELOW, done.below),
            (word::RECOUNTS, done.recounts),
        ] {
            tenants.findings.add(index, more);
        }
    }
    Ok(())
}

/// Tenants of a nest on this machine: on composed tables, or in guest mode.
struct Tenants<'r, 'm> {
    machine: &'m Machine,
    findings: Findings<'r>,
    is_entered: bool,
    program: Option<Program>,
}

impl<'r> Tenants<'r, 'r> {
    fn new(run: &Run<'r>, format: Stage2Format) -> Self {
        let is_entered = format != Stage2Format::LongMode;
        Self { machine: run.machine, findings: Findings::new(run), is_entered, program: None }
    }
}

impl<'m, A: Accounting> Cpu<&'m Machine, A> for Tenants<'_, 'm> {
    fn touch(
        &mut self,
        nest: &Nest<'_, &'m Machine, A>,
        who: Who,
        page: u64,
        store: Option<u64>,
    ) -> Result<u64, NestError> {
        let (machine, memory, at) = (self.machine, nest.memory, Gva::from_page(page));
        let touching = Touching { machine, findings: &self.findings, memory, guest: &nest.guest, who };
        let touched = if self.is_entered {
            let program = self.program.get_or_insert_with(|| Program::new(machine, memory, nest.program_page()));
            program.touch(&touching, at, 1, store)
        } else {
            shadow::touch(&touching, at, 1, store)
        };
        // Of one word the checksum is the word.
        touched.map_err(|(_, error)| error)
    }

    fn program(&self, page: u64, store: &mut dyn FnMut(u64, usize, u64)) -> u64 {
        if self.is_entered { entered::write_program(page, store) } else { 0 }
    }

    fn leave(&mut self) {
        self.machine.load_no_tenant();
    }
}
