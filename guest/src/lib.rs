//! Quire: a page-table manager that maps memory in large folios and counts the mappings of each folio in constant space.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
#[cfg(feature = "model")]
extern crate alloc;

pub mod addr;
pub mod audit;
pub mod folio;
pub mod format;
pub mod mapcount;
pub mod memory;
#[cfg(feature = "model")]
pub mod model;
pub mod page_table;
pub mod space;
pub mod sync;
pub mod trace;
