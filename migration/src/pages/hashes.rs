//! What the pages of a stream add to its digest.

use crate::raw::PageHash;

/// The hash of each page as it was last sent or placed, and the sum of them all.
pub(crate) struct PageHashes {
    hashes: Vec<PageHash>,
    digest: u64,
}

impl PageHashes {
    /// Of `pages` pages, all of zeroes.
    pub fn new(pages: usize) -> Self {
        Self {
            hashes: vec![0; pages],
            digest: 0,
        }
    }

    /// Notes the hash of a page of which nothing was noted before.
    ///
    /// What was there is not looked at: to read memory that was never written, and to write it then,
    /// costs the kernel two faults, and every CPU an interrupt. A page that was noted before makes the
    /// digest wrong.
    pub fn note_first(&mut self, at: usize, hash: PageHash) {
        if hash != 0 {
            self.hashes[at] = hash;
            self.digest = self.digest.wrapping_add(hash);
        }
    }

    /// Notes the hash of a page in place of the one that it had.
    pub fn note_again(&mut self, at: usize, hash: PageHash) {
        let old = std::mem::replace(&mut self.hashes[at], hash);
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
        let mut hashes = PageHashes::new(3);
        hashes.note_first(0, 7);
        hashes.note_first(1, u64::MAX);
        hashes.note_first(2, 0);
        assert_eq!(hashes.digest(), 6);
        hashes.note_again(0, 0);
        hashes.note_again(2, 5);
        assert_eq!(hashes.digest(), 4);
    }
}
