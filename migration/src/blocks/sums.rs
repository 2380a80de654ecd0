//! What the blocks of a disk add to the digest of a stream.

use std::ops::Range;

use super::digest_address;
use crate::PAGE_SIZE;
use crate::pages::hashes::Words;
use crate::raw::{HashKey, RamSlice};
use crate::vm::BLOCK_SIZE;

/// The sum over the blocks that one stream carries of disk `volume`: each as it was last sent or placed.
///
/// A block adds the hashes of its pages, where a page of zeroes has none. What is sent of a block again begins with its
/// first byte and covers all of it, so its first byte begins its sum anew. On the first pass parts of a block that
/// read as zeroes may be left out, which is the same.
pub(crate) struct BlockSums<'a> {
    volume: usize,
    sums: &'a Words,
    digest: u64,
}

impl<'a> BlockSums<'a> {
    /// Of a disk of zeroes; `sums` has a word for each block.
    pub fn new(volume: usize, sums: &'a Words) -> Self {
        Self {
            volume,
            sums,
            digest: 0,
        }
    }

    /// The sum over all blocks.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Notes that `range` reads as zeroes now.
    pub fn note_zeroes(&mut self, range: Range<u64>) {
        let first = range.start.div_ceil(BLOCK_SIZE);
        for block in first..range.end.div_ceil(BLOCK_SIZE) {
            self.set(block, 0);
        }
    }

    /// Notes what the pages from byte `offset` on hold now: `pages` is a multiple of the page size.
    pub fn note_data(&mut self, key: &HashKey, offset: u64, pages: RamSlice<'_>) {
        for at in (0..pages.len() as u64).step_by(PAGE_SIZE as usize) {
            let page = pages.part(at as usize, PAGE_SIZE as usize);
            let offset = offset + at;
            let block = offset / BLOCK_SIZE;
            let before = match offset % BLOCK_SIZE {
                0 => 0,
                _ => self.sums.get(block as usize),
            };
            let hash = key.page(digest_address(self.volume, offset), page);
            self.set(block, before.wrapping_add(hash));
        }
    }

    /// Notes that `block` is there already, and holds what stands among the sums.
    pub fn note_present(&mut self, block: u64) {
        self.digest = self.digest.wrapping_add(self.sums.get(block as usize));
    }

    fn set(&mut self, block: u64, sum: u64) {
        let at = block as usize;
        let before = self.sums.get(at);
        if before != sum {
            self.sums.set(at, sum);
            self.digest = self.digest.wrapping_sub(before).wrapping_add(sum);
        }
    }
}

/// What the block at byte `offset` of disk `volume`, of which all is told at once, adds to the digest; `pages` is a multiple of
/// the page size.
pub(super) fn block_sum(key: &HashKey, volume: usize, offset: u64, pages: RamSlice<'_>) -> u64 {
    let starts = (0..pages.len()).step_by(PAGE_SIZE as usize);
    let hashes = starts.map(|at| {
        let page = pages.part(at, PAGE_SIZE as usize);
        match page.is_zero() {
            true => 0,
            false => key.page(digest_address(volume, offset + at as u64), page),
        }
    });
    hashes.fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::buffer::PageBuffer;

    fn pages(fill: &[u8]) -> PageBuffer {
        let mut buffer = PageBuffer::new(fill.len() * PAGE_SIZE as usize);
        let pages = buffer.bytes_mut().chunks_mut(PAGE_SIZE as usize);
        pages.zip(fill).for_each(|(page, &byte)| page.fill(byte));
        buffer
    }

    /// The digest after each of `steps`: where, and what each page is full of (0 is told as zeroes).
    fn digest(steps: &[(u64, &[u8])]) -> u64 {
        let key = HashKey::new(&[1; 16]);
        let words = Words::new(4);
        let mut sums = BlockSums::new(1, &words);
        for &(page, fill) in steps {
            for (byte, page) in fill.iter().zip(page..) {
                let offset = page * PAGE_SIZE;
                match byte {
                    0 => sums.note_zeroes(offset..offset + PAGE_SIZE),
                    _ => {
                        let mut one = pages(&[*byte]);
                        let slice = RamSlice::over(one.bytes_mut());
                        sums.note_data(&key, offset, slice);
                    }
                }
            }
        }
        sums.digest()
    }

    #[test]
    fn it_depends_on_what_each_page_holds_last_and_where() {
        let once = digest(&[(0, &[1; 16]), (17, &[2])]);
        assert_ne!(once, 0);
        assert_eq!(digest(&[(17, &[2]), (0, &[1; 16])]), once);
        assert_eq!(digest(&[(0, &[3; 16]), (17, &[2]), (0, &[1; 16])]), once);
        assert_eq!(digest(&[(0, &[1; 16]), (16, &[0, 2])]), once);
        assert_ne!(digest(&[(0, &[1; 16]), (18, &[2])]), once);
        assert_ne!(digest(&[(0, &[1; 15]), (17, &[2])]), once);
        assert_eq!(digest(&[(0, &[7; 16]), (0, &[0; 16])]), 0);
    }
}
