//! Ranges of a disk's blocks in a batch on a data connection; the batch's header is that of [`super::batch`].

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::Error;

/// Bytes in a sector, in which ranges of a disk are counted.
pub const SECTOR: u64 = 512;

/// How the sectors of a range travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockEncoding {
    /// They read as zeroes, and need no storage; no payload.
    Zero,
    /// As they are.
    Raw,
    /// They are there; no payload.
    Present,
}

const ZERO: u16 = 0;
const RAW: u16 = 1;
const PRESENT: u16 = 5;

/// A run of sectors of a disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct BlockRange {
    offset: U64,
    sectors: U32,
    encoding: U16,
    volume: U16,
    payload: U32,
    reserved: U32,
}

/// Length of a range of blocks.
pub const BLOCK_RANGE_LEN: usize = size_of::<BlockRange>();

impl BlockRange {
    /// The bytes `range` of disk `volume`, both ends on a sector's boundary, less than 2 MiB.
    pub fn new(volume: u16, range: Range<u64>, encoding: BlockEncoding) -> Self {
        let len = range.end - range.start;
        let (encoding, payload) = match encoding {
            BlockEncoding::Zero => (ZERO, 0),
            BlockEncoding::Raw => (RAW, len as u32),
            BlockEncoding::Present => (PRESENT, 0),
        };
        Self {
            offset: range.start.into(),
            sectors: ((len / SECTOR) as u32).into(),
            encoding: encoding.into(),
            volume: volume.into(),
            payload: payload.into(),
            reserved: 0.into(),
        }
    }

    /// Which disk, in the order in which they were negotiated, from 0.
    pub fn volume(&self) -> u16 {
        self.volume.get()
    }

    /// Which bytes of it; `None` when there are none or they lie beyond any disk.
    pub fn bytes(&self) -> Option<Range<u64>> {
        let start = self.offset.get();
        let end = start.checked_add(u64::from(self.sectors.get()) * SECTOR)?;
        let is_aligned = start.is_multiple_of(SECTOR);
        (is_aligned && end > start).then_some(start..end)
    }

    /// Bytes of payload.
    pub fn payload(&self) -> u64 {
        u64::from(self.payload.get())
    }

    /// How they travel.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the encoding is unknown or the payload does not fit it.
    pub fn encoding(&self) -> Result<BlockEncoding, Error> {
        let (encoding, payload) = match self.encoding.get() {
            ZERO => (BlockEncoding::Zero, 0),
            PRESENT => (BlockEncoding::Present, 0),
            RAW => (BlockEncoding::Raw, u64::from(self.sectors.get()) * SECTOR),
            other => {
                return Err(Error::Protocol(format!(
                    "blocks in unknown encoding {other}"
                )));
            }
        };
        if self.payload() != payload {
            return Err(Error::Protocol(format!(
                "blocks at {:#x} have a payload of {} bytes, expected {payload}",
                self.offset.get(),
                self.payload()
            )));
        }
        Ok(encoding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_which_bytes_it_is_of() {
        let range = BlockRange::new(3, 1024..4096, BlockEncoding::Raw);
        assert_eq!(range.volume(), 3);
        assert_eq!(range.bytes(), Some(1024..4096));
        assert_eq!(range.payload(), 3072);
        assert_eq!(range.encoding().unwrap(), BlockEncoding::Raw);
        let zero = BlockRange::new(0, 0..512, BlockEncoding::Zero);
        assert_eq!(zero.payload(), 0);
        assert_eq!(zero.encoding().unwrap(), BlockEncoding::Zero);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let good = BlockRange::new(0, 512..1024, BlockEncoding::Raw);
        let bytes = |offset: u64, sectors: u32| {
            BlockRange {
                offset: offset.into(),
                sectors: sectors.into(),
                ..good
            }
            .bytes()
        };
        assert_eq!(bytes(512, 0), None);
        assert_eq!(bytes(513, 1), None);
        assert_eq!(bytes(u64::MAX - 511, 1), None);
        for (encoding, payload) in [
            (ZERO, 512),
            (RAW, 0),
            (RAW, 1024),
            (PRESENT, 512),
            (2, 512),
            (u16::MAX, 0),
        ] {
            let range = BlockRange {
                encoding: encoding.into(),
                payload: payload.into(),
                ..good
            };
            range.encoding().unwrap_err();
        }
    }
}
