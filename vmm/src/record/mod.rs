//! Records the memory operations of a real program, and of all processes and threads it starts, as a trace.
//!
//! System calls come from ptrace, page faults from perf's software event, the order of both from `CLOCK_MONOTONIC`.
//! x86-64 Linux 5.13 or newer; see [`RecordError`] for what it takes. One step each:
//! `launch` starts the program stopped, `sampler` opens the events, `tracer` follows the program to its end,
//! `assemble` makes operations of what was seen, and this module writes them.
//!
//! # What a recording shows, and what it cannot
//!
//! - The program runs with `PR_SET_THP_DISABLE`, so each page of anonymous memory shows when it is first touched, and again
//!   when a store copies it. Touches that fault no more do not show.
//! - Reads of file pages fault in up to 16 neighbours that are in the page cache at once (fault-around), and those do not
//!   show. `echo 4096 > /sys/kernel/debug/fault_around_bytes` turns that off for the whole machine.
//! - Faults of the kernel on the program's behalf (a `read` into fresh memory) show, unless
//!   `kernel.perf_event_paranoid` is above 1 and we are not privileged; the trace then says `user faults only`. Pages that
//!   the kernel reaches without a fault (direct I/O, `mlock`) do not show, but `MAP_POPULATE`, `MADV_POPULATE_*` and the
//!   arguments of `exec` do.
//! - Whether a fault loaded or stored is read off the instruction. What stays unknown stands as a load, and is counted.
//! - `exec` brings the program's mappings from `/proc/PID/maps`, the stack included. The kernel's vvar and vdso pages are
//!   device mappings (all processes see the same frames); vsyscall is in the upper half and left out.
//! - Files become objects as long as they are ever mapped. Files in `/dev/shm`, memfds and System V segments become shared
//!   objects, and so does each `MAP_SHARED | MAP_ANONYMOUS` mapping.
//! - Mappings of huge pages are recorded like others. `MADV_FREE` is left out, as if the pages were never reclaimed.
//! - Calls that changed mappings in a way that no operation expresses (`remap_file_pages`, `MREMAP_DONTUNMAP`,
//!   `MADV_REMOVE`, `MADV_DONTFORK`, `MADV_WIPEONFORK`) are counted as ignored; what cannot be explained after one of
//!   them, or after a fault that was a program's mistake, is dropped and counted. What is left always replays.
//! - System calls take several times longer, set-user-id programs run without their privileges, 32-bit programs cannot be
//!   recorded, and the recording ends when the last process does, daemons included.

mod assemble;
mod calls;
mod clock;
mod direction;
mod error;
mod identity;
mod launch;
mod procfs;
mod ptrace;
mod ring;
mod runs;
mod sampler;
mod timeline;
mod tracee_memory;
mod tracer;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use quire::addr::{GVA_END, Order};
use quire::trace::check::{Checker, Summary};
use quire::trace::text::{End, Header, Line};

use self::launch::Launched;
use self::sampler::Sampler;
use crate::output;

pub use error::RecordError;

/// What lies below this address is the program's.
const USER_END: u64 = GVA_END;

/// How to record.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// What the trace is, for people.
    pub title: Option<String>,
    /// The largest folio in the page cache of each object.
    pub order: Order,
}

impl Default for RecordOptions {
    /// No title, and folios of 64 KiB, as common file systems use them.
    fn default() -> Self {
        Self { title: None, order: Order::new(4) }
    }
}

/// What a recording amounts to.
#[derive(Clone, Debug)]
pub struct RecordSummary {
    /// How the command ended.
    pub status: ExitStatus,
    /// What the trace holds.
    pub trace: Summary,
    /// Accesses whose direction could not be told; they stand as reads.
    pub unknown: u64,
    /// Page faults that perf had no room for.
    pub lost: u64,
    /// Accesses and calls left out because the trace could not explain them.
    pub dropped: u64,
    /// Calls that no operation expresses.
    pub ignored: u64,
    /// Whether faults of the kernel on the program's behalf were seen.
    pub sees_kernel: bool,
    /// Frames that a replay in single pages needs at its peak.
    pub peak_frames: u64,
    /// Bytes of the trace.
    pub bytes: u64,
}

/// Records `command` (a program and its arguments) to the file `output`. The program has our standard input and output.
///
/// Nothing is written before the last of its processes ended, and then all at once.
///
/// # Errors
/// [`RecordError`]. The program and its children are then gone. How the program itself ended is no error but in the summary.
pub fn record(command: &[OsString], output: &Path, options: &RecordOptions) -> Result<RecordSummary, RecordError> {
    let failed = |error| RecordError::Output { path: output.to_path_buf(), error };
    // An hour of recording must not end at a folder that does not exist.
    output::check(output).map_err(failed)?;
    let (text, summary) = record_text(command, options)?;
    write_whole(output, text.as_bytes()).map_err(failed)?;
    Ok(summary)
}

/// Records `command` and returns the trace.
///
/// # Errors
/// As [`record`].
pub fn record_text(command: &[OsString], options: &RecordOptions) -> Result<(String, RecordSummary), RecordError> {
    let program = launch::find(command.first().ok_or(RecordError::NoCommand)?)?;
    let mut launched = Launched::new(&program, command)?;
    let timeline = ptrace::seize(launched.pid)
        .map_err(|error| RecordError::PtraceRefused { error, scope: procfs::sysctl("kernel/yama/ptrace_scope") })
        .and_then(|()| Sampler::new(launched.pid))
        .and_then(|sampler| tracer::follow(launched.pid, sampler, || launched.go()));
    let timeline = match timeline {
        Ok(timeline) => timeline,
        Err(error) => {
            launched.abandon();
            return Err(error);
        }
    };
    if let Some(error) = launched.failure() {
        return Err(RecordError::CannotExecute { program, error });
    }
    let assembled = assemble::assemble(timeline.events, options.order);
    let mut checker = Checker::new();
    for op in &assembled.ops {
        // It went through this checker before.
        let _ = checker.op(op);
    }
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let kernel = if timeline.sees_kernel { "" } else { ", user faults only" };
    let header = Header {
        title: options.title.as_deref(),
        command: Some(&words.join(" ")),
        recorded_by: Some(&format!(
            "quire {} on Linux {}{kernel}",
            env!("CARGO_PKG_VERSION"),
            procfs::kernel_version()
        )),
        unknown_accesses: Some(assembled.unknown),
        lost: Some(timeline.lost),
        dropped: Some(assembled.dropped),
        ignored: Some(assembled.ignored),
    };
    let mut text = header.to_string();
    for op in &assembled.ops {
        let name = match op {
            quire::trace::Op::Object { object, .. } => assembled.names.get(*object as usize).map(String::as_str),
            _ => None,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", Line { op: *op, name });
    }
    let _ = writeln!(text, "{}", End(assembled.ops.len() as u64));
    let summary = RecordSummary {
        status: ExitStatus::from_raw(timeline.status),
        trace: checker.summary(),
        unknown: assembled.unknown,
        lost: timeline.lost,
        dropped: assembled.dropped,
        ignored: assembled.ignored,
        sees_kernel: timeline.sees_kernel,
        peak_frames: assembled.peak_frames,
        bytes: text.len() as u64,
    };
    Ok((text, summary))
}

/// Puts `bytes` at `output`, which is never seen half written if it is a file.
fn write_whole(output: &Path, bytes: &[u8]) -> io::Result<()> {
    if output.exists() && !output.is_file() {
        return fs::write(output, bytes);
    }
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let draft = output.with_file_name(name);
    let result = fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, output));
    if result.is_err() {
        // Best effort: the error to report is the first one.
        let _ = fs::remove_file(&draft);
    }
    result
}
