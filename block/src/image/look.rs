//! What an image is, for people and programs that do not use it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Format;
use super::qcow2::{self, BackingRules, Header};
use crate::{Access, BlockDevice, Content, Error, RawImage, Result};

/// What an image is.
#[derive(Debug)]
pub struct Look {
    /// Its format: as was said, or as it begins.
    pub format: Format,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes that it takes on its host.
    pub allocated: u64,
    /// The header, where it is qcow2.
    pub header: Option<Header>,
    /// The images below it, the next one first, as far as they could be looked at.
    pub below: Vec<(PathBuf, Format)>,
    /// Why the images below could not be looked at.
    pub below_refused: Option<Error>,
    /// Whether anybody uses it, as far as locks tell.
    pub is_in_use: bool,
}

/// Looks at an image, without a claim; where no format is said, by how it begins. Nothing may be made of that for a use
/// of the image: what a guest writes to a raw disk may look like qcow2. Those below it are opened within `rules`.
///
/// # Errors
/// When it cannot be opened or read, or is not of the format that was said.
pub fn look(path: &Path, format: Option<Format>, rules: &BackingRules) -> Result<Look> {
    let file = RawImage::open(path, Access::ReadOnly, Content::Container)?;
    let header = match format {
        Some(Format::Raw) => None,
        Some(Format::Qcow2) => Some(qcow2::chain::read_header(&file)?),
        None => match qcow2::chain::read_header(&file) {
            Ok(header) => Some(header),
            Err(Error::Qcow2 {
                why: qcow2::Refusal::NotQcow2,
                ..
            }) => None,
            Err(error) => return Err(error),
        },
    };
    let below = header.as_ref().map_or(Ok(Vec::new()), |header| {
        qcow2::chain::open(&file, header, rules)
    });
    let (below, below_refused) = match below {
        Ok(below) => (below, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let metadata = file.file().metadata();
    let allocated = metadata.map_or(0, |metadata| metadata.blocks() * 512);
    Ok(Look {
        format: header.as_ref().map_or(Format::Raw, |_| Format::Qcow2),
        size: header.as_ref().map_or(file.size(), |header| header.size),
        file_size: file.size(),
        allocated,
        header,
        below: below
            .iter()
            .map(|below| (below.path().to_owned(), below.format()))
            .collect(),
        below_refused,
        is_in_use: file.is_in_use()?,
    })
}
