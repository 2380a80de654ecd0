//! What the steps of a migration at its destination share: whom they work for, and what is told of them.

use std::sync::Arc;
use std::time::Instant;

use tracing::span::EnteredSpan;

use super::options::Options;
use super::reception::Reception;
use super::taken::{Aftermath, Failed, Fate, Taken, failure_in};
use crate::error::Error;
use crate::frames::Counters;
use crate::id::MigrationId;
use crate::journal::Journal;
use crate::observation::Side;
use crate::progress::{Phase, Report};
use crate::session::Timing;
use crate::steering::Steering;
use crate::undo::{Failures, Undo};

/// How the steps ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The guest is here.
    Completed,
    /// The source only asked.
    Planned,
}

/// How they ended with one.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Error,
    pub fate: Fate,
    pub aftermath: Aftermath,
}

/// A migration under way.
pub(super) struct Course<'a> {
    pub id: MigrationId,
    pub options: &'a Options,
    pub steering: &'a Steering,
    pub journal: &'a dyn Journal,
    pub reception: &'a Reception<'a>,
    pub began: Instant,
    phase: Phase,
    phase_began: Instant,
    span: Option<EnteredSpan>,
    pub report: Report,
    pub counters: Arc<Counters>,
    /// When the last step was over; what is undone after that takes its own time.
    over_at: Option<Instant>,
    failures: Failures,
}

impl<'a> Course<'a> {
    pub fn new(
        id: MigrationId,
        options: &'a Options,
        steering: &'a Steering,
        journal: &'a dyn Journal,
        reception: &'a Reception<'a>,
    ) -> Self {
        let now = Instant::now();
        Self {
            id,
            options,
            steering,
            journal,
            reception,
            began: now,
            phase: Phase::Negotiate,
            phase_began: now,
            span: None,
            report: Report {
                migration_id: id.to_string(),
                ..Report::default()
            },
            counters: Arc::default(),
            over_at: None,
            failures: Failures::default(),
        }
    }

    pub fn timing(&self) -> Timing {
        Timing {
            io: self.options.io_timeout,
            peer: self.options.peer_timeout,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
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
        self.steering.phase(phase);
    }

    fn end_phase(&self) {
        let ms = self.phase_began.elapsed().as_secs_f64() * 1e3;
        tracing::info!(ms, "phase ended");
    }

    /// What cannot be undone is told among the causes of the failure.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// An effect that `undo` undoes if the guest stays at its source.
    pub fn undone_by(&self, undo: impl Fn() -> Result<(), Error> + 'a) -> Undo<'a> {
        Undo::by(&self.failures, undo)
    }

    /// The last step is over: from now on nothing is done but undone.
    pub fn over(&mut self) {
        if self.over_at.is_none() {
            self.end_phase();
            self.over_at = Some(Instant::now());
        }
    }

    /// Tells how all of it ended.
    pub fn conclude(mut self, result: Result<End, Failure>) -> Taken {
        self.over();
        self.report.encodings = self.counters.encodings();
        // What was not sent is not seen here.
        self.report.encodings.remove("hole");
        self.report.wire_bytes = self.counters.wire_bytes();
        let took = self.over_at.unwrap_or_else(Instant::now) - self.began;
        self.report.total_ms = took.as_secs_f64() * 1e3;
        let Failure {
            error,
            fate,
            aftermath,
        } = match result {
            Ok(End::Completed) => return Taken::Completed(Box::new(self.report)),
            Ok(End::Planned) => return Taken::Planned,
            Err(failure) => failure,
        };
        self.report.verified = false;
        let mut observation = failure_in(self.phase, &error);
        for failed in self.failures.take() {
            observation.causes.push(failed.observe(Side::Destination));
        }
        Taken::Failed(Box::new(Failed {
            report: self.report,
            observation,
            fate,
            aftermath,
        }))
    }
}
