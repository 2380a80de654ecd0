//! A stream of numbered UDP packets to somebody who sends each back, as seen from outside.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::packet::{arrival, now, stamp_arrivals};

/// How long the receiver waits before it looks whether it is to stop.
const SLICE: Duration = Duration::from_millis(20);
/// How long an echo may be under way after the last was sent.
const LAST: Duration = Duration::from_millis(500);

/// A packet that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// Its number, as it was sent.
    pub number: u64,
    /// When it came, since 1970, by the kernel.
    pub at: Duration,
    /// What came after its number.
    pub rest: Vec<u8>,
}

/// What the probe guest adds to what it sends back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// How many it has answered, this one included.
    pub count: u64,
    /// Its newest tick.
    pub tick: u64,
    /// Its monotonic clock.
    pub clock: Duration,
}

impl Echo {
    /// The payload of a packet that came back.
    pub fn read(payload: &[u8], at: Duration) -> Option<Self> {
        let (number, rest) = payload.split_first_chunk()?;
        Some(Self {
            number: u64::from_le_bytes(*number),
            at,
            rest: rest.to_vec(),
        })
    }

    /// What the probe guest has added; `None` when it is from somebody else.
    pub fn trailer(&self) -> Option<Trailer> {
        let (fields, []) = self.rest.as_chunks::<8>() else {
            return None;
        };
        let &[count, tick, clock] = fields else {
            return None;
        };
        Some(Trailer {
            count: u64::from_be_bytes(count),
            tick: u64::from_be_bytes(tick),
            clock: Duration::from_nanos(u64::from_be_bytes(clock)),
        })
    }
}

/// What a stream has seen.
#[derive(Debug, Clone, Default)]
pub struct Echoes {
    /// When each packet was sent, since 1970, in the order of their numbers.
    pub sent: Vec<Duration>,
    /// What came back, in the order in which it came.
    pub echoes: Vec<Echo>,
}

/// Packets sent at a steady pace, each with its number in the first eight bytes (little-endian).
pub struct EchoStream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Duration>>,
    receiver: JoinHandle<()>,
    came: Arc<Mutex<Vec<Echo>>>,
}

impl EchoStream {
    /// Begins to send a packet `every` so often from `from`, an address of the namespace.
    ///
    /// # Errors
    /// When the namespace has no such address.
    pub fn start(
        client: &Namespace,
        from: Ipv4Addr,
        to: SocketAddr,
        every: Duration,
    ) -> Result<Self> {
        let socket = client
            .enter(|| UdpSocket::bind((from, 0)))
            .context("open a UDP socket")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SLICE))?;
        stamp_arrivals()?;
        let _ = arrival(&socket);
        let stop = Arc::new(AtomicBool::new(false));
        let (sending, stopping) = (socket.try_clone()?, stop.clone());
        let sender = spawn(move || send(&sending, every, &stopping));
        let stopping = stop.clone();
        let came = Arc::<Mutex<Vec<Echo>>>::default();
        let keeping = came.clone();
        let receiver = spawn(move || receive(&socket, &stopping, &keeping));
        Ok(Self {
            stop,
            sender,
            receiver,
            came,
        })
    }

    /// How many have come back.
    pub fn came(&self) -> usize {
        locked(&self.came).len()
    }

    /// Stops sending; what was seen.
    ///
    /// # Panics
    /// When one of the threads has.
    pub fn finish(self) -> Echoes {
        self.stop.store(true, Ordering::SeqCst);
        let sent = self.sender.join().expect("sender");
        self.receiver.join().expect("receiver");
        let echoes = std::mem::take(&mut *locked(&self.came));
        Echoes { sent, echoes }
    }
}

fn locked(came: &Mutex<Vec<Echo>>) -> MutexGuard<'_, Vec<Echo>> {
    came.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(socket: &UdpSocket, every: Duration, stop: &AtomicBool) -> Vec<Duration> {
    let _ = hurry();
    let mut sent = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let number = sent.len() as u64;
        sent.push(now());
        // One that cannot be sent (nobody answers ARP, the port is closed for a moment) is lost.
        let _ = socket.send(&number.to_le_bytes());
        // What the machine made this thread miss is not made up for.
        due = (due + every).max(Instant::now());
        sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, came: &Mutex<Vec<Echo>>) {
    let _ = hurry();
    let mut bytes = [0; 2048];
    let mut end = None;
    loop {
        if end.is_none() && stop.load(Ordering::SeqCst) {
            end = Some(Instant::now() + LAST);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return;
        }
        // A refusal by ICMP is no end either.
        let Ok(read) = socket.recv(&mut bytes) else {
            continue;
        };
        let at = arrival(socket).unwrap_or_else(now);
        locked(came).extend(Echo::read(&bytes[..read], at));
    }
}

/// Gives the calling thread the CPU whenever it wants it, which is seldom and shortly: it measures
/// others, who must not be blamed for its own waiting. Where that is not allowed, it is measured worse.
pub(super) fn hurry() -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    Command::new("chrt")
        .args(["--fifo", "--pid", "10", &thread])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("start chrt")?;
    Ok(())
}

impl Echoes {
    /// Numbers that came back more than once.
    pub fn doubles(&self) -> Vec<u64> {
        let mut times = BTreeMap::new();
        for echo in &self.echoes {
            *times.entry(echo.number).or_insert(0) += 1;
        }
        times.retain(|_, times| *times > 1);
        times.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::requirements::lacks_network;
    use crate::skip;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn stream_is_echoed_with_numbers_and_times() {
        if let Some(reason) = lacks_network() {
            skip!("{reason}");
        }
        let namespace = Namespace::new().unwrap();
        let server = namespace.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let address = server.local_addr().unwrap();
        // The first half is answered once, the rest twice.
        let echoing = spawn(move || {
            let mut bytes = [0; 64];
            for count in 0..100 {
                let (read, from) = server.recv_from(&mut bytes).unwrap();
                for _ in 0..=count / 50 {
                    server.send_to(&bytes[..read], from).unwrap();
                }
            }
        });
        let begin = now();
        let stream = EchoStream::start(&namespace, Ipv4Addr::LOCALHOST, address, MS).unwrap();
        echoing.join().unwrap();
        let seen = stream.finish();
        assert_eq!(seen.echoes.len(), 150);
        assert_eq!(seen.doubles(), (50..100).collect::<Vec<_>>());
        for echo in &seen.echoes {
            let sent = seen.sent[usize::try_from(echo.number).unwrap()];
            assert!(begin <= sent && sent <= echo.at, "{echo:?} of {sent:?}");
            assert_eq!(echo.trailer(), None);
        }
        // The pace is at least what was asked for.
        assert!(seen.sent[99] - seen.sent[0] >= 90 * MS);
    }
}
