//! The host's Linux as a machine for traces: processes that execute operations, and what `/proc` says of them.
//!
//! Each process of a trace is a process of the host, which takes operations from a socket of its own, one at a time. All sockets and files exist before
//! the first process, so that every child has them. A child runs nothing that allocates: it was forked out of a program with threads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use quire::space::{Advice, ObjectKind, Prot};
use quire::trace::encode::{decode, encode};
use quire::trace::{Backing, Op};

const PAGE: u64 = 4096;
/// Processes of one trace at most.
const PROCS: usize = 64;
/// Bits of `/proc/PID/pagemap`.
const PRESENT: u64 = 1 << 63;
const FILE_PAGE: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 56;
const PFN: u64 = (1 << 55) - 1;
/// KPF_THP of `/proc/kpageflags`.
const THP: u64 = 1 << 22;
/// KPF_ANON.
const ANON: u64 = 1 << 12;

fn checked(result: i64, what: &str) -> i64 {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
    result
}

/// What Linux says of a page that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    pub pfn: u64,
    pub exclusive: bool,
    pub is_file: bool,
    /// kpagecount.
    pub count: u64,
    /// The folio, for anonymous ones of 2 MiB; else the page itself.
    pub folio: HostFolio,
}

/// What follows from kpagecount and pagemap for a folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFolio {
    pub head: u64,
    pub pages: u64,
    /// kpagecount of its first page.
    pub first: u64,
    /// kpagecount of all its pages.
    pub total: u64,
    /// Processes that map some of it.
    pub owners: u64,
    /// Whether it had more than two owners at a time once.
    pub was_crowded: bool,
}

/// A vma of `/proc/PID/smaps`, in pages.
#[derive(Clone, Debug, Default)]
pub struct HostVma {
    pub start: u64,
    pub end: u64,
    /// The fields by name, in kB.
    pub fields: BTreeMap<String, u64>,
}

/// A process, as far as it lies in the windows.
#[derive(Clone, Debug, Default)]
pub struct HostProcess {
    pub vmas: Vec<HostVma>,
    pub pages: BTreeMap<u64, HostPage>,
}

/// All processes by their number in the trace.
pub type Snapshot = BTreeMap<u32, HostProcess>;

/// The processes.
pub struct Host {
    sockets: Vec<(OwnedFd, OwnedFd)>,
    objects: Vec<Option<OwnedFd>>,
    pids: BTreeMap<u32, i32>,
    ended: Vec<i32>,
    counts: File,
    flags: File,
}

impl Host {
    /// A host for the objects that `ops` declare.
    pub fn new(ops: &[Op]) -> Self {
        let sockets = (0..PROCS).map(|_| pair()).collect();
        let mut objects: Vec<Option<OwnedFd>> = Vec::new();
        for op in ops {
            if let Op::Object { object, kind, pages, .. } = *op {
                objects.resize_with(objects.len().max(object as usize + 1), || None);
                objects[object as usize] = Some(object_of(kind, pages));
            }
        }
        let open = |file| File::open(file).unwrap();
        let (counts, flags) = (open("/proc/kpagecount"), open("/proc/kpageflags"));
        Self { sockets, objects, pids: BTreeMap::new(), ended: Vec::new(), counts, flags }
    }

    /// Executes one operation; what the system call said if it refused.
    pub fn step(&mut self, op: &Op) -> Result<(), i32> {
        match *op {
            Op::Object { .. } | Op::Look { .. } => Ok(()),
            Op::Start { proc } => {
                self.start(proc);
                Ok(())
            }
            Op::Fork { proc, child } => {
                let pid = self.ask(proc, op);
                assert!(pid > 0, "fork: {pid}");
                self.pids.insert(child, pid as i32);
                Ok(())
            }
            Op::Exit { proc } => {
                let pid = self.pids.remove(&proc).unwrap();
                self.send(proc, op);
                wait_for_end(pid);
                self.ended.push(pid);
                Ok(())
            }
            Op::Map { proc, .. }
            | Op::Unmap { proc, .. }
            | Op::Protect { proc, .. }
            | Op::Remap { proc, .. }
            | Op::Advise { proc, .. }
            | Op::Access { proc, .. } => match self.ask(proc, op) {
                0 => Ok(()),
                error => Err(error as i32),
            },
            Op::Brk { .. } | Op::Share { .. } | Op::Exec { .. } => unimplemented_here(op),
        }
    }

    fn start(&mut self, proc: u32) {
        let channels: [RawFd; PROCS] = std::array::from_fn(|i| self.sockets[i].1.as_raw_fd());
        let ours: [RawFd; PROCS] = std::array::from_fn(|i| self.sockets[i].0.as_raw_fd());
        let objects: Vec<RawFd> = self.objects.iter().map(|fd| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)).collect();
        // SAFETY: the child only makes system calls and touches memory that it has mapped itself, until it ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            for fd in ours {
                // SAFETY: the child's own copies; without them it sees the end of its socket when this process is gone.
                unsafe { libc::close(fd) };
            }
            serve(&channels, proc as usize, &objects);
        }
        self.pids.insert(proc, checked(pid.into(), "fork") as i32);
    }

    fn send(&self, proc: u32, op: &Op) {
        let words = encode(op);
        let fd = self.sockets[proc as usize].0.as_raw_fd();
        // SAFETY: a buffer of that length.
        let sent = unsafe { libc::write(fd, words.as_ptr().cast(), size_of_val(&words)) };
        assert_eq!(sent, size_of_val(&words) as isize);
    }

    fn ask(&self, proc: u32, op: &Op) -> i64 {
        self.send(proc, op);
        let mut reply = 0i64;
        let fd = self.sockets[proc as usize].0.as_raw_fd();
        let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, and a buffer of that length.
        let got = unsafe {
            checked(libc::poll(&raw mut ready, 1, 10_000).into(), "poll");
            libc::recv(fd, (&raw mut reply).cast(), 8, libc::MSG_DONTWAIT)
        };
        assert_eq!(got, 8, "process {proc} died of {op}, or hangs");
        reply
    }

    /// What `/proc` says now of the pages in `windows`.
    pub fn look(&self, windows: &[std::ops::Range<u64>]) -> Snapshot {
        let mut all = Snapshot::new();
        for (&proc, &pid) in &self.pids {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
            let mut vmas = vmas_of(&text);
            vmas.retain(|vma| windows.iter().any(|window| window.contains(&vma.start)));
            let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
            let mut pages = BTreeMap::new();
            for vma in &vmas {
                let mut bytes = vec![0; 8 * (vma.end - vma.start) as usize];
                pagemap.read_exact_at(&mut bytes, 8 * vma.start).unwrap();
                for (page, bytes) in (vma.start..).zip(bytes.chunks_exact(8)) {
                    let word = u64::from_ne_bytes(bytes.try_into().unwrap());
                    if word & PRESENT != 0 {
                        let pfn = word & PFN;
                        assert_ne!(pfn, 0, "pagemap hides frames");
                        let folio =
                            HostFolio { head: pfn, pages: 1, first: 0, total: 0, owners: 0, was_crowded: false };
                        let (exclusive, is_file) = (word & EXCLUSIVE != 0, word & FILE_PAGE != 0);
                        let count = word_of(&self.counts, pfn);
                        pages.insert(page, HostPage { pfn, exclusive, is_file, count, folio });
                    }
                }
            }
            all.insert(proc, HostProcess { vmas, pages });
        }
        self.find_folios(&mut all);
        all
    }

    fn find_folios(&self, all: &mut Snapshot) {
        let mut folios: BTreeMap<u64, HostFolio> = BTreeMap::new();
        for process in all.values_mut() {
            let mut mine = std::collections::BTreeSet::new();
            for page in process.pages.values_mut() {
                let flags = word_of(&self.flags, page.pfn);
                if flags & (THP | ANON) == THP | ANON {
                    page.folio = HostFolio { head: page.pfn & !511, pages: 512, ..page.folio };
                }
                let HostFolio { head, pages, .. } = page.folio;
                let folio = folios.entry(head).or_insert_with(|| HostFolio {
                    first: word_of(&self.counts, head),
                    total: (head..head + pages).map(|pfn| word_of(&self.counts, pfn)).sum(),
                    ..page.folio
                });
                folio.owners += u64::from(mine.insert(head));
            }
        }
        for page in all.values_mut().flat_map(|process| process.pages.values_mut()) {
            page.folio = folios[&page.folio.head];
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for &pid in self.pids.values() {
            // SAFETY: a process that was started here; it is no zombie of somebody else's, as nobody has waited for it.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            wait_for_end(pid);
        }
        for pid in self.pids.values().chain(&self.ended) {
            // SAFETY: takes our own children off the list of processes; those of others it does not find.
            unsafe { libc::waitpid(*pid, std::ptr::null_mut(), libc::WNOHANG) };
        }
    }
}

fn unimplemented_here(op: &Op) -> ! {
    panic!("no operation of these tests: {op}")
}

fn word_of(file: &File, pfn: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 8 * pfn).unwrap();
    u64::from_ne_bytes(bytes)
}

fn vmas_of(text: &str) -> Vec<HostVma> {
    let mut vmas: Vec<HostVma> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let page = |address| u64::from_str_radix(address, 16).unwrap() / PAGE;
            vmas.push(HostVma { start: page(start), end: page(end), ..HostVma::default() });
        } else if let (Some(name), Some(Ok(kb))) = (first.strip_suffix(':'), words.next().map(str::parse)) {
            vmas.last_mut().unwrap().fields.insert(name.to_owned(), kb);
        }
    }
    vmas
}

fn pair() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: room for two; what comes back is nobody else's.
    unsafe {
        let made = libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr());
        checked(made.into(), "socketpair");
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

/// A file without a name, on a disk or in memory.
fn object_of(kind: ObjectKind, pages: u64) -> OwnedFd {
    let file = match kind {
        ObjectKind::File => {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Relaxed);
            let name = format!("{}/object-{}-{number}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
            let file = File::options().create_new(true).read(true).write(true).open(&name).unwrap();
            fs::remove_file(name).unwrap();
            file
        }
        ObjectKind::Shared => {
            // SAFETY: a name that ends in 0; the descriptor is nobody else's.
            File::from(unsafe {
                OwnedFd::from_raw_fd(
                    checked(libc::memfd_create(c"object".as_ptr(), libc::MFD_CLOEXEC).into(), "memfd") as RawFd
                )
            })
        }
    };
    file.set_len(pages * PAGE).unwrap();
    file.into()
}

/// Waits until the process has ended: its memory is gone then.
fn wait_for_end(pid: i32) {
    // SAFETY: plain system calls on a descriptor of our own.
    unsafe {
        let fd = checked(libc::syscall(libc::SYS_pidfd_open, pid, 0), "pidfd_open") as RawFd;
        let mut ended = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let n = libc::poll(&raw mut ended, 1, 10_000);
        libc::close(fd);
        assert_eq!(n, 1, "process {pid} does not end");
    }
}

// --- in the child ------------------------------------------------------------------------------------------------------

/// Executes what comes over the process's channel, until an exit or the end of the channel.
fn serve(channels: &[RawFd; PROCS], mut me: usize, objects: &[RawFd]) -> ! {
    loop {
        let mut words = [0u64; 8];
        // SAFETY: a buffer of that length.
        let got = unsafe { libc::read(channels[me], words.as_mut_ptr().cast(), 64) };
        let op = if got == 64 { decode(&words).ok() } else { None };
        let mut reply = match op {
            // SAFETY: ends this process at once.
            None | Some(Op::Exit { .. }) => unsafe { libc::_exit(0) },
            Some(Op::Fork { child, .. }) => {
                // SAFETY: this process has one thread.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    me = child as usize;
                    continue;
                }
                i64::from(pid)
            }
            Some(op) => execute(&op, objects),
        };
        // SAFETY: a buffer of that length.
        unsafe { libc::write(channels[me], (&raw mut reply).cast(), 8) };
    }
}

fn bits(prot: Prot) -> i32 {
    let bit = |has, bit| if has { bit } else { 0 };
    bit(prot.read, libc::PROT_READ) | bit(prot.write, libc::PROT_WRITE) | bit(prot.exec, libc::PROT_EXEC)
}

/// One operation, by its system calls; 0 or the error.
fn execute(op: &Op, objects: &[RawFd]) -> i64 {
    let place = |at: quire::addr::Gva| std::ptr::with_exposed_provenance_mut::<libc::c_void>(at.raw() as usize);
    let bytes = |pages: u64| (pages * PAGE) as usize;
    // SAFETY: all addresses are of mappings that the trace made; the kernel judges the rest.
    let error = |result: i64| if result < 0 { unsafe { *libc::__errno_location() }.into() } else { 0 };
    match *op {
        Op::Map { at, pages, prot, backing, fixed, .. } => {
            let (flags, fd, offset) = match backing {
                Backing::Object { object, offset, private } => {
                    (if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED }, objects[object as usize], offset)
                }
                _ => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            };
            let flags = flags | if fixed { libc::MAP_FIXED } else { libc::MAP_FIXED_NOREPLACE };
            // SAFETY: as above.
            unsafe {
                let got = libc::mmap(place(at), bytes(pages), bits(prot), flags, fd, (offset * PAGE) as i64);
                if got != place(at) {
                    return error(-1).max(1);
                }
                // Huge pages only where the trace advises them, whatever the host's default.
                libc::madvise(place(at), bytes(pages), libc::MADV_NOHUGEPAGE);
            }
            0
        }
        // SAFETY: as above.
        Op::Unmap { at, pages, .. } => error(unsafe { libc::munmap(place(at), bytes(pages)) }.into()),
        Op::Protect { at, pages, prot, .. } => {
            // SAFETY: as above. Linux stops at the first hole, the trace skips holes.
            let whole = error(unsafe { libc::mprotect(place(at), bytes(pages), bits(prot)) }.into());
            if whole == i64::from(libc::ENOMEM) {
                for i in 0..pages {
                    // SAFETY: as above.
                    unsafe { libc::mprotect(place(at.add_pages(i)), bytes(1), bits(prot)) };
                }
                return 0;
            }
            whole
        }
        Op::Remap { from, pages, to, new_pages, .. } => {
            let flags = if from == to { 0 } else { libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED };
            // SAFETY: as above.
            let got = unsafe { libc::mremap(place(from), bytes(pages), bytes(new_pages), flags, place(to)) };
            if got == place(to) { 0 } else { error(-1).max(1) }
        }
        Op::Advise { at, pages, advice, .. } => {
            let advice = match advice {
                Advice::DontNeed => libc::MADV_DONTNEED,
                Advice::HugePage => libc::MADV_HUGEPAGE,
                Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
            };
            // SAFETY: as above.
            match error(unsafe { libc::madvise(place(at), bytes(pages), advice) }.into()) {
                // There was a hole; the rest is done.
                hole if hole == i64::from(libc::ENOMEM) => 0,
                other => other,
            }
        }
        Op::Access { at, pages, write, .. } => {
            for i in 0..pages {
                let word: *mut u64 = place(at.add_pages(i)).cast();
                // A store without a load before it: that would bring the zero page, or what lies around a page of a file.
                // SAFETY: the trace maps it with the rights for this access.
                unsafe {
                    if write {
                        word.write_volatile(i);
                    } else {
                        word.read_volatile();
                    }
                }
            }
            0
        }
        _ => i64::from(libc::ENOSYS),
    }
}
