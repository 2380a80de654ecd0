//! The connections of the source and the threads on them. All of it dies with the link; what outlives one is in
//! [`super::transfer::Transfer`].

use std::sync::Arc;
use std::sync::mpsc::Receiver as Notes;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::blocks::comparing::Comparing;
use crate::blocks::receiver::DisksHere;
use crate::error::Error;
use crate::id::HostId;
use crate::journal::Journal;
use crate::pages::processors;
use crate::pages::receiver::MemoryHere;
use crate::resolution::Resolution;
use crate::session::{Note, Session};
use crate::streams::receiver::{Beginning, Receiving, StreamReceiver};
use crate::threads::{self, ThreadKind};
use crate::transport::Connection;
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Answer, Message, Negotiate};

/// The link of one migration. Dropping it ends the connections and waits for the threads.
pub(super) struct Link<'s, 'a> {
    pub session: Arc<Session>,
    notes: Notes<Note>,
    pub agreed: Agreed,
    scope: &'s Scope<'s, 'a>,
    control: Option<ScopedJoinHandle<'s, ()>>,
    /// What places pages and makes memory present for them.
    streams: Vec<ScopedJoinHandle<'s, ()>>,
}

impl<'s, 'a> Link<'s, 'a> {
    /// A link on which nothing is heard yet.
    pub fn new(
        scope: &'s Scope<'s, 'a>,
        (session, notes): (Arc<Session>, Notes<Note>),
        agreed: Agreed,
    ) -> Self {
        Self {
            session,
            notes,
            agreed,
            scope,
            control: None,
            streams: Vec::new(),
        }
    }

    /// Another one, on which nothing is heard yet, of the same migration.
    pub fn again(&self, session: (Arc<Session>, Notes<Note>)) -> Self {
        Self::new(self.scope, session, self.agreed)
    }

    /// Reads what comes on the control connection from here on.
    pub fn listen(&mut self) -> Result<(), Error> {
        let session = self.session.clone();
        let reads = move || session.run_control();
        let what = "the control connection";
        self.control = Some(threads::start(self.scope, ThreadKind::Link, what, reads)?);
        Ok(())
    }

    /// Has what comes on `connection`, stream `stream` of `streams`, placed from `beginning` on.
    pub fn add_stream(
        &mut self,
        connection: Arc<dyn Connection>,
        receiving: Arc<Receiving>,
        [stream, streams]: [u8; 2],
        beginning: Beginning,
    ) -> Result<(), Error> {
        let connection = self.session.add_data(connection);
        let session = self.session.clone();
        self.start("receiving pages", move || {
            processors::step_back();
            processors::spread(stream.into(), streams);
            session.guard(|| {
                let stream = stream.into();
                StreamReceiver::new(&receiving, &session, stream, connection, beginning).run();
            });
        })
    }

    /// Has the memory of `extents` made present ahead of the data.
    pub fn go_ahead(
        &mut self,
        receiving: Arc<Receiving>,
        extents: Vec<(u64, u64)>,
    ) -> Result<(), Error> {
        let session = self.session.clone();
        self.start("making memory present", move || {
            processors::step_back();
            let is_over = || session.is_stopped();
            let MemoryHere { ram, populate, .. } = &receiving.memory;
            session.guard(|| populate.go_ahead(ram, &extents, &is_over));
        })
    }

    /// Answers what the source asks about what `disks` held before, if any did.
    pub fn compare(&mut self, disks: &Arc<DisksHere>) -> Result<(), Error> {
        if disks.kept().is_empty() {
            return Ok(());
        }
        let session = self.session.clone();
        let comparing = Comparing::new(disks.clone(), session.clone());
        self.start("comparing blocks", move || {
            processors::step_back();
            session.guard(|| comparing.run());
        })
    }

    fn start(&mut self, what: &'static str, work: impl FnOnce() + Send + 's) -> Result<(), Error> {
        let thread = threads::start(self.scope, ThreadKind::Stream, what, work)?;
        self.streams.push(thread);
        Ok(())
    }

    /// The next note of a thread, if one comes within `patience`.
    pub fn next(&self, patience: Duration) -> Result<Option<Note>, Error> {
        self.session.next(&self.notes, patience)
    }

    /// Waits for the next message of the source, other notes aside.
    pub fn message(&self, operation: &'static str, patience: Duration) -> Result<Message, Error> {
        let always = || Ok(());
        self.session
            .answer(&self.notes, operation, patience, always)
    }

    /// As [`Session::why_stopped`].
    pub fn why_stopped(&self) -> Error {
        self.session.why_stopped(&self.notes)
    }

    /// For how long its source, which has `requested` that, tries for a new one when it is lost.
    pub fn reconnect_for(&self, requested: &Negotiate) -> Option<Duration> {
        let told = requested.reconnect_ms.map(Duration::from_millis);
        told.filter(|_| self.agreed.has(Capabilities::NEW_LINK))
    }

    /// Who answers what became of the guest, as far as the source understands that.
    pub fn named_host(&self, journal: &dyn Journal) -> Option<HostId> {
        let told = self.agreed.has(Capabilities::NAMES_HOST);
        told.then(|| journal.identity())
    }

    /// Tells the source, which cannot know it otherwise once it sent the commit, that the guest never
    /// ran here and never will, as `journal` says: it need not ask.
    pub fn tell_never_ran(&self, journal: &dyn Journal) {
        let answer = Answer {
            resolution: Resolution::NeverRan,
            host: self.named_host(journal),
        };
        // If it does not reach the source, that asks.
        let _ = self.session.send(&Message::Resolution(answer));
    }

    /// Ends it for `error` without a word, and waits until no page is placed any more. What threads have told until then
    /// is told to `hear`; the cause, which the source may have told.
    pub fn lose(&mut self, error: Error, mut hear: impl FnMut(Note)) -> Error {
        self.session.end_streams();
        self.wait_for_streams();
        let mut error = error;
        while let Ok(note) = self.notes.try_recv() {
            match note {
                Note::Message(Message::Failure(observation)) => error = Error::Peer(observation),
                note => hear(note),
            }
        }
        let error = self.session.explain(&self.notes, error);
        self.end();
        error
    }

    fn end(&mut self) {
        self.session.close();
        self.wait_for_streams();
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }

    /// Ends it for `error`, once no page is placed any more; as [`Session::end_for`].
    pub fn end_for(mut self, error: Error) -> Error {
        self.session.end_streams();
        self.wait_for_streams();
        self.session.end_for(&self.notes, error)
    }

    fn wait_for_streams(&mut self) {
        for stream in self.streams.drain(..) {
            // A panic in it has failed the session.
            let _ = stream.join();
        }
    }
}

impl Drop for Link<'_, '_> {
    fn drop(&mut self) {
        self.end();
    }
}
