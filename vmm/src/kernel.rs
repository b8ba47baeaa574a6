//! The kernel that the build script made, as bytes.

/// The ELF image of `quire-kernel`. It has three entries: 64-bit for this VMM, a PVH note for others, and 32-bit flat
/// at its first byte (see [`flat::flatten`](crate::flat::flatten)).
pub static ELF: &[u8] = &ALIGNED.0;

/// Page-aligned, in the program's file too, so that a guest's memory can be mapped from there.
#[repr(C, align(4096))]
struct Aligned<T>(T);

static ALIGNED: Aligned<[u8; include_bytes!(env!("QUIRE_KERNEL_ELF")).len()]> =
    Aligned(*include_bytes!(env!("QUIRE_KERNEL_ELF")));
