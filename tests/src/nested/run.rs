//! How a payload ended.

use std::path::PathBuf;

/// Lines of the log that a failure message carries; the whole log stays in its file.
const LINES_IN_MESSAGE: usize = 150;

/// What a payload left.
#[derive(Debug)]
pub struct Run {
    /// Exit code of the payload's `run.sh`.
    pub code: i32,
    /// What it printed, without carriage returns; of level 1, all of its serial log.
    pub log: String,
    /// File that keeps the log.
    pub log_file: PathBuf,
    /// Share of the time in which the emulator wanted a CPU of this machine that it had one; 1 without an emulator,
    /// and where the kernel does not tell.
    pub cpu_share: f64,
}

impl Run {
    /// Rests of the log's lines that begin with `prefix`.
    pub fn lines_after<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.log
            .lines()
            .filter_map(move |line| line.strip_prefix(prefix))
    }

    /// End of the log, for failure messages.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

pub(super) fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES_IN_MESSAGE)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_prefix() {
        let run = Run {
            code: 0,
            log: "x\nreport: 1\nreport: 2".into(),
            log_file: PathBuf::new(),
            cpu_share: 1.0,
        };
        assert_eq!(run.lines_after("report: ").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn message_carries_the_end_of_a_long_log() {
        let log: String = (0..1000).map(|n| format!("{n}\n")).collect();
        let tail = tail(&log);
        assert!(tail.starts_with("850") && tail.ends_with("999"));
    }
}
