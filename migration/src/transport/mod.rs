//! How bytes travel: connections that carry frames of plain bytes and guest memory.

use std::io;
use std::time::Duration;

use crate::raw::RamSlice;

pub mod memory;
pub mod socket;

/// One ordered, reliable byte stream between both sides. All calls may come from any thread; sends
/// and receives are each done by one thread at a time.
pub trait Connection: Send + Sync {
    /// Sends one frame: `head`, then the guest memory of `body`.
    ///
    /// `body` may be read later than this returns: what is written to it before the peer has
    /// received it may arrive instead (see docs/adr/0008).
    ///
    /// # Errors
    /// `TimedOut` when nothing moves for the I/O time-out; else whatever broke the connection.
    fn send(&self, head: &[u8], body: &[RamSlice<'_>]) -> io::Result<()>;
    /// Receives exactly as many bytes as `head` and then `body` hold.
    ///
    /// # Errors
    /// `TimedOut` when nothing moves for the I/O time-out, `UnexpectedEof` when the peer closed.
    fn receive(&self, head: &mut [u8], body: &[RamSlice<'_>]) -> io::Result<()>;
    /// Waits until something can be received (or the connection has ended, which a receive will
    /// tell); `false` when `timeout` passed first.
    ///
    /// # Errors
    /// When the connection cannot be waited for.
    fn wait_readable(&self, timeout: Duration) -> io::Result<bool>;
    /// Sets how long a send or receive may stand still.
    ///
    /// # Errors
    /// When the connection refuses it.
    fn set_io_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Ends the connection now: calls blocked in other threads return.
    fn shutdown(&self);
}

/// How long to go on trying, and whether it is still wanted.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// Time at most.
    pub timeout: Duration,
    /// Asked often; `true` ends the attempt.
    pub give_up: &'a (dyn Fn() -> bool + Sync),
}

/// Makes connections to one destination.
pub trait Connect: Send + Sync {
    /// Connects within the patience given.
    ///
    /// # Errors
    /// When nobody answers, or it is no longer wanted (`Interrupted`).
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>>;
    /// Where to, for messages.
    fn address(&self) -> String;
}

/// Takes connections in.
pub trait Listen: Send + Sync {
    /// The next connection; `None` when none came within `timeout`.
    ///
    /// # Errors
    /// When no connection can ever come again.
    fn accept(&self, timeout: Duration) -> io::Result<Option<Box<dyn Connection>>>;
    /// Where it listens, for messages and for the peer to connect to.
    fn address(&self) -> String;
}
