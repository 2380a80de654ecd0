//! Which disks of a machine have their changes tracked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::Stack;
use block::layer::backlog::Backlog;
use block::layer::tracker::ChangeMap;

/// What is known of the changes of disks, by their identity.
#[derive(Debug, Default)]
pub(crate) struct Tracked(Mutex<BTreeMap<String, Track>>);

/// A disk whose changes are tracked, or mirrored.
#[derive(Debug)]
pub(crate) struct Track {
    pub(crate) changes: Arc<ChangeMap>,
    /// What holds changes up, where something may.
    pub(crate) backlog: Option<Arc<Backlog>>,
    /// Its stack before, and with the tracker or the mirror.
    pub(crate) before: Stack,
    pub(crate) with: Stack,
}

impl Tracked {
    /// The changes of disk `id`, as long as they are tracked.
    pub(crate) fn changes(&self, id: &str) -> Option<Arc<ChangeMap>> {
        self.lock().get(id).map(|track| track.changes.clone())
    }

    /// What holds up changes of disk `id`, if anything does.
    pub(crate) fn backlog(&self, id: &str) -> Option<Arc<Backlog>> {
        self.lock().get(id)?.backlog.clone()
    }

    /// All of them, for whoever changes which there are.
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Track>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
