//! What came of a replay: for people as text, for programs as JSON.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use quire::abi::nest::word as vm;
use quire::abi::replay::{SAMPLE_CLEARED, SAMPLE_PAGES, audit_of, event_word, metadata_of, word};
use quire::abi::sample::{FLOOR, STAGE2, Sample};
use quire::mapcount::Scheme;
use quire::space::FaultKind;
use quire::trace::{Event, look};
use serde::Serialize;

use crate::doctor::Host;
use crate::memory_stats::MemoryStats;
use crate::replay::{Backend, Config, Measured, Stage2};
use crate::workload::Workload;

/// Latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99 of 100 are at most this.
    pub p99_ns: u64,
    /// 999 of 1000 are at most this.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Latency {
    /// The latencies of `samples`.
    pub(crate) fn of(samples: impl Iterator<Item = u64>) -> Self {
        // Three digits are far below the noise; the range grows by itself.
        let Ok(mut histogram) = Histogram::<u64>::new(3) else { return Self::default() };
        histogram.auto(true);
        for nanoseconds in samples {
            // Cannot fail: the histogram grows with what it records.
            let _ = histogram.record(nanoseconds);
        }
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        }
    }
}

/// Pages that a fault mapped. Where they are more than a sample can hold, a folio was mapped whole.
fn pages_of(sample: &Sample) -> u64 {
    match sample.spare & SAMPLE_PAGES {
        SAMPLE_PAGES => sample.order.pages(),
        pages => pages.into(),
    }
}

/// Faults of one kind and folio order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultRow {
    /// What the fault was.
    pub kind: &'static str,
    /// Order of the folio.
    pub order: u8,
    /// Whether its frames had to be cleared first; `false` for frames known to be zero, or not to be cleared.
    pub cleared: bool,
    /// Pages mapped, on average.
    pub pages: f64,
    /// From before the access until after it.
    #[serde(flatten)]
    pub latency: Latency,
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EventRow {
    /// Per operation.
    #[serde(flatten)]
    pub latency: Latency,
    /// Pages they were about, in all.
    pub pages: u64,
    /// Nanoseconds for each of these.
    pub ns_per_page: f64,
}

/// Bytes that the manager spends on knowing what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Metadata {
    /// Look-up, descriptors and per-page counts, for each frame managed.
    pub bytes_per_frame: f64,
    /// The same, for each folio mapped.
    pub bytes_per_folio: f64,
    /// Folios mapped.
    pub folios: u64,
    /// Of these, of order 1 and above.
    pub large_folios: u64,
    /// Frames managed.
    pub frames: u64,
    /// Bytes of vmas.
    pub vma_bytes: u64,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Recounts of all leaves.
    pub recounts: u64,
    /// Comparisons of counts and answers with what the recounts found.
    pub checks: u64,
    /// Comparisons that failed.
    pub mismatches: u64,
    /// Folios that the scheme called exclusive though two owners mapped them.
    pub false_exclusive: u64,
    /// Translations compared with two walks outside the guest.
    pub walked: u64,
    /// Access operations of which every word read was compared.
    pub contents: u64,
    /// Whether all memory was free and every count zero at the end.
    pub clean: bool,
}

/// What the scheme knew at the checkpoint with the most leaves, beside what was so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Known {
    /// Folios mapped.
    pub folios: u64,
    /// Leaves.
    pub leaves: u64,
    /// Pages mapped, each counted once.
    pub mapped_pages: u64,
    /// What the scheme's statistics say of them; `None` when it does not say.
    pub said_mapped_pages: Option<u64>,
    /// Folios that two owners map.
    pub shared: u64,
    /// Folios that the scheme takes for shared; `None` when it takes a walk to tell.
    pub said_shared: Option<u64>,
    /// Anonymous folios of which only some pages are mapped.
    pub partial: u64,
    /// Those of them that the scheme knows.
    pub said_partial: u64,
}

/// What KVM and this process saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Kvm {
    /// Exits to this process.
    pub exits: u64,
    /// Milliseconds from opening KVM until the guest was ready to run.
    pub setup_ms: f64,
    /// Milliseconds that the guest ran.
    pub guest_ms: f64,
    /// Milliseconds until everything was taken down.
    pub teardown_ms: f64,
    /// KVM's own statistics, those that are not zero.
    pub stats: BTreeMap<String, u64>,
}

/// A tenant VM, and level 0 below it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vm {
    /// `shadow`, `ept` or `npt`.
    pub engine: &'static str,
    /// Exits of the guest, or traps of a shadow engine.
    pub exits: u64,
    /// Faults of the guest's own, which the manager inside has served.
    pub guest_faults: u64,
    /// Nanoseconds of one on average, exits apart.
    pub guest_fault_ns: f64,
    /// Faults that level 0 has served: of stage 2, and under `shadow` of composed tables with those.
    pub stage2_faults: u64,
    /// Nanoseconds of one on average, exits apart.
    pub stage2_fault_ns: f64,
    /// Pages that one has mapped on average.
    pub pages_per_fault: f64,
    /// Faults of the VMM's own space among them; under `shadow` those of stage 2.
    pub below_faults: u64,
    /// Accesses that only level 0 had to serve, exit included.
    pub access: Latency,
    /// At the checkpoint with the most leaves: leaves of stage 2 of 4 KiB, 2 MiB and 1 GiB.
    pub leaves: [u64; 3],
    /// Leaves composed from the guest's tables there.
    pub composed_leaves: u64,
    /// Pages that the guest has mapped there.
    pub mapped_pages: u64,
    /// Of these, pages in leaves of 2 MiB or more at both levels.
    pub huge_pages: u64,
    /// Things that the VMM has done to its VM's memory.
    pub disturbances: u64,
    /// Recounts of all classes at level 0.
    pub recounts: u64,
    /// Comparisons in them.
    pub checks: u64,
    /// Comparisons that failed.
    pub mismatches: u64,
    /// Whether all memory of level 0 was free at the end.
    pub clean: bool,
}

impl Vm {
    fn new(engine: Stage2, measured: &Measured) -> Self {
        let w = &measured.words;
        let ns = |index: usize| w[index] as f64 * measured.tick_ns;
        let samples = measured.samples.iter().filter(|sample| sample.kind == STAGE2);
        Self {
            engine: engine.name(),
            exits: w[vm::EXITS],
            guest_faults: w[vm::GUEST_FAULTS],
            guest_fault_ns: ratio(ns(vm::GUEST_TICKS), w[vm::GUEST_FAULTS]),
            stage2_faults: w[vm::STAGE2_FAULTS],
            stage2_fault_ns: ratio(ns(vm::STAGE2_TICKS), w[vm::STAGE2_FAULTS]),
            pages_per_fault: ratio(w[vm::STAGE2_PAGES] as f64, w[vm::STAGE2_FAULTS]),
            below_faults: w[vm::HOST_FAULTS],
            access: Latency::of(samples.map(|sample| (f64::from(sample.ticks) * measured.tick_ns) as u64)),
            leaves: [w[vm::LEAVES], w[vm::LEAVES + 1], w[vm::LEAVES + 2]],
            composed_leaves: w[vm::COMPOSED],
            mapped_pages: w[vm::MAPPED],
            huge_pages: w[vm::HUGE],
            disturbances: w[vm::DISTURBANCES],
            recounts: w[vm::RECOUNTS],
            checks: w[vm::CHECKS],
            mismatches: w[vm::MISMATCHES],
            clean: w[vm::CLEAN] == 1,
        }
    }
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  in a tenant VM on `{}` tables, {} exits", self.engine, self.exits)?;
        let faults = |f: &mut fmt::Formatter<'_>, name: &str, count: u64, ns: f64, rest: &str| {
            writeln!(f, "    {name:<25} {count:>8}  {} each, exits apart{rest}", Time(ns))
        };
        faults(f, "faults of the guest", self.guest_faults, self.guest_fault_ns, "")?;
        let pages = format!("; {:.1} pages each", self.pages_per_fault);
        faults(f, "faults of level 0", self.stage2_faults, self.stage2_fault_ns, &pages)?;
        if self.access.count > 0 {
            row(f, "  accesses that only level 0 served", &self.access, "")?;
        }
        let [small, large, largest] = self.leaves;
        writeln!(
            f,
            "    leaves of stage 2         {small:>8}  of 4 KiB, {large} of 2 MiB, {largest} of 1 GiB; {} composed",
            self.composed_leaves
        )?;
        writeln!(
            f,
            "    huge at both levels       {:>8}  of {} pages that the guest has mapped",
            self.huge_pages, self.mapped_pages
        )?;
        if self.disturbances > 0 {
            writeln!(
                f,
                "    the VMM meanwhile         {:>8}  times logged, copied, moved or harvested its memory",
                self.disturbances
            )?;
        }
        writeln!(
            f,
            "    level 0 checked: {} recounts of all classes with {} comparisons, {} wrong; {}",
            self.recounts,
            self.checks,
            self.mismatches,
            if self.clean { "all its memory free at the end" } else { "its memory was not free at the end" }
        )
    }
}

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub quire: &'static str,
    /// `kvm` or `model`.
    pub backend: String,
    /// The ring of the manager, in a VM.
    pub ring: Option<u64>,
    /// Why that ring: nanoseconds of a fixed loop at ring 0 and 3.
    pub ring_loop_ns: Option<(f64, f64)>,
    /// What the host offers.
    pub host: Host,
    /// The trace.
    pub trace: String,
    /// What it says it is.
    pub title: Option<String>,
    /// The scheme.
    pub scheme: &'static str,
    /// Bytes of frames.
    pub memory: u64,
    /// The most of them in use after an operation.
    pub peak_memory: u64,
    /// Operations done.
    pub ops: u64,
    /// Operations in the trace.
    pub trace_ops: u64,
    /// Whether everything was right.
    pub passed: bool,
    /// All faults.
    pub fault: Latency,
    /// Faults by kind, order, and whether frames were cleared.
    pub faults: Vec<FaultRow>,
    /// Faults whose handler only stores a prepared entry, in the same run.
    pub floor: Latency,
    /// Median first touch of order 0 over the floor's median.
    pub fault_to_floor: Option<f64>,
    /// Nanoseconds for each page touched, faults included.
    pub ns_per_page_touched: f64,
    /// Forks.
    pub fork: EventRow,
    /// Ends of address spaces.
    pub teardown: EventRow,
    /// munmap.
    pub unmap: EventRow,
    /// mprotect.
    pub protect: EventRow,
    /// mremap.
    pub remap: EventRow,
    /// madvise.
    pub advise: EventRow,
    /// Changes from one tenant to another.
    pub switches: u64,
    /// Nanoseconds of one, on average.
    pub switch_ns: f64,
    /// Nanoseconds spent on clearing frames.
    pub clearing_ns: f64,
    /// Frames cleared, taken as known to be zero, copied.
    pub frames_cleared: u64,
    /// See `frames_cleared`.
    pub frames_known_zero: u64,
    /// See `frames_cleared`.
    pub frames_copied: u64,
    /// Metadata.
    pub metadata: Metadata,
    /// What the scheme knew.
    pub known: Known,
    /// What the tenants had mapped at the checkpoint with the most leaves.
    pub stats: Option<MemoryStats>,
    /// What was compared.
    pub audit: Audit,
    /// The tenant VM that the replay ran in, if it did: everything else here is about the manager inside.
    pub stage2: Option<Vm>,
    /// What KVM saw, in a VM.
    pub kvm: Option<Kvm>,
    /// What a sample of nothing would show, in nanoseconds. It is in every latency.
    pub bracket_ns: f64,
    /// Samples that found no room.
    pub samples_lost: u64,
    /// What the manager said, when something was wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log: String,
}

pub(crate) const KINDS: [(FaultKind, &str); 6] = [
    (FaultKind::FirstTouch, "first touch"),
    (FaultKind::Copy, "copy-on-write"),
    (FaultKind::Reuse, "reuse"),
    (FaultKind::Refault, "refault"),
    (FaultKind::Device, "device"),
    (FaultKind::Spurious, "spurious"),
];

impl Report {
    /// The report on `measured`.
    #[must_use]
    pub fn new(workload: &Workload, config: &Config, measured: &Measured, host: Host) -> Self {
        let w = &measured.words;
        let ns = |ticks: u64| (ticks as f64 * measured.tick_ns) as u64;
        let is_fault = |sample: &&Sample| KINDS.iter().any(|(kind, _)| *kind as u8 == sample.kind);
        let latency = |wanted: &dyn Fn(&&Sample) -> bool| {
            Latency::of(measured.samples.iter().filter(wanted).map(|sample| ns(sample.ticks.into())))
        };
        let event = |event: Event| {
            let at = event_word(event);
            let (pages, ticks) = (w[at + 1], w[at + 2]);
            EventRow {
                latency: latency(&|sample| sample.kind == event as u8),
                pages,
                ns_per_page: ratio(ticks as f64 * measured.tick_ns, pages),
            }
        };
        let faults = fault_rows(measured);
        let floor = latency(&|sample| sample.kind == FLOOR);
        let base = faults.iter().find(|row| row.kind == "first touch" && row.order == 0 && !row.cleared);
        let found = audit_of(&w[word::KNOWN..]);
        let metadata = metadata_of(&w[word::METADATA..]);
        let bytes = metadata.carved_bytes + metadata.slot_bytes + metadata.folio_bytes;
        let says_pages = !matches!(config.scheme, Scheme::None | Scheme::ZeroOneTwoMany);
        Self {
            quire: env!("CARGO_PKG_VERSION"),
            backend: measured.backend.to_string(),
            ring: measured.ring,
            ring_loop_ns: measured.loops_ns,
            host,
            trace: workload.name.clone(),
            title: workload.title.clone(),
            scheme: config.scheme.name(),
            memory: measured.memory,
            peak_memory: w[word::PEAK_FRAMES] << 12,
            ops: w[word::OPS],
            trace_ops: workload.encoded.len() as u64,
            passed: measured.passed,
            fault: latency(&is_fault),
            fault_to_floor: base.filter(|_| floor.count > 0).map(|row| row.latency.p50_ns as f64 / floor.p50_ns as f64),
            faults,
            floor,
            ns_per_page_touched: ratio(w[word::TOUCH_TICKS] as f64 * measured.tick_ns, w[word::TOUCH_PAGES]),
            fork: event(Event::Fork),
            teardown: event(Event::Teardown),
            unmap: event(Event::Unmap),
            protect: event(Event::Protect),
            remap: event(Event::Remap),
            advise: event(Event::Advise),
            switches: w[word::SWITCHES],
            switch_ns: ratio(w[word::SWITCH_TICKS] as f64 * measured.tick_ns, w[word::SWITCHES]),
            clearing_ns: (w[word::CLEAR_TICKS] - w[word::OTHER_CLEAR_TICKS]) as f64 * measured.tick_ns,
            frames_cleared: w[word::CLEARED],
            frames_known_zero: w[word::KNOWN_ZERO],
            frames_copied: w[word::COPIED],
            metadata: Metadata {
                bytes_per_frame: ratio(bytes as f64, metadata.frames),
                bytes_per_folio: ratio(bytes as f64, found.folios),
                folios: found.folios,
                large_folios: metadata.large_folios,
                frames: metadata.frames,
                vma_bytes: metadata.vma_bytes,
            },
            known: Known {
                folios: found.folios,
                leaves: found.leaves,
                mapped_pages: found.distinct_pages,
                said_mapped_pages: says_pages.then_some(found.said_pages),
                shared: found.shared,
                said_shared: (found.unknown_shared == 0).then_some(found.said_shared),
                partial: found.partial,
                said_partial: found.said_partial,
            },
            stats: MemoryStats::new(&measured.memory_stats),
            audit: Audit {
                recounts: w[word::AUDITS],
                checks: w[word::CHECKS],
                mismatches: w[word::MISMATCHES],
                false_exclusive: w[word::FALSE_EXCLUSIVE],
                walked: w[word::WALKED],
                contents: w[word::VERIFIED],
                clean: w[word::CLEAN] == 1,
            },
            stage2: (config.stage2 != Stage2::None).then(|| Vm::new(config.stage2, measured)),
            kvm: measured.timings.map(|timings| Kvm {
                exits: measured.exits,
                setup_ms: (timings.open + timings.memory + timings.vm + timings.vcpu + timings.load).as_secs_f64()
                    * 1e3,
                guest_ms: timings.guest.as_secs_f64() * 1e3,
                teardown_ms: timings.teardown.as_secs_f64() * 1e3,
                stats: measured
                    .stats
                    .iter()
                    .filter(|stat| stat.value > 0)
                    .map(|stat| (stat.name.clone(), stat.value))
                    .collect(),
            }),
            bracket_ns: measured.bracket_ns,
            samples_lost: measured.samples_lost,
            log: if measured.passed { String::new() } else { measured.log.clone() },
        }
    }

    /// Why the replay did not pass, in one line: with the way out where frames ran out.
    #[must_use]
    pub fn failure(&self, workload: &Workload, measured: &Measured) -> String {
        if measured.words[word::OUT_OF_FRAMES] == 1 {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return format!(
                "the trace needs about {} MiB of frames, --mem gives {} (operation {} found none)",
                mib(workload.least_memory()),
                mib(measured.memory),
                measured.words[word::FAILED_OP].saturating_sub(1)
            );
        }
        // What the trace looked at before is no reason.
        let said = measured.log.lines().map(|line| line.trim_start_matches("quire: "));
        said.filter(|line| !look::is_line(line)).collect::<Vec<_>>().join("; ")
    }
}

fn ratio(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

fn fault_rows(measured: &Measured) -> Vec<FaultRow> {
    let mut rows = Vec::new();
    for (kind, name) in KINDS {
        for order in 0..=18 {
            for cleared in [false, true] {
                let chosen = || {
                    measured.samples.iter().filter(move |sample| {
                        sample.kind == kind as u8
                            && sample.order.get() == order
                            && (sample.spare & SAMPLE_CLEARED != 0) == cleared
                    })
                };
                let latency = Latency::of(chosen().map(|sample| (f64::from(sample.ticks) * measured.tick_ns) as u64));
                if latency.count > 0 {
                    let pages: u64 = chosen().map(pages_of).sum();
                    rows.push(FaultRow {
                        kind: name,
                        order,
                        cleared,
                        pages: ratio(pages as f64, latency.count),
                        latency,
                    });
                }
            }
        }
    }
    rows
}

/// Nanoseconds with a unit that fits.
pub(crate) struct Time(pub f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            ns if ns < 1e3 => format!("{ns:.0} ns"),
            ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
            ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
            ns => format!("{:.1} s", ns / 1e9),
        };
        f.pad(&text)
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, latency: &Latency, rest: &str) -> fmt::Result {
    let [p50, p99, p999, max] =
        [latency.p50_ns, latency.p99_ns, latency.p999_ns, latency.max_ns].map(|ns| Time(ns as f64));
    writeln!(f, "  {name:<34} {:>8} {p50:>10} {p99:>10} {p999:>10} {max:>10}  {rest}", latency.count)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = self.title.as_deref().map(|title| format!(" ({title})")).unwrap_or_default();
        writeln!(f, "{}{title}", self.trace)?;
        write!(f, "{} operations under `{}`", self.ops, self.scheme)?;
        match (self.ring, self.ring_loop_ns) {
            (Some(ring), Some((zero, three))) => {
                writeln!(
                    f,
                    ", manager at ring {ring} of a VM (a fixed loop takes {} at ring 0, {} at ring 3)",
                    Time(zero),
                    Time(three)
                )?;
            }
            _ => writeln!(
                f,
                ", manager in this process over emulated frames: no trap, no MMU, so these are not times of a machine"
            )?,
        }
        if self.host.kvm_module.as_deref() == Some("kvm_pvm") && self.backend == Backend::Kvm.to_string() {
            writeln!(
                f,
                "this KVM is KVM-PVM: it shadows page tables and emulates ring 0, so a fault costs tens of times what it does on VMX or SVM"
            )?;
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "{:.0} MiB of frames, at most {:.1} in use", mib(self.memory), mib(self.peak_memory))?;

        writeln!(f, "\n  {:<34} {:>8} {:>10} {:>10} {:>10} {:>10}", "latency", "count", "p50", "p99", "p99.9", "max")?;
        if self.floor.count > 0 {
            row(f, "floor: a handler that stores one entry", &self.floor, "")?;
        }
        row(f, "all faults", &self.fault, "")?;
        // Rare rows say little and hide the others; JSON has them all.
        let rare = self.fault.count / 100;
        for fault in self.faults.iter().filter(|fault| fault.latency.count > rare) {
            let cleared = if fault.cleared { ", cleared" } else { "" };
            let name = format!("  {}, order {}{cleared}", fault.kind, fault.order);
            row(f, &name, &fault.latency, &format!("{:.1} pages each", fault.pages))?;
        }
        let rest = self.faults.iter().filter(|fault| fault.latency.count <= rare);
        let (rows, faults) = rest.fold((0, 0), |(rows, faults), fault| (rows + 1, faults + fault.latency.count));
        if rows > 0 {
            writeln!(f, "    {faults} more in {rows} rows of at most {rare} each; --json lists them")?;
        }
        for (name, event) in [
            ("fork", &self.fork),
            ("teardown of a space", &self.teardown),
            ("munmap", &self.unmap),
            ("mprotect", &self.protect),
            ("mremap", &self.remap),
            ("madvise", &self.advise),
        ] {
            if event.latency.count > 0 {
                row(f, name, &event.latency, &format!("{} a page, {} pages", Time(event.ns_per_page), event.pages))?;
            }
        }
        if let Some(ratio) = self.fault_to_floor {
            writeln!(f, "  first touch at order 0 is {ratio:.2} times the floor")?;
        }
        writeln!(
            f,
            "  every latency contains {} of time stamps; a page touched costs {} on average, faults included",
            Time(self.bracket_ns),
            Time(self.ns_per_page_touched)
        )?;
        writeln!(
            f,
            "  {} switches between tenants, {} each; clearing frames took {} in all",
            self.switches,
            Time(self.switch_ns),
            Time(self.clearing_ns)
        )?;

        let k = &self.known;
        writeln!(f, "\n  what the mapcounts know, with {} leaves on {} folios", k.leaves, k.folios)?;
        let said = |said: Option<u64>| {
            said.map_or_else(|| "only a walk tells".to_owned(), |said| format!("`{}` says {said}", self.scheme))
        };
        writeln!(f, "    mapped pages              {:>8}  {}", k.mapped_pages, said(k.said_mapped_pages))?;
        writeln!(f, "    folios of two owners      {:>8}  {}", k.shared, said(k.said_shared))?;
        writeln!(f, "    folios partly mapped      {:>8}  {} of them known", k.partial, k.said_partial)?;
        let m = &self.metadata;
        writeln!(
            f,
            "    metadata                  {:.2} bytes a frame, {:.1} a folio",
            m.bytes_per_frame, m.bytes_per_folio
        )?;

        if let Some(vm) = &self.stage2 {
            vm.fmt(f)?;
        }
        let a = &self.audit;
        writeln!(
            f,
            "\n  checked: {} recounts with {} comparisons, {} wrong; {} translations walked from outside; {} accesses read back; {}",
            a.recounts,
            a.checks,
            a.mismatches,
            a.walked,
            a.contents,
            if a.clean { "all memory free at the end" } else { "memory was not free at the end" }
        )
    }
}
