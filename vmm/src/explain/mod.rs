//! The worked scenarios of SCHEMES.md, run for real: each is a trace that [looks](quire::trace::look) at a folio, and what it sees is
//! explained: the ground truth, and the counters and answers of every scheme.

mod look;
mod report;
mod script;

pub use look::{Answered, Owner, Run, Said, Sure, Told, Truth, Word};
pub use report::Explained;
pub use script::{SCRIPTS, Script, find};
