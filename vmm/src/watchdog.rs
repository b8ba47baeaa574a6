//! A clock that gets the virtual CPU's thread out of `KVM_RUN` again and again, so that no guest can hold it for ever.
//!
//! A POSIX timer sends the thread a signal in every period; KVM_RUN then returns EINTR and the run loop looks at the
//! time. A signal that comes just before KVM_RUN is lost, the next one is not, so nothing has to be made atomic.
#![expect(unsafe_code, reason = "timers and signals of the C library")]

use std::io;
use std::mem;
use std::ptr;
use std::sync::Once;
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::error::Error;

/// Ticks on the thread that made it, until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    timer: libc::timer_t,
}

impl Watchdog {
    /// Ticks every `period`, which must not be zero.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn start(period: Duration) -> Result<Self, Error> {
        static HANDLER: Once = Once::new();
        let mut failed = None;
        HANDLER.call_once(|| failed = register_signal_handler(SIGRTMIN(), tick).err());
        if let Some(error) = failed {
            return Err(Error::Timer(io::Error::from_raw_os_error(error.errno())));
        }
        // SAFETY: plain data, for which zero is a value.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: no arguments.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: both pointers are to locals of the right type.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0 {
            return Err(Error::Timer(io::Error::last_os_error()));
        }
        let watchdog = Self { timer };
        let period = libc::timespec {
            tv_sec: period.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(period.subsec_nanos().max(1)),
        };
        let period = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was just made; the pointer is to a local.
        if unsafe { libc::timer_settime(timer, 0, &raw const period, ptr::null_mut()) } != 0 {
            return Err(Error::Timer(io::Error::last_os_error()));
        }
        Ok(watchdog)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // SAFETY: our own timer, deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// The signal's only task is to interrupt.
extern "C" fn tick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
