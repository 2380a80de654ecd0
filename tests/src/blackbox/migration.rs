//! `vmm migrate`, followed event by event.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{JoinHandle, spawn};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::wait::PATIENCE;
use crate::Host;

/// The phases through which a migration goes before its commit, as events name them.
pub const BEFORE_COMMIT: [&str; 4] = ["negotiate", "prepare", "precopy", "stop-and-copy"];

/// Passes from the beginning that a report always has.
const FIRST_ITERATIONS: usize = 8;

/// A client that has asked for a migration and reads its events.
pub struct Migration {
    child: Child,
    lines: Receiver<String>,
    err: Option<JoinHandle<String>>,
    seen: Vec<Value>,
}

/// How it ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// All events.
    pub events: Vec<Value>,
    /// The last event, with the report.
    pub report: Value,
    /// Standard error.
    pub err: String,
}

impl Migration {
    /// Asks `host` to send `vm` to `to`.
    #[track_caller]
    pub fn start(host: &Host, vm: &str, to: &str, more: &[&str]) -> Self {
        let mut args = vec!["migrate", vm, "--to", to, "--json"];
        args.extend(more);
        Self::follow(host.command(args))
    }

    /// Starts `command`, which must print events.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn follow(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("vmm migrate starts");
        let out = child.stdout.take().expect("output");
        let mut errors = child.stderr.take().expect("errors");
        let (send, lines) = channel();
        spawn(move || {
            for line in BufReader::new(out).lines() {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let err = spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Self {
            child,
            lines,
            err: Some(err),
            seen: Vec::new(),
        }
    }

    /// The next event; `None` after the last.
    #[track_caller]
    fn next(&mut self, deadline: Instant) -> Option<Value> {
        match self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(line) => {
                let event: Value =
                    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line:?}"));
                self.seen.push(event.clone());
                Some(event)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no event within {PATIENCE:?}, last: {:?}", self.seen.last())
            }
        }
    }

    /// Reads events until one fits.
    ///
    /// # Panics
    /// When the migration ends before.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        while let Some(event) = self.next(deadline) {
            if fits(&event) {
                return event;
            }
        }
        let err = self.err.take().and_then(|e| e.join().ok());
        panic!("ended before {what}: {:?} {err:?}", self.seen.last());
    }

    /// Reads events until `phase` begins.
    #[track_caller]
    pub fn wait_phase(&mut self, phase: &str) {
        self.wait_for(phase, |event| {
            event["event"] == "phase" && event["phase"] == phase
        });
    }

    /// Reads events until pages are on their way.
    #[track_caller]
    pub fn wait_progress(&mut self) {
        self.wait_for("progress", |event| {
            event["event"] == "progress" && event["sent_bytes"].as_u64() > Some(0)
        });
    }

    /// Kills the client, which says nothing of the migration.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("the client ends");
    }

    /// Presses Ctrl-C.
    ///
    /// # Panics
    /// When the client is gone.
    pub fn interrupt(&self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("pid");
        kill_process(pid, Signal::INT).expect("client takes a signal");
    }

    /// Reads everything that is still to come.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        let deadline = Instant::now() + 2 * PATIENCE;
        while self.next(deadline).is_some() {}
        let status = self.child.wait().expect("client ends");
        let err = self
            .err
            .take()
            .map(|e| e.join().unwrap_or_default())
            .unwrap_or_default();
        let events = std::mem::take(&mut self.seen);
        let report = events.last().cloned().unwrap_or_default();
        Ended {
            code: status.code().unwrap_or(-1),
            events,
            report,
            err,
        }
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The report of a migration that must have succeeded, its figures checked.
    ///
    /// # Panics
    /// When it failed or reports nonsense.
    #[track_caller]
    pub fn completed(self) -> Value {
        assert_eq!(self.code, 0, "{:#} {}", self.report, self.err);
        let report = self.report;
        assert_eq!(report["event"], "completed", "{report:#}");
        assert_eq!(report["status"], "completed", "{report:#}");
        // Also one that was recovered from is no part of a success.
        assert!(report["error"].is_null(), "{report:#}");
        check_figures(&report);
        let phases: Vec<_> = self
            .events
            .iter()
            .filter(|event| event["event"] == "phase")
            .filter_map(|event| event["phase"].as_str())
            .collect();
        let mut expected = BEFORE_COMMIT.to_vec();
        expected.extend(["ready", "commit", "finish"]);
        assert!(
            expected.starts_with(&phases) && phases.len() >= 6,
            "phases {phases:?}"
        );
        report
    }

    /// The message of a migration that must have failed or been cancelled with `code`.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn ended(&self, code: i32, event: &str) -> String {
        assert_eq!(self.code, code, "{:#} {}", self.report, self.err);
        assert_eq!(
            self.report["event"], event,
            "{:#} {}",
            self.report, self.err
        );
        let mut text = String::new();
        collect(&self.report["error"], &mut text);
        text.to_lowercase()
    }
}

/// Flattens an observation with its causes.
fn collect(observation: &Value, into: &mut String) {
    if let Some(message) = observation["message"].as_str() {
        into.push_str(message);
        into.push_str(" | ");
    }
    for cause in observation["causes"].as_array().into_iter().flatten() {
        collect(cause, into);
    }
}

/// The number that a report has at `field`, the names on the way to it joined by dots.
#[track_caller]
pub fn number(report: &Value, field: &str) -> f64 {
    let value = field.split('.').fold(report, |value, key| &value[key]);
    let number = value
        .as_f64()
        .unwrap_or_else(|| panic!("no number {field} in {report:#}"));
    assert!(
        number.is_finite() && number >= 0.0,
        "{field} is {number} in {report:#}"
    );
    number
}

/// Whether the figures of a report fit together; how large they are is no matter of a test.
#[track_caller]
fn check_figures(report: &Value) {
    let downtime = number(report, "downtime_ms");
    let parts: f64 = [
        "stop",
        "last_pages",
        "state_save",
        "state_send",
        "state_load",
        "commit",
    ]
    .iter()
    .map(|part| number(report, &format!("downtime.{part}")))
    .sum();
    assert!(downtime > 0.0, "{report:#}");
    // Threads wake up between the parts; nothing else may be missing.
    let slack = (0.2 * downtime).max(20.0);
    assert!(
        (downtime - parts).abs() <= slack,
        "parts add up to {parts} in {report:#}"
    );
    assert!(number(report, "total_ms") >= downtime, "{report:#}");
    assert!(
        number(report, "total_ms") >= number(report, "setup_ms"),
        "{report:#}"
    );
    number(report, "forecast_downtime_ms");
    number(report, "throttle_max");
    let wire = number(report, "wire_bytes");
    let iterations = report["iterations"].as_array().expect("iterations");
    assert!(!iterations.is_empty(), "{report:#}");
    // Of many passes those in the middle are sums.
    let omitted = &report["iterations_omitted"];
    let mut sent = omitted["bytes"].as_f64().unwrap_or_default();
    let mut n = 0;
    for (i, iteration) in iterations.iter().enumerate() {
        n += 1;
        if i == FIRST_ITERATIONS {
            n += omitted["count"].as_u64().unwrap_or_default();
        }
        assert_eq!(iteration["n"].as_u64(), Some(n), "{report:#}");
        sent += number(iteration, "bytes");
        for field in ["pages", "ms", "dirty_pages_per_s", "mib_per_s"] {
            number(iteration, field);
        }
    }
    assert!(
        sent <= wire,
        "iterations sent {sent} of {wire} in {report:#}"
    );
    let encodings = report["encodings"].as_object().expect("encodings");
    let pages: u64 = encodings.values().filter_map(|e| e["pages"].as_u64()).sum();
    let payload: f64 = encodings.values().filter_map(|e| e["bytes"].as_f64()).sum();
    assert!(
        pages * 4096 >= report["guest_bytes"].as_u64().unwrap_or(u64::MAX),
        "{report:#}"
    );
    assert!(payload <= wire, "{report:#}");
    let id = report["migration_id"].as_str().unwrap_or_default();
    assert!(
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{report:#}"
    );
}
