//! What a source is asked for.

use std::time::Duration;

use crate::id::MigrationId;
use crate::progress::{Limits, TimeoutAction, Verify};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Identifier of this migration, never used before.
    pub id: MigrationId,
    /// Data connections; `None` chooses by the number of cores.
    pub streams: Option<u8>,
    /// Limits to begin with; [`crate::control::Control::set_limits`] changes them.
    pub limits: Limits,
    /// Total time; `None` is unlimited.
    pub timeout: Option<Duration>,
    /// What to do when it has passed.
    pub on_timeout: TimeoutAction,
    /// How memory is verified.
    pub verify: Verify,
    /// Only ask whether it would work, and change nothing.
    pub plan: bool,
    /// How long a transfer may stand still or an answer may take.
    pub io_timeout: Duration,
    /// How long the peer may be silent.
    pub peer_timeout: Duration,
    /// How long the destination may take to build the machine.
    pub prepare_timeout: Duration,
    /// How long the destination is asked, after a lost answer, whether it runs the guest.
    pub resolve_for: Duration,
}

impl Options {
    /// The defaults for migration `id`.
    pub fn new(id: MigrationId) -> Self {
        Self {
            id,
            streams: None,
            limits: Limits::default(),
            timeout: None,
            on_timeout: TimeoutAction::Cancel,
            verify: Verify::Stream,
            plan: false,
            io_timeout: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(10),
            prepare_timeout: Duration::from_secs(120),
            resolve_for: Duration::from_secs(10),
        }
    }
}
