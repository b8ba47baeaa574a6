//! How many leaves are larger than a page, for schemes that count leaves and not pages: `mm-owner` and `rmap-ids`.
//!
//! `entire` counts those as large as the folio. What `total` keeps as T is made up of M and `entire`, as long as leaves are pages or whole folios;
//! Linux knows no others, and none gets in. But a 1 GiB leaf that is split becomes 512 leaves between the two sizes, and so do
//! collapsed pages of a folio above order 9. Linux would take such a folio for partly mapped; `between` says how many there are.

use core::fmt;

use super::{Batch, ByLevel, Refused, Target};
use crate::addr::Order;
use crate::memory::Memory;
use crate::sync::Field;

const ENTIRE: Field<0, 32> = Field;
const BETWEEN: Field<32, 32> = Field;

/// Leaves larger than a page: one word, under the scheme's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// As large as the folio.
    pub entire: u64,
    /// Larger than a page and smaller than the folio.
    pub between: u64,
}

impl Sizes {
    pub(super) const fn unpack(word: u64) -> Self {
        Self { entire: ENTIRE.of(word), between: BETWEEN.of(word) }
    }

    pub(super) const fn pack(self) -> u64 {
        ENTIRE.bits(self.entire) | BETWEEN.bits(self.between)
    }

    /// Refuses leaves that Linux has no representation for.
    pub(super) fn admit<M: Memory>(t: &Target<'_, M>, b: &Batch) -> Result<(), Refused> {
        if Order::BASE < b.leaf && b.leaf < t.order { Err(Refused::Shape) } else { Ok(()) }
    }

    /// The count that leaves of this order enter; pages enter none.
    fn of<M: Memory>(&mut self, t: &Target<'_, M>, leaf: Order) -> Option<&mut u64> {
        if leaf == Order::BASE {
            None
        } else if leaf == t.order {
            Some(&mut self.entire)
        } else {
            Some(&mut self.between)
        }
    }

    pub(super) fn add<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        if let Some(count) = self.of(t, b.leaf) {
            *count += u64::from(b.leaves());
        }
    }

    pub(super) fn sub<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        if let Some(count) = self.of(t, b.leaf) {
            *count -= u64::from(b.leaves());
        }
    }

    pub(super) fn split<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        self.sub(t, b);
        if b.leaf > Order::HUGE {
            self.between += 512;
        }
    }

    pub(super) fn collapse<M: Memory>(&mut self, t: &Target<'_, M>, b: &Batch) {
        if b.leaf > Order::HUGE {
            self.between -= 512;
        }
        self.add(t, b);
    }

    /// T of so many leaves.
    pub(super) fn total<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> u64 {
        leaves + 511 * self.between + (t.pages() - 1) * self.entire
    }

    /// Whether a 2 MiB folio is mapped by a 2 MiB leaf.
    pub(super) fn is_huge<M: Memory>(self, t: &Target<'_, M>) -> bool {
        t.order == Order::HUGE && self.entire > 0
    }

    /// `leaves` leaves by their size. No folio has whole leaves but those of order 9 and 18.
    pub(super) fn by_level<M: Memory>(self, t: &Target<'_, M>, leaves: u64) -> ByLevel {
        let pages = leaves - self.entire - self.between;
        if t.order == Order::HUGE { [pages, self.entire, 0] } else { [pages, self.between, self.entire] }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entire {}", self.entire)?;
        if self.between > 0 { write!(f, ", between {}", self.between) } else { Ok(()) }
    }
}
