//! Which blocks of a disk are the same at the destination, as either side knows it.
//!
//! A block is *found* when its digests agree, and *settled* when a stream has said of it what it holds: that it is present, or
//! anything else. What is settled is found no more, so what the stream says counts, whoever is faster.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::STRIPE_BLOCKS;
use crate::pages::hashes::Words;
use crate::vm::BLOCK_SIZE;
use crate::wire::digests::ASKED_BLOCKS;

const _: () = assert!(2 * STRIPE_BLOCKS == ASKED_BLOCKS);

/// The blocks of one disk, in words of 64.
pub(super) struct Matches(Mutex<All>);

struct All {
    words: Vec<Word>,
    /// Nothing is found any more.
    is_closed: bool,
}

/// A bit for each of 64 blocks.
#[derive(Clone, Copy, Default)]
struct Word {
    /// Found, and not settled: what it adds to the digest stands among the sums, and is not counted.
    found: u64,
    /// Settled as present.
    present: u64,
    settled: u64,
}

impl Matches {
    /// Of `blocks` blocks of which nothing is known.
    pub fn none(blocks: u64) -> Self {
        let words = vec![Word::default(); blocks.div_ceil(ASKED_BLOCKS) as usize];
        let is_closed = false;
        Self(Mutex::new(All { words, is_closed }))
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of word `at` of which nothing is settled.
    pub fn unsettled(&self, at: usize) -> u64 {
        self.lock().words.get(at).map_or(0, |word| !word.settled)
    }

    /// Those of word `at` that are found or settled.
    pub fn known(&self, at: usize) -> u64 {
        let all = self.lock();
        all.words
            .get(at)
            .map_or(0, |word| word.found | word.settled)
    }

    /// `block`, which adds `sum` to the digest, is the same, unless it is settled; then `meanwhile` is done before anything
    /// is said of it. Whether it is found now.
    pub fn find<E>(
        &self,
        block: u64,
        (sums, sum): (&Words, u64),
        meanwhile: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut all = self.lock();
        let is_closed = all.is_closed;
        let (at, bit) = place(block);
        match all.words.get_mut(at) {
            Some(word) if !is_closed && word.settled & bit == 0 => {
                meanwhile()?;
                word.found |= bit;
                put(sums, block, sum);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Nothing is found any more, and what was to be done meanwhile is done.
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Something else is said of the blocks `bits` of word `at` than that they are present.
    pub fn settle(&self, at: usize, bits: u64, sums: &Words) {
        if let Some(word) = self.lock().words.get_mut(at) {
            // They count for nothing yet, and whoever places them takes what stands there for counted.
            numbers(at, word.found & bits).for_each(|block| put(sums, block, 0));
            word.found &= !bits;
            word.present &= !bits;
            word.settled |= bits;
        }
    }

    /// Those of the blocks `bits` of word `at` that are there are said to be; those of them that count from here on, and
    /// those that did before.
    pub fn take(&self, at: usize, bits: u64) -> [u64; 2] {
        match self.lock().words.get_mut(at) {
            Some(word) => {
                let (new, before) = (word.found & bits, word.present & bits);
                word.found &= !new;
                word.present |= new;
                word.settled |= new;
                [new, before]
            }
            None => [0; 2],
        }
    }

    /// What stands among the sums and does not count.
    pub fn uncounted(&self, sums: &Words) -> u64 {
        let all = self.lock();
        let found = all.words.iter().enumerate();
        let found = found.flat_map(|(at, word)| numbers(at, word.found));
        let sums = found.map(|block| match sums.is_empty() {
            true => 0,
            false => sums.get(block as usize),
        });
        sums.fold(0, u64::wrapping_add)
    }
}

fn put(sums: &Words, block: u64, sum: u64) {
    // There are none where nothing is verified.
    if !sums.is_empty() {
        sums.set(block as usize, sum);
    }
}

/// The word of `block`, and its bit there.
pub(super) fn place(block: u64) -> (usize, u64) {
    ((block / ASKED_BLOCKS) as usize, 1 << (block % ASKED_BLOCKS))
}

/// The numbers of the blocks `bits` of word `at`.
pub(super) fn numbers(at: usize, bits: u64) -> impl Iterator<Item = u64> {
    let first = at as u64 * ASKED_BLOCKS;
    let set = (0..ASKED_BLOCKS).filter(move |bit| bits >> bit & 1 == 1);
    set.map(move |bit| first + bit)
}

/// `blocks` by words: each with its bits.
pub(super) fn by_words(blocks: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = blocks.start / ASKED_BLOCKS..blocks.end.div_ceil(ASKED_BLOCKS);
    words.map(move |at| {
        let first = at * ASKED_BLOCKS;
        let from = blocks.start.max(first) - first;
        let to = blocks.end.min(first + ASKED_BLOCKS) - first;
        (
            at as usize,
            u64::MAX << from & u64::MAX >> (ASKED_BLOCKS - to),
        )
    })
}

/// The runs of blocks `bits` of word `at` on a disk of `size` bytes, as bytes, none longer than `most`, a multiple of a block.
pub(super) fn runs(at: usize, bits: u64, size: u64, most: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in numbers(at, bits) {
        let (start, end) = (block * BLOCK_SIZE, ((block + 1) * BLOCK_SIZE).min(size));
        match runs.last_mut() {
            Some(run) if run.end == start && run.end - run.start < most => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(matches: &Matches, sums: &Words, block: u64, sum: u64) -> bool {
        let found = matches.find(block, (sums, sum), || Ok::<_, ()>(()));
        found.unwrap()
    }

    #[test]
    fn what_is_found_counts_once_it_is_said() {
        let (matches, sums) = (Matches::none(70), Words::new(70));
        assert!(find(&matches, &sums, 1, 5) && find(&matches, &sums, 65, 7));
        assert_eq!(matches.uncounted(&sums), 12);
        assert_eq!(matches.take(0, 0b111), [0b10, 0]);
        assert_eq!(matches.uncounted(&sums), 7);
        // It may be said again, as after a lost link, and counts no second time.
        assert_eq!(matches.take(0, 0b111), [0, 0b10]);
        assert_eq!((matches.known(0), matches.unsettled(0)), (0b10, !0b10));
    }

    #[test]
    fn what_is_settled_otherwise_is_there_no_more() {
        let (matches, sums) = (Matches::none(64), Words::new(64));
        assert!(find(&matches, &sums, 0, 5) && find(&matches, &sums, 1, 6));
        matches.take(0, 0b10);
        matches.settle(0, 0b111, &sums);
        assert_eq!([0, 1].map(|block| sums.get(block)), [0, 6]);
        assert_eq!(matches.take(0, u64::MAX), [0, 0]);
        assert!(!find(&matches, &sums, 2, 9));
        assert!(find(&matches, &sums, 3, 9));
        matches.close();
        assert!(!find(&matches, &sums, 4, 9));
        assert_eq!(matches.take(0, u64::MAX), [0b1000, 0]);
    }

    #[test]
    fn without_sums_it_does_without() {
        let (matches, sums) = (Matches::none(64), Words::new(0));
        assert!(find(&matches, &sums, 0, 5));
        assert_eq!(matches.uncounted(&sums), 0);
        matches.settle(0, 1, &sums);
    }

    #[test]
    fn blocks_lie_in_words() {
        let words: Vec<_> = by_words(62..129).collect();
        assert_eq!(words, [(0, 0b11 << 62), (1, u64::MAX), (2, 1)]);
        assert_eq!(by_words(64..64).count(), 0);
        let size = 65 * BLOCK_SIZE - 512;
        let last = 64 * BLOCK_SIZE..size;
        assert_eq!(runs(1, 1, size, 1 << 20), vec![last]);
        assert_eq!(
            runs(0, 0b10_1111, size, 2 * BLOCK_SIZE),
            [(0, 2), (2, 4), (5, 6)].map(|(from, to)| from * BLOCK_SIZE..to * BLOCK_SIZE)
        );
    }
}
