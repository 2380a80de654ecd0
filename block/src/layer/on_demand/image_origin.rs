//! An image of this host as an origin.

use std::sync::Arc;

use super::origin::{Allocation, Class, Origin, OriginError};
use crate::{BlockDevice, Buffer, Error, ExtentKind};

/// Extents that are asked for at once.
const EXTENTS: usize = 1024;

/// An image that nobody writes, of which a disk takes what it lacks.
pub struct ImageOrigin {
    image: Arc<dyn BlockDevice>,
}

impl ImageOrigin {
    /// The image, which is only read from here on.
    pub fn new(image: Arc<dyn BlockDevice>) -> Self {
        Self { image }
    }

    /// An image whose storage fails may be one whose storage comes back; one that has become another does not.
    fn failed(&self, error: &Error) -> OriginError {
        let (origin, why) = (self.name(), error_chain(error));
        match error {
            Error::OutOfRange { .. } | Error::Short { .. } | Error::Qcow2 { .. } => {
                OriginError::Wrong { origin, why }
            }
            _ => OriginError::Lost { origin, why },
        }
    }
}

/// The error with its causes, in one line.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Origin for ImageOrigin {
    fn name(&self) -> String {
        self.image.identity().name
    }

    fn allocation(&self) -> Result<Allocation, OriginError> {
        let size = self.image.size();
        let allocation = Allocation::none(size);
        let mut at = 0;
        while at < size {
            let extents = self.image.extents(at, size - at, EXTENTS);
            let before = at;
            for extent in extents.map_err(|error| self.failed(&error))? {
                let end = extent.offset.saturating_add(extent.len);
                if extent.kind != ExtentKind::Zero {
                    allocation.add(&(extent.offset..end));
                }
                at = at.max(end);
            }
            if at == before {
                // Whoever tells of nothing is taken to hold data.
                allocation.add(&(at..size));
                at = size;
            }
        }
        Ok(allocation)
    }

    fn fetch(&self, offset: u64, into: &mut [u8], _class: Class) -> Result<(), OriginError> {
        let read = self.image.read(&[Buffer::new(into)], offset);
        read.map_err(|error| self.failed(&error))
    }
}
