//! The hand-over is on offer, and the source decides.

use super::committing::Committing;
use super::course::Failure;
use super::running::Running;
use super::taken::Aftermath;
use super::taking::Taking;
use super::transfer::Transfer;
use crate::error::Error;
use crate::journal::Decision;
use crate::pages::full_digest;
use crate::progress::{Phase, Verify};
use crate::wire::control::Message;

/// A guest that can go on at either side, and does at neither.
pub(super) struct Offered<'m, 's, 'a> {
    // Let go of before the machine that it lies in.
    transfer: Transfer,
    taking: Taking<'m, 's, 'a>,
}

impl<'m, 's, 'a> Offered<'m, 's, 'a> {
    /// As the source was just told.
    pub fn new(taking: Taking<'m, 's, 'a>, transfer: Transfer) -> Self {
        Self { transfer, taking }
    }

    /// Waits for the source's decision, records it, and runs the guest.
    pub fn take_over(self) -> Result<Running<'m, 's, 'a>, Failure> {
        if let Err(error) = self.hear_decision() {
            return Err(self.give_up(error));
        }
        let Self { transfer, taking } = self;
        // The source compared the digests before it decided.
        taking.course.report.verified = transfer.requested.verify != Verify::Off;
        drop(transfer);
        taking.course.enter(Phase::Commit);
        Committing::of(taking).run()
    }

    /// Waits for the source's commit.
    fn hear_decision(&self) -> Result<(), Error> {
        let Taking { link, course, .. } = &self.taking;
        let timing = course.timing();
        let hashing =
            full_digest::patience(self.transfer.requested.verify, course.report.guest_bytes);
        let patience = timing.io.max(timing.peer) * 2 + hashing;
        match link.message("waiting for the decision", patience)? {
            Message::Commit => course.steering.enter_commit(),
            other => Err(other.unexpected("commit")),
        }
    }

    /// Ends the offer: a commit that is still on its way comes too late from here on.
    fn give_up(self, error: Error) -> Failure {
        let Self { transfer, taking } = self;
        drop(transfer);
        let Taking {
            link,
            holds,
            course,
        } = &taking;
        let aftermath = match error {
            // What a source says in place of its commit, it says before it.
            Error::Peer(_) => Aftermath::BuiltInVain,
            _ => holds.aftermath(course.id),
        };
        let decided = course.journal.decide(course.id, Decision::GiveUp);
        if matches!(decided, Ok(Decision::GiveUp)) {
            link.tell_never_ran(course.journal);
        }
        taking.fail_with(error, aftermath)
    }
}
