//! What carries a disk's requests out, which may be exchanged.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use block::{Backend, Job, Submitter};

/// The backend of a disk, of which size and kind are those that the guest knows.
///
/// It is exchanged only while no request is in flight: so whoever has taken a request has the backend that it belongs
/// to, and nobody who reads it waits.
pub struct Backing {
    current: RwLock<Arc<dyn Backend>>,
    size: u64,
    read_only: bool,
}

impl Backing {
    pub(super) fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            size: backend.disk().size(),
            read_only: backend.disk().read_only(),
            current: RwLock::new(backend),
        }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the disk takes no changes.
    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Begins a request.
    pub(super) fn submit(&self, job: Box<dyn Job>, submitter: Submitter) {
        self.current().submit(job, submitter);
    }

    /// Whether a request would begin at once, without the thread that submits it.
    pub(super) fn has_room(&self) -> bool {
        self.current().has_room()
    }

    /// The backend as it is now.
    pub(super) fn current(&self) -> Arc<dyn Backend> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// What keeps a backend from taking the place of this one, if anything does: the guest would see another disk.
    pub(super) fn misfit(&self, next: &dyn Backend) -> Option<String> {
        let (size, disk) = (self.size, next.disk());
        if disk.size() != size {
            let new = disk.size();
            Some(format!(
                "the disk has {size} bytes, and {disk} has {new}",
                disk = disk.identity()
            ))
        } else if disk.read_only() != self.read_only {
            Some(format!(
                "only one of the disk and {} is read-only",
                disk.identity()
            ))
        } else {
            None
        }
    }

    /// Puts a backend in the place of the one before, which is the result. No request is in flight.
    pub(super) fn exchange(&self, next: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, next)
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing")
            .field("disk", &self.current().disk().identity())
            .field("size", &self.size)
            .field("read_only", &self.read_only)
            .finish()
    }
}
