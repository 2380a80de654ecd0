//! What is watched inside the guest.

use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::avx;
use super::clocks::{Monotonic, Wall};
use super::faults::Faults;
use super::server::{self, Served};
use super::sys;
use super::timers::{self, Tally};

/// How long the vector registers are held before they are compared, and rested after that: the guest
/// has other work too.
const HOLD: Duration = Duration::from_millis(5);
const REST: Duration = Duration::from_millis(20);
/// Readings of the clocks in a row.
const READINGS: usize = 50;
const BETWEEN_READINGS: Duration = Duration::from_millis(20);

/// What the watchers have seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// Times that the vector registers of any CPU were held and found right.
    avx_holds: AtomicU64,
    timerfd: Tally,
    sleep: Tally,
    alarm: Tally,
    /// Readings of the monotonic and the wall clock.
    readings: AtomicU64,
    monotonic: Monotonic,
    wall: Wall,
    served: Served,
}

impl Seen {
    /// One line of JSON; lateness is the worst since the start, in milliseconds.
    fn line(&self) -> Result<String, String> {
        let timer = |tally: &Tally| {
            json!({
                "expired": tally.expired.load(Relaxed),
                "latest_ms": tally.latest_ms(),
                "latest_at_ms": tally.latest_at_ms(),
            })
        };
        let line = json!({
            "monotonic_ns": self.monotonic.read()?,
            "wall_ns": self.wall.read()?,
            "avx": avx::is_there(),
            "avx_holds": self.avx_holds.load(Relaxed),
            "clock_readings": self.readings.load(Relaxed),
            "timerfd": timer(&self.timerfd),
            "sleep": timer(&self.sleep),
            "alarm": timer(&self.alarm),
            "requests": self.served.requests.load(Relaxed),
            "received": self.served.received.load(Relaxed),
            "sent": self.served.sent.load(Relaxed),
        });
        Ok(line.to_string())
    }
}

/// Watches until the file `stop` exists, and serves sessions on `port` meanwhile.
///
/// # Errors
/// When a fault was found, which has been told by then, or the watchers could not start.
pub fn run(stop: &Path, port: Option<u16>) -> Result<(), String> {
    let cpus = thread::available_parallelism().map_err(|error| format!("count CPUs: {error}"))?;
    let (faults, seen) = (&Faults::new(stop), &Seen::default());
    // Before any thread is started, so that only the one that waits for it gets it.
    sys::block_alarms();
    let listener = port
        .map(|port| TcpListener::bind(("0.0.0.0", port)))
        .transpose()
        .map_err(|error| format!("listen: {error}"))?;
    thread::scope(|scope| {
        for cpu in 0..cpus.get() {
            scope.spawn(move || watch_registers(cpu, &seen.avx_holds, faults));
            scope.spawn(move || watch_clocks(cpu, seen, faults));
        }
        scope.spawn(|| timers::watch_timerfd(&seen.timerfd, faults));
        scope.spawn(|| timers::watch_sleep(&seen.sleep, faults));
        scope.spawn(|| timers::watch_alarms(&seen.alarm, faults));
        if let Some(listener) = &listener {
            server::start(scope, listener, &seen.served, faults);
        }
        faults.wait_for_stop(|| tell(seen, faults));
    });
    tell(seen, faults);
    faults.result()
}

/// Sleeps until the file `stop` exists, then tells the longest time in milliseconds that it was late.
///
/// # Errors
/// When a sleep ended early.
pub fn lateness(stop: &Path) -> Result<(), String> {
    let (faults, tally) = (&Faults::new(stop), &Tally::default());
    thread::scope(|scope| {
        scope.spawn(|| timers::watch_sleep(tally, faults));
        faults.wait_for_stop(|| {});
    });
    println!("{}", tally.latest_ms());
    faults.result()
}

fn tell(seen: &Seen, faults: &Faults) {
    match seen.line() {
        Ok(line) => println!("witness: {line}"),
        Err(fault) => faults.tell(&fault),
    }
}

fn watch_registers(cpu: usize, holds: &AtomicU64, faults: &Faults) {
    // Whether it should have any is known to who started it.
    if !avx::is_there() {
        return;
    }
    if let Err(error) = sys::bind_to_cpu(cpu) {
        return faults.tell(&format!("bind a thread to CPU {cpu}: {error}"));
    }
    let mut registers = avx::Registers::new(cpu as u64 + 1);
    let mut rounds = 1_000;
    while !faults.should_stop() {
        let started = Instant::now();
        if let Err(fault) = registers.hold(rounds) {
            return faults.tell(&format!("CPU {cpu}: {fault}"));
        }
        holds.fetch_add(1, Relaxed);
        // Towards the time that it should take, however fast this CPU is.
        let took = started.elapsed().max(Duration::from_micros(10));
        rounds = if took < HOLD {
            (rounds * 2).min(1 << 24)
        } else {
            (rounds / 2).max(1_000)
        };
        thread::sleep(REST);
    }
}

fn watch_clocks(cpu: usize, seen: &Seen, faults: &Faults) {
    if let Err(error) = sys::bind_to_cpu(cpu) {
        return faults.tell(&format!("bind a thread to CPU {cpu}: {error}"));
    }
    while !faults.should_stop() {
        for _ in 0..READINGS {
            let read = seen.monotonic.read().and_then(|_| seen.wall.read());
            if let Err(fault) = read {
                return faults.tell(&format!("CPU {cpu}: {fault}"));
            }
        }
        seen.readings.fetch_add(READINGS as u64, Relaxed);
        thread::sleep(BETWEEN_READINGS);
    }
}
