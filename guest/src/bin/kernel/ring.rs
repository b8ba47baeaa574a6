//! Which ring the manager runs at.
//!
//! Where the host runs ring 0 natively it is the shorter path. Some hosts (KVM in clouds without VMX or SVM)
//! emulate ring 0 instruction by instruction, a few hundred times slower. A fixed loop timed at both tells.

use quire::abi::ring;

use crate::touch;

/// Rounds of the loop: about two hundred instructions.
const ROUNDS: u64 = 40;
const REPETITIONS: usize = 4;
/// Ring 0 is taken unless it is slower by more than this factor.
const TOLERANCE: u64 = 2;
/// Beyond this factor, and not for the first time (an emulator translates code when it first meets it), no hiccup of the
/// host explains it, and another repetition only costs time.
const BEYOND_DOUBT: u64 = 50;

/// TSC ticks of the fixed loop at each ring, the least of several.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// At ring 0.
    pub ring0: u64,
    /// At ring 3.
    pub ring3: u64,
}

impl Speed {
    /// Times the loop. Only before the ring is chosen.
    pub fn measure() -> Self {
        let mut speed = Self { ring0: u64::MAX, ring3: u64::MAX };
        for _ in 0..REPETITIONS {
            speed.ring3 = speed.ring3.min(touch::spin_at_user_ring(ROUNDS));
        }
        for repetition in 0..REPETITIONS {
            speed.ring0 = speed.ring0.min(touch::spin_here(ROUNDS));
            if repetition > 0 && speed.ring0 > BEYOND_DOUBT * speed.ring3 {
                break;
            }
        }
        speed
    }

    /// Whether ring 0 is so slow here that bulk work is better done at ring 3.
    pub fn ring0_is_slow(self) -> bool {
        self.ring0 > TOLERANCE * self.ring3
    }

    /// The ring for a request, one of [`ring`].
    pub fn choose(self, requested: u64) -> u64 {
        match requested {
            ring::AUTO if self.ring0_is_slow() => 3,
            ring::AUTO => 0,
            ring => ring,
        }
    }
}
