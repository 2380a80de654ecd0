//! How bytes travel: connections that carry frames of plain bytes and guest memory, both ways.

use std::io;
use std::time::{Duration, Instant};

use crate::endpoint::RemoteHost;

pub use crate::raw::{Piece, gather, scatter};

pub mod memory;
pub mod socket;
mod stretch;

/// One ordered, reliable byte stream each way between both sides. All calls may come from any thread; sends
/// and receives are each done by one thread at a time, and neither waits for the other.
pub trait Connection: Send + Sync {
    /// Sends one frame: `pieces` in their order, those of plain bytes out of `bytes`.
    ///
    /// Guest memory may be read later than this returns: what is written to it before the peer has
    /// received it may arrive instead (see docs/adr/0008). `bytes` are read before it returns.
    ///
    /// # Errors
    /// `TimedOut` when nothing moves for the I/O time-out, `InvalidInput` when a piece lies outside of
    /// `bytes`; else whatever broke the connection.
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()>;
    /// Receives exactly as many bytes as `pieces` hold, those of plain bytes into `bytes`.
    ///
    /// # Errors
    /// `TimedOut` when nothing moves for the I/O time-out, `UnexpectedEof` when the peer closed,
    /// `InvalidInput` when a piece lies outside of `bytes`.
    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()>;
    /// Sends a frame of plain bytes.
    ///
    /// # Errors
    /// As of [`Connection::send_pieces`].
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.send_pieces(bytes, &[Piece::all(bytes)])
    }
    /// Receives exactly as many plain bytes as there is room for.
    ///
    /// # Errors
    /// As of [`Connection::receive_pieces`].
    fn receive(&self, bytes: &mut [u8]) -> io::Result<()> {
        let all = Piece::all(bytes);
        self.receive_pieces(bytes, &[all])
    }
    /// As [`Connection::send`], of plain bytes that have to be gone in time.
    ///
    /// # Errors
    /// `TimedOut` when it takes longer than `within` says; else as there.
    fn send_within(&self, bytes: &[u8], within: Within) -> io::Result<()>;
    /// As [`Connection::receive`], of plain bytes that have to be here in time.
    ///
    /// # Errors
    /// `TimedOut` when it takes longer than `within` says; else as there.
    fn receive_within(&self, bytes: &mut [u8], within: Within) -> io::Result<()>;
    /// Waits until a frame comes, or the connection has ended, which a receive will tell; `false` when
    /// `timeout` passed first.
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
    /// Who is at the other end.
    fn remote(&self) -> RemoteHost {
        RemoteHost::Unknown
    }
}

/// Bytes per second that the peer takes or gives at least, once a frame has begun.
const SLOWEST: u32 = 16 << 10;

/// How long the transfer of a frame may take. Without an end in time, whoever sends or takes one byte now
/// and then holds the other side for as long as it likes.
#[derive(Debug, Clone, Copy)]
pub struct Within {
    /// At most without a byte.
    pub still: Duration,
    /// When all has to be done.
    pub until: Instant,
}

impl Within {
    /// All of it in `time` from now on.
    pub fn time(time: Duration) -> Self {
        Self {
            still: time,
            until: Instant::now() + time,
        }
    }

    /// As long as `len` bytes take on a slow network, and no longer than `still` without any.
    pub fn bytes(len: usize, still: Duration) -> Self {
        let sending = Duration::from_secs(1) * u32::try_from(len).unwrap_or(u32::MAX) / SLOWEST;
        Self {
            still,
            until: Instant::now() + still + sending,
        }
    }

    /// How long the next byte is waited for; zero when the time is over.
    pub fn patience(&self) -> Duration {
        let left = self.until.saturating_duration_since(Instant::now());
        left.min(self.still)
    }
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
    /// Whether who listens there seems to be on this host, and so to share its processors; a tunnel
    /// that begins here does, too.
    fn is_within_host(&self) -> bool {
        false
    }
}

impl<C: Connect + ?Sized> Connect for Box<C> {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        (**self).connect(patience)
    }

    fn address(&self) -> String {
        (**self).address()
    }

    fn is_within_host(&self) -> bool {
        (**self).is_within_host()
    }
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
