//! A raw image as a disk.

use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;

use super::RawImage;
use crate::access::Access;
use crate::image::sys::Direction;
use crate::{
    BlockDevice, Buffer, Discarded, Durability, Extent, ExtentKind, Identity, Result, ZeroMode,
};

impl BlockDevice for RawImage {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.check_range(offset, Buffer::total_len(buffers))?;
        self.transfer(&self.file, Direction::Read, buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.check_change(offset, Buffer::total_len(buffers))?;
        self.last_writes.note(offset);
        let direction = Direction::of_write(durability);
        self.change(|| self.transfer(&self.file, direction, buffers, offset))
    }

    fn flush(&self) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        let covered = self.unflushed.begin_flush();
        self.file
            .sync_data()
            .map_err(|e| self.io_error("flush", 0, self.size(), e))?;
        self.unflushed.confirm(covered);
        Ok(())
    }

    fn has_unflushed_writes(&self) -> bool {
        self.unflushed.any()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.check_change(offset, len)?;
        // A hole reads as zeroes, also in a block device, of which the kernel asks for such a discard.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = || self.allocate(&self.can_punch, flags, "discard", offset, len);
        if len > 0 && self.change(punch)? {
            Ok(Discarded::Zero)
        } else {
            Ok(Discarded::Kept)
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.last_writes.note(offset);
        self.change(|| self.zero(offset, len, mode))
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.check_range(offset, len)?;
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < limit {
            let seek = |whence: Whence, place| match rustix::fs::seek(&self.file, whence.at(place))
            {
                Ok(found) => Ok(Some(found)),
                // Nothing of the kind up to the end of the file.
                Err(rustix::io::Errno::NXIO) => Ok(None),
                // Storage that knows no holes.
                Err(rustix::io::Errno::INVAL) if whence == Whence::Data => Ok(Some(place)),
                Err(rustix::io::Errno::INVAL) => Ok(None),
                Err(errno) => Err(self.io_error("map", place, end - place, errno.into())),
            };
            let data = seek(Whence::Data, at)?.unwrap_or(end).min(end);
            if data > at {
                extents.push(Extent {
                    offset: at,
                    len: data - at,
                    kind: ExtentKind::Zero,
                });
                at = data;
                continue;
            }
            // A file that changes meanwhile must not make this loop turn on the spot.
            let hole = seek(Whence::Hole, at)?.unwrap_or(end).clamp(at + 1, end);
            extents.push(Extent {
                offset: at,
                len: hole - at,
                kind: ExtentKind::Data,
            });
            at = hole;
        }
        Ok(extents)
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }
}

/// What is looked for in the map of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whence {
    Data,
    Hole,
}

impl Whence {
    fn at(self, place: u64) -> rustix::fs::SeekFrom {
        match self {
            Self::Data => rustix::fs::SeekFrom::Data(place),
            Self::Hole => rustix::fs::SeekFrom::Hole(place),
        }
    }
}
