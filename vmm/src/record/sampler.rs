//! Page faults of the recorded program and its children, from perf's software event.
//!
//! One event for each CPU, inherited by children, catches every fault from the first instruction of each thread on; an
//! event opened when a thread is first seen stopped would miss what the kernel does on its behalf before (the store of its
//! own id after `fork`, for one). Records carry `CLOCK_MONOTONIC`, and the registers that tell which operand faulted.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use perf_event_open_sys::bindings as abi;

use super::RecordError;
use super::procfs::sysctl;
use super::ring::Ring;

/// A page fault as perf reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) time: u64,
    pub(super) tid: i32,
    pub(super) ip: u64,
    pub(super) address: u64,
    /// Whether the kernel touched the page, for a system call.
    pub(super) kernel: bool,
    pub(super) registers: Option<Registers>,
}

/// The registers at a page fault that tell operands apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) rax: u64,
    pub(super) rcx: u64,
    pub(super) rsi: u64,
    pub(super) rdi: u64,
    pub(super) rsp: u64,
}

/// What the sampler reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Fault(Sample),
    /// The thread left its old address space for that of a new program.
    Exec {
        time: u64,
        tid: i32,
    },
    /// So many records did not fit the ring.
    Lost(u64),
}

/// Open events for all CPUs.
#[derive(Debug)]
pub(super) struct Sampler {
    rings: Vec<Ring>,
    /// Whether faults of the kernel on the program's behalf are seen.
    pub(super) sees_kernel: bool,
    bytes: Vec<u8>,
}

/// As numbered in `asm/perf_regs.h`; values come in the order of the bits.
const REGISTERS: u64 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 7;

impl Sampler {
    /// Samples `pid` and its children from its next `exec` on.
    pub(super) fn new(pid: i32) -> Result<Self, RecordError> {
        // An unprivileged user may not see the kernel's faults, but may see the rest.
        match Self::open(pid, true) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::open(pid, false),
            result => result,
        }
        .map_err(|error| RecordError::PerfRefused { error, paranoid: sysctl("kernel/perf_event_paranoid") })
    }

    fn open(pid: i32, kernel: bool) -> io::Result<Self> {
        let mut rings = Vec::new();
        for cpu in online_cpus() {
            match Ring::open(attributes(kernel), pid, cpu) {
                Ok(ring) => rings.push(ring),
                // It went offline since we looked.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { rings, sees_kernel: kernel, bytes: Vec::new() })
    }

    /// Descriptors to poll: readable when a ring fills up.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.rings.iter().map(Ring::descriptor).collect()
    }

    /// Hands out every record that is there. Those of one thread come in order.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Record)) {
        for ring in &mut self.rings {
            self.bytes.clear();
            ring.drain(&mut self.bytes);
            let mut rest = self.bytes.as_slice();
            while let Some((record, after)) = parse(rest) {
                rest = after;
                if let Some(record) = record {
                    take(record);
                }
            }
        }
    }
}

fn attributes(kernel: bool) -> abi::perf_event_attr {
    let mut attr = abi::perf_event_attr {
        type_: abi::PERF_TYPE_SOFTWARE,
        size: u32::try_from(size_of::<abi::perf_event_attr>()).unwrap_or_default(),
        config: abi::PERF_COUNT_SW_PAGE_FAULTS.into(),
        sample_type: u64::from(
            abi::PERF_SAMPLE_IP
                | abi::PERF_SAMPLE_TID
                | abi::PERF_SAMPLE_TIME
                | abi::PERF_SAMPLE_ADDR
                | abi::PERF_SAMPLE_REGS_INTR,
        ),
        sample_regs_intr: REGISTERS,
        clockid: libc::CLOCK_MONOTONIC,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    attr.set_disabled(1);
    attr.set_enable_on_exec(1);
    attr.set_inherit(1);
    attr.set_use_clockid(1);
    attr.set_comm(1);
    attr.set_comm_exec(1);
    attr.set_sample_id_all(1);
    attr.set_exclude_hv(1);
    attr.set_exclude_kernel(u64::from(!kernel));
    attr
}

/// The CPUs of `/sys/devices/system/cpu/online`, such as `0-3,8`.
fn online_cpus() -> Vec<i32> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?)
    });
    let cpus: Vec<i32> = ranges.flatten().collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Takes one record off the front of `bytes`; a record of no interest is `None`.
fn parse(bytes: &[u8]) -> Option<(Option<Record>, &[u8])> {
    let header = bytes.get(..8)?;
    let kind = u32::from_ne_bytes(header[..4].try_into().ok()?);
    let misc = u16::from_ne_bytes(header[4..6].try_into().ok()?);
    let size = usize::from(u16::from_ne_bytes(header[6..].try_into().ok()?));
    let body = bytes.get(8..size)?;
    let words: Vec<u64> =
        body.chunks_exact(8).filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?))).collect();
    Some((parse_body(kind, u32::from(misc), &words), &bytes[size..]))
}

fn parse_body(kind: u32, misc: u32, words: &[u64]) -> Option<Record> {
    match kind {
        abi::PERF_RECORD_SAMPLE => {
            let [ip, ids, time, address, registers @ ..] = words else { return None };
            let registers = match *registers {
                [abi, rax, rcx, rsi, rdi, rsp] if abi != 0 => Some(Registers { rax, rcx, rsi, rdi, rsp }),
                _ => None,
            };
            let kernel = misc & abi::PERF_RECORD_MISC_CPUMODE_MASK == abi::PERF_RECORD_MISC_KERNEL;
            Some(Record::Fault(Sample { time: *time, tid: tid(*ids), ip: *ip, address: *address, kernel, registers }))
        }
        // Each record but samples ends with the ids that are sampled: thread and time.
        abi::PERF_RECORD_COMM if misc & abi::PERF_RECORD_MISC_COMM_EXEC != 0 => {
            let [ids, .., time] = words else { return None };
            Some(Record::Exec { time: *time, tid: tid(*ids) })
        }
        abi::PERF_RECORD_LOST => Some(Record::Lost(*words.get(1)?)),
        _ => None,
    }
}

/// Process and thread share a word, the thread in its upper half.
const fn tid(ids: u64) -> i32 {
    (ids >> 32) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, misc: u16, words: &[u64]) -> Vec<u8> {
        let size = u16::try_from(8 + 8 * words.len()).unwrap();
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn records_are_read() {
        let sample = record(9, 2, &[0x401000, 7 << 32 | 5, 99, 0x7000, 2, 1, 2, 3, 4, 5]);
        let (parsed, rest) = parse(&sample).unwrap();
        let registers = Some(Registers { rax: 1, rcx: 2, rsi: 3, rdi: 4, rsp: 5 });
        let fault = Sample { time: 99, tid: 7, ip: 0x401000, address: 0x7000, kernel: false, registers };
        assert_eq!((parsed, rest), (Some(Record::Fault(fault)), &[][..]));
        // comm is 16 bytes here, then come the sampled ids.
        let comm = record(3, 1 << 13, &[7 << 32 | 5, 0x6c73, 0, 7 << 32 | 5, 42]);
        assert_eq!(parse(&comm).unwrap().0, Some(Record::Exec { time: 42, tid: 7 }));
        assert_eq!(parse(&record(3, 0, &[7 << 32 | 5, 0x6c73, 7 << 32 | 5, 42])).unwrap().0, None);
        assert_eq!(parse(&record(2, 0, &[1, 12, 7 << 32 | 5, 42])).unwrap().0, Some(Record::Lost(12)));
        assert_eq!(parse(&sample[..20]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn there_is_a_cpu() {
        assert!(!online_cpus().is_empty());
    }
}
