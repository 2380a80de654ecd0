//! The connections to the destination and the threads on them. All of it dies with the link; what outlives one is in
//! [`super::moving::Transfer`].

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as PassSender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::reader;
use crate::error::Error;
use crate::pages::processors;
use crate::pages::sender::{Pass, Sender, Sending};
use crate::session::{Note, Session};
use crate::threads::{self, ThreadKind};
use crate::transport::Connection;
use crate::wire::agreed::Agreed;
use crate::wire::control::Message;

/// The link of one migration. Dropping it ends the connections and waits for the threads.
pub(super) struct Link<'s> {
    pub session: Arc<Session>,
    pub notes: Receiver<Note>,
    pub agreed: Agreed,
    /// Passes for the data streams, each of which ends when there is no more of them.
    passes: Vec<PassSender<Arc<Pass>>>,
    threads: Vec<ScopedJoinHandle<'s, ()>>,
}

impl<'s> Link<'s> {
    /// A link without data streams; what comes on the control connection of `session` is read from here on.
    pub fn start(
        scope: &'s Scope<'s, '_>,
        (session, notes): (Arc<Session>, Receiver<Note>),
        agreed: Agreed,
    ) -> Result<Self, Error> {
        let mut link = Self {
            session: session.clone(),
            notes,
            passes: Vec::new(),
            agreed,
            threads: Vec::new(),
        };
        let reads = move || session.run_control();
        let thread = threads::start(scope, ThreadKind::Link, "the control connection", reads)?;
        link.threads.push(thread);
        Ok(link)
    }

    /// Starts data stream `stream` of `streams` on `connection`.
    pub fn add_stream<'a: 's>(
        &mut self,
        scope: &'s Scope<'s, 'a>,
        connection: Box<dyn Connection>,
        sending: Sending<'a>,
        [stream, streams]: [u8; 2],
    ) -> Result<(), Error> {
        let connection = self.session.add_data(connection);
        let reads = reader::start(scope, &self.session, stream.into(), connection.clone())?;
        self.threads.push(reads);
        let (pass, passes) = channel();
        let session = self.session.clone();
        let sends = move || {
            session.guard(|| {
                processors::step_back();
                processors::spread(stream.into(), streams);
                Sender::new(&sending, stream.into(), connection).run(&passes);
            });
        };
        let sends = threads::start(scope, ThreadKind::Stream, "sending pages", sends)?;
        self.passes.push(pass);
        self.threads.push(sends);
        Ok(())
    }

    /// How many data streams there are.
    pub fn streams(&self) -> usize {
        self.passes.len()
    }

    /// Has every stream send its part of `pass`.
    pub fn send_pass(&self, pass: &Arc<Pass>) {
        for stream in &self.passes {
            // A stream that ended has said why; the session knows.
            let _ = stream.send(pass.clone());
        }
    }

    /// Waits for the next message from the destination, other notes aside, as long as `may_go_on` says so.
    pub fn answer(
        &self,
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
            let slice = left.min(Duration::from_millis(100));
            match self.session.next(&self.notes, slice)? {
                None | Some(Note::Message(Message::PassPlaced(_))) => {}
                Some(Note::Message(message)) => return Ok(message),
                Some(_) => {}
            }
        }
    }

    /// Whether the link stands, as far as is known now.
    pub fn check(&self) -> Result<(), Error> {
        while self.session.next(&self.notes, Duration::ZERO)?.is_some() {}
        Ok(())
    }

    /// As [`Session::end_for`].
    pub fn end_for(&self, error: Error) -> Error {
        self.session.end_for(&self.notes, error)
    }

    /// The cause of `error`, if the destination tells one.
    pub fn explain(&self, error: Error) -> Error {
        self.session.explain(&self.notes, error)
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.passes.clear();
        self.session.close();
        for thread in self.threads.drain(..) {
            // A panic in it has failed the session.
            let _ = thread.join();
        }
    }
}
