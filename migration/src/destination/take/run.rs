//! A session under way at its destination: what its phases share, and what is undone when it fails.

use std::sync::mpsc::Receiver as Notes;
use std::time::{Duration, Instant};

use tracing::span::EnteredSpan;

use crate::control::Control;
use crate::destination::reception::Reception;
use crate::destination::taken::{Aftermath, Fate};
use crate::error::Error;
use crate::id::{HostId, MigrationId};
use crate::journal::{Decision, Journal};
use crate::observation::{Observation, Side};
use crate::progress::{Phase, Report};
use crate::session::{Note, Session};
use crate::vm::DestinationVm;
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::Message;

/// A session under way.
pub(super) struct Take<'a> {
    pub id: MigrationId,
    pub agreed: Agreed,
    pub vm: &'a mut dyn DestinationVm,
    pub control: &'a Control,
    pub journal: &'a dyn Journal,
    pub reception: &'a Reception<'a>,
    pub began: Instant,
    pub phase: Phase,
    pub phase_began: Instant,
    pub span: Option<EnteredSpan>,
    /// What has to be undone on failure.
    pub undo: Undo,
    /// The machine was built.
    pub built: bool,
    pub progress_timeout: Duration,
    /// The source may have sent its commit, and not know what became of it.
    pub doubt: Doubt,
    pub report: Report,
}

/// What has to be undone on failure.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Undo {
    pub reserved: bool,
    pub building: bool,
    /// The source was told that everything is ready, so that its commit may come.
    pub offered: bool,
}

/// Whether the source may be in doubt about its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It sent none, or it was told.
    None,
    /// It may have sent one, and may ask.
    MayAsk,
}

/// How far the machine came.
pub(super) enum Step {
    Planned,
    Running,
}

pub(super) type Failure = (Error, Fate);

/// Before the commit is recorded, every failure leaves the guest at the source.
pub(super) fn before_commit(error: Error) -> Failure {
    let fate = match error {
        Error::Cancelled => Fate::AtSourceByRequest,
        _ => Fate::AtSource,
    };
    (error, fate)
}

impl Take<'_> {
    /// Who answers what became of the guest, as far as the source understands that.
    pub fn named_host(&self) -> Option<HostId> {
        let told = self.agreed.has(Capabilities::NAMES_HOST);
        told.then(|| self.journal.identity())
    }

    pub fn enter(&mut self, phase: Phase) {
        if phase != self.phase {
            self.end_phase();
        }
        // The one before is left first, or this one would be inside of it.
        self.span = None;
        self.span = Some(tracing::info_span!("phase", name = phase.name()).entered());
        self.phase = phase;
        self.phase_began = Instant::now();
        self.control.phase(phase);
    }

    pub fn end_phase(&self) {
        let ms = self.phase_began.elapsed().as_secs_f64() * 1e3;
        tracing::info!(ms, "phase ended");
    }

    /// Gives up a hand-over that was on offer, and drops what was built.
    pub fn undo(&mut self) -> Option<Observation> {
        let given_up = if self.undo.offered {
            self.journal
                .decide(self.id, Decision::GiveUp)
                .err()
                .map(Error::from)
        } else {
            None
        };
        if self.undo.building {
            self.vm.abandon();
        }
        if self.undo.reserved
            && let Err(error) = self.journal.discard(self.id, Side::Destination)
        {
            // A blank record says the same as none.
            tracing::debug!("{}", error);
        }
        given_up.map(|error| error.observe(Side::Destination))
    }

    pub fn aftermath(&self, error: &Error) -> Aftermath {
        match (error, self.doubt) {
            // By somebody who asked.
            (Error::GivenUp { .. }, _) => Aftermath::Nothing,
            (_, Doubt::MayAsk) => Aftermath::InDoubt(self.id),
            _ if self.built => Aftermath::BuiltInVain,
            _ => Aftermath::Nothing,
        }
    }
}

/// Waits for the next message of the source, other notes aside.
pub(super) fn message(
    session: &Session,
    notes: &Notes<Note>,
    operation: &'static str,
    patience: Duration,
) -> Result<Message, Error> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::NoAnswer {
                operation,
                waited: patience,
            });
        }
        if let Some(Note::Message(message)) = session.next(notes, left)? {
            return Ok(message);
        }
    }
}
