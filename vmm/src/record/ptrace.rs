//! The few ptrace requests the recorder needs, and `waitpid`, as safe functions.
#![expect(unsafe_code, reason = "ptrace and waitpid are foreign functions")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::ptr;

use libc::{c_int, c_void};

/// What a tracee did that made it stop, or that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It exited with this status or was killed by a signal: the raw status of `waitpid`.
    Gone(c_int),
    /// It enters or leaves a system call.
    Call,
    /// A `PTRACE_EVENT_*`, with the signal of the stop.
    Event(c_int, c_int),
    /// A signal is to be delivered.
    Signal(c_int),
}

/// A system call at its entry or exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallStop {
    Entry { arch: u32, number: u64, arguments: [u64; 6] },
    Exit { result: i64 },
    Neither,
}

/// Starts tracing a process that is not stopped and asks for everything the recorder follows. The process dies with us.
pub(super) fn seize(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEEXIT
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: PTRACE_SEIZE takes options by value and touches no memory of ours.
    let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, ptr::null_mut::<c_void>(), word(options)) };
    check(result).map(drop)
}

/// Lets a tracee run to its next system call, with a signal if not 0. A tracee that was killed meanwhile is no error: its
/// end is reported by [`wait`].
pub(super) fn resume(pid: i32, signal: c_int) {
    // SAFETY: PTRACE_SYSCALL takes the signal by value and touches no memory of ours.
    unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, ptr::null_mut::<c_void>(), word(signal)) };
}

/// Leaves a tracee in its group stop, and lets us hear when that ends.
pub(super) fn listen(pid: i32) {
    // SAFETY: PTRACE_LISTEN takes no data.
    unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid, ptr::null_mut::<c_void>(), ptr::null_mut::<c_void>()) };
}

/// The number that came with the event of the current stop.
pub(super) fn event_message(pid: i32) -> io::Result<i32> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: PTRACE_GETEVENTMSG stores one unsigned long where data points, and `message` is one.
    let result = unsafe {
        libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, ptr::null_mut::<c_void>(), (&raw mut message).cast::<c_void>())
    };
    check(result)?;
    i32::try_from(message).map_err(|_| io::Error::from_raw_os_error(libc::ERANGE))
}

/// The system call of the current stop, and the stack pointer.
pub(super) fn call_stop(pid: i32) -> io::Result<(CallStop, u64)> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel stores at most the `size` bytes that addr gives, and data points to as many.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            pid,
            ptr::without_provenance_mut::<c_void>(size),
            info.as_mut_ptr().cast::<c_void>(),
        )
    };
    check(result)?;
    // SAFETY: plain integers; zeros are valid wherever the kernel stored nothing.
    let info = unsafe { info.assume_init() };
    let stop = match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says that the entry arm is the valid one.
            let entry = unsafe { info.u.entry };
            CallStop::Entry { arch: info.arch, number: entry.nr, arguments: entry.args }
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` says that the exit arm is the valid one.
            let exit = unsafe { info.u.exit };
            CallStop::Exit { result: exit.sval }
        }
        _ => CallStop::Neither,
    };
    Ok((stop, info.stack_pointer))
}

/// Waits for the next stop or end of any tracee of this thread; `None` when there is no tracee left.
pub(super) fn wait() -> io::Result<Option<(i32, Stop)>> {
    let mut status = 0;
    // Other threads of an embedding program may have children of their own, which are not ours to reap.
    let flags = libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: waitpid stores one int where its second argument points.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        if pid >= 0 {
            return Ok(Some((pid, stop_of(status))));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// Kills a process; that it is gone already is fine.
pub(super) fn kill(pid: i32) {
    // SAFETY: kill touches no memory. The pid is a tracee's that was not reaped, so it names no one else.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

fn stop_of(status: c_int) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Gone(status);
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        (0, signal) if signal == libc::SIGTRAP | 0x80 => Stop::Call,
        (0, signal) => Stop::Signal(signal),
        (event, signal) => Stop::Event(event, signal),
    }
}

/// A small number where ptrace takes a pointer-sized argument.
fn word(number: c_int) -> *mut c_void {
    ptr::without_provenance_mut(usize::try_from(number).unwrap_or_default())
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
