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
        if let Some((number, rest)) = bytes[..read].split_first_chunk() {
            locked(came).push(Echo {
                number: u64::from_le_bytes(*number),
                at,
                rest: rest.to_vec(),
            });
        }
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

/// A time in which nothing came back, and around which packets were lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// The last echo before it.
    pub before: Echo,
    /// The first after it.
    pub after: Echo,
    /// How many packets in a row were lost.
    pub lost: u64,
}

impl Outage {
    /// How long nothing came.
    pub fn length(&self) -> Duration {
        self.after.at.saturating_sub(self.before.at)
    }
}

impl Echoes {
    /// The outage with the most packets lost in a row between the two moments; `None` when none was lost.
    ///
    /// Echoes that are only late are no outage: a machine with too few cores has many such, at any time.
    pub fn outage(&self, from: Duration, to: Duration) -> Option<Outage> {
        let within: Vec<_> = self
            .echoes
            .iter()
            .filter(|echo| (from..=to).contains(&echo.at))
            .collect();
        let pairs = || within.windows(2).map(|two| (two[0], two[1]));
        let lost = |(before, after): &(&Echo, &Echo)| {
            after.number.saturating_sub(before.number).saturating_sub(1)
        };
        let (last, next) = pairs().max_by_key(lost)?;
        let lost = Some(lost(&(last, next))).filter(|lost| *lost > 0)?;
        // The last that was not lost may have reached the guest before the outage and been answered
        // after it; so the time is looked for from its sending on.
        let begin = *self.sent.get(usize::try_from(last.number).ok()?)?;
        let (before, after) = pairs()
            .filter(|(_, after)| (begin..=next.at).contains(&after.at))
            .max_by_key(|(before, after)| after.at.saturating_sub(before.at))?;
        Some(Outage {
            before: before.clone(),
            after: after.clone(),
            lost,
        })
    }

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
    fn outage_is_where_packets_are_lost_and_not_where_they_are_late() {
        let echo = |(number, ms): &(u64, u32)| Echo {
            number: *number,
            at: *ms * MS,
            rest: Vec::new(),
        };
        // Late after 2, one lost after 4, three after 7, which is itself answered after the outage.
        let seen = [(1, 1), (2, 2), (3, 40), (4, 41), (6, 43), (7, 49), (11, 50)];
        let seen = Echoes {
            sent: (0..60).map(|number| number * 6 * MS).collect(),
            echoes: seen.iter().map(echo).collect(),
        };
        let outage = seen.outage(Duration::ZERO, 60 * MS).unwrap();
        assert_eq!((outage.before.number, outage.after.number), (6, 7));
        assert_eq!((outage.lost, outage.length()), (3, 6 * MS));
        assert_eq!(seen.outage(Duration::ZERO, 48 * MS).unwrap().lost, 1);
        assert_eq!(seen.outage(Duration::ZERO, 42 * MS), None);
    }

    #[test]
    fn stream_is_echoed_with_the_outage_in_it() {
        if let Some(reason) = lacks_network() {
            skip!("{reason}");
        }
        let namespace = Namespace::new().unwrap();
        let server = namespace.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let address = server.local_addr().unwrap();
        let echoing = spawn(move || {
            let mut bytes = [0; 64];
            for count in 0..200 {
                let (read, from) = server.recv_from(&mut bytes).unwrap();
                if !(100..160).contains(&count) {
                    server.send_to(&bytes[..read], from).unwrap();
                }
            }
        });
        let begin = now();
        let stream = EchoStream::start(&namespace, Ipv4Addr::LOCALHOST, address, MS).unwrap();
        echoing.join().unwrap();
        let seen = stream.finish();
        assert_eq!(seen.echoes.len(), 140);
        assert!(seen.doubles().is_empty());
        let outage = seen.outage(begin, now()).unwrap();
        assert_eq!(outage.lost, 60, "{outage:?}");
        // The sender's pace is at least what was asked for.
        assert!(outage.length() >= 50 * MS, "{outage:?}");
    }
}
