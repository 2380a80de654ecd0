//! When a guest may be stopped, and when its hand-over may be decided.

use crate::control::Control;
use crate::convergence::{self, Deadline, Decision, Observed};
use crate::error::Error;
use crate::progress::Limits;

/// Who decides over the switch-over of a guest that is being copied. Both questions come from the thread that moves
/// the guest.
pub(super) trait SwitchOverPolicy {
    /// What is to come after a pass: stopping the guest, another pass, or nothing.
    fn may_stop(&self, observed: &Observed, limits: &Limits) -> Decision;
    /// The destination has everything: whether the decision to run it there may be recorded. From here on a cancel is
    /// refused.
    fn may_commit(&self) -> Result<(), Error>;
}

/// One guest, which waits for no other.
pub(super) struct Alone<'a> {
    pub control: &'a Control,
    pub deadline: Deadline,
}

impl SwitchOverPolicy for Alone<'_> {
    fn may_stop(&self, observed: &Observed, limits: &Limits) -> Decision {
        convergence::decide(observed, limits, self.deadline)
    }

    fn may_commit(&self) -> Result<(), Error> {
        self.control.enter_commit()
    }
}
