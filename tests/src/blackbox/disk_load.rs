//! What the probe guest's loads of disks print, as far as more than one test waits for it.

use super::Console;
use super::wait::eventually;
use crate::probe::{DiskCounts, DiskReady, ProbeLine, probe_lines};

/// The lines of one kind that the guest printed until now.
pub fn printed<T>(console: &mut Console, kind: impl Fn(ProbeLine) -> Option<T>) -> Vec<T> {
    probe_lines(&console.text()).filter_map(kind).collect()
}

/// What load `disk` says of itself, once it does.
#[track_caller]
pub fn ready(console: &mut Console, disk: u64) -> DiskReady {
    let ready = |line| match line {
        ProbeLine::DiskReady(ready) if ready.disk == disk => Some(ready),
        _ => None,
    };
    eventually("the load is ready", || printed(console, ready).pop())
}

/// What load `disk` has told of itself until now.
pub fn counts(console: &mut Console, disk: u64) -> Vec<DiskCounts> {
    printed(console, |line| match line {
        ProbeLine::Disk(counts) if counts.disk == disk => Some(counts),
        _ => None,
    })
}

/// Waits until load `disk` has made so many more changes, as a load does that goes on.
#[track_caller]
pub fn goes_on(console: &mut Console, disk: u64, changes: u64) {
    let acked = |console: &mut Console| counts(console, disk).last().map_or(0, |c| c.acked);
    let before = acked(console);
    eventually("the load goes on", || {
        console.is_unharmed();
        (acked(console) >= before + changes).then_some(())
    });
}
