//! What the engine asks of a journal, whatever it is kept in.

use std::time::Duration;

use super::error::JournalError;
use super::record::{Decision, SourceRecord};
use crate::id::{HostId, MigrationId};
use crate::observation::Side;
use crate::resolution::Resolution;

/// Keeps the decisions. Every call but `finish` returns after its effect is durable.
pub trait Journal: Send + Sync {
    /// Who keeps it: made once, the same as long as its records last. Processes that share the
    /// records share it.
    fn identity(&self) -> HostId;
    /// Records `decision` of the destination in the room that was reserved for it, unless one stands
    /// already; the one that stands. Where there is no room nothing is recorded, and give-up stands: no
    /// commit can be accepted.
    ///
    /// # Errors
    /// When it is not known to be durable.
    fn decide(&self, id: MigrationId, decision: Decision) -> Result<Decision, JournalError>;
    /// The destination's decision that stands.
    ///
    /// # Errors
    /// When the record cannot be read.
    fn decision(&self, id: MigrationId) -> Result<Option<Decision>, JournalError>;
    /// Records what a resolve of a committed migration is told, unless that stands already; what
    /// stands. A destination whose guest could not start records [`Resolution::NeverRan`] here, and
    /// thereby takes its commit back only if nobody was told yet that the guest ran.
    ///
    /// # Errors
    /// When it is not known to be durable.
    fn answer(&self, id: MigrationId, answer: Resolution) -> Result<Resolution, JournalError>;
    /// What was recorded that a resolve is told.
    ///
    /// # Errors
    /// When the record cannot be read.
    fn answered(&self, id: MigrationId) -> Result<Option<Resolution>, JournalError>;
    /// Notes that the source of a committed migration has let go and will not ask any more, so that
    /// the record may go one day. It stays if this note is lost.
    ///
    /// # Errors
    /// When it cannot be noted.
    fn finish(&self, id: MigrationId) -> Result<(), JournalError>;
    /// Replaces the source's record.
    ///
    /// # Errors
    /// When it is not known to be durable.
    fn record(&self, id: MigrationId, record: &SourceRecord) -> Result<(), JournalError>;
    /// The source's record.
    ///
    /// # Errors
    /// When it cannot be read.
    fn recorded(&self, id: MigrationId) -> Result<Option<SourceRecord>, JournalError>;
    /// Makes room for the record of `side`, so that recording a decision later costs one write of
    /// data; what that write will cost.
    ///
    /// # Errors
    /// When there is no room: then no migration may begin.
    fn reserve(&self, id: MigrationId, side: Side) -> Result<Duration, JournalError>;
    /// Gives up room that no decision was recorded in; a record that stands stays.
    ///
    /// # Errors
    /// When it cannot be removed, or the record is damaged.
    fn discard(&self, id: MigrationId, side: Side) -> Result<(), JournalError>;
}
