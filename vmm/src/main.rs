//! The `quire` program.
fn main() {}
