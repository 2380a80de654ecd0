//! A TCP connection to somebody who sends back what he is sent, kept busy from outside.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::namespace::Namespace;
use super::udp::hurry;

/// Bytes under way at most.
const WINDOW: u64 = 16 << 10;
/// Bytes written at once.
const PIECE: usize = 1000;
/// How long a connection may stand still before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// Byte number `n` of the stream: no piece of it looks like another one nearby.
fn byte(n: u64) -> u8 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// A connection over which a known stream of bytes goes there and back.
pub struct EchoConnection {
    stop: Arc<AtomicBool>,
    came: Arc<AtomicU64>,
    thread: JoinHandle<Result<u64>>,
}

impl EchoConnection {
    /// Connects from a namespace and begins to send.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn start(client: &Namespace, to: SocketAddr) -> Result<Self> {
        let stream = client
            .enter(|| TcpStream::connect_timeout(&to, PATIENCE))
            .with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (stop, came) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopping, counting) = (stop.clone(), came.clone());
        let thread = spawn(move || keep_busy(stream, &stopping, &counting));
        Ok(Self { stop, came, thread })
    }

    /// How many bytes have come back.
    pub fn came(&self) -> u64 {
        self.came.load(Ordering::SeqCst)
    }

    /// Ends the stream, waits for all that is under way and closes the connection; how many bytes have come
    /// back, each of them the right one.
    ///
    /// # Errors
    /// When the connection was reset, closed or stood still, or a wrong byte came back.
    ///
    /// # Panics
    /// When the thread has.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("thread of the connection")
    }
}

fn keep_busy(mut stream: TcpStream, stop: &AtomicBool, came: &AtomicU64) -> Result<u64> {
    let _ = hurry();
    let (mut sent, mut back) = (0, 0);
    let mut moved = Instant::now();
    let mut bytes = [0; 4096];
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        if stopping && back == sent {
            return Ok(back);
        }
        let before = (sent, back);
        if !stopping && sent < back + WINDOW {
            let piece: Vec<_> = (sent..sent + PIECE as u64).map(byte).collect();
            sent += would_block(stream.write(&piece))
                .with_context(|| format!("write after {sent} bytes"))?
                .unwrap_or(0);
        }
        let read = would_block(stream.read(&mut bytes));
        match read.with_context(|| format!("read after {back} bytes"))? {
            Some(0) => bail!("closed by the other end after {back} bytes"),
            Some(read) => {
                for found in &bytes[..usize::try_from(read)?] {
                    if *found != byte(back) {
                        bail!("byte {back} came back as {found:#x}");
                    }
                    back += 1;
                }
                came.store(back, Ordering::SeqCst);
            }
            None => {}
        }
        if (sent, back) != before {
            moved = Instant::now();
        } else if moved.elapsed() > PATIENCE {
            bail!("nothing moved for {PATIENCE:?} after {back} of {sent} bytes");
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// `None` for what could not be done without waiting.
fn would_block(done: std::io::Result<usize>) -> std::io::Result<Option<u64>> {
    match done {
        Ok(count) => Ok(Some(count as u64)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::requirements::lacks_network;
    use crate::{eventually, skip};
    use std::net::TcpListener;

    /// Echoes after it has changed or dropped what it reads.
    fn against(answer: impl Fn(&mut Vec<u8>, u64) -> bool + Send + 'static) -> Option<Result<u64>> {
        if let Some(reason) = lacks_network() {
            skip_line(&reason);
            return None;
        }
        let namespace = Namespace::new().unwrap();
        let listener = namespace
            .enter(|| TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let echoing = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut total, mut bytes) = (0, [0; 4096]);
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                let mut piece = bytes[..read].to_vec();
                total += read as u64;
                if !answer(&mut piece, total) || stream.write_all(&piece).is_err() {
                    return;
                }
            }
        });
        let connection = EchoConnection::start(&namespace, address).unwrap();
        eventually(PATIENCE, || {
            (connection.came() > 200_000 || connection.thread.is_finished()).then_some(())
        })
        .unwrap();
        let ended = connection.finish();
        echoing.join().unwrap();
        Some(ended)
    }

    fn skip_line(reason: &str) {
        println!("{}", skip::line(format_args!("{reason}")));
    }

    #[test]
    fn what_comes_back_right_is_counted() {
        if let Some(ended) = against(|_, _| true) {
            assert!(ended.unwrap() > 200_000);
        }
    }

    #[test]
    fn wrong_byte_and_closed_connection_are_told() {
        type Answer = fn(&mut Vec<u8>, u64) -> bool;
        let harms: [(&str, Answer); 3] = [
            ("came back as", |piece, total| {
                if total > 100_000 {
                    piece[0] ^= 1;
                }
                true
            }),
            ("came back as", |piece, total| {
                if total > 100_000 {
                    piece.remove(0);
                }
                true
            }),
            ("", |_, total| total < 100_000),
        ];
        for (word, harm) in harms {
            let Some(ended) = against(harm) else { return };
            let error = format!("{:#}", ended.unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
