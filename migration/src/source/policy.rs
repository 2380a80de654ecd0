//! When a guest may be stopped, and when its hand-over may be decided.

use crate::convergence::{self, Deadline, Decision, Observed};
use crate::error::Error;
use crate::progress::Limits;
use crate::steering::Steering;

/// Who decides over the switch-over of a guest that is being copied. Both questions come from the thread that moves
/// the guest; a guest is never stopped unless its policy said so.
pub(super) trait SwitchOverPolicy: Sync {
    /// What is to come: stopping the guest, another pass, or nothing. Asked after each pass, and in the middle of one once
    /// the total time is over. Asking changes nothing: it is asked too what it would say were the guest's disks flushed.
    fn may_stop(&self, observed: &Observed, limits: &Limits) -> Decision;
    /// The destination has everything: whether the decision to run it there may be recorded. From here on a cancel is
    /// refused. Who waits for something calls `stands` now and then: the link may be lost meanwhile, and its error is what
    /// to give back.
    fn may_commit(&self, stands: &dyn Fn() -> Result<(), Error>) -> Result<(), Error>;
}

/// One guest, which waits for no other.
pub(super) struct Alone<'a> {
    pub steering: &'a Steering,
    pub deadline: Deadline,
}

impl SwitchOverPolicy for Alone<'_> {
    fn may_stop(&self, observed: &Observed, limits: &Limits) -> Decision {
        convergence::decide(observed, limits, self.deadline)
    }

    fn may_commit(&self, _stands: &dyn Fn() -> Result<(), Error>) -> Result<(), Error> {
        self.steering.enter_commit()
    }
}
