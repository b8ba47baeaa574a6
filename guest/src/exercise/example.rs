//! The worked example of SCHEMES.md, nested levels: steps n0 to n9, and what every count is after each.

use super::{BASE, Cpu, Nest, READ, READ_WRITE, Setup, Who, Wrong, at, deepest, in_nest, must};
use crate::addr::{Order, Pfn};
use crate::audit::Recount;
use crate::mapcount::{Accounting, Class, Classes, Truth};
use crate::memory::{Memory, Tlb};
use crate::nest::NestError;
use crate::space::{Manager, Map, Policy};
use crate::stage2::{AsId, Backing, Slot, SlotFlags, Stage2Format, VmAccess};

/// What is counted at one step, of the guest's folio and of the host's behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Leaves of level 1's processes over the guest's folio, and the pages they map.
    pub gf: (u64, u64),
    /// Leaves of level 1's VMs, and their pages.
    pub gf_nested: (u64, u64),
    /// Leaves of level 0's processes over the host's folio, and their pages.
    pub hf: (u64, u64),
    /// Leaves of level 0's VMs and of those composed for their tenants, and their pages.
    pub hf_vms: (u64, u64),
    /// Owners at level 0.
    pub owners: u64,
    /// Whether all leaves are huge at both levels.
    pub huge_both: bool,
    /// Tuples of region and table: of the guest's folio in processes, of the host's in VMs.
    pub tuples: (u64, u64),
    /// Leaves of level 0's VMs that map the whole folio.
    pub entire: u64,
}

impl Columns {
    /// Words of one step in the results of a kernel.
    pub const WORDS: usize = 6;

    /// As words: each pair is one, the second number in the lower half.
    #[must_use]
    pub fn encode(&self) -> [u64; Self::WORDS] {
        let pair = |(high, low): (u64, u64)| high << 32 | low;
        let rest = self.owners << 32 | self.entire << 1 | u64::from(self.huge_both);
        [pair(self.gf), pair(self.gf_nested), pair(self.hf), pair(self.hf_vms), pair(self.tuples), rest]
    }

    /// From these words.
    #[must_use]
    pub fn decode(words: [u64; Self::WORDS]) -> Self {
        let pair = |word: u64| (word >> 32, word & 0xffff_ffff);
        let [gf, gf_nested, hf, hf_vms, tuples, rest] = words;
        Self {
            gf: pair(gf),
            gf_nested: pair(gf_nested),
            hf: pair(hf),
            hf_vms: pair(hf_vms),
            tuples: pair(tuples),
            owners: rest >> 32,
            entire: (rest & 0xffff_ffff) >> 1,
            huge_both: rest & 1 == 1,
        }
    }
}

/// Steps.
pub const STEPS: usize = 10;

/// What happens at each step.
pub const WHAT: [&str; STEPS] = [
    "P1 maps gf by a leaf of 2 MiB, stage 2 and the VMM do too",
    "the guest forks P1: P2",
    "P2 splits its leaf",
    "the dirty log is on: stage 2's leaf is split",
    "level 1 maps gf into its VM by a leaf of 2 MiB, of which 3 pages are touched",
    "a second VM maps the same hf, read only, by a leaf of 2 MiB",
    "the log is off: stage 2's leaf is whole again, and what was composed from it is gone",
    "the second VM ends",
    "P1, P2 and the guest's VM end",
    "gf is free, and reported: its memory is discarded",
];

/// What is counted at each step.
pub const EXPECTED: [Columns; STEPS] = {
    let n0 = Columns {
        gf: (1, 512),
        gf_nested: (0, 0),
        hf: (1, 512),
        hf_vms: (1, 512),
        owners: 1,
        huge_both: true,
        tuples: (1, 1),
        entire: 1,
    };
    let n1 = Columns { gf: (2, 1024), tuples: (2, 1), ..n0 };
    let n2 = Columns { gf: (513, 1024), huge_both: false, ..n1 };
    let n3 = Columns { hf_vms: (512, 512), entire: 0, ..n2 };
    let n4 = Columns { gf_nested: (1, 512), hf_vms: (515, 515), tuples: (2, 2), ..n3 };
    let n5 = Columns { hf_vms: (516, 1027), owners: 2, tuples: (2, 3), entire: 1, ..n4 };
    let n6 = Columns { hf_vms: (2, 1024), tuples: (2, 2), entire: 2, ..n5 };
    let n7 = Columns { hf_vms: (1, 512), owners: 1, tuples: (2, 1), entire: 1, ..n6 };
    let n8 = Columns { gf: (0, 0), gf_nested: (0, 0), tuples: (0, 1), ..n7 };
    let n9 = Columns {
        gf: (0, 0),
        gf_nested: (0, 0),
        hf: (0, 0),
        hf_vms: (0, 0),
        owners: 0,
        huge_both: false,
        tuples: (0, 0),
        entire: 0,
    };
    [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9]
};

/// Frames that level 0 needs.
pub const HOST_FRAMES: u64 = 14 * 512;

/// Plays the example on `host`, which has nothing else, with tables of `format`; both levels are recounted at every step. What was counted, step by step: as [`EXPECTED`], but
/// that under a scheme which cannot tell whether stage 2 maps a folio the last step keeps what it might.
///
/// # Errors
/// What was wrong.
pub fn run<M: Memory + Tlb, A: Accounting, C: Cpu<M, A>>(
    host: &Manager<M, Classes<A>>,
    rows: &Recount,
    format: Stage2Format,
    cpu: &mut C,
) -> Result<[Columns; STEPS], Wrong> {
    let setup = Setup { format, frames: 4 * 512, order: Order::HUGE, policy: Policy::up_to(Order::HUGE) };
    in_nest(host, rows, setup, |nest| play(nest, cpu))
}

/// Reads a page of which nothing was stored but to page 0 of P1.
fn read<M: Memory + Tlb, A: Accounting, C: Cpu<M, A>>(
    nest: &Nest<'_, M, A>,
    cpu: &mut C,
    who: Who,
    page: u64,
    expected: u64,
) -> Result<(), Wrong> {
    let found = cpu.touch(nest, who, page, None);
    let expected: Result<u64, NestError> = Ok(expected);
    if found == expected { Ok(()) } else { Err(Wrong::Access { who, page, found, expected }) }
}

fn play<M: Memory + Tlb, A: Accounting, C: Cpu<M, A>>(
    nest: &Nest<'_, M, A>,
    cpu: &mut C,
) -> Result<[Columns; STEPS], Wrong> {
    const SEED: u64 = 0x5eed;
    let (host, guest, vm) = (nest.host(), &nest.guest, nest.vm());
    let mut all = [Columns::default(); STEPS];

    let p1 = must("P1", guest.create_space())?;
    must("P1's mapping", guest.map(p1, at(BASE), 512, READ_WRITE, Map::Anon))?;
    let first = Who::Process(p1);
    let touched = cpu.touch(nest, first, BASE, Some(SEED));
    if touched != Ok(0) {
        return Err(Wrong::Access { who: first, page: BASE, found: touched, expected: Ok(0) });
    }
    let gf = nest.guest_frame(p1, BASE).ok_or(Wrong::Refused("P1's page"))?;
    let hf = nest.memory.reach(gf.raw(), crate::space::Access::Read);
    let mut step = |n: usize| {
        let found = columns(nest, gf, hf)?;
        all[n] = found;
        nest.recount()?;
        if found == EXPECTED[n] { Ok(()) } else { Err(Wrong::Step { step: n, found }) }
    };
    step(0)?;

    let p2 = must("P2", guest.fork(p1))?;
    step(1)?;

    must("a split", guest.protect(p2, at(BASE + 256), 256, READ))?;
    must("a split", guest.protect(p2, at(BASE + 256), 256, READ_WRITE))?;
    // Schemes that call a folio partly mapped find out that it is not.
    guest.repair(guest.folio(gf).ok_or(Wrong::Refused("gf"))?);
    step(2)?;

    must("the log", host.start_log(vm, AsId::NORMAL, nest.slot))?;
    step(3)?;

    let inner = must("a VM of level 1", guest.create_vm(p1, host.vm_format(vm)))?;
    let slot = Slot { gfn: 0, pages: 512, backing: Backing::Host(BASE), flags: SlotFlags::default() };
    must("a slot of level 1", guest.add_slot(inner, AsId::NORMAL, slot))?;
    deepest::boot(nest, cpu, inner, p1, BASE + 1024)?;
    let stamp = crate::trace::stamp(SEED, BASE);
    for (page, word) in [(0, stamp), (7, 0), (300, 0)] {
        read(nest, cpu, Who::Vm(inner), page, word)?;
    }
    step(4)?;

    let other = must("a second VMM", host.create_space())?;
    must("its mapping", host.map(other, at(BASE), nest.pages, READ, Map::Shared(nest.file, 0)))?;
    let second = must("a second VM", host.create_vm(other, host.vm_format(vm)))?;
    let flags = SlotFlags::READ_ONLY.or(SlotFlags::UNMAPPED);
    let slot = Slot { gfn: 0, pages: nest.pages, backing: Backing::Host(BASE), flags };
    must("its slot", host.add_slot(second, AsId::NORMAL, slot))?;
    let access = VmAccess { view: AsId::NORMAL, gfn: gf.raw() + 3, access: crate::space::Access::Read };
    must("its access", host.vm_fault(second, access))?;
    step(5)?;

    host.stop_log(vm, AsId::NORMAL, nest.slot);
    step(6)?;

    host.destroy_vm(second);
    host.destroy_space(other);
    step(7)?;

    nest.end_vm(cpu, inner);
    nest.exit(cpu, p2);
    nest.exit(cpu, p1);
    step(8)?;

    let discarded = report(nest, gf)?;
    let last = columns(nest, gf, hf)?;
    all[9] = last;
    nest.recount()?;
    // Whoever cannot tell that stage 2 maps nothing keeps what it might.
    let may_keep = host
        .folio(hf)
        .is_some_and(|folio| A::mapped(&Classes::<A>::class(&host.counts(folio), Class::Vm)).value() != Some(false));
    if last == EXPECTED[9] && discarded || may_keep { Ok(all) } else { Err(Wrong::Step { step: 9, found: last }) }
}

/// The handshake for the run of guest frames at `gf`: the guest takes free runs off its lists until it has it. Whether all of its memory is free.
fn report<M: Memory + Tlb, A: Accounting>(nest: &Nest<'_, M, A>, gf: Pfn) -> Result<bool, Wrong> {
    let mut result = Ok(false);
    let found = nest.guest.report_free(Order::HUGE, |run| {
        if run == gf {
            let gfns = run.raw()..run.raw() + 512;
            let discarded = nest.host().discard(nest.vm(), AsId::NORMAL, gfns);
            result = must("a discard", discarded);
            *result.as_ref().unwrap_or(&false)
        } else {
            result = report(nest, gf);
            false
        }
    });
    if found { result } else { Err(Wrong::Refused("gf is not free")) }
}

fn columns<M: Memory + Tlb, A: Accounting>(nest: &Nest<'_, M, A>, gf: Pfn, hf: Pfn) -> Result<Columns, Wrong> {
    let guest = nest.memory.look(|| {
        let of = |class| truth(&nest.guest, &nest.guest_rows, gf, class, 1);
        Ok([of(Class::Process)?, of(Class::Vm)?])
    })?;
    let of = |class| truth(nest.host(), nest.rows, hf, class, 0);
    let host = [of(Class::Process)?, of(Class::Vm)?, of(Class::Nested)?];
    let pair = |truth: &Truth| (truth.leaves, truth.total);
    let vms = (host[1].leaves + host[2].leaves, host[1].total + host[2].total);
    // Owners over all classes: the VMs carry the ids of their VMMs.
    let owner = |i: usize| host[i].owner;
    let is_new = |&i: &usize| owner(i) != 0 && (0..i).all(|before| owner(before) != owner(i));
    let distinct = (0..host.len()).filter(is_new).count() as u64;
    let most = host.iter().map(|truth| truth.owners).max().unwrap_or(0);
    Ok(Columns {
        gf: pair(&guest[0]),
        gf_nested: pair(&guest[1]),
        hf: pair(&host[0]),
        hf_vms: vms,
        owners: most.max(distinct),
        huge_both: guest[0].total > 0 && guest[0].total == guest[0].leaves << 9 && vms.1 == vms.0 << 9,
        tuples: (guest[0].tuples, host[1].tuples + host[2].tuples),
        entire: host[1].entire + host[2].entire,
    })
}

/// The counts of a folio in one class, as a recount finds them.
fn truth<M: Memory + Tlb, A: Accounting>(
    manager: &Manager<M, Classes<A>>,
    rows: &Recount,
    pfn: Pfn,
    class: Class,
    level: u8,
) -> Result<Truth, Wrong> {
    let mut audit = rows.run(manager);
    if class != Class::Process {
        rows.run_class(manager, class, &mut audit);
    }
    if let Some((what, frame)) = audit.first {
        return Err(Wrong::Recount { level, what, frame });
    }
    Ok(manager.folio(pfn).map_or_else(Truth::default, |folio| rows.truth(manager, folio)))
}
