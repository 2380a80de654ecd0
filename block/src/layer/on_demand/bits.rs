//! One bit for each block of a disk, which is set once and never taken back.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block; the last one of a disk may be shorter.
pub const BLOCK: u64 = 64 << 10;

/// The blocks that the bytes of `range` touch.
pub(crate) fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

/// Bits of the blocks of a disk, for any number of threads.
pub(crate) struct Bits {
    words: Vec<AtomicU64>,
    blocks: u64,
}

impl Bits {
    /// Of `blocks` blocks, none set.
    pub(crate) fn new(blocks: u64) -> Self {
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            blocks,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.blocks
    }

    /// How many are set.
    pub(crate) fn count(&self) -> u64 {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        self.words.iter().map(ones).sum()
    }

    /// Whether that of `block`, which is one of the disk, is.
    pub(crate) fn is_set(&self, block: u64) -> bool {
        let word = self.words.get((block / 64) as usize);
        // With `set`: whoever sees it, sees what was written to the block before.
        word.is_none_or(|word| word.load(Ordering::Acquire) & 1 << (block % 64) != 0)
    }

    /// Whether all of `blocks` are.
    pub(crate) fn all_set(&self, blocks: Range<u64>) -> bool {
        self.next_clear(blocks.clone())
            .is_none_or(|clear| clear >= blocks.end)
    }

    /// Sets those of the 64 from `index * 64` on that `bits` has; how many were not.
    pub(crate) fn add_word(&self, index: u64, bits: u64) -> u64 {
        let over = self.blocks.saturating_sub(index * 64);
        let within = if over < 64 { (1 << over) - 1 } else { u64::MAX };
        let word = self.words.get(index as usize);
        word.map_or(0, |word| {
            let new = bits & within;
            let before = word.fetch_or(new, Ordering::AcqRel);
            u64::from((new & !before).count_ones())
        })
    }

    /// Sets that of `block`; whether it was not.
    pub(crate) fn set(&self, block: u64) -> bool {
        let bit = 1 << (block % 64);
        let word = self
            .words
            .get((block / 64) as usize)
            .filter(|_| block < self.blocks);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// The first of `blocks` whose bit is not set.
    pub(crate) fn next_clear(&self, blocks: Range<u64>) -> Option<u64> {
        self.next(blocks, |word| !word)
    }

    /// The first of `blocks` whose bit is set.
    pub(crate) fn next_set(&self, blocks: Range<u64>) -> Option<u64> {
        self.next(blocks, |word| word)
    }

    fn next(&self, blocks: Range<u64>, wanted: impl Fn(u64) -> u64) -> Option<u64> {
        let end = blocks.end.min(self.blocks);
        let mut at = blocks.start;
        while at < end {
            let word = self.words.get((at / 64) as usize)?.load(Ordering::Acquire);
            let found = wanted(word) >> (at % 64);
            if found != 0 {
                let found = at + u64::from(found.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// 64 of them, from block 64 times `index` on.
    pub(crate) fn word(&self, index: u64) -> u64 {
        let word = self.words.get(index as usize);
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets those of `bits` that are of blocks, from block 64 times `index` on.
    pub(crate) fn set_word(&self, index: u64, bits: u64) {
        let left = self.blocks.saturating_sub(index * 64);
        let bits = if left < 64 {
            bits & !(!0 << left)
        } else {
            bits
        };
        if let Some(word) = self.words.get(index as usize) {
            word.fetch_or(bits, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_and_what_is_not_is_found_in_any_range() {
        let bits = Bits::new(200);
        for block in [0, 63, 64, 130, 199] {
            assert!(bits.set(block) && !bits.set(block), "{block}");
        }
        assert!(!bits.set(200), "there is no such block");
        assert_eq!(bits.count(), 5);
        for from in 0..200 {
            for to in from..=200 {
                let set = |block: &u64| [0, 63, 64, 130, 199].contains(block);
                assert_eq!(bits.next_set(from..to), (from..to).find(set));
                assert_eq!(bits.next_clear(from..to), (from..to).find(|b| !set(b)));
                assert_eq!(bits.all_set(from..to), (from..to).all(|b| set(&b)));
            }
        }
    }

    #[test]
    fn bits_behind_the_end_are_not_taken() {
        let bits = Bits::new(70);
        bits.set_word(1, !0);
        bits.set_word(7, !0);
        assert_eq!((bits.count(), bits.word(1)), (6, 0x3f));
    }
}
