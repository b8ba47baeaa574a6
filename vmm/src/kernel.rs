//! The kernel that the build script made, as bytes.

/// The ELF image of `quire-kernel`. It has three entries: 64-bit for this VMM, a PVH note for others, and 32-bit flat
/// at its first byte (see [`flat::flatten`](crate::flat::flatten)).
pub const ELF: &[u8] = include_bytes!(env!("QUIRE_KERNEL_ELF"));
