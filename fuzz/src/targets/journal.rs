//! Records of the journal, which may be damaged or written by somebody else.

use std::fs;
use std::path::PathBuf;

use migration::MigrationId;
use migration::journal::{Decision, FileJournal, Handover, Journal, SourceRecord};
use migration::observation::Side;
use migration::source::Resolution;

use crate::input::counted;
use crate::target::SMALL;
use crate::{Input, Target};

/// The files of a journal.
pub(super) const JOURNAL: Target = Target {
    name: "journal",
    run,
    seeds,
    words: &[
        "\"commit\"",
        "\"give-up\"",
        "\"ran\"",
        "\"never-ran\"",
        "{\"handover\":\"begun\",\"destination\":\"unix:/x\"}",
        "commit-sent",
        "host",
    ],
    longest: 1024,
    memory: SMALL,
};

const ID: MigrationId = MigrationId([5; 16]);

/// A folder that goes with its journal, in memory where the machine has such a place: a journal
/// waits for the disk at every record.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(place).expect("a temporary folder")
}

fn run(bytes: &[u8]) {
    let folder = folder();
    let mut input = Input::new(bytes);
    let which = input.u8();
    let names = ["source", "destination", "answer"].map(|name| format!("{ID}.{name}"));
    let files = names.into_iter().chain(["identity".to_owned()]);
    for (bit, name) in files.enumerate() {
        if which & (1 << bit) != 0 {
            fs::write(folder.path().join(name), input.counted()).expect("a file");
        }
    }
    let Ok(journal) = FileJournal::open(folder.path()) else {
        return;
    };
    let same = FileJournal::open(folder.path()).expect("what was opened once");
    assert_eq!(journal.identity(), same.identity());
    if let Ok(Some(record)) = journal.recorded(ID)
        && journal.record(ID, &record).is_ok()
    {
        assert_eq!(journal.recorded(ID).ok().flatten(), Some(record));
    }
    // What stands is never changed, and whatever is found damaged is not taken for a decision.
    if let Ok(found) = journal.decision(ID) {
        let decided = journal.decide(ID, Decision::GiveUp);
        if let Ok(decided) = decided {
            assert_eq!(decided, found.unwrap_or(Decision::GiveUp));
            // Where there is no room, nothing is recorded, and no commit can come any more.
            let stands = journal.decision(ID).ok().flatten();
            assert_eq!(stands.unwrap_or(Decision::GiveUp), decided);
            assert_eq!(journal.decide(ID, Decision::Commit).ok(), Some(decided));
        }
    } else {
        assert!(journal.decide(ID, Decision::GiveUp).is_err());
    }
    if let Ok(answer) = journal.answer(ID, Resolution::NeverRan) {
        assert_eq!(journal.answer(ID, Resolution::Ran).ok(), Some(answer));
    }
    for side in [Side::Source, Side::Destination] {
        let _ = journal.reserve(ID, side);
        let _ = journal.discard(ID, side);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let folder = folder();
    let Ok(journal) = FileJournal::open(folder.path()) else {
        return Vec::new();
    };
    let record = SourceRecord {
        handover: Handover::CommitSent,
        destination: "unix:/run/x.sock".into(),
        host: Some(journal.identity()),
        overlay: None,
    };
    let written = [
        journal.record(ID, &record).is_ok(),
        journal.reserve(ID, Side::Destination).is_ok(),
        journal.decide(ID, Decision::Commit).is_ok(),
        journal.answer(ID, Resolution::Ran).is_ok(),
    ];
    if written != [true; 4] {
        return Vec::new();
    }
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap_or_default();
    // Records are padded with zeroes, which a mutation need not carry along.
    let trimmed = |name: &str| {
        let bytes = read(&format!("{ID}.{name}"));
        let len = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        counted(&bytes[..len])
    };
    let parts = [trimmed("source"), trimmed("destination"), trimmed("answer")];
    let identity = counted(&read("identity"));
    let mut all = vec![0b1111];
    all.extend(parts.iter().flatten());
    all.extend(&identity);
    let mut seeds: Vec<Vec<u8>> = (0..3)
        .map(|part| [&[1_u8 << part][..], &parts[part]].concat())
        .collect();
    seeds.push([&[8][..], &identity].concat());
    seeds.push(all);
    seeds
}
