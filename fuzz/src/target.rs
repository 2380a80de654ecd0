//! What is fuzzed: a function over bytes, and how much memory its inputs may take.

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

/// Enough for decoders of small things.
pub(crate) const SMALL: Memory = Memory {
    base: 256 << 10,
    per_byte: 128,
};
