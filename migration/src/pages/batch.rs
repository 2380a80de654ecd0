//! A batch on its way out: what has been gathered of it, and the frame that it becomes.

use zerocopy::IntoBytes;

use crate::PAGE_SIZE;
use crate::raw::{Piece, Ram, Span};
use crate::wire::batch::{BATCH_LEN, BatchHeader, Encoding, MAX_RANGES, PageRange, RANGE_LEN};

/// Ranges and their payload, in buffers that are used again from one batch to the next.
///
/// The first piece is the head, which travels first and is known last, so its bytes lie behind those of the
/// payload. The other pieces are the payload, in the order of the ranges.
pub(super) struct Batch<'a> {
    ranges: Vec<PageRange>,
    pieces: Vec<Piece<'a>>,
    bytes: Vec<u8>,
    payload: usize,
}

const UNKNOWN_HEAD: Piece<'_> = Piece::Bytes { at: 0, len: 0 };

impl<'a> Batch<'a> {
    /// Nothing yet.
    pub fn new() -> Self {
        let mut pieces = Vec::with_capacity(1 + MAX_RANGES);
        pieces.push(UNKNOWN_HEAD);
        Self {
            ranges: Vec::with_capacity(MAX_RANGES),
            pieces,
            bytes: Vec::with_capacity(BATCH_LEN + MAX_RANGES * RANGE_LEN),
            payload: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of payload.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Bytes of its frame.
    pub fn len(&self) -> usize {
        BATCH_LEN + self.ranges.as_bytes().len() + self.payload
    }

    /// Ranges that it has room for.
    pub fn room(&self) -> usize {
        MAX_RANGES - self.ranges.len()
    }

    /// Adds the pages of `span`, which are to travel as `encoding`.
    pub fn push(&mut self, ram: &'a Ram, span: Span, encoding: Encoding) {
        let gpa = ram.regions()[span.region].gpa() + span.page * PAGE_SIZE;
        self.ranges
            .push(PageRange::new(gpa, span.pages as u32, encoding));
        match encoding {
            Encoding::Zero => {}
            Encoding::Raw => {
                let slice = ram.slice(span);
                self.payload += slice.len();
                self.pieces.push(Piece::Ram(slice));
            }
            #[cfg(test)]
            Encoding::Filled => {
                let at = self.bytes.len();
                let len = span.pages as usize;
                for page in 0..len {
                    let mut byte = [0];
                    ram.slice(span)
                        .part(page * PAGE_SIZE as usize, 1)
                        .copy_to(&mut byte);
                    self.bytes.push(byte[0]);
                }
                self.payload += len;
                self.pieces.push(Piece::Bytes { at, len });
            }
        }
    }

    /// The frame of it, as part of `pass`: plain bytes and the pieces.
    pub fn frame(&mut self, pass: u32) -> (&[u8], &[Piece<'a>]) {
        let at = self.bytes.len();
        let header = BatchHeader::of(pass, &self.ranges);
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(self.ranges.as_bytes());
        let len = self.bytes.len() - at;
        self.pieces[0] = Piece::Bytes { at, len };
        (&self.bytes, &self.pieces)
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.pieces.truncate(1);
        self.bytes.clear();
        self.payload = 0;
    }
}
