//! What a disk holds, as it is read to be sent.

use std::ops::Range;
use std::sync::Arc;

use block::{BlockDevice, Buffer, ExtentKind, RawImage};
use migration::observation::{Observation, Side};
use migration::vm::VmResult;

/// Extents that are asked for at once.
const EXTENTS: usize = 1024;

/// A disk whose content goes to another host, or may be there already.
pub(crate) struct DiskContent {
    pub(crate) id: String,
    /// Who reads it.
    pub(crate) side: Side,
    pub(crate) disk: Arc<dyn BlockDevice>,
    /// Its image, where that can be read without leaving it in the page cache, which the host needs for its guests.
    pub(crate) uncached: Option<Arc<RawImage>>,
}

impl DiskContent {
    /// Bytes that it holds, as far as its storage tells; else all of it, which it may have to hold.
    pub(crate) fn allocated(&self) -> u64 {
        let size = self.disk.size();
        let mut allocated = 0;
        let mapped = match &self.uncached {
            Some(image) => {
                allocated = image.allocated();
                Ok(())
            }
            None => each_data(&*self.disk, 0..size, |data| {
                allocated += data.end - data.start;
            }),
        };
        mapped.map_or(size, |()| allocated.min(size))
    }

    /// Where it holds data in `range`; all else reads as zeroes.
    ///
    /// # Errors
    /// `disk.read` when that cannot be told.
    pub(crate) fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        let mut data = Vec::new();
        each_data(&*self.disk, range, |found| data.push(found))
            .map_err(|e| self.failed("mapped", &e))?;
        Ok(data)
    }

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// `disk.read`.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        let Some(image) = &self.uncached else {
            return self.read_cached(offset, into);
        };
        let read = image.read_uncached(&[Buffer::new(into)], offset);
        read.map_err(|e| self.failed("read", &e))
    }

    /// As [`DiskContent::read`], through all layers of the disk and the page cache.
    ///
    /// # Errors
    /// `disk.read`.
    pub(crate) fn read_cached(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        let read = self.disk.read(&[Buffer::new(into)], offset);
        read.map_err(|e| self.failed("read", &e))
    }

    fn failed(&self, what: &str, error: &block::Error) -> Observation {
        let message = format!("disk {} cannot be {what}", self.id);
        let cause = Observation::from_error(self.side, "disk.io", error);
        Observation::new(self.side, "disk.read", message).caused_by(cause)
    }
}

/// Calls `each` with every stretch of data in `range` of `disk`; all else reads as zeroes.
fn each_data(
    disk: &dyn BlockDevice,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>),
) -> block::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let extents = disk.extents(at, range.end - at, EXTENTS)?;
        for extent in &extents {
            let end = extent.offset + extent.len;
            if extent.kind != ExtentKind::Zero {
                each(extent.offset..end);
            }
            at = at.max(end);
        }
        if extents.is_empty() {
            break;
        }
    }
    Ok(())
}
