//! An image that somebody else has opened, who says what the process of a VM cannot find out.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use block::image::{Format, Image};
use block::{Below, Error, ExclusiveOpen, RawImage, Reach};

use crate::config::DiskCache;

/// An image, open, and what is said of it.
pub(crate) struct OpenedImage {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) reach: Reach,
    /// The same file past the page cache, where its storage can do without.
    pub(crate) direct: Option<File>,
    pub(crate) lies: OpenedAs,
}

/// What kind of file it is.
pub(crate) enum OpenedAs {
    File,
    /// A block device.
    Device {
        /// Its exclusive open.
        exclusive: OwnedFd,
        /// What it shows, if it is a loop device.
        below: Option<Below>,
    },
}

impl OpenedImage {
    /// The image, to be used with or without the page cache, and its exclusive open.
    pub(super) fn image(self, cache: DiskCache) -> block::Result<(Image, Option<ExclusiveOpen>)> {
        let Self {
            file,
            path,
            format,
            reach,
            direct,
            lies,
        } = self;
        let not_direct = |why: &'static str| Error::NotDirect {
            path: path.clone(),
            source: io::Error::other(why),
        };
        let (image, exclusive) = match (lies, format) {
            (OpenedAs::File, format) => {
                let image = Image::from_opened(file, path.clone(), format, reach)?;
                (image, None)
            }
            (OpenedAs::Device { exclusive, below }, Format::Raw) => {
                let image = RawImage::device_from_opened(file, path.clone(), reach, below)?;
                let device = block::BlockDevice::identity(&image).device;
                let exclusive = ExclusiveOpen::from_passed(exclusive, device);
                let exclusive = exclusive.map_err(|source| Error::Open {
                    path: path.clone(),
                    source,
                })?;
                (image.into(), Some(exclusive))
            }
            (OpenedAs::Device { .. }, Format::Qcow2) => {
                return Err(Error::NotAnImage {
                    path,
                    kind: "block device, which takes no image of another format than raw",
                });
            }
        };
        match (&image, direct, cache) {
            (Image::Raw(image), Some(direct), _) => image.pass_direct(direct)?,
            (Image::Raw(_), None, DiskCache::None) => {
                return Err(not_direct("its storage does not do without"));
            }
            (Image::Qcow2(_), _, DiskCache::None) => return Err(not_direct("it is a qcow2 image")),
            (_, _, DiskCache::Writeback) => {}
        }
        Ok((image, exclusive))
    }
}
