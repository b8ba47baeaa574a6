//! The encoded form: every well-formed operation survives it, and nothing else comes out of it.

mod ops;

use proptest::prelude::*;
use quire::addr::Gva;
use quire::trace::encode::{DecodeError, decode, encode};
use quire::trace::{Flaw, Op};

#[test]
fn ill_formed_words_are_refused() {
    assert_eq!(decode(&[0; 8]), Err(DecodeError::Code(0)));
    assert_eq!(decode(&[u64::MAX; 8]), Err(DecodeError::Field));
    let good = encode(&Op::Access { proc: 3, at: Gva::new(0x1000), pages: 2, write: true });
    assert!(decode(&good).is_ok());
    let with = |word: usize, value: u64| {
        let mut words = good;
        words[word] = value;
        decode(&words)
    };
    assert_eq!(with(0, 15), Err(DecodeError::Code(15)));
    assert_eq!(with(0, good[0] | 1 << 40), Err(DecodeError::Field));
    assert_eq!(with(0, good[0] | 1 << 9), Err(DecodeError::Field));
    assert_eq!(with(1, 1 << 16), Err(DecodeError::Flaw(Flaw::Proc)));
    assert_eq!(with(1, 1 << 32), Err(DecodeError::Field));
    assert_eq!(with(2, 0x1001), Err(DecodeError::Flaw(Flaw::Unaligned)));
    assert_eq!(with(2, 1 << 63), Err(DecodeError::Flaw(Flaw::AboveHalf)));
    assert_eq!(with(3, 0), Err(DecodeError::Flaw(Flaw::Empty)));
    assert_eq!(with(3, u64::MAX), Err(DecodeError::Flaw(Flaw::RunLength)));
    assert_eq!(with(7, 1), Err(DecodeError::Field));
}

proptest! {
    #[test]
    fn operations_survive_encoding(op in ops::op()) {
        prop_assert_eq!(decode(&encode(&op)), Ok(op));
    }

    #[test]
    fn what_decodes_is_well_formed_and_encodes_back(
        head in prop_oneof![0..0x0300_1000u64, any::<u64>()],
        rest in any::<[prop::sample::Index; 7]>(),
        wild in any::<[u64; 7]>(),
    ) {
        let likely = [0, 0, 1, 2, 0x1000, 0x2000, 0x7000_0000_0000, 4];
        let mut words = [head; 8];
        for (i, word) in words[1..].iter_mut().enumerate() {
            *word = if rest[i].index(16) == 0 { wild[i] } else { likely[rest[i].index(8)] };
        }
        if let Ok(op) = decode(&words) {
            prop_assert!(op.check().is_ok());
            prop_assert_eq!(encode(&op), words);
        }
    }

    #[test]
    fn one_wrong_bit_never_panics(op in ops::op(), bit in 0..512usize) {
        let mut words = encode(&op);
        words[bit / 64] ^= 1 << (bit % 64);
        if let Ok(other) = decode(&words) {
            prop_assert!(other != op && other.check().is_ok());
        }
    }
}
