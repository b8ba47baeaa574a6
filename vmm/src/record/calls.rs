//! System calls that change mappings: what is asked at the entry, what was done at the exit.

use quire::space::Advice;

use super::identity::{Source, shared_anonymous, source_of_file};
use super::procfs::{descriptor, mapping_at};
use super::timeline::{Call, Mapping};
use super::tracee_memory::read_word;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
/// `CLONE_VM`, `CLONE_THREAD` as `clone` takes them.
const CLONE_VM: u64 = libc::CLONE_VM as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;

/// A call under way.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Map {
        length: u64,
        prot: u64,
        flags: u64,
        source: Option<Source>,
    },
    Unmap {
        start: u64,
        end: u64,
    },
    Protect {
        start: u64,
        end: u64,
        prot: u64,
    },
    Remap {
        from: u64,
        length: u64,
        new_length: u64,
        flags: u64,
    },
    Advise {
        start: u64,
        end: u64,
        advice: i32,
    },
    Brk {
        wanted: u64,
    },
    Attach,
    Detach(Option<Mapping>),
    /// `fork` and its relatives: whether the child shares the address space, and whether it is a thread of the process.
    Fork {
        shares: bool,
        thread: bool,
    },
    /// Changes mappings in a way that no operation expresses.
    Inexpressible,
}

/// When a call took effect: other threads may run while it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// What it took away was not used after its entry.
    Entry,
    /// What it gave was not used before its exit.
    Exit,
}

/// What system call `number` of thread `tid` asks for; `None` when that does not concern mappings. `fresh` numbers shared
/// anonymous memory.
pub(super) fn asked(tid: i32, number: u64, arguments: &[u64; 6], fresh: &mut u64) -> Option<Asked> {
    let [a0, a1, a2, a3, a4, a5] = *arguments;
    Some(match i64::try_from(number).ok()? {
        libc::SYS_mmap => {
            let source = map_source(tid, a3, a4, a5, fresh);
            Asked::Map { length: a1, prot: a2, flags: a3, source }
        }
        libc::SYS_munmap => Asked::Unmap { start: a0, end: end(a0, a1) },
        libc::SYS_mprotect | libc::SYS_pkey_mprotect => Asked::Protect { start: a0, end: end(a0, a1), prot: a2 },
        libc::SYS_mremap => Asked::Remap { from: a0, length: a1, new_length: a2, flags: a3 },
        libc::SYS_madvise => Asked::Advise { start: a0, end: end(a0, a1), advice: a2 as i32 },
        libc::SYS_brk => Asked::Brk { wanted: a0 },
        libc::SYS_shmat => Asked::Attach,
        libc::SYS_shmdt => Asked::Detach(mapping_at(tid, a0)),
        libc::SYS_fork => Asked::Fork { shares: false, thread: false },
        libc::SYS_vfork => Asked::Fork { shares: true, thread: false },
        libc::SYS_clone => fork(a0),
        // The flags come first in its structure.
        libc::SYS_clone3 => fork(read_word(tid, a0).unwrap_or(0)),
        libc::SYS_remap_file_pages => Asked::Inexpressible,
        _ => return None,
    })
}

/// Whether system call `number` replaces the address space, so that everything about the old one must be read before.
pub(super) fn is_exec(number: u64) -> bool {
    matches!(i64::try_from(number), Ok(libc::SYS_execve | libc::SYS_execveat))
}

impl Asked {
    /// What the call did, given its result; `None` when it failed or changed nothing. The heap of thread `tid` starts at `heap`.
    pub(super) fn done(self, tid: i32, result: i64, heap: Option<u64>) -> Option<(Call, When)> {
        let failed = (-4095..0).contains(&result);
        // madvise reports holes as an error, but works around them.
        let holes = matches!(self, Self::Advise { .. }) && result == -i64::from(libc::ENOMEM);
        if failed && !holes {
            return None;
        }
        let value = result.cast_unsigned();
        Some(match self {
            Self::Map { length, prot, flags, source } => {
                let Some(source) = source else { return Some((Call::Inexpressible, When::Exit)) };
                let has = |flag: i32| flags & flag as u64 != 0;
                let granule = if has(libc::MAP_HUGETLB) { HUGE_PAGE } else { PAGE };
                let mapping = Mapping {
                    start: value,
                    end: value.saturating_add(length.next_multiple_of(granule)),
                    prot,
                    stack: has(libc::MAP_GROWSDOWN) && source == Source::Anon,
                    source,
                    fixed: has(libc::MAP_FIXED),
                };
                (Call::Map { mapping, populate: has(libc::MAP_POPULATE) }, When::Exit)
            }
            Self::Unmap { start, end } => (Call::Unmap { start, end }, When::Entry),
            Self::Protect { start, end, prot } => {
                let gives = prot & libc::PROT_WRITE as u64 != 0;
                let call = if prot & (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP) as u64 == 0 {
                    Call::Protect { start, end, prot }
                } else {
                    Call::Inexpressible
                };
                (call, if gives { When::Exit } else { When::Entry })
            }
            Self::Remap { from, length, new_length, flags } => {
                // A length of 0 makes a second mapping of shared pages, DONTUNMAP leaves an empty one behind.
                let call = if length == 0 || flags & libc::MREMAP_DONTUNMAP as u64 != 0 {
                    Call::Inexpressible
                } else {
                    let (length, new_length) = (length.next_multiple_of(PAGE), new_length.next_multiple_of(PAGE));
                    Call::Remap { from, length, to: value, new_length }
                };
                (call, When::Entry)
            }
            Self::Advise { start, end, advice } => (advised(start, end, advice)?, When::Entry),
            Self::Brk { wanted } => {
                // A failing brk says where the heap ends, as one that asks does.
                if wanted == 0 || wanted != value {
                    return None;
                }
                let Some(start) = heap else { return Some((Call::Inexpressible, When::Exit)) };
                let call = Call::Brk { start: start.next_multiple_of(PAGE), end: value.next_multiple_of(PAGE) };
                (call, When::Exit)
            }
            Self::Attach => {
                let mapping = mapping_at(tid, value);
                let call = mapping.map_or(Call::Inexpressible, |mapping| {
                    // SHM_REMAP replaces like MAP_FIXED.
                    Call::Map { mapping: Mapping { fixed: true, ..mapping }, populate: false }
                });
                (call, When::Exit)
            }
            Self::Detach(mapping) => {
                let call = mapping.map_or(Call::Inexpressible, |m| Call::Unmap { start: m.start, end: m.end });
                (call, When::Entry)
            }
            Self::Fork { .. } => return None,
            Self::Inexpressible => (Call::Inexpressible, When::Exit),
        })
    }
}

fn fork(flags: u64) -> Asked {
    Asked::Fork { shares: flags & CLONE_VM != 0, thread: flags & CLONE_THREAD != 0 }
}

fn end(start: u64, length: u64) -> u64 {
    start.saturating_add(length.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX))
}

/// What an `mmap` maps. The descriptor is looked at before the call: another thread may close it meanwhile.
fn map_source(tid: i32, flags: u64, fd: u64, offset: u64, fresh: &mut u64) -> Option<Source> {
    let kind = flags & libc::MAP_TYPE as u64;
    let private = kind == libc::MAP_PRIVATE as u64;
    let mut number = || {
        *fresh += 1;
        *fresh
    };
    if flags & libc::MAP_ANONYMOUS as u64 != 0 {
        return Some(if private { Source::Anon } else { shared_anonymous(number()) });
    }
    source_of_file(&descriptor(tid, fd as i32), offset, private, number)
}

fn advised(start: u64, end: u64, advice: i32) -> Option<Call> {
    let operation = match advice {
        libc::MADV_DONTNEED | libc::MADV_DONTNEED_LOCKED => Advice::DontNeed,
        libc::MADV_HUGEPAGE => Advice::HugePage,
        libc::MADV_NOHUGEPAGE => Advice::NoHugePage,
        libc::MADV_POPULATE_READ => return Some(Call::Populate { start, end, write: false }),
        libc::MADV_POPULATE_WRITE => return Some(Call::Populate { start, end, write: true }),
        // These change what a later fault or fork finds.
        libc::MADV_REMOVE | libc::MADV_DONTFORK | libc::MADV_WIPEONFORK => return Some(Call::Inexpressible),
        _ => return None,
    };
    Some(Call::Advise { start, end, advice: operation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(number: i64, arguments: [u64; 6], result: i64) -> Option<(Call, When)> {
        let call = asked(0, number.cast_unsigned(), &arguments, &mut 0)?;
        call.done(0, result, Some(0x1000))
    }

    #[test]
    fn calls_that_failed_did_nothing() {
        assert!(done(libc::SYS_munmap, [0x1000, 4096, 0, 0, 0, 0], -22).is_none());
        assert!(done(libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0], -12).is_none());
        assert!(done(libc::SYS_brk, [0x9000, 0, 0, 0, 0, 0], 0x5000).is_none());
        assert!(done(libc::SYS_brk, [0; 6], 0x5000).is_none());
        assert!(done(libc::SYS_read, [0; 6], 0).is_none());
    }

    #[test]
    fn lengths_are_whole_pages() {
        let (call, when) = done(libc::SYS_mmap, [0, 5000, 3, 0x32, u64::MAX, 0], 0x10000).unwrap();
        let Call::Map { mapping, populate: false } = call else { panic!("{call:?}") };
        assert_eq!((mapping.start, mapping.end, mapping.fixed), (0x10000, 0x12000, true));
        assert_eq!((mapping.source, when), (Source::Anon, When::Exit));
        let (call, _) = done(libc::SYS_brk, [0x9001, 0, 0, 0, 0, 0], 0x9001).unwrap();
        assert!(matches!(call, Call::Brk { start: 0x1000, end: 0xa000 }));
    }

    #[test]
    fn advice_with_holes_counts() {
        let advise = |advice, result| done(libc::SYS_madvise, [0x1000, 4096, advice, 0, 0, 0], result);
        assert!(matches!(advise(4, -12), Some((Call::Advise { advice: Advice::DontNeed, .. }, When::Entry))));
        assert!(advise(4, -22).is_none());
        assert!(advise(3, 0).is_none()); // MADV_WILLNEED
        assert!(matches!(advise(23, 0), Some((Call::Populate { write: true, .. }, _))));
    }

    #[test]
    fn children_share_or_copy() {
        let flags = |flags| asked(0, libc::SYS_clone.cast_unsigned(), &[flags, 0, 0, 0, 0, 0], &mut 0);
        assert!(matches!(flags(17), Some(Asked::Fork { shares: false, thread: false })));
        assert!(matches!(flags(0x4111), Some(Asked::Fork { shares: true, thread: false })));
        assert!(matches!(flags(0x3d_0f00), Some(Asked::Fork { shares: true, thread: true })));
    }

    #[test]
    fn what_no_operation_expresses_is_told() {
        let remap = |length, flags| done(libc::SYS_mremap, [0x1000, length, 8192, flags, 0, 0], 0x8000);
        assert!(matches!(remap(4096, 1), Some((Call::Remap { to: 0x8000, new_length: 8192, .. }, _))));
        assert!(matches!(remap(0, 1), Some((Call::Inexpressible, _))));
        assert!(matches!(remap(4096, 5), Some((Call::Inexpressible, _))));
    }
}
