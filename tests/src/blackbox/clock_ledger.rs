//! The guest's clock next to the host's, from the lines in which the guest tells it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use machine::kvm::tsc;

use super::wait::PATIENCE;
use super::{Console, Vms};
use crate::Host;

/// Lines that a measurement takes; the one that was seen the soonest counts.
const SAMPLES: u32 = 30;

/// How far the guest's clock is behind the host's, over all that it has gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Nanoseconds that the host's clock was ahead when a line of the guest was seen, at the least: how
    /// long the line took to be seen is in it, and nothing else changes it.
    pub ns: i64,
}

/// Measures [`Offset`]s of one guest.
///
/// The host's clock is its TSC, at the rate that the guest told: kvmclock counts by it, and nobody
/// disciplines either.
#[derive(Debug, Clone, Copy)]
pub struct ClockLedger {
    tsc_khz: u64,
}

impl ClockLedger {
    /// Of the guest with this console, which is ready.
    ///
    /// # Panics
    /// When the guest has not told the rate of its TSC.
    #[track_caller]
    pub fn of(console: &mut Console) -> Self {
        let ready = console.wait_for("ready", |line| line.kind == "ready");
        Self {
            tsc_khz: ready.number("tsc_khz").expect("tsc_khz"),
        }
    }

    fn host_ns(self) -> i64 {
        (u128::from(tsc::now()) * 1_000_000 / u128::from(self.tsc_khz)) as i64
    }

    /// Measures it on a running guest with `clock_ms=`; takes as long as [`SAMPLES`] lines do.
    ///
    /// # Panics
    /// When the guest does not tell the time.
    #[track_caller]
    pub fn measure(self, host: &Host, vm: &str) -> Offset {
        let mut lines = Lines::from_now(&host.folder(vm).join("serial.log"));
        let deadline = Instant::now() + PATIENCE;
        let (mut best, mut seen) = (i64::MAX, 0);
        while seen < SAMPLES {
            assert!(
                Instant::now() < deadline,
                "{seen} of {SAMPLES} lines with the guest's clock"
            );
            let text = lines.new_text();
            let now = self.host_ns();
            for mono in text.lines().filter_map(clock_of) {
                best = best.min(now - mono);
                seen += 1;
            }
            if text.is_empty() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Offset { ns: best }
    }
}

impl Offset {
    /// How far the two are apart, in milliseconds.
    #[must_use]
    pub fn apart_ms(self, other: Self) -> f64 {
        (self.ns - other.ns) as f64 / 1e6
    }
}

fn clock_of(line: &str) -> Option<i64> {
    let rest = line.split_once("PROBE clock mono_ns=")?.1;
    rest.split(' ').next()?.parse().ok()
}

/// Whole lines as they are written to a file.
struct Lines {
    file: File,
    rest: String,
}

impl Lines {
    fn from_now(path: &Path) -> Self {
        let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        file.seek(SeekFrom::End(0)).expect("end of the log");
        Self {
            file,
            rest: String::new(),
        }
    }

    /// What is new, as far as lines are whole.
    fn new_text(&mut self) -> String {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).expect("log is readable");
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let end = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let whole = self.rest[..end].to_owned();
        self.rest.drain(..end);
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_from_whole_lines() {
        assert_eq!(clock_of("PROBE clock mono_ns=12 tsc=3"), Some(12));
        assert_eq!(clock_of("PROBE tick n=1"), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut lines = Lines::from_now(file.path());
        std::fs::write(file.path(), "PROBE clock mono_ns=1\nPROBE clo").unwrap();
        assert_eq!(lines.new_text(), "PROBE clock mono_ns=1\n");
        assert_eq!(lines.new_text(), "");
    }
}
