//! Whom the blocks of a disk are asked of that are not here yet.

use std::ops::Range;

use super::bits::{BLOCK, Bits, touched};
use crate::Arrived;

/// For whom bytes are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// For a request of the guest, which waits.
    Demand,
    /// For nobody yet.
    Background,
}

/// Why an origin did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// It cannot be had for now; the same is asked again.
    #[error("{origin} cannot be had for now: {why}")]
    Lost {
        /// Who, for people.
        origin: String,
        /// Why.
        why: String,
    },
    /// It never gives what it should, and is not asked again.
    #[error("{origin} does not give what it should: {why}")]
    Wrong {
        /// Who, for people.
        origin: String,
        /// Why.
        why: String,
    },
}

/// Somebody who has all of a disk that does not change any more, and gives bytes of it; for any number of threads.
pub trait Origin: Send + Sync {
    /// Who it is, for people: a path, an address.
    fn name(&self) -> String;

    /// The blocks that hold anything but zeroes, as far as it is known: what is not among them is never fetched.
    ///
    /// # Errors
    /// As for [`Origin::fetch`].
    fn allocation(&self) -> Result<Allocation, OriginError>;

    /// Fills `into` with the bytes of the disk from `offset` on, which is that of a block; as many as whole blocks have,
    /// or to the end of the disk. It blocks for as long as it takes; as many calls are made at once as the layer has threads.
    ///
    /// # Errors
    /// [`OriginError::Lost`] when it should be asked again, and [`OriginError::Wrong`] when that would be of no use;
    /// `into` holds anything then.
    fn fetch(&self, offset: u64, into: &mut [u8], class: Class) -> Result<(), OriginError>;

    /// Whether it is known that the block of byte `offset` cannot be had now, so that others are asked for first. Answered at once.
    fn is_away(&self, _offset: u64) -> bool {
        false
    }

    /// Receives what may be called when an origin that was lost can be asked again, so that it is at once; others are
    /// asked again after a while.
    fn tell_return(&self, returned: Arrived) {
        drop(returned);
    }
}

/// Which blocks of a disk hold anything but zeroes.
pub struct Allocation {
    size: u64,
    bits: Bits,
}

impl Allocation {
    /// Of a disk of `size` bytes, all zeroes.
    pub fn none(size: u64) -> Self {
        Self {
            size,
            bits: Bits::new(size.div_ceil(BLOCK)),
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the blocks that the bytes of `range` touch; what lies outside of the disk is none.
    pub fn add(&self, range: &Range<u64>) {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return;
        }
        for block in touched(&range) {
            self.bits.set(block);
        }
    }

    /// Whether the block of byte `offset` is among them.
    pub fn has(&self, offset: u64) -> bool {
        offset < self.size && self.bits.is_set(offset / BLOCK)
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.bits.count()
    }

    /// The runs of blocks, as ranges of bytes that do not touch, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let all = self.bits.len();
            let first = self.bits.next_set(at..all)?;
            at = self.bits.next_clear(first..all).unwrap_or(all);
            Some(first * BLOCK..(at * BLOCK).min(self.size))
        })
    }
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocation")
            .field("size", &self.size)
            .field("blocks", &self.blocks())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole_blocks_and_end_with_the_disk() {
        let size = 5 * BLOCK + 512;
        let allocation = Allocation::none(size);
        allocation.add(&(BLOCK - 1..BLOCK + 1));
        allocation.add(&(4 * BLOCK..4 * BLOCK));
        allocation.add(&(5 * BLOCK + 1..u64::MAX));
        let runs: Vec<_> = allocation.runs().collect();
        assert_eq!(runs, [0..2 * BLOCK, 5 * BLOCK..size]);
        assert_eq!(allocation.blocks(), 3);
        assert!(allocation.has(0) && !allocation.has(2 * BLOCK) && !allocation.has(size));
    }
}
