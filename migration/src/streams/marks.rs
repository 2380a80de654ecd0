//! What is to be sent of all volumes: pages of memory and blocks of disks that were written since they were sent.

use crate::PAGE_SIZE;
use crate::blocks::changes::{self, Changes};
use crate::pages::dirty::{self, Bitmaps};
use crate::raw::Ram;
use crate::vm::VolumeOffer;

/// A bit for each page and each block.
#[derive(Default)]
pub(crate) struct Marks {
    /// For each region of memory.
    pub pages: Bitmaps,
    /// For each disk.
    pub blocks: Changes,
}

impl Marks {
    /// All there is.
    pub fn all(ram: &Ram, disks: &[VolumeOffer]) -> Self {
        Self {
            pages: dirty::all(ram),
            blocks: changes::all(disks),
        }
    }

    /// All pages are to be sent.
    pub fn add_all_pages(&mut self, ram: &Ram) {
        self.pages = dirty::all(ram);
    }

    /// No page is to be sent.
    pub fn leave_pages_out(&mut self) {
        let words = self.pages.iter_mut().flatten();
        words.for_each(|word| *word = 0);
    }

    /// Adds those of `other`, which is of the same guest.
    pub fn add(&mut self, other: &Self) {
        let all = |marks: &mut [Vec<u64>], others: &[Vec<u64>]| {
            let words = marks.iter_mut().flatten();
            words
                .zip(others.iter().flatten())
                .for_each(|(word, other)| *word |= other);
        };
        all(&mut self.pages, &other.pages);
        all(&mut self.blocks, &other.blocks);
    }

    /// Number of pages.
    pub fn page_count(&self) -> u64 {
        dirty::count(&self.pages)
    }

    /// Bytes of all of them, at most: the last block of a disk may be short.
    pub fn bytes(&self) -> u64 {
        self.page_count() * PAGE_SIZE + changes::bytes(&self.blocks)
    }
}
