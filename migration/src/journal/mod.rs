//! Durable decisions, one record per migration and side.
//!
//! The destination's decision is made by whoever records it first: commit (the guest runs here) and
//! give-up (it never ran and never will) exclude each other, across threads, processes that share the
//! directory, and crashes.

mod file;
mod identity;
mod prune;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use file::FileJournal;

use crate::id::{HostId, MigrationId};
use crate::observation::Side;
use crate::wire::control::Resolution;

/// What a destination decided about a migration; never changed once recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The guest belongs to this side.
    Commit,
    /// It never ran here and never will.
    GiveUp,
}

/// How far a source went with a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handover {
    /// Nothing is decided; the guest is here.
    Begun,
    /// The commit may have reached the destination.
    CommitSent,
    /// The destination has the guest.
    Gone,
    /// The guest is here.
    Kept,
}

/// What a source knows about a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// How far it went.
    pub handover: Handover,
    /// Where the destination listens, for a later resolve.
    pub destination: String,
    /// Who listens there, where that was told: nobody else knows whether the guest ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}

/// A record that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct JournalError {
    /// What failed.
    pub operation: &'static str,
    /// On which file.
    pub path: String,
    /// Why.
    pub source: io::Error,
}

/// Keeps the decisions. Every call but `finish` returns after its effect is durable.
pub trait Journal: Send + Sync {
    /// Who keeps it: made once, the same as long as its records last. Processes that share the
    /// records share it.
    fn identity(&self) -> HostId;
    /// Records `decision` of the destination unless one stands already; the one that stands.
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

/// Decisions kept as long as the value lives: for tests and for what needs no durability.
pub struct MemoryJournal {
    identity: HostId,
    decisions: Mutex<HashMap<MigrationId, Decision>>,
    answers: Mutex<HashMap<MigrationId, Resolution>>,
    records: Mutex<HashMap<MigrationId, SourceRecord>>,
}

impl Default for MemoryJournal {
    fn default() -> Self {
        // Keys that the system chose: nothing that could fail, unlike reading random numbers.
        let random = || RandomState::new().build_hasher().finish();
        let bits = (u128::from(random()) << 64) | u128::from(random());
        Self {
            identity: HostId(bits.to_le_bytes()),
            decisions: Mutex::default(),
            answers: Mutex::default(),
            records: Mutex::default(),
        }
    }
}

impl Journal for MemoryJournal {
    fn identity(&self) -> HostId {
        self.identity
    }

    fn decide(&self, id: MigrationId, decision: Decision) -> Result<Decision, JournalError> {
        let mut decisions = self
            .decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(*decisions.entry(id).or_insert(decision))
    }

    fn answer(&self, id: MigrationId, answer: Resolution) -> Result<Resolution, JournalError> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(*answers.entry(id).or_insert(answer))
    }

    fn decision(&self, id: MigrationId) -> Result<Option<Decision>, JournalError> {
        let decisions = self
            .decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(decisions.get(&id).copied())
    }

    fn record(&self, id: MigrationId, record: &SourceRecord) -> Result<(), JournalError> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert(id, record.clone());
        Ok(())
    }

    fn recorded(&self, id: MigrationId) -> Result<Option<SourceRecord>, JournalError> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(records.get(&id).cloned())
    }

    fn finish(&self, _: MigrationId) -> Result<(), JournalError> {
        Ok(())
    }

    fn reserve(&self, _: MigrationId, _: Side) -> Result<Duration, JournalError> {
        Ok(Duration::ZERO)
    }

    fn discard(&self, _: MigrationId, _: Side) -> Result<(), JournalError> {
        Ok(())
    }
}
