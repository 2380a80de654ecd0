//! An image in the format that its user says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Format;
use super::qcow2::overlay::Lower;
use super::qcow2::{self, BackingRules, Qcow2Image, Refusal};
use crate::{Access, BlockDevice, Claim, Content, Error, ExclusiveOpen, RawImage, Reach, Result};

/// An image of a guest's disk.
#[derive(Debug, Clone)]
pub enum Image {
    /// Its bytes are those of the disk.
    Raw(Arc<RawImage>),
    /// A qcow2 image with those below it.
    Qcow2(Arc<Qcow2Image>),
}

impl Image {
    /// Opens an image; takes no claim on it. `content` says what is known of a raw one.
    ///
    /// # Errors
    /// When it cannot be opened so, or is refused.
    pub fn open(
        path: &Path,
        access: Access,
        format: Format,
        content: Content,
        rules: &BackingRules,
    ) -> Result<Self> {
        match format {
            Format::Raw => RawImage::open(path, access, content).map(Self::from),
            Format::Qcow2 => Qcow2Image::open(path, access, rules).map(Self::from),
        }
    }

    /// Opens an image that another process still writes, perhaps on another host: see
    /// [`RawImage::open_beside_owner`] and [`Qcow2Image::open_beside_owner`].
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_beside_owner(
        path: &Path,
        access: Access,
        format: Format,
        rules: &BackingRules,
    ) -> Result<Self> {
        match format {
            Format::Raw => RawImage::open_beside_owner(path, access).map(Self::from),
            Format::Qcow2 => Qcow2Image::open_beside_owner(path, access, rules).map(Self::from),
        }
    }

    /// An image that has no other below it, and of which somebody else has opened the file: see
    /// [`RawImage::from_opened`].
    ///
    /// # Errors
    /// As there, and [`Error::Qcow2`] where there is one below it: that would have to be opened.
    pub fn from_opened(file: File, path: PathBuf, format: Format, reach: Reach) -> Result<Self> {
        let access = Access::ReadWrite;
        match format {
            Format::Raw => {
                RawImage::from_opened(file, path, access, Content::Raw, reach).map(Self::from)
            }
            Format::Qcow2 => {
                let file = RawImage::from_opened(file, path, access, Content::Container, reach)?;
                if qcow2::chain::read_header(&file)?.backing.is_some() {
                    return Err(Error::Qcow2 {
                        path: file.path().to_owned(),
                        why: Refusal::HasBacking,
                    });
                }
                Qcow2Image::from_opened(file, access, &BackingRules::default()).map(Self::from)
            }
        }
    }

    /// The image, to lie below an overlay.
    pub fn lower(&self) -> Lower {
        match self {
            Self::Raw(image) => Lower::Raw(image.clone()),
            Self::Qcow2(image) => Lower::Qcow2(image.clone()),
        }
    }

    /// Logarithm of the size of its clusters, where it has any.
    pub fn cluster_bits(&self) -> Option<u32> {
        match self {
            Self::Raw(_) => None,
            Self::Qcow2(image) => Some(image.header().cluster_bits),
        }
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) => Format::Raw,
            Self::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The disk.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Raw(image) => image.clone(),
            Self::Qcow2(image) => image.clone(),
        }
    }

    /// The file whose bytes stand for the image: by it, two who have it open tell whether they have the same.
    pub fn file(&self) -> &Arc<RawImage> {
        match self {
            Self::Raw(image) => image,
            Self::Qcow2(image) => image.file(),
        }
    }

    /// Claims it: see [`RawImage::claim`].
    ///
    /// # Errors
    /// As there.
    pub fn claim(&self) -> Result<Claim> {
        match self {
            Self::Raw(image) => image.claim(),
            Self::Qcow2(image) => image.claim(),
        }
    }

    /// Claims it as a successor: see [`RawImage::claim_as_successor`].
    ///
    /// # Errors
    /// As there.
    pub fn claim_as_successor(&self) -> Result<Claim> {
        match self {
            Self::Raw(image) => image.claim_as_successor(),
            Self::Qcow2(image) => image.claim_as_successor(),
        }
    }

    /// Opens a block device exclusively: see [`RawImage::open_exclusively`].
    ///
    /// # Errors
    /// As there.
    pub fn open_exclusively(&self) -> Result<Option<ExclusiveOpen>> {
        self.file().open_exclusively()
    }

    /// Makes it ready for requests, for who has claimed it as its owner, or has taken it over and now becomes its owner.
    ///
    /// # Errors
    /// As [`RawImage::begin_use`] and [`Qcow2Image::begin_use`]; of what was taken over nothing is read any more.
    pub fn begin_use(&self) -> Result<()> {
        match self {
            Self::Raw(image) => image.begin_use(),
            Self::Qcow2(image) => image.begin_use(),
        }
    }

    /// Reads what is needed of an image that its owner has closed, for a successor who may still give it up: changes
    /// nothing.
    ///
    /// # Errors
    /// As [`Qcow2Image::take_over`].
    pub fn take_over(&self) -> Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(image) => image.take_over(),
        }
    }
}

impl From<RawImage> for Image {
    fn from(image: RawImage) -> Self {
        Self::Raw(Arc::new(image))
    }
}

impl From<Qcow2Image> for Image {
    fn from(image: Qcow2Image) -> Self {
        Self::Qcow2(Arc::new(image))
    }
}
