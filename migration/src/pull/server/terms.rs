//! How a server deals with those who connect, and how it ends.

use std::time::Duration;

/// How a server deals with those who connect.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes a second that go out, or any number. What somebody waits for goes at once, and is counted.
    pub rate: Option<u64>,
    /// How long a frame that has begun may stand still.
    pub still: Duration,
    /// How long a connection may say nothing.
    pub silence: Duration,
    /// How long a connection may take to say who it is.
    pub hello: Duration,
    /// How long a client that is whole may ask again whether that is known.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: None,
            still: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            hello: Duration::from_secs(5),
            linger: Duration::from_secs(10),
        }
    }
}

/// Why a server has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The client is whole and durable; nobody needs its volumes any more.
    Released,
    /// It was told to.
    Stopped,
}
