//! Every instruction of the kernel is one that every host can run at ring 0.
//!
//! Some hosts emulate ring 0, and what their emulator lacks ends the VM, or worse, is silently something else. So the
//! kernel keeps to baseline integer instructions: this decodes all of it and names what is not.

use std::collections::BTreeMap;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic};
use quire_vmm::kernel;

/// Features that every x86-64 CPU has, as far as integer instructions go.
const BASELINE: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CPUID,
    CpuidFeature::CX8,
    CpuidFeature::MSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::TSC,
];

/// For guests of the kernel, on the CPUs that have them; run nowhere else.
const GUESTS: &[Mnemonic] = &[
    Mnemonic::Vmxon,
    Mnemonic::Vmxoff,
    Mnemonic::Vmclear,
    Mnemonic::Vmptrld,
    Mnemonic::Vmread,
    Mnemonic::Vmwrite,
    Mnemonic::Vmlaunch,
    Mnemonic::Vmresume,
    Mnemonic::Invept,
    Mnemonic::Invvpid,
    Mnemonic::Vmrun,
    Mnemonic::Clgi,
    Mnemonic::Stgi,
    Mnemonic::Vmcall,
    Mnemonic::Vmmcall,
];

/// Baseline by their feature, and yet not to be used: no host must emulate them, or some do it wrong.
const FORBIDDEN: &[Mnemonic] = &[
    Mnemonic::Int,
    Mnemonic::Int1,
    Mnemonic::Into,
    Mnemonic::Syscall,
    Mnemonic::Sysenter,
    Mnemonic::Enter,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Wait,
    Mnemonic::Ud0,
    Mnemonic::Ud1,
];

/// What is wrong with `instruction`, which `next` follows.
fn objection(instruction: &Instruction, next: Option<&Instruction>) -> Option<String> {
    let mnemonic = instruction.mnemonic();
    if instruction.is_invalid() {
        return Some("no instruction".into());
    }
    if FORBIDDEN.contains(&mnemonic) {
        return Some("forbidden".into());
    }
    // Compilers write `rep bsf` where they do not care: with a result that is defined either way (the operand is not
    // zero, or the destination holds the width beforehand). Read as TZCNT or as BSF it then gives the same register, but
    // not the same flags.
    if mnemonic == Mnemonic::Tzcnt {
        let flags_used = next.is_some_and(|next| next.rflags_read() != 0);
        return flags_used.then(|| "tzcnt or bsf: the flags differ".into());
    }
    // Fences are SSE2 by name and integer instructions in all else.
    if matches!(mnemonic, Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence) {
        return None;
    }
    if GUESTS.contains(&mnemonic) {
        return None;
    }
    let feature = instruction.cpuid_features().iter().find(|feature| !BASELINE.contains(feature))?;
    Some(format!("needs {feature:?}"))
}

/// Every objection to `code`, as text with the address.
fn objections(code: &[u8], address: u64, bits: u32) -> Vec<String> {
    let all: Vec<Instruction> = Decoder::with_ip(bits, code, address, DecoderOptions::NONE).into_iter().collect();
    let mut formatter = GasFormatter::new();
    all.iter()
        .enumerate()
        .filter_map(|(i, instruction)| {
            let what = objection(instruction, all.get(i + 1))?;
            let mut text = String::new();
            formatter.format(instruction, &mut text);
            Some(format!("{:#x}: {text}: {what}", instruction.ip()))
        })
        .collect()
}

/// As much of an ELF image as this test reads.
struct Elf<'a>(&'a [u8]);

impl<'a> Elf<'a> {
    fn number(&self, at: usize, bytes: usize) -> u64 {
        self.0[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The sections: type, flags, address, contents, and the number of the section that belongs to it.
    fn sections(&self) -> Vec<(u64, u64, u64, &'a [u8], usize)> {
        let (table, size, count) = (self.number(0x28, 8) as usize, self.number(0x3a, 2) as usize, self.number(0x3c, 2));
        (0..count as usize)
            .map(|i| {
                let at = table + i * size;
                let kind = self.number(at + 4, 4);
                let (from, bytes) = (self.number(at + 0x18, 8) as usize, self.number(at + 0x20, 8) as usize);
                // SHT_NULL and SHT_NOBITS have no contents.
                let contents = if matches!(kind, 0 | 8) { &[] } else { &self.0[from..from + bytes] };
                (kind, self.number(at + 8, 8), self.number(at + 0x10, 8), contents, self.number(at + 0x28, 4) as usize)
            })
            .collect()
    }

    /// The symbols by name.
    fn symbols(&self) -> BTreeMap<String, u64> {
        let sections = self.sections();
        let (_, _, _, table, names) = sections.iter().find(|section| section.0 == 2).unwrap();
        let names = sections[*names].3;
        table
            .chunks_exact(24)
            .map(|symbol| {
                let name = &names[u32::from_le_bytes(symbol[..4].try_into().unwrap()) as usize..];
                let name = name.split(|byte| *byte == 0).next().unwrap();
                (String::from_utf8_lossy(name).into_owned(), u64::from_le_bytes(symbol[8..16].try_into().unwrap()))
            })
            .collect()
    }
}

#[test]
fn the_kernel_has_only_baseline_integer_instructions() {
    const EXECUTABLE: u64 = 4;
    let elf = Elf(kernel::ELF);
    let symbols = elf.symbols();
    let narrow = symbols["flat_start"]..symbols["long_start"];
    let mut seen = 0;
    let mut wrong = Vec::new();
    for (_, flags, address, contents, _) in elf.sections() {
        if flags & EXECUTABLE == 0 {
            continue;
        }
        seen += contents.len();
        let split = if narrow.contains(&address) { (narrow.end - address) as usize } else { 0 };
        let (first, rest) = contents.split_at(split);
        wrong.extend(objections(first, address, 32));
        wrong.extend(objections(rest, address + split as u64, 64));
    }
    assert!(seen > 0x2000, "only {seen} bytes of code were found");
    assert!(wrong.is_empty(), "{} instructions:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_checker_objects_to_what_it_should() {
    let bad: &[(&str, &[u8])] = &[
        ("popcnt", &[0xf3, 0x48, 0x0f, 0xb8, 0xc1]),
        ("lzcnt", &[0xf3, 0x48, 0x0f, 0xbd, 0xc1]),
        ("tzcnt with its flags used", &[0xf3, 0x48, 0x0f, 0xbc, 0xc1, 0x72, 0x00]),
        ("blsr", &[0xc4, 0xe2, 0xf8, 0xf3, 0xc9]),
        ("movups", &[0x0f, 0x10, 0x00]),
        ("pxor", &[0x66, 0x0f, 0xef, 0xc0]),
        ("vmovups", &[0xc5, 0xf8, 0x10, 0x00]),
        ("emms", &[0x0f, 0x77]),
        ("fld1", &[0xd9, 0xe8]),
        ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x08]),
        ("syscall", &[0x0f, 0x05]),
        ("int 0x80", &[0xcd, 0x80]),
        ("int1", &[0xf1]),
        ("rdtscp", &[0x0f, 0x01, 0xf9]),
        ("xgetbv", &[0x0f, 0x01, 0xd0]),
        ("stac", &[0x0f, 0x01, 0xcb]),
        ("clac", &[0x0f, 0x01, 0xca]),
        ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x00]),
        ("vmfunc", &[0x0f, 0x01, 0xd4]),
        ("vmload", &[0x0f, 0x01, 0xda]),
        ("skinit", &[0x0f, 0x01, 0xde]),
        ("movbe", &[0x0f, 0x38, 0xf0, 0x00]),
        ("crc32", &[0xf2, 0x0f, 0x38, 0xf0, 0xc0]),
        ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf8]),
        ("xsave", &[0x0f, 0xae, 0x20]),
        ("lar", &[0x0f, 0x02, 0xc0]),
        ("nothing", &[0x0f, 0xff, 0x06]),
    ];
    for (name, bytes) in bad {
        assert_eq!(objections(bytes, 0, 64).len(), 1, "{name}");
    }
    let good: &[&[u8]] = &[
        &[0x90],                               // nop
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],       // nop of five bytes
        &[0xf3, 0x48, 0xab],                   // rep stosq
        &[0x48, 0x0f, 0xbd, 0xc1],             // bsr
        &[0xf3, 0x48, 0x0f, 0xbc, 0xc1, 0xc3], // rep bsf, ret
        &[0xf0, 0x48, 0x0f, 0xb1, 0x0f],       // lock cmpxchg
        &[0x0f, 0x01, 0x3f],                   // invlpg
        &[0x0f, 0x22, 0xd8],                   // mov cr3
        &[0x48, 0xcf],                         // iretq
        &[0x0f, 0xae, 0xe8],                   // lfence
        &[0x0f, 0x0b],                         // ud2
        &[0xcc],                               // int3: the shim's calls
        &[0x0f, 0x01, 0xc3],                   // vmresume
        &[0x0f, 0x01, 0xd8],                   // vmrun
    ];
    for bytes in good {
        assert_eq!(objections(bytes, 0, 64), Vec::<String>::new());
    }
}
