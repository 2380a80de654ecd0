//! Images of another size.

use std::path::Path;

use imago::format::PreallocateMode;

use super::Qcow2Image;
use super::chain::BackingRules;
use crate::{
    Access, BlockDevice, Content, Error, ImageKind, RawImage, Result, SECTOR_SIZE, ZeroMode,
};

/// Whether a disk may lose its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shrink {
    /// It may.
    Allowed,
    /// It keeps what it has.
    Refused,
}

/// Whether a disk can have this size at all.
///
/// # Errors
/// [`Error::Size`] when it cannot.
pub(super) fn check_size(path: &Path, size: u64) -> Result<()> {
    if size > 0 && size.is_multiple_of(SECTOR_SIZE) && size < 1 << 56 {
        return Ok(());
    }
    Err(refused(path, size, "a size is a positive multiple of 512"))
}

fn refused(path: &Path, size: u64, why: &'static str) -> Error {
    Error::Size {
        path: path.to_owned(),
        size,
        why,
    }
}

fn check_shrink(path: &Path, from: u64, to: u64, shrink: Shrink) -> Result<()> {
    match shrink {
        Shrink::Refused if to < from => {
            Err(refused(path, to, "it is larger, and its end would be lost"))
        }
        _ => Ok(()),
    }
}

/// Gives a raw file another size; what is added reads as zeroes.
///
/// # Errors
/// When it is in use, or would lose its end against `shrink`; or is a block device.
pub fn resize_raw(path: &Path, size: u64, shrink: Shrink, content: Content) -> Result<()> {
    check_size(path, size)?;
    let image = RawImage::open(path, Access::ReadWrite, content)?;
    let claim = image.claim()?;
    if image.kind() == ImageKind::BlockDevice {
        return Err(refused(path, size, "it is a block device"));
    }
    check_shrink(path, image.size(), size, shrink)?;
    let file = image.file();
    let resized = file.set_len(size).and_then(|()| file.sync_all());
    drop(claim);
    resized.map_err(|e| image.io_error("resize", 0, size, e))
}

/// Gives a qcow2 image another size; what is added reads as zeroes, whatever lies below.
///
/// # Errors
/// When it or what is below it is in use, cannot be used, or it would lose its end against `shrink`.
pub fn resize(path: &Path, size: u64, shrink: Shrink, rules: &BackingRules) -> Result<()> {
    check_size(path, size)?;
    let mut image = Qcow2Image::open(path, Access::ReadWrite, rules)?;
    let claim = image.claim()?;
    let from = image.size();
    check_shrink(path, from, size, shrink)?;
    image.begin_use()?;
    if size < from {
        image.discard(size, from - size)?;
        image.flush()?;
        image.shrink_to(size)?;
    } else {
        image.grow_to(size)?;
    }
    drop(image);
    if size > from {
        let image = Qcow2Image::open(path, Access::ReadWrite, rules)?;
        image.begin_use()?;
        // What lies below may be longer than this was, and shows in a part of a cluster, too.
        if !image.below().is_empty() {
            image.write_zeroes(from, size - from, ZeroMode::MayUnmap)?;
            image.flush()?;
        }
    }
    drop(claim);
    Ok(())
}

impl Qcow2Image {
    fn grow_to(&self, size: u64) -> Result<()> {
        let grown = self.used()?.disk.resize_grow(size, PreallocateMode::None);
        grown.map_err(self.failed("resize", 0, size))?;
        self.flush()
    }

    fn shrink_to(&mut self, size: u64) -> Result<()> {
        let failed = |image: &Self, e| image.failed("resize", 0, size)(e);
        let shrunk = self.used_mut()?.disk.resize_shrink(size);
        shrunk.map_err(|e| failed(self, e))?;
        self.flush()
    }
}
