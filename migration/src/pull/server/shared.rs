//! What all connections of a server share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::queue::Queues;
use super::terms::Options;
use super::volume::Volume;
use crate::id::{MigrationId, PullSecret};

/// Waits are cut into pieces of this length to see whether they are still wanted.
pub(super) const SLICE: Duration = Duration::from_millis(20);

pub(super) struct Shared {
    pub id: MigrationId,
    pub secret: PullSecret,
    pub options: Options,
    pub volumes: Vec<Volume>,
    pub queues: Queues,
    pub stop: AtomicBool,
}

impl Shared {
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
