//! What `/proc` tells about a stopped process.

use std::fs;
use std::path::{Path, PathBuf};

use super::identity::{DeviceKey, ObjectKey, Source, base_name, source_of_file};
use super::timeline::Mapping;

/// One line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MapsLine<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) permissions: &'a str,
    pub(super) offset: u64,
    pub(super) inode: u64,
    pub(super) path: &'a str,
}

impl<'a> MapsLine<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        // The path may hold spaces, so it is what is left after five fields.
        let mut rest = line;
        let mut field = || {
            let (first, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after.trim_start();
            first
        };
        let (range, permissions, offset, _device, inode) = (field(), field(), field(), field(), field());
        let (start, end) = range.split_once('-')?;
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            permissions,
            offset: u64::from_str_radix(offset, 16).ok()?,
            inode: inode.parse().ok()?,
            path: rest,
        })
    }

    fn prot(&self) -> u64 {
        self.permissions
            .bytes()
            .zip([(b'r', 1), (b'w', 2), (b'x', 4)])
            .fold(0, |prot, (byte, (letter, bit))| if byte == letter { prot | bit } else { prot })
    }

    fn source(&self, pid: i32) -> Source {
        let private = !self.permissions.ends_with('s');
        if matches!(self.path, "[vvar]" | "[vvar_vclock]" | "[vdso]") {
            return Source::Device { key: DeviceKey::Kernel(self.path.to_owned()), offset: 0 };
        }
        if self.inode == 0 {
            return Source::Anon;
        }
        if self.path.starts_with("/SYSV") {
            let key = ObjectKey::Segment(self.inode);
            return Source::Object { key, name: base_name(self.path), shm: true, offset: self.offset, private };
        }
        // The file as the process sees it, so that `mmap` of the same file later finds the same identity; the device
        // number in `maps` is another one on overlay file systems.
        let path = PathBuf::from(format!("/proc/{pid}/root{}", self.path));
        source_of_file(&path, self.offset, private, || 0).unwrap_or_else(|| Source::Object {
            key: ObjectKey::File { device: 0, inode: self.inode },
            name: base_name(self.path),
            shm: false,
            offset: self.offset,
            private,
        })
    }
}

/// The mappings of a process that just ran a new program; none when it is gone.
pub(super) fn image(pid: i32) -> Vec<Mapping> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let lines = maps.lines().filter_map(MapsLine::parse);
    lines
        .filter(|line| line.end <= super::USER_END)
        .map(|line| Mapping {
            start: line.start,
            end: line.end,
            prot: line.prot(),
            source: line.source(pid),
            stack: line.path == "[stack]",
            fixed: false,
        })
        .collect()
}

/// The mapping of a process that starts at `start`.
pub(super) fn mapping_at(pid: i32, start: u64) -> Option<Mapping> {
    image(pid).into_iter().find(|mapping| mapping.start == start)
}

/// Where the heap of a process starts.
pub(super) fn heap_start(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, so fields count from the last parenthesis: 3 is the first behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(47 - 3)?.parse().ok().filter(|&start| start != 0)
}

/// What a descriptor of a process refers to.
pub(super) fn descriptor(pid: i32, fd: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
}

/// A number in a file of `/proc/sys`.
pub(super) fn sysctl(path: &str) -> Option<i32> {
    fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?.trim().parse().ok()
}

/// The kernel's version, without what its builder added.
pub(super) fn kernel_version() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().split('-').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f0a1000-7f0a3000 r-xp 00002000 fd:01 131 /tmp/my file (deleted)";
        let parsed = MapsLine::parse(line).unwrap();
        assert_eq!((parsed.start, parsed.end, parsed.offset, parsed.inode), (0x7f0a_1000, 0x7f0a_3000, 0x2000, 131));
        assert_eq!(parsed.path, "/tmp/my file (deleted)");
        assert_eq!(parsed.prot(), 5);
        let anonymous = MapsLine::parse("10000-20000 rw-s 00000000 00:00 0 ").unwrap();
        assert_eq!((anonymous.path, anonymous.prot()), ("", 3));
        let stack = MapsLine::parse("7ffc76575000-7ffc76596000 rw-p 00000000 00:00 0          [stack]").unwrap();
        assert_eq!(stack.path, "[stack]");
        assert_eq!(MapsLine::parse("nonsense"), None);
        assert_eq!(MapsLine::parse(""), None);
    }

    #[test]
    fn our_own_process_has_a_heap_and_a_stack() {
        let pid = std::process::id().cast_signed();
        assert!(heap_start(pid).is_some());
        assert_eq!(image(pid).iter().filter(|mapping| mapping.stack).count(), 1);
    }
}
