//! Folios: naturally aligned runs of 2^order frames, each with one descriptor of constant size.
//!
//! ```text
//! directory: one word per 2 MiB block
//!   hole | free (order >= 9, on a list) | folio of order >= 9: its record | broken: has slots
//! slots: one per frame of a broken block, in the block's own first frames
//!   nothing | small folio (the slot is its descriptor) | head of a large one: its record | free run, listed or loose | table page | records
//! record: the descriptor of a folio of order >= 1
//! ```
//!
//! So the look-up from a frame costs memory by folio, not by frame, where folios are large: 8 bytes a block and one
//! record. A small folio's whole descriptor is its slot, 16 bytes with one scheme.

mod buddy;
mod descriptor;
mod directory;
mod lookup;
mod slab;

pub(crate) use buddy::add_to;
pub use buddy::{FrameStats, Frames, InitError, Run};
pub use descriptor::{Folio, FolioFlags, Mapping, REF_LIMIT};
pub(crate) use descriptor::{HEADER_WORDS, SMALL_HEADER_WORDS};
pub use directory::Directory;
pub use slab::{Record, Slab};
