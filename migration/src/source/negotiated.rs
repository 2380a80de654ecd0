//! The destination can take the guest in: what both have agreed on, and what comes of it.

use std::sync::Arc;
use std::thread::Scope;
use std::time::Duration;

use super::connect::{Greeted, NO_TOKEN, greet};
use super::copying::Copying;
use super::costs::Costs;
use super::course::{Course, End, Failed, milliseconds};
use super::link::Link;
use super::moving::{Holds, Moving, Transfer};
use super::options::default_streams;
use super::travelling::Travelling;
use crate::error::Error;
use crate::observation::{Observation, Side};
use crate::pages::sender::Sent;
use crate::progress::{DisksReport, Phase};
use crate::raw::Ram;
use crate::session::{Digests, Session};
use crate::undo::Undo;
use crate::vm::MachineDescription;
use crate::wire::MAX_STREAMS;
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Intent, Message, Negotiate};
use crate::wire::hello::Role;

/// A destination that said it can build and run the machine; nothing is built yet.
pub(super) struct Negotiated<'m, 's, 'a> {
    link: Link<'s>,
    sharing: Option<Undo<'a>>,
    ram: Arc<Ram>,
    disks: Travelling,
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
        let disks = Travelling::of(vm, &course.options.request)?;
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
        let mut negotiated = Self {
            link,
            sharing,
            ram,
            disks,
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
        let patience = course.options.io_timeout;
        let Greeted {
            connection,
            conversation,
            welcome,
        } = greet(course, Role::Control, NO_TOKEN, patience)?;
        let agreed = Agreed::from_welcome(&welcome)?;
        course.host = welcome.host;
        let session = Session::new(conversation, connection.into(), course.timing());
        course.on_session(&session.0);
        Ok((Link::start(scope, session, agreed)?, welcome.token))
    }

    fn agree(&mut self, machine: MachineDescription) -> Result<(), Error> {
        let Self {
            link,
            disks,
            course,
            ..
        } = self;
        link.session.ping()?;
        disks.fit(link.agreed)?;
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
            volumes: disks.offers().to_vec(),
            reconnect_ms: course
                .reconnect_for(link.agreed)
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        })))?;
        match link.answer("negotiating", course.options.io_timeout, || {
            course.check_time()
        })? {
            Message::Negotiated(chosen) => {
                disks.keep(&chosen.volumes)?;
                course.report.disks = (!disks.is_empty()).then(|| DisksReport {
                    travelling: chosen.volumes,
                    ..DisksReport::default()
                });
                for id in disks.go_after() {
                    let message = format!(
                        "disk {id} is to move after its guest: it goes on demand, and what is not there when the guest needs it is \
                         fetched from here"
                    );
                    let id = "migration.after-is-on-demand";
                    let told = Observation::new(Side::Source, id, message);
                    course.steering.warn(told.in_phase(Phase::Negotiate.name()));
                }
                let vm = course.vm;
                vm.agree_on_disks(&disks.ids())
                    .map_err(Error::vm("let the chosen disks travel"))?;
                vm.agree_on_state(chosen.state.as_deref())
                    .map_err(Error::vm("save the machine's state for the destination"))
            }
            other => Err(other.unexpected("negotiated")),
        }
    }

    fn fail(self, error: Error) -> Failed {
        self.course.failed();
        Failed::Kept(self.link.end_for(error))
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
            disks,
            token,
            streams,
            scope,
            course,
        } = self;
        course.enter(Phase::Prepare);
        let verify = course.options.request.verify;
        let sent = Sent::nothing(&ram, verify, streams, link.agreed);
        let sent_blocks = disks.unsent(verify, streams, link.agreed);
        let mut moving = Moving {
            guest: None,
            link,
            holds: Holds {
                sharing,
                ..Holds::default()
            },
            transfer: Transfer {
                secret: token,
                sent: Arc::new(sent),
                sent_blocks: Arc::new(sent_blocks),
                digests: vec![Digests::default(); usize::from(streams)],
                digests_before: Digests::default(),
                run_state: course.report.run_state,
                heard: None,
                costs: Costs::default(),
                forecast: Duration::ZERO,
                hash_speeds: None,
                doubtful_disks: Vec::new(),
                ram,
                disks,
            },
            course,
        };
        let prepared = moving
            .build()
            .and_then(|()| moving.mark_writes())
            .and_then(|()| moving.open_streams(scope, token));
        match prepared {
            Ok(()) => {
                moving.course.report.setup_ms = milliseconds(moving.course.began.elapsed());
                Ok(Copying::new(moving, scope))
            }
            Err(error) => Err(moving.fail(error)),
        }
    }
}
