//! The program's arguments and commands.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quire::abi::bench::{Operation, Shape};
use quire::addr::{Level, Order};
use quire::mapcount::Scheme;
use serde::Serialize;

use crate::bench;
use crate::compare::{compare, html};
use crate::doctor::{self, Host};
use crate::error::Error;
use crate::memory::{Backing, Populate};
use crate::record::{RecordOptions, record};
use crate::replay::{Backend, Config, Ring, Stage2, replay};
use crate::report::Report;
use crate::workload::Workload;
use crate::{flat, kernel, schemes};
use crate::{nested, output, progress};

const ABOUT: &str = "Maps memory in large folios on real page tables and counts who maps them";

const LONG_ABOUT: &str = "\
Quire boots a bare-metal page-table manager in a small VM and replays the memory operations of a real program on real \
page tables, in folios as large as they fit. It measures faults, fork and teardown, and says what the mapcounts know: is a \
folio mapped, shared, partly mapped, and at what cost. Every leaf is recounted on the way, and every word that a tenant \
reads is compared.

Without a command it does `quire run`.";

const EXIT_CODES: &str = "\
Exit codes: 0 fine, 1 the run found a wrong count or failed, 2 usage, 3 a bad input file, 4 this host lacks what was asked for.
Messages go to standard error; RUST_LOG=debug shows more of them.";

#[derive(Parser, Debug)]
#[command(name = "quire", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Boot the VM, replay a trace and print what was measured and checked
    Run(RunArgs),
    /// Ask every scheme everything on one replay, time each alone, and print what it knows and costs
    Compare(CompareArgs),
    /// Time every operation by itself in the VM, by folio order and scheme, beside the floor
    #[command(after_help = "\
Every operation is timed with the TSC inside the VM, in turns, each in VMs of their own; beside it, in the same run, stands the floor: the same operation with a handler that \
only loads and stores the entries it cannot do without. Times of fork, teardown, unmap and touch are for a page, the others for a folio. Faults come with frames to be \
cleared (the figure to quote), with frames known to be zero, and with fresh ones that the host has yet to give.

With --compare the exit code is 0 whatever the verdict; the file must come from --json. Of pairs of equal benchmarks at most one in twenty shows any difference.

nested (or stage2) is about VMs of our manager inside of this VM: stage-2 faults, whole nested faults through the MMU and where their time goes, the dirty log, clones, and the end of a VM with \
1 GiB mapped; under none and total beside each other, which is what the ledger costs. It has frames known to be zero, but fresh ones for the end of a VM; \
no other schemes; and is not part of all. With --stage2 ept or npt, which take a KVM \
that offers VMX or SVM to its guests, tables are in that format and nested faults are left out: processes in a VM are timed on composed tables alone.

Examples: quire bench fault --order 0,4,9 --scheme none,total; quire bench nested --order 0,4,9; quire bench all --json=now.json --html now.html; quire bench --compare before.json now.json")]
    Bench(BenchArgs),
    /// Record a Linux program's mappings and page faults as a trace
    #[command(after_help = "\
The program runs under ptrace with transparent huge pages off, so that the first touch of every 4 KiB page shows; its children, threads and \
the programs they exec are recorded too. Page faults come from perf events: as root, or with sysctl kernel.perf_event_paranoid=1 or lower \
(2 shows user-mode faults only). The kernel maps up to 64 KiB around a read fault on a file at once, so of such pages only the first shows. \
The program keeps its standard input and output; a summary goes to standard error.

Example: quire record -o build.trace -- gcc -O2 -c main.c")]
    Record(RecordArgs),
    /// Write the kernel's image, to boot it under another machine
    #[command(after_help = "\
An ELF file with a PVH note: `qemu-system-x86_64 -kernel quire.elf` boots it. --flat writes the same image as one run of bytes, \
to be loaded at physical 1 MiB and entered there in 32-bit protected mode; --trace appends a trace to it. Results leave as lines on port 0xe9, the last one `quire: RESULT PASS`.")]
    Kernel(KernelArgs),
    /// Say what each scheme keeps, which locked operations it takes and which questions it answers
    #[command(after_help = "\
Nothing of it is written down: every scheme is run in this process, its locked operations are counted and its answers asked for, so the tables \
cannot drift from the code. guest/SCHEMES.md says what each scheme is and where it comes from.")]
    Schemes(SchemesArgs),
    /// Run the worked scenarios of SCHEMES.md: every counter and answer, under every scheme
    #[command(after_help = "\
Each scenario is a short trace that is replayed on real page tables, all schemes observing. The tables of SCHEMES.md say the same; a scenario \
that this host cannot run in a VM, or whose shape some schemes refuse, says so.

`nested` is the worked example of nested levels: a VM with a manager in it, whose processes and VM share a folio; what is counted of it at both levels, step by step.

Examples: quire explain; quire explain S6c; quire explain S7b --backend model --json; quire explain nested")]
    Explain(ExplainArgs),
    /// Say what this host offers and lacks, and how to get it
    Doctor,
}

/// What a replay takes.
#[derive(Args, Debug, Default)]
struct ReplayArgs {
    /// The trace to replay; without it, one of a real program that comes with Quire
    trace: Option<PathBuf>,
    /// Where the manager runs: in a VM, or in this process over emulated frames (for hosts without /dev/kvm)
    #[arg(long, value_name = "auto|kvm|model", default_value = "auto")]
    backend: Backend,
    /// The manager's ring in the VM; auto times a loop at both and picks
    #[arg(long, value_name = "auto|0|3", default_value = "auto")]
    ring: Ring,
    /// Replay inside of a tenant VM with these tables: its own manager has the trace's processes, ours below has the VM. ept and npt want a KVM that offers
    /// VMX or SVM to its guests
    #[arg(long, value_enum, default_value = "none")]
    stage2: Stage2,
    /// With --stage2: have the VMM log, copy and move its VM's memory at each checkpoint, by this seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    disturb: u64,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: u32,
    /// Memory for the manager's frames, like 512M or 2G; without it, as much as the trace asks for
    #[arg(long, value_name = "SIZE", value_parser = size)]
    mem: Option<u64>,
    /// The largest folio order that faults on anonymous memory try, 0 to 18; 18 is mapped by leaves of 1 GiB where KVM has them
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u8).range(0..=18))]
    max_order: u8,
    /// Map folios of order 9 and above by 4 KiB leaves
    #[arg(long)]
    small_leaves: bool,
    /// The host's memory behind the VM's: anon, thp (MADV_HUGEPAGE), memfd
    #[arg(long, value_name = "KIND", default_value = "anon")]
    guest_memory: Backing,
    /// Have the host give all memory before the guest starts
    #[arg(long)]
    populate: bool,
    /// Seed of the words that tenants store
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Args, Debug, Default)]
struct RunArgs {
    #[command(flatten)]
    replay: ReplayArgs,
    #[arg(long, value_name = "NAME", default_value = "total", help = scheme_help())]
    scheme: Scheme,
    /// How often all leaves are recounted, the time at the end included
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoints: u64,
    /// Print what the tenants have mapped at the checkpoint with the most leaves, as smaps_rollup of each and meminfo; or smaps of every vma; or pagemap and
    /// kpagecount of every page. JSON has all anyway
    #[arg(long, value_name = "rollup|smaps|pagemap", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "rollup")]
    stats: Option<StatsText>,
    /// Print JSON instead of text, or write it to FILE beside the text
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    json: Option<Option<PathBuf>>,
}

#[derive(Args, Debug)]
struct SchemesArgs {
    /// Print JSON instead of text, or write it to FILE beside the text
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    json: Option<Option<PathBuf>>,
}

#[derive(Args, Debug)]
struct CompareArgs {
    #[command(flatten)]
    replay: ReplayArgs,
    /// How often every scheme is asked, the time at the end included
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoints: u64,
    /// Timing runs of each scheme, taken in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Leave the timing out: what is left is the same at every run
    #[arg(long, conflicts_with = "rounds")]
    only_answers: bool,
    /// Print JSON instead of text, or write it to FILE beside the text
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    json: Option<Option<PathBuf>>,
    /// Write a page with tables and plots to FILE as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct BenchArgs {
    /// What to time
    #[arg(value_enum, required_unless_present = "compare")]
    what: Vec<What>,
    /// The folio orders, 0 to 9; 9 comes by leaves of 4 KiB and of 2 MiB
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = bench::ORDERS, value_parser = clap::value_parser!(u8).range(0..=9))]
    order: Vec<u8>,
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help = bench_scheme_help())]
    scheme: Vec<String>,
    /// With nested: how the stage-2 tables of VMs are written and walked [default: shadow]
    #[arg(long, value_enum)]
    stage2: Option<Stage2>,
    /// With nested: the memory of the VM whose end is timed, like 256M; without it 1G, or less where the host has no room for its tables
    #[arg(long, value_name = "SIZE", value_parser = size)]
    vm_memory: Option<u64>,
    /// The manager's ring in the VM; auto times a loop at both and picks
    #[arg(long, value_name = "auto|0|3", default_value = "auto")]
    ring: Ring,
    /// The host's memory behind the VM's: anon, thp (MADV_HUGEPAGE), memfd
    #[arg(long, value_name = "KIND", default_value = "anon")]
    guest_memory: Backing,
    /// How often everything is measured; comparisons need at least 3
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    turns: u64,
    /// Samples of each operation on a folio, at least, over all turns
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    samples: u64,
    /// Launches of this program that `boot` times
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    launches: u64,
    /// Measure nothing: compare two files that --json wrote, the second against the first
    #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"], conflicts_with_all = ["what", "order", "scheme", "stage2", "vm_memory", "ring", "guest_memory", "turns", "samples", "launches", "html", "beside"])]
    compare: Option<Vec<PathBuf>>,
    /// Print JSON instead of text, or write it to FILE beside the text
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    json: Option<Option<PathBuf>>,
    /// Write a page with tables and plots to FILE as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Put the instructions beside Linux on the page, from FILE: what `quire-benches instructions --json` printed
    #[arg(long, value_name = "FILE", requires = "html")]
    beside: Option<PathBuf>,
    /// This is a launch that is timed, made at that time
    #[arg(long, hide = true, value_name = "US")]
    launched_at: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// First touch, and where its time goes
    Fault,
    /// Fork
    Fork,
    /// munmap of everything, and the end of an address space
    Teardown,
    /// Stores to shared pages that are copied, and to pages that are ours alone again
    Cow,
    /// One page of a folio dropped, or protected so that a 2 MiB leaf is split
    Split,
    /// Bytes of metadata
    Metadata,
    /// VMs inside of the VM: stage-2 and nested faults, dirty log, clone, teardown
    #[value(alias = "stage2")]
    Nested,
    /// From exec of this program to the guest's first instruction
    Boot,
    /// Everything but nested
    All,
}

impl What {
    /// The operations that it means.
    const fn operations(self) -> &'static [Operation] {
        match self {
            Self::Fault => &[Operation::Fault, Operation::Touch],
            Self::Fork => &[Operation::Fork],
            Self::Teardown => &[Operation::Unmap, Operation::Teardown],
            Self::Cow => &[Operation::Cow, Operation::Reuse],
            Self::Split => &[Operation::ZapOne, Operation::Split],
            Self::Nested => &Operation::OF_VMS,
            Self::Metadata | Self::Boot => &[],
            Self::All => &Operation::EACH,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatsText {
    /// A line for each tenant.
    Rollup,
    /// And one for each of its vmas.
    Smaps,
    /// And one for each run of pages of which pagemap and kpagecount say the same.
    Pagemap,
}

#[derive(Args, Debug)]
struct RecordArgs {
    /// The trace to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// What the trace is, for its readers
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// The largest folio order of the page cache of files that are mapped, 0 to 18
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=18))]
    file_order: Option<u8>,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
struct ExplainArgs {
    /// The scenario to show in full, like S6c, or `nested`; without it, all of them in short
    scenario: Option<String>,
    /// With `nested`: the tables of its VM. ept and npt want a KVM that offers VMX or SVM to its guests [default: shadow]
    #[arg(long, value_enum)]
    stage2: Option<Stage2>,
    /// Where the manager runs: in a VM, or in this process over emulated frames
    #[arg(long, value_name = "auto|kvm|model", default_value = "auto")]
    backend: Backend,
    /// The manager's ring in the VM
    #[arg(long, value_name = "auto|0|3", default_value = "auto")]
    ring: Ring,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct KernelArgs {
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// One run of bytes for physical 1 MiB, instead of ELF
    #[arg(long)]
    flat: bool,
    /// Append this trace to the flat image
    #[arg(long, value_name = "FILE", requires = "flat")]
    trace: Option<PathBuf>,
    /// The machine's memory, which a flat image must be told
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256M", requires = "flat")]
    mem: u64,
}

/// The program: what its arguments ask for, and the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).format_timestamp(None).init();
    let result = match cli.command {
        Some(Command::Run(args)) => run(&args),
        None => run(&RunArgs::parse_from_defaults()),
        Some(Command::Compare(args)) => compare_all(&args),
        Some(Command::Bench(args)) => benchmark(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Record(args)) => write_trace(&args),
        Some(Command::Kernel(args)) => write_kernel(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Schemes(args)) => {
            let schemes = schemes::examine();
            show(&schemes, &schemes.to_string(), args.json.as_ref()).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Explain(args)) => explain(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Doctor) => print(&doctor::examine().to_string()).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("quire: {error}");
        ExitCode::from(error.exit_code())
    })
}

impl RunArgs {
    /// What `quire run` without arguments means.
    fn parse_from_defaults() -> Self {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            run: RunArgs,
        }
        Defaults::parse_from(["quire"]).run
    }
}

impl ReplayArgs {
    fn config(&self) -> Result<Config, Error> {
        if self.vcpus != 1 {
            return Err(Error::Lacks(format!("--vcpus {}: the kernel runs one virtual CPU so far", self.vcpus)));
        }
        if self.disturb != 0 && self.stage2 == Stage2::None {
            return Err(Error::Usage(format!(
                "--disturb {}: there is no VM to disturb without --stage2",
                self.disturb
            )));
        }
        let order = Order::new(self.max_order);
        Ok(Config {
            backend: self.backend,
            ring: self.ring,
            memory: self.mem,
            guest_memory: self.guest_memory,
            populate: if self.populate { Populate::Before } else { Populate::Lazy },
            stage2: self.stage2,
            disturb: self.disturb,
            orders: (2 << order.get()) - 1,
            max_leaf: match order {
                _ if self.small_leaves => Level::ONE,
                Order::GIGANTIC => Level::THREE,
                _ => Level::TWO,
            },
            ..Config::default()
        })
    }

    /// The trace, and how to replay it here: with a backend that is there.
    fn prepare(&self) -> Result<(Workload, Config), Error> {
        let mut config = self.config()?;
        let workload = match &self.trace {
            Some(path) => Workload::read(path, self.seed)?,
            None => Workload::shipped(self.seed)?,
        };
        let (backend, why) = config.backend.resolve();
        if let Some(why) = why {
            eprintln!("quire: {why}; running in this process instead");
        }
        config.backend = backend;
        Ok((workload, config))
    }
}

/// Help of `--scheme`, from the schemes that there are.
fn scheme_help() -> String {
    let names: Vec<_> = Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All).map(Scheme::name).collect();
    format!(
        "The mapcount scheme: {}; or {}, for checking: every scheme observes beside the oracle",
        names.join(", "),
        Scheme::All
    )
}

fn run(args: &RunArgs) -> Result<ExitCode, Error> {
    check_outputs(args.json.as_ref(), None)?;
    let (workload, config) = args.replay.prepare()?;
    let pages = args.json.is_some() || args.stats == Some(StatsText::Pagemap);
    let config = Config { scheme: args.scheme, checkpoints: args.checkpoints, pages, ..config };
    let measured = progress::during(&format!("replaying {}", workload.name), || replay(&workload, &config))?;
    let report = Report::new(&workload, &config, &measured, Host::here());
    let text = match (args.stats, &report.stats) {
        (Some(how), Some(stats)) => {
            format!("{report}{}", stats.text(how != StatsText::Rollup, how == StatsText::Pagemap))
        }
        _ => report.to_string(),
    };
    show(&report, &text, args.json.as_ref())?;
    if measured.passed {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("quire: {}", report.failure(&workload, &measured));
    Ok(ExitCode::FAILURE)
}

fn compare_all(args: &CompareArgs) -> Result<ExitCode, Error> {
    check_outputs(args.json.as_ref(), args.html.as_ref())?;
    let (workload, config) = args.replay.prepare()?;
    let config = Config { checkpoints: args.checkpoints, ..config };
    let comparison = compare(&workload, &config, if args.only_answers { 0 } else { args.rounds })?;
    let shown = show(&comparison, &comparison.to_string(), args.json.as_ref());
    if let Some(file) = &args.html {
        write(file, html::page(&comparison).as_bytes())?;
    }
    shown.map(|()| ExitCode::SUCCESS)
}

/// Help of `--scheme` of the benchmark.
fn bench_scheme_help() -> String {
    let names: Vec<_> = Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All).map(Scheme::name).collect();
    format!("The mapcount schemes: {}; all for each of them [default: total; of VMs none,total]", names.join(", "))
}

/// The schemes that `names` are, each once, in the order of its first mention.
fn schemes_of(names: &[String]) -> Result<Vec<Scheme>, Error> {
    let mut schemes = Vec::new();
    for name in names {
        let wanted = match name.parse::<Scheme>() {
            Ok(Scheme::All) => Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All).collect(),
            Ok(scheme) => vec![scheme],
            Err(error) => return Err(Error::Usage(format!("--scheme {name}: {error}"))),
        };
        for scheme in wanted {
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
    }
    Ok(schemes)
}

impl BenchArgs {
    fn options(&self) -> Result<bench::Options, Error> {
        let has = |what: What| self.what.iter().any(|&wanted| wanted == what || wanted == What::All);
        let among = |operation: &Operation| self.what.iter().any(|what| what.operations().contains(operation));
        let mut schemes = schemes_of(&self.scheme)?;
        let vms = if self.what.contains(&What::Nested) {
            let schemes = if schemes.is_empty() { vec![Scheme::None, Scheme::Total] } else { schemes.clone() };
            Some(bench::Vms::new(schemes, self.stage2.unwrap_or(Stage2::Shadow), self.vm_memory)?)
        } else if self.stage2.is_some() || self.vm_memory.is_some() {
            return Err(Error::Usage("--stage2 and --vm-memory are for VMs, which only `nested` has".to_owned()));
        } else {
            None
        };
        if schemes.is_empty() {
            schemes.push(Scheme::Total);
        }
        let orders = self.order.iter().fold(0, |mask, order| mask | 1 << order);
        Ok(bench::Options {
            operations: Operation::EACH.into_iter().chain(Operation::OF_VMS).filter(among).collect(),
            layers: has(What::Fault) || has(What::Cow),
            metadata: has(What::Metadata),
            launches: if has(What::Boot) { self.launches } else { 0 },
            shapes: Shape::of_masks(orders, u64::MAX).collect(),
            schemes,
            vms,
            ring: self.ring,
            guest_memory: self.guest_memory,
            turns: self.turns,
            samples: self.samples,
        })
    }
}

fn benchmark(args: &BenchArgs) -> Result<(), Error> {
    if let Some(began) = args.launched_at {
        return print(&bench::launch::child(began)?);
    }
    check_outputs(args.json.as_ref(), args.html.as_ref())?;
    if let Some([first, second]) = args.compare.as_deref() {
        let comparison = bench::compare::compare(&bench::compare::read(first)?, &bench::compare::read(second)?);
        return show(&comparison, &comparison.to_string(), args.json.as_ref());
    }
    let beside = args.beside.as_deref().map(bench::beside::read).transpose()?;
    let found = bench::measure(&args.options()?)?;
    let shown = show(&found, &found.to_string(), args.json.as_ref());
    if let Some(file) = &args.html {
        write(file, bench::html::page(&found, beside.as_ref()).as_bytes())?;
    }
    shown
}

fn write_trace(args: &RecordArgs) -> Result<ExitCode, Error> {
    let defaults = RecordOptions::default();
    let options =
        RecordOptions { title: args.title.clone(), order: args.file_order.map_or(defaults.order, Order::new) };
    let summary = record(&args.command, &args.output, &options).map_err(Error::Record)?;
    let trace = summary.trace;
    eprintln!(
        "quire: {}: {} operations, {} pages accessed, {} processes, {} forks; {} of unknown direction, {} lost, {} dropped, {} ignored; {}",
        args.output.display(),
        trace.ops,
        trace.accesses,
        trace.procs,
        trace.forks,
        summary.unknown,
        summary.lost,
        summary.dropped,
        summary.ignored,
        summary.status,
    );
    Ok(ExitCode::SUCCESS)
}

/// Refuses files that cannot be written, before anything is measured for them.
fn check_outputs(json: Option<&Option<PathBuf>>, html: Option<&PathBuf>) -> Result<(), Error> {
    json.and_then(Option::as_ref)
        .into_iter()
        .chain(html)
        .try_for_each(|file| output::check(file).map_err(|error| cannot_write(file, error)))
}

/// Prints `report` as `text`, or as JSON; or writes the JSON to a file beside the text, which is printed even if that fails.
fn show(report: &impl Serialize, text: &str, json: Option<&Option<PathBuf>>) -> Result<(), Error> {
    let line = || serde_json::to_string(report).map(|json| json + "\n").map_err(|error| Error::Exit(error.to_string()));
    match json {
        None => print(text),
        Some(None) => print(&line()?),
        Some(Some(file)) => {
            print(text)?;
            write(file, line()?.as_bytes())
        }
    }
}

fn explain(args: &ExplainArgs) -> Result<(), Error> {
    let is_nested = args.scenario.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(nested::NAME));
    if args.stage2.is_some() && !is_nested {
        return Err(Error::Usage("--stage2 is for the VM that only `explain nested` has".to_owned()));
    }
    let scripts = if is_nested { Vec::new() } else { crate::explain::find(args.scenario.as_deref())? };
    let (backend, why) = args.backend.resolve();
    if let Some(why) = why {
        eprintln!("quire: {why}; running in this process instead");
    }
    if is_nested {
        let stage2 = args.stage2.unwrap_or(Stage2::Shadow);
        if stage2 == Stage2::None {
            return Err(Error::Usage(
                "the worked example of nested levels needs a --stage2: shadow, ept or npt".to_owned(),
            ));
        }
        let example = progress::during("playing nested", || nested::worked_example(backend, stage2, args.ring))?;
        return show(&example, &example.to_string(), args.json.then_some(&None));
    }
    let (mut all, mut text) = (Vec::new(), String::new());
    for (script, labels) in scripts {
        let what = format!("playing {}", script.name);
        let scenarios = progress::during(&what, || script.play(backend, args.ring))?;
        for scenario in scenarios.into_iter().filter(|scenario| labels.contains(&scenario.scenario)) {
            text += &if args.scenario.is_some() { scenario.to_string() } else { scenario.in_short() };
            all.push(scenario);
        }
    }
    show(&all, &text, args.json.then_some(&None))
}

fn write_kernel(args: &KernelArgs) -> Result<(), Error> {
    if !args.flat {
        return write(&args.output, kernel::ELF);
    }
    let mut bytes = flat::flatten(kernel::ELF)?;
    if let Some(trace) = &args.trace {
        let workload = Workload::read(trace, 1)?;
        bytes.extend(flat::orders(
            &crate::replay::boot_words(&workload, &Config::default(), args.mem),
            &workload.encoded,
        ));
    }
    write(&args.output, &bytes)
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(file, bytes).map_err(|error| cannot_write(file, error))
}

fn cannot_write(file: &Path, error: io::Error) -> Error {
    Error::Write { file: file.display().to_string(), error }
}

/// Prints to standard output. A reader that has gone away is no failure of ours.
fn print(text: &str) -> Result<(), Error> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { file: "standard output".to_owned(), error })
        }
        _ => Ok(()),
    }
}

/// Parses `64M`, `2G`, `1048576`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let not_a_number = "a size is a number with k, m or g behind it";
    if digits.is_empty() {
        return Err(not_a_number.to_owned());
    }
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        unit => return Err(format!("no unit is called {unit:?}: k, m, g")),
    };
    let number: u64 = digits.parse().map_err(|_| not_a_number.to_owned())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(|| "a size from 1 byte up".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Cli, schemes_of, size};
    use clap::CommandFactory;
    use quire::mapcount::Scheme;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_scheme_is_measured_once() {
        let of = |names: &[&str]| schemes_of(&names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let all = of(&["total", "all", "none"]);
        assert_eq!(all.len(), Scheme::EACH.len() - 1);
        assert_eq!(all[0], Scheme::Total);
        assert!(Scheme::EACH.iter().all(|scheme| all.contains(scheme) == (*scheme != Scheme::All)));
        assert_eq!(of(&["none", "total", "none"]), [Scheme::None, Scheme::Total]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "M", "-1M", "0", "1X", "99999999999G", "1.5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
