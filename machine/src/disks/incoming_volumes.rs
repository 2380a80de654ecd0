//! Disks of a guest that comes in, as the engine has them: those whose content comes with it, and those whose content comes later.

use std::sync::Arc;

use block::image::Image;
use block::{BlockDevice, Buffer, Durability, ZeroMode};
use migration::observation::{Observation, Side};
use migration::vm::{DestinationVolume, VmResult};

use crate::config::DiskTarget;
use crate::disks::incoming::Placement;
use crate::disks::marks::Mark;

/// A disk, as its content comes in.
pub(crate) struct IncomingVolume {
    id: String,
    disk: Arc<dyn BlockDevice>,
}

impl IncomingVolume {
    /// `disk` over its `image`, which is the guest's from here on: what was in it before is given up, and `mark` says so
    /// to whoever finds it before the guest is here.
    ///
    /// # Errors
    /// When it cannot be marked or emptied.
    pub(crate) fn empty(
        placement: &Placement,
        (image, disk): (&Image, Arc<dyn BlockDevice>),
        mark: &Mark,
    ) -> VmResult<Self> {
        let volume = Self {
            id: placement.id.clone(),
            disk,
        };
        if placement.target == DiskTarget::Existing {
            // It may have no marks, as one that is made.
            volume.done(mark.set_arriving(image.file()))?;
            volume.write_zeroes(0..volume.disk.size())?;
        }
        Ok(volume)
    }

    fn done<T>(&self, done: block::Result<T>) -> VmResult<()> {
        done.map(drop).map_err(|e| {
            let message = format!("disk {} cannot be written", self.id);
            Observation::new(Side::Destination, "disk.write", message)
                .caused_by(Observation::from_error(Side::Destination, "disk.io", &e))
        })
    }
}

/// A disk of which nothing comes with its guest.
pub(crate) struct LaterVolume {
    pub(crate) id: String,
    pub(crate) size: u64,
}

impl LaterVolume {
    fn refused(&self) -> VmResult<()> {
        let message = format!("disk {} is fetched when its guest is here", self.id);
        Err(Observation::new(Side::Destination, "disk.write", message))
    }
}

impl DestinationVolume for LaterVolume {
    fn size(&self) -> u64 {
        self.size
    }

    fn write(&self, _: u64, _: &mut [u8]) -> VmResult<()> {
        self.refused()
    }

    fn write_zeroes(&self, _: std::ops::Range<u64>) -> VmResult<()> {
        self.refused()
    }

    fn flush(&self) -> VmResult<()> {
        // What is here of it, its map, was durable when it was made.
        Ok(())
    }
}

impl DestinationVolume for IncomingVolume {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn write(&self, offset: u64, bytes: &mut [u8]) -> VmResult<()> {
        let buffers = [Buffer::new(bytes)];
        self.done(self.disk.write(&buffers, offset, Durability::Flushed))
    }

    fn write_zeroes(&self, range: std::ops::Range<u64>) -> VmResult<()> {
        let len = range.end - range.start;
        self.done(self.disk.write_zeroes(range.start, len, ZeroMode::MayUnmap))
    }

    fn flush(&self) -> VmResult<()> {
        self.done(self.disk.flush())
    }
}
