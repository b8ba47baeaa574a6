//! Random nests on the emulated machine: [`quire::exercise::history`], with the machine's own check that no flush is missing. Every eighth is under all schemes at once, the others
//! under `total`.
//!
//! `QUIRE_NESTS` histories of `QUIRE_NEST_LENGTH` operations each, both levels recounted every `QUIRE_NEST_STEP`; `QUIRE_FIRST_SEED` is where the seeds begin.

mod world;

use quire::addr::Pfn;
use quire::audit::Recount;
use quire::exercise::history::{Done, HOST_FRAMES, History};
use quire::mapcount::{Accounting, Classes, Everything, Total};
use quire::model::nest::Mmu;
use quire::space::Manager;
use quire::stage2::Stage2Format;
use world::{huge, machine_of};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The histories of these seeds, one after the other on one manager.
fn run<A: Accounting>(seeds: impl Iterator<Item = u64>, length: u64, step: u64) -> Done {
    let machine = machine_of(HOST_FRAMES);
    let frames = Pfn::new(0)..Pfn::new(HOST_FRAMES);
    let host: Manager<_, Classes<A>> = Manager::new(&machine, &[frames], true, huge()).expect("enough frames");
    let rows = Recount::new(Pfn::new(HOST_FRAMES), Pfn::new(0), HOST_FRAMES);
    let mut all = Done::default();
    for seed in seeds {
        let history = History { seed, length, step, format: Stage2Format::LongMode };
        match history.run(&host, &rows, &mut Mmu) {
            Ok(done) => all = sum(all, done),
            Err((operation, wrong)) => panic!("history {seed}, behind operation {operation}: {wrong}"),
        }
        assert_eq!(machine.stale(), None, "a flush is missing in history {seed}");
    }
    all
}

fn sum(one: Done, other: Done) -> Done {
    Done {
        operations: one.operations + other.operations,
        by_processes: one.by_processes + other.by_processes,
        by_vms: one.by_vms + other.by_vms,
        below: one.below + other.below,
        recounts: one.recounts + other.recounts,
    }
}

/// Two halves of the seeds at once.
fn histories(count: u64, length: u64, step: u64) -> Done {
    let first = number("QUIRE_FIRST_SEED", 1);
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || {
                let seeds = move || (first..first + count).filter(move |seed| seed / 8 % 2 == half);
                sum(
                    run::<Everything>(seeds().filter(|seed| seed % 8 == 0), length, step),
                    run::<Total>(seeds().filter(|seed| seed % 8 > 0), length, step),
                )
            })
        });
        halves.map(|half| half.join().expect("a half")).into_iter().fold(Done::default(), sum)
    })
}

#[test]
fn every_level_sees_what_was_stored_and_counts_what_is_there() {
    let (count, length) = (number("QUIRE_NESTS", 400), number("QUIRE_NEST_LENGTH", 24));
    let done = histories(count, length, number("QUIRE_NEST_STEP", 1));
    println!("{done:?}");
    assert_eq!(done.operations, count * length);
    assert!(done.by_vms > count / 4 && done.below > count / 4 && done.recounts >= done.operations, "{done:?}");
}

/// Few, long, and seldom recounted: what takes long to go wrong.
#[test]
fn long_histories() {
    assert_eq!(histories(8, 2_000, 100).operations, 16_000);
}
