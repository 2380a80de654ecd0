//! How long a destination waits for what, and how much it takes.

use std::time::Duration;

/// Bounds of a destination.
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
    /// Bytes per second that come in at most, whatever the source would send; `None` is unlimited.
    pub max_inbound: Option<u64>,
    /// How long what has come is kept at most when the link is lost while the guest is copied, however long its source
    /// would try to come again.
    pub keep_at_most: Duration,
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
            max_inbound: None,
            keep_at_most: Duration::from_secs(600),
            answer_for: Duration::from_secs(600),
        }
    }
}
