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
pub mod targets;

pub use guard::{Finding, Turn, check};
pub use input::Input;
pub use mutation::Mutator;

/// Something that reads bytes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, also of its folder in the corpus.
    pub name: &'static str,
    /// Reads an input; panics when what must hold does not.
    pub run: fn(&[u8]),
    /// Inputs that are well-formed, for a corpus to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that its inputs are made of, for mutations.
    pub words: &'static [&'static str],
    /// Longest input that is worth trying.
    pub longest: usize,
    /// What an input may make it allocate.
    pub memory: Memory,
}

/// A bound of memory that grows with the length of the input.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Bytes for an empty input.
    pub base: usize,
    /// Bytes for each byte of input.
    pub per_byte: usize,
}

impl Memory {
    /// Most bytes for an input of `len` bytes.
    pub const fn most(self, len: usize) -> usize {
        self.base + self.per_byte * len
    }
}
