//! How long a destination waits for what.

use std::time::Duration;

/// Bounds of waiting at the destination.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a transfer may stand still or an answer may take.
    pub io_timeout: Duration,
    /// How long the source may be silent.
    pub peer_timeout: Duration,
    /// How long a new connection may take to say what it wants.
    pub hello_timeout: Duration,
    /// How long a source that lives may send neither pages nor anything else for the migration. A
    /// limit on its bandwidth must let a batch through in that time: at 64 KiB, 220 bytes a second.
    pub progress_timeout: Duration,
    /// How long a source that may be in doubt is waited for, so that it can ask.
    pub answer_for: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            io_timeout: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(300),
            answer_for: Duration::from_secs(600),
        }
    }
}
