//! Folios: naturally aligned runs of 2^order frames, each with one descriptor of constant size.
//!
//! ```text
//! directory: one word per 2 MiB block
//!   hole | free (order >= 9, on a list) | folio of order >= 9: its record | coarse: has a table | broken: has slots
//! table: a word and a half for each unit of 8 or 64 frames of a coarse block, in a record
//!   free or not, known to be zero or not | the record of the folio there
//! slots: one per frame of a broken block, in the block's own first frames
//!   nothing | small folio (the slot is its descriptor) | head of a large one: its record | free run, listed or loose | table page | records
//! record: the descriptor of a folio of order >= 1
//! extension: what a folio of any order gets beside on its first leaf of another class than `process`
//! ```
//!
//! So the look-up from a frame costs memory by folio, not by frame: 8 bytes a block for orders of 9 and above, 8 to 32 a folio for those of 3 to 8, 16 to 64 for those of 0 to 2. A small
//! folio's slot is its whole descriptor, 16 bytes with one scheme; any other has a record beside.

mod buddy;
mod coarse;
mod descriptor;
mod directory;
mod extension;
mod lookup;
mod slab;

pub(crate) use buddy::add_to;
pub use buddy::{FrameStats, Frames, InitError, Run};
pub use descriptor::{Folio, FolioFlags, Mapping, REF_LIMIT};
pub(crate) use descriptor::{HEADER_WORDS, SMALL_HEADER_WORDS, Words, is_anon};
pub use directory::Directory;
pub use extension::Extensions;
pub(crate) use extension::MOST_WORDS;
pub use slab::{Record, Slab};
