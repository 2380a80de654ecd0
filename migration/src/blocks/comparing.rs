//! What an image holds already that a disk is written over, compared with what its source asks about.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use super::buffer::PageBuffer;
use super::digests::{Keys, blocks_of, in_pages};
use super::kept_here::KeptHere;
use super::matches::{place, runs};
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
