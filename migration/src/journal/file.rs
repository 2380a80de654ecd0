//! Records as files of one sector that are there before they are needed.
//!
//! A record is reserved while nothing waits for it: the file is made, filled with zeroes and made
//! durable. Recording a decision then overwrites one sector in place and waits for its data only: the
//! file system has no metadata to write, which costs a third of making and renaming a file, and it
//! costs it inside the guest's downtime. A sector is written whole or not at all; a record that does
//! not parse is damaged and is no decision.
//!
//! Who may write is settled by `flock`: a record that is blank is undecided, and the first to find it
//! so decides. A destination decides only in room that was reserved: where there is no file, none is made,
//! and the migration is given up.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::contract::Journal;
use super::error::{JournalError, failed};
use super::identity;
use super::prune::prune;
use super::record::{Decision, SourceRecord};
use super::sector::{RECORD, Standing, read, write};
use crate::id::{HostId, MigrationId};
use crate::observation::Side;
use crate::resolution::Resolution;

/// How often it is tried out what a record costs, unless it is quick.
const TRIES: u32 = 3;
const QUICK: Duration = Duration::from_millis(5);

/// A directory of records, mode 0700. Put it where the VM processes of a host find it again.
pub struct FileJournal {
    directory: PathBuf,
    identity: HostId,
}

impl FileJournal {
    /// Opens the journal in `directory`, which is made if need be, with an identity of its own. Old
    /// records that nobody can ask for any more are removed.
    ///
    /// # Errors
    /// When it cannot be made, or its identity is damaged.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let directory = directory.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed("create", &directory))?;
        let identity = identity::of(&directory)?;
        prune(&directory, SystemTime::now());
        Ok(Self {
            directory,
            identity,
        })
    }

    pub(super) fn path(&self, id: MigrationId, name: &str) -> PathBuf {
        self.directory.join(format!("{id}.{name}"))
    }

    /// Opens the record for this caller alone, and makes room for it if there is none yet.
    fn lock(&self, path: &Path) -> Result<File, JournalError> {
        loop {
            let file = options()
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(failed("open", path))?;
            if let Some(file) = self.lock_open(file, path)? {
                return Ok(file);
            }
        }
    }

    /// As [`FileJournal::lock`], but only where there is room already.
    fn lock_reserved(&self, path: &Path) -> Result<Option<File>, JournalError> {
        loop {
            let file = match options().open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(failed("open", path))?,
            };
            if let Some(file) = self.lock_open(file, path)? {
                return Ok(Some(file));
            }
        }
    }

    /// `None` when someone discarded it between being opened and being locked: what is locked is no
    /// longer there.
    fn lock_open(&self, file: File, path: &Path) -> Result<Option<File>, JournalError> {
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed("lock", path)(e.into()))?;
        let metadata = file.metadata().map_err(failed("look at", path))?;
        if metadata.nlink() == 0 {
            return Ok(None);
        }
        if metadata.size() == 0 {
            file.write_all_at(&[0; RECORD], 0)
                .and_then(|()| file.sync_all())
                .map_err(failed("make room in", path))?;
            self.sync()?;
        }
        Ok(Some(file))
    }

    fn sync(&self) -> Result<(), JournalError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync", &self.directory))
    }

    fn find<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> Result<Option<T>, JournalError> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", path)(error)),
            Ok(file) => {
                flock(&file, FlockOperation::LockShared)
                    .map_err(|e| failed("lock", path)(e.into()))?;
                read(&file, path)
            }
        }
    }
}

/// How a record is opened.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    options
}

fn name_of(side: Side) -> &'static str {
    match side {
        Side::Destination => "destination",
        Side::Source | Side::Client => "source",
    }
}

impl Journal for FileJournal {
    fn identity(&self) -> HostId {
        self.identity
    }

    fn reserve(&self, id: MigrationId, side: Side) -> Result<Duration, JournalError> {
        let path = self.path(id, name_of(side));
        let file = self.lock(&path)?;
        // The same bytes again, to learn what a decision will cost; a disk that is busy for a moment is
        // asked once more.
        let mut record = [0; RECORD];
        let mut least = Duration::MAX;
        for _ in 0..TRIES {
            let began = Instant::now();
            file.read_exact_at(&mut record, 0)
                .and_then(|()| file.write_all_at(&record, 0))
                .and_then(|()| file.sync_data())
                .map_err(failed("write", &path))?;
            least = least.min(began.elapsed());
            if least <= QUICK {
                break;
            }
        }
        Ok(least)
    }

    fn discard(&self, id: MigrationId, side: Side) -> Result<(), JournalError> {
        let path = self.path(id, name_of(side));
        if !path.exists() {
            return Ok(());
        }
        let file = self.lock(&path)?;
        match read::<serde::de::IgnoredAny>(&file, &path)? {
            Some(_) => Ok(()),
            None => std::fs::remove_file(&path).map_err(failed("remove", &path)),
        }
    }

    fn decide(&self, id: MigrationId, decision: Decision) -> Result<Decision, JournalError> {
        let path = self.path(id, "destination");
        match self.lock_reserved(&path)? {
            Some(file) => write(&file, &path, decision, Standing::Keep),
            None => Ok(Decision::GiveUp),
        }
    }

    fn answer(&self, id: MigrationId, answer: Resolution) -> Result<Resolution, JournalError> {
        let path = self.path(id, "answer");
        write(&self.lock(&path)?, &path, answer, Standing::Keep)
    }

    fn answered(&self, id: MigrationId) -> Result<Option<Resolution>, JournalError> {
        self.find(&self.path(id, "answer"))
    }

    fn finish(&self, id: MigrationId) -> Result<(), JournalError> {
        let path = self.path(id, "finished");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("make", &path))?;
        Ok(())
    }

    fn decision(&self, id: MigrationId) -> Result<Option<Decision>, JournalError> {
        self.find(&self.path(id, "destination"))
    }

    fn record(&self, id: MigrationId, record: &SourceRecord) -> Result<(), JournalError> {
        let path = self.path(id, "source");
        write(&self.lock(&path)?, &path, record.clone(), Standing::Replace)?;
        Ok(())
    }

    fn recorded(&self, id: MigrationId) -> Result<Option<SourceRecord>, JournalError> {
        self.find(&self.path(id, "source"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Handover;
    use super::*;

    fn journal() -> (tempfile::TempDir, FileJournal) {
        let directory = tempfile::tempdir().unwrap();
        let journal = FileJournal::open(directory.path()).unwrap();
        (directory, journal)
    }

    /// Records, the identity aside.
    fn files(directory: &tempfile::TempDir) -> usize {
        std::fs::read_dir(directory.path()).unwrap().count() - 1
    }

    #[test]
    fn first_decision_stands_across_journals_of_one_directory() {
        let (directory, one) = journal();
        let two = FileJournal::open(directory.path()).unwrap();
        for (number, first) in [(1, Decision::Commit), (2, Decision::GiveUp)] {
            let id = MigrationId([number; 16]);
            one.reserve(id, Side::Destination).unwrap();
            assert_eq!(one.decision(id).unwrap(), None);
            assert_eq!(one.decide(id, first).unwrap(), first);
            assert_eq!(two.decide(id, Decision::Commit).unwrap(), first);
            assert_eq!(two.decide(id, Decision::GiveUp).unwrap(), first);
            assert_eq!(two.decision(id).unwrap(), Some(first));
        }
    }

    #[test]
    fn racing_deciders_agree_also_with_one_who_discards() {
        let (directory, journal) = journal();
        for number in 0..50 {
            let id = MigrationId([number; 16]);
            journal.reserve(id, Side::Destination).unwrap();
            let decide = |decision| {
                FileJournal::open(directory.path())
                    .unwrap()
                    .decide(id, decision)
                    .unwrap()
            };
            let (a, b) = std::thread::scope(|scope| {
                let a = scope.spawn(|| decide(Decision::Commit));
                let gone = scope.spawn(|| journal.discard(id, Side::Destination).unwrap());
                let b = decide(Decision::GiveUp);
                gone.join().unwrap();
                (b, a.join().unwrap())
            });
            assert_eq!(a, b);
            // Where it was discarded first, there is no room, and nobody can commit any more.
            let stands = journal.decision(id).unwrap().unwrap_or(Decision::GiveUp);
            assert_eq!(stands, a);
        }
        assert!(files(&directory) <= 50, "nothing else stays");
    }

    #[test]
    fn nothing_is_decided_and_nothing_written_without_room() {
        let (directory, journal) = journal();
        for number in 0..20 {
            let id = MigrationId([number; 16]);
            for decision in [Decision::GiveUp, Decision::Commit] {
                assert_eq!(journal.decide(id, decision).unwrap(), Decision::GiveUp);
            }
            assert_eq!(journal.decision(id).unwrap(), None);
        }
        assert_eq!(files(&directory), 0);
    }

    #[test]
    fn what_was_reserved_and_never_used_is_discarded() {
        let (directory, journal) = journal();
        let id = MigrationId([3; 16]);
        journal.reserve(id, Side::Destination).unwrap();
        journal.discard(id, Side::Destination).unwrap();
        assert_eq!(files(&directory), 0);
        journal.reserve(id, Side::Destination).unwrap();
        journal.decide(id, Decision::GiveUp).unwrap();
        journal.discard(id, Side::Destination).unwrap();
        assert_eq!(journal.decision(id).unwrap(), Some(Decision::GiveUp));
    }

    #[test]
    fn reserving_again_keeps_what_was_decided() {
        let (_directory, journal) = journal();
        let id = MigrationId([4; 16]);
        journal.reserve(id, Side::Destination).unwrap();
        journal.decide(id, Decision::Commit).unwrap();
        journal.reserve(id, Side::Destination).unwrap();
        assert_eq!(journal.decision(id).unwrap(), Some(Decision::Commit));
    }

    #[test]
    fn a_damaged_record_is_an_error_and_no_decision() {
        let (directory, journal) = journal();
        let id = MigrationId([7; 16]);
        std::fs::write(directory.path().join(format!("{id}.destination")), b"\"com").unwrap();
        assert!(journal.decision(id).is_err());
        assert!(journal.decide(id, Decision::Commit).is_err());
        assert!(journal.discard(id, Side::Destination).is_err());
    }

    #[test]
    fn a_source_record_is_replaced() {
        let (_directory, journal) = journal();
        let id = MigrationId([9; 16]);
        assert_eq!(journal.recorded(id).unwrap(), None);
        for handover in [Handover::CommitSent, Handover::Begun, Handover::Gone] {
            let record = SourceRecord {
                handover,
                destination: "unix:/x".into(),
                host: Some(HostId([5; 16])),
                overlay: None,
            };
            journal.record(id, &record).unwrap();
            assert_eq!(journal.recorded(id).unwrap(), Some(record));
        }
    }
}
