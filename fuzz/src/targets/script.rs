//! A peer that follows a script: what it says is fixed, and it waits where the protocol does, so that
//! an input gets as far as it can.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migration::transport::{Connection, Piece, Within, gather, scatter};
use migration::wire::control::{CONTROL_LEN, Message};

use super::wire::{Bytes, kind_of};

/// How long the two sides wait for each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How long a script waits for its turn before it goes on regardless.
    turn: Duration,
    /// How long the side under test waits for what is said.
    pub peer: Duration,
}

impl Pace {
    /// Of fuzzing: most inputs wait for what never comes.
    pub const SHORT: Self = Self {
        turn: Duration::from_millis(20),
        peer: Duration::from_millis(200),
    };
    /// Of scripts that get to their end, however busy the machine is.
    #[cfg(test)]
    pub const LONG: Self = Self {
        turn: Duration::from_secs(10),
        peer: Duration::from_secs(30),
    };
}

/// Kinds of frames that scripts wait for or with.
pub(super) mod kind {
    pub const WELCOME: u16 = 1;
    pub const NEGOTIATE: u16 = 2;
    pub const NEGOTIATED: u16 = 3;
    pub const PREPARE: u16 = 4;
    pub const PREPARED: u16 = 5;
    pub const EXTENTS: u16 = 6;
    pub const PASS_PLACED: u16 = 7;
    pub const LAST_PASS: u16 = 8;
    pub const STATE: u16 = 9;
    pub const READY: u16 = 10;
    pub const COMMIT: u16 = 11;
    pub const COMMITTED: u16 = 12;
    pub const FINISH: u16 = 13;
    pub const PLAN_END: u16 = 18;
    pub const LATE: u16 = 19;
}

/// What happened so far on all connections of a session.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Kinds of control frames that the side under test has sent.
    pub kinds: Vec<u16>,
    /// The secret that it gave out.
    pub token: Option<[u8; 16]>,
    /// Ends of passes that it has sent.
    pub passes: usize,
    /// Data connections whose script is not over.
    pub busy: usize,
    /// The control connection was given up.
    pub closed: bool,
}

impl Seen {
    pub fn has(&self, kind: u16) -> bool {
        self.kinds.contains(&kind)
    }
}

#[derive(Debug)]
struct Session {
    pace: Pace,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// A session, shared by its connections.
#[derive(Debug, Clone)]
pub(super) struct Watch(Arc<Session>);

impl Watch {
    pub fn new(pace: Pace) -> Self {
        Self(Arc::new(Session {
            pace,
            seen: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Waits for the turn of a script; whether it came.
    fn wait_turn(&self, done: impl Fn(&Seen) -> bool) -> bool {
        self.wait(self.0.pace.turn, done)
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen());
        self.0.changed.notify_all();
    }

    /// Waits until `done`; whether it is.
    pub fn wait(&self, timeout: Duration, done: impl Fn(&Seen) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut seen = self.seen();
        while !done(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// What a script waits for before it goes on.
pub(super) type When = Box<dyn Fn(&Seen) -> bool + Send + Sync>;

/// A piece of what is said, and when.
pub(super) struct Line {
    pub turn: Option<When>,
    pub bytes: Vec<u8>,
}

impl Line {
    pub fn now(bytes: Vec<u8>) -> Self {
        Self { turn: None, bytes }
    }

    pub fn after(turn: impl Fn(&Seen) -> bool + Send + Sync + 'static, bytes: Vec<u8>) -> Self {
        Self {
            turn: Some(Box::new(turn)),
            bytes,
        }
    }
}

/// What a connection is to the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The control connection: when its script is over it ends, once the data connections are idle.
    Control,
    /// A data connection: when its script is over it stands.
    Data,
    /// Somebody else's, which ends with its script.
    Stranger,
}

#[derive(Default)]
struct Script {
    lines: VecDeque<Line>,
    at: usize,
    over: bool,
    closed: bool,
}

/// One connection with its script.
pub(super) struct Scripted {
    watch: Watch,
    part: Part,
    script: Mutex<Script>,
}

impl Scripted {
    pub fn new(watch: &Watch, part: Part, lines: impl IntoIterator<Item = Line>) -> Self {
        if part == Part::Data {
            watch.change(|seen| seen.busy += 1);
        }
        Self {
            watch: watch.clone(),
            part,
            script: Mutex::new(Script {
                lines: lines.into_iter().collect(),
                ..Script::default()
            }),
        }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of the next line; whether there is one.
    fn next_line(&self) -> bool {
        let turn = {
            let mut script = self.script();
            while script
                .lines
                .front()
                .is_some_and(|line| script.at >= line.bytes.len())
            {
                script.lines.pop_front();
                script.at = 0;
            }
            match script.lines.front_mut() {
                None => return false,
                Some(line) => line.turn.take(),
            }
        };
        if let Some(turn) = turn {
            self.watch.wait_turn(|seen| seen.closed || turn(seen));
        }
        true
    }

    /// The script is over.
    fn finish(&self) {
        let first = !std::mem::replace(&mut self.script().over, true);
        if first && self.part == Part::Data {
            self.watch
                .change(|seen| seen.busy = seen.busy.saturating_sub(1));
        }
    }

    fn is_closed(&self) -> bool {
        self.script().closed
    }

    fn fill(&self, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            if self.is_closed() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if !self.next_line() {
                self.finish();
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut script = self.script();
            let at = script.at;
            if let Some(line) = script.lines.front() {
                let len = out.len().min(line.bytes.len() - at);
                out[..len].copy_from_slice(&line.bytes[at..at + len]);
                script.at = at + len;
                out = &mut out[len..];
            }
        }
        Ok(())
    }
}

impl Connection for Scripted {
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        if self.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let frame = gather(bytes, pieces)?;
        if self.part == Part::Data {
            use migration::wire::batch::{BATCH_LEN, BatchHeader, BatchKind};
            use zerocopy::FromBytes;
            let header = frame.get(..BATCH_LEN);
            let header = header.and_then(|bytes| BatchHeader::read_from_bytes(bytes).ok());
            if header.is_some_and(|header| matches!(header.kind(), Ok(BatchKind::PassEnd))) {
                self.watch.change(|seen| seen.passes += 1);
            }
        } else if frame.len() >= CONTROL_LEN && frame.starts_with(b"vmmC") {
            // Whatever was read before, what is said is of the protocol.
            let message = Message::receive(&Bytes::of(&frame)).expect("a frame");
            self.watch.change(|seen| {
                if let Message::Welcome(welcome) = &message {
                    seen.token = Some(welcome.token);
                }
                seen.kinds.push(kind_of(&frame));
            });
        }
        Ok(())
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        scatter(bytes, pieces, |part| self.fill(part))
    }

    fn send_within(&self, bytes: &[u8], _: Within) -> io::Result<()> {
        self.send(bytes)
    }

    fn receive_within(&self, bytes: &mut [u8], _: Within) -> io::Result<()> {
        self.receive(bytes)
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        if self.is_closed() || self.next_line() {
            return Ok(true);
        }
        self.finish();
        match self.part {
            Part::Stranger => Ok(true),
            Part::Control => {
                let idle = |seen: &Seen| seen.busy == 0 || seen.closed;
                self.watch.wait_turn(idle);
                Ok(true)
            }
            Part::Data => {
                self.watch.wait(timeout, |seen| seen.closed);
                Ok(self.is_closed())
            }
        }
    }

    fn set_io_timeout(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        self.script().closed = true;
        self.finish();
        let part = self.part;
        // Wakes who waits for it.
        self.watch
            .change(|seen| seen.closed |= part == Part::Control);
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shutdown();
    }
}
