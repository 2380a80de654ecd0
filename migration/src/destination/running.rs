//! The guest runs here.

use std::time::{Duration, Instant};

use super::course::{Course, End};
use super::holds::Machine;
use super::link::Link;
use crate::error::Error;
use crate::progress::Phase;
use crate::wire::control::{Committed, Message};

/// How long the source is waited for after the guest runs here.
const FAREWELL: Duration = Duration::from_secs(2);

/// A guest that is here, for good.
pub(super) struct Running<'m, 's, 'a> {
    link: Link<'s, 'a>,
    machine: Machine<'a>,
    course: &'m mut Course<'a>,
    committed: Committed,
}

impl<'m, 's, 'a> Running<'m, 's, 'a> {
    /// As the source is going to be told.
    pub fn new(
        link: Link<'s, 'a>,
        machine: Machine<'a>,
        course: &'m mut Course<'a>,
        committed: Committed,
    ) -> Self {
        course.report.warnings.clone_from(&committed.warnings);
        course.report.downtime.commit = committed.journal_ms + committed.start_ms;
        Self {
            link,
            machine,
            course,
            committed,
        }
    }

    /// Tells the source, and takes what that still has for the guest.
    pub fn finish(mut self) -> End {
        self.course.enter(Phase::Finish);
        let committed = Message::Committed(self.committed.clone());
        if self.link.session.send(&committed).is_err() {
            return End::Completed;
        }
        // So that the answer is not lost by closing too early; the source may ask otherwise.
        let farewell = self.farewell();
        if matches!(farewell, Ok(Message::Finish))
            && let Err(error) = self.course.journal.finish(self.course.id)
        {
            // The record is kept for longer than needed.
            tracing::debug!("{}: {}", error, error.source);
        }
        End::Completed
    }

    /// Takes what the source still has for the guest; the message after that.
    fn farewell(&mut self) -> Result<Message, Error> {
        let until = Instant::now() + FAREWELL;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.link.message("finishing", left)? {
                Message::Forwarded(packets) => {
                    if let Err(why) = self.machine.vm.take_forwarded(&packets) {
                        // As if it had been lost on its way.
                        tracing::warn!("packets that were forwarded to the guest are lost: {why}");
                    }
                }
                other => return Ok(other),
            }
        }
    }
}
