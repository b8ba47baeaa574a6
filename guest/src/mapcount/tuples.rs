//! `tuples`: how many (region, table page) pairs map any of the folio (SCHEMES.md, `tuples`; Wilcox, 24 Jan 2023).
//!
//! One count. The caller looks for what else stands in the tuple at the at most 512 entries that the region's linear mapping gives this folio in the locked
//! table. A cut or merge of regions inside a folio changes the count without touching any entry.

use super::{Answer, Countdown, FirstLast, Needs, Neighbours, Share, Truth, Unit};

/// K, the number of tuples: 4 bytes.
pub type Tuples = FirstLast<Tuple>;

/// A region in a table page.
#[derive(Clone, Copy, Debug)]
pub struct Tuple;

impl Unit for Tuple {
    const NAME: &'static str = "tuples";
    const NEEDS: Needs = Needs { tuple: true, region: false };
    const BY_TABLE: bool = true;

    fn beside(beside: Neighbours) -> u32 {
        beside.tuple
    }
    fn of(truth: &Truth) -> u64 {
        truth.tuples
    }
    fn countdown(units: u64) -> Countdown {
        Countdown::Tables(units)
    }
    fn charge(_units: u64) -> Answer<Share> {
        // How many tables a region takes is geometry and says nothing of who else is there.
        Answer::Cannot
    }
}
