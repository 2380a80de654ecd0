//! How a raw image is opened, here or by somebody else.

use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::{Content, ImageKind, RawImage, Reach};
use crate::access::Access;
use crate::image::direct::Direct;
use crate::image::open::{self, Caching};
use crate::image::place::{self, Below};
use crate::image::samples::LastWrites;
use crate::image::unflushed::Unflushed;
use crate::{Error, Identity, Result, SECTOR_SIZE};

/// What has to be looked up about where an image lies.
struct Surroundings {
    below: Option<Below>,
    is_local: bool,
    uncached: Option<Direct>,
}

impl Surroundings {
    fn look(file: &File, path: &Path, metadata: &Metadata, access: Access) -> Self {
        let below = place::below(file, metadata, access);
        // A device is as far away as what is below it, as far as that is known.
        let lowest = match &below {
            Some(below) => Some(&below.file),
            None if metadata.file_type().is_block_device() => None,
            None => Some(file),
        };
        Self {
            is_local: lowest.is_some_and(place::is_local),
            below,
            uncached: Direct::open(file, path, Access::ReadOnly).ok(),
        }
    }
}

impl RawImage {
    /// Opens an image and takes its size; takes no claim on it.
    ///
    /// # Errors
    /// When it cannot be opened so, is no image, or does not look like a raw one.
    pub fn open(path: impl AsRef<Path>, access: Access, content: Content) -> Result<Self> {
        Self::open_with(path.as_ref(), access, content, Caching::On)
    }

    /// Opens an image, known to be raw, that another process still writes, perhaps on another host. Until
    /// [`RawImage::begin_use`], nothing that is read of it stays in the page cache of this host, and reads
    /// have to be aligned to blocks of the storage, in memory and in the image.
    ///
    /// # Errors
    /// As [`RawImage::open`].
    pub fn open_beside_owner(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        Self::open_with(path.as_ref(), access, Content::Raw, Caching::Off)
    }

    /// As [`RawImage::open_beside_owner`], of a container.
    ///
    /// # Errors
    /// As [`RawImage::open`].
    pub(crate) fn open_container_beside_owner(path: &Path, access: Access) -> Result<Self> {
        Self::open_with(path, access, Content::Container, Caching::Off)
    }

    fn open_with(path: &Path, access: Access, content: Content, caching: Caching) -> Result<Self> {
        let path = path.to_owned();
        let file = match open::file(&path, access, caching) {
            Ok(file) => file,
            Err(source) => return Err(open::error(path, access, source)),
        };
        Self::over(file, path, access, content, Surroundings::look)
    }

    /// An image that somebody else has opened for `access`, who says that it lies at `path` and who can reach it: whoever
    /// may open nothing cannot find that out either.
    ///
    /// # Errors
    /// As [`RawImage::open`]; [`Error::NotAnImage`] for a block device, of which more would have to be known.
    pub fn from_opened(
        file: File,
        path: PathBuf,
        access: Access,
        content: Content,
        reach: Reach,
    ) -> Result<Self> {
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Open { path, source }),
        };
        if !metadata.is_file() {
            return Err(Error::NotAnImage {
                path,
                kind: "block device or something else",
            });
        }
        Self::as_told(file, path, (access, content), reach, None)
    }

    /// As [`RawImage::from_opened`], of a raw block device, to be read and written; `below` is what that shows, if it is a
    /// loop device and they can tell.
    ///
    /// # Errors
    /// As there; [`Error::NotAnImage`] for what is no block device.
    pub fn device_from_opened(
        file: File,
        path: PathBuf,
        reach: Reach,
        below: Option<Below>,
    ) -> Result<Self> {
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Open { path, source }),
        };
        if !metadata.file_type().is_block_device() {
            return Err(Error::NotAnImage {
                path,
                kind: "file, or something else that is no block device",
            });
        }
        Self::as_told(file, path, (Access::ReadWrite, Content::Raw), reach, below)
    }

    fn as_told(
        file: File,
        path: PathBuf,
        (access, content): (Access, Content),
        reach: Reach,
        below: Option<Below>,
    ) -> Result<Self> {
        let told = |_: &File, _: &Path, _: &Metadata, _| Surroundings {
            below,
            is_local: reach == Reach::ThisHost,
            uncached: None,
        };
        Self::over(file, path, access, content, told)
    }

    fn over(
        file: File,
        path: PathBuf,
        access: Access,
        content: Content,
        look: impl FnOnce(&File, &Path, &Metadata, Access) -> Surroundings,
    ) -> Result<Self> {
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Open { path, source }),
        };
        open::check_kind(&path, &metadata)?;
        // Seeking to the end gives the size of block special files too.
        let size = match (&file).seek(SeekFrom::End(0)) {
            Ok(size) => size,
            Err(source) => return Err(Error::Open { path, source }),
        };
        if size == 0 {
            return Err(Error::Empty { path });
        }
        if content == Content::Guess
            && let Some(format) = open::foreign_format(&file, size)
        {
            return Err(Error::ForeignFormat { path, format });
        }
        if content != Content::Container && !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::Unaligned { path, size });
        }
        let kind = if metadata.file_type().is_block_device() {
            ImageKind::BlockDevice
        } else {
            ImageKind::File
        };
        let Surroundings {
            below,
            is_local,
            uncached,
        } = look(&file, &path, &metadata, access);
        let (device, inode) = place::place(&metadata);
        let identity = Identity {
            name: path.display().to_string(),
            device,
            inode,
            below: below
                .as_ref()
                .and_then(|below| below.file.metadata().ok())
                .map(|metadata| place::place(&metadata)),
            is_local,
        };
        Ok(Self {
            file,
            uncached,
            path,
            size: AtomicU64::new(size),
            access,
            kind,
            identity,
            below,
            last_writes: LastWrites::none(),
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
            unflushed: Unflushed::default(),
            direct: OnceLock::new(),
        })
    }
}
