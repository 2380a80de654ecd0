//! Entries of the tables.

/// Bits of an offset in entries of L1 and L2 tables.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// What an entry points to is referenced nowhere else.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bits that no entry of an L1 table has set.
const L1_RESERVED: u64 = !(OFFSET | COPIED);
const L2_RESERVED: u64 = !(OFFSET | COPIED | COMPRESSED | ZERO);
/// Unit in which the length of compressed data is told.
const COMPRESSED_UNIT: u64 = 512;

/// Where an L2 table lies.
pub(super) const fn l2_table(l1_entry: u64) -> u64 {
    l1_entry & OFFSET
}

/// Whether an entry of the L1 table is as it may be, but for where it points to.
pub(super) const fn is_l1(entry: u64) -> bool {
    entry & L1_RESERVED == 0
}

/// What an entry of an L2 table says of a cluster of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapped {
    /// It lies in no cluster of this file.
    Nowhere,
    /// In a cluster at this offset.
    At(u64),
    /// Compressed, in so many bytes from this offset on.
    Compressed { offset: u64, len: u64 },
    /// The entry has bits that none may have.
    Invalid,
}

impl Mapped {
    pub(super) const fn of(entry: u64, cluster_bits: u32) -> Self {
        if entry & COMPRESSED != 0 {
            let shift = 62 - (cluster_bits - 8);
            let offset = entry & ((1 << shift) - 1);
            let units = (entry & !(COMPRESSED | COPIED)) >> shift;
            let len = (units + 1) * COMPRESSED_UNIT - (offset % COMPRESSED_UNIT);
            return Self::Compressed { offset, len };
        }
        if entry & L2_RESERVED != 0 {
            return Self::Invalid;
        }
        match entry & OFFSET {
            0 => Self::Nowhere,
            offset => Self::At(offset),
        }
    }
}

/// Bytes as entries of 8.
pub(super) fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (whole, _) = bytes.as_chunks::<8>();
    whole.iter().map(|bytes| u64::from_be_bytes(*bytes))
}
