//! A batch of blocks that is being put together at the source.

use std::ops::Range;

use zerocopy::IntoBytes;

use super::buffer::PageBuffer;
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::frames::Outlet;
use crate::raw::{Piece, RamSlice};
use crate::wire::batch::{BATCH_LEN, BatchHeader, MAX_RANGES};
use crate::wire::blocks::{BLOCK_RANGE_LEN, BlockEncoding, BlockRange};

/// Payload of a batch at most, whatever the outlet takes.
pub(super) const MOST: usize = 512 << 10;

/// Ranges and their payload, in buffers that are used again from one batch to the next.
pub(super) struct Batch {
    pub ranges: Vec<BlockRange>,
    pieces: Vec<Piece<'static>>,
    /// The payload, then the head.
    buffer: PageBuffer,
    /// Bytes of the buffer that hold what was read for it, a multiple of the page size.
    pub used: usize,
    payload: usize,
}

/// Room for the head of any batch.
const HEAD: usize = BATCH_LEN + MAX_RANGES * BLOCK_RANGE_LEN;
/// Pages of the largest payload, each of which may need a range.
const PAGES: usize = MOST / PAGE_SIZE as usize;
const _: () = assert!(PAGES * 2 < MAX_RANGES);

impl Batch {
    pub fn new() -> Self {
        Self {
            ranges: Vec::with_capacity(MAX_RANGES),
            pieces: Vec::with_capacity(MAX_RANGES + 1),
            buffer: PageBuffer::new(MOST + HEAD),
            used: 0,
            payload: 0,
        }
    }

    /// Whether what comes next may have more ranges than it has room for.
    pub fn is_full(&self) -> bool {
        self.ranges.len() + PAGES + 2 > MAX_RANGES
    }

    /// Where the next `len` bytes are to be read to.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let pages = len.next_multiple_of(PAGE_SIZE as usize);
        let room = &mut self.buffer.bytes_mut()[self.used..self.used + pages];
        // The last page of a disk may be short; what is behind it counts as zero.
        room[len..].fill(0);
        &mut room[..len]
    }

    /// Pages from byte `at` of what was read last.
    pub fn pages(&mut self, at: usize, len: usize) -> RamSlice<'_> {
        let from = self.used + at;
        let pages = len.next_multiple_of(PAGE_SIZE as usize);
        RamSlice::over(&mut self.buffer.bytes_mut()[from..from + pages])
    }

    pub fn is_zero(&mut self, at: usize, len: usize) -> bool {
        let one = (PAGE_SIZE as usize).min(len - at);
        self.pages(at, one).is_zero()
    }

    /// What was read last, `len` bytes, stays until the batch is sent.
    pub fn keep(&mut self, len: usize) {
        if self.pieces.is_empty() {
            // None of it travels.
            return;
        }
        self.used += len.next_multiple_of(PAGE_SIZE as usize);
    }

    /// `range` of disk `number` travels without payload.
    pub fn push(&mut self, number: usize, range: Range<u64>, encoding: BlockEncoding) {
        let range = BlockRange::new(number as u16, range, encoding);
        self.ranges.push(range);
    }

    pub fn push_raw(&mut self, number: usize, at: usize, range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        let at = self.used + at;
        self.ranges
            .push(BlockRange::new(number as u16, range, BlockEncoding::Raw));
        if self.pieces.is_empty() {
            // The head travels first and is known last.
            self.pieces.push(Piece::Bytes { at: 0, len: 0 });
        }
        self.pieces.push(Piece::Bytes { at, len });
        self.payload += len;
    }

    pub fn send(&mut self, outlet: &mut Outlet<'_>, pass: u32) -> Result<(), Error> {
        if self.ranges.is_empty() {
            return Ok(());
        }
        let header = BatchHeader::of(pass, &self.ranges);
        let ranges = self.ranges.as_bytes();
        let len = BATCH_LEN + ranges.len();
        let head = &mut self.buffer.bytes_mut()[self.used..self.used + len];
        head[..BATCH_LEN].copy_from_slice(header.as_bytes());
        head[BATCH_LEN..].copy_from_slice(ranges);
        let head = Piece::Bytes { at: self.used, len };
        match self.pieces.first_mut() {
            Some(first) => *first = head,
            None => self.pieces.push(head),
        }
        let sent = outlet.send_pieces(self.buffer.bytes(), &self.pieces, len + self.payload);
        self.ranges.clear();
        self.pieces.clear();
        (self.used, self.payload) = (0, 0);
        sent
    }
}
