//! Quire: a page-table manager that maps memory in large folios and counts the mappings of each folio in constant space.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod addr;
pub mod memory;
pub mod trace;
