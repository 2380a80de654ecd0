//! Rings for the requests of disks, where the host has them.

use std::error::Error as _;
use std::sync::{Arc, Once};

use block::uring::Begin;
use block::{Error, RawImage, Result, RingDisk};

use crate::threads::{self, ThreadKind};

/// The ring of an image; none where this host has none.
pub(super) fn of(image: &Arc<RawImage>) -> Result<Option<Arc<RingDisk>>> {
    static SAID: Once = Once::new();
    image.open_direct()?;
    let begin = Begin {
        ring: || threads::begin(ThreadKind::Ring),
        hand: || threads::begin(ThreadKind::Disk),
    };
    match RingDisk::new(Arc::clone(image), begin) {
        Ok(disk) => Ok(Some(Arc::new(disk))),
        Err(error @ Error::NoRing { .. }) => {
            SAID.call_once(|| {
                tracing::warn!(
                    error = error.source(),
                    "this host has no io_uring for disks: threads carry out the requests of those with cache=none, \
                     through the page cache"
                );
            });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
