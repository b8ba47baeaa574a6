//! What a test needs of the host. Without it the test is skipped with a line that says why, unless the environment
//! variable `QUIRE_REQUIRE` lists the need (`kvm,guests,perf,qemu,bochs,linux`): then the test fails.

use std::path::PathBuf;

/// Whether the test may go on: `what` is there, or `missing` says why not.
fn met(what: &str, missing: Option<String>) -> bool {
    let Some(why) = missing else { return true };
    let required = std::env::var("QUIRE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|need| need.trim() == what), "{what} is required: {why}");
    println!("skipped: {why}");
    false
}

/// `/dev/kvm`, fit for use.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn kvm() -> bool {
    met("kvm", quire_vmm::kvm::open().err().map(|error| error.to_string()))
}

/// A KVM whose guests can have guests.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn guests() -> bool {
    let offered = quire_vmm::kvm::open().and_then(|kvm| quire_vmm::cpuid::Guests::offered(&kvm));
    met(
        "guests",
        match offered {
            Ok(Some(_)) => None,
            Ok(None) => Some("KVM offers neither VMX nor SVM to guests".to_owned()),
            Err(error) => Some(error.to_string()),
        },
    )
}

/// Leave to trace programs and to sample their page faults.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn perf() -> bool {
    use quire_vmm::record::{RecordOptions, record_text};
    let attempt = record_text(&["true".into()], &RecordOptions::default());
    met("perf", attempt.err().filter(|error| error.is_host_lack()).map(|error| error.to_string()))
}

/// `qemu-system-x86_64` on the path.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn qemu() -> Option<PathBuf> {
    program("qemu", "qemu-system-x86_64")
}

/// `bochs` on the path.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn bochs() -> Option<PathBuf> {
    program("bochs", "bochs")
}

#[allow(dead_code, reason = "not every test file needs it")]
fn program(what: &str, name: &str) -> Option<PathBuf> {
    let found = quire_vmm::doctor::find_program(name);
    let missing = found.is_none().then(|| format!("{name} is not installed"));
    met(what, missing).then_some(found).flatten()
}

/// A Linux whose `/proc` tells of every page how often it is mapped, with huge pages where they are asked for and of no other size.
#[allow(dead_code, reason = "not every test file needs it")]
pub fn linux() -> bool {
    met("linux", linux_lacks())
}

fn linux_lacks() -> Option<String> {
    use std::fs;
    let selected = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.split(['[', ']']).nth(1).unwrap_or("nothing").to_owned()
    };
    for file in ["/proc/kpagecount", "/proc/kpageflags"] {
        if let Err(error) = fs::File::open(file) {
            return Some(format!("{file}: {error} (root may read it)"));
        }
    }
    let packed = std::process::Command::new("gzip").args(["-dc", "/proc/config.gz"]).output();
    let config = packed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !config.lines().any(|line| line == "CONFIG_PAGE_MAPCOUNT=y") {
        return Some("/proc/config.gz does not say CONFIG_PAGE_MAPCOUNT=y".to_owned());
    }
    let huge = "/sys/kernel/mm/transparent_hugepage";
    if !["madvise", "always"].contains(&selected(&format!("{huge}/enabled")).as_str()) {
        return Some(format!("{huge}/enabled is not madvise"));
    }
    let sizes = fs::read_dir(huge).into_iter().flatten().flatten().map(|entry| entry.path());
    for size in sizes.filter(|path| path.to_string_lossy().contains("/hugepages-")) {
        let (is_pmd, choice) = (size.ends_with("hugepages-2048kB"), selected(&format!("{}/enabled", size.display())));
        // The smallest size has no such file.
        if ["never", "nothing"].contains(&choice.as_str()) == is_pmd {
            return Some(format!("{}/enabled is {choice}", size.display()));
        }
    }
    None
}
