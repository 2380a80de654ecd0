//! A probe guest that runs on one of the hosts, or a host that waits for one.

use std::fs;
use std::io::{self, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::error::BenchError;
use super::hosts::{Host, Hosts};
use super::process::{POLL, Running};
use crate::instance::VmStatus;
use crate::probe::{ProbeLine, Tick, probe_lines};
use crate::units::ByteSize;

/// Guest memory beside what it fills: its code, tables and stacks.
pub(super) const GUEST_OVERHEAD: u64 = 64 << 20;
/// Milliseconds between two ticks of the guest.
const TICK_MS: u64 = 100;
/// Ticks that a measurement of gaps waits for, so that one lies wholly in the time measured.
const TICKS: usize = 2;
/// Longest that a start or an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest that the guest may take to fill a gibibyte.
const FILL_PER_GIB: Duration = Duration::from_secs(120);

/// What a guest does.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestSpec {
    /// Its memory in bytes.
    pub memory: u64,
    /// Bytes of it that it fills with random data.
    pub fill: u64,
}

impl GuestSpec {
    fn command_line(self) -> String {
        format!(
            "fill=random fill_size={} idle=spin tick_ms={TICK_MS}",
            ByteSize(self.fill)
        )
    }
}

/// A VM process of this benchmark; it ends when this is dropped.
pub(super) struct Guest<'a> {
    /// Its process.
    pub process: Running,
    /// Its name on its host.
    pub name: &'static str,
    hosts: &'a Hosts,
    host: &'a Host,
}

impl<'a> Guest<'a> {
    /// Starts a guest on the source host and waits until it has filled its memory and spins.
    pub fn start(
        hosts: &'a Hosts,
        name: &'static str,
        spec: GuestSpec,
    ) -> Result<Self, BenchError> {
        let memory = ByteSize(spec.memory).to_string();
        let command_line = spec.command_line();
        let arguments = ["run", name, "--memory", &memory, "--cmdline", &command_line];
        let host = &hosts.source;
        let process = hosts.start(host, &arguments, Stdio::null())?;
        let mut guest = Self {
            process,
            name,
            hosts,
            host,
        };
        let gibibytes = u32::try_from(spec.fill >> 30)
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        guest.wait_for(
            "the guest's `ready`",
            FILL_PER_GIB.saturating_mul(gibibytes),
            |text| {
                probe_lines(text)
                    .any(|line| matches!(line, ProbeLine::Ready(_)))
                    .then_some(())
            },
        )?;
        Ok(guest)
    }

    /// Has the destination host wait for a guest; the guest and the address that it waits at.
    pub fn receive(hosts: &'a Hosts, name: &'static str) -> Result<(Self, String), BenchError> {
        let arguments = ["receive", "--listen", "127.0.0.1:0", "--name", name];
        let host = &hosts.destination;
        let process = hosts.start(host, &arguments, Stdio::null())?;
        let mut guest = Self {
            process,
            name,
            hosts,
            host,
        };
        let deadline = Instant::now() + ANSWER;
        loop {
            guest.process.check()?;
            if let Some(address) = guest.status()?.and_then(|status| status.listen) {
                return Ok((guest, address));
            }
            if Instant::now() >= deadline {
                return Err(guest.process.deadline("an address to listen at", ANSWER));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The VM as its process sees it; `None` while that has no control socket yet.
    fn status(&self) -> Result<Option<VmStatus>, BenchError> {
        let arguments = ["status", self.name, "--json"];
        let mut command = self.hosts.start(self.host, &arguments, Stdio::piped())?;
        let mut printed = String::new();
        if let Some(mut stdout) = command.take_stdout() {
            stdout
                .read_to_string(&mut printed)
                .map_err(|source| BenchError::Process {
                    action: "read the output of",
                    command: command.command().to_owned(),
                    source,
                })?;
        }
        if !command.status()?.success() {
            return Ok(None);
        }
        serde_json::from_str(&printed)
            .map(Some)
            .map_err(|_| BenchError::Output {
                command: command.command().to_owned(),
                wanted: "the status of the VM",
            })
    }

    /// Has the guest forget the largest gap that it saw between two passes of its loop.
    pub fn forget_gaps(&mut self) -> Result<(), BenchError> {
        let failed = |e| BenchError::Console(self.name.to_owned(), e);
        let mut console = self
            .host
            .runtime
            .connect_console(self.name)
            .map_err(failed)?;
        console.write_all(b"g").map_err(failed)?;
        // The guest looks for a key at least once a tick: the second tick from now knows of it.
        self.wait_ticks("a tick after the key").map(drop)
    }

    /// The largest gap in milliseconds that the guest saw since it forgot the one before, known at
    /// ticks that it prints from now on.
    pub fn largest_gap_ms(&mut self) -> Result<f64, BenchError> {
        let ticks = self.wait_ticks("a tick of the guest")?;
        let us = ticks.iter().map(|tick| tick.max_gap_us).max().unwrap_or(0);
        Ok(us as f64 / 1000.0)
    }

    fn wait_ticks(&mut self, wanted: &str) -> Result<Vec<Tick>, BenchError> {
        let seen = self.printed().map_or(0, |text| ticks(&text).count());
        let ticks = self.wait_for(wanted, ANSWER, |text| {
            let ticks: Vec<_> = ticks(text).skip(seen).collect();
            (ticks.len() >= TICKS).then_some(ticks)
        })?;
        match ticks.iter().map(|tick| tick.faults).max() {
            Some(0) => Ok(ticks),
            faults => Err(BenchError::Guest {
                name: self.name.to_owned(),
                faults: faults.unwrap_or(0),
            }),
        }
    }

    fn wait_for<T>(
        &mut self,
        wanted: &str,
        within: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T, BenchError> {
        let deadline = Instant::now() + within;
        loop {
            self.process.check()?;
            // The log is there once the process has its console.
            if let Some(found) = self.printed().ok().and_then(|text| find(&text)) {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                return Err(self.process.deadline(wanted, within));
            }
            std::thread::sleep(POLL);
        }
    }

    /// All that the guest printed on this host.
    fn printed(&self) -> io::Result<String> {
        let bytes = fs::read(self.host.runtime.serial_log(self.name))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn ticks(printed: &str) -> impl Iterator<Item = Tick> + '_ {
    probe_lines(printed).filter_map(|line| match line {
        ProbeLine::Tick(tick) => Some(tick),
        _ => None,
    })
}
