//! Waiting for what is to happen.

use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Whether a thread ends in time.
pub fn ends_within<T>(thread: &ScopedJoinHandle<'_, T>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.is_finished()
}

/// Waits for `condition`, but not for ever.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
