//! What is so while a migration stands in a phase, and what must be left of it in a process that holds
//! the guest afterwards.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Phase;
use crate::blackbox::{Pair, Vms, leftovers, wait};
use crate::{Host, eventually};

/// Name of the guest on both hosts.
pub const NAME: &str = "guest";

/// How long what is left may take to go: longer than the engine waits for a peer that is silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes that an owner holds of those by which QEMU knows that an image is in use (ADR 2).
const AGAINST_QEMU: [(u64, u64); 4] = [(100, 101), (103, 103), (201, 201), (203, 203)];

/// What a process holds, apart from what it takes to answer those who ask for its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    threads: Vec<String>,
    files: usize,
    memories: usize,
    machines: usize,
    connections: Vec<String>,
    locks: Vec<(u64, u64)>,
}

impl Holdings {
    /// Of the process `pid`, and the locks on the disk of its guest.
    pub fn of(pid: u32, disk: &Path) -> Self {
        let mut threads = leftovers::threads(pid);
        // The first answers requests, the second is the kernel's.
        let others = |name: &String| name != leftovers::ANSWERING && !name.starts_with("kvm-");
        threads.retain(others);
        threads.sort_unstable();
        let files = leftovers::open_files(pid).into_iter();
        // Clients come and go; the peer's connections are counted by themselves.
        let files = files.filter(|file| !file.as_os_str().as_bytes().starts_with(b"socket:"));
        let mut locks = leftovers::locks(disk);
        locks.sort_unstable();
        Self {
            threads,
            files: files.count(),
            memories: leftovers::memories(pid),
            machines: leftovers::machines(pid),
            connections: leftovers::connections(pid),
            locks,
        }
    }

    /// Whether nothing of a migration is left in it.
    fn is_settled(&self) -> bool {
        let passing = ["migration", "disk-claims", "flush"];
        let passes = |name: &&String| passing.iter().any(|passing| name.starts_with(passing));
        // Whoever received the guest answers for ever who has it.
        let incoming = self.threads.iter().filter(|name| *name == "incoming");
        self.threads.iter().filter(passes).count() == 0
            && incoming.count() <= 1
            && (self.memories, self.machines) == (1, 1)
            && self.connections.is_empty()
            && self.is_claimed_once()
    }

    /// Both parts of the claim are in one hand, where they lie beside each other, and with them what keeps
    /// QEMU out.
    fn is_claimed_once(&self) -> bool {
        let (against_qemu, claim): (Vec<_>, Vec<_>) = self
            .locks
            .iter()
            .copied()
            .partition(|(_, last)| *last < 300);
        against_qemu == AGAINST_QEMU
            && claim.len() == 1
            && claim.iter().all(|(first, last)| *last == first + 1)
    }
}

/// Waits until the process of the guest on `host` holds the guest and nothing else; what it held
/// `before` the migration, if it was there.
///
/// # Panics
/// When something stays.
#[track_caller]
pub fn settles(host: &Host, disk: &Path, before: Option<&Holdings>) {
    let pid = host.pid(NAME);
    let mut last = None;
    let settled = eventually(PATIENCE, || {
        let now = Holdings::of(pid, disk);
        let settled = now.is_settled() && before.is_none_or(|before| *before == now);
        last = Some(now);
        settled.then_some(())
    });
    assert!(
        settled.is_some(),
        "of the migration stays {last:#?}, before it was {before:#?}"
    );
}

/// Both hosts tell where the migration stands, and no more than one that it runs the guest.
///
/// # Panics
/// When one does not.
#[track_caller]
pub fn is_told(pair: &Pair, phase: Phase) {
    // It may not have taken up yet what the source has sent.
    let mut destination = Value::Null;
    let is_there = eventually(wait::PATIENCE, || {
        destination = pair.destination.status(NAME);
        let told = &destination["migration"]["last"]["phase"];
        (*told == phase.as_destination_tells()).then_some(())
    });
    assert!(is_there.is_some(), "not as far: {destination:#}");
    let source = pair.source.status(NAME);
    let states = [&source["state"], &destination["state"]];
    let wanted = if phase.runs_at_source() {
        ["running", "incoming"]
    } else if phase == Phase::Finish {
        ["handing-over", "running"]
    } else {
        ["handing-over", "incoming"]
    };
    assert_eq!(states, wanted, "{source:#} {destination:#}");
    let told = &source["migration"]["last"]["phase"];
    assert_eq!(told, phase.as_source_tells(), "{source:#}");
    for status in [&source, &destination] {
        assert!(status["error"].is_null(), "{status:#}");
    }
    assert_eq!(
        source["migration"]["id"], destination["migration"]["id"],
        "{source:#} {destination:#}"
    );
}

/// The host that has the guest tells of its last migration what `report` says, or, where it came in,
/// that it came.
///
/// # Panics
/// When it tells otherwise.
#[track_caller]
pub fn is_remembered(status: &Value, report: Option<&Value>) {
    let last = &status["migration"]["last"];
    match report {
        Some(report) => {
            assert_eq!(last["status"], report["status"], "{status:#}");
            assert_eq!(last["error"], report["error"], "{status:#}");
        }
        None => {
            assert_eq!(last["event"], "completed", "{status:#}");
            assert!(last["error"].is_null(), "{status:#}");
        }
    }
    assert!(status["error"].is_null(), "{status:#}");
}

/// The host lists this VM as its only one, in the state that its status tells.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn is_listed(host: &Host) {
    let listed = host.vmm(["list", "--json"]).success().json_lines();
    let states: Vec<_> = listed
        .iter()
        .map(|vm| (&vm["name"], &vm["state"]))
        .collect();
    let status = host.status(NAME);
    assert_eq!(states, [(&NAME.into(), &status["state"])], "{status:#}");
}
