//! What of the disks the destination has already: read and asked about ahead of the first pass, at the source.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::buffer::PageBuffer;
use super::digests::{Keys, blocks_of, in_pages};
use super::kept::{Kept, Next};
use super::matches::{numbers, place, runs};
use super::sender::{Disk, Disks};
use crate::error::Error;
use crate::frames::Counters;
use crate::raw::RamSlice;
use crate::session::Session;
use crate::vm::BLOCK_SIZE;
use crate::wire::control::{BlockDigests, BlocksPresent, CONTROL_LEN, Message, SomeBlocks};
use crate::wire::digests::{ASKED_BLOCKS, MAX_QUESTIONS};

/// Bytes that are read at once.
const AT_ONCE: u64 = 1 << 20;
/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_millis(5);

/// Asks on one link.
pub(crate) struct Finder {
    disks: Arc<Disks>,
    session: Arc<Session>,
    counters: Arc<Counters>,
    keys: Keys,
    answers: Receiver<Message>,
    buffer: PageBuffer,
}

/// A question that waits for its answer.
struct Question {
    of: SomeBlocks,
    /// What each of its blocks adds to the digest.
    sums: Vec<u64>,
}

impl Finder {
    /// Asks on the link of `session`, whose answers it takes.
    pub fn new(
        disks: Arc<Disks>,
        session: Arc<Session>,
        counters: Arc<Counters>,
        keys: Keys,
    ) -> Self {
        let (taken, answers): (SyncSender<_>, _) = sync_channel(MAX_QUESTIONS);
        session.give_blocks_to(taken);
        Self {
            disks,
            session,
            counters,
            keys,
            answers,
            buffer: PageBuffer::new(AT_ONCE as usize),
        }
    }

    /// Asks until there is nothing left to ask about, or nobody to ask.
    pub fn run(mut self) {
        let disks = self.disks.clone();
        for (number, disk, kept) in disks.kept() {
            if let Err(error) = self.find(number, disk, kept) {
                return self.session.fail(error);
            }
        }
    }

    fn find(&mut self, number: usize, disk: &Disk, kept: &Kept) -> Result<(), Error> {
        let mut waiting: VecDeque<Question> = VecDeque::new();
        while !self.session.is_stopped() {
            while waiting.len() < kept.window()
                && let Some(next) = kept.next()
            {
                match self.question(number, disk, kept, next)? {
                    Some(question) => waiting.push_back(question),
                    None if waiting.is_empty() => kept.answered_to(None),
                    None => {}
                }
                if self.session.is_stopped() {
                    return Ok(());
                }
            }
            if waiting.is_empty() && kept.is_asked_through() {
                kept.end();
                return Ok(());
            }
            let answer = match self.answers.recv_timeout(LOOK) {
                Ok(Message::BlocksPresent(answer)) => answer,
                Ok(other) => return Err(other.unexpected("blocks-present")),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => continue,
            };
            let question = waiting.pop_front();
            note(disk, kept, question, answer)?;
            let next = waiting.front().map(|question| question.of.first);
            kept.answered_to(next.map(|first| first / ASKED_BLOCKS));
        }
        Ok(())
    }

    /// Asks about those blocks of a word that hold data and of which nothing is known.
    fn question(
        &mut self,
        number: usize,
        disk: &Disk,
        kept: &Kept,
        Next { word, most }: Next,
    ) -> Result<Option<Question>, Error> {
        let at = word as usize;
        let first = word * ASKED_BLOCKS;
        let size = disk.offer.size;
        let all = first * BLOCK_SIZE..((first + ASKED_BLOCKS) * BLOCK_SIZE).min(size);
        let mut bits = 0;
        let data = disk.volume.data(all);
        for data in data.map_err(Error::vm("tell where the disk holds data"))? {
            let blocks = data.start / BLOCK_SIZE..data.end.div_ceil(BLOCK_SIZE);
            bits |= blocks.fold(0, |bits, block| bits | place(block).1);
        }
        bits &= !kept.matches.known(at);
        // What is going to be sent again anyway need not be found now.
        let changes = |block: &u64| disk.volume.has_changed(*block);
        let changing = numbers(at, bits).filter(changes);
        bits &= !changing.fold(0, |bits, block| bits | place(block).1);
        bits = thinned(bits, most);
        let mut of = SomeBlocks {
            volume: number as u32,
            first,
            bits: 0,
        };
        let (mut digests, mut sums) = (Vec::new(), Vec::new());
        for run in runs(at, bits, size, AT_ONCE) {
            let len = (run.end - run.start) as usize;
            let buffer = &mut self.buffer.bytes_mut()[..in_pages(len)];
            buffer[len..].fill(0);
            let read = disk.volume.read(run.start, &mut buffer[..len]);
            read.map_err(Error::vm("read the disk"))?;
            for (at, len) in blocks_of(len) {
                let offset = run.start + at as u64;
                let pages = RamSlice::over(&mut buffer[at..at + in_pages(len)]);
                if !pages.is_zero() {
                    of.bits |= place(offset / BLOCK_SIZE).1;
                    sums.push(self.keys.sum(number, offset, pages));
                    digests.push(self.keys.digest.digest(&buffer[at..at + len]));
                }
            }
        }
        if of.bits == 0 {
            return Ok(None);
        }
        let question = BlockDigests { of, digests };
        let bytes = CONTROL_LEN + question.body_len();
        Counters::add(&self.counters.digest_bytes, bytes as u64);
        self.session.send(&Message::BlockDigests(question))?;
        Ok(Some(Question { of, sums }))
    }
}

/// At most `most` of `bits`, spread over them.
fn thinned(bits: u64, most: u32) -> u64 {
    let step = bits.count_ones().div_ceil(most.max(1)).max(1) as usize;
    let kept = numbers(0, bits).step_by(step);
    kept.fold(0, |bits, bit| bits | 1 << bit)
}

/// Notes the answer to `question`.
fn note(
    disk: &Disk,
    kept: &Kept,
    question: Option<Question>,
    BlocksPresent(there): BlocksPresent,
) -> Result<(), Error> {
    let asked = question.filter(|question| {
        let of = question.of;
        (of.volume, of.first) == (there.volume, there.first) && there.bits & !of.bits == 0
    });
    let Some(Question { of, sums }) = asked else {
        let (volume, first) = (there.volume, there.first);
        return Err(Error::Protocol(format!(
            "it says of blocks of disk {volume} from {first} on that they are there, about which it was not asked"
        )));
    };
    for (block, sum) in of.numbers().zip(sums) {
        if there.bits & place(block).1 != 0 {
            let nothing = || Ok::<_, Error>(());
            kept.matches.find(block, (&disk.sums, sum), nothing)?;
        }
    }
    let word = of.first / ASKED_BLOCKS;
    kept.heard(word, of.bits.count_ones(), there.bits.count_ones());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_of_many_are_spread() {
        assert_eq!(thinned(u64::MAX, 64), u64::MAX);
        assert_eq!(thinned(u64::MAX, 8), 0x0101_0101_0101_0101);
        assert_eq!(thinned(0b1011 << 60, 8), 0b1011 << 60);
        assert_eq!(thinned(0b1_1111, 2), 0b1001);
        assert_eq!(thinned(0, 8), 0);
    }
}
