//! Self-describing units of a disk: what each holds, which change of the disk writes it, and what a
//! read of it may find.
//!
//! Pure functions, so that a program on the host reaches the same verdict from an image alone: the
//! test crate compiles this folder as well. docs/probe.md tells the layout.

mod content;
mod mix;
mod script;
mod state;

pub use content::{Content, Head, Identity, compose, inspect};
pub use mix::mix;
pub use script::{Change, Kind, Pattern, Script, Shares, Sizes};
pub use state::State;
