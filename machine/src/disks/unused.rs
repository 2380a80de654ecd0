//! Images that nobody uses, and that go: removed under a claim, so that nobody begins to use one meanwhile.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block::{Access, BlockDevice, Claim, Content, RawImage};
use migration::journal::Journal;

use crate::disks::marks;

/// An image that nobody else uses, or can begin to.
pub(super) struct Unused {
    pub(super) image: RawImage,
    _claim: Claim,
}

impl Unused {
    pub(super) fn open(path: &Path) -> block::Result<Self> {
        let image = RawImage::open(path, Access::ReadWrite, Content::Container)?;
        let claim = image.claim()?;
        Ok(Self {
            image,
            _claim: claim,
        })
    }

    pub(super) fn is(&self, file: FileId) -> bool {
        FileId::of_image(&self.image) == file
    }

    /// Removes it, if its name still leads to it.
    pub(super) fn remove(self, path: &Path) -> io::Result<()> {
        match self.is(FileId::of(path)?) {
            true => fs::remove_file(path),
            false => Err(io::Error::other("another file has its name by now")),
        }
    }
}

/// What is at `path`, if it was made for a guest that did not come, as `journal` says, and whoever made it has ended.
pub(super) fn left_over(path: &Path, journal: &dyn Journal) -> io::Result<Unused> {
    let found = Unused::open(path).map_err(io::Error::other)?;
    match marks::is_abandoned(&found.image, journal) {
        true => Ok(found),
        false => Err(io::Error::other("it is somebody's image")),
    }
}

/// Device and inode number of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self(found.dev(), found.ino()))
    }
    pub(super) fn of_image(image: &RawImage) -> Self {
        let found = image.identity();
        Self(found.device, found.inode)
    }
}

/// Bytes that are free in a folder.
pub(super) fn room_in(folder: &Path) -> io::Result<u64> {
    let room = rustix::fs::fstatvfs(File::open(folder)?)?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}
