//! Random histories of VMs and their VMMs, with every word that anybody stores remembered beside: guests and hosts read what was stored last, a log misses no store, and after
//! every step all classes of leaves are recounted. 10^5 operations here, as many as `QUIRE_OPS` says in a long run; `QUIRE_FIRST_SEED` is where the seeds begin. A history that
//! fails is made shorter as long as it fails, and told.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crate::world::{BASE, DEVICE_FRAMES, R, RW, World, at, machine_of};
use quire::addr::{Level, Order, Pfn};
use quire::ledger::OF_VMS;
use quire::mapcount::{
    Accounting, Answer, COUNT_LIMIT, Class, Classes, Countdown, Everything, None as NoCounts, Total, Tuples,
    ZeroOneTwoMany,
};
use quire::memory::Memory;
use quire::space::{
    Access, Advice, FaultError, Map, MapError, ObjectId, ObjectKind, Policy, Prot, SpaceId, Tracking, VmaFlags,
};
use quire::stage2::{
    AsId, Backing, LogError, Slot, SlotError, SlotFlags, SlotId, Stage2Format, VmAccess, VmFaultError, VmId,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Operations of one history.
const LENGTH: usize = 500;
/// Pages of each space that things happen in.
const PAGES: u64 = 2048;
/// Guest frames of each VM likewise.
const GFNS: u64 = 3072;
const OBJECT_PAGES: u64 = 1100;
const MOST_SPACES: usize = 4;
const MOST_VMS: usize = 4;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What is to be done, and numbers that say to what: whatever exists by then. So a history without some of its operations is one too.
#[derive(Clone, Copy, Debug)]
struct Op {
    what: What,
    n: [u32; 5],
}

macro_rules! whats {
    ($($what:ident $weight:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum What { $($what),* }
        /// Each as often as it weighs.
        const WHATS: &[(What, u32)] = &[$((What::$what, $weight)),*];
    };
}

whats! {
    GuestWrite 160, GuestRead 90, GuestRun 20, HostWrite 60, HostRead 40, Map 24, Unmap 14, DontNeed 14, Advice 6, Protect 18, Fork 12, Leave 10, Remap 16, Migrate 16,
    Collapse 12, CollapseByCopy 10, Reclaim 8, SplitDeferred 8, CreateVm 16, AddSlot 40, MoveSlot 8, ResizeSlot 10, RemoveSlot 10, StartLog 20, TakeLog 24, StopLog 16, CloneVm 8,
    Harvest 8, Discard 10, Retire 5, Reap 10, Limit 6, Hog 8, Ask 20,
}

fn history(seed: u64) -> Vec<Op> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let all: u32 = WHATS.iter().map(|&(_, weight)| weight).sum();
    let pick = |rng: &mut SmallRng| {
        let mut at = rng.random_range(0..all);
        let &(what, _) =
            WHATS.iter().find(|&&(_, weight)| at.checked_sub(weight).map(|left| at = left).is_none()).unwrap();
        what
    };
    (0..LENGTH).map(|_| Op { what: pick(&mut rng), n: rng.random() }).collect()
}

/// Where a word is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Key {
    Own(SpaceId, u64),
    Object(usize, u64),
    Device(u64),
}

struct VmState {
    id: VmId,
    zombie: bool,
    slots: Vec<(AsId, SlotId)>,
    /// Pages of slots with a log that were stored to since it was read.
    stored: HashMap<SlotId, BTreeSet<u64>>,
}

struct State<'m, A: Accounting> {
    w: World<'m, Classes<A>>,
    objects: Vec<(ObjectId, ObjectKind)>,
    spaces: Vec<SpaceId>,
    vms: Vec<VmState>,
    /// What was stored; `None` where it is whatever is read next.
    words: HashMap<Key, Option<u64>>,
    next: u64,
    hogged: Vec<(Pfn, Order)>,
    limited: bool,
    steps: u64,
    tell: bool,
}

impl<'m, A: Accounting> State<'m, A> {
    fn say(&self, what: impl FnOnce() -> String) {
        if self.tell {
            eprintln!("  {}", what());
        }
    }

    fn pick<T: Copy>(from: &[T], n: u32) -> Option<T> {
        (!from.is_empty()).then(|| from[n as usize % from.len()])
    }

    /// Pages of a space: often whole blocks, often few.
    fn range(n: u32, m: u32, all: u64) -> (u64, u64) {
        let first = match n % 4 {
            0 => u64::from(n >> 2) % (all / 512) * 512,
            1 => u64::from(n >> 2) % (all / 16) * 16,
            _ => u64::from(n >> 2) % all,
        };
        let pages = match m % 5 {
            0 => 512,
            1 => 1024,
            2 => 1 + u64::from(m >> 3) % 700,
            _ => 1 + u64::from(m >> 3) % 24,
        };
        (first, pages.min(all - first))
    }

    fn vm(&self, n: u32) -> Option<usize> {
        let live: Vec<usize> = (0..self.vms.len()).filter(|&i| !self.vms[i].zombie).collect();
        Self::pick(&live, n)
    }

    fn slot(&self, n: u32, m: u32) -> Option<(usize, AsId, SlotId)> {
        let vm = self.vm(n)?;
        let (view, slot) = Self::pick(&self.vms[vm].slots, m)?;
        Some((vm, view, slot))
    }

    fn slot_now(&self, vm: usize, view: AsId, slot: SlotId) -> Slot {
        self.w.manager.slots_named(self.vms[vm].id, view).find(|&(id, _)| id == slot).expect("a slot").1
    }

    /// What the space says of a page: its key, and whether it may be read and written.
    fn page(&self, space: SpaceId, page: u64) -> Result<(Key, bool, bool), FaultError> {
        let vma = self.w.manager.vmas(space).find(|vma| vma.start() <= page && page < vma.end());
        let vma = vma.ok_or(FaultError::NotMapped)?;
        let key = if vma.tracking() == Tracking::Pfn {
            // Windows of the device are mapped where their frames' numbers say.
            Key::Device((page - BASE) % DEVICE_FRAMES)
        } else if vma.object() == 0 {
            Key::Own(space, page)
        } else {
            // They were made first.
            let nr = vma.object() as usize - 1;
            let index = vma.index(page);
            if index >= OBJECT_PAGES {
                return Err(FaultError::BeyondEnd);
            }
            let own = Key::Own(space, page);
            if vma.is_private() && self.words.contains_key(&own) { own } else { Key::Object(nr, index) }
        };
        Ok((key, vma.flags().has(VmaFlags::READ), vma.flags().has(VmaFlags::WRITE)))
    }

    /// A word was read, or is about to be overwritten.
    fn seen(&mut self, key: Key, word: u64, who: &dyn Display) {
        let starts = match key {
            Key::Object(nr, _) if self.objects[nr].1 == ObjectKind::File => None,
            _ => Some(0),
        };
        let expected = self.words.get(&key).copied().unwrap_or(starts);
        match expected {
            Some(expected) => assert_eq!(word, expected, "{who}: {key:?}"),
            // It may be one's own, or what an object has there: only a store settles that.
            None if matches!(key, Key::Own(..)) => {}
            None => {
                self.words.insert(key, Some(word));
            }
        }
    }

    fn stored(&mut self, space: Option<SpaceId>, page: u64, key: Key, value: u64) {
        let key = match (space, key) {
            (Some(space), Key::Object(..)) => {
                let vma = self.w.manager.vmas(space).find(|vma| vma.start() <= page && page < vma.end()).unwrap();
                if vma.is_private() { Key::Own(space, page) } else { key }
            }
            _ => key,
        };
        self.words.insert(key, Some(value));
    }

    /// What may be refused for want of frames, or by a limit, at the moment.
    fn excused(&self, error: FaultError) -> bool {
        match error {
            FaultError::OutOfFrames => self.is_low(),
            FaultError::Refused(_) => self.limited,
            _ => false,
        }
    }

    fn is_low(&self) -> bool {
        !self.hogged.is_empty() || self.w.free() < 512
    }

    fn host(&mut self, space: SpaceId, page: u64, write: bool) {
        let value = write.then(|| self.value());
        let expected = self.page(space, page);
        match (self.w.access(space, page, value), expected) {
            (Ok((before, _)), Ok((key, r, w))) => {
                assert!(if write { w } else { r }, "{space:?} {page:#x}: allowed");
                self.seen(key, before, &format_args!("host {space:?} {page:#x}"));
                if let Some(value) = value {
                    self.stored(Some(space), page, key, value);
                }
            }
            (Err(FaultError::Forbidden), Ok((_, r, w))) => assert!(!(if write { w } else { r }), "{page:#x} forbidden"),
            (Err(error), _) if self.excused(error) => {}
            (Err(error), Err(expected)) => {
                let forbidden = error == FaultError::Forbidden && expected == FaultError::BeyondEnd;
                assert!(error == expected || forbidden, "{error:?} {expected:?}");
            }
            (got, expected) => panic!("host {page:#x}: {got:?} where {expected:?}"),
        }
    }

    fn value(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn guest(&mut self, vm: usize, view: AsId, gfn: u64, write: bool) {
        let id = self.vms[vm].id;
        let value = write.then(|| self.value());
        let found = self.w.manager.slot_at(id, view, gfn);
        let result = self.guest_access(id, view, gfn, value);
        let Some((slot_id, slot)) = found else {
            assert_eq!(result.err(), Some(VmFaultError::NoSlot), "{gfn:#x}");
            return;
        };
        if let (Ok(_) | Err(VmFaultError::Host(_)), true) = (&result, write && slot.flags.has(SlotFlags::LOGGING)) {
            // Noted whether or not the store could be made after all.
            if result.is_ok() {
                self.vms[vm].stored.get_mut(&slot_id).expect("a log").insert(gfn - slot.gfn);
            }
        }
        if write && slot.flags.has(SlotFlags::READ_ONLY) {
            assert_eq!(result.err(), Some(VmFaultError::ReadOnly), "{gfn:#x}");
            return;
        }
        let space = self.w.manager.vm_space(id);
        let (page, expected) = match slot.backing {
            Backing::Device(first) => {
                let frame = first.add(gfn - slot.gfn).raw() - self.w.device().raw();
                (0, Ok((Key::Device(frame), true, true)))
            }
            Backing::Host(start) => {
                let page = start + (gfn - slot.gfn);
                (page, self.page(space, page))
            }
        };
        let device = matches!(slot.backing, Backing::Device(_));
        match (result, expected) {
            (Ok(before), Ok((key, r, w))) => {
                assert!(if write { w } else { r }, "guest {gfn:#x}: allowed");
                self.seen(key, before, &format_args!("guest {id:?} {gfn:#x}"));
                if let Some(value) = value {
                    self.stored((!device).then_some(space), page, key, value);
                }
            }
            (Err(VmFaultError::Host(FaultError::Forbidden)), Ok((_, r, w))) => {
                assert!(!(if write { w } else { r }), "guest {gfn:#x}: forbidden");
            }
            (Err(VmFaultError::Host(error)), _) if self.excused(error) => {}
            (Err(VmFaultError::OutOfFrames), _) if self.is_low() => {}
            (Err(VmFaultError::Refused(_)), _) if self.limited => {}
            (Err(VmFaultError::Host(error)), Err(expected)) => {
                let forbidden = error == FaultError::Forbidden && expected == FaultError::BeyondEnd;
                assert!(error == expected || forbidden, "{error:?} {expected:?}");
            }
            (got, expected) => panic!("guest {gfn:#x}: {got:?} where {expected:?}"),
        }
    }

    fn guest_access(&self, vm: VmId, view: AsId, gfn: u64, store: Option<u64>) -> Result<u64, VmFaultError> {
        use std::sync::atomic::Ordering::Relaxed;
        let access = if store.is_some() { Access::Write } else { Access::Read };
        for _ in 0..8 {
            let root = self.w.manager.stage2_root(vm, view).ok_or(VmFaultError::NoSlot)?;
            if let Some(word) = self.w.guest_word(self.w.manager.vm_format(vm), root, gfn, access) {
                let before = word.load(Relaxed);
                if let Some(value) = store {
                    word.store(value, Relaxed);
                }
                return Ok(before);
            }
            self.w.manager.vm_fault(vm, VmAccess { view, gfn, access })?;
        }
        panic!("{gfn:#x} faults and faults");
    }

    /// Private pages of the range are gone, or are whatever is read next.
    fn forget(&mut self, space: SpaceId, pages: std::ops::Range<u64>, gone: bool) {
        for page in pages {
            let key = Key::Own(space, page);
            if gone {
                self.words.remove(&key);
            } else {
                self.words.insert(key, None);
            }
        }
    }

    fn leave_roots(&self, vm: VmId) {
        for root in AsId::ALL.into_iter().filter_map(|view| self.w.manager.stage2_root(vm, view)) {
            self.w.machine.leave(root);
        }
    }

    fn step(&mut self, op: Op) {
        let [a, b, c, d, e] = op.n;
        let space = Self::pick(&self.spaces, a).expect("a space");
        let (first, pages) = Self::range(b, c, PAGES);
        let page = BASE + first;
        match op.what {
            What::GuestWrite | What::GuestRead => {
                let write = op.what == What::GuestWrite;
                // Mostly where there is something.
                if b % 8 == 0 {
                    let Some(vm) = self.vm(a) else { return };
                    let gfn = u64::from(c) % GFNS;
                    self.say(|| format!("{:?}: {:?} of any frame {gfn:#x}", self.vms[vm].id, op.what));
                    self.guest(vm, AsId::ALL[(d % 4 == 0) as usize], gfn, write);
                } else {
                    let Some((vm, view, slot)) = self.slot(a, b) else { return };
                    let slot = self.slot_now(vm, view, slot);
                    let gfn = slot.gfn + u64::from(c) % if d % 2 == 0 { slot.pages.min(16) } else { slot.pages };
                    self.say(|| format!("{:?}: {:?} of {gfn:#x} in {view:?}", self.vms[vm].id, op.what));
                    self.guest(vm, view, gfn, write);
                }
            }
            What::GuestRun => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                let slot = self.slot_now(vm, view, slot);
                let from = u64::from(c) % slot.pages;
                let to = slot.pages.min(from + 1 + u64::from(d) % 600);
                self.say(|| format!("{:?}: run of {from:#x}..{to:#x} in {slot:?} of {view:?}", self.vms[vm].id));
                for i in (from..to).step_by(1 + (e % 7) as usize) {
                    self.guest(vm, view, slot.gfn + i, e % 3 > 0);
                }
            }
            What::HostWrite | What::HostRead => {
                self.say(|| format!("{space:?}: {:?} of {page:#x}", op.what));
                self.host(space, page, op.what == What::HostWrite);
            }
            What::Map => {
                let offset = if d % 3 == 0 { u64::from(d >> 8) % OBJECT_PAGES } else { first % 1024 };
                let object = self.objects[(d >> 4) as usize % self.objects.len()].0;
                let what = match e % 10 {
                    0..=4 => Map::Anon,
                    5..=7 => Map::Shared(object, offset),
                    8 => Map::Private(object, offset),
                    _ => Map::Device(Pfn::new(self.w.device().raw() + first % DEVICE_FRAMES)),
                };
                let pages =
                    if let Map::Device(_) = what { pages.min(DEVICE_FRAMES - first % DEVICE_FRAMES) } else { pages };
                let prot = if (e >> 8) % 4 == 0 { R } else { RW };
                self.say(|| format!("{space:?}: map {page:#x}+{pages} {what:?} {prot:?}"));
                let result = self.w.manager.map_fixed(space, at(page), pages, prot, what);
                self.changed(space, page..page + pages, result);
            }
            What::Unmap => {
                self.say(|| format!("{space:?}: unmap {page:#x}+{pages}"));
                let result = self.w.manager.unmap(space, at(page), pages);
                self.changed(space, page..page + pages, result);
            }
            What::DontNeed => {
                self.say(|| format!("{space:?}: don't need {page:#x}+{pages}"));
                let result = self.w.manager.advise(space, at(page), pages, Advice::DontNeed);
                self.changed(space, page..page + pages, result);
            }
            What::Advice => {
                let advice = if d % 2 == 0 { Advice::HugePage } else { Advice::NoHugePage };
                self.say(|| format!("{space:?}: {advice:?} {page:#x}+{pages}"));
                let result = self.w.manager.advise(space, at(page), pages, advice);
                assert!(result.is_ok() || self.is_low());
            }
            What::Protect => {
                let prot = [R, RW, RW, Prot::NONE][d as usize % 4];
                self.say(|| format!("{space:?}: protect {page:#x}+{pages} {prot:?}"));
                let result = self.w.manager.protect(space, at(page), pages, prot);
                assert!(!matches!(result, Err(MapError::OutOfFrames)) || self.is_low());
            }
            What::Fork => {
                if self.spaces.len() < MOST_SPACES {
                    self.say(|| format!("{space:?}: fork"));
                    if let Ok(child) = self.w.manager.fork(space) {
                        self.forked(space, child);
                    }
                }
            }
            What::Leave => {
                let is_vmm = self.w.manager.vms().any(|vm| self.w.manager.vm_space(vm) == space);
                if self.spaces.len() > 1 && !is_vmm {
                    self.say(|| format!("{space:?}: leave"));
                    self.w.leave(space);
                    self.spaces.retain(|&other| other != space);
                    self.words.retain(|key, _| !matches!(key, Key::Own(of, _) if *of == space));
                }
            }
            What::Remap => self.remap(space, page, pages, op),
            What::Migrate => {
                let Some((pfn, _)) = self.w.leaf(space, page) else { return };
                let Some(folio) = self.w.manager.folio(pfn) else { return };
                self.say(|| format!("{space:?}: migrate what is at {page:#x}"));
                let _ = self.w.manager.migrate(folio);
            }
            What::Collapse => {
                self.say(|| format!("{space:?}: collapse {page:#x}"));
                self.w.manager.collapse(space, at(page & !511));
            }
            What::CollapseByCopy => {
                self.say(|| format!("{space:?}: collapse {page:#x} by copy"));
                let _ = self.w.manager.collapse_by_copy(space, at(page & !511), 511);
            }
            What::Reclaim => {
                let (object, _) = self.objects[a as usize % self.objects.len()];
                self.say(|| format!("{object:?}: reclaim"));
                self.w.manager.reclaim(object, u64::from(b) % 2000, c % 2 == 0);
            }
            What::SplitDeferred => {
                self.say(|| "split deferred".into());
                self.w.manager.split_deferred(4);
            }
            What::CreateVm => {
                if self.vms.len() < MOST_VMS {
                    // The machine caches translations of one format only.
                    let format = [Stage2Format::LongMode, Stage2Format::ALL[c as usize % 5]][(b % 2) as usize];
                    self.say(|| format!("{space:?}: a VM, {format:?}"));
                    if let Ok(id) = self.w.manager.create_vm(space, format) {
                        self.vms.push(VmState { id, zombie: false, slots: Vec::new(), stored: HashMap::new() });
                    }
                }
            }
            What::AddSlot => self.add_slot(op),
            What::MoveSlot => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                let gfn = Self::range(c, d, GFNS).0;
                self.say(|| format!("{:?}: move {slot:?} of {view:?} to {gfn:#x}", self.vms[vm].id));
                let result = self.w.manager.move_slot(self.vms[vm].id, view, slot, gfn);
                assert!(matches!(result, Ok(()) | Err(SlotError::Overlaps)), "{result:?}");
            }
            What::ResizeSlot => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                let now = self.slot_now(vm, view, slot);
                let most = if let Backing::Device(_) = now.backing { now.pages } else { 1024 };
                let pages = 1 + u64::from(c) % most;
                self.say(|| format!("{:?}: resize {now:?} of {view:?} to {pages}", self.vms[vm].id));
                let result = self.w.manager.resize_slot(self.vms[vm].id, view, slot, pages);
                let logs = now.flags.has(SlotFlags::LOGGING);
                assert!(
                    matches!(result, Ok(()) | Err(SlotError::Overlaps)) || logs && result == Err(SlotError::Range),
                    "{result:?}"
                );
            }
            What::RemoveSlot => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                self.say(|| format!("{:?}: remove {slot:?} of {view:?}", self.vms[vm].id));
                self.w.manager.remove_slot(self.vms[vm].id, view, slot);
                self.vms[vm].slots.retain(|&(_, other)| other != slot);
                self.vms[vm].stored.remove(&slot);
            }
            What::StartLog => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                let was = self.slot_now(vm, view, slot);
                self.say(|| format!("{:?}: log {slot:?} of {view:?}", self.vms[vm].id));
                match self.w.manager.start_log(self.vms[vm].id, view, slot) {
                    Ok(()) => assert!(self.vms[vm].stored.insert(slot, BTreeSet::new()).is_none()),
                    Err(LogError::On) => assert!(was.flags.has(SlotFlags::LOGGING)),
                    Err(LogError::Slot) => assert!(matches!(was.backing, Backing::Device(_))),
                    Err(LogError::OutOfFrames) => assert!(self.is_low()),
                }
            }
            What::TakeLog => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                let Some(stored) = self.vms[vm].stored.get(&slot) else { return };
                self.say(|| format!("{:?}: take the log of {slot:?}", self.vms[vm].id));
                let mut left = stored.clone();
                let now = self.slot_now(vm, view, slot);
                self.w.manager.take_log(self.vms[vm].id, view, slot, |gfn| {
                    assert!(now.gfns().contains(&gfn));
                    assert!(left.remove(&(gfn - now.gfn)), "{gfn:#x} is in the log, though nobody stored to it");
                });
                assert!(left.is_empty(), "the log has missed {left:?}");
                self.vms[vm].stored.insert(slot, BTreeSet::new());
            }
            What::StopLog => {
                let Some((vm, view, slot)) = self.slot(a, b) else { return };
                if self.vms[vm].stored.remove(&slot).is_some() {
                    self.say(|| format!("{:?}: stop the log of {slot:?}", self.vms[vm].id));
                    self.w.manager.stop_log(self.vms[vm].id, view, slot);
                }
            }
            What::CloneVm => {
                let Some(vm) = self.vm(a) else { return };
                if self.vms.len() < MOST_VMS && self.spaces.len() < MOST_SPACES {
                    self.say(|| format!("{:?}: clone", self.vms[vm].id));
                    let parent = self.w.manager.vm_space(self.vms[vm].id);
                    if let Ok((child, id)) = self.w.manager.clone_vm(self.vms[vm].id) {
                        self.forked(parent, child);
                        let slots = AsId::ALL.into_iter().flat_map(|view| {
                            self.w.manager.slots_named(id, view).map(move |(slot, _)| (view, slot)).collect::<Vec<_>>()
                        });
                        let slots = slots.collect();
                        self.vms.push(VmState { id, zombie: false, slots, stored: HashMap::new() });
                    }
                }
            }
            What::Harvest => {
                let Some(vm) = self.vm(a) else { return };
                let (gfn, pages) = Self::range(b, c, GFNS);
                self.say(|| format!("{:?}: harvest {gfn:#x}+{pages}", self.vms[vm].id));
                self.w.manager.harvest_accessed(self.vms[vm].id, AsId::NORMAL, gfn..gfn + pages, |_| {});
            }
            What::Discard => self.discard(op),
            What::Retire => {
                let Some(vm) = self.vm(a) else { return };
                self.say(|| format!("{:?}: retire", self.vms[vm].id));
                self.w.manager.retire_vm(self.vms[vm].id);
                self.vms[vm].zombie = true;
            }
            What::Reap => {
                let Some(vm) = (0..self.vms.len()).find(|&i| self.vms[i].zombie) else { return };
                self.say(|| format!("{:?}: reap", self.vms[vm].id));
                self.leave_roots(self.vms[vm].id);
                self.w.manager.reap_vm(self.vms[vm].id);
                self.vms.remove(vm);
            }
            What::Limit => {
                self.limited = !self.limited;
                let limit = if self.limited { 512 + u64::from(a) % 1600 } else { COUNT_LIMIT };
                self.say(|| format!("limit {limit}"));
                self.w.manager.set_count_limit(limit);
            }
            What::Hog => {
                if a % 3 == 0 {
                    self.say(|| "a hog".into());
                    let order = Order::new((b % 10) as u8);
                    while let Some(run) = self.w.manager.frames().alloc(order, false) {
                        self.hogged.push((run.pfn, order));
                        if c % 4 > 0 && self.hogged.len() % 64 == 63 {
                            break;
                        }
                    }
                } else {
                    self.say(|| "no hog".into());
                    for (pfn, order) in self.hogged.drain(..) {
                        self.w.manager.frames().free(pfn, order, false);
                    }
                }
            }
            What::Ask => self.ask(space, page, op),
        }
    }

    /// A range of a space has new contents, or none, if that went well.
    fn changed(&mut self, space: SpaceId, pages: std::ops::Range<u64>, result: Result<(), MapError>) {
        if result.is_err() {
            assert!(result == Err(MapError::OutOfFrames) && self.is_low(), "{result:?} with {} free", self.w.free());
        }
        self.forget(space, pages, result.is_ok());
    }

    fn forked(&mut self, parent: SpaceId, child: SpaceId) {
        let own = |key: &Key| if let Key::Own(of, page) = *key { (of == parent).then_some(page) } else { None };
        let copied: Vec<_> = self.words.iter().filter_map(|(key, &word)| Some((own(key)?, word))).collect();
        self.words.extend(copied.into_iter().map(|(page, word)| (Key::Own(child, page), word)));
        self.spaces.push(child);
    }

    fn remap(&mut self, space: SpaceId, page: u64, pages: u64, op: Op) {
        let (to, longer) = Self::range(op.n[3], op.n[4], PAGES);
        let to = if op.n[4].is_multiple_of(3) { page } else { BASE + to };
        let new_pages = if op.n[3].is_multiple_of(2) { pages } else { longer }.min(BASE + PAGES - to);
        // Windows of the device stand where their frames' numbers say.
        let tracked = |page: u64| {
            let vma = self.w.manager.vmas(space).find(|vma| vma.start() <= page && page < vma.end());
            vma.is_none_or(|vma| vma.tracking() == Tracking::Tracked)
        };
        if !(page..page + pages).all(tracked) {
            return;
        }
        self.say(|| format!("{space:?}: remap {page:#x}+{pages} to {to:#x}+{new_pages}"));
        match self.w.manager.remap(space, at(page), pages, at(to), new_pages) {
            Ok(()) if to == page => self.forget(space, page + new_pages..(page + pages).max(page + new_pages), true),
            Ok(()) => {
                self.forget(space, to..to + new_pages, true);
                for i in 0..pages {
                    if let Some(word) = self.words.remove(&Key::Own(space, page + i))
                        && i < new_pages
                    {
                        self.words.insert(Key::Own(space, to + i), word);
                    }
                }
            }
            Err(error) if error != MapError::OutOfFrames => {}
            Err(_) => {
                assert!(self.is_low());
                // What stood at the new place may be gone, and some may have moved: what is where nobody knows.
                let touched = [page..page + pages, to..to + new_pages];
                for page in touched.into_iter().flatten() {
                    self.words.insert(Key::Own(space, page), None);
                }
            }
        }
    }

    fn add_slot(&mut self, op: Op) {
        let [a, b, c, d, e] = op.n;
        let Some(vm) = self.vm(a) else { return };
        let (first, pages) = Self::range(b, c, PAGES);
        let gfn = if d % 3 > 0 { first } else { Self::range(d >> 2, c, GFNS).0 };
        let flags = match e % 8 {
            0 => SlotFlags::READ_ONLY,
            1 | 2 => SlotFlags::UNMAPPED,
            3 => SlotFlags::READ_ONLY.or(SlotFlags::UNMAPPED),
            _ => SlotFlags::default(),
        };
        let view = AsId::ALL[usize::from(e % 5 == 0)];
        let (backing, pages) = if (e >> 8) % 10 == 0 {
            let first = first % DEVICE_FRAMES;
            (Backing::Device(self.w.device().add(first)), pages.min(DEVICE_FRAMES - first))
        } else {
            (Backing::Host(BASE + first), pages)
        };
        let slot = Slot { gfn, pages, backing, flags };
        self.say(|| format!("{:?}: {slot:?} in {view:?}", self.vms[vm].id));
        match self.w.manager.add_slot(self.vms[vm].id, view, slot) {
            Ok(id) => self.vms[vm].slots.push((view, id)),
            Err(SlotError::Overlaps) => {}
            Err(SlotError::OutOfFrames) => assert!(self.is_low()),
            Err(error) => panic!("{slot:?}: {error}"),
        }
    }

    fn discard(&mut self, op: Op) {
        let Some((vm, view, slot)) = self.slot(op.n[0], op.n[1]) else { return };
        let slot = self.slot_now(vm, view, slot);
        let from = u64::from(op.n[2]) % slot.pages;
        let pages = (slot.pages - from).min(if op.n[3].is_multiple_of(2) { 512 } else { u64::from(op.n[3]) % 40 + 1 });
        let gfns = slot.gfn + from..slot.gfn + from + pages;
        let space = self.w.manager.vm_space(self.vms[vm].id);
        self.say(|| format!("{:?}: discard {gfns:x?} of {view:?}", self.vms[vm].id));
        let result = self.w.manager.discard(self.vms[vm].id, view, gfns);
        let Backing::Host(start) = slot.backing else {
            assert_eq!(result, Ok(false));
            return;
        };
        let range = start + from..start + from + pages;
        for page in range.clone() {
            let Ok((Key::Object(nr, index), ..)) = self.page(space, page) else { continue };
            let vma = self.w.manager.vmas(space).find(|vma| vma.start() <= page && page < vma.end()).unwrap();
            if !vma.is_private() {
                // A shared object's pages are zero if all went, and if not, some of them.
                let all = result == Ok(true) && self.objects[nr].1 == ObjectKind::Shared;
                self.words.insert(Key::Object(nr, index), all.then_some(0));
            }
        }
        self.changed(space, range, result.map(|_| ()));
        if result == Ok(true) {
            assert_eq!(self.w.manager.residency(self.vms[vm].id, view, slot.gfn + from..slot.gfn + from + pages), 0);
        }
    }

    /// What the ledger says of a folio, beside a walk over all tables.
    fn ask(&self, space: SpaceId, page: u64, op: Op) {
        let manager = &self.w.manager;
        if let Some(vm) = self.vm(op.n[3]) {
            let id = self.vms[vm].id;
            assert_eq!(manager.vm_pages(id), manager.working_set_by_walk(id), "N8");
            let gfn = u64::from(op.n[4]) % GFNS;
            for view in AsId::ALL {
                let may = manager.may_be_huge(id, view, gfn, Level::TWO, |_| 0);
                assert_eq!(may.is_ok(), manager.may_be_huge_by_walk(id, view, gfn, Level::TWO), "N7: {may:?}");
            }
        }
        let behind = self.w.leaf(space, page).map(|(pfn, _)| pfn).or_else(|| {
            let vm = self.vm(op.n[3])?;
            let gfn = u64::from(op.n[4]) % GFNS;
            let (place, leaf) = manager.stage2_lookup(self.vms[vm].id, AsId::NORMAL, gfn)?;
            Some(leaf.pfn.add(gfn - place.page))
        });
        let Some(folio) = behind.and_then(|pfn| manager.folio(pfn)) else { return };
        for &owner in &self.spaces {
            agree(&manager.ledger(folio, owner.raw()), &manager.ledger_by_walk(folio, owner.raw()), owner.raw());
        }
    }
}

/// Every answer of the ledger is the walk's, or errs to the side that it may.
fn agree(ledger: &quire::ledger::Ledger, walked: &quire::ledger::Walked, owner: u32) {
    let errs_to = |said: Answer<bool>, is: bool, side: bool, what: &str| match said {
        Answer::Exact(said) => assert_eq!(said, is, "{what}"),
        Answer::Errs(said) => assert!(said == is || said == side, "{what}: to the wrong side"),
        _ => {}
    };
    errs_to(ledger.unreached(), walked.unreached_by_walk(), false, "N1a");
    let all: &[Class] = &Class::ALL;
    for among in [all, &OF_VMS] {
        let shared = walked.shared_by_walk(among, owner);
        errs_to(ledger.maybe_shared(among, walked.mine()), shared, true, "N2");
    }
    if let Answer::Exact(order) = ledger.huge_at_both([ledger], Order::GIGANTIC) {
        assert_eq!(order, walked.huge_at_both_by_walk([walked], Order::GIGANTIC), "N3");
    }
    errs_to(ledger.only_by_processes(), walked.only_by_processes_by_walk(), true, "N4");
    errs_to(ledger.held_by_leaves_only(), walked.held_by_leaves_only_by_walk(), false, "N5");
    if let Answer::Exact(Countdown::Leaves(leaves)) = ledger.early_stop() {
        assert_eq!(leaves, walked.leaves_by_walk(), "N6");
    }
    for class in Class::ALL {
        let (said, found) = (ledger.class(class), walked.class(class));
        for (said, is) in [(said.leaves, found.leaves()), (said.pages, found.pages())] {
            if let Answer::Exact(said) = said {
                assert_eq!(said, is, "{class}");
            }
        }
        if let Answer::Exact(said) = said.by_level {
            assert_eq!(said, found.by_level, "{class}");
        }
    }
}

/// One history under one scheme.
struct Run<'a> {
    seed: u64,
    ops: &'a [Op],
    step: u64,
    tell: bool,
}

fn policies() -> [Policy; 4] {
    [
        Policy::up_to(Order::HUGE),
        Policy::up_to(Order::new(4)),
        Policy { max_leaf: Level::ONE, ..Policy::up_to(Order::HUGE) },
        Policy::only(Order::HUGE),
    ]
}

impl Run<'_> {
    /// Under those that answer most differently, and under all of them at once a third of the time.
    fn run(self) {
        match self.seed % 6 {
            0 => self.under::<Total>(),
            1 => self.under::<NoCounts>(),
            2 => self.under::<Tuples>(),
            3 => self.under::<ZeroOneTwoMany>(),
            _ => self.under::<Everything>(),
        }
    }

    fn under<A: Accounting>(self) {
        let frames = [4096, 4096, 2600, 1200][(self.seed / 7 % 4) as usize];
        let machine = machine_of(frames);
        let w: World<'_, Classes<A>> = World::with_scheme(&machine, policies()[(self.seed / 3 % 4) as usize], frames);
        for i in 0..DEVICE_FRAMES {
            machine.zero(w.device().add(i), 1);
        }
        let objects = [(ObjectKind::Shared, 9), (ObjectKind::File, 9), (ObjectKind::Shared, 4), (ObjectKind::File, 0)];
        let objects = objects.map(|(kind, order)| {
            (w.manager.create_object(kind, 1, OBJECT_PAGES, Order::new(order)).expect("frames"), kind)
        });
        let first = w.anon(PAGES);
        let mut state = State {
            w,
            objects: objects.to_vec(),
            spaces: vec![first],
            vms: Vec::new(),
            words: HashMap::new(),
            next: 0,
            hogged: Vec::new(),
            limited: false,
            steps: 0,
            tell: self.tell,
        };
        for &op in self.ops {
            state.step(op);
            state.steps += 1;
            if state.steps.is_multiple_of(self.step) {
                state.w.audit_classes();
            }
        }
        state.w.audit_classes();
        let State { w, objects, hogged, .. } = state;
        for (pfn, order) in hogged {
            w.manager.frames().free(pfn, order, false);
        }
        w.end_vms(&objects.iter().map(|&(id, _)| id).collect::<Vec<_>>());
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn fails(seed: u64, ops: &[Op], step: u64) -> bool {
    QUIET.set(true);
    let failed = catch_unwind(AssertUnwindSafe(|| Run { seed, ops, step, tell: false }.run())).is_err();
    QUIET.set(false);
    failed
}

/// Leaves out what the history fails without.
fn shrink(seed: u64, mut ops: Vec<Op>, step: u64) -> Vec<Op> {
    let mut size = ops.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut less = ops.clone();
            less.drain(at..(at + size).min(ops.len()));
            if fails(seed, &less, step) {
                ops = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    ops
}

fn run(seed: u64, step: u64) {
    let ops = history(seed);
    if fails(seed, &ops, step) {
        let ops = shrink(seed, ops, step);
        eprintln!("history of seed {seed}, shortened to {} operations:", ops.len());
        Run { seed, ops: &ops, step, tell: true }.run();
        panic!("the history of seed {seed} failed once");
    }
}

/// At least 10^5 operations, on two threads.
#[test]
fn over_a_hundred_thousand_operations() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            hook(info);
        }
    }));
    let (ops, step) = (number("QUIRE_OPS", 100_000), number("QUIRE_STEP", 1));
    let first_seed = number("QUIRE_FIRST_SEED", 0);
    let end = first_seed + ops.div_ceil(LENGTH as u64);
    thread::scope(|scope| {
        for first in 0..2 {
            scope.spawn(move || (first_seed + first..end).step_by(2).for_each(|seed| run(seed, step)));
        }
    });
}

/// What a history is made of is what it weighs: no operation is left out.
#[test]
fn every_operation_occurs() {
    let mut ops: Vec<Op> = (0..20).flat_map(history).collect();
    ops.shuffle(&mut SmallRng::seed_from_u64(1));
    for &(what, _) in WHATS {
        assert!(ops.iter().any(|op| op.what == what), "{what:?}");
    }
}
