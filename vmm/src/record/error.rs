//! Why a recording failed.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a recording failed. Each prints as one line.
#[derive(Debug)]
pub enum RecordError {
    /// No command was given.
    NoCommand,
    /// The command is in no directory of `PATH`, or the path names no file.
    NotFound(String),
    /// The command cannot be executed.
    CannotExecute {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// This host does not let us sample page faults.
    PerfRefused {
        /// What the kernel said.
        error: io::Error,
        /// `kernel.perf_event_paranoid`, if it can be read.
        paranoid: Option<i32>,
    },
    /// This host does not let us trace system calls.
    PtraceRefused {
        /// What the kernel said.
        error: io::Error,
        /// `kernel.yama.ptrace_scope`, if there is one.
        scope: Option<i32>,
    },
    /// The program, or a child of it, runs code that a trace cannot describe.
    Unsupported {
        /// The process.
        pid: i32,
        /// What it does.
        what: &'static str,
    },
    /// The recording grew beyond what a trace may hold.
    TooLong {
        /// Events that a recording may have.
        limit: usize,
    },
    /// A system call that must not fail failed.
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The trace cannot be written.
    Output {
        /// Where to.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

impl RecordError {
    /// Whether the host lacks what was asked for (exit code 4), rather than the command or the output being wrong.
    #[must_use]
    pub const fn is_host_lack(&self) -> bool {
        matches!(self, Self::PerfRefused { .. } | Self::PtraceRefused { .. })
    }

    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { what, error }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommand => write!(f, "no command to record"),
            Self::NotFound(command) => write!(f, "command not found: {command}"),
            Self::CannotExecute { program, error } => write!(f, "cannot execute {}: {error}", program.display()),
            Self::PerfRefused { error, paranoid: Some(level) } if *level > 2 => write!(
                f,
                "this host does not let you sample page faults ({error}): kernel.perf_event_paranoid is {level}, \
                 set it to 1 with `sysctl kernel.perf_event_paranoid=1`"
            ),
            Self::PerfRefused { error, .. } => write!(
                f,
                "this host does not let you sample page faults ({error}): `sysctl kernel.perf_event_paranoid=1`, \
                 CAP_PERFMON, or a container that allows perf_event_open would help"
            ),
            Self::PtraceRefused { error, scope: Some(scope) } if *scope > 1 => write!(
                f,
                "this host does not let you trace system calls ({error}): kernel.yama.ptrace_scope is {scope}, \
                 set it to 1 with `sysctl kernel.yama.ptrace_scope=1`"
            ),
            Self::PtraceRefused { error, .. } => {
                write!(f, "this host does not let you trace system calls ({error}): ptrace must be allowed")
            }
            Self::Unsupported { pid, what } => write!(f, "process {pid} cannot be recorded: {what}"),
            Self::TooLong { limit } => {
                write!(f, "the recording has more than {limit} events: record a shorter run")
            }
            Self::System { what, error } => write!(f, "{what}: {error}"),
            Self::Output { path, error } => write!(f, "cannot write {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for RecordError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::CannotExecute { error, .. }
            | Self::PerfRefused { error, .. }
            | Self::PtraceRefused { error, .. }
            | Self::System { error, .. }
            | Self::Output { error, .. } => Some(error),
            _ => None,
        }
    }
}
