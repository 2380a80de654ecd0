//! The far end of one direction of a connection: what is written leaves it later, in order.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// Pieces under way at most; whoever writes more waits, as before a full pipe.
const UNDER_WAY: usize = 1024;

/// What is under way: when it arrives, and the bytes; none for the end of the stream.
type Piece = (Instant, Vec<u8>);

/// Where one direction of a connection comes out.
pub(super) enum Outlet {
    /// At once.
    Direct(TcpStream),
    /// As much later as the wire is long.
    Delayed(Duration, SyncSender<Piece>),
}

impl Outlet {
    /// What is written arrives at `to` after `delay`; how much is under way then is no matter.
    pub(super) fn new(to: TcpStream, delay: Duration) -> Self {
        if delay.is_zero() {
            return Self::Direct(to);
        }
        let (send, receive) = sync_channel(UNDER_WAY);
        spawn(move || deliver(&receive, to));
        Self::Delayed(delay, send)
    }

    /// Ends the stream after what was written.
    pub(super) fn end(&self) {
        // One that is gone has ended.
        match self {
            Self::Direct(to) => {
                let _ = to.shutdown(Shutdown::Write);
            }
            Self::Delayed(delay, pieces) => {
                let _ = pieces.send((Instant::now() + *delay, Vec::new()));
            }
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Direct(to) => to.write(bytes),
            Self::Delayed(_, _) if bytes.is_empty() => Ok(0),
            Self::Delayed(delay, pieces) => pieces
                .send((Instant::now() + *delay, bytes.to_vec()))
                .map(|()| bytes.len())
                .map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn deliver(pieces: &Receiver<Piece>, mut to: TcpStream) {
    while let Ok((due, bytes)) = pieces.recv() {
        sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
