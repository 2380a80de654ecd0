//! How a migration ended.

use crate::progress::{Event, Report};

/// How a migration ended, with its report.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The guest is known to run (or be held paused, if it was) at the destination, and only there.
    Completed(Report),
    /// Only a plan was asked for, and it would work; nothing was changed.
    Planned(Report),
    /// It failed before commit: the guest is at the source as if nothing had been tried.
    Failed(Report),
    /// It was cancelled before commit: as for [`Outcome::Failed`].
    Cancelled(Report),
    /// The commit was sent and the destination's answer is missing: the guest is paused at the
    /// source until [`crate::source::resolve`] has the answer. At the destination: the commit was
    /// recorded but the guest could not be started.
    HandoverUnknown(Report),
}

impl Outcome {
    /// The event that tells it, the last of a migration.
    pub(crate) fn event(&self) -> Event {
        let event = match self {
            Self::Completed(_) | Self::Planned(_) => Event::Completed,
            Self::Failed(_) | Self::HandoverUnknown(_) => Event::Failed,
            Self::Cancelled(_) => Event::Cancelled,
        };
        event(self.report().clone())
    }

    /// Its report.
    pub fn report(&self) -> &Report {
        match self {
            Self::Completed(report)
            | Self::Planned(report)
            | Self::Failed(report)
            | Self::Cancelled(report)
            | Self::HandoverUnknown(report) => report,
        }
    }
}
