//! The connections to the destination and the threads on them. All of it dies with the link; what outlives one is in
//! [`super::moving::Transfer`].

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as PassSender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use super::reader;
use crate::blocks::finder::Finder;
use crate::error::Error;
use crate::pages::processors;
use crate::session::{Note, Session};
use crate::streams::sender::{Pass, Sending, StreamSender};
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
                StreamSender::new(&sending, stream.into(), connection).run(&passes);
            });
        };
        let sends = threads::start(scope, ThreadKind::Stream, "sending pages", sends)?;
        self.passes.push(pass);
        self.threads.push(sends);
        Ok(())
    }

    /// Finds what of the disks the destination has already, beside the streams.
    pub fn start_finding(
        &mut self,
        scope: &'s Scope<'s, '_>,
        begin: impl FnOnce(Arc<Session>) -> Finder,
    ) -> Result<(), Error> {
        let (session, finder) = (self.session.clone(), begin(self.session.clone()));
        let finds = move || {
            session.guard(|| {
                processors::step_back();
                finder.run();
            });
        };
        let what = "finding what is there";
        let thread = threads::start(scope, ThreadKind::Stream, what, finds)?;
        self.threads.push(thread);
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

    /// The next note of a thread, if one comes within `patience`.
    pub fn next(&self, patience: Duration) -> Result<Option<Note>, Error> {
        self.session.next(&self.notes, patience)
    }

    /// As [`Session::answer`].
    pub fn answer(
        &self,
        operation: &'static str,
        patience: Duration,
        may_go_on: impl Fn() -> Result<(), Error>,
    ) -> Result<Message, Error> {
        self.session
            .answer(&self.notes, operation, patience, may_go_on)
    }

    /// Whether the link stands and the destination has not given up, as far as is known now.
    pub fn check(&self) -> Result<(), Error> {
        while let Some(note) = self.next(Duration::ZERO)? {
            // That it never ran; why comes next.
            if let Note::Message(Message::Resolution(_)) = note {
                let ended = io::ErrorKind::ConnectionAborted.into();
                return Err(self.explain(Error::link("waiting for the decision")(ended)));
            }
        }
        Ok(())
    }

    /// As [`Session::end_for`].
    pub fn end_for(&self, error: Error) -> Error {
        self.session.end_for(&self.notes, error)
    }

    /// Ends it for `error` without a word, and waits for its threads; the cause, which the destination may have told.
    pub fn lose(&mut self, error: Error) -> Error {
        let error = self.explain(error);
        self.end();
        error
    }

    /// Whether nothing can be said on it any more.
    pub fn is_over(&self) -> bool {
        self.session.has_control_ended()
    }

    fn end(&mut self) {
        self.passes.clear();
        self.session.close();
        for thread in self.threads.drain(..) {
            // A panic in it has failed the session.
            let _ = thread.join();
        }
    }

    /// The cause of `error`, if the destination tells one.
    pub fn explain(&self, error: Error) -> Error {
        self.session.explain(&self.notes, error)
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
