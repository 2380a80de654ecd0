//! Marks of a disk that goes with its guest by way of overlays: a job of its own records where the disk is, and nothing of that
//! counts when the guest has gone, which its migration's record says.

use migration::MigrationId;
use migration::journal::{Handover, Journal};

use super::{Mark, Whereabouts};

impl Mark {
    /// As it is, of a disk that goes with its guest in `migration`.
    pub(crate) fn within(self, migration: MigrationId) -> Self {
        Self {
            within: Some(migration.to_string()),
            ..self
        }
    }

    /// How far the guest has gone with whose migration the disk goes; `None` where it goes without one, or is here.
    pub(super) fn given_away(&self, journal: &dyn Journal) -> Option<Given> {
        let within = self.within.as_ref()?;
        let recorded = within
            .parse()
            .ok()
            .filter(|_| self.journal == journal.identity())
            .and_then(|id: MigrationId| journal.recorded(id).ok().flatten());
        match recorded.map(|record| record.handover) {
            Some(Handover::Begun | Handover::Kept) => None,
            Some(Handover::Gone) => Some(Given::Gone),
            Some(Handover::CommitSent) | None => Some(Given::Perhaps),
        }
    }

    /// The same, as it is told.
    pub(super) fn guest_went(&self, journal: &dyn Journal) -> Option<Whereabouts> {
        let to = self.destination.as_deref().unwrap_or("another host");
        let id = self.within.as_deref().unwrap_or_default();
        Some(match self.given_away(journal)? {
            Given::Gone => Whereabouts::Gone(format!("the guest went to {to}, in migration {id}")),
            Given::Perhaps => Whereabouts::Unknown(format!(
                "the guest was given to {to}, in migration {id}, and it is not known whether it runs there"
            )),
        })
    }
}

/// Whether a guest went that was given to another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    Gone,
    /// Nobody here knows.
    Perhaps,
}
