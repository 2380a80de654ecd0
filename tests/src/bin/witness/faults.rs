//! What the watchers found wrong, and when they are to end.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// Faults of all watchers, and when to end.
#[derive(Debug)]
pub struct Faults {
    stop_file: PathBuf,
    stopped: AtomicBool,
    found: AtomicBool,
}

impl Faults {
    /// None yet; `stop_file` tells when to end.
    pub fn new(stop_file: &Path) -> Self {
        Self {
            stop_file: stop_file.to_path_buf(),
            stopped: AtomicBool::new(false),
            found: AtomicBool::new(false),
        }
    }

    /// Tells a fault at once; the watchers end.
    pub fn tell(&self, what: &str) {
        println!("guest: FAILED: {what}");
        self.found.store(true, Relaxed);
        self.stopped.store(true, Relaxed);
    }

    /// Calls `now_and_then` until a fault was told or the stop file exists.
    pub fn wait_for_stop(&self, now_and_then: impl Fn()) {
        while !self.should_stop() {
            now_and_then();
            if self.stop_file.exists() {
                self.stopped.store(true, Relaxed);
            }
            thread::sleep(BETWEEN_LINES);
        }
    }

    /// Whether none was told.
    pub fn result(&self) -> Result<(), String> {
        if self.found.load(Relaxed) {
            return Err("a fault was found".to_owned());
        }
        Ok(())
    }

    /// Whether the watchers are to end.
    pub fn should_stop(&self) -> bool {
        self.stopped.load(Relaxed)
    }
}
