//! The ledger: pages that carry their sequence, address and checksum, dirtied and verified at once.
//!
//! A page is 512 words: 0 the sequence, 1 its address, 2 the checksum, 511 the sequence again; the
//! rest is content, of which each write changes one word. The checksum is the sum of word `i` times
//! `2i + 1`, itself left out, and is carried along by every write. What sequence each page must
//! have stands in a table elsewhere.

use crate::clock::{peek, poke};
use crate::content::{self, Fill};
use crate::gate::{self, DirtyWrite};
use crate::memory::PAGE;
use crate::shared::fault;
use crate::units::mix;

/// One CPU's stripe.
pub struct Ledger {
    pub pages: u64,
    /// The first pages, which are dirtied.
    pub working_set: u64,
    base: u64,
    table: u64,
    random: bool,
    cpl0: bool,
    next: u64,
    /// Writes since boot; the table must add up to it.
    written: u64,
    cursor: u64,
    sum: u64,
}

fn checksum(page: u64) -> u64 {
    let words = page as *const u64;
    let mut sum = 0u64;
    for i in 0..512 {
        // SAFETY: a page of the ledger.
        let word = unsafe { words.add(i).read() };
        sum = sum.wrapping_add(word.wrapping_mul(2 * i as u64 + 1));
    }
    sum.wrapping_sub(peek::<u64>(page + 16).wrapping_mul(5))
}

impl Ledger {
    /// `base` and `table` (4 bytes a page) belong to this CPU alone.
    pub fn new(base: u64, table: u64, pages: u64, set: u64, random: bool, cpl0: bool) -> Self {
        let working_set = set.min(pages);
        Self {
            pages,
            working_set,
            base,
            table,
            random,
            cpl0,
            next: 0,
            written: 0,
            cursor: 0,
            sum: 0,
        }
    }

    /// Gives every page its first content.
    pub fn fill(&self, fill: Fill, seed: u64) {
        for i in 0..self.pages {
            self.renew(i, fill, seed, 0);
        }
    }

    fn renew(&self, i: u64, fill: Fill, seed: u64, sequence: u64) {
        let page = self.base + i * PAGE;
        if fill != Fill::None {
            content::write(fill, seed, page / PAGE, page);
        }
        poke(page, sequence);
        poke(page + 8, page);
        poke(page + 4088, sequence);
        poke(page + 16, checksum(page));
    }

    /// Dirties at most eight pages; how many.
    pub fn dirty(&mut self, count: u64) -> u64 {
        let count = count.min(8).min(self.working_set);
        let mut writes = [DirtyWrite {
            page: 0,
            sequence: 0,
            index: 0,
            value: 0,
        }; 8];
        for write in writes.iter_mut().take(count as usize) {
            let i = if self.random {
                mix(self.written, self.base) % self.working_set
            } else {
                let i = self.next;
                self.next = (self.next + 1) % self.working_set;
                i
            };
            let entry = self.table + i * 4;
            let sequence = peek::<u32>(entry).wrapping_add(1);
            poke(entry, sequence);
            self.written += 1;
            if i < self.cursor {
                self.sum += 1;
            }
            let page = self.base + i * PAGE;
            let value = mix(page, sequence.into());
            *write = DirtyWrite {
                page,
                sequence: sequence.into(),
                index: 8 + value % 496,
                value,
            };
        }
        let writes = &writes[..count as usize];
        if self.cpl0 {
            gate::dirty(writes);
        } else {
            writes.iter().for_each(dirty_here);
        }
        count
    }

    /// Verifies at most `count` pages; how many.
    pub fn verify(&mut self, count: u64) -> u64 {
        let count = count.min(self.pages);
        for _ in 0..count {
            let i = self.cursor;
            let expected = peek::<u32>(self.table + i * 4);
            self.check(i, expected.into());
            self.sum += u64::from(expected);
            self.cursor += 1;
            if self.cursor == self.pages {
                if self.sum != self.written {
                    fault("ledger-count", self.table, self.written, self.sum);
                    self.written = self.sum;
                }
                self.cursor = 0;
                self.sum = 0;
            }
        }
        count
    }

    fn check(&self, i: u64, expected: u64) {
        let page = self.base + i * PAGE;
        let word = |index: u64| peek::<u64>(page + index * 8);
        let (first, address, last) = (word(0), word(1), word(511));
        let actual = checksum(page);
        if address != page {
            fault("ledger-address", page, page, address);
        } else if first != last {
            fault("ledger-torn", page, first, last);
        } else if actual != word(2) {
            fault("ledger-checksum", page, word(2), actual);
        } else if first != expected {
            let kind = if first < expected {
                "ledger-stale"
            } else {
                "ledger-future"
            };
            fault(kind, page, expected, first);
        } else {
            return;
        }
        // Told once: the page counts as good again from here.
        self.renew(i, Fill::None, 0, expected);
    }
}

fn dirty_here(write: &DirtyWrite) {
    let &DirtyWrite {
        page,
        sequence,
        index,
        value,
    } = write;
    let mut sum: u64 = peek(page + 16);
    for (index, new) in [(index, value), (0, sequence), (511, sequence)] {
        let old: u64 = peek(page + index * 8);
        sum = sum.wrapping_add(new.wrapping_sub(old).wrapping_mul(2 * index + 1));
        poke(page + index * 8, new);
    }
    poke(page + 16, sum);
}
