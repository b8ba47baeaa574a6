//! Random operations: well formed by themselves, whatever came before.

use proptest::prelude::*;
use quire::addr::{GVA_END, Gva, Order};
use quire::space::{Advice, ObjectKind, Prot};
use quire::trace::{
    Backing, Label, MAX_DEVICE_PAGES, MAX_OBJECT_PAGES, MAX_OBJECTS, MAX_PROCS, MAX_RUN_PAGES, MapKind, Op,
};

fn proc() -> impl Strategy<Value = u32> {
    prop_oneof![0..4u32, 0..MAX_PROCS]
}

fn range(longest: u64) -> impl Strategy<Value = (Gva, u64)> {
    let total = GVA_END >> 12;
    (prop_oneof![1..16u64, 1..=longest], any::<u64>()).prop_map(move |(pages, at)| {
        let pages = pages.min(total);
        (Gva::from_page(at % (total - pages + 1)), pages)
    })
}

fn prot() -> impl Strategy<Value = Prot> {
    any::<[bool; 3]>().prop_map(|[read, write, exec]| Prot { read, write, exec })
}

fn map() -> impl Strategy<Value = Op> {
    let backing = prop_oneof![
        any::<bool>().prop_map(|stack| (Backing::Anon, if stack { MapKind::Stack } else { MapKind::Plain })),
        (0..MAX_OBJECTS, 0..=MAX_OBJECT_PAGES, any::<bool>())
            .prop_map(|(object, offset, private)| (Backing::Object { object, offset, private }, MapKind::Plain)),
        (0..MAX_DEVICE_PAGES).prop_map(|first| (Backing::Device { first }, MapKind::Plain)),
    ];
    let range = prop_oneof![range(64), range(GVA_END >> 12)];
    (proc(), range, prot(), backing, any::<bool>())
        .prop_map(|(proc, (at, pages), prot, (backing, kind), fixed)| Op::Map {
            proc,
            at,
            pages,
            prot,
            backing,
            kind,
            fixed,
        })
        .prop_filter("reaches beyond its object", |op| op.check().is_ok())
}

/// Any well-formed operation.
pub fn op() -> impl Strategy<Value = Op> {
    let long = || range(GVA_END >> 12);
    let object =
        (0..MAX_OBJECTS, any::<bool>(), 1..=MAX_OBJECT_PAGES, 0..=18u8).prop_map(|(object, file, pages, order)| {
            let kind = if file { ObjectKind::File } else { ObjectKind::Shared };
            Op::Object { object, kind, pages, order: Order::new(order) }
        });
    let advice = prop_oneof![Just(Advice::DontNeed), Just(Advice::HugePage), Just(Advice::NoHugePage)];
    let family = (proc(), proc(), any::<bool>()).prop_filter_map("own child", |(proc, child, fork)| {
        let op = if fork { Op::Fork { proc, child } } else { Op::Share { proc, child } };
        (proc != child).then_some(op)
    });
    let remap = (proc(), range(64), range(64))
        .prop_map(|(proc, (from, pages), (to, new_pages))| Op::Remap { proc, from, pages, to, new_pages })
        .prop_filter("overlap", |op| op.check().is_ok());
    prop_oneof![
        object,
        map(),
        family,
        remap,
        proc().prop_map(|proc| Op::Start { proc }),
        proc().prop_map(|proc| Op::Exec { proc }),
        proc().prop_map(|proc| Op::Exit { proc }),
        (proc(), long()).prop_map(|(proc, (at, pages))| Op::Unmap { proc, at, pages }),
        (proc(), long(), prot()).prop_map(|(proc, (at, pages), prot)| Op::Protect { proc, at, pages, prot }),
        (proc(), long(), advice).prop_map(|(proc, (at, pages), advice)| Op::Advise { proc, at, pages, advice }),
        (proc(), long()).prop_map(|(proc, (start, pages))| Op::Brk { proc, start, end: start.add_pages(pages) }),
        (proc(), range(MAX_RUN_PAGES), any::<bool>()).prop_map(|(proc, (at, pages), write)| Op::Access {
            proc,
            at,
            pages,
            write
        }),
        (proc(), range(1), "[!-~]{1,8}", any::<bool>()).prop_map(|(proc, (at, _), label, repaired)| Op::Look {
            proc,
            at,
            label: Label::new(&label).unwrap(),
            repaired
        }),
    ]
}
