//! A sign of life on a terminal, for work that takes more than a second.

use std::io::{IsTerminal, Write, stderr};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Does `work`; after a second without its end, says `what` and for how long on standard error, if that is a terminal.
pub(crate) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !stderr().is_terminal() {
        return work();
    }
    thread::scope(|scope| {
        let (done, wait) = channel::<()>();
        scope.spawn(move || {
            let begin = Instant::now();
            let mut said = false;
            while wait.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                said = true;
                eprint!("\r{what}, {} s", begin.elapsed().as_secs());
                let _ = stderr().flush();
            }
            if said {
                eprint!("\r\x1b[K");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
