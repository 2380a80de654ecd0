//! What says of a block device that its disk is still coming: it can have no mark beside its bytes.

use std::sync::Arc;

use block::image::Image;
use block::sealed::Sealed;
use block::{BlockDevice, ImageKind, Result};

use crate::disks::marks::Mark;

/// Over an image while the content of its disk comes there; nothing over one that can have a mark.
#[derive(Default)]
pub(crate) struct Seal(Option<Arc<Sealed>>);

impl Seal {
    /// Gives up what `image` holds, whose stack is `device`, if that is a block device, and says there that it is `mark`ed as one
    /// of a disk that comes: until it is [opened](Self::open), and for whoever finds it after a crash.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn over(image: &Image, device: Arc<dyn BlockDevice>, mark: &Mark) -> Result<Self> {
        if image.file().kind() != ImageKind::BlockDevice {
            return Ok(Self(None));
        }
        let sealed = Sealed::new(device, &mark.encode())?;
        Ok(Self(Some(Arc::new(sealed))))
    }

    /// What the content is written to, where that is not the stack itself.
    pub(crate) fn device(&self) -> Option<Arc<dyn BlockDevice>> {
        let sealed = self.0.clone()?;
        Some(sealed)
    }

    /// All that comes is there, and durable: whoever finds the image finds a disk, unless that is taken back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn open(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |sealed| sealed.open())
    }

    /// Takes that back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn close(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |sealed| sealed.close())
    }
}
