//! A distribution of relative errors, in words.

use crate::sync::AtomicU64;

use super::{add, raise};
use crate::abi::survey;

/// Enters the error of `said`, if it was said, against `truth`, relative to `base`.
pub(super) fn enter(words: &[AtomicU64], said: Option<u64>, truth: u64, base: u64) {
    add(&words[0], 1);
    let Some(said) = said else { return add(&words[1], 1) };
    // The product may have more than 64 bits.
    let error = ((u128::from(said.abs_diff(truth)) << 20) / u128::from(base)) as u64;
    add(&words[if said > truth { 2 } else { 3 }], error);
    raise(&words[4], error);
    add(&words[6 + survey::bucket(error)], 1);
}

#[cfg(test)]
mod tests {
    use crate::abi::survey::{BUCKETS, bucket, bucket_end};

    #[test]
    fn buckets_hold_what_they_say() {
        for error in (0..5000).chain([1 << 20, (1 << 20) + 1, 1 << 30, 3 << 37]) {
            let end = bucket_end(bucket(error));
            assert!(error <= end && end <= error + error / 8, "{error} is in the bucket up to {end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
