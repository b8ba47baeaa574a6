//! Whether a page fault was a load or a store.
//!
//! perf's sample does not hold the fault's error code, so the instruction at its ip is decoded: what it does to memory, and
//! if it both loads and stores (`movs`, `push [mem]`), which operand is near the fault's address. A read-modify-write
//! faults as a store, since the processor asks for the permission it needs in the end. The kernel's own instructions cannot
//! be read; but it touches a program's memory in few ways, and each has its register: user copies store through rdi and
//! load through rsi, `put_user` stores through rcx, `get_user` loads through rax.

use iced_x86::{Code, Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};

use super::sampler::{Registers, Sample};
use super::timeline::Direction;

/// The longest instruction.
const LONGEST: u64 = 15;
/// How far from its register an operand may be: the unrolled copy loops touch 64 bytes at a time, a word may straddle.
const NEAR: u64 = 72;
const PAGE: u64 = 4096;

/// Why a fault happened, where `read_code` reads the program's memory: bytes from an address on, as many as it gets.
pub(super) fn direction(sample: &Sample, read_code: impl Fn(u64, &mut [u8]) -> usize) -> Direction {
    if sample.kernel {
        return sample.registers.map_or(Direction::Unknown, |registers| of_kernel(sample.address, registers));
    }
    // A fetch faults at the instruction's first byte, or at the page where it goes on.
    let behind = sample.address.wrapping_sub(sample.ip);
    if behind == 0 || (behind < LONGEST && sample.address.is_multiple_of(PAGE)) {
        return Direction::Read;
    }
    let mut code = [0; LONGEST as usize];
    // First only up to the end of the page: to read the next one would touch it for the program.
    let first = usize::try_from(PAGE - sample.ip % PAGE).unwrap_or(1).min(code.len());
    let mut length = read_code(sample.ip, &mut code[..first]);
    let found = of_user(sample, &code[..length]);
    if found.is_some() || length < first || first == code.len() {
        return found.unwrap_or(Direction::Unknown);
    }
    length += read_code(sample.ip + first as u64, &mut code[first..]);
    of_user(sample, &code[..length]).unwrap_or(Direction::Unknown)
}

/// What the instruction in `code` wanted at the fault's address; `None` when the bytes are no whole instruction.
fn of_user(sample: &Sample, code: &[u8]) -> Option<Direction> {
    let mut decoder = Decoder::with_ip(64, code, sample.ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.code() == Code::INVALID {
        return None;
    }
    let mut factory = InstructionInfoFactory::new();
    let (mut reads, mut writes, mut nearest) = (false, false, None);
    for operand in factory.info(&instruction).used_memory() {
        let direction = match operand.access() {
            OpAccess::Read | OpAccess::CondRead => Direction::Read,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => Direction::Write,
            _ => continue,
        };
        reads |= direction == Direction::Read;
        writes |= direction == Direction::Write;
        let place = operand.virtual_address(0, |register, _, _| value(sample.registers?, sample.ip, register));
        let distance = place.map(|place| place.abs_diff(sample.address)).filter(|&distance| distance <= NEAR);
        if let Some(distance) = distance
            && nearest.is_none_or(|(other, _)| distance < other)
        {
            nearest = Some((distance, direction));
        }
    }
    Some(match (reads, writes, nearest) {
        (true, true, Some((_, direction))) => direction,
        (true, true, None) => Direction::Unknown,
        (_, true, _) => Direction::Write,
        (true, ..) => Direction::Read,
        // No operand in memory: the fetch itself, later than its first byte.
        (false, false, _) if sample.address / PAGE == sample.ip / PAGE => Direction::Read,
        (false, false, _) => Direction::Unknown,
    })
}

fn value(registers: Registers, ip: u64, register: Register) -> Option<u64> {
    match register {
        Register::RAX => Some(registers.rax),
        Register::RCX => Some(registers.rcx),
        Register::RSI => Some(registers.rsi),
        Register::RDI => Some(registers.rdi),
        Register::RSP => Some(registers.rsp),
        Register::RIP => Some(ip),
        Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
        _ => None,
    }
}

fn of_kernel(address: u64, registers: Registers) -> Direction {
    // The one-word accessors first: their pointer is exact, and often still stands in another register as well.
    if registers.rax == address {
        return Direction::Read;
    }
    if registers.rcx == address {
        return Direction::Write;
    }
    // Near rcx: the frame of a signal, written field by field.
    let ways = [(registers.rdi, Direction::Write), (registers.rsi, Direction::Read), (registers.rcx, Direction::Write)];
    let near = ways.iter().find(|(register, _)| register.abs_diff(address) <= NEAR);
    let same_page = || ways.iter().find(|(register, _)| register / PAGE == address / PAGE);
    near.or_else(same_page).map_or(Direction::Unknown, |&(_, direction)| direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTERS: Registers =
        Registers { rax: 0x10_0000, rcx: 0x20_0000, rsi: 0x30_0000, rdi: 0x40_0000, rsp: 0x50_0000 };

    fn user(code: &[u8], ip: u64, address: u64) -> Direction {
        let sample = Sample { time: 0, tid: 1, ip, address, kernel: false, registers: Some(REGISTERS) };
        direction(&sample, |at, into| {
            let from = usize::try_from(at - ip).unwrap().min(code.len());
            let length = into.len().min(code.len() - from);
            into[..length].copy_from_slice(&code[from..from + length]);
            length
        })
    }

    #[test]
    fn loads_and_stores() {
        assert_eq!(user(&[0x8b, 0x00], 0x1000, 0x10_0000), Direction::Read); // mov eax, [rax]
        assert_eq!(user(&[0x89, 0x00], 0x1000, 0x10_0000), Direction::Write); // mov [rax], eax
        assert_eq!(user(&[0xc6, 0x00, 0x01], 0x1000, 0x10_0000), Direction::Write); // mov byte [rax], 1
        assert_eq!(user(&[0x01, 0x00], 0x1000, 0x10_0000), Direction::Write); // add [rax], eax
        assert_eq!(user(&[0xf0, 0x0f, 0xb1, 0x0f], 0x1000, 0x40_0000), Direction::Write); // lock cmpxchg [rdi], ecx
        assert_eq!(user(&[0x39, 0x00], 0x1000, 0x10_0000), Direction::Read); // cmp [rax], eax
        assert_eq!(user(&[0xc5, 0xfe, 0x7f, 0x07], 0x1000, 0x40_0000), Direction::Write); // vmovdqu [rdi], ymm0
        assert_eq!(user(&[0x8b, 0x05, 0, 0, 0, 0], 0x1000, 0x1006), Direction::Read); // mov eax, [rip]
    }

    #[test]
    fn two_operands_are_told_apart_by_registers() {
        let movs = [0xf3, 0xa4];
        assert_eq!(user(&movs, 0x1000, 0x30_0000), Direction::Read);
        assert_eq!(user(&movs, 0x1000, 0x40_0000), Direction::Write);
        assert_eq!(user(&movs, 0x1000, 0x90_0000), Direction::Unknown);
        let push_mem = [0xff, 0x30]; // push [rax]
        assert_eq!(user(&push_mem, 0x1000, 0x10_0000), Direction::Read);
        assert_eq!(user(&push_mem, 0x1000, 0x4f_fff8), Direction::Write);
        assert_eq!(user(&[0xff, 0x10], 0x1000, 0x4f_fff8), Direction::Write); // call [rax]
        assert_eq!(user(&[0xe8, 0, 0, 0, 0], 0x1000, 0x4f_fff8), Direction::Write); // call
    }

    #[test]
    fn fetches_are_reads() {
        assert_eq!(user(&[], 0x1000, 0x1000), Direction::Read);
        assert_eq!(user(&[], 0x1ffd, 0x2000), Direction::Read);
        assert_eq!(user(&[0x90], 0x1004, 0x1008), Direction::Read);
    }

    #[test]
    fn code_that_cannot_be_read_leaves_it_unknown() {
        assert_eq!(user(&[], 0x1000, 0x10_0000), Direction::Unknown);
        assert_eq!(user(&[0x8b], 0x1000, 0x10_0000), Direction::Unknown);
        assert_eq!(user(&[0x06], 0x1000, 0x10_0000), Direction::Unknown); // no instruction in 64-bit mode
    }

    #[test]
    fn instructions_across_pages_are_read_in_two_steps() {
        assert_eq!(user(&[0x8b, 0x00], 0x1fff, 0x10_0000), Direction::Read);
        assert_eq!(user(&[0x89, 0x00], 0x1fff, 0x10_0000), Direction::Write);
    }

    #[test]
    fn the_kernel_touches_programs_through_certain_registers() {
        let kernel = |address| {
            let sample =
                Sample { time: 0, tid: 1, ip: u64::MAX - 4096, address, kernel: true, registers: Some(REGISTERS) };
            direction(&sample, |_, _| unreachable!())
        };
        assert_eq!(kernel(0x40_0000), Direction::Write);
        assert_eq!(kernel(0x30_0038), Direction::Read);
        assert_eq!(kernel(0x20_0000), Direction::Write);
        assert_eq!(kernel(0x10_0000), Direction::Read);
        assert_eq!(kernel(0x40_0800), Direction::Write);
        assert_eq!(kernel(0x1f_fff8), Direction::Write);
        assert_eq!(kernel(0x90_0000), Direction::Unknown);
    }
}
