//! What the pages of a stream add to its digest.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

use crate::progress::Verify;
use crate::raw::{PageHash, Ram};

/// A word for each page or for each 64 pages, zero at first. All streams of a side share it, but each
/// word is touched only by the stream that carries its stripe.
pub(crate) struct Words(Vec<AtomicU64>);

impl Words {
    /// `count` words. What is never written takes no memory.
    pub fn new(count: usize) -> Self {
        let zeroed = AtomicU64::new_vec_zeroed(count);
        // Without memory the second attempt ends as any other allocation does.
        Self(zeroed.unwrap_or_else(|_| (0..count).map(|_| AtomicU64::new(0)).collect()))
    }

    /// A word for the hash of each page, if pages are hashed as they travel.
    pub fn of_hashes(ram: &Ram, verify: Verify) -> Self {
        Self::new(match verify {
            Verify::Stream => ram.table_len(),
            Verify::Full | Verify::Off => 0,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    pub fn set(&self, at: usize, word: u64) {
        self.0[at].store(word, Ordering::Relaxed);
    }

    /// Sum of all words. What was never written is looked at too, and still takes no memory.
    pub fn sum(&self) -> u64 {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        words.fold(0, u64::wrapping_add)
    }

    /// Makes all words zero, and touches only those that are not.
    pub fn clear(&self) {
        for word in &self.0 {
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// The sum of the hashes of those pages of `hashes`, each as it was last sent or placed, that one stream
/// carries.
pub(crate) struct PageHashes<'a> {
    hashes: &'a Words,
    digest: u64,
}

impl<'a> PageHashes<'a> {
    /// Of pages that are all of zeroes.
    pub fn new(hashes: &'a Words) -> Self {
        Self { hashes, digest: 0 }
    }

    /// Notes the hash of a page of which nothing was noted before.
    ///
    /// What was there is not looked at: to read memory that was never written, and to write it then,
    /// costs the kernel two faults, and every CPU an interrupt. A page that was noted before makes the
    /// digest wrong.
    pub fn note_first(&mut self, at: usize, hash: PageHash) {
        if hash != 0 {
            self.hashes.set(at, hash);
            self.digest = self.digest.wrapping_add(hash);
        }
    }

    /// Notes the hash of a page in place of the one that it had.
    pub fn note_again(&mut self, at: usize, hash: PageHash) {
        let old = self.hashes.get(at);
        self.hashes.set(at, hash);
        self.digest = self.digest.wrapping_sub(old).wrapping_add(hash);
    }

    /// Sum of the hashes of all pages.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_sum_of_what_each_page_has_now() {
        let words = Words::new(3);
        let mut hashes = PageHashes::new(&words);
        hashes.note_first(0, 7);
        hashes.note_first(1, u64::MAX);
        hashes.note_first(2, 0);
        assert_eq!(hashes.digest(), 6);
        hashes.note_again(0, 0);
        hashes.note_again(2, 5);
        assert_eq!(hashes.digest(), 4);
    }
}
