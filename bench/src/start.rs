//! `start`: from `vmm run` to the guest's first line, and the memory of the VMM beside guest RAM.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::BenchError;
use super::goal::{Bound, Goal};
use super::hosts::Hosts;
use super::mapping::{self, Warmth};
use super::proc::Process;
use super::process::{POLL, Running};
use super::progress::progress;
use super::stats::Samples;
use super::table::{self, Table};
use super::unit::Unit;

/// Starts that are timed.
pub const STARTS: u32 = 20;
/// Memory of the guest.
const MEMORY: &str = "256MiB";
/// Memory that a start warms up: the VMM's own and what the guest touches first.
const WARM: Warmth = Warmth {
    small: 64 << 20,
    huge: 2 << 20,
};
/// Longest that a start may take.
const START: Duration = Duration::from_secs(30);
/// The first line that the guest prints.
const FIRST_LINE: &str = "PROBE hello";
/// The line at which the guest has started all that it has, and the VMM needs what it will need.
const READY_LINE: &str = "PROBE ready";

/// Figures of starting a guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StartFigures {
    /// From spawning `vmm run` to the guest's first line on its standard output.
    pub first_line_ms: Samples,
    /// Private and file memory of the VMM process once the guest is ready; guest RAM, which is
    /// shared memory, aside.
    pub vmm_memory_bytes: Samples,
}

impl StartFigures {
    /// The table for people.
    pub(super) fn table(&self) -> Table {
        table::samples(&[
            ("first line", &self.first_line_ms, Unit::Milliseconds),
            (
                "VMM memory beside guest RAM",
                &self.vmm_memory_bytes,
                Unit::Bytes,
            ),
        ])
    }

    /// What these figures are to reach.
    pub(super) fn goals(&self) -> Vec<Goal> {
        vec![
            Goal::new(
                "start",
                "first_line_ms",
                self.first_line_ms.median,
                Bound::AtMost,
                60.0,
                Unit::Milliseconds,
            ),
            Goal::new(
                "start",
                "vmm_memory_bytes",
                self.vmm_memory_bytes.median,
                Bound::AtMost,
                f64::from(30 << 20),
                Unit::Bytes,
            ),
        ]
    }
}

/// Memory that a run needs at once.
pub(super) fn needed_memory() -> u64 {
    2 * WARM.bytes()
}

struct Start {
    first_line: Duration,
    vmm_memory: u64,
}

/// Times [`STARTS`] starts.
pub(super) fn measure(hosts: &Hosts) -> Result<Option<StartFigures>, BenchError> {
    progress(format_args!("start: {STARTS} starts"));
    let starts = (0..STARTS)
        .map(|_| start(hosts))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(figures(&starts))
}

fn start(hosts: &Hosts) -> Result<Start, BenchError> {
    mapping::warm(WARM)?;
    let arguments = ["run", "start", "--memory", MEMORY];
    let began = Instant::now();
    let mut vmm = hosts.start(&hosts.source, &arguments, Stdio::piped())?;
    let lines = read_lines(&mut vmm)?;
    let first = wait_for_line(&mut vmm, &lines, FIRST_LINE)?;
    wait_for_line(&mut vmm, &lines, READY_LINE)?;
    Ok(Start {
        first_line: first.saturating_duration_since(began),
        vmm_memory: beside_guest_ram(&vmm.proc())?,
    })
}

/// Private and file memory of a VMM process.
fn beside_guest_ram(vmm: &Process) -> Result<u64, BenchError> {
    let resident = vmm.resident()?;
    Ok(resident.anonymous + resident.file)
}

/// Reads what the guest prints and notes when each line appeared.
fn read_lines(vmm: &mut Running) -> Result<mpsc::Receiver<(Instant, String)>, BenchError> {
    let output = vmm.take_stdout().ok_or_else(|| BenchError::Output {
        command: vmm.command().to_owned(),
        wanted: "anything",
    })?;
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens once the line that was waited for has come.
            if sender.send((Instant::now(), line)).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .spawn(read)
        .map_err(|source| BenchError::Process {
            action: "read the output of",
            command: vmm.command().to_owned(),
            source,
        })?;
    Ok(receiver)
}

fn wait_for_line(
    vmm: &mut Running,
    lines: &mpsc::Receiver<(Instant, String)>,
    wanted: &str,
) -> Result<Instant, BenchError> {
    let deadline = Instant::now() + START;
    loop {
        match lines.recv_timeout(POLL) {
            Ok((when, line)) if line.starts_with(wanted) => return Ok(when),
            Ok(_) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => vmm.check()?,
            // Its output ended: so will it.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                vmm.wait_ended(START)?;
                return Err(vmm.ended());
            }
        }
        if Instant::now() >= deadline {
            return Err(vmm.deadline(&format!("the line `{wanted}`"), START));
        }
    }
}

fn figures(starts: &[Start]) -> Option<StartFigures> {
    Some(StartFigures {
        first_line_ms: Samples::of(starts, |start| start.first_line.as_secs_f64() * 1000.0)?,
        vmm_memory_bytes: Samples::of(starts, |start| start.vmm_memory as f64)?,
    })
}
