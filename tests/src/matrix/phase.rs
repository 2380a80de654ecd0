//! Where a migration can stand, and how it is made to stand there.

use crate::blackbox::relay::{Fate, Toward, Trap};
use crate::blackbox::wire::kind;

/// Phases in order.
pub const ALL: [Phase; 7] = [
    Phase::Negotiate,
    Phase::Prepare,
    Phase::Precopy,
    Phase::StopAndCopy,
    Phase::Ready,
    Phase::Commit,
    Phase::Finish,
];

/// A phase of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The destination has agreed, and the source does not know it yet.
    Negotiate,
    /// The destination has built the machine, and the source does not know it yet.
    Prepare,
    /// Pages are on their way.
    Precopy,
    /// The guest stands still; the destination waits for the end of the last pass. The source
    /// waits for nothing in this phase, so that it is in the next one by its own account.
    StopAndCopy,
    /// The destination has loaded everything, and the source does not know it yet.
    Ready,
    /// The commit is on its way.
    Commit,
    /// The destination runs the guest, and the source does not know it yet.
    Finish,
}

impl Phase {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Negotiate => "negotiate",
            Self::Prepare => "prepare",
            Self::Precopy => "precopy",
            Self::StopAndCopy => "stop-and-copy",
            Self::Ready => "ready",
            Self::Commit => "commit",
            Self::Finish => "finish",
        }
    }

    /// The last phase that the source tells of when the migration stands here.
    pub fn as_source_tells(self) -> &'static str {
        match self {
            Self::StopAndCopy => "ready",
            Self::Finish => "commit",
            other => other.name(),
        }
    }

    /// The phase that the destination tells of when the migration stands here.
    pub fn as_destination_tells(self) -> &'static str {
        match self {
            Self::Commit => "ready",
            other => other.name(),
        }
    }

    /// Whether any failure leaves the guest at its source.
    pub fn is_before_commit(self) -> bool {
        self < Self::Commit
    }

    /// Whether a destination that loses its source goes on waiting: it has built nothing yet, or has said
    /// that it is ready, so that the source may be in doubt and ask.
    pub fn is_waited_through(self) -> bool {
        matches!(self, Self::Negotiate | Self::Ready | Self::Commit)
    }

    /// Whether the guest runs at its source.
    pub fn runs_at_source(self) -> bool {
        self <= Self::Precopy
    }

    /// The frame at which the link is held; precopy needs only a slow link.
    pub fn trap(self) -> Option<Trap> {
        let (toward, kind) = match self {
            Self::Negotiate => (Toward::Source, kind::NEGOTIATED),
            Self::Prepare => (Toward::Source, kind::PREPARED),
            Self::Precopy => return None,
            Self::StopAndCopy => (Toward::Destination, kind::LAST_PASS),
            Self::Ready => (Toward::Source, kind::READY),
            Self::Commit => (Toward::Destination, kind::COMMIT),
            Self::Finish => (Toward::Source, kind::COMMITTED),
        };
        let fate = Fate::Stall;
        Some(Trap { toward, kind, fate })
    }
}
