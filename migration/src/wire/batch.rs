//! Batches on data connections: a header, ranges of guest memory or of disks, then the payload of the raw ranges.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::blocks::BlockRange;
use super::check;
use crate::PAGE_SIZE;
use crate::error::Error;

/// First bytes of a batch.
pub const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"vmmP");
/// Most ranges in a batch.
pub const MAX_RANGES: usize = 512;
/// Most payload in a batch.
pub const MAX_PAYLOAD: u64 = 2 << 20;

/// How the pages of a range travel. Kept for later: 2 delta, 3 lz4, 4 zstd, 5 signature reference,
/// 6 disk block reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// All bytes are zero; no payload.
    Zero,
    /// As they are.
    Raw,
    /// The byte that each page is full of: what tests know of encoded pages.
    #[cfg(test)]
    Filled,
}

const ZERO: u16 = 0;
const RAW: u16 = 1;
#[cfg(test)]
const FILLED: u16 = 0xffff;
const PAGES: u16 = 1;
const PASS_END: u16 = 2;
const BLOCKS: u16 = 3;

/// Header of a batch.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct BatchHeader {
    magic: U32,
    kind: U16,
    flags: U16,
    pass: U32,
    ranges: U32,
    payload: U64,
    check: U64,
}

/// Length of a batch header.
pub const BATCH_LEN: usize = size_of::<BatchHeader>();

/// A run of pages in a batch.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct PageRange {
    gpa: U64,
    pages: U32,
    encoding: U16,
    flags: U16,
    payload: U32,
    reserved: U32,
}

/// Length of a page range.
pub const RANGE_LEN: usize = size_of::<PageRange>();

impl PageRange {
    /// A range of `pages` pages from `gpa` on.
    pub fn new(gpa: u64, pages: u32, encoding: Encoding) -> Self {
        let (encoding, payload) = match encoding {
            Encoding::Zero => (ZERO, 0),
            Encoding::Raw => (RAW, pages.saturating_mul(PAGE_SIZE as u32)),
            #[cfg(test)]
            Encoding::Filled => (FILLED, pages),
        };
        Self {
            gpa: gpa.into(),
            pages: pages.into(),
            encoding: encoding.into(),
            flags: 0.into(),
            payload: payload.into(),
            reserved: 0.into(),
        }
    }

    /// Guest-physical address of the first page.
    pub fn gpa(&self) -> u64 {
        self.gpa.get()
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        u64::from(self.pages.get())
    }

    /// Bytes of payload.
    pub fn payload(&self) -> u64 {
        u64::from(self.payload.get())
    }

    /// How they travel.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the encoding is unknown or the payload does not fit it.
    pub fn encoding(&self) -> Result<Encoding, Error> {
        let (encoding, payload) = match self.encoding.get() {
            ZERO => (Encoding::Zero, 0),
            RAW => (Encoding::Raw, self.pages() * PAGE_SIZE),
            #[cfg(test)]
            FILLED => (Encoding::Filled, self.pages()),
            other => {
                return Err(Error::Protocol(format!(
                    "pages in unknown encoding {other}"
                )));
            }
        };
        if self.payload() != payload || self.flags.get() != 0 {
            return Err(Error::Protocol(format!(
                "page range at {:#x} has a payload of {} bytes, expected {payload}",
                self.gpa(),
                self.payload()
            )));
        }
        Ok(encoding)
    }
}

/// What a frame on a data connection holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchKind {
    /// Pages: so many ranges and so many bytes of payload follow.
    Pages {
        /// Number of ranges.
        ranges: usize,
        /// Bytes of payload after them.
        payload: u64,
    },
    /// All of the pass that travels on this stream has been sent.
    PassEnd,
    /// Blocks of disks ([`super::blocks`]): so many ranges and so many bytes of payload follow.
    Blocks {
        /// Number of ranges.
        ranges: usize,
        /// Bytes of payload after them.
        payload: u64,
    },
}

/// A range of a batch, of whatever kind: what its header is made and checked from.
pub trait BatchRange: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// Number of the kind of batches that have such ranges.
    #[doc(hidden)]
    const KIND: u16;

    /// Bytes of payload.
    fn payload(&self) -> u64;
}

impl BatchRange for PageRange {
    const KIND: u16 = PAGES;

    fn payload(&self) -> u64 {
        self.payload()
    }
}

impl BatchRange for BlockRange {
    const KIND: u16 = BLOCKS;

    fn payload(&self) -> u64 {
        self.payload()
    }
}

impl BatchHeader {
    /// Header of a batch of `ranges` in pass `pass`.
    pub fn of<R: BatchRange>(pass: u32, ranges: &[R]) -> Self {
        Self::new(R::KIND, pass, ranges, payload_of(ranges))
    }

    /// Marks the end of pass `pass`.
    pub fn pass_end(pass: u32) -> Self {
        Self::new::<PageRange>(PASS_END, pass, &[], 0)
    }

    fn new<R: BatchRange>(kind: u16, pass: u32, ranges: &[R], payload: u64) -> Self {
        let mut header = Self {
            magic: BATCH_MAGIC.into(),
            kind: kind.into(),
            flags: 0.into(),
            pass: pass.into(),
            ranges: (ranges.len() as u32).into(),
            payload: payload.into(),
            check: 0.into(),
        };
        header.check = header.check_with(ranges).into();
        header
    }

    fn check_with<R: BatchRange>(mut self, ranges: &[R]) -> u64 {
        self.check = 0.into();
        check(&[self.as_bytes(), ranges.as_bytes()])
    }

    /// Pass that it belongs to.
    pub fn pass(&self) -> u32 {
        self.pass.get()
    }

    /// What follows, before any of it is read or room is made for it.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no batch or exceeds the limits.
    pub fn kind(&self) -> Result<BatchKind, Error> {
        if self.magic.get() != BATCH_MAGIC {
            return Err(Error::Protocol("data stream holds no batch".into()));
        }
        let (ranges, payload) = (self.ranges.get() as usize, self.payload.get());
        if ranges > MAX_RANGES || payload > MAX_PAYLOAD || self.flags.get() != 0 {
            return Err(Error::Protocol(format!(
                "batch of {ranges} ranges and {payload} bytes exceeds the limits"
            )));
        }
        match self.kind.get() {
            PAGES if ranges > 0 => Ok(BatchKind::Pages { ranges, payload }),
            BLOCKS if ranges > 0 => Ok(BatchKind::Blocks { ranges, payload }),
            PASS_END if ranges == 0 && payload == 0 => Ok(BatchKind::PassEnd),
            other => Err(Error::Protocol(format!(
                "data frame of unknown kind {other}"
            ))),
        }
    }

    /// Checks the header and its ranges against damage on the way, and the payload against the sum
    /// of the ranges'.
    ///
    /// # Errors
    /// [`Error::Protocol`] when they do not fit.
    pub fn verify<R: BatchRange>(&self, ranges: &[R]) -> Result<(), Error> {
        if self.check_with(ranges) != self.check.get() {
            return Err(Error::Protocol("batch is damaged".into()));
        }
        if payload_of(ranges) != self.payload.get() {
            return Err(Error::Protocol(
                "batch has another length than its ranges".into(),
            ));
        }
        Ok(())
    }
}

fn payload_of<R: BatchRange>(ranges: &[R]) -> u64 {
    ranges.iter().map(R::payload).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_does_not_fit_its_encoding_is_refused() {
        for (encoding, fits) in [
            (Encoding::Zero, 0),
            (Encoding::Raw, 2 * PAGE_SIZE as u32),
            (Encoding::Filled, 2),
        ] {
            for payload in [0, 1, 2, 3, 4096, 8192, u32::MAX] {
                let range = PageRange {
                    payload: payload.into(),
                    ..PageRange::new(0, 2, encoding)
                };
                let read = range.encoding();
                assert_eq!(read.is_ok(), payload == fits, "{encoding:?}, {payload}");
            }
        }
    }
}
