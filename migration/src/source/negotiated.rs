//! The destination can take the guest in: what both have agreed on, and what comes of it.

use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::Duration;

use super::connect::{NO_TOKEN, connect};
use super::copying::Copying;
use super::costs::Costs;
use super::course::{Course, End, Failed, milliseconds};
use super::link::{Link, unexpected};
use super::moving::{Holds, Moving, Transfer};
use super::undo::Undo;
use crate::error::Error;
use crate::id::{HostId, MigrationId};
use crate::journal::{Handover, Journal, SourceRecord};
use crate::observation::Side;
use crate::pages::sender::{Sending, Sent};
use crate::pages::{full_digest, populate};
use crate::progress::{Phase, Verify};
use crate::raw::{HashKey, Ram};
use crate::session::Session;
use crate::vm::MachineDescription;
use crate::wire::MAX_STREAMS;
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Extents, Intent, MAX_EXTENTS, Message, Negotiate, Prepared, Welcome};
use crate::wire::conversation::Conversation;
use crate::wire::hello::Role;

/// Data connections that a source on this machine opens when it is not told how many.
pub fn default_streams() -> u8 {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    if cores >= 8 { 4 } else { 2 }
}

/// A destination that said it can build and run the machine; nothing is built yet.
pub(super) struct Negotiated<'m, 's, 'a> {
    link: Link<'s>,
    sharing: Option<Undo<'a>>,
    ram: Arc<Ram>,
    token: [u8; 16],
    streams: u8,
    scope: &'s Scope<'s, 'a>,
    course: &'m mut Course<'a>,
}

impl<'m, 's, 'a> Negotiated<'m, 's, 'a> {
    /// Describes the guest to the destination, which agrees to take it.
    pub fn with(scope: &'s Scope<'s, 'a>, course: &'m mut Course<'a>) -> Result<Self, Failed> {
        course.enter(Phase::Negotiate);
        let vm = course.vm;
        let machine = vm.describe().map_err(Error::vm("describe the machine"))?;
        let ram = Arc::new(Ram::new(vm.ram(), &machine.ram)?);
        course.report.guest_bytes = ram.pages() * crate::PAGE_SIZE;
        let (link, token) = Self::link(scope, course)?;
        let chosen = course
            .options
            .request
            .streams
            .unwrap_or_else(default_streams);
        let streams = chosen.clamp(1, MAX_STREAMS);
        // Also while the destination builds the machine: whoever wakes next is to run at once.
        let sharing = (!course.options.request.plan).then(|| {
            let ends = course.undone_by(move || {
                vm.share_processors(0);
                Ok(())
            });
            vm.share_processors(usize::from(streams));
            ends
        });
        let negotiated = Self {
            link,
            sharing,
            ram,
            token,
            streams,
            scope,
            course,
        };
        match negotiated.agree(machine) {
            Ok(()) => Ok(negotiated),
            Err(error) => Err(negotiated.fail(error)),
        }
    }

    fn link(
        scope: &'s Scope<'s, 'a>,
        course: &mut Course<'a>,
    ) -> Result<(Link<'s>, [u8; 16]), Error> {
        let connection = connect(course, Role::Control, NO_TOKEN)?;
        let mut conversation = Conversation::new(Side::Source);
        let io = course.options.io_timeout;
        let hello = Message::receive_in_turn(&*connection, io, |kind| conversation.hear(kind))?;
        let welcome: Welcome = match hello {
            Message::Welcome(welcome) => welcome,
            Message::Failure(observation) => return Err(Error::Peer(observation)),
            other => return Err(unexpected(&other, "welcome")),
        };
        let agreed = Agreed::from_welcome(&welcome)?;
        course.host = welcome.host;
        let session = Session::new(conversation, connection.into(), course.timing());
        course.session = Some(session.0.clone());
        course.control.attach(&session.0);
        Ok((Link::start(scope, session, agreed)?, welcome.token))
    }

    fn agree(&self, machine: MachineDescription) -> Result<(), Error> {
        let Self { link, course, .. } = self;
        link.session.ping()?;
        let state = if link.agreed.has(Capabilities::STATE_FORM) {
            let offered = course.vm.offer_state();
            offered.map_err(Error::vm("describe the machine's state"))?
        } else {
            None
        };
        link.session.send(&Message::Negotiate(Box::new(Negotiate {
            machine,
            run_state: course.report.run_state,
            streams: self.streams,
            verify: course.options.request.verify,
            intent: if course.options.request.plan {
                Intent::Plan
            } else {
                Intent::Migrate
            },
            state,
        })))?;
        match link.answer("negotiating", course.options.io_timeout, || {
            course.check_time()
        })? {
            Message::Negotiated(chosen) => course
                .vm
                .agree_on_state(chosen.state.as_deref())
                .map_err(Error::vm("save the machine's state for the destination")),
            other => Err(unexpected(&other, "negotiated")),
        }
    }

    fn fail(self, error: Error) -> Failed {
        self.course.failed();
        let error = self.link.explain(error);
        self.link.session.tell(&error);
        Failed::Kept(error)
    }

    /// It was only asked whether it would work.
    pub fn end_plan(self) -> Result<End, Failed> {
        match self.link.session.send(&Message::PlanEnd) {
            Ok(()) => Ok(End::Planned),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Has the destination build the machine, and opens the data streams.
    pub fn prepare(self) -> Result<Copying<'m, 's, 'a>, Failed> {
        let Self {
            link,
            sharing,
            ram,
            token,
            streams,
            scope,
            course,
        } = self;
        course.enter(Phase::Prepare);
        let verify = course.options.request.verify;
        let sent = Sent::nothing(&ram, verify, streams, link.agreed);
        let mut moving = Moving {
            guest: None,
            link,
            holds: Holds {
                sharing,
                ..Holds::default()
            },
            transfer: Transfer {
                sent: Arc::new(sent),
                digests: vec![0; usize::from(streams)],
                run_state: course.report.run_state,
                heard: None,
                costs: Costs::default(),
                forecast: Duration::ZERO,
                hash_speeds: None,
                doubtful_disks: Vec::new(),
                ram,
            },
            course,
        };
        let prepared = moving
            .build()
            .and_then(|()| moving.open_streams(scope, token, streams));
        match prepared {
            Ok(()) => Ok(Copying::new(moving, scope)),
            Err(error) => Err(moving.fail(error)),
        }
    }
}

impl<'s, 'a> Moving<'_, 's, 'a> {
    fn build(&mut self) -> Result<(), Error> {
        let Self {
            link,
            holds,
            transfer,
            course,
            ..
        } = self;
        let (vm, journal, id) = (course.vm, course.journal, course.options.id);
        let reclaim = move || vm.reclaim_disks().map_err(Error::vm("reclaim the disks"));
        holds.disks = Some(course.undone_by(reclaim));
        vm.offer_disks().map_err(Error::vm("offer the disks"))?;
        link.session.send(&Message::Prepare)?;
        // While the destination builds the machine: both wait for their disks.
        let (destination, host) = (course.to.address(), course.host);
        let keep = move || record_kept(journal, id, &destination, host);
        holds.record = Some(course.undone_by(keep));
        course.record(Handover::Begun)?;
        let ours = journal.reserve(id, Side::Source)?;
        let patience = course.options.prepare_timeout;
        let prepared: Prepared = match link.answer("preparing", patience, || course.check_time())? {
            Message::Prepared(prepared) => prepared,
            other => return Err(unexpected(&other, "prepared")),
        };
        let theirs = prepared.journal_ms.clamp(0.0, 1e6) / 1e3;
        transfer.costs.records = ours + Duration::from_secs_f64(theirs);
        transfer.hash_speeds = prepared
            .hash_bytes_per_s
            .filter(|theirs| *theirs >= 1.0)
            .map(|theirs| [full_digest::speed(), theirs]);
        transfer.doubtful_disks = prepared.disks;
        Ok(())
    }

    fn open_streams(
        &mut self,
        scope: &'s Scope<'s, 'a>,
        token: [u8; 16],
        streams: u8,
    ) -> Result<(), Error> {
        let Self {
            link,
            holds,
            transfer,
            course,
            ..
        } = self;
        let vm = course.vm;
        let stop_log = move || vm.stop_dirty_log().map_err(Error::vm("stop the dirty log"));
        holds.log = Some(course.undone_by(stop_log));
        vm.start_dirty_log()
            .map_err(Error::vm("start the dirty log"))?;
        let extents = populate::extents(&transfer.ram, MAX_EXTENTS);
        link.session.send(&Message::Extents(Extents { extents }))?;
        let key = Arc::new(HashKey::new(&token));
        for stream in 0..streams {
            let role = Role::Data {
                stream: u16::from(stream),
            };
            let sending = Sending {
                memory: vm,
                ram: transfer.ram.clone(),
                sent: transfer.sent.clone(),
                session: link.session.clone(),
                control: course.control,
                bucket: course.bucket.clone(),
                counters: course.counters.clone(),
                key: (course.options.request.verify == Verify::Stream).then(|| key.clone()),
            };
            let connection = connect(course, role, token)?;
            link.add_stream(scope, connection, sending, [stream, streams])?;
        }
        course.report.setup_ms = milliseconds(course.began.elapsed());
        Ok(())
    }
}

/// Records that the guest stayed, where something was recorded; else no record is needed.
fn record_kept(
    journal: &dyn Journal,
    id: MigrationId,
    destination: &str,
    host: Option<HostId>,
) -> Result<(), Error> {
    if journal.recorded(id)?.is_none() {
        return Ok(journal.discard(id, Side::Source)?);
    }
    let record = SourceRecord {
        handover: Handover::Kept,
        destination: destination.to_owned(),
        host,
    };
    Ok(journal.record(id, &record)?)
}
