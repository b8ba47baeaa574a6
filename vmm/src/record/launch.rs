//! Finding the command, and starting it so that nothing it does goes unseen.
#![expect(unsafe_code, reason = "fork, prctl and execv are foreign functions")]

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::ptr;

use libc::{c_char, c_int};

use super::RecordError;

/// The program that the shell would run for `command`.
pub(super) fn find(command: &OsStr) -> Result<PathBuf, RecordError> {
    let not_found = || RecordError::NotFound(command.to_string_lossy().into_owned());
    if command.as_bytes().contains(&b'/') {
        let path = PathBuf::from(command);
        return if path.exists() { Ok(path) } else { Err(not_found()) };
    }
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    env::split_paths(&path).map(|folder| folder.join(command)).find(|file| is_executable(file)).ok_or_else(not_found)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A child that waits to become the command.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) pid: i32,
    go: File,
    failure: File,
}

impl Launched {
    /// Forks a child that runs `program` with `arguments` (its own name first) once [`go`](Self::go) is called.
    pub(super) fn new(program: &Path, arguments: &[OsString]) -> Result<Self, RecordError> {
        let bad = |_| RecordError::CannotExecute {
            program: program.to_path_buf(),
            error: io::Error::from(io::ErrorKind::InvalidInput),
        };
        let path = CString::new(program.as_os_str().as_bytes()).map_err(bad)?;
        let arguments = arguments.iter().map(|argument| CString::new(argument.as_bytes()));
        let arguments = arguments.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        // Everything the child needs exists before the fork: it must not allocate.
        let mut argv: Vec<*const c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        argv.push(ptr::null());

        let (wait, go) = pipe().map_err(RecordError::system("pipe"))?;
        let (failure, fail) = pipe().map_err(RecordError::system("pipe"))?;
        // SAFETY: the child calls only async-signal-safe functions, in `run_child`, and never returns from it.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(RecordError::System { what: "fork", error: io::Error::last_os_error() }),
            0 => {
                // SAFETY: this is the child; `path` and `argv` are null-terminated and live.
                unsafe { run_child(path.as_ptr(), argv.as_ptr(), wait.as_raw_fd(), go.as_raw_fd(), fail.as_raw_fd()) }
            }
            pid => Ok(Self { pid, go, failure }),
        }
    }

    /// Lets the child become the command.
    pub(super) fn go(&mut self) -> Result<(), RecordError> {
        self.go.write_all(&[1]).map_err(RecordError::system("start the command"))
    }

    /// Ends the child, if it is still there and ours to end: a recording that failed leaves nothing behind.
    pub(super) fn abandon(&self) {
        // SAFETY: neither touches memory of ours. The child is reaped by nobody else, so its pid is still its own, or, when
        // the tracer reaped it, gone; then both calls fail, which is fine.
        unsafe {
            if libc::waitpid(self.pid, ptr::null_mut(), libc::WNOHANG | libc::__WALL) == 0 {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, ptr::null_mut(), libc::__WALL);
            }
        }
    }

    /// Why the child could not become the command. Waits until it has or is gone.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        let mut errno = [0; 4];
        self.failure.read_exact(&mut errno).ok()?;
        Some(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno)))
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 stores two descriptors where its argument points.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are open, new and ours alone.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// Waits for the parent, then runs the program without transparent huge pages, whose faults would hide 511 of 512 touches.
///
/// # Safety
/// Only in a forked child, with `argv` a null-terminated array of C strings.
unsafe fn run_child(path: *const c_char, argv: *const *const c_char, wait: c_int, go: c_int, fail: c_int) -> ! {
    let mut byte = 0u8;
    // SAFETY: all of these are async-signal-safe, and the pointers are valid for the lengths given.
    unsafe {
        // Our own copy of the parent's end would keep the pipe open when the parent dies.
        libc::close(go);
        if libc::read(wait, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(127);
        }
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        // Rust programs ignore SIGPIPE; the command must not inherit that.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execv(path, argv);
        let errno = (*libc::__errno_location()).to_ne_bytes();
        libc::write(fail, errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}
