//! Medians as text, where no VMM of ours reads samples.

use quire::abi::bench::{Operation, spare};
use quire::abi::sample::Sample;

use crate::{log, touch};

/// One line for each operation and floor that there are samples of, in ticks:
/// `bench OPERATION order N level N floor 0|1 count N p50 N p99 N max N`.
pub fn rows() {
    touch::sort_samples();
    let row = |sample: Sample| (sample.order, sample.kind, sample.spare);
    let mut at = 0;
    while let Some(first) = touch::sample(at) {
        let same = |index: &u64| touch::sample(*index).is_some_and(|sample| row(sample) == row(first));
        let count = (at..).take_while(same).count() as u64;
        let nth = |part: u64| touch::sample(at + (count - 1) * part / 100).map_or(0, |sample| sample.ticks);
        if let Some(operation) = Operation::of_kind(first.kind) {
            log!(
                "bench {} order {} level {} floor {} count {count} p50 {} p99 {} max {}",
                operation.name(),
                first.order,
                first.spare & !spare::FLOOR,
                u16::from(first.spare & spare::FLOOR != 0),
                nth(50),
                nth(99),
                nth(100)
            );
        }
        at += count;
    }
}
