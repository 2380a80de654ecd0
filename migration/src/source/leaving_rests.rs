//! Disks that go over to on-demand: what the destination does not have of them stays, and is fetched from here when the guest
//! runs there.

use super::moving::Moving;
use crate::error::Error;
use crate::observation::{Observation, Side};
use crate::progress::Phase;
use crate::wire::control::Message;

impl Moving<'_, '_, '_> {
    /// Before a pass and within: has disks go over when it is time. What is under way of them still goes.
    pub(super) fn leave_rests(&mut self) -> Result<(), Error> {
        if !self.course.is_to_leave_rests() || self.is_stopped() {
            return Ok(());
        }
        let transfer = &mut self.transfer;
        if !transfer.disks.may_leave_rests() {
            return Err(self.course.timed_out());
        }
        if transfer.disks.leave_rests(&transfer.sent_blocks) {
            let message = "the time is over: what is not at the destination of its disks by now is fetched when the guest runs there";
            let observation =
                Observation::new(Side::Source, "migration.over-to-on-demand", message);
            let steering = self.course.steering;
            steering.warn(observation.in_phase(Phase::Precopy.name()));
        }
        Ok(())
    }

    /// Tells the destination what stays of disks, when nothing more is sent.
    pub(super) fn tell_rests(&self) -> Result<(), Error> {
        let transfer = &self.transfer;
        let mut rests = transfer.disks.rests(&transfer.sent_blocks);
        rests.try_for_each(|left| self.link.session.send(&Message::BlocksLeft(left)))
    }
}
