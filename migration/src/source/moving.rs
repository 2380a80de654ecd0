//! What there is of a migration from prepare until the guest is the destination's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::costs::Costs;
use super::course::{Course, Failed, milliseconds};
use super::link::Link;
use super::travelling::Travelling;
use crate::blocks::sender::Disks;
use crate::error::Error;
use crate::observation::Side;
use crate::pages::sender::Sent;
use crate::progress::Limits;
use crate::raw::Ram;
use crate::session::{Digests, Note};
use crate::undo::Undo;
use crate::vm::RunState;
use crate::wire::control::Message;

/// What is known of the guest's transfer; it outlives a link.
pub(super) struct Transfer {
    /// What the first welcome gave out: digests are keyed by it, and who comes again shows it.
    pub secret: [u8; 16],
    pub ram: Arc<Ram>,
    pub sent: Arc<Sent>,
    pub disks: Travelling,
    pub sent_blocks: Arc<Disks>,
    /// What each stream of the link has added to the digests.
    pub digests: Vec<Digests>,
    /// What those of earlier links add.
    pub digests_before: Digests,
    /// Whether the guest's user lets it run; from when it is stopped on that does not change.
    pub run_state: RunState,
    /// The last pass that the destination said it placed, and when that was heard.
    pub heard: Option<(u32, Instant)>,
    /// What a switch-over costs beside the last pages.
    pub costs: Costs,
    /// The newest forecast of the downtime.
    pub forecast: Duration,
    /// Bytes that this side and the destination hash per second, where that matters and both are known.
    pub hash_speeds: Option<[f64; 2]>,
    /// Disks of which the destination wants samples.
    pub doubtful_disks: Vec<String>,
}

/// What is undone if the guest stays, once the destination cannot touch it any more.
#[derive(Default)]
pub(super) struct Holds<'a> {
    /// The processors are shared with the threads that move memory.
    pub sharing: Option<Undo<'a>>,
    /// The dirty log is on.
    pub log: Option<Undo<'a>>,
    /// Changes of disks that travel are tracked, or they are in overlays.
    pub tracking: Option<Undo<'a>>,
    /// Images of disks that travel are marked as leaving; the marks tell of overlays as long as there are any.
    pub marks: Option<Undo<'a>>,
    /// The disks are offered to the destination.
    pub disks: Option<Undo<'a>>,
    /// The journal has a record.
    pub record: Option<Undo<'a>>,
}

impl Transfer {
    /// What all that was sent adds to the digests.
    pub fn digest(&self) -> Digests {
        let streams = self.digests.iter().copied();
        Digests::sum(streams.chain([self.digests_before]))
    }
}

/// A guest on its way. Dropped, it is undone in the order of the fields: the guest goes on, the link ends, and then
/// all else. Whoever has a reason to tell the destination calls [`Moving::fail`].
pub(super) struct Moving<'m, 's, 'a> {
    /// The guest stands still.
    pub guest: Option<Undo<'a>>,
    pub link: Link<'s>,
    pub holds: Holds<'a>,
    pub transfer: Transfer,
    pub course: &'m mut Course<'a>,
}

impl Moving<'_, '_, '_> {
    /// Ends it for this reason: the guest stays here.
    pub fn fail(mut self, error: Error) -> Failed {
        self.course.failed();
        self.tell_disks();
        // First of all; what is slow comes later.
        self.go_on();
        self.leave_backlogs();
        let error = self.link.end_for(error);
        if self.link.is_over() {
            self.say_good_bye(&error);
        }
        Failed::Kept(error)
    }

    /// Tells what of each disk has gone.
    pub fn tell_disks(&self) {
        let gone = self.transfer.sent_blocks.class_bytes();
        self.course.steering.tell_disks(gone);
    }

    /// Lets the guest go on, if it was stopped.
    pub fn go_on(&mut self) {
        if let Some(Err(failed)) = self.guest.as_mut().map(Undo::now) {
            self.course.steering.warn(failed.observe(Side::Source));
        }
    }

    /// Whether the guest stands still, for the hand-over.
    pub fn is_stopped(&self) -> bool {
        self.guest.is_some()
    }

    /// Whether the total time is over.
    pub fn is_late(&self) -> bool {
        self.course.is_late()
    }

    /// The limits that its user has set, as of now.
    pub fn limits(&self) -> Limits {
        self.course.steering.limits()
    }

    /// The next note of a thread, if one comes within `patience`. The destination says nothing now but that a pass is
    /// placed, which is kept.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Note>, Error> {
        let note = self.link.next(patience)?;
        match &note {
            Some(Note::Message(Message::PassPlaced(done))) => {
                self.transfer.heard = Some((done.pass, Instant::now()));
                if let Some(flush) = done.flush_us {
                    self.transfer.costs.their_flush = Duration::from_micros(flush);
                }
            }
            Some(Note::Message(other)) => return Err(other.unexpected("pass-placed")),
            Some(_) | None => {}
        }
        Ok(note)
    }

    /// Whether the destination has said that `pass` is placed.
    pub fn has_placed(&self, pass: u32) -> bool {
        self.transfer.heard.is_some_and(|(of, _)| of >= pass)
    }

    /// Stops the guest, unless it stands already.
    pub fn stop(&mut self) -> Result<(), Error> {
        if self.is_stopped() {
            return Ok(());
        }
        let Self {
            course, transfer, ..
        } = self;
        let vm = course.vm;
        let began = Instant::now();
        course.stopped_at = Some(began);
        course.report.forecast_downtime_ms = Some(milliseconds(transfer.forecast));
        let resume = move || vm.resume().map_err(Error::vm("resume the guest"));
        self.guest = Some(course.undone_by(resume));
        vm.pause().map_err(Error::vm("pause the guest"))?;
        vm.flush_disks().map_err(Error::vm("flush the disks"))?;
        course.report.downtime.stop = Some(milliseconds(began.elapsed()));
        // Its user may have changed it since the migration began, and cannot any more.
        transfer.run_state = vm.run_state();
        course.report.run_state = transfer.run_state;
        self.holds.sharing = None;
        Ok(())
    }
}
