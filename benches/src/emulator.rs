//! QEMU as a machine whose time stamp counter counts instructions.

use std::fmt::{self, Debug};
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

/// Why there are no numbers: something that the host lacks, or a run that went wrong.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) is_lack: bool,
    why: String,
}

impl Failure {
    pub(crate) fn lack(why: impl fmt::Display) -> Self {
        Self { is_lack: true, why: why.to_string() }
    }

    pub(crate) fn wrong(why: impl fmt::Display) -> Self {
        Self { is_lack: false, why: why.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Whether `QUIRE_REQUIRE` says that doing without `what` is a failure.
pub(crate) fn is_required(what: &str) -> bool {
    std::env::var("QUIRE_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name == what))
}

/// The emulator, or why there is none.
pub(crate) fn find() -> Result<&'static str, String> {
    match Command::new(PROGRAM).arg("--version").output() {
        Ok(_) => Ok(PROGRAM),
        Err(error) => Err(format!("cannot run {PROGRAM}: {error}")),
    }
}

/// Two runs at once, which must come out the same.
pub(crate) fn twice<T>(run: impl Fn() -> Result<T, Failure> + Sync) -> Result<T, Failure>
where
    T: PartialEq + Debug + Send,
{
    let (first, second) = thread::scope(|scope| {
        let other = scope.spawn(&run);
        (run(), other.join().expect("a run does not panic"))
    });
    let (first, second) = (first?, second?);
    if first == second { Ok(first) } else { Err(Failure::wrong(format!("two runs differ:\n{first:?}\n{second:?}"))) }
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
