//! QEMU as a machine whose time stamp counter counts instructions.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = "qemu-system-x86_64";
/// One instruction a nanosecond, with which the counter and the virtual clock go; nothing of the host's time gets in.
pub(crate) const MACHINE: [&str; 12] = [
    "-accel",
    "tcg",
    "-machine",
    "pc",
    "-nodefaults",
    "-no-reboot",
    "-display",
    "none",
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2024-01-01,clock=vm",
];
const LIMIT: Duration = Duration::from_secs(300);

/// The emulator, or why there is none.
pub(crate) fn find() -> Result<&'static str, String> {
    match Command::new(PROGRAM).arg("--version").output() {
        Ok(_) => Ok(PROGRAM),
        Err(error) => Err(format!("cannot run {PROGRAM}: {error}")),
    }
}

/// Two runs at once.
pub(crate) fn twice<T: Send, E: Send>(run: impl Fn() -> Result<T, E> + Sync) -> Result<[T; 2], E> {
    thread::scope(|scope| {
        let other = scope.spawn(&run);
        let first = run();
        Ok([first?, other.join().expect("a run does not panic")?])
    })
}

/// What a machine prints on its standard output until it ends; too long is an error.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut pipe = child.stdout.take().expect("piped");
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let begin = Instant::now();
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if begin.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("the emulator did not end within {} s", LIMIT.as_secs()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    reader.join().expect("reading does not panic").map_err(|error| error.to_string())
}
