//! This host can take the guest in: what its source wants, and what both have agreed on.

use std::sync::Arc;
use std::thread::Scope;

use super::bounds::check_bounds;
use super::built::Built;
use super::course::{Course, End, Failure};
use super::holds::Holds;
use super::link::Link;
use super::reception::Peer;
use super::taking::Taking;
use super::transfer::Transfer;
use crate::bandwidth::FixedLimit;
use crate::blocks::receiver::{Before, DisksHere};
use crate::endpoint::RemoteHost;
use crate::error::Error;
use crate::id::random_bytes;
use crate::observation::Side;
use crate::pages::full_digest;
use crate::pages::populate::Populate;
use crate::pages::receiver::{MemoryHere, Placed};
use crate::progress::{Phase, Verify};
use crate::raw::{HashKey, Ram};
use crate::session::Session;
use crate::streams::receiver::Receiving;
use crate::vm::{DestinationVm, VolumeOffer};
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Intent, Message, Negotiate, Negotiated as Answer, Prepared, Welcome};
use crate::wire::conversation::Conversation;

/// A guest whose machine this host can build and run; nothing is built yet.
pub(super) struct Negotiated<'m, 's, 'a> {
    taking: Taking<'m, 's, 'a>,
    requested: Negotiate,
    /// What the digests are keyed by.
    token: [u8; 16],
}

impl<'m, 's, 'a> Negotiated<'m, 's, 'a> {
    /// Welcomes `peer`, hears what it wants, and agrees to it.
    pub fn with(
        scope: &'s Scope<'s, 'a>,
        peer: Peer,
        vm: &'a mut dyn DestinationVm,
        course: &'m mut Course<'a>,
    ) -> Result<Self, Failure> {
        let conversation = Conversation::new(Side::Destination);
        let source = peer.connection.remote();
        let session = Session::new(conversation, peer.connection, course.timing());
        course.steering.attach(&session.0);
        let mut taking = Taking {
            link: Link::new(scope, session, peer.agreed),
            holds: Holds::nothing(vm, course.failures()),
            course,
        };
        match taking.agree(source) {
            Ok((requested, token)) => Ok(Self {
                taking,
                requested,
                token,
            }),
            Err(error) => Err(taking.fail(error)),
        }
    }

    /// Whether the source only asks whether it would work.
    pub fn is_plan(&self) -> bool {
        self.requested.intent == Intent::Plan
    }

    /// The source says good-bye, or is gone: nothing was built either way.
    pub fn end_plan(self) -> End {
        let Taking { link, course, .. } = self.taking;
        let _ = link.message("planning", course.options.io_timeout);
        End::Planned
    }

    /// Builds the machine once the source wants it.
    pub fn build(self) -> Result<Built<'m, 's, 'a>, Failure> {
        let Self {
            mut taking,
            requested,
            token,
        } = self;
        match taking.build(&requested, &token) {
            Ok(receiving) => Ok(Built::new(taking, Transfer::begin(requested, receiving))),
            Err(error) => Err(taking.fail(error)),
        }
    }
}

impl Taking<'_, '_, '_> {
    fn agree(&mut self, source: RemoteHost) -> Result<(Negotiate, [u8; 16]), Error> {
        let Self {
            link,
            holds,
            course,
        } = self;
        let vm = &mut *holds.machine.vm;
        link.listen()?;
        course.enter(Phase::Negotiate);
        // An identifier that was decided on must not come again: its answer stands for ever.
        if course.journal.decision(course.id)?.is_some() {
            return Err(Error::GivenUp {
                id: course.id.to_string(),
            });
        }
        let token = random_bytes().map_err(Error::Random)?;
        course.reception.admit(token, &link.session);
        link.session.send(&Message::Welcome(Welcome {
            version: link.agreed.version(),
            token,
            host: link.named_host(course.journal),
            capabilities: link.agreed.told(),
            placed: None,
        }))?;
        let mut requested = match link.message("negotiating", course.options.io_timeout)? {
            Message::Negotiate(requested) => *requested,
            other => return Err(other.unexpected("negotiate")),
        };
        check_bounds(&requested)?;
        course.report.run_state = requested.run_state;
        course.report.guest_bytes = requested.machine.ram.iter().map(|region| region.len).sum();
        vm.expect_volumes(course.id, &requested.volumes)
            .map_err(Error::vm("take the disks that travel"))?;
        vm.negotiate(&requested.machine)
            .map_err(Error::vm("run the described machine"))?;
        vm.reach_servers(source)
            .map_err(Error::vm("reach who serves the disks"))?;
        let state = vm
            .choose_state(&requested.machine, requested.state.as_deref())
            .map_err(Error::vm("load the described machine's state"))?;
        let volumes = vm.travelling_disks();
        let travels = |offer: &VolumeOffer| volumes.iter().any(|disk| disk.id == offer.id);
        requested.volumes.retain(travels);
        link.session
            .send(&Message::Negotiated(Answer { state, volumes }))?;
        Ok((requested, token))
    }

    fn build(&mut self, requested: &Negotiate, token: &[u8; 16]) -> Result<Receiving, Error> {
        let Self {
            link,
            holds,
            course,
        } = self;
        match link.message("negotiating", course.options.io_timeout)? {
            Message::Prepare => {}
            other => return Err(other.unexpected("prepare")),
        }
        course.enter(Phase::Prepare);
        // Durable long before the commit can come, which without it would not be accepted.
        holds.reserve(course);
        let cost = course.journal.reserve(course.id, Side::Destination)?;
        holds.machine.build(&requested.machine)?;
        let vm = &*holds.machine.vm;
        let ram = vm.ram().map_err(Error::vm("allocate guest memory"))?;
        let ram = Ram::new(&ram, &requested.machine.ram)?;
        let verify = requested.verify;
        let volumes = vm.volumes();
        let volumes = volumes.map_err(Error::vm("make the disks that come in"))?;
        let before = match link.agreed.has(Capabilities::BLOCK_DIGESTS) {
            true => Before::Kept,
            false => Before::Cleared,
        };
        let disks = DisksHere::begin(volumes, &requested.volumes, (verify, token), before)?;
        let disks = Arc::new(disks);
        link.compare(&disks)?;
        if link.reconnect_for(requested).is_some() {
            // The link may be lost as soon as it is told.
            course.reception.let_come_again(link.agreed);
        }
        link.session.send(&Message::Prepared(Prepared {
            journal_ms: cost.as_secs_f64() * 1e3,
            hash_bytes_per_s: (verify == Verify::Full).then(full_digest::speed),
            disks: vm.doubtful_disks(),
            kept_disks: disks.kept(),
        }))?;
        course.report.setup_ms = course.began.elapsed().as_secs_f64() * 1e3;
        Ok(Receiving {
            memory: MemoryHere {
                placed: Placed::nothing(&ram, verify),
                populate: Populate::new(&ram, vm.huge_pages()),
                key: (verify == Verify::Stream).then(|| HashKey::new(token)),
                ram,
            },
            disks,
            counters: course.counters.clone(),
            inbound: FixedLimit::at(course.options.max_inbound),
            frames: Default::default(),
        })
    }
}
