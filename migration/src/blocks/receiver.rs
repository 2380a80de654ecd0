//! A disk's part of a data stream at the destination: writes blocks and keeps the digest of what is in place.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::buffer::PageBuffer;
use super::digests::{DigestKey, Keys};
use super::kept_here::KeptHere;
use super::matches::{by_words, numbers};
use super::sums::BlockSums;
use super::{STRIPE, stripes};
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::frames::Counters;
use crate::pages::hashes::Words;
use crate::pages::stripes::Owners;
use crate::progress::Verify;
use crate::raw::{HashKey, Piece, RamSlice};
use crate::transport::Connection;
use crate::vm::{BLOCK_SIZE, DestinationVolume, VolumeOffer};
use crate::wire::batch::{MAX_PAYLOAD, MAX_RANGES};
use crate::wire::blocks::{BlockEncoding, BlockRange};
use crate::wire::control::BlocksLeft;

/// Room for the payload of any batch, each range of it on a page's boundary.
const ROOM: usize = MAX_PAYLOAD as usize + MAX_RANGES * PAGE_SIZE as usize;

/// Disks that come in, and what a destination remembers of them for all of its streams.
pub(crate) struct DisksHere {
    all: Vec<DiskHere>,
    keys: Keys,
}

pub(super) struct DiskHere {
    pub volume: Arc<dyn DestinationVolume>,
    pub size: u64,
    owners: Owners,
    pub sums: Words,
    /// What is known of what it held before; `None` where it was empty.
    pub kept: Option<KeptHere>,
    /// What stays of it at its source, if anything may: a bit for each block.
    left: Option<Mutex<Vec<u64>>>,
}

impl DisksHere {
    /// In which nothing was placed; what they hold from before is `kept` or given up.
    ///
    /// # Errors
    /// [`Error::Volumes`] when they are not those that were `offered`, and when one cannot be emptied.
    pub fn begin(
        volumes: Vec<Arc<dyn DestinationVolume>>,
        offered: &[VolumeOffer],
        (verify, token): (Verify, &[u8; 16]),
        before: Before,
    ) -> Result<Self, Error> {
        let sizes = volumes.iter().map(|volume| volume.size());
        if !sizes.eq(offered.iter().map(|offer| offer.size)) {
            return Err(Error::Volumes);
        }
        let all = volumes.into_iter().zip(offered);
        let all = all.map(|(volume, offer)| {
            let kept = before.of(&*volume)?;
            let left = match (offer.may_leave_rest(), volume.rest()) {
                (true, Some(_)) => Some(Mutex::default()),
                (false, None) => None,
                _ => return Err(Error::Volumes),
            };
            Ok(DiskHere {
                volume,
                left,
                // Whoever sends blocks of one that is fetched later sends what is outside of it.
                size: offer.moves(),
                owners: Owners::new(stripes(offer.moves())),
                sums: Words::new(match verify {
                    Verify::Off => 0,
                    Verify::Stream | Verify::Full => offer.blocks() as usize,
                }),
                kept,
            })
        });
        let is_verified = verify != Verify::Off && !offered.is_empty();
        Ok(Self {
            all: all.collect::<Result<_, Error>>()?,
            keys: Keys {
                digest: DigestKey::new(token),
                sum: is_verified.then(|| Arc::new(HashKey::new(token))),
            },
        })
    }

    /// The streams of a new link carry any stripe; what those of the old one have added to the digest.
    pub fn begin_again(&self) -> u64 {
        let sums = self.all.iter().map(|disk| {
            disk.owners.forget();
            let uncounted = disk
                .kept
                .as_ref()
                .map_or(0, |kept| kept.matches.uncounted(&disk.sums));
            disk.sums.sum().wrapping_sub(uncounted)
        });
        sums.fold(0, u64::wrapping_add)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether they are verified, and there are any.
    pub fn are_verified(&self) -> bool {
        self.keys.sum.is_some()
    }

    pub(super) fn get(&self, number: usize) -> Option<&DiskHere> {
        self.all.get(number)
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The numbers of those that hold something from before.
    pub fn kept(&self) -> Vec<u16> {
        let all = (0..).zip(&self.all);
        all.filter_map(|(number, disk)| disk.kept.as_ref().map(|_| number))
            .collect()
    }

    /// All is placed: as [`KeptHere::end`] of each.
    pub fn end_comparing(&self) -> Result<(), Error> {
        let mut all = self.all.iter().enumerate();
        all.try_for_each(|(number, disk)| {
            disk.kept.as_ref().map_or(Ok(()), |kept| kept.end(number))
        })
    }

    /// The source says what stays of one.
    ///
    /// # Errors
    /// [`Error::Protocol`] when nothing may, or that is no part of it.
    pub fn are_left(&self, told: &BlocksLeft) -> Result<(), Error> {
        let disk = usize::try_from(told.volume)
            .ok()
            .and_then(|number| self.get(number));
        let left =
            disk.and_then(|disk| Some((disk.left.as_ref()?, disk.size.div_ceil(BLOCK_SIZE))));
        let outside = || {
            Error::Protocol(format!(
                "blocks are left of disk {}, which has none such",
                told.volume
            ))
        };
        let (left, blocks) = left.ok_or_else(outside)?;
        let words = told.first.checked_add(told.words.len() as u64);
        let words = words
            .filter(|words| *words <= blocks.div_ceil(64))
            .ok_or_else(outside)?;
        let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
        if (left.len() as u64) < words {
            left.resize(words as usize, 0);
        }
        let those = left.iter_mut().skip(told.first as usize);
        those
            .zip(&told.words)
            .for_each(|(word, bits)| *word |= bits);
        let over = blocks % 64;
        match left.get((blocks / 64) as usize) {
            Some(last) if over > 0 && last >> over != 0 => Err(outside()),
            _ => Ok(()),
        }
    }

    /// All has come, and is durable: has those that may lack something know what, and that they lack nothing more.
    pub fn lack_what_is_left(&self) -> Result<(), Error> {
        let lacking = self
            .all
            .iter()
            .filter_map(|disk| Some((disk.left.as_ref()?, disk.volume.rest()?)));
        for (left, rest) in lacking {
            let left = left.lock().unwrap_or_else(PoisonError::into_inner);
            rest.lacks(&left)
                .map_err(Error::vm("say what is to be fetched of a disk"))?;
        }
        Ok(())
    }

    /// Whether the disk of this number is here as a whole.
    pub fn is_whole(&self, number: usize) -> bool {
        let left = self.get(number).and_then(|disk| disk.left.as_ref());
        left.is_none_or(|left| {
            let left = left.lock().unwrap_or_else(PoisonError::into_inner);
            left.iter().all(|word| *word == 0)
        })
    }

    /// Makes durable what was written to all of them.
    pub fn flush(&self) -> Result<(), Error> {
        let flushed = self.all.iter().try_for_each(|disk| disk.volume.flush());
        flushed.map_err(Error::vm("flush the disks that came in"))
    }
}

/// What becomes of what disks held before that come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// It is given up.
    Cleared,
    /// The source asks what of it is its own.
    Kept,
}

impl Before {
    fn of(self, volume: &dyn DestinationVolume) -> Result<Option<KeptHere>, Error> {
        match (volume.held_before(), self) {
            (None, _) => Ok(None),
            (Some(_), Self::Kept) => Ok(Some(KeptHere::new(volume.size()))),
            (Some(held), Self::Cleared) => {
                held.clear()
                    .map_err(Error::vm("empty a disk that comes in"))?;
                Ok(None)
            }
        }
    }
}

/// What one stream places of all disks.
pub(crate) struct BlockReceiver<'a> {
    disks: &'a DisksHere,
    stream: u16,
    sums: Vec<BlockSums<'a>>,
    counters: &'a Counters,
    /// The payload of one batch, each range on a page's boundary; made when the first one comes.
    payload: Option<PageBuffer>,
    pieces: Vec<Piece<'static>>,
    steps: Vec<Step>,
    /// A disk that held something before, and up to where it was said without a gap from the beginning of a block.
    said: Option<(usize, u64)>,
}

/// What is done for a range.
struct Step {
    number: usize,
    bytes: Range<u64>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// Its payload is there.
    Data(usize),
    Zeroes,
    Present,
}

impl<'a> BlockReceiver<'a> {
    pub fn new(disks: &'a DisksHere, stream: u16, counters: &'a Counters) -> Self {
        let sums = disks.all.iter().enumerate();
        Self {
            sums: sums
                .map(|(number, disk)| BlockSums::new(number, &disk.sums))
                .collect(),
            disks,
            stream,
            counters,
            payload: None,
            pieces: Vec::new(),
            steps: Vec::new(),
            said: None,
        }
    }

    /// What this stream's blocks add to the digest.
    pub fn digest(&self) -> u64 {
        let digests = self.sums.iter().map(BlockSums::digest);
        digests.fold(0, u64::wrapping_add)
    }

    /// Receives the payload of `ranges`, whose sum was checked, and places them; all are checked before the first byte
    /// lands.
    pub fn place(
        &mut self,
        connection: &dyn Connection,
        ranges: &[BlockRange],
    ) -> Result<(), Error> {
        self.plan(ranges)?;
        if !self.pieces.is_empty() {
            let buffer = self
                .payload
                .get_or_insert_with(|| PageBuffer::new(ROOM))
                .bytes_mut();
            for step in &self.steps {
                if let What::Data(at) = step.what {
                    // The last page of a disk may be short; what is behind it counts as zero.
                    let end = at + (step.bytes.end - step.bytes.start) as usize;
                    buffer[end..end.next_multiple_of(PAGE_SIZE as usize)].fill(0);
                }
            }
            connection
                .receive_pieces(buffer, &self.pieces)
                .map_err(Error::link("receiving blocks"))?;
        }
        let steps = std::mem::take(&mut self.steps);
        let placed = steps.iter().try_for_each(|step| self.carry_out(step));
        self.steps = steps;
        placed
    }

    fn plan(&mut self, ranges: &[BlockRange]) -> Result<(), Error> {
        self.steps.clear();
        self.pieces.clear();
        let mut used = 0;
        for range in ranges {
            let encoding = range.encoding()?;
            let number = usize::from(range.volume());
            let bytes = range
                .bytes()
                .filter(|bytes| self.is_ours(number, bytes))
                .ok_or_else(|| {
                    Error::Protocol(format!(
                        "blocks of disk {number} are outside of what stream {} carries",
                        self.stream
                    ))
                })?;
            let len = (bytes.end - bytes.start) as usize;
            let what = match encoding {
                BlockEncoding::Raw => What::Data(used),
                BlockEncoding::Zero => What::Zeroes,
                BlockEncoding::Present => What::Present,
            };
            if let What::Data(at) = what {
                self.pieces.push(Piece::Bytes { at, len });
                used += len.next_multiple_of(PAGE_SIZE as usize);
            }
            let step = Step {
                number,
                bytes,
                what,
            };
            self.steps.push(step);
        }
        Ok(())
    }

    /// Whether the bytes are whole pages of the disk in one stripe, which no other stream has carried.
    fn is_ours(&self, number: usize, bytes: &Range<u64>) -> bool {
        let Some(disk) = self.disks.all.get(number) else {
            return false;
        };
        let is_end = |at: u64| at.is_multiple_of(PAGE_SIZE) || at == disk.size;
        let stripe = bytes.start / STRIPE;
        bytes.end <= disk.size
            && bytes.start.is_multiple_of(PAGE_SIZE)
            && is_end(bytes.end)
            && (bytes.end - 1) / STRIPE == stripe
            && disk.owners.claim(stripe, self.stream)
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), Error> {
        let Step {
            number,
            bytes,
            what,
        } = step;
        let disk = &self.disks.all[*number];
        let volume = &disk.volume;
        let len = bytes.end - bytes.start;
        if let What::Present = what {
            self.keep(*number, bytes)?;
            Counters::add(&self.counters.disk_present_bytes, len);
            return Ok(());
        }
        self.say(*number, bytes)?;
        match (what, &mut self.payload) {
            (What::Data(at), Some(buffer)) => {
                let pages = (len as usize).next_multiple_of(PAGE_SIZE as usize);
                let pages = &mut buffer.bytes_mut()[*at..*at + pages];
                let written = volume.write(bytes.start, &mut pages[..len as usize]);
                written.map_err(Error::vm("write a disk that comes in"))?;
                if let Some(key) = &self.disks.keys.sum {
                    self.sums[*number].note_data(key, bytes.start, RamSlice::over(pages));
                }
                Counters::add(&self.counters.disk_bytes, len);
            }
            _ => {
                let zeroed = volume.write_zeroes(bytes.clone());
                zeroed.map_err(Error::vm("write a disk that comes in"))?;
                if self.disks.are_verified() {
                    self.sums[*number].note_zeroes(bytes.clone());
                }
                Counters::add(&self.counters.disk_zero_bytes, len);
            }
        }
        Ok(())
    }

    /// `bytes` of a disk hold what is said now. Where it held something before, what is said first of a block is all of it,
    /// without a gap.
    fn say(&mut self, number: usize, bytes: &Range<u64>) -> Result<(), Error> {
        let disk = &self.disks.all[number];
        let Some(kept) = &disk.kept else {
            return Ok(());
        };
        let blocks = bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE);
        for (at, bits) in by_words(blocks.clone()) {
            kept.matches.settle(at, bits, &disk.sums);
        }
        let goes_on = self.said.take() == Some((number, bytes.start));
        let begins = bytes.start - bytes.start % BLOCK_SIZE;
        if !goes_on && begins != bytes.start && !kept.is_said(blocks.start) {
            return Err(Error::Protocol(format!(
                "of block {} of disk {number}, which holds what it did before, it says only a part",
                blocks.start
            )));
        }
        let from = if goes_on { begins } else { bytes.start };
        let whole = kept.whole(&(from..bytes.end));
        self.said = (!bytes.end.is_multiple_of(BLOCK_SIZE)).then_some((number, bytes.end));
        kept.said(whole);
        Ok(())
    }

    /// `bytes` of a disk are there, as its source has been told.
    fn keep(&mut self, number: usize, bytes: &Range<u64>) -> Result<(), Error> {
        let disk = &self.disks.all[number];
        let blocks = bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE);
        let are_whole = |kept: &KeptHere| kept.whole(bytes) == blocks;
        let refused = || {
            Error::Protocol(format!(
                "it says of blocks {} to {} of disk {number} that they are there, which were not found",
                blocks.start,
                blocks.end - 1
            ))
        };
        let kept = (disk.kept.as_ref().filter(|kept| are_whole(kept))).ok_or_else(refused)?;
        for (at, bits) in by_words(blocks.clone()) {
            let [new, before] = kept.matches.take(at, bits);
            if new | before != bits {
                return Err(refused());
            }
            if self.disks.are_verified() {
                numbers(at, new).for_each(|block| self.sums[number].note_present(block));
            }
        }
        kept.said(blocks);
        Ok(())
    }
}
