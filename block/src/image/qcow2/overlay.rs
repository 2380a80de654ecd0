//! Images over one that is in use: a disk goes on in an overlay, and what lay below it stays as it is.
//!
//! Nothing is opened here: the files are open already, and whoever has the image below sees to it that nobody changes what
//! is read through the overlay.
//!
//! # Invariants
//! - An overlay is whole at any moment, with what its header names below it: another one is named by writing its name
//!   where nothing leads to yet, and then the first sector of the header, which a power cut leaves whole.
//! - What lies below is named only when all that the overlay shows of it is durable there. Its user sees to that.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use imago::ShallowMapping;

use super::chain::{self, Below, BelowClaim, refused};
use super::create::{self, BACKING_FORMAT, NewImage, Planned};
use super::disk::Qcow2Image;
use super::header::{BackingName, Header};
use super::refusal::Refusal;
use crate::image::Format;
use crate::{Access, BlockDevice, RawImage, Result};

/// The least clusters of an overlay, as a logarithm: its first one has room for two names of what is below.
pub const CLUSTER_BITS: u32 = create::DEFAULT_CLUSTER_BITS;
/// Where names of what is below are written, in turn.
const NAMES: [u64; 2] = [4 << 10, 8 << 10];
/// Longest name (QEMU's limit).
const MAX_NAME: usize = 1023;
/// What a disk writes whole.
const SECTOR: usize = 512;

/// An image that is open, to lie below an overlay.
#[derive(Debug, Clone)]
pub enum Lower {
    /// Raw.
    Raw(Arc<RawImage>),
    /// qcow2, with those below it.
    Qcow2(Arc<Qcow2Image>),
}

impl Lower {
    /// It, and those below it.
    fn opened(&self) -> Vec<Below> {
        let below = |file: &Arc<RawImage>, header: Option<&Header>| Below {
            file: file.clone(),
            header: header.cloned(),
            claim: BelowClaim::Elsewhere(OnceLock::new()),
        };
        match self {
            Self::Raw(file) => vec![below(file, None)],
            Self::Qcow2(image) => {
                let mut all = vec![below(image.file(), Some(image.header()))];
                let others = image.below().iter();
                all.extend(others.map(|other| below(&other.file, other.header.as_ref())));
                all
            }
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Raw(image) => image.size(),
            Self::Qcow2(image) => image.size(),
        }
    }
}

impl Qcow2Image {
    /// The overlay in `file` over `lower`, whatever it names below it; both are claimed by whoever has opened them. What is
    /// below has to be flushed, and to stay as it is where it is read through the overlay, from
    /// [`Qcow2Image::begin_use`] on.
    ///
    /// # Errors
    /// When it is no overlay, is damaged, or of another size.
    pub fn over_opened(file: Arc<RawImage>, lower: &Lower) -> Result<Self> {
        Self::over_below(file, Access::ReadWrite, |file, header| {
            if header.backing.is_none() || header.size != lower.size() {
                return Err(refused(file)(Refusal::Changed));
            }
            Ok(lower.opened())
        })
    }

    /// Claims what lies below as readers do: whoever had it for itself has let go of it.
    ///
    /// # Errors
    /// As [`RawImage::claim`].
    pub fn claim_what_is_below(&self) -> Result<()> {
        for below in self.below() {
            if let BelowClaim::Elsewhere(claim) = &below.claim {
                // One that is there already stays, and this one goes.
                let _ = claim.set(below.file.claim_as_reader()?);
            }
        }
        Ok(())
    }

    /// The ranges of the disk that lie in this image and not below it, in order, none next to another: whole clusters.
    ///
    /// # Errors
    /// When its tables cannot be read.
    pub fn own_ranges(&self) -> Result<Vec<Range<u64>>> {
        let used = self.used()?;
        let _shared = used.shared();
        let end = self.size();
        let mut own: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < end {
            let found = used.disk.get_shallow_mapping(at, end - at);
            let (mapping, len) = found.map_err(self.failed("map", at, end - at))?;
            let is_own = match mapping {
                ShallowMapping::Indirect { .. } | ShallowMapping::Eof { .. } => false,
                ShallowMapping::Zero { explicit, .. } => explicit,
                _ => true,
            };
            // Nothing is found only at the end of the disk.
            let to = if len == 0 { end } else { at + len };
            match own.last_mut() {
                Some(last) if is_own && last.end == at => last.end = to,
                _ if is_own => own.push(at..to),
                _ => {}
            }
            at = to;
        }
        Ok(own)
    }
}

/// The name of an image that is to lie below an overlay, written where nothing leads to yet.
#[derive(Debug)]
pub struct NewBelow {
    file: Arc<RawImage>,
    place: u64,
    len: u32,
    format: Format,
}

impl NewBelow {
    /// Writes the name of the image at `below` into the overlay in `file`, which may be in use; durable when this returns.
    ///
    /// # Errors
    /// When it is no overlay of this kind, the name is none that can be written, or it cannot be written.
    pub fn write(file: &Arc<RawImage>, below: &Path, format: Format) -> Result<Self> {
        let refused = refused(file);
        let name = below.to_str().filter(|name| name.len() <= MAX_NAME);
        let name =
            name.ok_or_else(|| refused(Refusal::BackingName(below.display().to_string())))?;
        // As it is read, and nothing that it would be taken for instead.
        let named = BackingName {
            name: name.to_owned(),
            format: Some(format.name().to_owned()),
        };
        chain::resolve(file.path(), &named).map_err(&refused)?;
        let header = chain::read_header(file)?;
        if header.cluster_bits < CLUSTER_BITS {
            return Err(refused(Refusal::Changed));
        }
        let sector = sector(file)?;
        let used = u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| sector[8 + byte]));
        let place = if used == NAMES[0] { NAMES[1] } else { NAMES[0] };
        write(file, name.as_bytes(), place)?;
        file.flush()?;
        Ok(Self {
            file: file.clone(),
            place,
            // At most as long as was checked.
            len: name.len() as u32,
            format,
        })
    }

    /// Has the overlay, which is flushed and not written meanwhile, lead to that name; durable when this returns. It is one
    /// image that lies below or the other, whatever fails.
    ///
    /// # Errors
    /// When it is no overlay of this kind, or cannot be written.
    pub fn lead(self) -> Result<()> {
        let Self {
            file,
            place,
            len,
            format,
        } = self;
        let mut sector = sector(&file)?;
        let format = format.name().as_bytes();
        sector[8..16].copy_from_slice(&place.to_be_bytes());
        sector[16..20].copy_from_slice(&len.to_be_bytes());
        let told = format.len() as u32;
        sector[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&told.to_be_bytes());
        let room = &mut sector[HEADER_LEN + 8..HEADER_LEN + 8 + FORMAT_ROOM];
        room.fill(0);
        room[..format.len()].copy_from_slice(format);
        write(&file, &sector, 0)?;
        file.flush()
    }
}

fn write(file: &RawImage, bytes: &[u8], at: u64) -> Result<()> {
    let len = bytes.len() as u64;
    file.change_at(at, len, || {
        let written = file.file().write_all_at(bytes, at);
        written.map_err(|e| file.io_error("write", at, len, e))
    })
}

/// The first sector of an overlay of this kind.
fn sector(file: &RawImage) -> Result<[u8; SECTOR]> {
    let mut sector = [0; SECTOR];
    let read = file.file().read_exact_at(&mut sector, 0);
    read.map_err(|e| file.io_error("read", 0, SECTOR as u64, e))?;
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| sector[at + byte]));
    let is_ours = word(100) as usize == HEADER_LEN
        && word(HEADER_LEN) == BACKING_FORMAT
        && word(HEADER_LEN + 4) as usize <= FORMAT_ROOM;
    if is_ours {
        Ok(sector)
    } else {
        Err(refused(file)(Refusal::Changed))
    }
}

/// Bytes of the fields of the header, behind which comes the format of what is below.
const HEADER_LEN: usize = create::HEADER;
/// Bytes that the name of a format has.
const FORMAT_ROOM: usize = 8;

/// Makes the overlay in `file`, which is in no chain, one of which nothing is written yet; durable when this returns.
///
/// # Errors
/// When it cannot be written: it is no image then.
pub fn reset(file: &RawImage, image: &NewImage) -> Result<()> {
    let new = Planned::of(file.path(), image)?;
    let failed = |e: io::Error| file.io_error("make", 0, 0, e);
    file.file().set_len(0).map_err(failed)?;
    new.begin(file.file()).map_err(failed)?;
    file.measure()?;
    new.finish(file)
}
