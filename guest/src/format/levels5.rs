//! Tables of five levels (Intel SDM vol. 3, 4.5 with CR4.LA57 and 29.3.2 with a walk length of 5; AMD APM vol. 2, 5.3 and 15.25.5).

use core::marker::PhantomData;

use super::{Format, entries_of};
use crate::addr::Level;

/// The entries of `F` in tables of five levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels5<F>(PhantomData<F>);

impl<F: Format> Format for Levels5<F> {
    const ROOT: Level = Level::new(5);
    const MAX_LEAF: Level = F::MAX_LEAF;

    entries_of!(F);
}
