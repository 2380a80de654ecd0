//! A disk that holds something from before, as its destination knows it: what of that was found to be the source's, and what
//! the source has said at all, as nothing is left there unsaid.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::matches::{Matches, by_words, place};
use crate::error::Error;
use crate::vm::BLOCK_SIZE;
use crate::wire::digests::ASKED_BLOCKS;

/// What is known of the disk.
pub(super) struct KeptHere {
    pub matches: Matches,
    size: u64,
    seen: Mutex<Seen>,
}

/// In words of 64 blocks.
struct Seen {
    /// They were compared.
    compared: Vec<u64>,
    /// The source has said of all of them what they hold.
    said: Vec<u64>,
}

impl KeptHere {
    /// A disk of `size` bytes of which nothing was compared or said.
    pub fn new(size: u64) -> Self {
        let blocks = size.div_ceil(BLOCK_SIZE);
        let words = vec![0; blocks.div_ceil(ASKED_BLOCKS) as usize];
        Self {
            matches: Matches::none(blocks),
            size,
            seen: Mutex::new(Seen {
                compared: words.clone(),
                said: words,
            }),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks that are wholly within `bytes`, whose end may be that of the disk.
    pub fn whole(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = match bytes.end == self.size {
            true => bytes.end.div_ceil(BLOCK_SIZE),
            false => bytes.end / BLOCK_SIZE,
        };
        bytes.start.div_ceil(BLOCK_SIZE)..end
    }

    /// All of `blocks` was said.
    pub fn said(&self, blocks: Range<u64>) {
        let mut seen = self.seen();
        for (at, bits) in by_words(blocks) {
            seen.said[at] |= bits;
        }
    }

    /// Whether all of `block` was said.
    pub fn is_said(&self, block: u64) -> bool {
        let (at, bit) = place(block);
        self.seen().said.get(at).is_some_and(|word| word & bit != 0)
    }

    /// The first block of which not all was said.
    fn unsaid(&self) -> Option<u64> {
        let seen = self.seen();
        let mut words = by_words(0..self.size.div_ceil(BLOCK_SIZE));
        let open = words.find_map(|(at, bits)| {
            let open = bits & !seen.said[at];
            (open != 0).then(|| (at, u64::from(open.trailing_zeros())))
        });
        open.map(|(at, bit)| at as u64 * ASKED_BLOCKS + bit)
    }

    /// Those of the blocks `bits` of word `at` that may be compared: nothing else was said of them, and they were not found to
    /// differ before, or asking would tell what they hold.
    pub fn comparable(&self, at: usize, bits: u64) -> u64 {
        let unsettled = self.matches.unsettled(at) & bits;
        let known = self.matches.known(at);
        let mut seen = self.seen();
        let compared = seen.compared[at];
        seen.compared[at] |= unsettled;
        unsettled & (!compared | known)
    }

    /// Nothing is found any more, and no more is done about what was.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the source did not say of all of it what it holds.
    pub fn end(&self, number: usize) -> Result<(), Error> {
        self.matches.close();
        match self.unsaid() {
            None => Ok(()),
            Some(block) => Err(Error::Protocol(format!(
                "it did not say what block {block} of disk {number} holds, which holds what it did before"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_SIZE;

    #[test]
    fn what_was_not_said_is_seen() {
        let kept = KeptHere::new(65 * BLOCK + 512);
        assert_eq!(kept.unsaid(), Some(0));
        kept.said(0..64);
        assert_eq!(kept.unsaid(), Some(64));
        assert!(kept.end(0).is_err());
        kept.said(kept.whole(&(64 * BLOCK..65 * BLOCK + 4096)));
        assert_eq!(kept.unsaid(), Some(65));
        kept.said(kept.whole(&(65 * BLOCK..65 * BLOCK + 512)));
        kept.end(0).unwrap();
        assert!(kept.is_said(65) && !kept.is_said(1 << 40));
    }

    #[test]
    fn only_whole_blocks_count() {
        let kept = KeptHere::new(2 * BLOCK);
        for (bytes, blocks) in [
            (0..BLOCK, 0..1),
            (4096..BLOCK, 1..1),
            (0..BLOCK - 4096, 0..0),
            (4096..2 * BLOCK, 1..2),
        ] {
            assert_eq!(kept.whole(&bytes), blocks, "{bytes:?}");
        }
    }

    #[test]
    fn what_differed_is_not_compared_again() {
        let kept = KeptHere::new(64 * BLOCK);
        let sums = crate::pages::hashes::Words::new(0);
        assert_eq!(kept.comparable(0, 0b111), 0b111);
        let found = kept.matches.find(1, (&sums, 0), || Ok::<_, ()>(()));
        assert!(found.unwrap());
        assert_eq!(kept.comparable(0, 0b1111), 0b1010);
        kept.matches.settle(0, u64::MAX, &sums);
        assert_eq!(kept.comparable(0, u64::MAX), 0);
    }
}
