//! The guest's end of the sessions that level 1 holds with it.
//!
//! The first byte of a connection says what it is for; see [`Kind`].

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, Scope};
use std::time::Duration;

use super::faults::Faults;
use super::pattern::{MOST, Pattern};
use super::sys::Clock;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Small requests, each answered with itself and the guest's clocks.
    Interactive,
    /// Bytes to the guest, which compares them; when it has them all it tells how many.
    ToGuest,
    /// Bytes from the guest until the other end says that it has enough.
    FromGuest,
}

impl Kind {
    /// The byte that begins the connection.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Interactive => b'i',
            Self::ToGuest => b't',
            Self::FromGuest => b'f',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Interactive, Self::ToGuest, Self::FromGuest]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }

    /// Seed of the stream that it carries.
    pub const fn seed(self) -> u64 {
        self.byte() as u64 * 7919
    }
}

/// Length of a request: a number that counts up, and padding.
pub const REQUEST: usize = 64;
/// Length of an answer: the request, then monotonic and wall clock in nanoseconds.
pub const ANSWER: usize = REQUEST + 16;
/// What is sent at once: enough to fill queues, without taking an emulated CPU whole.
pub const PIECE: usize = MOST;
/// Time between two sends.
pub const BETWEEN_SENDS: Duration = Duration::from_millis(100);

/// What the sessions carried.
#[derive(Debug, Default)]
pub struct Served {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Bytes received and compared.
    pub received: AtomicU64,
    /// Bytes sent.
    pub sent: AtomicU64,
}

/// Takes connections in until the watchers end.
pub fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    listener: &'env TcpListener,
    served: &'env Served,
    faults: &'env Faults,
) {
    scope.spawn(move || {
        // Looked at again and again, because nothing else would end a thread that waits.
        if let Err(error) = listener.set_nonblocking(true) {
            return faults.tell(&format!("listen: {error}"));
        }
        while !faults.should_stop() {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || {
                        if let Err(fault) = serve(stream, served, faults) {
                            faults.tell(&format!("session: {fault}"));
                        }
                    });
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    });
}

fn serve(mut stream: TcpStream, served: &Served, faults: &Faults) -> Result<(), String> {
    let told = |what: &str, error: io::Error| format!("{what}: {error}");
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_nodelay(true))
        .map_err(|error| told("set up", error))?;
    let mut kind = [0];
    stream
        .read_exact(&mut kind)
        .map_err(|error| told("read what it is for", error))?;
    match Kind::from_byte(kind[0]) {
        Some(Kind::Interactive) => {
            answer(stream, &served.requests).map_err(|error| told("interactive", error))
        }
        Some(Kind::ToGuest) => receive(stream, &served.received),
        Some(Kind::FromGuest) => {
            send(stream, &served.sent, faults).map_err(|error| told("from the guest", error))
        }
        None => Err(format!("began with {:#x}", kind[0])),
    }
}

fn answer(mut stream: TcpStream, requests: &AtomicU64) -> io::Result<()> {
    let mut answer = [0; ANSWER];
    loop {
        // The end of the stream between two requests is the end of the session.
        if stream.read(&mut answer[..1])? == 0 {
            return Ok(());
        }
        stream.read_exact(&mut answer[1..REQUEST])?;
        answer[REQUEST..REQUEST + 8].copy_from_slice(&Clock::Monotonic.now().to_le_bytes());
        answer[REQUEST + 8..].copy_from_slice(&Clock::Wall.now().to_le_bytes());
        stream.write_all(&answer)?;
        requests.fetch_add(1, Relaxed);
    }
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> Result<(), String> {
    let mut pattern = Pattern::new(Kind::ToGuest.seed());
    let mut piece = vec![0; MOST];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => {
                pattern.compare(&piece[..length])?;
                received.fetch_add(length as u64, Relaxed);
            }
            Err(error) => return Err(format!("to the guest: {error}")),
        }
    }
    stream
        .write_all(&pattern.position().to_le_bytes())
        .map_err(|error| format!("to the guest: {error}"))
}

fn send(mut stream: TcpStream, sent: &AtomicU64, faults: &Faults) -> io::Result<()> {
    let mut pattern = Pattern::new(Kind::FromGuest.seed());
    stream.set_read_timeout(Some(BETWEEN_SENDS))?;
    while !faults.should_stop() {
        stream.write_all(pattern.next(PIECE))?;
        pattern.advance(PIECE);
        sent.fetch_add(PIECE as u64, Relaxed);
        // Waits, and looks whether the other end has enough.
        match stream.read(&mut [0]) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)
}
