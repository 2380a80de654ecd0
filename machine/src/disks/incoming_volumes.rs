//! Disks of a guest that comes in, as the engine has them: those whose content comes with it, and those whose content comes later.

use std::ops::Range;
use std::sync::{Arc, Weak};

use block::image::Image;
use block::image::seal::SEAL;
use block::on_demand::OnDemand;
use block::{BlockDevice, Buffer, Durability, ZeroMode};
use migration::observation::{Observation, Side};
use migration::vm::{DestinationVolume, HeldBefore, RestOfVolume, VmResult};

use crate::config::DiskTarget;
use crate::disks::coming::Coming;
use crate::disks::content::DiskContent;
use crate::disks::incoming::Placement;
use crate::disks::marks::Mark;
use crate::disks::seal::Seal;

/// A disk, as its content comes in.
pub(crate) struct IncomingVolume {
    content: DiskContent,
    /// Whether it was made for the guest.
    target: DiskTarget,
    /// What is over its image while it comes.
    seal: Seal,
    /// What fetches the rest of it, if it may leave one behind.
    rest: Option<Weak<OnDemand>>,
}

impl IncomingVolume {
    /// `disk` over its `image`, which is the guest's from here on: what was in it before may go at any time, and `mark` says so
    /// to whoever finds it before the guest is here.
    ///
    /// # Errors
    /// When it cannot be marked.
    pub(crate) fn marked(
        placement: &Placement,
        (image, disk): (&Image, Arc<dyn BlockDevice>),
        mark: &Mark,
    ) -> VmResult<Self> {
        let mut volume = Self {
            content: DiskContent {
                id: placement.id.clone(),
                side: Side::Destination,
                disk,
                uncached: match image {
                    Image::Raw(image) => Some(image.clone()),
                    Image::Qcow2(_) => None,
                },
            },
            target: placement.target,
            seal: Seal::default(),
            rest: None,
        };
        let seal = Seal::over(image, volume.content.disk.clone(), mark);
        volume.seal = seal.map_err(|e| volume.failed(&e))?;
        if let Some(sealed) = volume.seal.device() {
            volume.content.disk = sealed;
        }
        if volume.target == DiskTarget::Existing {
            // It may have no marks, as one that is made.
            volume.done(mark.set_arriving(image.file()))?;
        }
        Ok(volume)
    }

    /// As that, with the rest of it fetched by what is `coming`, when its guest is here.
    ///
    /// # Errors
    /// As [`IncomingVolume::marked`].
    pub(crate) fn in_part(
        placement: &Placement,
        (image, coming): (&Image, &Coming),
        mark: &Mark,
    ) -> VmResult<Self> {
        let volume = Self::marked(placement, (image, coming.bare.device()), mark)?;
        Ok(Self {
            rest: Some(coming.layer.clone()),
            ..volume
        })
    }

    /// All of it is here, and durable: whoever finds it finds a disk, unless that is taken back.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(crate) fn unseal(&self) -> VmResult<()> {
        self.done(self.seal.open())
    }

    /// Takes that back: its guest does not come.
    pub(crate) fn seal_again(&self) {
        if let Err(error) = self.seal.close() {
            tracing::warn!(disk = %self.content.id, %error, "nothing on the block device says that its guest did not come");
        }
    }

    fn done<T>(&self, done: block::Result<T>) -> VmResult<()> {
        done.map(drop).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &block::Error) -> Observation {
        let message = format!("disk {} cannot be written", self.content.id);
        Observation::new(Side::Destination, "disk.write", message)
            .caused_by(Observation::from_error(Side::Destination, "disk.io", error))
    }
}

impl DestinationVolume for IncomingVolume {
    fn size(&self) -> u64 {
        self.content.disk.size()
    }

    fn held_before(&self) -> Option<&dyn HeldBefore> {
        (self.target == DiskTarget::Existing).then_some(self as &dyn HeldBefore)
    }

    fn write(&self, offset: u64, bytes: &mut [u8]) -> VmResult<()> {
        let buffers = [Buffer::new(bytes)];
        let disk = &self.content.disk;
        self.done(disk.write(&buffers, offset, Durability::Flushed))
    }

    fn write_zeroes(&self, range: Range<u64>) -> VmResult<()> {
        let len = range.end - range.start;
        let disk = &self.content.disk;
        self.done(disk.write_zeroes(range.start, len, ZeroMode::MayUnmap))
    }

    fn flush(&self) -> VmResult<()> {
        self.done(self.content.disk.flush())
    }

    fn rest(&self) -> Option<&dyn RestOfVolume> {
        self.rest.as_ref().map(|_| self as &dyn RestOfVolume)
    }
}

impl RestOfVolume for IncomingVolume {
    fn lacks(&self, blocks: &[u64]) -> VmResult<()> {
        let layer = self.rest.as_ref().and_then(Weak::upgrade);
        // Without it the machine is gone, and the guest does not come.
        layer.map_or(Ok(()), |layer| self.done(layer.holds_all_but(blocks)))
    }
}

impl HeldBefore for IncomingVolume {
    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        self.content.data(range)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        // A seal is no content.
        if self.seal.device().is_some() && offset < SEAL as u64 {
            return self.content.read_cached(offset, into);
        }
        self.content.read(offset, into)
    }

    fn clear(&self) -> VmResult<()> {
        self.write_zeroes(0..self.size())
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

    fn write_zeroes(&self, _: Range<u64>) -> VmResult<()> {
        self.refused()
    }

    fn flush(&self) -> VmResult<()> {
        // What is here of it, its map, was durable when it was made.
        Ok(())
    }
}
