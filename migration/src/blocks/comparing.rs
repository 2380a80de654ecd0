//! What an image holds already that a disk is written over: compared with what its source asks about, and never left there
//! unsaid.

use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffer::PageBuffer;
use super::digests::{Keys, blocks_of, in_pages};
use super::matches::{Matches, by_words, place, runs};
use super::receiver::{DiskHere, DisksHere};
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::raw::RamSlice;
use crate::session::{SLICE, Session};
use crate::vm::{BLOCK_SIZE, HeldBefore};
use crate::wire::control::{BlockDigests, BlocksPresent, Message, SomeBlocks};
use crate::wire::digests::{ASKED_BLOCKS, BlockDigest, MAX_QUESTIONS};

/// Bytes that are read at once.
const AT_ONCE: u64 = 1 << 20;

/// What is known of a disk that holds something from before.
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
    fn comparable(&self, at: usize, bits: u64) -> u64 {
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

/// Compares on one link.
pub(crate) struct Comparing {
    disks: Arc<DisksHere>,
    session: Arc<Session>,
    questions: Receiver<Message>,
    buffer: PageBuffer,
}

impl Comparing {
    /// Answers the questions that come on the link of `session`.
    pub fn new(disks: Arc<DisksHere>, session: Arc<Session>) -> Self {
        let (taken, questions) = sync_channel(MAX_QUESTIONS);
        session.give_blocks_to(taken);
        Self {
            disks,
            session,
            questions,
            buffer: PageBuffer::new(AT_ONCE as usize),
        }
    }

    /// Answers until the session ends.
    pub fn run(mut self) {
        while !self.session.is_stopped() {
            let answered = match self.questions.recv_timeout(SLICE) {
                Ok(Message::BlockDigests(question)) => self.answer(&question),
                Ok(other) => Err(other.unexpected("block-digests")),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(error) = answered {
                return self.session.fail(error);
            }
        }
    }

    fn answer(&mut self, question: &BlockDigests) -> Result<(), Error> {
        let SomeBlocks {
            volume,
            first,
            bits,
        } = question.of;
        let disks = self.disks.clone();
        let number = volume as usize;
        let refused = || {
            let what = format!("it asks about blocks of disk {volume} from {first} on");
            Error::Protocol(format!("{what}, which does not hold any from before"))
        };
        let disk = disks.get(number).ok_or_else(refused)?;
        let kept = disk.kept.as_ref().ok_or_else(refused)?;
        let held = disk.volume.held_before().ok_or_else(refused)?;
        let blocks = disk.size.div_ceil(BLOCK_SIZE);
        let last = question.of.numbers().last();
        if last.is_none_or(|last| last >= blocks) {
            return Err(refused());
        }
        let at = (first / ASKED_BLOCKS) as usize;
        let mut there = 0;
        for run in runs(at, kept.comparable(at, bits), disk.size, AT_ONCE) {
            let wanted = |block: u64| {
                let before = bits & (place(block).1 - 1);
                question.digests[before.count_ones() as usize]
            };
            let compared = Compared {
                number,
                disk,
                kept,
                held,
                keys: disks.keys(),
            };
            there |= compared.run(run, self.buffer.bytes_mut(), wanted)?;
        }
        let bits = there;
        self.session
            .send(&Message::BlocksPresent(BlocksPresent(SomeBlocks {
                bits,
                ..question.of
            })))
    }
}

/// A disk some of whose blocks are compared.
struct Compared<'c> {
    number: usize,
    disk: &'c DiskHere,
    kept: &'c KeptHere,
    held: &'c dyn HeldBefore,
    keys: &'c Keys,
}

impl Compared<'_> {
    /// Which of the blocks of `run` are those that are `wanted`.
    fn run(
        &self,
        run: Range<u64>,
        buffer: &mut [u8],
        wanted: impl Fn(u64) -> BlockDigest,
    ) -> Result<u64, Error> {
        let len = (run.end - run.start) as usize;
        let buffer = &mut buffer[..in_pages(len)];
        buffer[len..].fill(0);
        let holds = self.held.data(run.clone());
        if holds.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(0);
        }
        if let Err(error) = holds.and_then(|_| self.held.read(run.start, &mut buffer[..len])) {
            // It is going to be written over.
            tracing::debug!(disk = self.number, "what it held before: {error}");
            return Ok(0);
        }
        let mut there = 0;
        for (at, len) in blocks_of(len) {
            let offset = run.start + at as u64;
            let block = offset / BLOCK_SIZE;
            if self.keys.digest.digest(&buffer[at..at + len]) != wanted(block) {
                continue;
            }
            let pages = RamSlice::over(&mut buffer[at..at + in_pages(len)]);
            let sum = self.keys.sum(self.number, offset, pages);
            let give_back = || self.give_back(offset..offset + len as u64, pages);
            let sums = (&self.disk.sums, sum);
            if self.kept.matches.find(block, sums, give_back)? {
                there |= place(block).1;
            }
        }
        Ok(there)
    }

    /// Gives the storage of those `pages` of the block back that are all zeroes, as they are where blocks are sent.
    fn give_back(&self, block: Range<u64>, pages: RamSlice<'_>) -> Result<(), Error> {
        let starts = (0..pages.len()).step_by(PAGE_SIZE as usize);
        let mut zeroes: Vec<Range<u64>> = Vec::new();
        for at in starts.filter(|&at| pages.part(at, PAGE_SIZE as usize).is_zero()) {
            let start = block.start + at as u64;
            let end = (start + PAGE_SIZE).min(block.end);
            match zeroes.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => zeroes.push(start..end),
            }
        }
        if zeroes.is_empty() {
            return Ok(());
        }
        let stored = self.held.data(block);
        let stored = stored.map_err(Error::vm("tell where the disk holds data"))?;
        for data in stored {
            for zeroes in &zeroes {
                let both = data.start.max(zeroes.start)..data.end.min(zeroes.end);
                if both.start < both.end {
                    let zeroed = self.disk.volume.write_zeroes(both);
                    zeroed.map_err(Error::vm("write a disk that comes in"))?;
                }
            }
        }
        Ok(())
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
