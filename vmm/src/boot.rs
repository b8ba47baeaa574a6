//! From an ELF image to a CPU about to run its first instruction.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::elf::Elf64_Ehdr;
use linux_loader::loader::{Elf, KernelLoader};
use quire::abi::{BOOT_INFO_GPA, BootInfo, KERNEL_END, KERNEL_GPA, OP_WORDS, StartTables, boot};

use crate::error::Error;
use crate::image::Image;
use crate::layout::Layout;
use crate::memory::Memory;

/// An image in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Where its 64-bit entry is.
    pub entry: u64,
    /// Where it ends.
    pub end: u64,
}

/// Puts the ELF image's segments at their physical addresses.
///
/// # Errors
/// When it is no ELF, or not where a kernel of ours is.
pub fn load(memory: &Memory, image: &[u8]) -> Result<Loaded, Error> {
    if image.len() < size_of::<Elf64_Ehdr>() {
        return Err(Error::Image(format!("{} bytes are too few for an ELF header", image.len())));
    }
    let mut file = if memory.is_fresh() { Image::mapped(image) } else { Image::copied(image) };
    let loaded = Elf::load(memory.view(), None, &mut file, None)
        .map_err(|error| Error::Image(format!("no ELF that can be loaded: {error}")))?;
    let (entry, end) = (loaded.kernel_load.0, loaded.kernel_end);
    if !(KERNEL_GPA..end).contains(&entry) || end > KERNEL_END {
        return Err(Error::Image(format!("entry {entry:#x} and end {end:#x} are not between 1 and 4 MiB")));
    }
    Ok(Loaded { entry, end })
}

/// Writes the start tables, the boot words and the trace.
///
/// # Errors
/// Outside guest memory.
pub fn prepare(memory: &Memory, layout: &Layout, words: &BootInfo, ops: &[[u64; OP_WORDS]]) -> Result<(), Error> {
    let mut wrong = None;
    StartTables::new(layout.memory_end).write(|gpa, entry| {
        if let Err(error) = memory.write(gpa, entry) {
            wrong.get_or_insert(error);
        }
    });
    if let Some(error) = wrong {
        return Err(error);
    }
    memory.write_words(BOOT_INFO_GPA, &words.0)?;
    memory.write_words(words[boot::TRACE_GPA], ops.as_flattened())
}

/// The registers at the 64-bit entry: `rdi` holds the address of the boot words.
#[must_use]
pub fn registers(entry: u64) -> kvm_regs {
    kvm_regs { rip: entry, rdi: BOOT_INFO_GPA, rflags: 2, ..Default::default() }
}

/// Turns `sregs` into 64-bit mode at ring 0 on the start tables.
pub fn enter_long_mode(sregs: &mut kvm_sregs, layout: &Layout) {
    const PE_MP_ET_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME_LMA_NXE: u64 = 1 << 8 | 1 << 10 | 1 << 11;
    sregs.cr0 = PE_MP_ET_NE_WP_PG;
    sregs.cr3 = StartTables::new(layout.memory_end).root();
    sregs.cr4 = PAE;
    sregs.efer = LME_LMA_NXE;
    sregs.cs = segment(0x10, 0xb);
    (sregs.cs.l, sregs.cs.db) = (1, 0);
    let data = segment(0x18, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: 0, type_: 0xb, present: 1, limit: 0x67, ..Default::default() };
    sregs.gdt.limit = 0;
    sregs.idt.limit = 0;
}

/// A flat segment of ring 0; `kind` as in its descriptor (SDM vol. 3, 3.4.5.1).
fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment { selector, type_: kind, limit: u32::MAX, present: 1, s: 1, db: 1, g: 1, ..Default::default() }
}
