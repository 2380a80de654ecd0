//! An in-memory network with faults: what the engine's failures are tested on.
//!
//! A frame is one [`Connection::send_pieces`]. Each side counts the frames that it sends over all its
//! connections; a [`Fault`] strikes at one of them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Connect, Connection, Listen, Patience, Piece, Within, gather, scatter};
use crate::observation::Side;

/// Bytes under way in one direction before a sender has to wait.
const CAPACITY: usize = 256 << 10;

/// What goes wrong at a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// All connections end; new ones can be made.
    Cut,
    /// All connections end and no new one can be made: the host is gone.
    Partition,
    /// Nothing that this side sends from here on arrives; the connections stand.
    Stall,
    /// One bit of the frame is flipped.
    Corrupt,
    /// Half of the frame arrives, then its connection ends.
    Truncate,
    /// The frame arrives later.
    Delay(Duration),
}

/// A fault at frame number `frame` (from 0) that `side` sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// The sending side.
    pub side: Side,
    /// Which of its frames.
    pub frame: u64,
    /// What happens to it.
    pub fault: Fault,
}

/// How long a transfer is waited for.
#[derive(Clone, Copy)]
enum Pace {
    /// So long without a byte.
    Still(Duration),
    Within(Within),
}

impl Pace {
    fn patience(self) -> Duration {
        match self {
            Self::Still(time) => time,
            Self::Within(within) => within.patience(),
        }
    }
}

#[derive(Default)]
struct Flow {
    bytes: VecDeque<u8>,
    closed: bool,
    swallow: bool,
}

#[derive(Default)]
struct Pipe {
    flow: Mutex<Flow>,
    changed: Condvar,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn push(&self, mut bytes: &[u8], within: Pace) -> io::Result<()> {
        let mut flow = self.lock();
        while !bytes.is_empty() {
            if flow.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if flow.swallow {
                return Ok(());
            }
            let room = CAPACITY.saturating_sub(flow.bytes.len()).min(bytes.len());
            if room == 0 {
                let (next, waited) = self
                    .changed
                    .wait_timeout(flow, within.patience())
                    .unwrap_or_else(PoisonError::into_inner);
                flow = next;
                if waited.timed_out() && flow.bytes.len() >= CAPACITY && !flow.closed {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            }
            flow.bytes.extend(&bytes[..room]);
            bytes = &bytes[room..];
            self.changed.notify_all();
        }
        Ok(())
    }

    fn pull(&self, out: &mut [u8], within: Pace) -> io::Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            let mut flow = self
                .wait_for_bytes(within.patience())?
                .ok_or(io::ErrorKind::TimedOut)?;
            let take = flow.bytes.len().min(out.len() - filled);
            if take == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (to, from) in out[filled..].iter_mut().zip(flow.bytes.drain(..take)) {
                *to = from;
            }
            filled += take;
            self.changed.notify_all();
        }
        Ok(())
    }

    fn wait_for_bytes(&self, timeout: Duration) -> io::Result<Option<MutexGuard<'_, Flow>>> {
        let deadline = Instant::now() + timeout;
        let mut flow = self.lock();
        while flow.bytes.is_empty() && !flow.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            flow = self
                .changed
                .wait_timeout(flow, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(Some(flow))
    }
}

#[derive(Default)]
struct NetworkState {
    pipes: Vec<(Arc<Pipe>, Side)>,
    waiting: VecDeque<MemoryConnection>,
    refusing: bool,
}

struct Network {
    state: Mutex<NetworkState>,
    arrived: Condvar,
    injections: Vec<Injection>,
    frames: [AtomicU64; 2],
    struck: AtomicU64,
}

impl Network {
    fn lock(&self) -> MutexGuard<'_, NetworkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, side: Side) -> Option<Fault> {
        let frame = self.frames[index(side)].fetch_add(1, Ordering::SeqCst);
        let hit = self
            .injections
            .iter()
            .find(|i| i.side == side && i.frame == frame)?;
        self.struck.fetch_add(1, Ordering::SeqCst);
        Some(hit.fault)
    }

    fn cut(&self, refuse: bool) {
        let mut state = self.lock();
        state.refusing |= refuse;
        if refuse {
            state.waiting.clear();
        }
        for (pipe, _) in state.pipes.drain(..) {
            pipe.close();
        }
    }

    fn stall(&self, side: Side) {
        for (pipe, _) in self.lock().pipes.iter().filter(|(_, from)| *from == side) {
            pipe.lock().swallow = true;
            pipe.changed.notify_all();
        }
    }
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Destination)
}

/// One end of an in-memory connection.
pub struct MemoryConnection {
    network: Arc<Network>,
    side: Side,
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    timeout_us: AtomicU64,
}

impl MemoryConnection {
    fn pace(&self) -> Pace {
        Pace::Still(Duration::from_micros(
            self.timeout_us.load(Ordering::Relaxed),
        ))
    }

    /// Sends a frame, unless a fault strikes.
    fn transmit(&self, mut frame: Vec<u8>, pace: Pace) -> io::Result<()> {
        match self.network.strike(self.side) {
            None => {}
            Some(Fault::Cut) => self.network.cut(false),
            Some(Fault::Partition) => self.network.cut(true),
            Some(Fault::Stall) => self.network.stall(self.side),
            Some(Fault::Corrupt) => {
                let at = frame.len() / 2;
                frame[at] ^= 0x10;
            }
            Some(Fault::Truncate) => {
                let half = frame.len() / 2;
                let _ = self.outgoing.push(&frame[..half], pace);
                self.shutdown();
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Some(Fault::Delay(time)) => std::thread::sleep(time),
        }
        self.outgoing.push(&frame, pace)
    }
}

impl Connection for MemoryConnection {
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        self.transmit(gather(bytes, pieces)?, self.pace())
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        scatter(bytes, pieces, |part| self.incoming.pull(part, self.pace()))
    }

    fn send_within(&self, bytes: &[u8], within: Within) -> io::Result<()> {
        self.transmit(bytes.to_vec(), Pace::Within(within))
    }

    fn receive_within(&self, bytes: &mut [u8], within: Within) -> io::Result<()> {
        self.incoming.pull(bytes, Pace::Within(within))
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        Ok(self.incoming.wait_for_bytes(timeout)?.is_some())
    }

    fn set_io_timeout(&self, timeout: Duration) -> io::Result<()> {
        let us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.timeout_us.store(us, Ordering::Relaxed);
        Ok(())
    }

    fn shutdown(&self) {
        self.incoming.close();
        self.outgoing.close();
    }
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The source's end of the network.
pub struct MemoryConnect(Arc<Network>);

/// The destination's end of the network.
pub struct MemoryListen(Arc<Network>);

/// A network between a source and a destination on which `injections` strike.
pub fn network(injections: &[Injection]) -> (MemoryConnect, MemoryListen) {
    let network = Arc::new(Network {
        state: Mutex::default(),
        arrived: Condvar::new(),
        injections: injections.to_vec(),
        frames: [AtomicU64::new(0), AtomicU64::new(0)],
        struck: AtomicU64::new(0),
    });
    (MemoryConnect(network.clone()), MemoryListen(network))
}

impl MemoryConnect {
    /// How many faults have struck.
    pub fn struck(&self) -> u64 {
        self.0.struck.load(Ordering::SeqCst)
    }

    /// Frames that `side` has sent.
    pub fn frames(&self, side: Side) -> u64 {
        self.0.frames[index(side)].load(Ordering::SeqCst)
    }
}

impl Connect for MemoryConnect {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        if (patience.give_up)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let (there, back) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
        let end = |side, incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>| MemoryConnection {
            network: self.0.clone(),
            side,
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            timeout_us: AtomicU64::new(10_000_000),
        };
        let mut state = self.0.lock();
        if state.refusing {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.pipes.push((there.clone(), Side::Source));
        state.pipes.push((back.clone(), Side::Destination));
        state
            .waiting
            .push_back(end(Side::Destination, &there, &back));
        self.0.arrived.notify_all();
        Ok(Box::new(end(Side::Source, &back, &there)))
    }

    fn address(&self) -> String {
        "memory".to_owned()
    }
}

impl Listen for MemoryListen {
    fn accept(&self, timeout: Duration) -> io::Result<Option<Box<dyn Connection>>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.lock();
        loop {
            if let Some(connection) = state.waiting.pop_front() {
                return Ok(Some(Box::new(connection)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self
                .0
                .arrived
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn address(&self) -> String {
        "memory".to_owned()
    }
}
