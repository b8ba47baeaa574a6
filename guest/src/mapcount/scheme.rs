//! The schemes by name and number, and how a choice made at run time becomes a type.

use core::fmt;
use core::str::FromStr;

use super::{
    Accounting, FullPartial, MmOwner, None, Observe, Oracle, PerLevel, PerPage, RmapIds, Total, Tuples, Vmas,
    ZeroOneTwoMany,
};

/// Every scheme at once beside the oracle, `total` answering. For checking, never for timing.
pub type Everything = Observe<Total, Observe<PerLevel, Observe<PerPage, Observe<MmOwner, Observe<RmapIds, Units>>>>>;

/// The schemes that count tables and regions, and the two that count nothing and everything.
type Units = Observe<Tuples, Observe<Vmas, Observe<FullPartial, Observe<ZeroOneTwoMany, Observe<None, Oracle>>>>>;

/// A scheme, chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u64)]
pub enum Scheme {
    /// [`Total`].
    #[default]
    Total = 0,
    /// [`None`](super::None).
    None = 1,
    /// [`PerPage`].
    PerPage = 2,
    /// [`Tuples`].
    Tuples = 3,
    /// [`Everything`].
    All = 4,
    /// [`MmOwner`].
    MmOwner = 5,
    /// [`ZeroOneTwoMany`].
    ZeroOneTwoMany = 6,
    /// [`Vmas`].
    Vmas = 7,
    /// [`FullPartial`].
    FullPartial = 8,
    /// [`RmapIds`].
    RmapIds = 9,
    /// [`PerLevel`].
    PerLevel = 10,
}

/// Something to be done under a scheme.
pub trait UnderScheme {
    /// What comes of it.
    type Output;
    /// Does it under `A`.
    fn run<A: Accounting>(self) -> Self::Output;
}

impl Scheme {
    /// All of them.
    pub const EACH: [Self; 11] = [
        Self::PerPage,
        Self::Tuples,
        Self::Vmas,
        Self::FullPartial,
        Self::None,
        Self::ZeroOneTwoMany,
        Self::MmOwner,
        Self::Total,
        Self::RmapIds,
        Self::PerLevel,
        Self::All,
    ];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => <Total as Accounting>::NAME,
            Self::None => None::NAME,
            Self::PerPage => <PerPage as Accounting>::NAME,
            Self::Tuples => <Tuples as Accounting>::NAME,
            Self::MmOwner => <MmOwner as Accounting>::NAME,
            Self::ZeroOneTwoMany => ZeroOneTwoMany::NAME,
            Self::Vmas => <Vmas as Accounting>::NAME,
            Self::FullPartial => <FullPartial as Accounting>::NAME,
            Self::RmapIds => <RmapIds as Accounting>::NAME,
            Self::PerLevel => <PerLevel as Accounting>::NAME,
            Self::All => "all",
        }
    }

    /// The scheme with number `number`.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::EACH.into_iter().find(|&scheme| scheme as u64 == number)
    }

    /// Does `what` under this scheme.
    pub fn run<T: UnderScheme>(self, what: T) -> T::Output {
        match self {
            Self::Total => what.run::<Total>(),
            Self::None => what.run::<None>(),
            Self::PerPage => what.run::<PerPage>(),
            Self::Tuples => what.run::<Tuples>(),
            Self::MmOwner => what.run::<MmOwner>(),
            Self::ZeroOneTwoMany => what.run::<ZeroOneTwoMany>(),
            Self::Vmas => what.run::<Vmas>(),
            Self::FullPartial => what.run::<FullPartial>(),
            Self::RmapIds => what.run::<RmapIds>(),
            Self::PerLevel => what.run::<PerLevel>(),
            Self::All => what.run::<Everything>(),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No scheme has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownScheme;

impl fmt::Display for UnknownScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such scheme; there are")?;
        for scheme in Scheme::EACH {
            write!(f, " {scheme}")?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownScheme {}

impl FromStr for Scheme {
    type Err = UnknownScheme;
    fn from_str(name: &str) -> Result<Self, UnknownScheme> {
        Self::EACH.into_iter().find(|scheme| scheme.name() == name).ok_or(UnknownScheme)
    }
}
