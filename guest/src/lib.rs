//! Quire: a page-table manager that maps memory in large folios and counts the mappings of each folio in constant space.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "model")]
extern crate alloc;

pub mod addr;
pub mod memory;
#[cfg(feature = "model")]
pub mod model;
pub mod trace;
