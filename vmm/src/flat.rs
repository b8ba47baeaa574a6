//! The kernel for machines that are not ours: as one flat run of bytes, with its orders appended.

use quire::abi::{BootInfo, KERNEL_END, KERNEL_GPA, LARGE_PAGE, OP_WORDS, boot};
use quire::addr::PAGE_SIZE;

use crate::boot::load;
use crate::error::Error;
use crate::memory::{Backing, Memory, Populate};

/// The image as it lies in memory from physical 1 MiB on. It is entered at its first byte, in 32-bit protected mode.
///
/// # Errors
/// When `elf` is no kernel of ours.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>, Error> {
    let memory = Memory::new(KERNEL_END.next_multiple_of(LARGE_PAGE), Backing::Anon, Populate::Lazy)?;
    let loaded = load(&memory, elf)?;
    let bytes = loaded.end.next_multiple_of(PAGE_SIZE) - KERNEL_GPA;
    memory.read_bytes(KERNEL_GPA, bytes as usize)
}

/// What the kernel should do: a page of boot words, then the trace. It goes right behind the [flat image](flatten), or
/// becomes the first module of a PVH loader (QEMU `-initrd`). The kernel fills in the addresses; [`boot::MEMORY_END`]
/// must say how much memory there is where no loader tells it.
#[must_use]
pub fn orders(words: &BootInfo, ops: &[[u64; OP_WORDS]]) -> Vec<u8> {
    let mut words = *words;
    words[boot::TRACE_WORDS] = (ops.len() * OP_WORDS) as u64;
    let mut bytes: Vec<u8> = words.0.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(PAGE_SIZE as usize, 0);
    bytes.extend(ops.as_flattened().iter().flat_map(|word| word.to_le_bytes()));
    bytes
}
