//! What there is of a migration from prepare until the guest is the destination's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::costs::Costs;
use super::course::{Course, Failed, milliseconds};
use super::link::Link;
use super::undo::Undo;
use crate::error::Error;
use crate::observation::Side;
use crate::pages::sender::Sent;
use crate::raw::Ram;
use crate::vm::RunState;

/// What is known of the guest's transfer; it outlives a link.
pub(super) struct Transfer {
    pub ram: Arc<Ram>,
    pub sent: Arc<Sent>,
    /// What each stream's pages add to the digest.
    pub digests: Vec<u64>,
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
    /// The disks are offered to the destination.
    pub disks: Option<Undo<'a>>,
    /// The journal has a record.
    pub record: Option<Undo<'a>>,
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
        // First of all; what is slow comes later.
        self.go_on();
        Failed::Kept(self.link.end_for(error))
    }

    /// Lets the guest go on, if it was stopped.
    pub fn go_on(&mut self) {
        if let Some(Err(failed)) = self.guest.as_mut().map(Undo::now) {
            self.course.control.warn(failed.observe(Side::Source));
        }
    }

    /// Stops the guest, unless it stands already.
    pub fn stop(&mut self) -> Result<(), Error> {
        if self.guest.is_some() {
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
