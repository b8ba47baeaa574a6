//! `vmas`: how many regions map any of the folio (SCHEMES.md, `vmas`; Wilcox, 6 Feb 2023).
//!
//! One count. Whether a batch is the first or the last of its region shows in all tables that the region's window on the folio touches, and the caller
//! looks there. A cut or merge of regions inside a folio changes the count without touching any entry.

use super::{Answer, Countdown, FirstLast, Needs, Neighbours, Share, Truth, Unit};

/// V, the number of regions: 4 bytes.
pub type Vmas = FirstLast<Region>;

/// A region, whatever its tables.
#[derive(Clone, Copy, Debug)]
pub struct Region;

impl Unit for Region {
    const NAME: &'static str = "vmas";
    const NEEDS: Needs = Needs { tuple: false, region: true };
    const BY_TABLE: bool = false;

    fn beside(beside: Neighbours) -> u32 {
        beside.region
    }
    fn of(truth: &Truth) -> u64 {
        truth.regions
    }
    fn countdown(units: u64) -> Countdown {
        Countdown::Regions(units)
    }
    fn charge(units: u64) -> Answer<Share> {
        // As if every region mapped every page.
        Answer::About(Share::one_of(units))
    }
}
