//! A panic ends the run with one line: where, and what.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use quire::abi::results::status;

use crate::inside;
use crate::results::{self, Panic, Results};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if inside::is_here() {
        inside::panicked(info);
    }
    // A panic on the way of a panic leaves with what has been written.
    if !PANICKING.swap(true, Relaxed) {
        let _ = match info.location() {
            Some(at) => writeln!(Panic, "quire: panic at {}:{}: {}", at.file(), at.line(), info.message()),
            None => writeln!(Panic, "quire: panic: {}", info.message()),
        };
    }
    match Results::current() {
        Some(results) => results.end(status::PANIC),
        None => results::leave(status::PANIC),
    }
}
