//! Follows the program and its children from stop to stop and gathers the timeline.
//!
//! Every system call stops (`PTRACE_SYSCALL`): a seccomp filter that stops only at the few that matter would be faster,
//! but not every kernel has seccomp, programs can see it, and it outlives a recorder that dies. Calls that change the same
//! address space are let through one at a time, so that the trace has them in the order in which they took effect.
//!
//! perf's rings are emptied at each stop that matters, while the memory of the thread can still be read to decode the
//! instructions that faulted, and by a second thread when they fill up in between.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::RecordError;
use super::calls::{self, Asked, When};
use super::clock::now;
use super::direction::direction;
use super::procfs;
use super::ptrace::{self, CallStop, Stop};
use super::ring::poll;
use super::sampler::{Record, Sampler};
use super::timeline::{Event, What};
use super::tracee_memory;

/// The most events of one recording; more than the operations of the longest trace, and a bound on our memory.
const MAX_EVENTS: usize = 1 << 23;
/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;
/// Marks x32 system calls.
const X32: u64 = 1 << 30;

/// Everything seen of the recorded program.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Not yet in order.
    pub(super) events: Vec<Event>,
    /// Faults known to be missing.
    pub(super) lost: u64,
    /// Whether faults of the kernel on the program's behalf were seen.
    pub(super) sees_kernel: bool,
    /// The raw status of `waitpid` of the program.
    pub(super) status: i32,
}

/// Follows `root`, which is seized and sampled and which `go` sets off, until it and all its children ended.
pub(super) fn follow(
    root: i32,
    sampler: Sampler,
    go: impl FnOnce() -> Result<(), RecordError>,
) -> Result<Timeline, RecordError> {
    let descriptors = sampler.descriptors();
    let shared = Mutex::new(Collector { sampler, events: Vec::new(), execs: HashMap::new(), lost: 0 });
    let over = AtomicBool::new(false);
    let mut tracer = Tracer::new(root, &shared);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                poll(&descriptors, 50);
                tracer_lock(&shared).drain();
            }
        });
        let result = go().and_then(|()| tracer.run());
        over.store(true, Ordering::Relaxed);
        if result.is_err() {
            tracer.kill_all();
        }
        result
    })?;
    let status = tracer.root_status;
    let collector = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    let sees_kernel = collector.sampler.sees_kernel;
    Ok(Timeline { events: collector.events, lost: collector.lost, sees_kernel, status })
}

fn tracer_lock<'a>(shared: &'a Mutex<Collector>) -> MutexGuard<'a, Collector> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What both threads fill.
#[derive(Debug)]
struct Collector {
    sampler: Sampler,
    events: Vec<Event>,
    /// When threads last entered a new program.
    execs: HashMap<i32, u64>,
    lost: u64,
}

impl Collector {
    fn drain(&mut self) {
        let Self { sampler, events, execs, lost } = self;
        sampler.drain(|record| match record {
            Record::Fault(sample) => {
                // The upper half is the kernel's; vsyscall is there as well.
                if sample.address < super::USER_END {
                    let direction = direction(&sample, |at, into| tracee_memory::read(sample.tid, at, into));
                    let what = What::Fault { address: sample.address, direction };
                    events.push(Event { time: sample.time, tid: sample.tid, what });
                }
            }
            Record::Exec { time, tid } => {
                execs.insert(tid, time);
            }
            Record::Lost(count) => *lost += count,
        });
    }
}

/// A thread that is being followed.
#[derive(Debug)]
struct Thread {
    process: i32,
    space: usize,
    /// The call it is in, and when it entered, if that concerns mappings.
    call: Option<(Asked, u64)>,
}

/// An address space: one call at a time may change it.
#[derive(Debug, Default)]
struct Space {
    heap: Option<u64>,
    changing: Option<i32>,
    waiting: VecDeque<i32>,
}

#[derive(Debug)]
struct Tracer<'a> {
    shared: &'a Mutex<Collector>,
    root: i32,
    root_status: i32,
    threads: HashMap<i32, Thread>,
    spaces: Vec<Space>,
    /// Children that stopped before we heard of them from their parents.
    early: HashSet<i32>,
    /// Shared anonymous mappings so far.
    anonymous: u64,
}

impl<'a> Tracer<'a> {
    fn new(root: i32, shared: &'a Mutex<Collector>) -> Self {
        let first = Thread { process: root, space: 0, call: None };
        Self {
            shared,
            root,
            root_status: 0,
            threads: HashMap::from([(root, first)]),
            spaces: vec![Space::default()],
            early: HashSet::new(),
            anonymous: 0,
        }
    }

    fn run(&mut self) -> Result<(), RecordError> {
        while let Some((tid, stop)) = ptrace::wait().map_err(RecordError::system("waitpid"))? {
            match stop {
                Stop::Gone(status) => self.gone(tid, status),
                _ if !self.threads.contains_key(&tid) => {
                    self.early.insert(tid);
                }
                Stop::Call => self.call(tid)?,
                Stop::Event(event, signal) => self.event(tid, event, signal)?,
                Stop::Signal(signal) => ptrace::resume(tid, signal),
            }
            if tracer_lock(self.shared).events.len() > MAX_EVENTS {
                return Err(RecordError::TooLong { limit: MAX_EVENTS });
            }
        }
        Ok(())
    }

    /// Ends everything that is still there, after an error.
    fn kill_all(&self) {
        for &tid in self.threads.keys().chain(&self.early) {
            ptrace::kill(tid);
        }
        while let Ok(Some((tid, stop))) = ptrace::wait() {
            if !matches!(stop, Stop::Gone(_)) {
                ptrace::kill(tid);
                ptrace::resume(tid, 0);
            }
        }
    }

    fn drain(&self) {
        tracer_lock(self.shared).drain();
    }

    fn push(&self, time: u64, tid: i32, what: What) {
        tracer_lock(self.shared).events.push(Event { time, tid, what });
    }

    fn gone(&mut self, tid: i32, status: i32) {
        self.early.remove(&tid);
        if self.threads.contains_key(&tid) {
            self.drain();
            self.push(now(), tid, What::Gone);
            self.release(tid);
            self.threads.remove(&tid);
        }
        if tid == self.root {
            self.root_status = status;
        }
    }

    fn event(&mut self, tid: i32, event: i32, signal: i32) -> Result<(), RecordError> {
        match event {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                if let Some(child) = alive(ptrace::event_message(tid))? {
                    self.made(tid, child);
                }
            }
            libc::PTRACE_EVENT_EXEC => {
                if let Some(former) = alive(ptrace::event_message(tid))? {
                    self.exec(tid, former)?;
                }
            }
            // The last moment to read the memory of the thread.
            libc::PTRACE_EVENT_EXIT => {
                self.drain();
                self.release(tid);
            }
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => {
                ptrace::listen(tid);
                return Ok(());
            }
            _ => {}
        }
        ptrace::resume(tid, 0);
        Ok(())
    }

    /// Thread `tid` made `child`.
    fn made(&mut self, tid: i32, child: i32) {
        self.drain();
        let Some(parent) = self.threads.get_mut(&tid) else { return };
        let (process, mut space) = (parent.process, parent.space);
        let (shares, thread, time) = match parent.call.take() {
            Some((Asked::Fork { shares, thread }, time)) => (shares, thread, time),
            _ => (false, false, now()),
        };
        if !shares {
            let heap = self.spaces[space].heap;
            self.spaces.push(Space { heap, ..Space::default() });
        }
        self.push(time, tid, What::Made { child, shares });
        self.release(tid);
        if !shares {
            space = self.spaces.len() - 1;
        }
        self.threads.insert(child, Thread { process: if thread { process } else { child }, space, call: None });
        if self.early.remove(&child) {
            ptrace::resume(child, 0);
        }
    }

    /// Thread `tid`, `former` until now, runs a new program; the other threads of its process are gone.
    fn exec(&mut self, tid: i32, former: i32) -> Result<(), RecordError> {
        let Some((_, stack)) = alive(ptrace::call_stop(tid))? else { return Ok(()) };
        let time = {
            let mut collector = tracer_lock(self.shared);
            collector.drain();
            // perf saw when the address space changed; faults before and after belong to different ones.
            collector.execs.remove(&tid).unwrap_or_else(now)
        };
        let others: Vec<i32> = self
            .threads
            .iter()
            .filter(|&(&other, thread)| thread.process == tid && other != former)
            .map(|(&other, _)| other)
            .collect();
        for other in others {
            self.push(time, other, What::Gone);
            self.release(other);
            self.threads.remove(&other);
        }
        self.release(former);
        self.threads.remove(&former);
        self.spaces.push(Space { heap: procfs::heap_start(tid), ..Space::default() });
        self.threads.insert(tid, Thread { process: tid, space: self.spaces.len() - 1, call: None });
        self.push(time, tid, What::Exec { former, image: procfs::image(tid), arguments: stack });
        Ok(())
    }

    fn call(&mut self, tid: i32) -> Result<(), RecordError> {
        let Some((stop, _)) = alive(ptrace::call_stop(tid))? else { return Ok(()) };
        match stop {
            CallStop::Entry { arch, number, arguments } => {
                if arch != ARCH || number & X32 != 0 && number != u64::MAX {
                    return Err(RecordError::Unsupported { pid: tid, what: "it makes 32-bit system calls" });
                }
                if calls::is_exec(number) {
                    self.drain();
                }
                if let Some(asked) = calls::asked(tid, number, &arguments, &mut self.anonymous) {
                    self.enter(tid, asked);
                } else {
                    ptrace::resume(tid, 0);
                }
            }
            CallStop::Exit { result } => {
                self.leave(tid, result);
                ptrace::resume(tid, 0);
            }
            CallStop::Neither => ptrace::resume(tid, 0),
        }
        Ok(())
    }

    /// Thread `tid` wants to change its address space: it may once no other does.
    fn enter(&mut self, tid: i32, asked: Asked) {
        self.drain();
        let Some(thread) = self.threads.get_mut(&tid) else { return };
        thread.call = Some((asked, now()));
        let space = &mut self.spaces[thread.space];
        if space.changing.is_some() {
            space.waiting.push_back(tid);
        } else {
            space.changing = Some(tid);
            ptrace::resume(tid, 0);
        }
    }

    /// Thread `tid` comes out of a system call.
    fn leave(&mut self, tid: i32, result: i64) {
        let Some(thread) = self.threads.get_mut(&tid) else { return };
        let Some((asked, entered)) = thread.call.take() else { return };
        let heap = self.spaces[thread.space].heap;
        if let Some((call, when)) = asked.done(tid, result, heap) {
            let time = if when == When::Entry { entered } else { now() };
            self.push(time, tid, What::Call(call));
        }
        self.release(tid);
    }

    /// Thread `tid` changes its address space no longer: the next one may.
    fn release(&mut self, tid: i32) {
        let Some(thread) = self.threads.get(&tid) else { return };
        let space = &mut self.spaces[thread.space];
        space.waiting.retain(|&waiting| waiting != tid);
        if space.changing != Some(tid) {
            return;
        }
        space.changing = space.waiting.pop_front();
        if let Some(next) = space.changing
            && let Some(Thread { call: Some((_, entered)), .. }) = self.threads.get_mut(&next)
        {
            *entered = now();
            ptrace::resume(next, 0);
        }
    }
}

/// A tracee that was killed while we looked at it is no error: its end is reported next.
fn alive<T>(result: io::Result<T>) -> Result<Option<T>, RecordError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(RecordError::System { what: "ptrace", error }),
    }
}
