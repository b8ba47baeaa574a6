//! From the timeline of a recording to the operations of a trace.
//!
//! Events are put in order of time, threads become the trace's processes, files its objects, and page faults runs of
//! accesses. The reference of contents goes along: an access that it would refuse (the recorder missed a mapping, or the
//! program ran into a signal) would stop a replay, so it is dropped and counted.

use std::collections::HashMap;

use quire::addr::{GVA_END, Gva, Order};
use quire::model::contents::Contents;
use quire::space::{ObjectKind, Prot};
use quire::trace::check::Checker;
use quire::trace::{Backing, MAX_DEVICE_PAGES, MAX_OBJECTS, MAX_PROCS, MAX_RUN_PAGES, MapKind, Op};

use super::identity::{DeviceKey, ObjectKey, Source};
use super::runs::Runs;
use super::timeline::{Call, Direction, Event, Mapping, ProtBits, What};

/// The operations of a recording, and what could not become one.
#[derive(Debug, Default)]
pub(super) struct Assembled {
    pub(super) ops: Vec<Op>,
    /// Names of the objects, by number.
    pub(super) names: Vec<String>,
    /// Accesses that stand as reads because nobody could tell.
    pub(super) unknown: u64,
    /// Accesses and calls left out because the trace could not explain them.
    pub(super) dropped: u64,
    /// Calls that no operation expresses.
    pub(super) ignored: u64,
    /// Frames that a replay in single pages needs.
    pub(super) peak_frames: u64,
}

/// Makes the operations of `events`; objects get folios of `order`.
pub(super) fn assemble(mut events: Vec<Event>, order: Order) -> Assembled {
    // Stable: what one stop reported stays in its order.
    events.sort_by_key(|event| event.time);
    let mut assembler = Assembler { lengths: object_lengths(&events), order, ..Assembler::default() };
    for event in events {
        assembler.event(event);
    }
    assembler.flush();
    verified(assembler.out)
}

/// Keeps the operations that stand up on their own. Runs of threads that share memory may have changed places, which can
/// matter to a growing stack.
fn verified(mut out: Assembled) -> Assembled {
    let mut contents = Contents::new();
    let mut checker = Checker::new();
    let Assembled { ops, dropped, peak_frames, .. } = &mut out;
    ops.retain(|op| {
        let fine = contents.apply(op, 0).is_ok() && checker.op(op).is_ok();
        if !fine {
            *dropped += weight(op);
        }
        fine
    });
    *peak_frames = contents.peak_frames();
    out
}

/// How many accesses, or one call, an operation stands for.
const fn weight(op: &Op) -> u64 {
    if let Op::Access { pages, .. } = op { *pages } else { 1 }
}

/// How far each object is ever mapped: that is its length, whatever the file's.
fn object_lengths(events: &[Event]) -> HashMap<ObjectKey, u64> {
    let mut lengths = HashMap::new();
    let mut see = |mapping: &Mapping| {
        if let Source::Object { key, offset, .. } = mapping.source {
            let pages = (offset >> 12) + (mapping.end.saturating_sub(mapping.start) >> 12);
            let length = lengths.entry(key).or_insert(pages);
            *length = pages.max(*length);
        }
    };
    for event in events {
        match &event.what {
            What::Exec { image, .. } => image.iter().for_each(&mut see),
            What::Call(Call::Map { mapping, .. }) => see(mapping),
            _ => {}
        }
    }
    lengths
}

#[derive(Debug)]
struct Assembler {
    lengths: HashMap<ObjectKey, u64>,
    order: Order,
    procs: HashMap<i32, u32>,
    next_proc: u32,
    objects: HashMap<ObjectKey, u32>,
    devices: HashMap<DeviceKey, u64>,
    device_pages: u64,
    contents: Contents,
    runs: Runs,
    out: Assembled,
}

impl Default for Assembler {
    fn default() -> Self {
        Self {
            lengths: HashMap::new(),
            order: Order::BASE,
            procs: HashMap::new(),
            next_proc: 0,
            objects: HashMap::new(),
            devices: HashMap::new(),
            device_pages: 0,
            contents: Contents::new(),
            runs: Runs::default(),
            out: Assembled::default(),
        }
    }
}

impl Assembler {
    fn event(&mut self, event: Event) {
        let known = self.procs.get(&event.tid).copied();
        match (event.what, known) {
            (What::Exec { former, image, arguments }, _) => self.exec(event.tid, former, &image, arguments),
            (What::Fault { address, direction }, Some(proc)) => self.fault(proc, address, direction),
            (What::Made { child, shares }, Some(proc)) => self.made(proc, child, shares),
            (What::Gone, Some(proc)) => {
                self.emit(Op::Exit { proc });
                self.procs.remove(&event.tid);
            }
            (What::Call(call), Some(proc)) => self.call(proc, call),
            // A thread whose making was not seen, or one too many.
            (_, None) => self.out.dropped += 1,
        }
    }

    fn exec(&mut self, tid: i32, former: i32, image: &[Mapping], arguments: u64) {
        let proc = match self.procs.remove(&former) {
            Some(proc) => {
                self.emit(Op::Exec { proc });
                proc
            }
            None => {
                // The first program: there is nothing before it.
                let Some(proc) = self.new_proc(tid) else { return };
                self.emit(Op::Start { proc });
                proc
            }
        };
        self.procs.insert(tid, proc);
        for mapping in image {
            self.map(proc, mapping);
        }
        // The kernel wrote the arguments by a way that makes no faults.
        if let Some(stack) = image.iter().find(|mapping| mapping.stack) {
            self.access(proc, arguments & !0xfff, stack.end, true);
        }
    }

    fn made(&mut self, proc: u32, child: i32, shares: bool) {
        let Some(number) = self.new_proc(child) else { return };
        self.emit(if shares { Op::Share { proc, child: number } } else { Op::Fork { proc, child: number } });
    }

    fn new_proc(&mut self, tid: i32) -> Option<u32> {
        if self.next_proc == MAX_PROCS {
            self.out.dropped += 1;
            return None;
        }
        let proc = self.next_proc;
        self.next_proc += 1;
        self.procs.insert(tid, proc);
        Some(proc)
    }

    fn fault(&mut self, proc: u32, address: u64, direction: Direction) {
        let taken = self.touch(proc, address >> 12, direction == Direction::Write);
        if taken && direction == Direction::Unknown {
            self.out.unknown += 1;
        }
    }

    fn access(&mut self, proc: u32, start: u64, end: u64, write: bool) {
        for page in start >> 12..end.min(GVA_END) >> 12 {
            self.touch(proc, page, write);
        }
    }

    /// One access; says whether the mappings allow it.
    fn touch(&mut self, proc: u32, page: u64, write: bool) -> bool {
        let op = Op::Access { proc, at: Gva::from_page(page), pages: 1, write };
        match self.contents.apply(&op, 0) {
            Ok(sum) => {
                self.runs.add(proc, page, write, sum.is_none(), &mut self.out.ops);
                true
            }
            Err(_) => {
                self.out.dropped += 1;
                false
            }
        }
    }

    fn call(&mut self, proc: u32, call: Call) {
        let op = match call {
            Call::Map { mapping, populate } => {
                if self.map(proc, &mapping) && populate {
                    self.populate(proc, mapping.start, mapping.end, mapping.prot & 2 != 0);
                }
                return;
            }
            Call::Populate { start, end, write } => return self.populate(proc, start, end, write),
            Call::Unmap { start, end } => range(start, end).map(|(at, pages)| Op::Unmap { proc, at, pages }),
            Call::Protect { start, end, prot } => {
                range(start, end).map(|(at, pages)| Op::Protect { proc, at, pages, prot: prot_of(prot) })
            }
            Call::Advise { start, end, advice } => {
                range(start, end).map(|(at, pages)| Op::Advise { proc, at, pages, advice })
            }
            Call::Remap { from, length, to, new_length } => {
                let old = range(from, from.saturating_add(length));
                let new = range(to, to.saturating_add(new_length));
                old.zip(new).map(|((from, pages), (to, new_pages))| Op::Remap { proc, from, pages, to, new_pages })
            }
            Call::Brk { start, end } => {
                let (start, end) = (Gva::try_new(start), Gva::try_new(end));
                start.zip(end).map(|(start, end)| Op::Brk { proc, start, end })
            }
            Call::Inexpressible => {
                self.out.ignored += 1;
                return;
            }
        };
        // Of no length, or beyond what a program may map: it changed nothing.
        if let Some(op) = op {
            self.emit(op);
        }
    }

    /// The kernel touches every page at once, as far as it may.
    fn populate(&mut self, proc: u32, start: u64, end: u64, write: bool) {
        let pages = end.saturating_sub(start) >> 12;
        if pages > MAX_RUN_PAGES {
            self.out.dropped += 1;
            return;
        }
        self.access(proc, start, end, write);
    }

    /// Emits a mapping, and its object before the first one; says whether it stands.
    fn map(&mut self, proc: u32, mapping: &Mapping) -> bool {
        let Some((at, pages)) = range(mapping.start, mapping.end) else { return false };
        let Some(backing) = self.backing(&mapping.source, pages) else {
            self.out.ignored += 1;
            return false;
        };
        let kind = if mapping.stack { MapKind::Stack } else { MapKind::Plain };
        let op = |fixed| Op::Map { proc, at, pages, prot: prot_of(mapping.prot), backing, kind, fixed };
        if mapping.fixed {
            return self.emit(op(true));
        }
        // The kernel put it where nothing was; if we think otherwise, we missed that it went.
        self.emit(op(false)) || self.emit(op(true))
    }

    fn backing(&mut self, source: &Source, pages: u64) -> Option<Backing> {
        match source {
            Source::Anon => Some(Backing::Anon),
            Source::Object { key, name, shm, offset, private } => {
                let object = self.object(*key, name, *shm)?;
                Some(Backing::Object { object, offset: offset >> 12, private: *private })
            }
            Source::Device { key, offset } => {
                let next = self.device_pages;
                let first = *self.devices.entry(key.clone()).or_insert(next) + (offset >> 12);
                let end = first.checked_add(pages).filter(|&end| end <= MAX_DEVICE_PAGES)?;
                self.device_pages = self.device_pages.max(end);
                Some(Backing::Device { first })
            }
        }
    }

    fn object(&mut self, key: ObjectKey, name: &str, shm: bool) -> Option<u32> {
        if let Some(&object) = self.objects.get(&key) {
            return Some(object);
        }
        let object = u32::try_from(self.objects.len()).ok().filter(|&object| object < MAX_OBJECTS)?;
        let kind = if shm { ObjectKind::Shared } else { ObjectKind::File };
        let pages = self.lengths.get(&key).copied().unwrap_or(0);
        if !self.emit(Op::Object { object, kind, pages, order: self.order }) {
            return None;
        }
        self.objects.insert(key, object);
        self.out.names.push(name.to_owned());
        Some(object)
    }

    /// Adds an operation that is no access, if the contents allow it.
    fn emit(&mut self, op: Op) -> bool {
        self.flush();
        let fine = self.contents.apply(&op, 0).is_ok();
        if fine {
            self.out.ops.push(op);
        } else {
            self.out.dropped += 1;
        }
        fine
    }

    fn flush(&mut self) {
        self.runs.flush(&mut self.out.ops);
    }
}

fn range(start: u64, end: u64) -> Option<(Gva, u64)> {
    let (at, end) = (Gva::try_new(start)?, Gva::try_new(end)?);
    (at.is_page_aligned() && at < end).then(|| (at, end.pages_from(at)))
}

const fn prot_of(bits: ProtBits) -> Prot {
    Prot { read: bits & 1 != 0, write: bits & 2 != 0, exec: bits & 4 != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, pages: u64) -> Mapping {
        Mapping { start, end: start + pages * 4096, prot: 3, source: Source::Anon, stack: false, fixed: false }
    }

    fn exec(tid: i32, former: i32, image: Vec<Mapping>) -> What {
        let _ = tid;
        What::Exec { former, image, arguments: 0 }
    }

    fn fault(page: u64, direction: Direction) -> What {
        What::Fault { address: page << 12 | 0x123, direction }
    }

    fn lines(events: Vec<(u64, i32, What)>) -> (Vec<String>, Assembled) {
        let events = events.into_iter().map(|(time, tid, what)| Event { time, tid, what }).collect();
        let assembled = assemble(events, Order::new(4));
        (assembled.ops.iter().map(Op::to_string).collect(), assembled)
    }

    #[test]
    fn neighbouring_faults_become_runs() {
        let (ops, out) = lines(vec![
            (1, 9, exec(9, 9, vec![mapping(0x10000, 16)])),
            (2, 9, fault(0x10, Direction::Write)),
            (3, 9, fault(0x11, Direction::Write)),
            (4, 9, fault(0x12, Direction::Unknown)),
            (5, 9, fault(0x13, Direction::Read)),
            (6, 9, fault(0x1f, Direction::Read)),
            (7, 9, fault(0x20, Direction::Read)),
            (8, 9, What::Gone),
        ]);
        assert_eq!(ops, ["start 0", "map 0 10000 16 rw- anon", "w 0 10000 2", "r 0 12000 2", "r 0 1f000", "exit 0"]);
        assert_eq!((out.unknown, out.dropped, out.peak_frames), (1, 1, 5));
    }

    #[test]
    fn times_order_what_two_sources_saw() {
        // The child's first fault was seen before the stop that tells of it.
        let (ops, out) = lines(vec![
            (1, 9, exec(9, 9, vec![mapping(0x10000, 4)])),
            (30, 10, fault(0x10, Direction::Write)),
            (20, 9, What::Made { child: 10, shares: false }),
            (25, 9, fault(0x11, Direction::Write)),
            (40, 10, What::Gone),
            (50, 9, What::Gone),
        ]);
        let expected = ["start 0", "map 0 10000 4 rw- anon", "fork 0 1", "w 0 11000", "w 1 10000", "exit 1", "exit 0"];
        assert_eq!(ops, expected);
        assert_eq!(out.dropped, 0);
    }

    #[test]
    fn a_thread_that_runs_a_program_becomes_its_process() {
        let (ops, _) = lines(vec![
            (1, 9, exec(9, 9, vec![mapping(0x10000, 4)])),
            (2, 9, What::Made { child: 10, shares: true }),
            (3, 9, What::Gone),
            (3, 9, exec(9, 10, vec![mapping(0x50000, 1)])),
            (4, 9, fault(0x50, Direction::Read)),
            (5, 9, What::Gone),
        ]);
        let expected = [
            "start 0",
            "map 0 10000 4 rw- anon",
            "share 0 1",
            "exit 0",
            "exec 1",
            "map 1 50000 1 rw- anon",
            "r 1 50000",
            "exit 1",
        ];
        assert_eq!(ops, expected);
    }

    #[test]
    fn objects_are_as_long_as_they_are_ever_mapped() {
        let file = |start, pages, offset: u64| {
            let key = ObjectKey::File { device: 1, inode: 2 };
            let source =
                Source::Object { key, name: "libc.so".into(), shm: false, offset: offset << 12, private: true };
            Mapping { source, ..mapping(start, pages) }
        };
        let (ops, out) = lines(vec![
            (1, 9, exec(9, 9, vec![file(0x10000, 2, 0)])),
            (2, 9, What::Call(Call::Map { mapping: file(0x20000, 3, 7), populate: true })),
            (3, 9, What::Call(Call::Inexpressible)),
            (4, 9, What::Call(Call::Remap { from: 0x20000, length: 0x1000, to: 0x40000, new_length: 0x1000 })),
        ]);
        let expected = [
            "start 0",
            "object 0 file 10 4",
            "map 0 10000 2 rw- private 0 0",
            "map 0 20000 3 rw- private 0 7",
            "w 0 20000 3",
            "remap 0 20000 1 40000 1",
        ];
        assert_eq!(ops, expected);
        assert_eq!((out.names, out.ignored), (vec![String::from("libc.so")], 1));
    }

    #[test]
    fn a_mapping_that_cannot_be_free_replaces() {
        let (ops, out) = lines(vec![
            (1, 9, exec(9, 9, vec![mapping(0x10000, 4)])),
            (2, 9, What::Call(Call::Map { mapping: mapping(0x12000, 4), populate: false })),
            (3, 9, What::Call(Call::Unmap { start: 0x30000, end: 0x30000 })),
            (4, 77, What::Gone),
        ]);
        assert_eq!(ops.last().unwrap(), "map 0 12000 4 rw- anon fixed");
        assert_eq!(out.dropped, 2);
    }
}
