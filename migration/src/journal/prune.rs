//! Records of migrations that ended long ago, or before many others, go, so that a host's journal does
//! not grow for ever.
//!
//! A record that somebody may still need stays, however old: a commit that was sent and not answered,
//! and a commit whose source has not let go, for that source may ask.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::record::{Decision, Handover, SourceRecord};
use super::sector::read;
use crate::id::MigrationId;
use crate::resolution::Resolution;

/// How long the record of a migration that ended is kept, for people.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);
/// How many files are kept for that: of more, the oldest go.
const MOST: usize = 256;

/// Removes from `directory` what is old at `now`. What cannot be judged stays.
pub(super) fn prune(directory: &Path, now: SystemTime) {
    let Ok(entries) = directory.read_dir() else {
        return;
    };
    let mut names: Vec<(SystemTime, MigrationId, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (id, kind) = name.split_once('.')?;
            let changed = entry.metadata().and_then(|m| m.modified()).ok()?;
            Some((changed, id.parse().ok()?, kind.to_owned()))
        })
        .collect();
    names.sort_by(|(one, ..), (other, ..)| other.cmp(one));
    for (newer, (_, id, kind)) in names.into_iter().enumerate() {
        let pruning = Pruning {
            directory,
            now,
            crowded: newer >= MOST,
        };
        match kind.as_str() {
            "source" => pruning.source(id),
            "destination" => pruning.destination(id),
            "answer" | "finished" => pruning.orphan(id, &kind),
            _ => {}
        }
    }
}

struct Pruning<'a> {
    directory: &'a Path,
    now: SystemTime,
    /// Enough newer ones are there: age does not count.
    crowded: bool,
}

/// What a record is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// Somebody may ask for it.
    Needed,
    /// Nothing was decided: its migration may be under way.
    Open,
    /// It tells people what was.
    History,
}

impl Pruning<'_> {
    fn path(&self, id: MigrationId, kind: &str) -> PathBuf {
        self.directory.join(format!("{id}.{kind}"))
    }

    fn source(&self, id: MigrationId) {
        self.remove(
            &self.path(id, "source"),
            |record: Option<SourceRecord>| match record.map(|record| record.handover) {
                None | Some(Handover::Begun) => Worth::Open,
                Some(Handover::CommitSent) => Worth::Needed,
                Some(Handover::Gone | Handover::Kept) => Worth::History,
            },
        );
    }

    /// The decision goes first: what is left then says nothing, and goes too.
    fn destination(&self, id: MigrationId) {
        let never_ran = || {
            let answer = self.path(id, "answer");
            File::open(&answer)
                .is_ok_and(|file| matches!(read(&file, &answer), Ok(Some(Resolution::NeverRan))))
        };
        self.remove(&self.path(id, "destination"), |record| match record {
            None => Worth::Open,
            Some(Decision::GiveUp) => Worth::History,
            Some(Decision::Commit) if self.path(id, "finished").exists() || never_ran() => {
                Worth::History
            }
            Some(Decision::Commit) => Worth::Needed,
        });
        for kind in ["answer", "finished"] {
            self.orphan(id, kind);
        }
    }

    fn orphan(&self, id: MigrationId, kind: &str) {
        if !self.path(id, "destination").exists() {
            self.remove(&self.path(id, kind), |_: Option<Resolution>| Worth::History);
        }
    }

    /// Removes the file if nobody is at it, and it is old or crowded for what it is worth.
    fn remove<T: for<'de> Deserialize<'de>>(
        &self,
        path: &Path,
        worth: impl FnOnce(Option<T>) -> Worth,
    ) {
        let Ok(file) = File::open(path) else { return };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let is_old = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|changed| self.now.duration_since(changed).is_ok_and(|age| age > KEEP));
        if !(is_old || self.crowded) {
            return;
        }
        let may_go = read(&file, path).is_ok_and(|record| match worth(record) {
            Worth::Needed => false,
            Worth::Open => is_old,
            Worth::History => true,
        });
        if may_go {
            // It stays for the next time if that fails.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FileJournal, Journal};
    use super::*;
    use crate::observation::Side;

    fn decide(journal: &FileJournal, id: MigrationId, decision: Decision) {
        journal.reserve(id, Side::Destination).unwrap();
        assert_eq!(journal.decide(id, decision).unwrap(), decision);
    }

    fn later(days: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(days * 24 * 3600)
    }

    #[test]
    fn old_records_go_and_what_somebody_may_ask_about_stays() {
        let directory = tempfile::tempdir().unwrap();
        let journal = FileJournal::open(directory.path()).unwrap();
        let id = |number| MigrationId([number; 16]);
        let handovers = [
            Handover::Begun,
            Handover::Kept,
            Handover::Gone,
            Handover::CommitSent,
        ];
        for (number, handover) in (1..).zip(handovers) {
            let record = SourceRecord {
                handover,
                destination: "unix:/x".into(),
                host: None,
                overlay: None,
            };
            journal.record(id(number), &record).unwrap();
        }
        journal.reserve(id(5), Side::Destination).unwrap();
        decide(&journal, id(6), Decision::GiveUp);
        decide(&journal, id(7), Decision::Commit);
        journal.finish(id(7)).unwrap();
        decide(&journal, id(8), Decision::Commit);
        journal.answer(id(8), Resolution::NeverRan).unwrap();
        // Asked once, and the answer may have been lost again.
        decide(&journal, id(9), Decision::Commit);
        journal.answer(id(9), Resolution::Ran).unwrap();
        decide(&journal, id(10), Decision::Commit);
        std::fs::write(journal.path(id(11), "destination"), "damaged").unwrap();
        let count = || std::fs::read_dir(directory.path()).unwrap().count();
        let before = count();
        prune(directory.path(), later(29));
        assert_eq!(count(), before, "none is old");
        prune(directory.path(), later(31));
        let mut left: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = vec![
            format!("{}.source", id(4)),
            format!("{}.answer", id(9)),
            format!("{}.destination", id(9)),
            format!("{}.destination", id(10)),
            format!("{}.destination", id(11)),
            "identity".to_owned(),
        ];
        expected.sort();
        assert_eq!(left, expected);
        assert_eq!(journal.decision(id(10)).unwrap(), Some(Decision::Commit));
    }

    #[test]
    fn of_many_records_the_oldest_go_unless_they_are_needed() {
        let directory = tempfile::tempdir().unwrap();
        let journal = FileJournal::open(directory.path()).unwrap();
        let id = |number: u32| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            MigrationId(bytes)
        };
        // The oldest of all: not answered, not decided, and one that is history.
        decide(&journal, id(1), Decision::Commit);
        journal.reserve(id(2), Side::Destination).unwrap();
        decide(&journal, id(3), Decision::GiveUp);
        let old = SystemTime::now() - Duration::from_secs(3600);
        for number in 1..=3 {
            let path = journal.path(id(number), "destination");
            File::open(path).unwrap().set_modified(old).unwrap();
        }
        for number in 0..MOST as u32 {
            decide(&journal, id(100 + number), Decision::GiveUp);
        }
        prune(directory.path(), SystemTime::now());
        assert_eq!(journal.decision(id(1)).unwrap(), Some(Decision::Commit));
        assert!(journal.path(id(2), "destination").exists());
        assert!(!journal.path(id(3), "destination").exists());
        let kept = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(kept, MOST + 2 + 1, "with the identity");
    }

    #[test]
    fn a_record_that_is_in_use_stays() {
        let directory = tempfile::tempdir().unwrap();
        let journal = FileJournal::open(directory.path()).unwrap();
        let id = MigrationId([1; 16]);
        decide(&journal, id, Decision::GiveUp);
        let file = File::open(journal.path(id, "destination")).unwrap();
        flock(&file, FlockOperation::LockShared).unwrap();
        prune(directory.path(), later(31));
        assert_eq!(journal.decision(id).unwrap(), Some(Decision::GiveUp));
    }
}
