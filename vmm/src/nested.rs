//! Exercises of nested levels ([`quire::exercise`]): the worked example, and random histories, in a VM, in this process, or for an emulator.

use std::fmt;
use std::time::Duration;

use quire::abi::nest::{self, job, word};
use quire::abi::replay::{MAX_LEAF, ORDERS};
use quire::abi::{BootInfo, boot};
use quire::addr::{Level, Order, Pfn};
use quire::audit::Recount;
use quire::exercise::{example, history};
use quire::mapcount::{Classes, Everything, Scheme};
use quire::model::Machine;
use quire::model::nest::Mmu;
use quire::space::{Manager, Policy};
use quire::stage2::Stage2Format;
use serde::Serialize;

use crate::error::Error;
use crate::replay::{Backend, Ring, Stage2};
use crate::run::{MachineConfig, NoHost, Outcome, Status};
use crate::{kernel, run};

/// What the worked example is called on the command line.
pub const NAME: &str = "nested";

/// How long the guest may work without an exit.
const WATCHDOG: Duration = Duration::from_secs(300);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The worked example.
    Example,
    /// Random histories, both levels recounted behind every operation.
    Histories {
        /// The seed of the first; the others follow it.
        first: u64,
        /// How many.
        count: u64,
        /// Operations of each.
        length: u64,
    },
}

/// An exercise.
#[derive(Clone, Copy, Debug)]
pub struct Exercise {
    /// What is done.
    pub job: Job,
    /// On which tables of the tenant VM.
    pub stage2: Stage2,
    /// Under which scheme: `total`, or all.
    pub scheme: Scheme,
    /// At which ring.
    pub ring: Ring,
}

impl Exercise {
    /// Frames of the machine, with room for the recount and a CPU's structures.
    fn frames(&self) -> u64 {
        let managed = match self.job {
            Job::Example => example::HOST_FRAMES,
            Job::Histories { .. } => history::HOST_FRAMES,
        };
        managed + Recount::scratch_frames(managed) * 9 / 8 + 64
    }

    /// Bytes of memory that a machine needs which is not ours, image and results included.
    #[must_use]
    pub fn memory(&self) -> u64 {
        ((self.frames() << 12) + (24 << 20)).next_multiple_of(2 << 20)
    }

    /// What the kernel is told, addresses apart.
    #[must_use]
    pub fn boot_words(&self) -> BootInfo {
        let mut words = BootInfo::new();
        words[boot::RING] = self.ring.word();
        words[boot::SCHEME] = self.scheme as u64;
        words[ORDERS] = (2 << Order::HUGE.get()) - 1;
        words[MAX_LEAF] = u64::from(Level::TWO.get());
        words[nest::ENGINE] = self.stage2.word();
        match self.job {
            Job::Example => words[nest::JOB] = job::EXAMPLE,
            Job::Histories { first, count, length } => {
                words[nest::JOB] = job::HISTORIES;
                words[boot::SEED] = first;
                words[nest::HISTORIES] = count;
                words[nest::LENGTH] = length;
            }
        }
        words
    }

    /// Does it in a VM.
    ///
    /// # Errors
    /// When the host lacks KVM, or the engine; when the guest died. What it found wrong is in the outcome.
    pub fn run(&self) -> Result<Outcome, Error> {
        self.stage2.require()?;
        let guests = self.stage2.is_walked_by_cpu();
        let machine = MachineConfig {
            memory: self.frames() << 12,
            watchdog: WATCHDOG,
            boot: Self { ring: if guests { Ring::Zero } else { self.ring }, ..*self }.boot_words(),
            guests,
            ..MachineConfig::default()
        };
        let outcome = run(kernel::ELF, &machine, &[], &mut NoHost)?;
        match outcome.panic {
            Some(panic) => Err(Error::Panic(panic)),
            None => Ok(outcome),
        }
    }
}

/// The columns of the worked example in the general words of a kernel's results.
#[must_use]
pub fn steps(general: &[u64]) -> [example::Columns; example::STEPS] {
    std::array::from_fn(|step| {
        let words = &general[word::STEPS + step * example::Columns::WORDS..][..example::Columns::WORDS];
        example::Columns::decode(std::array::from_fn(|i| words[i]))
    })
}

/// The worked example as it was counted.
#[derive(Clone, Debug, Serialize)]
pub struct WorkedExample {
    /// `kvm` or `model`.
    pub backend: String,
    /// The tables of the VM.
    pub stage2: &'static str,
    /// What was counted at each step.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its name in SCHEMES.md.
    pub step: String,
    /// What has happened.
    pub what: &'static str,
    /// Leaves and pages of the guest's folio, by processes of the guest.
    pub gf: (u64, u64),
    /// By VMs of the guest.
    pub gf_nested: (u64, u64),
    /// Leaves and pages of the host's folio behind it, by processes.
    pub hf: (u64, u64),
    /// By VMs and their tenants.
    pub hf_vms: (u64, u64),
    /// Owners of that folio.
    pub owners: u64,
    /// Tuples of region and table: of the guest's folio in processes, of the host's in VMs.
    pub tuples: (u64, u64),
    /// Leaves of VMs that map the whole folio.
    pub entire: u64,
    /// Whether the guest's folio is huge at both levels.
    pub huge_both: bool,
}

/// Plays the worked example under every scheme at once, and counts.
///
/// # Errors
/// When the host lacks what it takes, or a count is not what it must be.
pub fn worked_example(backend: Backend, stage2: Stage2, ring: Ring) -> Result<WorkedExample, Error> {
    let counted = if backend == Backend::Model {
        if stage2.is_walked_by_cpu() {
            return Err(Error::Lacks(format!(
                "--stage2 {}: this process has no MMU that could walk it",
                stage2.name()
            )));
        }
        let frames = example::HOST_FRAMES;
        let machine = Machine::new(frames + Recount::scratch_frames(frames));
        let managed = [Pfn::new(0)..Pfn::new(frames)];
        let host: Manager<_, Classes<Everything>> =
            Manager::new(&machine, &managed, true, Policy::up_to(Order::HUGE)).expect("enough frames");
        let rows = Recount::new(Pfn::new(frames), Pfn::new(0), frames);
        example::run(&host, &rows, Stage2Format::LongMode, &mut Mmu)
            .map_err(|wrong| Error::Scenario(NAME, format!("goes otherwise: {wrong}")))?
    } else {
        let outcome = Exercise { job: Job::Example, stage2, scheme: Scheme::All, ring }.run()?;
        if outcome.status != Status::Pass {
            return Err(Error::Scenario(NAME, outcome.log.trim_end().replace('\n', "; ")));
        }
        steps(outcome.general())
    };
    let steps = counted.iter().zip(example::WHAT).enumerate().map(|(i, (columns, what))| Step {
        step: format!("n{i}"),
        what,
        gf: columns.gf,
        gf_nested: columns.gf_nested,
        hf: columns.hf,
        hf_vms: columns.hf_vms,
        owners: columns.owners,
        tuples: columns.tuples,
        entire: columns.entire,
        huge_both: columns.huge_both,
    });
    Ok(WorkedExample { backend: backend.to_string(), stage2: stage2.name(), steps: steps.collect() })
}

impl fmt::Display for WorkedExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "A guest's folio gf and the host's folio hf behind it, both of order 9, counted at both levels ({}, {} tables)\n\n\
             M leaves, T pages, K tuples of region and table; gf by the guest's processes and by its VMs, hf by the VMM and by VMs and their tenants\n",
            self.backend, self.stage2
        )?;
        writeln!(
            f,
            "{:<4} {:>10} {:>8} {:>8} {:>10} {:>7} {:>6} {:>6} {:>6}  what has happened",
            "", "gf M,T", "VMs M,T", "hf M,T", "VMs M,T", "owners", "K gf", "K hf", "huge"
        )?;
        let pair = |(leaves, pages)| format!("{leaves},{pages}");
        for step in &self.steps {
            writeln!(
                f,
                "{:<4} {:>10} {:>8} {:>8} {:>10} {:>7} {:>6} {:>6} {:>6}  {}",
                step.step,
                pair(step.gf),
                pair(step.gf_nested),
                pair(step.hf),
                pair(step.hf_vms),
                step.owners,
                step.tuples.0,
                step.tuples.1,
                if step.huge_both { "both" } else { "-" },
                step.what
            )?;
        }
        Ok(())
    }
}
