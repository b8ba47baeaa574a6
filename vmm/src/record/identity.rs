//! What stands behind a mapping, in terms that hold across processes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What a mapping maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Private anonymous memory.
    Anon,
    /// A memory object, from this byte on.
    Object { key: ObjectKey, name: String, shm: bool, offset: u64, private: bool },
    /// Memory that no page cache holds: a device, the kernel's vvar and vdso pages.
    Device { key: DeviceKey, offset: u64 },
}

/// Which memory object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ObjectKey {
    /// A file, by device and inode.
    File { device: u64, inode: u64 },
    /// Shared anonymous memory, numbered in the order of its making.
    Anonymous(u64),
    /// A System V segment.
    Segment(u64),
}

/// Which device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum DeviceKey {
    /// A character device, by its number, or a file of an anonymous inode, by its inode.
    Number(u64),
    /// Pages the kernel maps by itself, by their name in `maps`.
    Kernel(String),
}

/// Device number of `/dev/zero`, whose mappings are anonymous memory.
const DEV_ZERO: u64 = libc::makedev(1, 5);

/// What a mapping of `path` maps, where `path` may be a link in `/proc/PID/fd`. `None` when it cannot be seen.
pub(super) fn source_of_file(path: &Path, offset: u64, private: bool, fresh: impl FnOnce() -> u64) -> Option<Source> {
    let metadata = fs::metadata(path).ok()?;
    let target = fs::read_link(path).unwrap_or_else(|_| path.to_path_buf());
    let target = target.to_string_lossy();
    let kind = metadata.file_type();
    if kind.is_char_device() && metadata.rdev() == DEV_ZERO {
        return Some(if private { Source::Anon } else { shared_anonymous(fresh()) });
    }
    if kind.is_char_device() {
        return Some(Source::Device { key: DeviceKey::Number(metadata.rdev()), offset });
    }
    if kind.is_file() || kind.is_block_device() {
        let key = ObjectKey::File { device: metadata.dev(), inode: metadata.ino() };
        return Some(Source::Object { key, name: base_name(&target), shm: is_shm(&target), offset, private });
    }
    // What else can be mapped (perf rings, io_uring, DMA buffers) belongs to the kernel.
    Some(Source::Device { key: DeviceKey::Number(metadata.ino()), offset })
}

/// `MAP_SHARED | MAP_ANONYMOUS` memory with this number.
pub(super) fn shared_anonymous(number: u64) -> Source {
    let key = ObjectKey::Anonymous(number);
    Source::Object { key, name: String::from("anon"), shm: true, offset: 0, private: false }
}

/// The last part of a path, without the mark of a file that is no longer there.
pub(super) fn base_name(path: &str) -> String {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// Whether a file lives in memory only: it then starts as zeros, like anonymous memory.
fn is_shm(path: &str) -> bool {
    path.starts_with("/dev/shm/") || path.starts_with("/memfd:") || path.starts_with("/SYSV")
}
