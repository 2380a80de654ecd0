//! Disks that are away from their images, in overlays, while they go with their guest to another host: brought back, or let go,
//! by whoever ends the migration, also when that is another than began it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration::observation::Observation;

/// A disk that is in an overlay.
pub(crate) trait InOverlay: Send + Sync {
    /// Its identity.
    fn id(&self) -> &str;
    /// The guest stays: what is in overlays is brought back to the image, while the guest goes on.
    ///
    /// # Errors
    /// When that fails: it is in an overlay still.
    fn bring_back(&self) -> Result<(), Observation>;
    /// The guest has gone: the image gets what the overlays hold, and nobody needs these.
    fn let_go(&self);
}

/// Those of a machine.
#[derive(Default)]
pub(crate) struct Away(Mutex<Vec<Arc<dyn InOverlay>>>);

impl Away {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<dyn InOverlay>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more is about to be.
    pub(crate) fn add(&self, disk: Arc<dyn InOverlay>) {
        self.all().push(disk);
    }

    /// Whether disk `id` is.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.all().iter().any(|disk| disk.id() == id)
    }

    /// One that is, if any.
    pub(crate) fn first(&self) -> Option<String> {
        self.all().first().map(|disk| disk.id().to_owned())
    }

    /// Brings all back; those that cannot be stay.
    ///
    /// # Errors
    /// The first that there was, when all have been tried.
    pub(crate) fn bring_back(&self) -> Result<(), Observation> {
        let all = self.all().clone();
        let mut first = Ok(());
        for disk in all {
            let back = disk.bring_back();
            if back.is_ok() {
                self.all().retain(|other| other.id() != disk.id());
            }
            first = first.and(back);
        }
        first
    }

    /// Lets go of all.
    pub(crate) fn let_go(&self) {
        let all = std::mem::take(&mut *self.all());
        all.iter().for_each(|disk| disk.let_go());
    }
}
