//! Which file of a crate imports which other, read from the text of its `use` lines and paths.
//!
//! Tests are left out: what stands behind `#[cfg(test)]`, and files and folders that are named for them. A name that a
//! file only passes on (`pub use`) is followed to where it is defined. Macros are not expanded.

mod graph;
mod source;
mod tree;

pub use graph::Imports;
