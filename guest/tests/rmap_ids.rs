//! The sub-ids of `rmap-ids` (SCHEMES.md, D21): how many sums a folio of each order needs, that these suffice, and that fewer do not.

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use quire::addr::Order;
use quire::mapcount::SubIds;

const IDS: u32 = 1 << SubIds::ID_BITS;

/// Sub-id of 8 bits for order 9, as the draft had it.
fn draft(owner: u32, nth: u32) -> u64 {
    (0..8)
        .filter(|bit| owner >> (8 * nth + bit) & 1 == 1)
        .map(|bit| 513u64.wrapping_pow(bit))
        .fold(0, u64::wrapping_add)
}

/// The arithmetic of the proof: every digit of a sum of at most P sub-ids is at most P, so sums are numbers in base P + 1 that fit a word, and
/// such numbers are equal only digit by digit.
#[test]
fn no_sum_of_as_many_leaves_as_pages_can_wrap() {
    for order in 1..=18 {
        let (pages, subs) = (1u128 << order, SubIds::of(Order::new(order)));
        let largest: u128 = (0..subs.count()).map(|nth| u128::from(subs.get(IDS - 1, nth))).max().unwrap();
        assert!(largest * pages < 1 << 64, "order {order}: P times the largest sub-id wraps");
        // One sum less would need more bits in each, and would wrap.
        if subs.count() > 1 {
            let bits = SubIds::ID_BITS.div_ceil(subs.count() as u32 - 1);
            assert!((pages + 1).pow(bits) > 1 << 64, "order {order}: fewer sums would do");
        }
        // The digits are those of the id, each in its place and none twice.
        let base = pages as u64 + 1;
        for owner in [1, 2, 3, 0x5a_5a5a, IDS - 1] {
            let (mut id, mut shift) = (0, 0);
            for nth in 0..subs.count() {
                let mut sum = subs.get(owner, nth);
                let mut digits = 0;
                while sum > 0 {
                    assert!(sum % base <= 1, "a digit of a sub-id is a bit");
                    id |= (sum % base) << (shift + digits);
                    (sum, digits) = (sum / base, digits + 1);
                }
                assert!(digits <= width(order));
                shift += width(order);
            }
            assert_eq!(id, u64::from(owner), "order {order}");
        }
    }
}

/// Bits of a sub-id, by the table of SCHEMES.md.
fn width(order: u8) -> u64 {
    let text = include_str!("../SCHEMES.md");
    let row = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("| {name} |"))).expect("the table of sub-ids");
        line.split('|').skip(2).map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    // The first table with such a row is another one only if somebody adds it: then this fails.
    let orders = row("order");
    let column = orders.iter().position(|cell| {
        let number = |text: &str| text.trim().parse::<u8>().unwrap();
        match cell.split_once("to") {
            Some((first, last)) => (number(first)..=number(last)).contains(&order),
            None => cell.split(',').map(number).any(|n| n == order),
        }
    });
    let column = column.expect("every order has a column");
    assert_eq!(row("sums")[column], SubIds::of(Order::new(order)).count().to_string(), "sums of order {order}");
    row("bits of a sub-id")[column].parse().unwrap()
}

/// Three sums of 8 bits at order 9: 70 leaves of owners of which none is `mine` make the sums of 70 leaves of it.
#[test]
fn three_sums_at_order_9_take_strangers_for_the_owner() {
    // 2 x (1 - 513)^7 is -2^64, so these digits make 0 in a word.
    let digits: [i64; 8] = [2, -14, 42, -70, 70, -42, 14, -2];
    let sum = digits.iter().enumerate().map(|(k, &d)| d.cast_unsigned().wrapping_mul(513u64.wrapping_pow(k as u32)));
    assert_eq!(sum.fold(0, u64::wrapping_add), 0);
    // Mine has the bits of the negative ones; of the strangers so many have a bit that the difference is its digit.
    let leaves = 70;
    let mine: u32 = digits.iter().enumerate().map(|(k, &d)| u32::from(d < 0) << k).sum();
    let with_bit = digits.map(|d| if d < 0 { d + leaves } else { d });
    let strangers: Vec<u32> = (0..leaves).map(|i| (0..8).map(|k| u32::from(i < with_bit[k]) << k).sum()).collect();
    assert!(strangers.iter().all(|&owner| owner != mine && owner != 0));
    for nth in 0..3 {
        let sum = strangers.iter().map(|&owner| draft(owner, nth)).fold(0, u64::wrapping_add);
        assert_eq!(sum, draft(mine, nth).wrapping_mul(leaves as u64), "sum {nth}");
    }
    // Four sums are not deceived.
    let subs = SubIds::of(Order::HUGE);
    let deceived = (0..subs.count()).all(|nth| {
        let sum = strangers.iter().map(|&owner| subs.get(owner, nth)).fold(0, u64::wrapping_add);
        sum == subs.get(mine, nth).wrapping_mul(leaves as u64)
    });
    assert!(!deceived);
}

/// Owners that differ in few bits, so that their mixes come close to each other.
fn owners() -> impl Strategy<Value = (u32, Vec<u32>)> {
    let mine = prop_oneof![1..IDS, 1..64u32];
    mine.prop_flat_map(|mine| {
        let near = prop_oneof![
            Just(mine),
            (0..24u32).prop_map(move |bit| mine ^ 1 << bit),
            1..IDS,
            any::<u8>().prop_map(u32::from)
        ];
        (Just(mine), proptest::collection::vec(near, 1..512))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn sums_are_mine_only_when_all_leaves_are((mine, leaves) in owners(), order in 9..=18u8) {
        let subs = SubIds::of(Order::new(order));
        let equal = (0..subs.count()).all(|nth| {
            let sum = leaves.iter().map(|&owner| subs.get(owner, nth)).fold(0, u64::wrapping_add);
            sum == subs.get(mine, nth).wrapping_mul(leaves.len() as u64)
        });
        prop_assert_eq!(equal, leaves.iter().all(|&owner| owner == mine));
        prop_assert!(subs.count() <= SubIds::MOST);
    }
}
