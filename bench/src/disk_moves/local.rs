//! A disk that moves on its host, there and back, while its guest writes to it.

use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

use control::disk_move::DiskMoveReport;
use control::job::Job;

use super::super::disks::MovingDisk;
use super::super::engine::{self, DiskCache};
use super::super::error::BenchError;
use super::super::guest::Guest;
use super::super::hosts::Hosts;
use super::super::rounds::TakesTurns;
use super::super::terms::Terms;
use super::super::watch::Watch;
use super::plan::DiskPlan;
use super::role::MoverRole;
use super::turn::{DiskTurn, rate};

/// The guest's name.
const VM: &str = "local";
/// How often the disk goes there and back in a turn.
const RETURNS: u32 = 2;

/// This engine, the only contender: QEMU has no such move with a pause of its own to compare.
pub(super) struct Local;

impl Local {
    pub const ROLE: MoverRole = MoverRole::Engine;

    /// Starts a guest and moves its disk; what each move took.
    pub fn turn(
        &self,
        hosts: &Hosts,
        plan: &DiskPlan,
        terms: &Terms<'_>,
    ) -> Result<Vec<DiskTurn>, BenchError> {
        let there = &terms.disks[0];
        let back = there.back();
        let disks = std::slice::from_ref(there);
        let mut guest = engine::start(hosts, VM, &plan.workload, disks, DiskCache::Host)?;
        let mut turns = Vec::new();
        for _ in 0..RETURNS {
            for disk in [there, &back] {
                turns.push(one(hosts, terms, &mut guest, disk)?);
            }
        }
        Ok(turns)
    }
}

impl TakesTurns for Local {
    fn name(&self) -> String {
        "vmm disk move".to_owned()
    }

    fn is_left_out_after(&self, _: &BenchError) -> bool {
        false
    }
}

/// One move, after which the old image is gone.
fn one(
    hosts: &Hosts,
    terms: &Terms<'_>,
    guest: &mut Guest,
    disk: &MovingDisk,
) -> Result<DiskTurn, BenchError> {
    let (what, to) = (format!("{VM}:{}", disk.id), disk.destination.display());
    let to = to.to_string();
    let arguments = [
        "disk", "move", &what, "--to", &to, "--after", "delete", "--json",
    ];
    disk.cool()?;
    guest.forget_gaps()?;
    let watch = Watch::begin(guest, terms.link, true)?;
    let began = Instant::now();
    let mut command = hosts.start(&hosts.source, &arguments, Stdio::piped())?;
    let output = command.take_stdout();
    // What it prints in JSON fits a pipe.
    command.wait_ended(terms.patience)?;
    let total_ms = began.elapsed().as_secs_f64() * 1000.0;
    let beside = watch.end_in_place(guest, terms.link)?;
    if !command.status()?.success() {
        return Err(command.ended());
    }
    let mut printed = String::new();
    output
        .map_or(Ok(0), |mut output| output.read_to_string(&mut printed))
        .map_err(|source| BenchError::Process {
            action: "read the output of",
            command: command.command().to_owned(),
            source,
        })?;
    let report = report(&printed).ok_or_else(|| BenchError::Output {
        command: command.command().to_owned(),
        wanted: "the report of a move",
    })?;
    let DiskMoveReport {
        allocated_bytes,
        copied_bytes,
        io_pause_us,
        ..
    } = report;
    Ok(DiskTurn {
        total_ms,
        guest_gap_ms: Some(guest.largest_gap_ms()?),
        io_pause_ms: Some(io_pause_us as f64 / 1000.0),
        disk_sent_to_data: (allocated_bytes > 0)
            .then(|| copied_bytes as f64 / allocated_bytes as f64),
        bulk_bytes_per_s: rate(allocated_bytes, total_ms),
        beside,
        ..DiskTurn::default()
    })
}

/// The report in what a move of one disk prints.
fn report(printed: &str) -> Option<DiskMoveReport> {
    let mut lines = printed.lines().rev();
    lines.find_map(|line| serde_json::from_str::<Job>(line).ok()?.result?.disk_move)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_in_the_last_job_that_is_printed() {
        let job = |id: &str, pause: &str| {
            format!(
                r#"{{"id":"{id}","kind":"disk-move","state":"concluded","progress":{{}}{pause}}}"#
            )
        };
        let told = |us: u64| {
            let report = DiskMoveReport {
                io_pause_us: us,
                ..DiskMoveReport::default()
            };
            let report = serde_json::to_string(&report).unwrap();
            format!(r#","result":{{"outcome":"completed","disk_move":{report}}}"#)
        };
        let printed = [job("a", &told(3)), job("b", &told(5)), "{}".to_owned()].join(
            "
",
        );
        let found = report(&printed).unwrap_or_else(|| panic!("none in {printed}"));
        assert_eq!(found.io_pause_us, 5);
        assert_eq!(report(&job("a", "")), None);
    }
}
