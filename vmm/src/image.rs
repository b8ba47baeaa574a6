//! The kernel's image, as its loader reads it: pages that this program's own file holds are mapped from there, copy on write, so that those the guest does
//! not touch cost nothing; the rest is copied.
#![expect(unsafe_code, reason = "looks up the program's segments and maps its file")]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::slice;

use quire::addr::PAGE_SIZE;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

const PAGE: usize = PAGE_SIZE as usize;

/// An image to load from.
#[derive(Debug)]
pub struct Image<'a> {
    bytes: Cursor<&'a [u8]>,
    own: Option<Own>,
}

/// Where this program's file holds the image.
#[derive(Debug)]
struct Own {
    file: File,
    offset: u64,
}

impl<'a> Image<'a> {
    /// Everything will be copied.
    #[must_use]
    pub fn copied(bytes: &'a [u8]) -> Self {
        Self { bytes: Cursor::new(bytes), own: None }
    }

    /// Whole pages will be mapped over what they are read into, which must be a private mapping, if the file of this program holds them.
    #[must_use]
    pub fn mapped(bytes: &'a [u8]) -> Self {
        Self { bytes: Cursor::new(bytes), own: Own::find(bytes) }
    }
}

impl Own {
    /// Nothing if `bytes` are not part of a segment of the program's file, or lie in it otherwise than in memory.
    fn find(bytes: &[u8]) -> Option<Self> {
        let offset = offset_in_program(bytes)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        let file = File::open("/proc/self/exe").ok()?;
        // A program that unpacked itself has another file.
        let mut head = [0; 64];
        file.read_exact_at(&mut head, offset).ok()?;
        bytes.starts_with(&head).then_some(Self { file, offset })
    }

    /// Maps the image's pages from `at` on over those at `target`. False if that cannot be.
    fn map(&self, at: u64, target: *mut u8, bytes: usize) -> bool {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let offset = (self.offset + at) as libc::off_t;
        // SAFETY: replaces whole pages that the caller has the whole of and is about to fill.
        let mapped = unsafe { libc::mmap(target.cast(), bytes, prot, flags, self.file.as_raw_fd(), offset) };
        mapped != libc::MAP_FAILED
    }
}

impl ReadVolatile for Image<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let at = self.bytes.position();
        let left = self.bytes.get_ref().len().saturating_sub(at as usize);
        let whole = buffer.len().min(left) & !(PAGE - 1);
        let target = buffer.ptr_guard_mut().as_ptr();
        if let Some(own) = &self.own
            && whole > 0
            && target.addr().is_multiple_of(PAGE)
            && at.is_multiple_of(PAGE_SIZE)
            && own.map(at, target, whole)
        {
            self.bytes.set_position(at + whole as u64);
            return Ok(whole + self.bytes.read_volatile(&mut buffer.offset(whole)?)?);
        }
        self.bytes.read_volatile(buffer)
    }
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Where the program's file has what is loaded as `bytes`.
fn offset_in_program(bytes: &[u8]) -> Option<u64> {
    struct Search {
        first: u64,
        last: u64,
        found: Option<u64>,
    }
    /// Called for the program itself, and then no more.
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _size: libc::size_t, search: *mut c_void) -> c_int {
        // SAFETY: the C library's description of the program, and the search that was given to it below.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        // SAFETY: that many headers are there.
        let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        search.found = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).find_map(|header| {
            let start = info.dlpi_addr + header.p_vaddr;
            (start <= search.first && search.last <= start + header.p_filesz)
                .then(|| header.p_offset + (search.first - start))
        });
        1
    }
    let range = bytes.as_ptr_range();
    let mut search = Search { first: range.start.addr() as u64, last: range.end.addr() as u64, found: None };
    // SAFETY: the function above, and a search that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;
    use crate::memory::{Backing, Memory, Populate};
    use quire::addr::PAGE_SIZE;
    use vm_memory::{Bytes, GuestAddress};

    fn load(image: &mut Image<'_>, memory: &Memory, at: u64, bytes: u64) -> Vec<u8> {
        image.seek(SeekFrom::Start(at)).unwrap();
        memory.view().read_exact_volatile_from(GuestAddress(PAGE_SIZE), image, bytes as usize).unwrap();
        memory.read_bytes(PAGE_SIZE, bytes as usize + 1).unwrap()
    }

    #[test]
    fn the_kernel_is_mapped_from_this_program_and_reads_the_same() {
        let mut image = Image::mapped(kernel::ELF);
        assert!(image.own.is_some(), "{:p} is not page-aligned in the file", kernel::ELF);
        for (at, bytes) in [(0, PAGE_SIZE), (PAGE_SIZE, 5 * PAGE_SIZE + 17), (PAGE_SIZE, 10), (100, 3 * PAGE_SIZE)] {
            let memory = Memory::new(2 << 20, Backing::Anon, Populate::Lazy).unwrap();
            let mut loaded = load(&mut image, &memory, at, bytes);
            assert_eq!(loaded.pop(), Some(0), "more came than was asked for");
            assert!(loaded == kernel::ELF[at as usize..][..bytes as usize], "{bytes} bytes at {at:#x}");
        }
    }

    #[test]
    fn stores_stay_in_the_memory_they_were_done_to() {
        let mut image = Image::mapped(kernel::ELF);
        let memory = Memory::new(2 << 20, Backing::Anon, Populate::Lazy).unwrap();
        load(&mut image, &memory, 0, PAGE_SIZE);
        memory.write(PAGE_SIZE, !0).unwrap();
        assert_eq!(&kernel::ELF[..4], b"\x7fELF");
        let other = Memory::new(2 << 20, Backing::Anon, Populate::Lazy).unwrap();
        assert_eq!(load(&mut image, &other, 0, PAGE_SIZE)[..4], kernel::ELF[..4]);
    }

    #[test]
    fn what_is_not_in_the_file_is_copied() {
        let bytes = kernel::ELF.to_vec();
        let mut image = Image::mapped(&bytes);
        assert!(image.own.is_none());
        let memory = Memory::new(2 << 20, Backing::Anon, Populate::Lazy).unwrap();
        assert_eq!(load(&mut image, &memory, 0, 64)[..64], bytes[..64]);
    }
}
