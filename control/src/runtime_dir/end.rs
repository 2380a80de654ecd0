//! How a VM ended, kept in its folder until its name is used again.
//!
//! The record gets its name when it is whole, so there is never half of one but after the host itself
//! crashed, and that is told as what it is. What is read is bounded: others may have written it.

use std::io::{self, Read, Write};

use migration::observation::Observation;
use rustix::fs::OFlags;

use super::error::failed;
use super::files::{END, END_DRAFT, FAILED, PID, SOCKETS};
use super::folder::Folder;
use crate::instance::{Ending, VmEnd, VmState, VmStatus};

/// What was written when a VM ended; of one whose end nobody has seen yet, when it began.
pub(super) const WHEN: [&str; 3] = [END, FAILED, PID];
/// Bytes of a record.
const LIMIT: u64 = 256 << 10;

/// Ends that are kept; the oldest go first.
const KEPT: usize = 64;
/// Bytes on disk of all that is kept; one alone, with its logs, is smaller.
const KEPT_BYTES: u64 = 64 << 20;

/// Keeps `status` as the end of the VM whose folder this is.
///
/// # Errors
/// What writing it gives: there is no record then.
pub(super) fn write(folder: &Folder, status: &VmStatus) -> io::Result<()> {
    let text = serde_json::to_vec(status).map_err(io::Error::other)?;
    if text.len() as u64 > LIMIT {
        return Err(io::Error::other("the record of the end is too long"));
    }
    let written = folder
        .create(END_DRAFT, OFlags::TRUNC)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| folder.rename(END_DRAFT, END))
        .and_then(|()| folder.mark());
    if written.is_err() {
        let _ = folder.unlink(END_DRAFT);
    }
    written
}

/// How the VM `name` ended, whose folder nobody holds; `pid` had it. What was not recorded is recorded
/// now, if that is possible.
pub(super) fn of(folder: &Folder, name: &str, pid: Option<u32>) -> io::Result<VmStatus> {
    let mut status = match recorded(folder)? {
        Some(status) => status,
        None => {
            let status = killed(pid, None);
            settle(folder, &status);
            status
        }
    };
    name.clone_into(&mut status.name);
    Ok(status)
}

/// Records that the process was killed by `by`, where its end is not recorded.
pub(super) fn note_killed(folder: &Folder, pid: Option<u32>, by: &str) -> io::Result<()> {
    if recorded(folder)?.is_none() {
        settle(folder, &killed(pid, Some(by)));
    }
    Ok(())
}

/// Records the end of a VM whose process is gone, and removes its sockets.
fn settle(folder: &Folder, status: &VmStatus) {
    // Who may only look is told all the same.
    for socket in SOCKETS {
        let _ = folder.unlink(socket);
    }
    if let Err(error) = write(folder, status) {
        tracing::debug!(%error, "the end of a killed VM is not recorded");
    }
}

fn recorded(folder: &Folder) -> io::Result<Option<VmStatus>> {
    for name in [END, FAILED] {
        let Some(file) = folder.open(name)? else {
            continue;
        };
        let mut text = Vec::new();
        file.take(LIMIT + 1).read_to_end(&mut text)?;
        let status: Option<VmStatus> = (text.len() as u64 <= LIMIT)
            .then(|| serde_json::from_slice(&text).ok())
            .flatten();
        return Ok(Some(match status {
            Some(status) if status.state.is_final() => status,
            _ => unreadable(),
        }));
    }
    Ok(None)
}

/// The end of a VM whose process did not tell it.
fn killed(pid: Option<u32>, by: Option<&str>) -> VmStatus {
    let who = by.map(|by| format!(", by {by}")).unwrap_or_default();
    let message = format!("the process of the VM was killed{who}, or its host went down with it");
    let end = VmEnd {
        by: by.map(str::to_owned),
        ..VmEnd::new(Ending::Killed)
    };
    without_word(pid, end, failed("vm.killed", message))
}

fn unreadable() -> VmStatus {
    let message = "the record of how the VM ended cannot be read";
    without_word(
        None,
        VmEnd::new(Ending::Unknown),
        failed("vm.end-record", message),
    )
}

fn without_word(pid: Option<u32>, end: VmEnd, why: Observation) -> VmStatus {
    VmStatus {
        name: String::new(),
        state: VmState::Failed,
        pid: pid.unwrap_or(0),
        cpus: 0,
        memory_bytes: 0,
        disks: Vec::new(),
        uptime_ms: 0,
        listen: None,
        migration: None,
        error: Some(why),
        end: Some(end),
        failed_migrations: 0,
        last_failure: None,
    }
}

/// Which ends go, given name, age and size of all: more would be kept than there may be.
///
/// `ends` is name, second at which it was recorded, bytes on disk.
pub(super) fn surplus(mut ends: Vec<(String, i64, u64)>) -> Vec<String> {
    ends.sort_by_key(|(_, at, _)| std::cmp::Reverse(*at));
    let mut bytes = 0;
    let mut gone = Vec::new();
    for (number, (name, _, size)) in ends.into_iter().enumerate() {
        bytes += size;
        if number >= KEPT || bytes > KEPT_BYTES {
            gone.push(name);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(name: &str, at: i64, mib: u64) -> (String, i64, u64) {
        (name.to_owned(), at, mib << 20)
    }

    #[test]
    fn the_oldest_ends_go_when_there_are_too_many() {
        let ends = (0..70).map(|n| end(&format!("vm-{n}"), n, 0)).collect();
        let gone = surplus(ends);
        let oldest: Vec<_> = (0..6).rev().map(|n| format!("vm-{n}")).collect();
        assert_eq!(gone, oldest);
    }

    #[test]
    fn the_oldest_ends_go_when_they_are_too_large() {
        let ends = vec![end("old", 1, 20), end("new", 3, 32), end("middle", 2, 32)];
        assert_eq!(surplus(ends), ["old"]);
        assert!(surplus(vec![end("one", 1, 32)]).is_empty());
    }
}
