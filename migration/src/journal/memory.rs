//! A journal in memory.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::contract::Journal;
use super::error::JournalError;
use super::record::{Decision, SourceRecord};
use crate::id::{HostId, MigrationId};
use crate::observation::Side;
use crate::resolution::Resolution;

/// Decisions kept as long as the value lives: for tests and for what needs no durability.
pub struct MemoryJournal {
    identity: HostId,
    /// Room that was reserved, and what was decided in it.
    decisions: Mutex<HashMap<MigrationId, Option<Decision>>>,
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

impl MemoryJournal {
    fn decisions(&self) -> MutexGuard<'_, HashMap<MigrationId, Option<Decision>>> {
        self.decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn identity(&self) -> HostId {
        self.identity
    }

    fn decide(&self, id: MigrationId, decision: Decision) -> Result<Decision, JournalError> {
        Ok(match self.decisions().get_mut(&id) {
            Some(room) => *room.get_or_insert(decision),
            None => Decision::GiveUp,
        })
    }

    fn answer(&self, id: MigrationId, answer: Resolution) -> Result<Resolution, JournalError> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(*answers.entry(id).or_insert(answer))
    }

    fn answered(&self, id: MigrationId) -> Result<Option<Resolution>, JournalError> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(answers.get(&id).copied())
    }

    fn decision(&self, id: MigrationId) -> Result<Option<Decision>, JournalError> {
        Ok(self.decisions().get(&id).copied().flatten())
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

    fn reserve(&self, id: MigrationId, side: Side) -> Result<Duration, JournalError> {
        if side == Side::Destination {
            self.decisions().entry(id).or_default();
        }
        Ok(Duration::ZERO)
    }

    fn discard(&self, id: MigrationId, side: Side) -> Result<(), JournalError> {
        let mut decisions = self.decisions();
        if side == Side::Destination && decisions.get(&id) == Some(&None) {
            decisions.remove(&id);
        }
        Ok(())
    }
}
