//! The hand-over at the destination: offered, decided by the source, recorded, carried out.

use std::sync::mpsc::Receiver as Notes;
use std::time::{Duration, Instant};

use super::run::{Doubt, Failure, Step, Take, before_commit, message};
use crate::destination::taken::Fate;
use crate::error::Error;
use crate::journal::Decision;
use crate::pages::full_digest;
use crate::progress::{Phase, Verify};
use crate::session::{Note, Session};
use crate::vm::RunState;
use crate::wire::control::{
    Answer, Committed, MAX_WARNINGS, Message, Negotiate, Ready, Resolution,
};

/// How long the source is waited for after the guest runs here.
const FAREWELL: Duration = Duration::from_secs(2);

impl Take<'_> {
    /// Offers the hand-over, waits for the source's decision, and carries it out.
    pub(super) fn commit(
        &mut self,
        session: &Session,
        notes: &Notes<Note>,
        ready: Ready,
        requested: &Negotiate,
    ) -> Result<Step, Failure> {
        self.enter(Phase::Ready);
        let has_digest = ready.digest.is_some();
        self.undo.offered = true;
        self.doubt = Doubt::MayAsk;
        self.reception.expect_question(self.id);
        session
            .send(&Message::Ready(ready))
            .map_err(before_commit)?;
        if let Err(failure) = self.hear_decision(session, notes, requested.verify) {
            // What a source says in place of its commit, it says before it.
            if matches!(failure.0, Error::Peer(_)) {
                self.doubt = Doubt::None;
            }
            // A commit that is still on its way comes too late from here on.
            if matches!(
                self.journal.decide(self.id, Decision::GiveUp),
                Ok(Decision::GiveUp)
            ) {
                self.tell_never_ran(session);
            }
            return Err(failure);
        }
        self.enter(Phase::Commit);
        let ran = {
            let _nobody_asks = self.reception.hand_over();
            self.run_guest(self.report.run_state)
        };
        let committed = ran.inspect_err(|(_, fate)| {
            if *fate != Fate::Unknown {
                self.tell_never_ran(session);
            }
        })?;
        // The source compared the digests before it decided.
        self.report.verified = has_digest;
        self.report.downtime.commit = committed.journal_ms + committed.start_ms;
        self.enter(Phase::Finish);
        if session.send(&Message::Committed(committed)).is_ok() {
            // So that the answer is not lost by closing too early; the source may ask otherwise.
            let farewell = self.farewell(session, notes);
            if matches!(farewell, Ok(Message::Finish))
                && let Err(error) = self.journal.finish(self.id)
            {
                // The record is kept for longer than needed.
                tracing::debug!("{}: {}", error, error.source);
            }
        }
        Ok(Step::Running)
    }

    /// Takes what the source still has for the guest; the message after that.
    fn farewell(&mut self, session: &Session, notes: &Notes<Note>) -> Result<Message, Error> {
        let until = Instant::now() + FAREWELL;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match message(session, notes, "finishing", left)? {
                Message::Forwarded(packets) => {
                    if let Err(why) = self.vm.take_forwarded(&packets) {
                        // As if it had been lost on its way.
                        tracing::warn!("packets that were forwarded to the guest are lost: {why}");
                    }
                }
                other => return Ok(other),
            }
        }
    }

    /// Records the commit, then runs the guest.
    fn run_guest(&mut self, run_state: RunState) -> Result<Committed, Failure> {
        let began = Instant::now();
        match self.journal.decide(self.id, Decision::Commit) {
            Ok(Decision::Commit) => {}
            Ok(Decision::GiveUp) => {
                let id = self.id.to_string();
                return Err(before_commit(Error::GivenUp { id }));
            }
            // It may or may not be durable: trying to give up tells.
            Err(error) => {
                let fate = match self.journal.decide(self.id, Decision::GiveUp) {
                    Ok(Decision::GiveUp) => Fate::AtSource,
                    Ok(Decision::Commit) => self.take_back(),
                    Err(_) => Fate::Unknown,
                };
                return Err((error.into(), fate));
            }
        }
        let journal_ms = began.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        let run = match run_state {
            RunState::Running => self.vm.start(),
            RunState::Paused => self.vm.take_over_paused(),
        };
        match run.map_err(Error::vm("start the guest")) {
            Ok(()) => {
                let start_ms = started.elapsed().as_secs_f64() * 1e3;
                let mut warnings = self.vm.warnings();
                warnings.truncate(MAX_WARNINGS);
                self.report.warnings.clone_from(&warnings);
                Ok(Committed {
                    journal_ms,
                    start_ms,
                    warnings,
                })
            }
            Err(error) => Err((error, self.take_back())),
        }
    }

    /// Waits for the source's commit.
    fn hear_decision(
        &self,
        session: &Session,
        notes: &Notes<Note>,
        verify: Verify,
    ) -> Result<(), Failure> {
        let answering = session.timing().io.max(session.timing().peer) * 2;
        let patience = answering + full_digest::patience(verify, self.report.guest_bytes);
        let decided = message(session, notes, "waiting for the decision", patience);
        match decided.map_err(before_commit)? {
            Message::Commit => self.control.enter_commit().map_err(before_commit),
            other => Err(before_commit(other.unexpected("commit"))),
        }
    }

    /// Tells the source, which cannot know it otherwise once it sent the commit, that the guest never
    /// ran here and never will, as the journal says: it need not ask.
    fn tell_never_ran(&self, session: &Session) {
        let answer = Answer {
            resolution: Resolution::NeverRan,
            host: self.named_host(),
        };
        // If it does not reach the source, that asks.
        let _ = session.send(&Message::Resolution(answer));
    }

    /// Takes a recorded commit back, for a guest that has not executed anything here; possible
    /// unless someone was told already that it ran.
    fn take_back(&self) -> Fate {
        match self.journal.answer(self.id, Resolution::NeverRan) {
            Ok(Resolution::NeverRan) => Fate::AtSource,
            Ok(Resolution::Ran) | Err(_) => Fate::Unknown,
        }
    }
}
