//! What both sides share while a migration runs: the control connection, the keep-alive, and the
//! first failure, which ends everything.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::observation::Side;
use crate::transport::{Connection, Within};
use crate::wire::control::Message;
use crate::wire::conversation::Conversation;
use crate::wire::kind::Kind;
use crate::wire::{MAX_PASSES_AHEAD, MAX_STREAMS};

/// How long a side that lost its link waits for the peer's account of why.
pub(crate) const EXPLANATION: Duration = Duration::from_millis(500);
/// Idle waits are cut into pieces of this length to see whether they are still wanted.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// How often it is looked whether an answer is still waited for.
const ASK: Duration = Duration::from_millis(100);

/// Notes that nobody has taken yet. Each stream tells of [`MAX_PASSES_AHEAD`] passes at most that are not
/// placed, and of itself; control frames but the keep-alive come a few times in all.
const MAX_NOTES: usize = (MAX_PASSES_AHEAD as usize + 2) * MAX_STREAMS as usize + 32;

/// Bounds of waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// How long a transfer may stand still, or an answer may take.
    pub io: Duration,
    /// How long the peer may be silent.
    pub peer: Duration,
}

/// What a stream adds to the digests: the sums over what it carries, as it was last sent or placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Digests {
    /// Of memory.
    pub pages: u64,
    /// Of disks.
    pub blocks: u64,
}

impl Digests {
    /// Those of all streams together.
    pub fn sum(streams: impl IntoIterator<Item = Self>) -> Self {
        let add = |a: Self, b: Self| Self {
            pages: a.pages.wrapping_add(b.pages),
            blocks: a.blocks.wrapping_add(b.blocks),
        };
        streams.into_iter().fold(Self::default(), add)
    }
}

/// What threads tell the coordinating thread.
pub(crate) enum Note {
    /// A control frame other than the keep-alive.
    Message(Message),
    /// The first failure is set.
    Failed,
    /// The control connection ended.
    ControlEnded(Error),
    /// A stream has sent (source) or placed (destination) its part of a pass.
    PassDone {
        stream: u16,
        pass: u32,
        digests: Digests,
    },
    /// A data connection of this migration came in.
    Data {
        stream: u16,
        connection: Arc<dyn Connection>,
    },
}

pub(crate) struct Session {
    side: Side,
    timing: Timing,
    control: Arc<dyn Connection>,
    /// What has passed on the control connection.
    conversation: Mutex<Conversation>,
    /// Held while a frame is sent; whether one was not sent whole, after which nothing makes sense.
    sending: Mutex<bool>,
    /// The last pass that the peer was told is placed.
    placed: AtomicU32,
    data: Mutex<Vec<Arc<dyn Connection>>>,
    failure: Mutex<Option<Error>>,
    notes: SyncSender<Note>,
    stopped: AtomicBool,
    /// No page is to come any more.
    pages_complete: AtomicBool,
    /// Frames of data streams that are being placed.
    placing: AtomicUsize,
    /// The peer has said all that it will ever say.
    control_ended: AtomicBool,
    began: Instant,
    round_trip_us: AtomicU64,
    control_bytes: AtomicU64,
    /// Who takes what is said of blocks that may be there, if anybody does.
    blocks: Mutex<Option<SyncSender<Message>>>,
}

/// A frame that is being placed.
pub(crate) struct Placing<'a>(&'a AtomicUsize);

impl Drop for Placing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn late() -> Error {
    Error::Protocol("it sends data after the last pass".into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A session in which `conversation` was led so far.
    pub fn new(
        conversation: Conversation,
        control: Arc<dyn Connection>,
        timing: Timing,
    ) -> (Arc<Self>, Receiver<Note>) {
        let (notes, receiver) = sync_channel(MAX_NOTES);
        let session = Self {
            side: conversation.us(),
            timing,
            control,
            placed: AtomicU32::new(conversation.placed()),
            conversation: Mutex::new(conversation),
            sending: Mutex::default(),
            data: Mutex::default(),
            failure: Mutex::default(),
            notes,
            stopped: AtomicBool::new(false),
            pages_complete: AtomicBool::new(false),
            placing: AtomicUsize::new(0),
            control_ended: AtomicBool::new(false),
            began: Instant::now(),
            round_trip_us: AtomicU64::new(0),
            control_bytes: AtomicU64::new(0),
            blocks: Mutex::default(),
        };
        (Arc::new(session), receiver)
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Whether the work is to end: it failed or is over.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The shortest round trip seen, zero if none.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    /// Bytes sent on the control connection.
    pub fn control_bytes(&self) -> u64 {
        self.control_bytes.load(Ordering::Relaxed)
    }

    /// Tells the coordinating thread; it may be gone already. Nobody waits for room: what may be told has
    /// room, so a peer that fills it all breaks the protocol.
    pub fn note(&self, note: Note) {
        if let Err(TrySendError::Full(_)) = self.notes.try_send(note) {
            self.fail(Error::Protocol("it says too much at once".into()));
        }
    }

    /// From now on `taken` is given what the peer says of blocks that may be there, until the session ends; as with notes, what
    /// may come has room there.
    pub fn give_blocks_to(&self, taken: SyncSender<Message>) {
        let mut blocks = lock(&self.blocks);
        if !self.is_stopped() {
            *blocks = Some(taken);
        }
    }

    fn hear_of_blocks(&self, message: Message) -> Result<(), Error> {
        let blocks = lock(&self.blocks);
        let Some(taken) = &*blocks else {
            // When it is over, nobody waits for that any more.
            return match self.is_stopped() {
                true => Ok(()),
                false => Err(message.unexpected("what was agreed on")),
            };
        };
        match taken.try_send(message) {
            Err(TrySendError::Full(_)) => Err(Error::Protocol(
                "it says more of blocks than was asked".into(),
            )),
            // Whoever asked needs no answer any more.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    pub fn send(&self, message: &Message) -> Result<(), Error> {
        let frame = message.encode()?;
        let lost = Error::link("sending on the control connection");
        let mut is_broken = lock(&self.sending);
        if *is_broken {
            return Err(lost(io::ErrorKind::BrokenPipe.into()));
        }
        if let Message::PassPlaced(placed) = message {
            self.placed.store(placed.pass, Ordering::Release);
        }
        lock(&self.conversation).say(message.kind());
        self.control_bytes
            .fetch_add(frame.len() as u64, Ordering::Relaxed);
        let sent = self
            .control
            .send_within(&frame, Within::bytes(frame.len(), self.timing.io));
        *is_broken = sent.is_err();
        sent.map_err(lost)
    }

    /// The source begins a pass, which the destination may then say is placed.
    pub fn pass_begins(&self, pass: u32) {
        lock(&self.conversation).pass_begins(pass);
    }

    /// Whether the destination's machine is there, so that data connections may come.
    pub fn takes_data(&self) -> bool {
        lock(&self.conversation).has(Kind::Prepared)
    }

    /// Whether a stream may end `pass` already, at the destination.
    pub fn may_end(&self, pass: u32) -> bool {
        let placed = self.placed.load(Ordering::Acquire);
        pass <= placed.saturating_add(MAX_PASSES_AHEAD)
    }

    /// Takes part in the session's end: a failure shuts the connection down.
    pub fn add_data(&self, connection: impl Into<Arc<dyn Connection>>) -> Arc<dyn Connection> {
        let connection = connection.into();
        let mut data = lock(&self.data);
        data.push(connection.clone());
        if self.is_stopped() {
            connection.shutdown();
        }
        connection
    }

    /// From now on the end of a data stream is no failure. A source that dies right after its commit
    /// ends them too, and they may be seen before the commit, which counts all the same; so does a
    /// destination whose guest ended right after it was started, before its answer.
    pub fn pages_complete(&self) {
        self.pages_complete.store(true, Ordering::SeqCst);
    }

    /// At the destination, also: from now on no frame of a data stream is placed, so that nothing lands under a guest
    /// that runs.
    ///
    /// # Errors
    /// [`Error::Protocol`] when one is being placed.
    pub fn end_placing(&self) -> Result<(), Error> {
        self.pages_complete();
        match self.placing.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(late()),
        }
    }

    /// A frame of a data stream has begun, which is placed until what it returns is dropped.
    ///
    /// # Errors
    /// [`Error::Protocol`] when none is to come any more.
    pub fn begin_placing(&self) -> Result<Placing<'_>, Error> {
        self.placing.fetch_add(1, Ordering::SeqCst);
        let placing = Placing(&self.placing);
        match self.are_pages_complete() {
            true => Err(late()),
            false => Ok(placing),
        }
    }

    /// Whether the control connection has ended, or the peer is silent on it.
    pub fn has_control_ended(&self) -> bool {
        self.control_ended.load(Ordering::Acquire)
    }

    /// Whether no page is to come any more.
    pub fn are_pages_complete(&self) -> bool {
        self.pages_complete.load(Ordering::SeqCst)
    }

    /// Records the failure, unless one came first, and ends the data streams. The control
    /// connection stands, so that both sides can still say why.
    pub fn fail(&self, error: Error) {
        // At the source that is after the commit was sent: only what is answered to it counts.
        let counts_no_more = matches!(error, Error::Link { .. }) || self.side == Side::Source;
        if counts_no_more && self.are_pages_complete() {
            tracing::debug!("after the last page: {}", error.observe(self.side));
            return;
        }
        {
            let mut failure = lock(&self.failure);
            if self.is_stopped() && failure.is_none() {
                return;
            }
            if failure.is_some() {
                return;
            }
            *failure = Some(error);
        }
        self.stop_data();
        // Where there is no room, it is seen when the notes before are taken.
        let _ = self.notes.try_send(Note::Failed);
    }

    /// Does the work of a thread: a panic in it fails the migration, not the process of the VM.
    pub fn guard(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.fail(Error::Worker);
        }
    }

    fn stop_data(&self) {
        let data = lock(&self.data);
        self.stopped.store(true, Ordering::Release);
        lock(&self.blocks).take();
        data.iter().for_each(|connection| connection.shutdown());
    }

    /// Ends the data streams without calling it a failure; the control connection stands.
    pub fn end_streams(&self) {
        self.stop_data();
    }

    /// Ends everything.
    pub fn close(&self) {
        self.stop_data();
        self.control.shutdown();
    }

    /// The next note for the coordinating thread.
    pub fn next(&self, notes: &Receiver<Note>, timeout: Duration) -> Result<Option<Note>, Error> {
        let error = match notes.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => match lock(&self.failure).take() {
                Some(failure) => failure,
                None => return Ok(None),
            },
            Err(RecvTimeoutError::Disconnected) => Error::Worker,
            Ok(Note::Failed) => lock(&self.failure).take().unwrap_or(Error::Worker),
            Ok(Note::ControlEnded(error)) => error,
            Ok(Note::Message(Message::Failure(observation))) => Error::Peer(observation),
            Ok(note) => return Ok(Some(note)),
        };
        Err(error)
    }

    /// Waits for the peer's next message, other notes aside, as long as `may_go_on` says so.
    pub fn answer(
        &self,
        notes: &Receiver<Note>,
        operation: &'static str,
        patience: Duration,
        may_go_on: impl Fn() -> Result<(), Error>,
    ) -> Result<Message, Error> {
        let until = Instant::now() + patience;
        loop {
            may_go_on()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::NoAnswer {
                    operation,
                    waited: patience,
                });
            }
            match self.next(notes, left.min(ASK))? {
                // It tells of what was sent, and may still be on its way when something was asked.
                Some(Note::Message(Message::PassPlaced(_))) => {}
                Some(Note::Message(message)) => return Ok(message),
                Some(_) | None => {}
            }
        }
    }

    /// Why the session was stopped, once it was.
    pub fn why_stopped(&self, notes: &Receiver<Note>) -> Error {
        loop {
            match self.next(notes, EXPLANATION) {
                Ok(Some(_)) => {}
                Ok(None) => return Error::Worker,
                Err(error) => return error,
            }
        }
    }

    /// Ends the work for `error`: looks for the peer's account of it, and tells the peer; what is the cause then.
    pub fn end_for(&self, notes: &Receiver<Note>, error: Error) -> Error {
        let error = self.explain(notes, error);
        self.tell(&error);
        error
    }

    /// Looks for the peer's account of a failure that it may have caused.
    pub fn explain(&self, notes: &Receiver<Note>, error: Error) -> Error {
        if !error.may_be_explained_by_peer() {
            return error;
        }
        // What was said last stands in the notes, if the end of it is known already.
        let patience = if self.control_ended.load(Ordering::Acquire) {
            Duration::ZERO
        } else {
            EXPLANATION
        };
        let deadline = Instant::now() + patience;
        loop {
            match notes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Note::Message(Message::Failure(observation))) => {
                    return Error::Peer(observation);
                }
                Ok(Note::ControlEnded(_)) | Err(_) => return error,
                Ok(_) => {}
            }
        }
    }

    /// Tells the peer why it ends, if that still reaches it.
    fn tell(&self, error: &Error) {
        if matches!(error, Error::Peer(_)) {
            return;
        }
        let timeout = EXPLANATION.min(self.timing.io);
        if self.control.set_io_timeout(timeout).is_ok() {
            let observation = error.observe(self.side);
            if self.send(&Message::Failure(Box::new(observation))).is_err() {
                // Too long to send, or the peer is gone.
                let mut short = error.observe(self.side);
                short.message.truncate(0);
                short.causes.clear();
                short.message.push_str(error.id());
                let _ = self.send(&Message::Failure(Box::new(short)));
            }
        }
    }

    /// Asks the peer for a sign of life, which also measures the round trip.
    pub fn ping(&self) -> Result<(), Error> {
        self.send(&Message::Ping(self.now_us()))
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Reads the control connection until it ends: answers the keep-alive, passes the rest on.
    pub fn run_control(&self) {
        let read = catch_unwind(AssertUnwindSafe(|| self.read_control()));
        let error = match read.unwrap_or(Err(Error::Worker)) {
            Ok(()) => return,
            Err(error) => error,
        };
        // A peer that is silent, or broke the protocol, blocks nobody: data streams end too.
        self.stop_data();
        self.control_ended.store(true, Ordering::Release);
        self.note(Note::ControlEnded(error));
    }

    fn read_control(&self) -> Result<(), Error> {
        let interval = self.timing.peer / 4;
        let (mut heard, mut asked) = (Instant::now(), Instant::now());
        loop {
            let readable = self
                .control
                .wait_readable(interval)
                .map_err(Error::link("waiting for the peer"))?;
            if readable {
                let message = Message::receive_in_turn(&*self.control, self.timing.io, |kind| {
                    lock(&self.conversation).hear(kind)
                })?;
                heard = Instant::now();
                match message {
                    // What the peer sent before it went is still to be read, a commit perhaps.
                    Message::Ping(number) => drop(self.send(&Message::Pong(number))),
                    Message::Pong(number) => {
                        let us = self.now_us().saturating_sub(number).max(1);
                        let known = self.round_trip_us.load(Ordering::Relaxed);
                        if known == 0 || us < known {
                            self.round_trip_us.store(us, Ordering::Relaxed);
                        }
                    }
                    message @ (Message::BlockDigests(_) | Message::BlocksPresent(_)) => {
                        self.hear_of_blocks(message)?;
                    }
                    message => self.note(Note::Message(message)),
                }
            } else if heard.elapsed() >= self.timing.peer {
                return Err(Error::PeerSilent(self.timing.peer));
            }
            if heard.elapsed() >= interval && asked.elapsed() >= interval {
                asked = Instant::now();
                // Whoever holds the lock is sending, which tells as much as a ping.
                if let Ok(free) = self.sending.try_lock() {
                    drop(free);
                    // As for the pong: reading tells whether the peer is there.
                    let _ = self.ping();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory;
    use crate::transport::{Connect, Patience};

    /// Whether `error` fails a session of `side` whose pages are complete.
    fn fails(side: Side, error: Error) -> bool {
        let timing = Timing {
            io: Duration::from_secs(10),
            peer: Duration::from_secs(10),
        };
        let patience = Patience {
            timeout: Duration::ZERO,
            give_up: &|| false,
        };
        let (connect, _listen) = memory::network(&[]);
        let control = connect.connect(patience).unwrap();
        let conversation = Conversation::new(side);
        let (session, _notes) = Session::new(conversation, control.into(), timing);
        session.pages_complete();
        session.fail(error);
        session.is_stopped()
    }

    #[test]
    fn when_all_pages_are_there_a_lost_link_is_no_failure_and_at_the_source_nothing_is() {
        let lost = || Error::link("sending pages")(io::ErrorKind::ConnectionReset.into());
        assert!(!fails(Side::Source, lost()));
        assert!(!fails(Side::Destination, lost()));
        assert!(!fails(Side::Source, Error::Worker));
        assert!(fails(Side::Destination, Error::Worker));
    }
}
