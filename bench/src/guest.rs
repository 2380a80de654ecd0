//! A probe guest on any VMM: a process, what the guest prints, and a console to press keys at.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use control::units::ByteSize;
use machine::probe::{DiskStats, ProbeLine, Tick, probe_lines};
use serde::Serialize;

use super::disks::MovingDisk;
use super::error::BenchError;
use super::process::{POLL, Running};

/// Guest memory beside what it fills and dirties: its code, tables and stacks.
pub(super) const GUEST_OVERHEAD: u64 = 64 << 20;
/// Milliseconds between two ticks of the guest.
const TICK_MS: u64 = 100;
/// Ticks that a measurement of gaps waits for, so that one lies wholly in the time measured.
const TICKS: usize = 2;
/// Longest that a start or an answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Longest that the guest may take to fill a gibibyte.
const FILL_PER_GIB: Duration = Duration::from_secs(120);

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Its vCPUs, all of which spin.
    pub cpus: u8,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Bytes of it that it fills with random data, and verifies all the time.
    pub random_bytes: u64,
    /// Bytes of it that it writes to, beside the random ones.
    pub dirty_bytes: u64,
    /// Pages of those that it writes to a second.
    pub dirty_pages_per_s: u64,
}

impl Workload {
    /// Bytes that hold data, which any migration has to move.
    pub fn data_bytes(&self) -> u64 {
        self.random_bytes + self.dirty_bytes
    }

    /// The kernel command line of a guest with these disks.
    pub(super) fn command_line(&self, disks: &[MovingDisk]) -> String {
        let mut line = format!("idle=spin tick_ms={TICK_MS} cpus={}", self.cpus);
        if self.random_bytes > 0 {
            line += &format!(" fill=random fill_size={}", ByteSize(self.random_bytes));
        }
        if self.dirty_bytes > 0 {
            line += &format!(
                " dirty_set={} dirty_rate={}",
                ByteSize(self.dirty_bytes),
                self.dirty_pages_per_s
            );
        }
        for disk in disks {
            line += &format!(" {}", disk.word());
        }
        line
    }
}

/// Connects to a guest's console.
pub(super) type Console = Box<dyn Fn() -> io::Result<UnixStream>>;

/// A VM process of this benchmark; it ends when this is dropped.
pub(super) struct Guest {
    /// Its process.
    pub process: Running,
    name: &'static str,
    log: PathBuf,
    console: Console,
}

/// What the guest said after it arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// When its first tick was seen.
    pub first_tick_at: Instant,
    /// That tick.
    pub first_tick: Tick,
}

impl Arrival {
    /// Pages that the guest dirtied a second between the tick `before` and its first one here.
    pub fn dirtied_pages_per_s(&self, before: &Tick) -> f64 {
        let pages = self.first_tick.dirtied.saturating_sub(before.dirtied);
        let ms = self.first_tick.up_ms.saturating_sub(before.up_ms);
        if ms == 0 {
            0.0
        } else {
            pages as f64 * 1000.0 / ms as f64
        }
    }
}

impl Guest {
    /// A guest whose output goes to `log`.
    pub fn new(process: Running, name: &'static str, log: PathBuf, console: Console) -> Self {
        Self {
            process,
            name,
            log,
            console,
        }
    }

    /// Waits until the guest has filled its memory and spins.
    pub fn wait_ready(&mut self, workload: &Workload) -> Result<(), BenchError> {
        let gibibytes = u32::try_from(workload.data_bytes() >> 30)
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        self.wait_for(
            "the guest's `ready`",
            FILL_PER_GIB.saturating_mul(gibibytes),
            |text| {
                probe_lines(text)
                    .any(|line| matches!(line, ProbeLine::Ready(_)))
                    .then_some(())
            },
        )
    }

    /// Has the guest forget the largest gap that it saw between two passes of its loop; its newest
    /// tick after that.
    pub fn forget_gaps(&mut self) -> Result<Tick, BenchError> {
        let failed = |e| BenchError::Console(self.name.to_owned(), e);
        let mut console = (self.console)().map_err(failed)?;
        console.write_all(b"g").map_err(failed)?;
        // QEMU holds the guest's output back for a client that does not read it.
        drop(console);
        // The guest looks for a key at least once a tick: the second tick from now knows of it.
        let ticks = self.wait_ticks("a tick after the key")?;
        ticks.last().copied().ok_or_else(|| {
            self.process
                .deadline("a tick of the guest after the key", ANSWER)
        })
    }

    /// Waits for the first tick of a guest that was moved here.
    pub fn wait_arrived(&mut self) -> Result<Arrival, BenchError> {
        let first_tick = self.wait_for("the first tick of the guest", ANSWER, |text| {
            ticks(text).next()
        })?;
        Ok(Arrival {
            first_tick_at: Instant::now(),
            first_tick,
        })
    }

    /// The largest gap in milliseconds that the guest saw since it forgot the one before, known at
    /// ticks that it prints from now on.
    pub fn largest_gap_ms(&mut self) -> Result<f64, BenchError> {
        let ticks = self.wait_ticks("a tick of the guest")?;
        let us = ticks.iter().map(|tick| tick.max_gap_us).max().unwrap_or(0);
        Ok(us as f64 / 1000.0)
    }

    /// The interval number `nth`, counted from 0, in which the guest made disk requests of kind `op`, once it is
    /// over; within `patience`.
    pub fn disk_interval(
        &mut self,
        op: &str,
        nth: usize,
        patience: Duration,
    ) -> Result<DiskStats, BenchError> {
        let (stats, faults) = self.wait_for("its requests of a disk", patience, |text| {
            let faults = probe_lines(text).filter(|line| matches!(line, ProbeLine::Fault(_)));
            let faults = faults.count() as u64;
            let stats = intervals(text, op).nth(nth);
            (stats.is_some() || faults > 0).then_some((stats, faults))
        })?;
        stats.filter(|_| faults == 0).ok_or(BenchError::Guest {
            name: self.name.to_owned(),
            faults,
        })
    }

    /// The intervals that are over in which the guest made disk requests of kind `op`.
    pub fn disk_intervals(&self, op: &str) -> Vec<DiskStats> {
        // What cannot be read now was not printed yet.
        let text = self.printed().unwrap_or_default();
        intervals(&text, op).collect()
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
        let bytes = fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Intervals in which there were requests of kind `op`.
fn intervals(printed: &str, op: &str) -> impl Iterator<Item = DiskStats> {
    probe_lines(printed).filter_map(move |line| match line {
        ProbeLine::DiskStats(stats) if stats.op == op && stats.span == "interval" => {
            (stats.count > 0).then_some(stats)
        }
        _ => None,
    })
}

fn ticks(printed: &str) -> impl Iterator<Item = Tick> + '_ {
    probe_lines(printed).filter_map(|line| match line {
        ProbeLine::Tick(tick) => Some(tick),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_asks_for_what_the_guest_is_to_do() {
        let workload = Workload {
            cpus: 2,
            memory_bytes: 1 << 30,
            random_bytes: 768 << 20,
            dirty_bytes: 256 << 20,
            dirty_pages_per_s: 25_000,
        };
        assert_eq!(
            workload.command_line(&[]),
            "idle=spin tick_ms=100 cpus=2 fill=random fill_size=768MiB dirty_set=256MiB \
             dirty_rate=25000"
        );
        assert_eq!(workload.data_bytes(), 1 << 30);
        let untouched = Workload {
            cpus: 1,
            random_bytes: 0,
            dirty_bytes: 0,
            ..workload
        };
        assert_eq!(untouched.command_line(&[]), "idle=spin tick_ms=100 cpus=1");
    }
}
