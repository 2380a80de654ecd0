//! Numbers of blocks, for which memory is taken as they are needed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32};

/// Blocks of a page, pages of a directory, and directories of a directory of these.
pub(super) const SLOTS: u64 = 1024;

/// What is known of each of some blocks that follow each other.
pub(super) struct Page {
    pub(super) stamps: [AtomicU32; SLOTS as usize],
    pub(super) heats: [AtomicU8; SLOTS as usize],
}

type Directory<T> = Box<[OnceLock<T>]>;

fn directory<T>(slots: u64) -> Directory<T> {
    (0..slots).map(|_| OnceLock::new()).collect()
}

/// Pages by their numbers. None is taken back before the table is.
///
/// A disk of 8 EiB, as the header of an image may claim to be, costs 3 MiB before anything is written to it.
pub(super) struct Table {
    root: Directory<Directory<Directory<Box<Page>>>>,
}

/// The three indices of a page.
fn indices(page: u64) -> [usize; 3] {
    // None is larger than the directory that it is an index of, all of which are in memory.
    [page / SLOTS / SLOTS, page / SLOTS % SLOTS, page % SLOTS].map(|index| index as usize)
}

impl Table {
    /// A table for so many pages.
    pub(super) fn new(pages: u64) -> Self {
        Self {
            root: directory(pages.div_ceil(SLOTS * SLOTS)),
        }
    }

    /// The page of this number, which is less than the table has; memory is taken for it if need be.
    pub(super) fn page(&self, page: u64) -> &Page {
        let [upper, lower, slot] = indices(page);
        let lowers = self.root[upper].get_or_init(|| directory(SLOTS));
        let pages = lowers[lower].get_or_init(|| directory(SLOTS));
        pages[slot].get_or_init(|| {
            Box::new(Page {
                stamps: [const { AtomicU32::new(0) }; SLOTS as usize],
                heats: [const { AtomicU8::new(0) }; SLOTS as usize],
            })
        })
    }

    /// The first page from this number on for which there is memory, and its number.
    pub(super) fn next(&self, from: u64) -> Option<(u64, &Page)> {
        let mut page = from;
        loop {
            let [upper, lower, slot] = indices(page);
            let lowers = self.root.get(upper)?.get();
            let pages = lowers.map(|lowers| lowers[lower].get());
            page = match pages {
                None => (page / SLOTS / SLOTS + 1) * SLOTS * SLOTS,
                Some(None) => (page / SLOTS + 1) * SLOTS,
                Some(Some(pages)) => match pages[slot].get() {
                    Some(found) => return Some((page, found)),
                    None => page + 1,
                },
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_were_needed_are_there_and_are_found_in_order() {
        const LAST: u64 = u64::MAX / (64 << 10) / SLOTS;
        let table = Table::new(LAST + 1);
        assert!(table.next(0).is_none());
        let needed = [0, 7, SLOTS * 3 + 5, SLOTS * SLOTS * 9 + 1, LAST];
        for page in needed.iter().rev() {
            table.page(*page);
        }
        let mut found = Vec::new();
        let mut from = 0;
        while let Some((page, _)) = table.next(from) {
            found.push(page);
            from = page + 1;
        }
        assert_eq!(found, needed);
    }
}
