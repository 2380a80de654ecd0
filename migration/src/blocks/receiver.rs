//! A disk's part of a data stream at the destination: writes blocks and keeps the digest of what is in place.

use std::ops::Range;
use std::sync::Arc;

use super::buffer::PageBuffer;
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
use crate::vm::{DestinationVolume, VolumeOffer};
use crate::wire::batch::{MAX_PAYLOAD, MAX_RANGES};
use crate::wire::blocks::{BlockEncoding, BlockRange};

/// Room for the payload of any batch, each range of it on a page's boundary.
const ROOM: usize = MAX_PAYLOAD as usize + MAX_RANGES * PAGE_SIZE as usize;

/// Disks that come in, and what a destination remembers of them for all of its streams.
pub(crate) struct DisksHere {
    all: Vec<DiskHere>,
    /// Key of the digest; `None` when they are not verified.
    key: Option<HashKey>,
}

struct DiskHere {
    volume: Arc<dyn DestinationVolume>,
    size: u64,
    owners: Owners,
    sums: Words,
}

impl DisksHere {
    /// In which nothing was placed.
    ///
    /// # Errors
    /// [`Error::Volumes`] when they are not those that were `offered`.
    pub fn empty(
        volumes: Vec<Arc<dyn DestinationVolume>>,
        offered: &[VolumeOffer],
        (verify, token): (Verify, &[u8; 16]),
    ) -> Result<Self, Error> {
        let sizes = volumes.iter().map(|volume| volume.size());
        if !sizes.eq(offered.iter().map(|offer| offer.size)) {
            return Err(Error::Volumes);
        }
        let all = volumes.into_iter().zip(offered);
        let all = all.map(|(volume, offer)| DiskHere {
            volume,
            // Whoever sends blocks of one that is fetched later sends what is outside of it.
            size: offer.moves(),
            owners: Owners::new(stripes(offer.moves())),
            sums: Words::new(match verify {
                Verify::Off => 0,
                Verify::Stream | Verify::Full => offer.blocks() as usize,
            }),
        });
        Ok(Self {
            all: all.collect(),
            key: (verify != Verify::Off && !offered.is_empty()).then(|| HashKey::new(token)),
        })
    }

    /// The streams of a new link carry any stripe; what those of the old one have added to the digest.
    pub fn begin_again(&self) -> u64 {
        let sums = self.all.iter().map(|disk| {
            disk.owners.forget();
            disk.sums.sum()
        });
        sums.fold(0, u64::wrapping_add)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether they are verified, and there are any.
    pub fn are_verified(&self) -> bool {
        self.key.is_some()
    }

    /// Makes durable what was written to all of them.
    pub fn flush(&self) -> Result<(), Error> {
        let flushed = self.all.iter().try_for_each(|disk| disk.volume.flush());
        flushed.map_err(Error::vm("flush the disks that came in"))
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
}

/// What is done for a range.
struct Step {
    number: usize,
    bytes: Range<u64>,
    /// Where its payload is, if it has any.
    at: Option<usize>,
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
                if let Some(at) = step.at {
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
            let at = (encoding == BlockEncoding::Raw).then_some(used);
            if let Some(at) = at {
                self.pieces.push(Piece::Bytes { at, len });
                used += len.next_multiple_of(PAGE_SIZE as usize);
            }
            self.steps.push(Step { number, bytes, at });
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
        let Step { number, bytes, at } = step;
        let volume = &self.disks.all[*number].volume;
        let len = bytes.end - bytes.start;
        match (at, &mut self.payload) {
            (Some(at), Some(buffer)) => {
                let pages = (len as usize).next_multiple_of(PAGE_SIZE as usize);
                let pages = &mut buffer.bytes_mut()[*at..*at + pages];
                let written = volume.write(bytes.start, &mut pages[..len as usize]);
                written.map_err(Error::vm("write a disk that comes in"))?;
                if let Some(key) = &self.disks.key {
                    self.sums[*number].note_data(key, bytes.start, RamSlice::over(pages));
                }
                Counters::add(&self.counters.disk_bytes, len);
            }
            _ => {
                let zeroed = volume.write_zeroes(bytes.clone());
                zeroed.map_err(Error::vm("write a disk that comes in"))?;
                if self.disks.key.is_some() {
                    self.sums[*number].note_zeroes(bytes.clone());
                }
                Counters::add(&self.counters.disk_zero_bytes, len);
            }
        }
        Ok(())
    }
}
