//! The destination has all of the guest and waits for the decision.

use std::time::Instant;

use super::committed::Committed;
use super::course::Failed;
use super::moving::Moving;
use super::undecided::Undecided;
use crate::journal::Handover;
use crate::progress::Phase;

/// A guest that can go on at either side, and does at neither.
pub(super) struct Ready<'m, 's, 'a> {
    moving: Moving<'m, 's, 'a>,
    since: Instant,
}

impl<'m, 's, 'a> Ready<'m, 's, 'a> {
    /// As the destination has just said.
    pub fn new(moving: Moving<'m, 's, 'a>) -> Self {
        // A destination that gives up ends them before it says so, and what it says must not be missed.
        moving.link.session.pages_complete();
        Self {
            moving,
            since: Instant::now(),
        }
    }

    /// Once the policy allows it, records the decision, sends it, and waits until the guest runs at the destination.
    pub fn commit(self) -> Result<Committed<'m, 's, 'a>, Failed> {
        let Self { moving, since } = self;
        moving.course.enter(Phase::Commit);
        let stands = || {
            moving.course.steering.check()?;
            moving.link.check()
        };
        let decided = (moving.course.policy)
            .may_commit(&stands)
            // While it was waited for the link may have ended: then nothing needs to be in doubt.
            .and_then(|()| stands())
            .and_then(|()| moving.course.record(Handover::CommitSent));
        if let Err(error) = decided {
            return Err(moving.fail(error));
        }
        // From here on the commit may have arrived, even if sending it fails, and only what it answers counts.
        Undecided::of(moving, since).commit()
    }
}
