//! The questions that only all classes of leaves answer together, on cases made by hand: what each scheme says beside what is so. Random histories ask them in `vm_histories.rs`.

use crate::world::{BASE, R, RW, World, at, huge, huge_by_pages, machine_of};
use quire::addr::{Level, Order};
use quire::folio::Folio;
use quire::ledger::{AlignmentYield, Ledger, NotHuge, OF_VMS, congruence};
use quire::mapcount::{
    Accounting, Answer, Class, Classes, Countdown, None as NoCounts, PerPage, Scheme, Total, Tuples, UnderScheme,
};
use quire::space::{Access, Map, ObjectKind, Policy, SpaceId};
use quire::stage2::{AsId, Backing, Slot, SlotFlags, Stage2Format, VmId};

const FRAMES: u64 = 4096;
const PLAIN: SlotFlags = SlotFlags::LOGGING.without(SlotFlags::LOGGING);

type Nest<'m, A> = World<'m, Classes<A>>;

/// Runs a test under schemes that answer differently; it is told which answers about numbers of leaves are exact.
macro_rules! under_schemes {
    ($($name:ident $policy:expr, |$w:ident, $counts:ident| $body:block)*) => {$(
        #[test]
        fn $name() {
            fn test<A: Accounting>($w: Nest<'_, A>, $counts: bool) $body
            fn run<A: Accounting>(counts: bool) {
                let machine = machine_of(FRAMES);
                test::<A>(World::with_scheme(&machine, $policy, FRAMES), counts);
            }
            run::<Total>(true);
            run::<PerPage>(true);
            run::<Tuples>(false);
            run::<NoCounts>(false);
        }
    )*};
}

fn folio_at<'w, A: Accounting>(w: &'w Nest<'_, A>, space: SpaceId, page: u64) -> Folio<'w> {
    w.manager.folio(w.leaf(space, page).expect("a leaf").0).expect("a folio")
}

/// The answer is so, or the scheme does not say, or errs to `side`.
#[track_caller]
fn says(said: Answer<bool>, is: bool, side: bool) {
    match said {
        Answer::Exact(said) => assert_eq!(said, is),
        Answer::Errs(said) => assert!(said == is || said == side, "to the wrong side"),
        Answer::About(_) | Answer::Walk | Answer::Cannot => {}
    }
}

/// A VMM and its VM with one slot over `pages` pages of `object`, as page 0 of the guest.
fn vm_over<A: Accounting>(w: &Nest<'_, A>, what: Map, pages: u64, flags: SlotFlags) -> (SpaceId, VmId) {
    let space = w.space();
    w.map(space, BASE, pages, RW, what);
    let vm = w.manager.create_vm(space, Stage2Format::LongMode).unwrap();
    w.slot(vm, 0, BASE, pages, flags);
    (space, vm)
}

under_schemes! {
    a_vm_and_its_vmm_are_one_owner huge(), |w, counts| {
        let file = w.manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).unwrap();
        let (one, first) = vm_over(&w, Map::Shared(file, 0), 512, PLAIN);
        w.guest_write(first, 5, 1);
        let folio = folio_at(&w, one, BASE);
        let ask = |owner: SpaceId, among: &[Class]| {
            let walked = w.manager.ledger_by_walk(folio, owner.raw());
            let shared = w.manager.ledger(folio, owner.raw()).maybe_shared(among, walked.mine());
            (shared, walked.shared_by_walk(among, owner.raw()))
        };
        let (said, is) = ask(one, &Class::ALL);
        assert!(!is);
        says(said, is, true);
        if counts {
            assert_eq!(said.value(), Some(false), "a leaf at either level, and one owner");
        }
        // Another VM, of which the VMM maps nothing itself.
        let (two, second) = vm_over(&w, Map::Shared(file, 0), 512, SlotFlags::UNMAPPED);
        w.guest_read(second, 7);
        for (owner, among) in [(one, &Class::ALL[..]), (two, &Class::ALL), (one, &OF_VMS), (two, &OF_VMS)] {
            let (said, is) = ask(owner, among);
            assert!(is);
            says(said, is, true);
        }
        assert_eq!(w.manager.ledger_by_walk(folio, two.raw()).mine(), [false, true, false]);
        w.manager.destroy_vm(second);
        assert!(!ask(one, &OF_VMS).1);
        w.audit_classes();
        w.end_vms(&[file]);
    }

    who_reaches_memory_and_who_holds_it huge(), |w, counts| {
        let (space, vm) = vm_over(&w, Map::Anon, 1024, PLAIN);
        w.write(space, BASE, 1);
        let folio = folio_at(&w, space, BASE);
        let ledger = || w.manager.ledger(folio, space.raw());
        says(ledger().only_by_processes(), true, true);
        if counts {
            assert_eq!(ledger().only_by_processes(), Answer::Exact(true));
            assert_eq!(ledger().early_stop(), Answer::Exact(Countdown::Leaves(1)));
        }
        w.guest_write(vm, 3, 2);
        says(ledger().only_by_processes(), false, true);
        says(ledger().unreached(), false, false);
        if counts {
            assert_eq!(ledger().early_stop(), Answer::Exact(Countdown::Leaves(2)), "one at either level");
            assert_eq!(ledger().class(Class::Vm).pages, Answer::Exact(512));
            assert_eq!(ledger().held_by_leaves_only(), Answer::Exact(true), "stage-2 leaves hold nothing");
        }
        let pin = w.manager.pin(space, at(BASE), Access::Read).unwrap();
        if counts {
            assert_eq!(ledger().held_by_leaves_only(), Answer::Exact(false));
        }
        assert!(!w.manager.ledger_by_walk(folio, space.raw()).held_by_leaves_only_by_walk());
        w.manager.unmap(space, at(BASE), 512).unwrap();
        assert!(w.manager.ledger_by_walk(folio, space.raw()).unreached_by_walk());
        says(ledger().unreached(), true, false);
        if counts {
            assert_eq!(ledger().unreached(), Answer::Exact(true));
        }
        assert!(!ledger().may_discard(true), "a device may store to it: a count alone is never enough");
        w.manager.unpin(pin, false);
        w.audit_classes();
        w.end_vms(&[]);
    }

    huge_at_both_levels huge(), |w, counts| {
        let (space, vm) = vm_over(&w, Map::Anon, 2048, PLAIN);
        for gfn in (0..2048).step_by(512) {
            w.guest_write(vm, gfn, 1);
        }
        // The guest's own manager, of the frames that the slot has.
        let machine = machine_of(2048);
        let guest: Nest<'_, A> = World::with_scheme(&machine, huge(), 2048);
        let process = guest.anon(512);
        guest.write(process, BASE + 3, 1);
        let gf = folio_at(&guest, process, BASE);
        assert_eq!(gf.order(), Order::HUGE);
        let gfn = gf.head().raw();
        let hf = || folio_at(&w, space, BASE + gfn);
        let both = |congruent: Order| {
            let own: Ledger = guest.manager.ledger(gf, process.raw());
            let behind = w.manager.ledger(hf(), space.raw());
            let walked = guest.manager.ledger_by_walk(gf, process.raw());
            let walked_behind = w.manager.ledger_by_walk(hf(), space.raw());
            let is = walked.huge_at_both_by_walk([&walked_behind], congruent);
            let said = own.huge_at_both([&behind], congruent);
            if let Answer::Exact(said) = said {
                assert_eq!(said, is);
            }
            if counts {
                assert!(matches!(said, Answer::Exact(_)), "{said:?}");
            }
            is
        };
        let share = || {
            let leaves = |visit: &mut dyn FnMut(u64, Level)| {
                let table = guest.manager.page_table(process);
                table.for_each_leaf(&guest.manager, 1 << 36, &mut |place, leaf| visit(leaf.pfn.raw(), place.level));
            };
            w.manager.alignment_yield(vm, AsId::NORMAL, leaves)
        };
        let congruent = congruence([BASE, gfn, BASE + gfn, hf().head().raw()]);
        assert_eq!(both(congruent), Order::HUGE);
        assert_eq!(both(congruence([BASE, gfn + 1, BASE, 0])), Order::BASE, "not congruent");
        assert_eq!(share(), AlignmentYield { pages: 512, huge: 512 });
        // Stage 2 in small leaves, as while stores are logged.
        let (slot, _) = w.manager.slot_at(vm, AsId::NORMAL, 0).unwrap();
        w.manager.start_log(vm, AsId::NORMAL, slot).unwrap();
        assert_eq!(both(congruent), Order::BASE);
        assert_eq!(share(), AlignmentYield { pages: 512, huge: 0 });
        w.manager.stop_log(vm, AsId::NORMAL, slot);
        assert_eq!(both(congruent), Order::HUGE);
        // The guest splits its own leaf.
        guest.manager.protect(process, at(BASE + 256), 256, R).unwrap();
        assert_eq!(both(congruent), Order::BASE);
        assert_eq!(share(), AlignmentYield { pages: 512, huge: 0 });
        guest.end_vms(&[]);
        w.end_vms(&[]);
    }

    why_stage_2_has_no_large_leaf Policy::up_to(Order::HUGE), |w, _counts| {
        let (space, vm) = vm_over(&w, Map::Anon, 1024, PLAIN);
        let view = AsId::NORMAL;
        let may = |gfn: u64| {
            let may = w.manager.may_be_huge(vm, view, gfn, Level::TWO, |_| 0);
            assert_eq!(may.is_ok(), w.manager.may_be_huge_by_walk(vm, view, gfn, Level::TWO), "{may:?}");
            may
        };
        assert_eq!(may(5000), Err(NotHuge::Slot));
        assert_eq!(may(3), Err(NotHuge::Behind), "nothing is there yet");
        w.write(space, BASE + 3, 1);
        assert_eq!(may(3), Ok(()));
        assert_eq!(w.guest_write(vm, 3, 1).unwrap().level, Level::TWO, "and it gets one");
        assert_eq!(w.manager.may_be_huge(vm, view, 3, Level::TWO, |block| block.end), Err(NotHuge::Shadowed));
        assert_eq!(may(600), Err(NotHuge::Behind));
        // A part of a block, a slot that is not congruent, a device.
        w.slot(vm, 2048, BASE, 100, PLAIN);
        assert_eq!(may(2048), Err(NotHuge::Slot));
        w.slot(vm, 2560, BASE + 1, 600, PLAIN);
        assert_eq!(may(2560), Err(NotHuge::Congruence));
        let device = Slot { gfn: 4096, pages: 8, backing: Backing::Device(w.device()), flags: PLAIN };
        w.manager.add_slot(vm, view, device).unwrap();
        assert_eq!(may(4096), Err(NotHuge::Slot));
        let (slot, _) = w.manager.slot_at(vm, view, 0).unwrap();
        w.manager.start_log(vm, view, slot).unwrap();
        assert_eq!(may(3), Err(NotHuge::Logged));
        w.manager.stop_log(vm, view, slot);
        w.manager.protect(space, at(BASE + 16), 16, R).unwrap();
        assert_eq!(may(3), Err(NotHuge::Behind), "the VMM's own leaf is split");
        assert_eq!(w.manager.vm_pages(vm), w.manager.working_set_by_walk(vm));
        w.audit_classes();
        w.end_vms(&[]);
    }
}

/// How surely a scheme answers N1a, N2 to N6 of a folio of order 9, at worst: as SCHEMES.md writes it.
struct Sureness;

impl UnderScheme for Sureness {
    type Output = [char; 6];
    fn run<A: Accounting>(self) -> [char; 6] {
        let mut worst = [0; 6];
        // Two VMMs and their VMs: each maps nothing, the whole folio, or a part; by a large leaf or by pages; and there may have been a third pair that did so many times.
        let ways = [(huge(), false), (huge(), true), (huge_by_pages(), false)];
        for (shape, (policy, crowded)) in (1..81_u64).flat_map(|shape| ways.map(|way| (shape, way))) {
            let machine = machine_of(FRAMES);
            let w: Nest<'_, A> = World::with_scheme(&machine, policy, FRAMES);
            let file = w.manager.create_object(ObjectKind::Shared, 0, 512, Order::HUGE).unwrap();
            let mut spaces = Vec::new();
            for owner in 0..2 {
                let [by_process, by_vm] = [shape / 9_u64.pow(owner) / 3 % 3, shape / 9_u64.pow(owner) % 3];
                let pages = |how| if how == 1 { 512 } else { 100 };
                let (space, vm) = vm_over(&w, Map::Shared(file, 0), 512, SlotFlags::UNMAPPED);
                if by_vm > 0 {
                    let slot = Slot {
                        gfn: 1024,
                        pages: pages(by_vm),
                        backing: Backing::Host(BASE),
                        flags: SlotFlags::UNMAPPED,
                    };
                    w.manager.add_slot(vm, AsId::NORMAL, slot).unwrap();
                    w.guest_read(vm, 1024);
                }
                if by_process > 0 {
                    w.map(space, BASE + 1024, pages(by_process), RW, Map::Shared(file, 0));
                    w.read(space, BASE + 1024);
                }
                spaces.push(space);
            }
            if crowded {
                let (space, vm) = vm_over(&w, Map::Shared(file, 0), 512, SlotFlags::UNMAPPED);
                for n in 1..4 {
                    w.map(space, BASE + n * 1024, 512, RW, Map::Shared(file, 0));
                    w.read(space, BASE + n * 1024);
                    w.slot(vm, n * 1024, BASE, 512, SlotFlags::UNMAPPED);
                    w.guest_read(vm, n * 1024);
                }
                machine.leave(w.manager.stage2_root(vm, AsId::NORMAL).unwrap());
                w.manager.destroy_vm(vm);
                w.leave(space);
            }
            let head = w.manager.cached_page(spaces[0], BASE).expect("somebody has it");
            let folio = w.manager.folio(head).expect("a folio");
            for space in spaces {
                let ledger = w.manager.ledger(folio, space.raw());
                let walked = w.manager.ledger_by_walk(folio, space.raw());
                let shared = [&Class::ALL[..], &OF_VMS].map(|among| rank(&ledger.maybe_shared(among, walked.mine())));
                let ranks = [
                    rank(&ledger.unreached()),
                    shared[0].max(shared[1]),
                    rank(&ledger.huge_at_both([&ledger], Order::GIGANTIC)),
                    rank(&ledger.only_by_processes()),
                    rank(&ledger.held_by_leaves_only()),
                    rank(&ledger.early_stop()),
                ];
                for (worst, rank) in worst.iter_mut().zip(ranks) {
                    *worst = rank.max(*worst);
                }
            }
            w.end_vms(&[file]);
        }
        worst.map(|rank| ['=', '>', '~', 'w', '-'][rank])
    }
}

fn rank<T>(answer: &Answer<T>) -> usize {
    match answer {
        Answer::Exact(_) => 0,
        Answer::Errs(_) => 1,
        Answer::About(_) => 2,
        Answer::Walk => 3,
        Answer::Cannot => 4,
    }
}

#[test]
fn how_surely_each_scheme_answers_is_what_is_written() {
    let text = include_str!("../../SCHEMES.md");
    let table = text.split("How surely each scheme answers, for folios").nth(1).expect("the table");
    for scheme in Scheme::EACH.into_iter().filter(|&scheme| scheme != Scheme::All) {
        let sure = scheme.run(Sureness);
        let row = format!("| `{}` | {} |", scheme.name(), sure.map(String::from).join(" | "));
        assert!(table.lines().take(20).any(|line| line == row), "found: {row}");
    }
}
