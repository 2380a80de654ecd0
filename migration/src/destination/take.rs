//! Takes one guest in, phase by phase.

mod commit;
mod run;

use std::sync::Arc;
use std::sync::mpsc::Receiver as Notes;
use std::thread::{self, Scope};
use std::time::Instant;

use run::{Doubt, Failure, Step, Take, Undo, before_commit, message};

use super::bounds::check_bounds;
use super::options::Options;
use super::placings::Placings;
use super::reception::Reception;
use super::taken::{Failed, Fate, Taken, failure_in};
use crate::control::Control;
use crate::error::Error;
use crate::id::{MigrationId, random_bytes};
use crate::journal::Journal;
use crate::observation::Side;
use crate::pages::populate::Populate;
use crate::pages::receiver::{Placed, Receiver, Receiving};
use crate::pages::{Counters, digest_text, full_digest, processors};
use crate::progress::{Phase, Report, Verify};
use crate::raw::{HashKey, Ram};
use crate::session::{CloseOnDrop, Note, Session, Timing};
use crate::threads::{self, ThreadKind};
use crate::transport::Connection;
use crate::vm::DestinationVm;
use crate::wire::agreed::Agreed;
use crate::wire::control::{
    Extents, Intent, Message, Negotiate, Negotiated, PassPlaced, Prepared, Ready, Welcome,
};
use crate::wire::conversation::Conversation;

/// Who wants to give a guest.
pub(super) struct Peer {
    pub connection: Arc<dyn Connection>,
    pub id: MigrationId,
    pub agreed: Agreed,
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
        agreed,
    } = peer;
    let span = tracing::info_span!("migration", %id, role = "destination");
    let _entered = span.enter();
    let timing = Timing {
        io: options.io_timeout,
        peer: options.peer_timeout,
    };
    let (session, notes) = Session::new(Conversation::new(Side::Destination), connection, timing);
    control.set_id(id);
    control.attach(&session);
    let counters = Counters::default();
    let mut take = Take {
        id,
        agreed,
        vm,
        control,
        journal,
        reception,
        began: Instant::now(),
        phase: Phase::Negotiate,
        phase_began: Instant::now(),
        span: None,
        undo: Undo::default(),
        built: false,
        progress_timeout: options.progress_timeout,
        doubt: Doubt::None,
        report: Report {
            migration_id: id.to_string(),
            ..Report::default()
        },
    };
    let result = thread::scope(|scope| {
        let _closing = CloseOnDrop(&session);
        let heard = threads::start(scope, ThreadKind::Link, "the control connection", || {
            session.run_control();
        });
        let result = match heard {
            Ok(_) => take.negotiate(&session, &notes),
            Err(error) => Err((error, Fate::AtSource)),
        };
        let result = result.and_then(|requested| match requested {
            Some(requested) => take.build_and_run(&session, &notes, requested, &counters),
            None => Ok(Step::Planned),
        });
        result.map_err(|(error, fate)| (session.end_for(&notes, error), fate))
    });
    take.end_phase();
    take.report.encodings = counters.encodings();
    // What was not sent is not seen here.
    take.report.encodings.remove("hole");
    take.report.wire_bytes = counters.wire_bytes();
    take.report.total_ms = take.began.elapsed().as_secs_f64() * 1e3;
    match result {
        Ok(Step::Planned) => Taken::Planned,
        Ok(Step::Running) => Taken::Completed(Box::new(take.report)),
        Err((error, fate)) => {
            let mut observation = failure_in(take.phase, &error);
            if fate != Fate::Unknown {
                observation.causes.extend(take.undo());
            }
            let aftermath = take.aftermath(&error);
            Taken::Failed(Box::new(Failed {
                report: take.report,
                observation,
                fate,
                aftermath,
            }))
        }
    }
}

impl Take<'_> {
    fn negotiate(
        &mut self,
        session: &Arc<Session>,
        notes: &Notes<Note>,
    ) -> Result<Option<Requested>, Failure> {
        self.enter(Phase::Negotiate);
        self.agree(session, notes).map_err(before_commit)
    }

    fn agree(
        &mut self,
        session: &Arc<Session>,
        notes: &Notes<Note>,
    ) -> Result<Option<Requested>, Error> {
        // An identifier that was decided on must not come again: its answer stands for ever.
        if self.journal.decision(self.id)?.is_some() {
            return Err(Error::GivenUp {
                id: self.id.to_string(),
            });
        }
        let token = random_bytes().map_err(Error::Random)?;
        self.reception.admit(token, session);
        session.send(&Message::Welcome(Welcome {
            version: self.agreed.version(),
            token,
            host: self.named_host(),
            capabilities: self.agreed.told(),
        }))?;
        let patience = session.timing().io;
        let requested = match message(session, notes, "negotiating", patience)? {
            Message::Negotiate(requested) => *requested,
            other => return Err(other.unexpected("negotiate")),
        };
        check_bounds(&requested)?;
        self.report.run_state = requested.run_state;
        self.report.guest_bytes = requested.machine.ram.iter().map(|region| region.len).sum();
        self.vm
            .negotiate(&requested.machine)
            .map_err(Error::vm("run the described machine"))?;
        let state = self
            .vm
            .choose_state(&requested.machine, requested.state.as_deref())
            .map_err(Error::vm("load the described machine's state"))?;
        session.send(&Message::Negotiated(Negotiated { state }))?;
        if requested.intent == Intent::Plan {
            // The source says good-bye, or is gone: nothing was built either way.
            let _ = message(session, notes, "planning", patience);
            return Ok(None);
        }
        match message(session, notes, "negotiating", patience)? {
            Message::Prepare => Ok(Some(Requested {
                negotiated: requested,
                key: HashKey::new(&token),
            })),
            other => Err(other.unexpected("prepare")),
        }
    }

    fn build_and_run(
        &mut self,
        session: &Arc<Session>,
        notes: &Notes<Note>,
        requested: Requested,
        counters: &Counters,
    ) -> Result<Step, Failure> {
        self.enter(Phase::Prepare);
        let ram = self
            .build(session, &requested.negotiated)
            .map_err(before_commit)?;
        self.report.setup_ms = self.began.elapsed().as_secs_f64() * 1e3;
        let populate = Populate::new(&ram, self.vm.huge_pages());
        let placed = Placed::nothing(&ram, requested.negotiated.verify);
        let key = (requested.negotiated.verify == Verify::Stream).then_some(&requested.key);
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
                .fill(scope, notes, receiving, &requested.negotiated)
                .map_err(before_commit)?;
            self.commit(session, notes, digest, &requested.negotiated)
        })
    }

    fn build(&mut self, session: &Session, requested: &Negotiate) -> Result<Ram, Error> {
        let machine = &requested.machine;
        // Durable long before the commit can come, which without it would not be accepted.
        self.undo.reserved = true;
        let cost = self.journal.reserve(self.id, Side::Destination)?;
        self.undo.building = true;
        self.vm
            .prepare(machine)
            .map_err(Error::vm("build the machine"))?;
        self.built = true;
        let ram = self.vm.ram().map_err(Error::vm("allocate guest memory"))?;
        let ram = Ram::new(&ram, &machine.ram)?;
        session.send(&Message::Prepared(Prepared {
            journal_ms: cost.as_secs_f64() * 1e3,
            hash_bytes_per_s: (requested.verify == Verify::Full).then(full_digest::speed),
            disks: self.vm.doubtful_disks(),
        }))?;
        Ok(ram)
    }

    /// Places pages until all are here and the state is loaded; what to answer then.
    fn fill<'scope, 'env: 'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        notes: &Notes<Note>,
        receiving: Receiving<'env>,
        requested: &Negotiate,
    ) -> Result<Ready, Error> {
        let session = receiving.session;
        let streams = requested.streams;
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
                // Before the state is loaded: that may complete an access that writes to memory.
                let digest = match requested.verify {
                    Verify::Off => None,
                    Verify::Stream => Some(digest_text(sum)),
                    Verify::Full => {
                        let digest = full_digest::of(receiving.ram, &|| session.is_stopped());
                        Some(digest.ok_or_else(|| session.why_stopped(notes))?)
                    }
                };
                return self.load(loaded, digest);
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
                    threads::start(scope, ThreadKind::Stream, "receiving pages", move || {
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
                        threads::start(
                            scope,
                            ThreadKind::Stream,
                            "making memory present",
                            move || {
                                processors::step_back();
                                session
                                    .guard(|| receiving.populate.go_ahead(receiving.ram, &extents));
                            },
                        )?;
                    }
                }
                Some(Note::Message(Message::State(bytes))) if state.is_none() => {
                    placings.state_is_here();
                    self.enter(Phase::StopAndCopy);
                    state = Some(bytes);
                }
                Some(Note::Message(Message::LastPass(pass)))
                    if state.is_some() && last.is_none() =>
                {
                    last = Some(pass.pass);
                    // Its user may have paused it, or let it go on, since it was negotiated.
                    self.report.run_state = pass.run_state.unwrap_or(requested.run_state);
                    let (earliest, latest) = placings.saved_between(pass.saved);
                    self.vm.saved_between(earliest, latest);
                    self.vm
                        .check_disk_samples(pass.disks.as_deref())
                        .map_err(Error::vm("recognise the guest's disks"))?;
                }
                Some(Note::Message(other)) => return Err(other.unexpected("pages")),
                Some(_) | None => {}
            }
        }
    }

    fn load(&mut self, state: &[u8], digest: Option<String>) -> Result<Ready, Error> {
        let began = Instant::now();
        self.vm
            .load_state(state)
            .map_err(Error::vm("load the machine's state"))?;
        let load_ms = began.elapsed().as_secs_f64() * 1e3;
        self.report.downtime.state_load = load_ms;
        Ok(Ready { digest, load_ms })
    }
}

/// What the source wants, and the key that its digest is to be made with.
struct Requested {
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
