//! Fuzzing of everything that reads what comes from outside: a peer, a guest, a file, the control
//! socket, the command line.
//!
//! A [`Target`] is a function over bytes. It fails by panicking: a decoder that panics does so by
//! itself, and what must hold of its results (a value reads back as it was written, a write of a
//! device is marked dirty) is asserted. [`check`] adds what holds for all of them: no panic, not even
//! one that is caught; memory bounded by the length of the input; an end in time.
//!
//! The same targets run in two ways: `cargo test -p fuzz` replays the kept corpus and then tries
//! mutations of it for a bounded time; `fuzz/run.sh` grows the corpus, guided by coverage.
//! `docs/testing.md` tells how.

mod allocation;
pub mod corpus;
mod guard;
mod input;
mod mutation;
mod target;
pub mod targets;

pub use guard::{Finding, Turn, check};
pub use input::Input;
pub use mutation::Mutator;
pub use target::{Memory, Target};
