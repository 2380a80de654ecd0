//! What is told of a move while it goes on, besides how much is copied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use block::mirror::Mirror;
use migration::disk_bytes::{ClassBytes, ClassMeter};
use migration::observation::Observation;

#[derive(Debug, Default)]
struct State {
    /// The layer that writes to both images, as long as there is one.
    mirror: Weak<Mirror>,
    /// What it has written, when it is gone.
    written: u64,
    held_up_by: Option<Observation>,
    meter: ClassMeter,
}

/// Shared by whoever moves a disk and whoever tells of it.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<State>);

impl Told {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the guest has written to both images.
    pub(crate) fn written(&self) -> u64 {
        let state = self.state();
        let mirror = state.mirror.upgrade();
        mirror.map_or(state.written, |mirror| mirror.written())
    }

    /// How much goes in a second, of which so much has gone by now.
    pub(crate) fn rate(&self, bytes: ClassBytes) -> ClassBytes {
        self.state().meter.measure(Instant::now(), bytes)
    }

    /// Why it was paused, where nobody asked for that.
    pub(crate) fn held_up_by(&self) -> Option<Observation> {
        self.state().held_up_by.clone()
    }

    pub(super) fn set_held_up_by(&self, why: Option<Observation>) {
        self.state().held_up_by = why;
    }

    pub(super) fn mirrors(&self, mirror: &Arc<Mirror>) {
        self.state().mirror = Arc::downgrade(mirror);
    }

    pub(super) fn mirrored(&self, mirror: &Mirror) {
        self.state().written = mirror.written();
    }
}
