//! A disk that is open: its image, its claim, and the layers between that and the guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::image::uncached::Uncached;
use block::image::{Format, Image};
use block::{Backend, BlockDevice, Claim, ExclusiveOpen, Stack};
use devices::virtio::Block;

use crate::config::DiskCache;
use crate::debug::DebugLayers;
use crate::disks::coming::Coming;
use crate::disks::marks::Mark;
use crate::disks::opened_image::OpenedImage;
use crate::disks::pivots::{self, Current};
use crate::disks::seal::Seal;
use crate::error::MachineError;

/// A disk of a machine, opened and claimed.
pub(crate) struct Disk {
    pub(crate) id: String,
    pub(crate) claim: Arc<Claim>,
    pub(super) image: Image,
    pub(super) exclusive: Option<ExclusiveOpen>,
    /// Only what it holds can tell whether it is the guest's.
    pub(super) doubtful: bool,
    /// It is a block device, and its owner did not pass its exclusive open on.
    pub(super) not_exclusive: bool,
    /// It came here from another image.
    pub(super) has_moved: bool,
    pub(super) debug: DebugLayers,
    pub(super) cache: DiskCache,
    /// What has to stay as long as it does: the claims on images below an overlay.
    pub(super) _keeps: Option<Arc<dyn Send + Sync>>,
    /// What the guest's requests go to.
    pub(crate) current: Current,
    /// Whether a part of it is served and not here, or the mark on its image says so.
    pub(super) served: Arc<AtomicBool>,
    /// What is over its image while the content of the disk comes there.
    pub(super) seal: Seal,
    /// What has that part come.
    pub(crate) coming: Option<Arc<Coming>>,
}

impl Disk {
    /// The disk `before` at an image that somebody else has opened; claimed.
    ///
    /// # Errors
    /// When it is no such image, cannot be used as that of `before` is, or somebody uses it.
    pub(crate) fn from_opened(before: &Self, opened: OpenedImage) -> Result<Self, MachineError> {
        let id = before.id.clone();
        let (path, format) = (opened.path.clone(), opened.format);
        let failed = |source| MachineError::Disk {
            id: id.clone(),
            path: path.clone(),
            source,
        };
        let (image, exclusive) = opened.image(before.cache).map_err(failed)?;
        let claim = image.claim().map_err(|source| MachineError::Claim {
            id: id.clone(),
            source,
        })?;
        image.begin_use().map_err(failed)?;
        let mut stack = first_stack(&id, &before.debug, format, &image);
        if let (DiskCache::None, Image::Raw(image)) = (before.cache, &image) {
            let uncached = Uncached::new(image.clone()).map_err(failed)?;
            stack = Stack::over(Arc::new(uncached), format.name());
            before.debug.lay(&id, &mut stack);
        }
        Ok(Self {
            claim: Arc::new(claim),
            exclusive,
            doubtful: false,
            not_exclusive: false,
            has_moved: true,
            cache: before.cache,
            current: Current::new(stack),
            debug: before.debug.clone(),
            served: Arc::default(),
            seal: Seal::default(),
            coming: None,
            _keeps: None,
            image,
            id,
        })
    }

    /// Gives up what the image holds, if that is a block device, and says there that it is `mark`ed as one of a disk that comes:
    /// until it is [whole](Self::unseal), and for whoever finds it after a crash.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn seal(&mut self, mark: &Mark) -> block::Result<()> {
        self.seal = Seal::over(&self.image, self.device(), mark)?;
        Ok(())
    }

    /// What the content of a disk that comes is written to.
    pub(crate) fn target(&self) -> Arc<dyn BlockDevice> {
        self.seal.device().unwrap_or_else(|| self.device())
    }

    /// All that comes is there, and durable: it is the disk, unless that is taken back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn unseal(&self) -> block::Result<()> {
        self.seal.open()
    }

    /// Takes that back.
    pub(crate) fn seal_again(&self) {
        if let Err(error) = self.seal.close() {
            tracing::error!(disk = %self.id, %error, "nothing on the block device says that it is not the disk");
        }
    }

    /// The exclusive open of the block device that it is, which is somebody else's to keep from here on.
    pub(crate) fn take_exclusive(&mut self) -> Option<ExclusiveOpen> {
        self.exclusive.take()
    }

    /// The disk `before` as it goes on in an overlay, claimed by `claim`, which `lay` lays layers over; `keeps` is what has
    /// to stay as long as it does.
    ///
    /// # Errors
    /// When a layer cannot be made.
    pub(crate) fn in_overlay(
        before: &Self,
        image: Image,
        claim: Arc<Claim>,
        keeps: Arc<dyn Send + Sync>,
        lay: impl FnOnce(&mut Stack) -> block::Result<()>,
    ) -> Result<Self, MachineError> {
        let id = before.id.clone();
        let mut stack = first_stack(&id, &before.debug, image.format(), &image);
        lay(&mut stack).map_err(|source| MachineError::Disk {
            id: id.clone(),
            path: image.file().path().to_owned(),
            source,
        })?;
        Ok(Self {
            claim,
            exclusive: None,
            doubtful: false,
            not_exclusive: false,
            has_moved: true,
            cache: before.cache,
            current: Current::new(stack),
            debug: before.debug.clone(),
            served: Arc::default(),
            seal: Seal::default(),
            coming: None,
            _keeps: Some(keeps),
            image,
            id,
        })
    }

    /// Its image.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// The stack that its requests go to now.
    pub(crate) fn stack(&self) -> Stack {
        self.current.stack()
    }

    /// The disk as its device uses it now.
    pub(crate) fn device(&self) -> Arc<dyn BlockDevice> {
        self.current.stack().device()
    }

    /// What carries out the requests of its guest.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>, MachineError> {
        pivots::backend(&self.id, &self.stack())
    }

    /// Whether a part of it is not here, or may be missing after a crash.
    pub(crate) fn is_in_part(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// Makes the ring of a raw image alone, if it is to have one: on a thread that has the limits on files which those of
    /// the disk are to have.
    pub(super) fn make_ring(&mut self) -> Result<(), MachineError> {
        if let (DiskCache::None, Image::Raw(image)) = (self.cache, &self.image)
            && self.stack().names().count() == 1
        {
            let ring = Block::ring_of(image).map_err(|source| MachineError::Device {
                id: self.id.clone(),
                source,
            })?;
            if let Some(ring) = ring {
                self.current = Current::new(Stack::over_ring(ring));
            }
        }
        Ok(())
    }
}

/// Opens what is needed to do without the page cache, if the disk is to.
pub(super) fn open_direct(image: &Image, cache: DiskCache) -> block::Result<()> {
    match (cache, image) {
        (DiskCache::Writeback, _) => Ok(()),
        (DiskCache::None, Image::Raw(image)) => image.open_direct(),
        (DiskCache::None, Image::Qcow2(image)) => Err(block::Error::NotDirect {
            path: image.file().path().to_owned(),
            source: io::Error::other("it is a qcow2 image"),
        }),
    }
}

impl Disk {
    /// What samples are taken of: for a qcow2 image the file as it is, which a successor can read before the
    /// image is its own.
    pub(super) fn sampled(&self) -> Result<Arc<dyn BlockDevice>, MachineError> {
        match &self.image {
            Image::Raw(_) => Ok(self.device()),
            Image::Qcow2(image) => {
                let measured = image.file().measure();
                measured.map_err(|e| MachineError::Samples(Box::new(e)))?;
                Ok(image.file().clone())
            }
        }
    }
}

/// What a disk begins with: its image, and what tests have laid over it.
pub(super) fn first_stack(id: &str, debug: &DebugLayers, format: Format, image: &Image) -> Stack {
    let mut stack = Stack::over(image.device(), format.name());
    debug.lay(id, &mut stack);
    stack
}
