//! Negotiate and prepare, and the threads that live through a migration.

use std::sync::mpsc::channel;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::run::{End, Link, Run, Streams, milliseconds, unexpected};
use crate::error::Error;
use crate::journal::Handover;
use crate::observation::Side;
use crate::pages::sender::{Sender, Sending, Sent};
use crate::pages::{full_digest, populate, processors};
use crate::progress::{Phase, Verify};
use crate::raw::{HashKey, Ram};
use crate::session::{CloseOnDrop, Session};
use crate::threads::{self, Role as ThreadRole};
use crate::transport::{Connection, Patience};
use crate::vm::MachineDescription;
use crate::wire::control::{Extents, Intent, MAX_EXTENTS, Message, Negotiate, Welcome};
use crate::wire::conversation::Conversation;
use crate::wire::hello::{Hello, Role};
use crate::wire::{AGREES_ON_STATE, MAX_STREAMS};

/// Data connections that a source on this machine opens when it is not told how many.
pub fn default_streams() -> u8 {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    if cores >= 8 { 4 } else { 2 }
}

/// What the data streams work on.
#[derive(Clone, Copy)]
struct Ground<'env> {
    ram: &'env Ram,
    /// Of the protocol, as both sides speak it.
    version: u16,
    streams: u8,
    sent: &'env Sent,
    key: Option<&'env HashKey>,
}

impl<'a> Run<'a> {
    pub(super) fn drive(&mut self) -> Result<End, Error> {
        self.enter(Phase::Negotiate);
        let description = self
            .vm
            .describe()
            .map_err(Error::vm("describe the machine"))?;
        let ram = Ram::new(self.vm.ram(), &description.ram)?;
        self.report.guest_bytes = ram.pages() * crate::PAGE_SIZE;
        let connection = self.connect(Role::Control)?;
        let mut conversation = Conversation::new(Side::Source);
        let io = self.options.io_timeout;
        let hello = Message::receive_in_turn(&*connection, io, |kind| conversation.hear(kind))?;
        let welcome = match hello {
            Message::Welcome(welcome) => welcome,
            Message::Failure(observation) => return Err(Error::Peer(observation)),
            other => return Err(unexpected(&other, "welcome")),
        };
        self.check_welcome(&welcome)?;
        let (session, notes) = Session::new(conversation, connection.into(), self.timing());
        self.control.attach(&session);
        let link = Link { session, notes };
        // Streams borrow these, so they live outside of the scope.
        let key = HashKey::new(&welcome.token);
        let verify = self.options.request.verify;
        let streams = self.choose_streams();
        if !self.options.request.plan {
            // Also while the destination builds the machine: whoever wakes next is to run at once.
            self.undo.sharing = true;
            self.vm.share_processors(usize::from(streams));
        }
        let sent = Sent::nothing(&ram, verify, streams, welcome.version);
        let ground = Ground {
            ram: &ram,
            version: welcome.version,
            streams,
            sent: &sent,
            key: (verify == Verify::Stream).then_some(&key),
        };
        let result = thread::scope(|scope| {
            let _closing = CloseOnDrop(&link.session);
            let session = &link.session;
            let heard = threads::start(scope, ThreadRole::Link, "the control connection", || {
                session.run_control();
            });
            let result = heard.and_then(|()| self.phases(scope, &link, description, ground));
            let result = result.or_else(|error| self.fail(&link, error));
            self.report.wire_bytes = self.counters.wire_bytes() + session.control_bytes();
            result
        });
        match result {
            Err(error) if self.undo.commit_sent => self.ask_after_loss(error),
            result => result,
        }
    }

    fn fail(&mut self, link: &Link, error: Error) -> Result<End, Error> {
        if !self.undo.commit_sent {
            // First of all the guest goes on; what is slow comes later.
            if let Err(failed) = self.resume_guest() {
                self.control.warn(failed.observe(Side::Source));
            }
        }
        let error = link.session.explain(&link.notes, error);
        if !self.undo.commit_sent {
            link.session.tell(&error);
        }
        Err(error)
    }

    fn check_welcome(&mut self, welcome: &Welcome) -> Result<(), Error> {
        if !(crate::wire::MIN_VERSION..=crate::wire::VERSION).contains(&welcome.version) {
            let version = welcome.version;
            return Err(Error::Protocol(format!(
                "it wants to speak version {version}"
            )));
        }
        if welcome.version > 1 && welcome.host.is_none() {
            return Err(Error::Protocol("its welcome names no host".into()));
        }
        self.token = welcome.token;
        self.version = welcome.version;
        self.host = welcome.host;
        Ok(())
    }

    fn phases<'scope, 'env: 'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        link: &'env Link,
        description: MachineDescription,
        ground: Ground<'env>,
    ) -> Result<End, Error>
    where
        'a: 'env,
    {
        self.negotiate(link, description, ground)?;
        if self.options.request.plan {
            link.session.send(&Message::PlanEnd)?;
            return Ok(End::Planned);
        }
        self.enter(Phase::Prepare);
        self.prepare(link)?;
        let mut streams = self.open_streams(scope, link, ground)?;
        let ram = ground.ram;
        self.report.setup_ms = milliseconds(self.began.elapsed());
        self.enter(Phase::Precopy);
        let (pass, dirty) = self.precopy(scope, link, ram, &mut streams)?;
        self.enter(Phase::StopAndCopy);
        self.stop_and_copy(link, ram, &mut streams, pass, dirty)?;
        self.enter(Phase::Ready);
        self.ready(link, ram, &streams)?;
        self.enter(Phase::Commit);
        self.commit(link)?;
        Ok(End::Completed)
    }

    fn choose_streams(&self) -> u8 {
        let chosen = self.options.request.streams.unwrap_or_else(default_streams);
        chosen.clamp(1, MAX_STREAMS)
    }

    /// Connects and says hello.
    fn connect(&self, role: Role) -> Result<Box<dyn Connection>, Error> {
        let give_up = || self.check_wanted().is_err();
        let connection = self
            .to
            .connect(Patience {
                timeout: self.options.io_timeout,
                give_up: &give_up,
            })
            .map_err(|source| match self.check_wanted() {
                Err(unwanted) => unwanted,
                Ok(()) => Error::Connect {
                    address: self.to.address(),
                    source,
                },
            })?;
        connection
            .set_io_timeout(self.options.io_timeout)
            .map_err(Error::link("setting up a connection"))?;
        let hello = Hello::new(role, self.options.id, self.token);
        connection
            .send(&hello.encode(), &[])
            .map_err(Error::link("saying hello"))?;
        if role == Role::Control {
            self.wait_for_welcome(&*connection)?;
        }
        Ok(connection)
    }

    /// Waits for the first answer in pieces, so that a cancel ends it.
    fn wait_for_welcome(&self, connection: &dyn Connection) -> Result<(), Error> {
        let until = Instant::now() + self.options.io_timeout;
        loop {
            self.check_wanted()?;
            let readable = connection
                .wait_readable(Duration::from_millis(20))
                .map_err(Error::link("waiting for a welcome"))?;
            if readable {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::NoAnswer {
                    operation: "waiting for a welcome",
                    waited: self.options.io_timeout,
                });
            }
        }
    }

    fn negotiate(
        &mut self,
        link: &Link,
        machine: MachineDescription,
        ground: Ground<'_>,
    ) -> Result<(), Error> {
        link.session.ping()?;
        let state = if ground.version >= AGREES_ON_STATE {
            let offered = self.vm.offer_state();
            offered.map_err(Error::vm("describe the machine's state"))?
        } else {
            None
        };
        link.session.send(&Message::Negotiate(Box::new(Negotiate {
            machine,
            run_state: self.run_state,
            streams: ground.streams,
            verify: self.options.request.verify,
            intent: if self.options.request.plan {
                Intent::Plan
            } else {
                Intent::Migrate
            },
            state,
        })))?;
        match self.answer(link, "negotiating", self.options.io_timeout)? {
            Message::Negotiated(chosen) => self
                .vm
                .agree_on_state(chosen.state.as_deref())
                .map_err(Error::vm("save the machine's state for the destination")),
            other => Err(unexpected(&other, "negotiated")),
        }
    }

    fn prepare(&mut self, link: &Link) -> Result<(), Error> {
        self.undo.disks_offered = true;
        self.vm
            .offer_disks()
            .map_err(Error::vm("offer the disks"))?;
        link.session.send(&Message::Prepare)?;
        // While the destination builds the machine: both wait for their disks.
        self.record(Handover::Begun)?;
        let ours = self.journal.reserve(self.options.id, Side::Source)?;
        match self.answer(link, "preparing", self.options.prepare_timeout)? {
            Message::Prepared(prepared) => {
                let theirs = prepared.journal_ms.clamp(0.0, 1e6) / 1e3;
                self.costs.records = ours + Duration::from_secs_f64(theirs);
                self.hash_speeds = prepared
                    .hash_bytes_per_s
                    .filter(|theirs| *theirs >= 1.0)
                    .map(|theirs| [full_digest::speed(), theirs]);
                self.doubtful_disks = prepared.disks;
                Ok(())
            }
            other => Err(unexpected(&other, "prepared")),
        }
    }

    fn open_streams<'scope, 'env: 'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        link: &'env Link,
        ground: Ground<'env>,
    ) -> Result<Streams, Error>
    where
        'a: 'env,
    {
        self.undo.logging = true;
        self.vm
            .start_dirty_log()
            .map_err(Error::vm("start the dirty log"))?;
        let extents = populate::extents(ground.ram, MAX_EXTENTS);
        link.session.send(&Message::Extents(Extents { extents }))?;
        let mut jobs = Vec::new();
        for stream in 0..ground.streams {
            let connection = self.connect(Role::Data {
                stream: u16::from(stream),
            })?;
            let connection = link.session.add_data(connection);
            let (job, passes) = channel();
            let sender = Sender::new(self.sending(link, ground), u16::from(stream), connection);
            let session: &Session = &link.session;
            threads::start(scope, ThreadRole::Stream, "sending pages", move || {
                processors::step_back();
                processors::spread(stream.into(), ground.streams);
                session.guard(|| sender.run(&passes));
            })?;
            jobs.push(job);
        }
        Ok(Streams {
            jobs,
            digests: vec![0; usize::from(ground.streams)],
        })
    }

    fn sending<'env>(&self, link: &'env Link, ground: Ground<'env>) -> Sending<'env>
    where
        'a: 'env,
    {
        Sending {
            vm: self.vm,
            ram: ground.ram,
            sent: ground.sent,
            session: &link.session,
            control: self.control,
            bucket: self.bucket.clone(),
            counters: self.counters.clone(),
            key: ground.key,
        }
    }
}
