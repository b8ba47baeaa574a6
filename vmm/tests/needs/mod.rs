//! What a test needs of the host. Without it the test is skipped with a line that says why, unless the environment
//! variable `QUIRE_REQUIRE` lists the need (`kvm,perf,qemu,bochs`): then the test fails.

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
