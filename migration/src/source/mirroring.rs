//! Mirrored disks: what the guest changes of them goes along with the passes (`blocks/echo.rs`), and it is let in to change
//! only as much as the link carries soon enough.

use std::time::Duration;

use super::moving::Moving;
use super::passes::Rates;
use crate::error::Error;
use crate::observation::{Observation, Side};
use crate::progress::Phase;

/// The share of the downtime that what is left of mirrored disks may take.
const SHARE: f64 = 0.25;
/// Bytes that may be left at most: beside that much, the stripes that a stream sends next have a twentieth of the link.
const MOST: f64 = (32 << 20) as f64;
/// The longest time between two passes that bring the end no nearer, as the guest is held up meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

impl Moving<'_, '_, '_> {
    /// Within a pass: as [`Moving::mirror`], if it is time by now and was not before.
    pub(super) fn mirror_within(&mut self, rates: &Rates) -> Result<(), Error> {
        let are_over = self.transfer.disks.are_all_mirrored();
        match self.course.is_to_mirror() && !self.is_stopped() && !are_over {
            true => self.mirror(rates),
            false => Ok(()),
        }
    }

    /// Before a pass: has disks go over to mirror when it is time, and the guest's changes of mirrored ones held up by a bound
    /// that follows from what the link carries.
    pub(super) fn mirror(&mut self, rates: &Rates) -> Result<(), Error> {
        if self.course.is_to_mirror() {
            if !self.transfer.disks.have_what_goes() {
                return Err(self.course.timed_out());
            }
            if self.transfer.disks.mirror_all(&self.transfer.sent_blocks) {
                self.warn_of_mirror(
                    "migration.over-to-mirror",
                    "the time is over: what the guest writes to its disks goes to the destination as it is written from here \
                     on, and waits for the link"
                        .into(),
                );
            }
        }
        let limits = self.limits();
        let bandwidth = match limits.bandwidth {
            Some(limit) => rates.bandwidth.min(limit as f64),
            None => rates.bandwidth,
        };
        let share = bandwidth * limits.downtime.as_secs_f64() * SHARE;
        let disks = self.transfer.disks.mirrored().count().max(1);
        // Less than a block lets one change in after the other.
        let most = share.clamp(0.0, MOST) as u64 / disks as u64;
        self.limit_writes();
        self.bound_backlogs(Some(most))
    }

    fn limit_writes(&self) {
        let steering = self.course.steering;
        let disks = &self.transfer.disks;
        disks.limit_writes(|disk| steering.writes_to(disk));
    }

    /// How long to wait between two passes that have been told to.
    pub(super) fn while_mirrored(&self, pause: Duration) -> Duration {
        match self.transfer.disks.mirrored().next() {
            Some(_) => pause.min(PAUSE),
            None => pause,
        }
    }

    /// Lets a guest go on whose changes have waited for as long as a peer may take, while nothing is carried away: they are
    /// marked, and sent when the link is. From the next pass on they wait again. What they may write in a second is what their user
    /// says by now.
    pub(super) fn look_after_mirrors(&mut self) -> Result<(), Error> {
        self.limit_writes();
        let patience = self.course.options.io_timeout;
        let mut mirrored = self.transfer.disks.mirrored();
        let waits = mirrored.any(|volume| volume.waits_for().is_some_and(|time| time >= patience));
        if !waits {
            return Ok(());
        }
        self.warn_of_mirror(
            "migration.mirror-stalled",
            format!(
                "nothing of what the guest writes to its disks has left for {} s: it goes on without waiting",
                patience.as_secs_f64()
            ),
        );
        self.bound_backlogs(None)
    }

    /// The guest's changes wait no more; those that cannot be told so are when the tracking ends.
    pub(super) fn leave_backlogs(&self) {
        if let Err(error) = self.bound_backlogs(None) {
            tracing::warn!("{}", error.observe(Side::Source));
        }
    }

    fn bound_backlogs(&self, most: Option<u64>) -> Result<(), Error> {
        let mut mirrored = self.transfer.disks.mirrored_and_bound();
        let bound = mirrored.try_for_each(|(volume, told)| {
            // What its user says never lets the guest stand still for longer.
            volume.bound_backlog(most.map(|most| told.map_or(most, |told| told.min(most))))
        });
        bound.map_err(Error::vm("bound what is written to a mirrored disk"))
    }

    fn warn_of_mirror(&self, id: &str, message: String) {
        let observation = Observation::new(Side::Source, id, message);
        let steering = self.course.steering;
        steering.warn(observation.in_phase(Phase::Precopy.name()));
    }
}
