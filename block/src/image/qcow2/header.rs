//! The header of a qcow2 image, read without trust.
//!
//! The format is told in QEMU's `docs/interop/qcow2.txt`; numbers are big-endian.

use super::refusal::{Feature, Refusal};
use crate::SECTOR_SIZE;

/// How an image begins.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes from the beginning of the file in which the header has to lie, with its extensions and the name of
/// the backing file.
pub const MAX_HEADER: usize = 64 << 10;
/// Bytes of the header of version 2.
pub(crate) const V2_LEN: usize = 72;
/// Least bytes of the header of version 3.
const V3_LEN: usize = 104;
/// Place of the incompatible features.
pub(crate) const INCOMPATIBLE: u64 = 72;
/// The bit of the incompatible features that says that reference counts may be wrong.
pub const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// The bit of the autoclear features that says that the bitmaps are up to date.
pub const BITMAPS: u64 = 1 << 0;

/// Largest L1 table in entries, and refcount table in bytes: QEMU's own limits.
const MAX_L1: u32 = (32 << 20) / 8;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Longest name of a backing file.
const MAX_NAME: u32 = 1023;
/// Most internal snapshots (QEMU's limit).
const MAX_SNAPSHOTS: u32 = 65_536;
/// Largest size of a disk: what L1 and L2 tables can map.
const MAX_SIZE: u64 = 1 << 56;

mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
}

/// A stretch of the file that holds a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// First byte, a multiple of the cluster size.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The image below, as the header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// Path, as it is written.
    pub name: String,
    /// Its format, if it is given.
    pub format: Option<String>,
}

/// Bitmaps that QEMU keeps in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitmaps {
    /// How many.
    pub count: u32,
    /// Where they are listed.
    pub directory: Place,
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Logarithm of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Size of the disk in bytes, a multiple of [`SECTOR_SIZE`], not 0.
    pub size: u64,
    /// The L1 table, whole entries of 8 bytes; it covers the disk.
    pub l1: Place,
    /// The refcount table, whole clusters.
    pub refcount_table: Place,
    /// Logarithm of the bits of a refcount, 0 to 6.
    pub refcount_order: u32,
    /// Internal snapshots, and where they are listed.
    pub snapshots: u32,
    /// First byte of the list of snapshots.
    pub snapshots_offset: u64,
    /// Bits without which the image cannot be read.
    pub incompatible: u64,
    /// Bits that may be ignored.
    pub compatible: u64,
    /// Bits that are cleared by whoever writes without knowing them.
    pub autoclear: u64,
    /// Bytes of the header's fields.
    pub header_len: u32,
    /// The image below.
    pub backing: Option<BackingName>,
    /// Bitmaps of QEMU's.
    pub bitmaps: Option<Bitmaps>,
    /// Whether the data is encrypted, by which method.
    pub encryption: u32,
    /// How compressed clusters are compressed: 0 for deflate.
    pub compression: u8,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The header ends before a field of it.
fn short() -> Refusal {
    Refusal::Damaged("its header is cut off".into())
}

impl Header {
    /// Reads a header from the beginning of a file, of which at most [`MAX_HEADER`] bytes are looked at.
    ///
    /// # Errors
    /// When it is no qcow2 image, or one that breaks the format's rules or this reader's limits. What
    /// cannot be used, but is well-formed, is left to [`Header::check_readable`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let bytes = &bytes[..bytes.len().min(MAX_HEADER)];
        if !bytes.starts_with(&MAGIC) {
            return Err(Refusal::NotQcow2);
        }
        let word = |at| u32_at(bytes, at).ok_or_else(short);
        let long = |at| u64_at(bytes, at).ok_or_else(short);
        let version = word(4)?;
        if !(2..=3).contains(&version) {
            return Err(Refusal::Version(version));
        }
        let cluster_bits = word(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(format!(
                "clusters of 2^{cluster_bits} bytes are not 512 bytes to 2 MiB"
            )));
        }
        let cluster = 1_u64 << cluster_bits;
        let size = long(24)?;
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) || size > MAX_SIZE {
            return Err(damaged(format!(
                "a disk of {size} bytes is not a positive multiple of 512 that can be mapped"
            )));
        }
        let l1_entries = word(36)?;
        // An L2 table of 8-byte entries maps so much.
        let needed = size.div_ceil(cluster << (cluster_bits - 3));
        if l1_entries > MAX_L1 || u64::from(l1_entries) < needed {
            return Err(damaged(format!(
                "an L1 table of {l1_entries} entries for {needed} that are needed, of at most {MAX_L1}"
            )));
        }
        let l1 = place("L1 table", long(40)?, u64::from(l1_entries) * 8, cluster)?;
        let refcount_clusters = word(56)?;
        let refcount_len = u64::from(refcount_clusters) << cluster_bits;
        if refcount_clusters == 0 || refcount_len > MAX_REFCOUNT_TABLE.max(cluster) {
            return Err(damaged(format!(
                "a refcount table of {refcount_clusters} clusters"
            )));
        }
        let refcount_table = place("refcount table", long(48)?, refcount_len, cluster)?;
        let snapshots = word(60)?;
        let snapshots_offset = long(64)?;
        if snapshots > MAX_SNAPSHOTS || (snapshots > 0 && !snapshots_offset.is_multiple_of(cluster))
        {
            return Err(damaged(format!(
                "{snapshots} snapshots at {snapshots_offset}"
            )));
        }
        let mut header = Self {
            version,
            cluster_bits,
            size,
            l1,
            refcount_table,
            refcount_order: 4,
            snapshots,
            snapshots_offset,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            header_len: V2_LEN as u32,
            backing: None,
            bitmaps: None,
            encryption: word(32)?,
            compression: 0,
        };
        if version == 3 {
            header.read_version_3(bytes)?;
        }
        header.read_extensions(bytes)?;
        header.read_backing(bytes)?;
        Ok(header)
    }

    fn read_version_3(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let word = |at| u32_at(bytes, at).ok_or_else(short);
        let long = |at| u64_at(bytes, at).ok_or_else(short);
        self.incompatible = long(INCOMPATIBLE as usize)?;
        self.compatible = long(80)?;
        self.autoclear = long(88)?;
        self.refcount_order = word(96)?;
        self.header_len = word(100)?;
        if self.refcount_order > 6 {
            let order = self.refcount_order;
            return Err(damaged(format!("refcounts of 2^{order} bits")));
        }
        let len = self.header_len as usize;
        if len < V3_LEN
            || !len.is_multiple_of(8)
            || len > bytes.len()
            || len as u64 > self.cluster()
        {
            return Err(damaged(format!("a header of {len} bytes")));
        }
        if len > V3_LEN {
            self.compression = bytes[V3_LEN];
        }
        Ok(())
    }

    fn read_extensions(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let end = bytes.len().min(1 << self.cluster_bits);
        let mut at = self.header_len as usize;
        let mut format = None;
        // A header of version 2 may end without any.
        while at + 8 <= end {
            let kind = u32_at(bytes, at).ok_or_else(short)?;
            let len = u32_at(bytes, at + 4).ok_or_else(short)? as usize;
            at += 8;
            if kind == extension::END {
                break;
            }
            let data = at
                .checked_add(len)
                .filter(|&to| to <= end)
                .map(|to| &bytes[at..to])
                .ok_or_else(|| damaged(format!("a header extension of {len} bytes")))?;
            match kind {
                extension::BACKING_FORMAT => {
                    let name = str::from_utf8(data)
                        .map_err(|_| damaged("the backing file's format is no text".into()))?;
                    if format.replace(name.to_owned()).is_some() {
                        return Err(damaged("two formats of the backing file".into()));
                    }
                }
                extension::FEATURE_NAMES if !len.is_multiple_of(48) => {
                    return Err(damaged("names of features that end in the middle".into()));
                }
                extension::BITMAPS => self.read_bitmaps(data)?,
                _ => {}
            }
            at += len.next_multiple_of(8);
        }
        self.backing = format.map(|format| BackingName {
            name: String::new(),
            format: Some(format),
        });
        Ok(())
    }

    fn read_bitmaps(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let count = u32_at(data, 0).ok_or_else(short)?;
        let len = u64_at(data, 8).ok_or_else(short)?;
        let offset = u64_at(data, 16).ok_or_else(short)?;
        let directory = place("list of bitmaps", offset, len, self.cluster())?;
        self.bitmaps = Some(Bitmaps { count, directory });
        Ok(())
    }

    fn read_backing(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let format = self.backing.take().and_then(|backing| backing.format);
        let offset = u64_at(bytes, 8).ok_or_else(short)?;
        let len = u32_at(bytes, 16).ok_or_else(short)?;
        if offset == 0 {
            return Ok(());
        }
        let name = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(len).ok())
            .and_then(|(offset, len)| bytes.get(offset..offset.checked_add(len)?))
            .filter(|name| {
                (1..=MAX_NAME).contains(&len) && offset + name.len() as u64 <= self.cluster()
            })
            .and_then(|name| str::from_utf8(name).ok())
            .ok_or_else(|| {
                damaged(format!(
                    "the name of its backing file ({len} bytes at {offset})"
                ))
            })?;
        self.backing = Some(BackingName {
            name: name.to_owned(),
            format,
        });
        Ok(())
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether its reference counts may be wrong.
    pub fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// The features that the image says a reader must know.
    pub fn features(&self) -> Vec<Feature> {
        Feature::of(self.incompatible)
    }

    /// Refuses, by name, what cannot be read.
    ///
    /// # Errors
    /// What the image has, with the command that helps.
    pub fn check_readable(&self) -> Result<(), Refusal> {
        match self.encryption {
            0 => {}
            _ => return Err(Refusal::Encrypted),
        }
        if self.incompatible & CORRUPT != 0 {
            return Err(Refusal::Corrupt);
        }
        if self.incompatible & DATA_FILE != 0 {
            return Err(Refusal::DataFile);
        }
        if self.compression != 0 || self.incompatible & COMPRESSION != 0 {
            return Err(Refusal::Compression(self.compression));
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return Err(Refusal::ExtendedL2);
        }
        let unknown = self.incompatible & !DIRTY;
        if unknown != 0 {
            return Err(Refusal::Unknown(unknown));
        }
        Ok(())
    }

    /// Refuses, by name, what cannot be checked: where references are not all told by the tables.
    ///
    /// # Errors
    /// As [`Header::check_readable`].
    pub fn check_checkable(&self) -> Result<(), Refusal> {
        let known = Self {
            incompatible: self.incompatible & !(CORRUPT | COMPRESSION),
            compression: 0,
            ..self.clone()
        };
        known.check_readable()
    }

    /// Refuses, by name, what cannot be written without damage.
    ///
    /// # Errors
    /// As [`Header::check_readable`].
    pub fn check_writable(&self) -> Result<(), Refusal> {
        self.check_readable()?;
        if self.version == 2 {
            return Err(Refusal::Version2);
        }
        if self.bitmaps.is_some() || self.autoclear & BITMAPS != 0 {
            return Err(Refusal::Bitmaps);
        }
        if self.autoclear != 0 {
            return Err(Refusal::Autoclear(self.autoclear));
        }
        if self.snapshots > 0 {
            return Err(Refusal::Snapshots(self.snapshots));
        }
        Ok(())
    }

    /// Whether another reading of the same image found what cannot change while a guest uses it.
    pub fn is_same_disk(&self, other: &Self) -> bool {
        self.is_same_overlay(other) && self.backing == other.backing
    }

    /// As [`Header::is_same_disk`], of an overlay that may have got another image below it.
    pub(super) fn is_same_overlay(&self, other: &Self) -> bool {
        (self.version, self.cluster_bits, self.size)
            == (other.version, other.cluster_bits, other.size)
    }
}

fn damaged(what: String) -> Refusal {
    Refusal::Damaged(what)
}

fn place(what: &str, offset: u64, len: u64, cluster: u64) -> Result<Place, Refusal> {
    let end = offset.checked_add(len).filter(|&end| end < MAX_SIZE);
    if !offset.is_multiple_of(cluster) || offset < cluster || end.is_none() {
        return Err(damaged(format!("its {what}, {len} bytes at {offset}")));
    }
    Ok(Place { offset, len })
}
