//! What this host offers and lacks, and how to get it.
//!
//! [`examine`] looks and returns findings; it prints nothing and changes nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;

use crate::cpuid::Guests;
use crate::kvm;

/// Whether the host has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is there.
    Has,
    /// It is not; Quire does without, or with less.
    Lacks,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// Whether it is there.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// How to get it, where it is missing.
    pub remedy: Option<String>,
}

/// What was found, in a fixed order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { what, state, seen, remedy } in &self.findings {
            let mark = match state {
                State::Has => "ok",
                State::Lacks => "--",
            };
            writeln!(f, "{mark}  {what:<24} {seen}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "    {:<24} -> {remedy}", "")?;
            }
        }
        Ok(())
    }
}

/// Capabilities that Quire uses when they are there, by the number in `linux/kvm.h`.
const CAPABILITIES: &[(&str, u64)] = &[
    ("readonly-mem", 81),
    ("get-tsc-khz", 61),
    ("manual-dirty-log-protect", 168),
    ("dirty-ring", 192),
    ("stats-fd", 203),
    ("memory-fault-info", 232),
    ("guest-memfd", 234),
    ("pre-fault-memory", 236),
];

/// Looks at the host.
#[must_use]
pub fn examine() -> Report {
    let mut findings = Vec::new();
    match kvm::open() {
        Ok(kvm) => {
            findings.push(has("/dev/kvm", "API version 12"));
            findings.push(module());
            findings.extend(capabilities(&kvm));
            findings.push(guests(&kvm));
        }
        Err(error) => {
            let text = error.to_string();
            let (seen, remedy) = text.split_once(": ").unwrap_or((&text, "see the host's documentation of KVM"));
            findings.push(lacks("/dev/kvm", seen, remedy));
        }
    }
    findings.push(virtualization());
    findings.push(switch(
        "transparent huge pages",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    ));
    findings.push(switch(
        "huge pages in memfd",
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
    ));
    findings.push(multi_size());
    findings.push(pool("hugetlb pool, 2 MiB", "hugepages-2048kB"));
    findings.push(pool("hugetlb pool, 1 GiB", "hugepages-1048576kB"));
    findings.push(userfaultfd());
    findings.push(perf());
    findings.push(program("qemu-system-x86_64", "apt-get install qemu-system-x86"));
    findings.push(program("bochs", "apt-get install bochs bochs-term"));
    Report { findings }
}

/// What a result must say of the host it comes from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Host {
    /// The module behind `/dev/kvm`, where it can be told: `kvm_pvm` emulates ring 0 and shadows page tables.
    pub kvm_module: Option<String>,
    /// Whether the CPU has VMX.
    pub vmx: bool,
    /// Whether the CPU has SVM.
    pub svm: bool,
    /// The CPU.
    pub cpu: Option<String>,
    /// How many of them this process may use.
    pub cpus: usize,
    /// The kernel's release.
    pub linux: Option<String>,
}

impl Host {
    /// This host.
    #[must_use]
    pub fn here() -> Self {
        let model = |text: String| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            line.split_once(": ").map(|(_, name)| name.to_owned())
        };
        Self {
            kvm_module: kvm_modules().first().map(|name| (*name).to_owned()),
            vmx: cpu_has("vmx"),
            svm: cpu_has("svm"),
            cpu: read("/proc/cpuinfo").and_then(model),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            linux: read("/proc/sys/kernel/osrelease"),
        }
    }
}

/// `name` on the path.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The modules that stand behind `/dev/kvm`: `kvm_intel`, `kvm_amd`, `kvm_pvm`; empty when they cannot be told.
#[must_use]
pub fn kvm_modules() -> Vec<&'static str> {
    let loaded = |name: &&str| Path::new("/sys/module").join(name).is_dir();
    ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter().filter(loaded).collect()
}

/// Whether the CPU has the feature that `/proc/cpuinfo` calls `flag`.
#[must_use]
pub fn cpu_has(flag: &str) -> bool {
    read("/proc/cpuinfo").is_some_and(|text| {
        text.lines().find(|line| line.starts_with("flags")).is_some_and(|line| line.split(' ').any(|word| word == flag))
    })
}

fn has(what: &'static str, seen: impl Into<String>) -> Finding {
    Finding { what, state: State::Has, seen: seen.into(), remedy: None }
}

fn lacks(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what, state: State::Lacks, seen: seen.into(), remedy: Some(remedy.into()) }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn module() -> Finding {
    match kvm_modules().as_slice() {
        [] => has("kvm module", "built in, or not to be seen from here"),
        modules => has("kvm module", modules.join(", ")),
    }
}

fn capabilities(kvm: &Kvm) -> Vec<Finding> {
    let (there, missing): (Vec<_>, Vec<_>) =
        CAPABILITIES.iter().partition(|(_, number)| kvm.check_extension_raw(*number) > 0);
    let names = |list: &[&(&str, u64)]| list.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let mut findings = vec![has("kvm capabilities", names(&there))];
    if !missing.is_empty() {
        findings.push(lacks(
            "kvm capabilities",
            format!("not {}", names(&missing)),
            "a newer kernel, or another kvm module",
        ));
    }
    findings
}

/// Whether tenant VMs of ours can run on real EPT or NPT: KVM must hand VMX or SVM on.
fn guests(kvm: &Kvm) -> Finding {
    const WHAT: &str = "VMX or SVM for guests";
    match Guests::offered(kvm) {
        Ok(Some(guests)) => has(WHAT, guests.name()),
        Ok(None) if kvm_modules().contains(&"kvm_pvm") => lacks(
            WHAT,
            "kvm_pvm has neither",
            "a host with kvm_intel or kvm_amd: bare metal, or an instance with nested virtualization",
        ),
        Ok(None) => lacks(
            WHAT,
            "KVM hands on neither",
            "reload the module: modprobe -r kvm_intel; modprobe kvm_intel nested=1 (or kvm_amd)",
        ),
        Err(error) => lacks(WHAT, error.to_string(), "another kvm module"),
    }
}

fn virtualization() -> Finding {
    const WHAT: &str = "VMX or SVM";
    match (cpu_has("vmx"), cpu_has("svm")) {
        (true, _) => has(WHAT, "vmx"),
        (_, true) => has(WHAT, "svm"),
        _ => lacks(
            WHAT,
            "neither: real EPT and NPT run in emulators only",
            "enable virtualization in the firmware, or nesting in the outer hypervisor",
        ),
    }
}

/// A setting of the form `always [madvise] never`.
fn switch(what: &'static str, path: &str, remedy: &str) -> Finding {
    match read(path) {
        None => lacks(what, "this kernel has none", "a kernel with CONFIG_TRANSPARENT_HUGEPAGE"),
        Some(text) if chosen(&text) == "never" => lacks(what, text, remedy),
        Some(text) => has(what, text),
    }
}

/// The word in brackets.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(word, _)| word)
}

fn multi_size() -> Finding {
    const WHAT: &str = "multi-size huge pages";
    let folder = Path::new("/sys/kernel/mm/transparent_hugepage");
    let mut sizes: Vec<(u64, String)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let policy = read(folder.join(&name).join("enabled"))?;
            (chosen(&policy) != "never").then(|| (size, format!("{size}kB {}", chosen(&policy))))
        })
        .collect();
    sizes.sort();
    if sizes.is_empty() {
        let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled (Linux 6.8 and later)";
        return lacks(WHAT, "none enabled", remedy);
    }
    has(WHAT, sizes.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", "))
}

fn pool(what: &'static str, folder: &str) -> Finding {
    let file = |name: &str| read(Path::new("/sys/kernel/mm/hugepages").join(folder).join(name));
    match (file("nr_hugepages"), file("free_hugepages")) {
        (Some(all), Some(free)) if all != "0" => has(what, format!("{free} of {all} free")),
        (Some(_), _) => lacks(
            what,
            "empty",
            format!("echo 64 > /sys/kernel/mm/hugepages/{folder}/nr_hugepages (1 GiB pages: at boot)"),
        ),
        _ => lacks(what, "this kernel or CPU has none", "a kernel with CONFIG_HUGETLBFS, a CPU with the page size"),
    }
}

fn userfaultfd() -> Finding {
    const WHAT: &str = "userfaultfd";
    if fs::File::options().read(true).write(true).open("/dev/userfaultfd").is_ok() {
        return has(WHAT, "/dev/userfaultfd opens");
    }
    match read("/proc/sys/vm/unprivileged_userfaultfd") {
        None => lacks(WHAT, "this kernel has none", "a kernel with CONFIG_USERFAULTFD"),
        Some(value) if value == "1" => has(WHAT, "open to all"),
        Some(_) => {
            lacks(WHAT, "for root and user-mode faults only", "sysctl vm.unprivileged_userfaultfd=1, or run as root")
        }
    }
}

fn perf() -> Finding {
    const WHAT: &str = "perf_event_paranoid";
    match read("/proc/sys/kernel/perf_event_paranoid") {
        None => lacks(WHAT, "no perf events", "a kernel with CONFIG_PERF_EVENTS"),
        Some(value) if value.parse().is_ok_and(|level: i32| level <= 1) => has(WHAT, value),
        Some(value) => lacks(WHAT, value, "sysctl kernel.perf_event_paranoid=1"),
    }
}

fn program(name: &'static str, remedy: &str) -> Finding {
    match find_program(name) {
        Some(path) => has(name, path.display().to_string()),
        None => lacks(name, "not on the path", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_missing_comes_with_a_remedy() {
        for finding in examine().findings {
            assert_eq!(finding.state == State::Lacks, finding.remedy.is_some(), "{finding:?}");
            assert_eq!(finding.seen.lines().count(), 1, "{finding:?}");
        }
    }

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen(""), "");
    }
}
