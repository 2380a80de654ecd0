//! Takes one guest in, phase by phase.

mod commit;

use std::sync::Arc;
use std::sync::mpsc::Receiver as Notes;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use tracing::span::EnteredSpan;

use super::placings::Placings;
use super::reception::Reception;
use super::wanted::check_wanted;
use super::{Fate, Options, Taken, failure_in};
use crate::control::Control;
use crate::error::Error;
use crate::id::{MigrationId, random_bytes};
use crate::journal::{Decision, Journal};
use crate::observation::Side;
use crate::pages::populate::Populate;
use crate::pages::receiver::{Placed, Receiver, Receiving};
use crate::pages::{Counters, digest_text, full, processors};
use crate::progress::{Phase, Report, Verify};
use crate::raw::{HashKey, Ram};
use crate::session::{CloseOnDrop, Note, Session, Timing};
use crate::threads::{self, Role};
use crate::transport::Connection;
use crate::vm::{DestinationVm, MachineDescription};
use crate::wire::control::{
    Extents, Intent, Message, Negotiate, PassPlaced, Prepared, Ready, Welcome,
};

/// Who wants to give a guest.
pub(super) struct Peer {
    pub connection: Box<dyn Connection>,
    pub id: MigrationId,
    /// Of the protocol, as both sides speak it.
    pub version: u16,
}

/// A session under way.
struct Take<'a> {
    id: MigrationId,
    version: u16,
    vm: &'a mut dyn DestinationVm,
    control: &'a Control,
    journal: &'a dyn Journal,
    reception: &'a Reception<'a>,
    began: Instant,
    phase: Phase,
    phase_began: Instant,
    span: Option<EnteredSpan>,
    built: bool,
    progress_timeout: Duration,
    /// The source was told that everything is ready, so that its commit may come.
    ready: bool,
    report: Report,
}

/// How far the machine came.
enum Step {
    Planned,
    Running,
}

pub(super) fn take(
    peer: Peer,
    reception: &Reception<'_>,
    vm: &mut dyn DestinationVm,
    options: &Options,
    control: &Control,
    journal: &dyn Journal,
) -> Taken {
    let Peer {
        connection,
        id,
        version,
    } = peer;
    let span = tracing::info_span!("migration", %id, role = "destination");
    let _entered = span.enter();
    let timing = Timing {
        io: options.io_timeout,
        peer: options.peer_timeout,
    };
    let (session, notes) = Session::new(Side::Destination, connection.into(), timing);
    control.set_id(id);
    control.attach(&session);
    let counters = Counters::default();
    let mut take = Take {
        id,
        version,
        vm,
        control,
        journal,
        reception,
        began: Instant::now(),
        phase: Phase::Negotiate,
        phase_began: Instant::now(),
        span: None,
        built: false,
        progress_timeout: options.progress_timeout,
        ready: false,
        report: Report {
            migration_id: id.to_string(),
            ..Report::default()
        },
    };
    let result = thread::scope(|scope| {
        let _closing = CloseOnDrop(&session);
        let heard = threads::start(scope, Role::Link, "the control connection", || {
            session.run_control();
        });
        let result = match heard {
            Ok(()) => take.negotiate(&session, &notes),
            Err(error) => Err((error, Fate::AtSource)),
        };
        let result = result.and_then(|wanted| match wanted {
            Some(wanted) => take.build_and_run(&session, &notes, wanted, &counters),
            None => Ok(Step::Planned),
        });
        result.map_err(|(error, fate)| {
            let error = session.explain(&notes, error);
            session.tell(&error);
            (error, fate)
        })
    });
    take.end_phase();
    take.report.encodings = counters.encodings();
    // What was not sent is not seen here.
    take.report.encodings.remove("hole");
    take.report.wire_bytes = counters.wire_bytes();
    take.report.total_ms = take.began.elapsed().as_secs_f64() * 1e3;
    match result {
        Ok(Step::Planned) => Taken::Planned,
        Ok(Step::Running) => Taken::Completed(take.report),
        Err((error, fate)) => {
            let mut observation = failure_in(take.phase, &error);
            if fate != Fate::Unknown {
                observation.causes.extend(take.undo());
            }
            Taken::Failed(take.report, Box::new(observation), fate)
        }
    }
}

type Failure = (Error, Fate);

/// Before the commit is recorded, every failure leaves the guest at the source.
fn before_commit(error: Error) -> Failure {
    let fate = match error {
        Error::Cancelled => Fate::AtSourceByRequest,
        _ => Fate::AtSource,
    };
    (error, fate)
}

impl Take<'_> {
    fn enter(&mut self, phase: Phase) {
        if phase != self.phase {
            self.end_phase();
        }
        // The one before is left first, or this one would be inside of it.
        self.span = None;
        self.span = Some(tracing::info_span!("phase", name = phase.name()).entered());
        self.phase = phase;
        self.phase_began = Instant::now();
        self.control.phase(phase);
    }

    fn end_phase(&self) {
        let ms = self.phase_began.elapsed().as_secs_f64() * 1e3;
        tracing::info!(ms, "phase ended");
    }

    /// Gives up a hand-over that was on offer, and drops what was built.
    fn undo(&mut self) -> Option<crate::observation::Observation> {
        let given_up = if self.ready {
            self.journal
                .decide(self.id, Decision::GiveUp)
                .err()
                .map(Error::from)
        } else {
            None
        };
        if self.built {
            self.vm.abandon();
            if let Err(error) = self.journal.discard(self.id, Side::Destination) {
                // A blank record says the same as none.
                tracing::debug!("{}", error);
            }
        }
        given_up.map(|error| error.observe(Side::Destination))
    }

    fn negotiate(
        &mut self,
        session: &Arc<Session>,
        notes: &Notes<Note>,
    ) -> Result<Option<Wanted>, Failure> {
        self.enter(Phase::Negotiate);
        self.agree(session, notes).map_err(before_commit)
    }

    fn agree(
        &mut self,
        session: &Arc<Session>,
        notes: &Notes<Note>,
    ) -> Result<Option<Wanted>, Error> {
        // An identifier that was decided on must not come again: its answer stands for ever.
        if self.journal.decision(self.id)?.is_some() {
            return Err(Error::GivenUp {
                id: self.id.to_string(),
            });
        }
        let token = random_bytes().map_err(Error::Random)?;
        self.reception.admit(token, session);
        session.send(&Message::Welcome(Welcome {
            version: self.version,
            token,
            host: (self.version > 1).then(|| self.journal.identity()),
        }))?;
        let patience = session.timing().io;
        let wanted = match message(session, notes, "negotiating", patience)? {
            Message::Negotiate(wanted) => *wanted,
            other => return Err(unexpected(&other, "negotiate")),
        };
        check_wanted(&wanted)?;
        self.report.run_state = wanted.run_state;
        self.report.guest_bytes = wanted.machine.ram.iter().map(|region| region.len).sum();
        self.vm
            .negotiate(&wanted.machine)
            .map_err(Error::vm("run the described machine"))?;
        session.send(&Message::Negotiated)?;
        if wanted.intent == Intent::Plan {
            // The source says good-bye, or is gone: nothing was built either way.
            let _ = message(session, notes, "planning", patience);
            return Ok(None);
        }
        match message(session, notes, "negotiating", patience)? {
            Message::Prepare => Ok(Some(Wanted {
                negotiated: wanted,
                key: HashKey::new(&token),
            })),
            other => Err(unexpected(&other, "prepare")),
        }
    }

    fn build_and_run(
        &mut self,
        session: &Arc<Session>,
        notes: &Notes<Note>,
        wanted: Wanted,
        counters: &Counters,
    ) -> Result<Step, Failure> {
        self.enter(Phase::Prepare);
        let ram = self
            .build(session, &wanted.negotiated.machine)
            .map_err(before_commit)?;
        self.report.setup_ms = self.began.elapsed().as_secs_f64() * 1e3;
        let populate = Populate::new(&ram, self.vm.huge_pages());
        let placed = Placed::nothing(&ram, wanted.negotiated.verify);
        let key = (wanted.negotiated.verify == Verify::Stream).then_some(&wanted.key);
        let receiving = Receiving {
            ram: &ram,
            placed: &placed,
            session,
            populate: &populate,
            counters,
            key,
        };
        thread::scope(|scope| {
            // Ends the streams and the populating before their scope waits for them.
            let _closing = StopStreams(session, &populate);
            let digest = self
                .fill(scope, notes, receiving, &wanted.negotiated)
                .map_err(before_commit)?;
            self.commit(session, notes, digest, wanted.negotiated.run_state)
        })
    }

    fn build(&mut self, session: &Session, machine: &MachineDescription) -> Result<Ram, Error> {
        self.built = true;
        self.vm
            .prepare(machine)
            .map_err(Error::vm("build the machine"))?;
        let ram = self.vm.ram().map_err(Error::vm("allocate guest memory"))?;
        let ram = Ram::new(&ram, &machine.ram)?;
        let cost = self.journal.reserve(self.id, Side::Destination)?;
        session.send(&Message::Prepared(Prepared {
            journal_ms: cost.as_secs_f64() * 1e3,
        }))?;
        Ok(ram)
    }

    /// Places pages until all are here and the state is loaded; what to answer then.
    fn fill<'scope, 'env: 'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        notes: &Notes<Note>,
        receiving: Receiving<'env>,
        wanted: &Negotiate,
    ) -> Result<Ready, Error> {
        let session = receiving.session;
        let streams = wanted.streams;
        let mut done: Vec<(u32, u64)> = vec![(0, 0); usize::from(streams)];
        let mut state: Option<Vec<u8>> = None;
        let mut placings = Placings::new();
        let (mut last, mut placed) = (None, 0);
        let slice = session.timing().peer.min(self.progress_timeout);
        let mut progress = (Instant::now(), 0);
        loop {
            let arrived = done.iter().map(|&(pass, _)| pass).min().unwrap_or(0);
            if arrived > placed {
                placed = arrived;
                placings.push(placed, Instant::now());
                session.send(&Message::PassPlaced(PassPlaced { pass: placed }))?;
            }
            if let (Some(last), Some(loaded)) = (last, &state)
                && placed == last
            {
                session.pages_complete();
                let sum = done
                    .iter()
                    .fold(0u64, |sum, &(_, digest)| sum.wrapping_add(digest));
                return self.load(receiving.ram, loaded, wanted.verify, sum);
            }
            let note = session.next(notes, slice)?;
            let received = receiving.counters.wire_bytes();
            if note.is_some() || received != progress.1 {
                progress = (Instant::now(), received);
            } else if progress.0.elapsed() >= self.progress_timeout {
                return Err(Error::NoProgress(self.progress_timeout));
            }
            match note {
                Some(Note::Data { stream, connection }) => {
                    if stream >= u16::from(streams) {
                        return Err(Error::Protocol(format!(
                            "data stream {stream} of {streams}"
                        )));
                    }
                    if self.phase == Phase::Prepare {
                        self.enter(Phase::Precopy);
                    }
                    let connection = session.add_data(connection);
                    threads::start(scope, Role::Stream, "receiving pages", move || {
                        processors::step_back();
                        processors::spread(stream, streams);
                        session.guard(|| Receiver::new(receiving, stream, connection).run());
                    })?;
                }
                Some(Note::PassDone {
                    stream,
                    pass,
                    digest,
                }) => done[usize::from(stream)] = (pass, digest),
                Some(Note::Message(Message::Extents(Extents { extents }))) => {
                    receiving.populate.expect(receiving.ram, &extents);
                    if !processors::are_few(streams) {
                        threads::start(scope, Role::Stream, "making memory present", move || {
                            processors::step_back();
                            session.guard(|| receiving.populate.go_ahead(receiving.ram, &extents));
                        })?;
                    }
                }
                Some(Note::Message(Message::State(bytes))) if state.is_none() => {
                    placings.state_is_here();
                    self.enter(Phase::StopAndCopy);
                    state = Some(bytes);
                }
                Some(Note::Message(Message::LastPass(pass))) if state.is_some() => {
                    last = Some(pass.pass);
                    let (earliest, latest) = placings.saved_between(pass.saved);
                    self.vm.saved_between(earliest, latest);
                }
                Some(Note::Message(other)) => return Err(unexpected(&other, "pages")),
                Some(_) | None => {}
            }
        }
    }

    fn load(
        &mut self,
        ram: &Ram,
        state: &[u8],
        verify: Verify,
        stream_digest: u64,
    ) -> Result<Ready, Error> {
        let began = Instant::now();
        // Before the state is loaded: that may complete an access that writes to memory.
        let digest = match verify {
            Verify::Off => None,
            Verify::Stream => Some(digest_text(stream_digest)),
            Verify::Full => Some(full::full_digest(ram)),
        };
        let hashed = began.elapsed();
        self.vm
            .load_state(state)
            .map_err(Error::vm("load the machine's state"))?;
        let load_ms = (began.elapsed() - hashed).as_secs_f64() * 1e3;
        self.report.downtime.state_load = load_ms;
        Ok(Ready { digest, load_ms })
    }
}

/// What the source wants, and the key that its digest is to be made with.
struct Wanted {
    negotiated: Negotiate,
    key: HashKey,
}

struct StopStreams<'a>(&'a Session, &'a Populate);

impl Drop for StopStreams<'_> {
    fn drop(&mut self) {
        self.1.stop();
        self.0.end_streams();
    }
}

/// Waits for the next message of the source, other notes aside.
fn message(
    session: &Session,
    notes: &Notes<Note>,
    operation: &'static str,
    patience: Duration,
) -> Result<Message, Error> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::NoAnswer {
                operation,
                waited: patience,
            });
        }
        if let Some(Note::Message(message)) = session.next(notes, left)? {
            return Ok(message);
        }
    }
}

fn unexpected(message: &Message, expected: &str) -> Error {
    Error::Protocol(format!("it sent {} instead of {expected}", message.name()))
}
