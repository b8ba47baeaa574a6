//! One timed access that faulted, in one word: TSC ticks, folio order, kind, and 16 bits to spare.

use crate::addr::Order;

/// Kind of the samples that the trivial handler makes.
pub const FLOOR: u8 = 1;
/// Kind of the samples of accesses that only stage 2 of a tenant VM did not allow.
pub const STAGE2: u8 = 8;

const ORDER_SHIFT: u32 = 32;
const KIND_SHIFT: u32 = 40;
const SPARE_SHIFT: u32 = 48;

/// A sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// TSC ticks from before the access until after it, with the fault and its handling inside.
    pub ticks: u32,
    /// Order of the folio that the fault mapped.
    pub order: Order,
    /// What the fault was; [`FLOOR`] or a number of the manager's. Never 0.
    pub kind: u8,
    /// The manager's to use.
    pub spare: u16,
}

impl Sample {
    /// The word of this sample.
    #[must_use]
    pub const fn encode(self) -> u64 {
        self.ticks as u64 | mark(self.order, self.kind, self.spare)
    }

    /// The sample in `word`, or `None` when no fault can have made it.
    #[must_use]
    pub const fn decode(word: u64) -> Option<Self> {
        let Some(order) = Order::try_new((word >> ORDER_SHIFT) as u8) else { return None };
        let kind = (word >> KIND_SHIFT) as u8;
        if kind == 0 {
            return None;
        }
        Some(Self { ticks: word as u32, order, kind, spare: (word >> SPARE_SHIFT) as u16 })
    }
}

/// What a fault handler leaves for the touch program: the sample less its ticks. Not zero, as `kind` is not.
///
/// # Panics
/// When `kind` is 0.
#[must_use]
pub const fn mark(order: Order, kind: u8, spare: u16) -> u64 {
    assert!(kind != 0, "kind 0 marks nothing");
    (order.get() as u64) << ORDER_SHIFT | (kind as u64) << KIND_SHIFT | (spare as u64) << SPARE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encode_and_decode_are_inverse() {
        for order in 0..=18 {
            let sample = Sample { ticks: 0xdead_beef, order: Order::new(order), kind: 0xa5, spare: 0x1234 };
            assert_eq!(Sample::decode(sample.encode()), Some(sample));
        }
    }

    #[test]
    fn words_that_no_fault_makes_are_refused() {
        assert_eq!(Sample::decode(0xffff), None);
        assert_eq!(Sample::decode(19 << 32 | 1 << 40), None);
    }
}
