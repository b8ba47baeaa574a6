//! The Linux side of the guest's instructions: a stock kernel in QEMU whose time stamp counter counts instructions (`-icount`), with `linux/init.c` for its
//! first process. Kernel and program go to a cache beside this program's own folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::emulator::{self, Failure};

const INIT: &str = include_str!("../linux/init.c");
/// Debian's kernel of the series with folios of every order, as small as it comes: a bzImage with the console built in.
const SERIES: &str = "linux-image-6.12";
const FLAVOUR: &str = "-cloud-amd64-unsigned";
/// No workarounds for hardware, no clearing of memory that is cleared again, no accounting to control groups: as fast as it goes. And no random addresses.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet nokaslr mitigations=off transparent_hugepage=madvise init_on_alloc=0 cgroup_disable=memory";
/// Without fast string instructions Linux clears by `rep stosq`, which counts one for each word.
const CPU: &str = "max,-erms,-fsrm,-rdrand,-rdseed";

/// What the program says of one operation at one order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Sample {
    op: String,
    order: u8,
    /// Instructions of the sample in the middle.
    median: u64,
    /// Folios that one sample stands for.
    folios: u64,
    /// Pages that all samples together copied.
    copied: u64,
    samples: u64,
}

/// What one operation takes, in instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) whole: f64,
    /// Less what clearing and copying pages takes, and what fork() takes of a process without anything of ours.
    pub(crate) corrected: f64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linux {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// What clearing or copying one page takes.
    pub(crate) page: u64,
    costs: BTreeMap<(String, u8), Cost>,
}

impl Linux {
    /// Runs it with folios of these `orders`.
    pub(crate) fn measure(orders: &[u8]) -> Result<Self, Failure> {
        let qemu = emulator::find().map_err(Failure::lack)?;
        let cache = cache()?;
        let image = image(&cache)?;
        let initrd = initrd(&cache)?;
        // What follows the dashes is for the program.
        let line = orders.iter().fold(format!("{COMMAND_LINE} --"), |line, order| format!("{line} {order}"));
        emulator::twice(|| {
            let mut command = Command::new(qemu);
            command.args(emulator::MACHINE).args(["-cpu", CPU, "-m", "1G", "-serial", "stdio", "-append", &line]);
            command.arg("-kernel").arg(&image).arg("-initrd").arg(&initrd);
            let text = emulator::run(&mut command).map_err(Failure::wrong)?;
            Self::parse(&text).map_err(|why| Failure::wrong(format!("Linux: {why}; its console:\n{text}")))
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Line {
            Release { release: String },
            Page { zero_4k: u64 },
            Sample(Sample),
        }
        if !text.contains("quire-linux: done") {
            return Err("it did not finish".to_owned());
        }
        let (mut release, mut page, mut samples) = (None, None, Vec::new());
        // The firmware leaves control characters before the first line.
        for line in text.lines().filter_map(|line| line.find('{').map(|start| &line[start..])) {
            match serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))? {
                Line::Release { release: name } => release = Some(name),
                Line::Page { zero_4k } => page = Some(zero_4k),
                Line::Sample(sample) => samples.push(sample),
            }
        }
        let (Some(release), Some(page)) = (release, page) else {
            return Err("it does not say what it is".to_owned());
        };
        let empty: BTreeMap<u8, u64> = samples
            .iter()
            .filter(|sample| sample.op == "fork_empty")
            .map(|sample| (sample.order, sample.median))
            .collect();
        let cost = |sample: &Sample| {
            let whole = sample.median as f64;
            let rest = match sample.op.as_str() {
                "fault" => (page << sample.order) as f64,
                "fork" => empty.get(&sample.order).copied().unwrap_or(0) as f64,
                _ => page as f64 * sample.copied as f64 / sample.samples as f64,
            };
            Cost { whole: whole / sample.folios as f64, corrected: (whole - rest) / sample.folios as f64 }
        };
        let costs = samples.iter().map(|sample| ((sample.op.clone(), sample.order), cost(sample))).collect();
        Ok(Self { release, page, costs })
    }

    /// What `op` takes with folios of `order`.
    pub(crate) fn cost(&self, op: &str, order: u8) -> Option<Cost> {
        self.costs.get(&(op.to_owned(), order)).copied()
    }
}

/// Where files stay from one run to the next: `linux` in cargo's target folder.
pub(crate) fn cache() -> Result<PathBuf, Failure> {
    let this = std::env::current_exe().map_err(Failure::wrong)?;
    let target = this.ancestors().nth(2).ok_or_else(|| Failure::wrong("this program lies in no folder"))?;
    let cache = target.join("linux");
    fs::create_dir_all(&cache).map_err(|error| Failure::wrong(format!("{}: {error}", cache.display())))?;
    Ok(cache)
}

/// The newest kernel of the series that this host's package lists have, fetched if it is not there yet.
fn image(cache: &Path) -> Result<PathBuf, Failure> {
    let image = cache.join("vmlinuz");
    if image.exists() {
        return Ok(image);
    }
    let names = output(Command::new("apt-cache").args(["pkgnames", SERIES]))?;
    let version = |name: &str| -> Vec<u32> { name.split(|c: char| !c.is_ascii_digit()).flat_map(str::parse).collect() };
    let package = names
        .lines()
        .filter(|name| name.ends_with(FLAVOUR))
        .max_by_key(|name| version(name))
        .ok_or_else(|| Failure::lack(format!("no package {SERIES}*{FLAVOUR}; `apt-get update` may help")))?;
    let folder = cache.join("package");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(Failure::wrong)?;
    output(Command::new("apt-get").args(["download", "-q", package]).current_dir(&folder))?;
    let file = entry(&folder, "")?;
    output(Command::new("dpkg-deb").arg("-x").arg(file).arg(folder.join("root")))?;
    let found = entry(&folder.join("root/boot"), "vmlinuz-")?;
    fs::rename(found, &image).map_err(Failure::wrong)?;
    let _ = fs::remove_dir_all(&folder);
    Ok(image)
}

/// The file in `folder` whose name begins so.
fn entry(folder: &Path, prefix: &str) -> Result<PathBuf, Failure> {
    let entries = fs::read_dir(folder).map_err(Failure::wrong)?;
    entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .ok_or_else(|| Failure::wrong(format!("nothing came to {}", folder.display())))
}

/// The first file system: the program, and a console for it.
fn initrd(cache: &Path) -> Result<PathBuf, Failure> {
    let [source, program, initrd] = ["init.c", "init", "initrd"].map(|name| cache.join(name));
    fs::write(&source, INIT).map_err(Failure::wrong)?;
    output(Command::new("gcc").args(["-O2", "-Wall", "-static", "-o"]).args([&program, &source]))?;
    let program = fs::read(&program).map_err(Failure::wrong)?;
    let archive = [
        file("init", 0o100_755, &program, [0, 0]),
        file("dev", 0o040_755, &[], [0, 0]),
        file("dev/console", 0o020_600, &[], [5, 1]),
        file("TRAILER!!!", 0, &[], [0, 0]),
    ];
    fs::write(&initrd, archive.concat()).map_err(Failure::wrong)?;
    Ok(initrd)
}

/// One file of an archive in the `newc` format of cpio.
fn file(name: &str, mode: u32, data: &[u8], device: [u32; 2]) -> Vec<u8> {
    let length = |bytes: usize| u32::try_from(bytes).expect("a small file");
    // inode, mode, uid, gid, links, time, size, device of the file, device it is, length of the name, checksum
    let fields = [0, mode, 0, 0, 1, 0, length(data.len()), 0, 0, device[0], device[1], length(name.len() + 1), 0];
    let mut bytes = b"070701".to_vec();
    for field in fields {
        bytes.extend(format!("{field:08x}").into_bytes());
    }
    let mut put = |part: &[u8]| {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    };
    put(format!("{name}\0").as_bytes());
    put(data);
    bytes
}

/// What a helper program prints; it must exist and succeed.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| Failure::lack(format!("cannot run {name}: {error}")))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::lack(format!("{name} failed: {}", errors.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Cost, Linux, file};

    const CONSOLE: &str = r#"[2J{"release":"6.12.0"}
{"zero_4k":521}
{"op":"fault","order":2,"median":5535,"p99":9251,"folios":1,"copied":0,"samples":20480}
{"op":"fork","order":2,"median":2911400,"p99":2911732,"folios":4096,"copied":0,"samples":5}
{"op":"cow","order":2,"median":4344,"p99":15252,"folios":1,"copied":20480,"samples":20480}
{"op":"reuse","order":2,"median":1456,"p99":1456,"folios":1,"copied":0,"samples":20480}
{"op":"fork_empty","order":2,"median":119400,"p99":124979,"folios":1,"copied":0,"samples":5}
quire-linux: done
"#;

    #[test]
    fn what_is_not_the_operation_is_subtracted() {
        let linux = Linux::parse(CONSOLE).unwrap();
        assert_eq!((linux.release.as_str(), linux.page), ("6.12.0", 521));
        let cost = |op| linux.cost(op, 2).unwrap();
        assert_eq!(cost("fault"), Cost { whole: 5535.0, corrected: 5535.0 - 4.0 * 521.0 });
        assert_eq!(cost("cow"), Cost { whole: 4344.0, corrected: 4344.0 - 521.0 });
        assert_eq!(cost("reuse"), Cost { whole: 1456.0, corrected: 1456.0 });
        let fork = cost("fork");
        assert_eq!((fork.whole * 4096.0, fork.corrected * 4096.0), (2_911_400.0, 2_792_000.0));
        assert_eq!(linux.cost("fault", 4), None);
    }

    #[test]
    fn a_run_that_breaks_off_is_an_error() {
        let cut = CONSOLE.replace("quire-linux: done", "quire-linux: failed: no memory");
        assert_eq!(Linux::parse(&cut).unwrap_err(), "it did not finish");
        assert!(Linux::parse(&CONSOLE.replace("521", "x")).unwrap_err().contains("zero_4k"));
    }

    #[test]
    fn an_archive_is_padded_to_words() {
        let bytes = file("dev/console", 0o020_600, &[1], [5, 1]);
        assert_eq!(bytes.len(), (110 + 12_usize).next_multiple_of(4) + 4);
        assert!(bytes.starts_with(b"0707010000000000002180"));
    }
}
