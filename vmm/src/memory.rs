//! Guest memory: one mapping of the host's, seen by the guest from address 0 on.
#![expect(unsafe_code, reason = "maps memory")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::str::FromStr;

use quire::abi::LARGE_PAGE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::error::Error;

/// What kind of host memory stands behind the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backing {
    /// Private anonymous memory in base pages.
    #[default]
    Anon,
    /// Private anonymous memory with `MADV_HUGEPAGE`.
    Thp,
    /// A memfd, shared.
    Memfd,
}

impl Backing {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Thp => "thp",
            Self::Memfd => "memfd",
        }
    }
}

impl FromStr for Backing {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "anon" => Ok(Self::Anon),
            "thp" => Ok(Self::Thp),
            "memfd" => Ok(Self::Memfd),
            _ => Err(format!("no guest memory is called {name:?}: anon, thp, memfd")),
        }
    }
}

/// Whether the host gives all memory before the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Populate {
    /// As the guest touches it.
    #[default]
    Lazy,
    /// All at once (`MADV_POPULATE_WRITE`).
    Before,
}

/// Guest memory. The guest changes it while it runs, so every access copies; no references into it.
#[derive(Debug)]
pub struct Memory {
    // Dropped before the mapping it looks into.
    view: GuestMemoryMmap,
    mapping: Mapping,
    is_fresh: bool,
}

impl Memory {
    /// `bytes` of guest memory, a multiple of 2 MiB, aligned to 2 MiB in the host too.
    ///
    /// # Errors
    /// When the host gives none.
    pub fn new(bytes: u64, backing: Backing, populate: Populate) -> Result<Self, Error> {
        let mapping = Mapping::new(bytes as usize, backing)?;
        if populate == Populate::Before {
            mapping.advise(libc::MADV_POPULATE_WRITE, "MADV_POPULATE_WRITE")?;
        }
        let flags = libc::MAP_NORESERVE;
        // SAFETY: the mapping is ours, has that length, and outlives the view (field order).
        let region = unsafe { MmapRegion::build_raw(mapping.base, mapping.bytes, PROT, flags) }
            .map_err(|error| Error::Image(error.to_string()))?;
        let region = GuestRegionMmap::new(region, GuestAddress(0)).ok_or(Error::MemorySize {
            bytes,
            least: 1,
            most: quire::abi::MAX_MEMORY,
        })?;
        let view = GuestMemoryMmap::from_regions(vec![region]).map_err(|error| Error::Image(error.to_string()))?;
        Ok(Self { view, mapping, is_fresh: backing == Backing::Anon && populate == Populate::Lazy })
    }

    /// Whether it is private memory that the host gives page by page, so that it makes no difference where a page comes from.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// How much.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes as u64
    }

    /// Where it is in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.mapping.base.addr() as u64
    }

    /// Whether `gpa` is guest memory.
    #[must_use]
    pub fn contains(&self, gpa: u64) -> bool {
        gpa < self.bytes()
    }

    /// As the rust-vmm crates want it.
    #[must_use]
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.view
    }

    /// The word at `gpa`.
    ///
    /// # Errors
    /// Outside guest memory.
    pub fn read(&self, gpa: u64) -> Result<u64, Error> {
        Ok(self.view.read_obj(GuestAddress(gpa))?)
    }

    /// Stores a word at `gpa`. Never into a live page table: the host may not notice (kvm-pvm).
    ///
    /// # Errors
    /// Outside guest memory.
    pub fn write(&self, gpa: u64, word: u64) -> Result<(), Error> {
        Ok(self.view.write_obj(word, GuestAddress(gpa))?)
    }

    /// `count` words from `gpa` on.
    ///
    /// # Errors
    /// Outside guest memory.
    pub fn read_words(&self, gpa: u64, count: usize) -> Result<Vec<u64>, Error> {
        let bytes = self.read_bytes(gpa, 8 * count)?;
        Ok(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect())
    }

    /// Stores words from `gpa` on.
    ///
    /// # Errors
    /// Outside guest memory.
    pub fn write_words(&self, gpa: u64, words: &[u64]) -> Result<(), Error> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(self.view.write_slice(&bytes, GuestAddress(gpa))?)
    }

    /// `count` bytes from `gpa` on.
    ///
    /// # Errors
    /// Outside guest memory.
    pub fn read_bytes(&self, gpa: u64, count: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; count];
        self.view.read_slice(&mut bytes, GuestAddress(gpa))?;
        Ok(bytes)
    }
}

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A mapping of this process, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    base: *mut u8,
    bytes: usize,
    /// What is mapped in all: more than `bytes`, for the alignment.
    whole: (*mut libc::c_void, usize),
    /// Kept open for as long as it is mapped.
    _file: Option<OwnedFd>,
}

impl Mapping {
    fn new(bytes: usize, backing: Backing) -> Result<Self, Error> {
        let refuse = |what| move |error| Error::Memory { what, bytes: bytes as u64, error };
        let last = io::Error::last_os_error;
        let room = bytes + LARGE_PAGE as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping wherever the kernel likes.
        let whole = unsafe { libc::mmap(ptr::null_mut(), room, PROT, flags, -1, 0) };
        if whole == libc::MAP_FAILED {
            return Err(refuse("mmap")(last()));
        }
        let skip = whole.addr().next_multiple_of(LARGE_PAGE as usize) - whole.addr();
        let mut mapping =
            Self { base: whole.cast::<u8>().wrapping_add(skip), bytes, whole: (whole, room), _file: None };
        match backing {
            Backing::Anon => mapping.advise(libc::MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE")?,
            Backing::Thp => mapping.advise(libc::MADV_HUGEPAGE, "MADV_HUGEPAGE")?,
            Backing::Memfd => {
                // SAFETY: a name that lives, and flags.
                let fd = unsafe { libc::memfd_create(c"quire".as_ptr(), libc::MFD_CLOEXEC) };
                if fd < 0 {
                    return Err(refuse("memfd_create")(last()));
                }
                // SAFETY: a descriptor that was just opened and nobody else owns.
                let file = unsafe { OwnedFd::from_raw_fd(fd) };
                // SAFETY: our own descriptor.
                if unsafe { libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) } != 0 {
                    return Err(refuse("ftruncate")(last()));
                }
                let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
                // SAFETY: replaces a part of the fresh mapping above, which nobody looks into yet.
                let fixed = unsafe { libc::mmap(mapping.base.cast(), bytes, PROT, flags, file.as_raw_fd(), 0) };
                if fixed == libc::MAP_FAILED {
                    return Err(refuse("mmap of a memfd")(last()));
                }
                mapping._file = Some(file);
            }
        }
        Ok(mapping)
    }

    fn advise(&self, advice: i32, what: &'static str) -> Result<(), Error> {
        // SAFETY: our own mapping; none of the advices used here drops contents.
        if unsafe { libc::madvise(self.base.cast(), self.bytes, advice) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // A kernel without huge pages has none to forbid.
        if advice == libc::MADV_NOHUGEPAGE && error.raw_os_error() == Some(libc::EINVAL) {
            return Ok(());
        }
        Err(Error::Memory { what, bytes: self.bytes as u64, error })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the view that looked into it is gone (field order of `Memory`), and KVM's slot with
        // the VM, which `run` drops first.
        unsafe { libc::munmap(self.whole.0, self.whole.1) };
    }
}
