//! Durable decisions, one record per migration and side.
//!
//! The destination's decision is made by whoever links its record first: commit (the guest runs
//! here) and give-up (it never ran and never will) exclude each other, across threads, processes
//! that share the directory, and crashes.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::id::MigrationId;
use crate::wire::control::Resolution;

/// Longest record that is read.
const MAX_RECORD: u64 = 64 << 10;

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

/// Keeps the decisions. Every call returns after its effect is durable.
pub trait Journal: Send + Sync {
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
    /// Writes something and makes it durable: what a decision will cost.
    ///
    /// # Errors
    /// When it cannot be written: then no migration may begin.
    fn probe(&self) -> Result<(), JournalError>;
}

/// A directory of records, mode 0700. Put it where the VM processes of a host find it again.
pub struct FileJournal {
    directory: PathBuf,
}

impl FileJournal {
    /// Opens the journal in `directory`, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let directory = directory.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed("create", &directory))?;
        Ok(Self { directory })
    }

    fn path(&self, id: MigrationId, side: &str) -> PathBuf {
        self.directory.join(format!("{id}.{side}"))
    }

    /// Writes `content` to a temporary file of this process and makes it durable.
    fn write_temporary(&self, content: &impl Serialize) -> Result<PathBuf, JournalError> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self
            .directory
            .join(format!(".{}.{number}", std::process::id()));
        let write = || {
            // Left over by a process of the same number that crashed here.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(&serde_json::to_vec(content)?)?;
            file.sync_all()
        };
        write().map_err(failed("write", &path))?;
        Ok(path)
    }

    fn sync(&self) -> Result<(), JournalError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync", &self.directory))
    }

    /// Records `value` at `path` unless a value stands there already; the one that stands.
    fn write_once<T>(&self, path: &Path, value: T) -> Result<T, JournalError>
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        let temporary = self.write_temporary(&value)?;
        // A link fails when its name exists: the first value stands.
        let linked = std::fs::hard_link(&temporary, path);
        // Harmless if it stays: it is overwritten or ignored.
        let _ = std::fs::remove_file(&temporary);
        let standing = match linked {
            Ok(()) => value,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(path)?
                .ok_or_else(|| failed("read", path)(io::ErrorKind::NotFound.into()))?,
            Err(error) => return Err(failed("record", path)(error)),
        };
        // Also when another was first: it may not have come to this yet.
        self.sync()?;
        Ok(standing)
    }

    fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, JournalError> {
        let mut text = Vec::new();
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", path)(error)),
            Ok(file) => file
                .take(MAX_RECORD)
                .read_to_end(&mut text)
                .map_err(failed("read", path))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed("read", path)(error.into()))
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.display().to_string();
    move |source| JournalError {
        operation,
        path,
        source,
    }
}

impl Journal for FileJournal {
    fn decide(&self, id: MigrationId, decision: Decision) -> Result<Decision, JournalError> {
        self.write_once(&self.path(id, "destination"), decision)
    }

    fn answer(&self, id: MigrationId, answer: Resolution) -> Result<Resolution, JournalError> {
        self.write_once(&self.path(id, "answer"), answer)
    }

    fn decision(&self, id: MigrationId) -> Result<Option<Decision>, JournalError> {
        Self::read(&self.path(id, "destination"))
    }

    fn record(&self, id: MigrationId, record: &SourceRecord) -> Result<(), JournalError> {
        let path = self.path(id, "source");
        let temporary = self.write_temporary(record)?;
        std::fs::rename(&temporary, &path).map_err(failed("record", &path))?;
        self.sync()
    }

    fn recorded(&self, id: MigrationId) -> Result<Option<SourceRecord>, JournalError> {
        Self::read(&self.path(id, "source"))
    }

    fn probe(&self) -> Result<(), JournalError> {
        let temporary = self.write_temporary(&())?;
        std::fs::remove_file(&temporary).map_err(failed("remove", &temporary))?;
        self.sync()
    }
}

/// Decisions kept as long as the value lives: for tests and for what needs no durability.
#[derive(Default)]
pub struct MemoryJournal {
    decisions: Mutex<HashMap<MigrationId, Decision>>,
    answers: Mutex<HashMap<MigrationId, Resolution>>,
    records: Mutex<HashMap<MigrationId, SourceRecord>>,
}

impl Journal for MemoryJournal {
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

    fn probe(&self) -> Result<(), JournalError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_decision_stands_across_journals_of_one_directory() {
        let directory = tempfile::tempdir().unwrap();
        let one = FileJournal::open(directory.path()).unwrap();
        let two = FileJournal::open(directory.path()).unwrap();
        for (number, first) in [(1, Decision::Commit), (2, Decision::GiveUp)] {
            let id = MigrationId([number; 16]);
            assert_eq!(one.decision(id).unwrap(), None);
            assert_eq!(one.decide(id, first).unwrap(), first);
            assert_eq!(two.decide(id, Decision::Commit).unwrap(), first);
            assert_eq!(two.decide(id, Decision::GiveUp).unwrap(), first);
            assert_eq!(two.decision(id).unwrap(), Some(first));
        }
    }

    #[test]
    fn racing_deciders_agree() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..50 {
            let id = MigrationId([number; 16]);
            let decide = |decision| {
                FileJournal::open(directory.path())
                    .unwrap()
                    .decide(id, decision)
            };
            let (a, b) = std::thread::scope(|scope| {
                let a = scope.spawn(|| decide(Decision::Commit).unwrap());
                (decide(Decision::GiveUp).unwrap(), a.join().unwrap())
            });
            assert_eq!(a, b);
        }
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 50, "no temporary file stays");
    }

    #[test]
    fn a_damaged_record_is_an_error_and_no_decision() {
        let directory = tempfile::tempdir().unwrap();
        let journal = FileJournal::open(directory.path()).unwrap();
        let id = MigrationId([7; 16]);
        std::fs::write(directory.path().join(format!("{id}.destination")), b"\"com").unwrap();
        assert!(journal.decision(id).is_err());
        assert!(journal.decide(id, Decision::Commit).is_err());
    }

    #[test]
    fn a_source_record_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let journal = FileJournal::open(directory.path()).unwrap();
        let id = MigrationId([9; 16]);
        assert_eq!(journal.recorded(id).unwrap(), None);
        for handover in [Handover::Begun, Handover::CommitSent, Handover::Gone] {
            let record = SourceRecord {
                handover,
                destination: "unix:/x".into(),
            };
            journal.record(id, &record).unwrap();
            assert_eq!(journal.recorded(id).unwrap(), Some(record));
        }
    }
}
