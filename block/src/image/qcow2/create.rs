//! New images.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chain::{self, BackingRules};
use super::header::{BackingName, Header, MAGIC, Place};
use super::recount;
use super::refusal::Refusal;
use super::resize::check_size;
use crate::image::Format;
use crate::{Access, BlockDevice, Content, Error, RawImage, Result};

/// Sizes of clusters that are made, as logarithms.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 12..=21;
/// The usual one.
pub const DEFAULT_CLUSTER_BITS: u32 = 16;

/// Bytes of the fields of the header.
pub(super) const HEADER: usize = 112;
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a new image is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// Size of the disk in bytes, a multiple of [`crate::SECTOR_SIZE`].
    pub size: u64,
    /// Logarithm of the cluster size, in [`CLUSTER_BITS`].
    pub cluster_bits: u32,
    /// Path of the image below, as it is written into this one, and its format.
    pub backing: Option<(PathBuf, Format)>,
}

/// Makes a raw image of zeroes, which take no space.
///
/// # Errors
/// When there is something at `path` already, or it cannot be written.
pub fn create_raw(path: &Path, size: u64) -> Result<()> {
    check_size(path, size)?;
    new_file(path, |file| {
        file.set_len(size).and_then(|()| file.sync_all())
    })
}

/// Makes an image of which nothing is written yet.
///
/// # Errors
/// When there is something at `path` already, it cannot be written, or the image below cannot be used.
pub fn create(path: &Path, image: &NewImage) -> Result<()> {
    let new = Planned::of(path, image)?;
    if let Some(backing) = &new.header.backing {
        check_backing(path, backing)?;
    }
    make(path, &new)
}

/// As [`create`], of an image over one that is in use, and is not looked at therefore.
///
/// # Errors
/// When there is something at `path` already, or it cannot be written.
pub fn create_overlay(path: &Path, image: &NewImage) -> Result<()> {
    make(path, &Planned::of(path, image)?)
}

fn make(path: &Path, new: &Planned) -> Result<()> {
    new_file(path, |file| new.begin(file))?;
    let made = RawImage::open(path, Access::ReadWrite, Content::Container);
    let made = made.and_then(|file| new.finish(&file));
    made.inspect_err(|_| {
        // A part of an image is none.
        let _ = fs::remove_file(path);
    })
}

/// An image that is about to be written.
pub(super) struct Planned {
    header: Header,
    /// The header as it is written.
    bytes: Vec<u8>,
}

impl Planned {
    /// `image`, to be at `path`.
    pub(super) fn of(path: &Path, image: &NewImage) -> Result<Self> {
        check_size(path, image.size)?;
        let header = plan(path, image)?;
        let bytes = encode(&header).ok_or_else(|| Error::Qcow2 {
            path: path.to_owned(),
            why: Refusal::Damaged("the name of its backing file is too long".into()),
        })?;
        Ok(Self { header, bytes })
    }

    /// Writes all but the reference counts to a file that is empty.
    pub(super) fn begin(&self, file: &fs::File) -> io::Result<()> {
        let Self { header, bytes } = self;
        file.write_all_at(bytes, 0)?;
        file.set_len(header.l1.offset + header.l1.len.next_multiple_of(header.cluster()))
    }

    /// Writes the reference counts, and makes all of it durable.
    pub(super) fn finish(&self, file: &RawImage) -> Result<()> {
        let clusters = file.size() / self.header.cluster();
        recount::write_counts(file, &self.header, vec![1; clusters as usize])
    }
}

/// What the header will say, but for the refcount table, which is made last.
fn plan(path: &Path, image: &NewImage) -> Result<Header> {
    let cluster = 1_u64 << image.cluster_bits;
    let entries = image.size.div_ceil(cluster << (image.cluster_bits - 3));
    if entries * 8 > 32 << 20 {
        return Err(Error::Size {
            path: path.to_owned(),
            size: image.size,
            why: "clusters of this size cannot map so much",
        });
    }
    let not_text = |path: &Path| Error::Qcow2 {
        path: path.to_owned(),
        why: Refusal::BackingName(path.display().to_string()),
    };
    let backing = image.backing.as_ref().map(|(name, format)| {
        let name = name.to_str().ok_or_else(|| not_text(name))?.to_owned();
        Ok(BackingName {
            name,
            format: Some(format.name().to_owned()),
        })
    });
    Ok(Header {
        version: 3,
        cluster_bits: image.cluster_bits,
        size: image.size,
        l1: Place {
            offset: cluster,
            len: entries * 8,
        },
        refcount_table: Place::default(),
        refcount_order: 4,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        header_len: HEADER as u32,
        backing: backing.transpose()?,
        bitmaps: None,
        encryption: 0,
        compression: 0,
    })
}

/// The header as it is written; `None` when it does not fit into a cluster.
fn encode(header: &Header) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&header.version.to_be_bytes());
    // Where the name of the backing file is, once it is known.
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(&header.cluster_bits.to_be_bytes());
    bytes.extend_from_slice(&header.size.to_be_bytes());
    bytes.extend_from_slice(&header.encryption.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(header.l1.len / 8).ok()?.to_be_bytes());
    bytes.extend_from_slice(&header.l1.offset.to_be_bytes());
    // The refcount table, snapshots and feature bits: none.
    bytes.resize(96, 0);
    bytes.extend_from_slice(&header.refcount_order.to_be_bytes());
    bytes.extend_from_slice(&header.header_len.to_be_bytes());
    bytes.resize(HEADER, 0);
    if let Some(BackingName { name, format }) = &header.backing {
        let format = format.as_deref()?;
        bytes.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(format.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(format.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
        let offset = bytes.len() as u64;
        let len = u32::try_from(name.len()).ok().filter(|&len| len <= 1023)?;
        bytes[8..16].copy_from_slice(&offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
    } else {
        bytes.resize(bytes.len() + 8, 0);
    }
    (bytes.len() as u64 <= header.cluster()).then_some(bytes)
}

/// Whether the image below can be used; its folder is as good as its user says.
fn check_backing(path: &Path, backing: &BackingName) -> Result<()> {
    let refused = |why| Error::Qcow2 {
        path: path.to_owned(),
        why,
    };
    let (below, format) = chain::resolve(path, backing).map_err(refused)?;
    let rules = BackingRules {
        permitted: below.parent().map(Path::to_owned).into_iter().collect(),
    };
    match format {
        Format::Raw => RawImage::open(&below, Access::ReadOnly, Content::Container).map(drop),
        Format::Qcow2 => super::Qcow2Image::open(&below, Access::ReadOnly, &rules).map(drop),
    }
}

/// Makes a file that was not there, and fills it; it is gone again when that fails.
fn new_file(path: &Path, fill: impl FnOnce(&fs::File) -> io::Result<()>) -> Result<()> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists {
            path: path.to_owned(),
        },
        _ => Error::Open {
            path: path.to_owned(),
            source,
        },
    };
    let new = OpenOptions::new().write(true).create_new(true).open(path);
    let file = new.map_err(failed)?;
    fill(&file).map_err(failed).inspect_err(|_| {
        // A part of an image is none.
        let _ = fs::remove_file(path);
    })
}
