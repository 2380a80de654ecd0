//! What a source is given to do.

use std::thread;
use std::time::Duration;

use crate::convergence::Deadline;
use crate::id::MigrationId;
use crate::request::MigrateRequest;

/// What a source is given to do: what its user asks for, and how patient it is with its peer.
#[derive(Debug, Clone)]
pub struct Options {
    /// Identifier of this migration, never used before.
    pub id: MigrationId,
    /// What its user asks for; [`crate::steering::Steering::set_limits`] changes the limits later.
    pub request: MigrateRequest,
    /// How long a transfer may stand still or an answer may take.
    pub io_timeout: Duration,
    /// How long a data connection may stand still where disks travel: the destination reads on when its storage has taken
    /// what came. Whether it lives is told by the control connection.
    pub storage_timeout: Duration,
    /// How long the peer may be silent.
    pub peer_timeout: Duration,
    /// How long the destination may take to build the machine.
    pub prepare_timeout: Duration,
    /// How long the destination is asked, after a lost answer, whether it runs the guest.
    pub resolve_for: Duration,
}

impl Options {
    /// The defaults for migration `id`, of which `request` is asked.
    pub fn new(id: MigrationId, request: MigrateRequest) -> Self {
        Self {
            id,
            request,
            io_timeout: Duration::from_secs(10),
            storage_timeout: Duration::from_secs(120),
            peer_timeout: Duration::from_secs(10),
            prepare_timeout: Duration::from_secs(120),
            resolve_for: Duration::from_secs(10),
        }
    }

    /// When all of it is to be over, and what is to be done then.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline {
            timeout: self.request.timeout.map(|timeout| timeout.0),
            action: self.request.on_timeout,
        }
    }
}

/// Data connections that a source on this machine opens when it is not told how many.
pub fn default_streams() -> u8 {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    if cores >= 8 { 4 } else { 2 }
}
