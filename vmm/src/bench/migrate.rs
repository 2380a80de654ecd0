//! One timed migration between the two hosts.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use migration::progress::{Event, Report};

use super::error::BenchError;
use super::guest::Guest;
use super::hosts::Hosts;
use super::mapping;
use super::process::Running;

/// How often the CPU time of the source's vCPUs is noted; they end with their process.
const VCPU_SAMPLE: Duration = Duration::from_millis(50);
/// Longest that a migration may take.
const MIGRATION: Duration = Duration::from_secs(600);
/// Longest that the source may take to end once its guest is gone.
const SOURCE_END: Duration = Duration::from_secs(30);

/// What one migration took.
pub(super) struct Migrated<'a> {
    /// The guest where it is now.
    pub guest: Guest<'a>,
    /// The engine's own account.
    pub report: Report,
    /// From the start of `vmm migrate` to its end.
    pub command_ms: f64,
    /// CPU seconds of the source without its vCPUs, its end included.
    pub source_cpu_s: f64,
    /// CPU seconds of the destination without its vCPUs.
    pub destination_cpu_s: f64,
    /// Guest memory that the source had allocated when the migration began.
    pub source_memfd_bytes: u64,
    /// Guest memory that the destination had allocated right after it.
    pub destination_memfd_bytes: u64,
}

/// Migrates `guest` over TCP, loopback, after warming up as much memory as it will need.
pub(super) fn migrate<'a>(
    hosts: &'a Hosts,
    mut guest: Guest<'a>,
    streams: u8,
    memory: u64,
) -> Result<Migrated<'a>, BenchError> {
    let (mut arrived, address) = Guest::receive(hosts, guest.name)?;
    let source_memfd_bytes = guest.process.proc().memfd_bytes()?;
    mapping::warm(memory)?;
    guest.forget_gaps()?;
    let source = guest.process.proc();
    let destination = arrived.process.proc();
    let source_before = source.cpu_seconds()?;
    let source_vcpus_before = source.vcpu_seconds()?;
    let destination_before = destination.cpu_seconds()?;

    let streams = streams.to_string();
    let arguments = [
        "migrate",
        guest.name,
        "--to",
        &address,
        "--streams",
        &streams,
        "--json",
    ];
    let began = Instant::now();
    let mut command = hosts.start(&hosts.source, &arguments, Stdio::piped())?;
    let events = read_events(&mut command)?;
    let (mut vcpus, mut sampled) = (source_vcpus_before, began);
    command.wait_ended(MIGRATION, || {
        if sampled.elapsed() >= VCPU_SAMPLE {
            sampled = Instant::now();
            // The source may be gone by now; what was noted last stands.
            vcpus = source.vcpu_seconds().map_or(vcpus, |now| now.max(vcpus));
        }
        Ok(())
    })?;
    let command_ms = began.elapsed().as_secs_f64() * 1000.0;
    let destination_cpu_s =
        destination.cpu_seconds()? - destination_before - destination.vcpu_seconds()?;
    let destination_memfd_bytes = destination.memfd_bytes()?;
    let report = outcome(&mut command, events)?;
    arrived.process.check()?;
    guest.process.wait_ended(SOURCE_END, || Ok(()))?;
    let source_vcpus = vcpus - source_vcpus_before;
    let source_cpu_s = source.cpu_seconds()? - source_before - source_vcpus;
    Ok(Migrated {
        guest: arrived,
        report,
        command_ms,
        source_cpu_s: source_cpu_s.max(0.0),
        destination_cpu_s: destination_cpu_s.max(0.0),
        source_memfd_bytes,
        destination_memfd_bytes,
    })
}

/// Reads what the command prints while it runs, so that it never waits for a reader.
fn read_events(command: &mut Running) -> Result<Reader, BenchError> {
    let output = command.take_stdout().ok_or_else(|| BenchError::Output {
        command: command.command().to_owned(),
        wanted: "anything",
    })?;
    let reader = move || BufReader::new(output).lines().map_while(Result::ok).last();
    std::thread::Builder::new()
        .spawn(reader)
        .map_err(|source| BenchError::Process {
            action: "read the output of",
            command: command.command().to_owned(),
            source,
        })
}

/// A thread that gives the last line of a command's output.
type Reader = std::thread::JoinHandle<Option<String>>;

/// The report in the last event of a migration.
fn outcome(command: &mut Running, events: Reader) -> Result<Report, BenchError> {
    let status = command.status()?;
    let last = events.join().ok().flatten();
    let report = match last.and_then(|line| serde_json::from_str(&line).ok()) {
        Some(Event::Completed(report)) if status.success() => return Ok(report),
        Some(Event::Completed(report) | Event::Failed(report) | Event::Cancelled(report)) => report,
        _ if status.success() => {
            return Err(BenchError::Output {
                command: command.command().to_owned(),
                wanted: "the report of the migration in its last line",
            });
        }
        _ => return Err(command.ended()),
    };
    Err(BenchError::Migration {
        status: report.status,
        explanation: report
            .error
            .map(|error| error.to_string())
            .unwrap_or_default(),
    })
}
