//! The source of a migration: gives its guest away, or keeps it as if nothing had been tried.
//!
//! [`migrate`] goes through the phases in order; each is a function in the file of its concern.

mod copy;
mod handover;
mod setup;

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tracing::span::EnteredSpan;

pub use crate::wire::control::Resolution;
pub use handover::{resolve, settle};
pub use setup::default_streams;

use crate::bandwidth::Bucket;
use crate::control::Control;
use crate::convergence::Deadline;
use crate::error::Error;
use crate::id::{HostId, MigrationId};
use crate::journal::{Handover, Journal, SourceRecord};
use crate::observation::Side;
use crate::outcome::Outcome;
use crate::pages::Counters;
use crate::progress::{Limits, Phase, Report, TimeoutAction, Verify};
use crate::session::{Note, Session, Timing};
use crate::transport::Connect;
use crate::vm::{RunState, SourceVm};
use crate::wire::control::Message;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Identifier of this migration, never used before.
    pub id: MigrationId,
    /// Data connections; `None` chooses by the number of cores.
    pub streams: Option<u8>,
    /// Limits to begin with; [`Control::set_limits`] changes them.
    pub limits: Limits,
    /// Total time; `None` is unlimited.
    pub timeout: Option<Duration>,
    /// What to do when it has passed.
    pub on_timeout: TimeoutAction,
    /// How memory is verified.
    pub verify: Verify,
    /// Only ask whether it would work, and change nothing.
    pub plan: bool,
    /// How long a transfer may stand still or an answer may take.
    pub io_timeout: Duration,
    /// How long the peer may be silent.
    pub peer_timeout: Duration,
    /// How long the destination may take to build the machine.
    pub prepare_timeout: Duration,
    /// How long the destination is asked, after a lost answer, whether it runs the guest.
    pub resolve_for: Duration,
}

impl Options {
    /// The defaults for migration `id`.
    pub fn new(id: MigrationId) -> Self {
        Self {
            id,
            streams: None,
            limits: Limits::default(),
            timeout: None,
            on_timeout: TimeoutAction::Cancel,
            verify: Verify::Stream,
            plan: false,
            io_timeout: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(10),
            prepare_timeout: Duration::from_secs(120),
            resolve_for: Duration::from_secs(10),
        }
    }
}

/// Moves the guest of `vm` to the destination at `to`, and returns when it is known how that ended.
/// Events go to `control`, the last one holds the same report as the outcome.
pub fn migrate(
    vm: &dyn SourceVm,
    to: &dyn Connect,
    options: &Options,
    control: &Control,
    journal: &dyn Journal,
) -> Outcome {
    let span = tracing::info_span!("migration", id = %options.id, role = "source");
    let _entered = span.enter();
    control.set_id(options.id);
    control.begin(options.limits);
    let mut run = Run::new(vm, to, options, control, journal);
    let result = run.drive();
    run.conclude(result)
}

/// How the phases ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Planned,
}

/// What has to be undone on failure.
#[derive(Debug, Clone, Copy, Default)]
struct Undo {
    disks_offered: bool,
    logging: bool,
    sharing: bool,
    paused: bool,
    commit_sent: bool,
}

/// A migration under way.
struct Run<'a> {
    vm: &'a dyn SourceVm,
    to: &'a dyn Connect,
    options: &'a Options,
    control: &'a Control,
    journal: &'a dyn Journal,
    began: Instant,
    phase: Phase,
    phase_began: Instant,
    span: Option<EnteredSpan>,
    run_state: RunState,
    undo: Undo,
    report: Report,
    counters: Arc<Counters>,
    bucket: Arc<Bucket>,
    /// When the guest was stopped, and when the destination had loaded everything.
    stopped_at: Option<Instant>,
    /// The last pass that the destination said it placed, and when that was heard.
    heard: Option<(u32, Instant)>,
    ready_at: Option<Instant>,
    /// Seconds that recording decisions costs, both sides together.
    journal_cost: Duration,
    token: [u8; 16],
    /// Who is given the guest, once it has told.
    host: Option<HostId>,
}

/// The session and its notes, as the coordinating thread holds them.
struct Link {
    session: Arc<Session>,
    notes: Receiver<Note>,
}

impl<'a> Run<'a> {
    fn new(
        vm: &'a dyn SourceVm,
        to: &'a dyn Connect,
        options: &'a Options,
        control: &'a Control,
        journal: &'a dyn Journal,
    ) -> Self {
        let now = Instant::now();
        let run_state = vm.run_state();
        Self {
            vm,
            to,
            options,
            control,
            journal,
            began: now,
            phase: Phase::Negotiate,
            phase_began: now,
            span: None,
            run_state,
            undo: Undo::default(),
            report: Report::at_source(options.id, run_state),
            counters: Arc::default(),
            bucket: Arc::default(),
            stopped_at: None,
            heard: None,
            ready_at: None,
            journal_cost: Duration::ZERO,
            token: [0; 16],
            host: None,
        }
    }

    fn timing(&self) -> Timing {
        Timing {
            io: self.options.io_timeout,
            peer: self.options.peer_timeout,
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline {
            timeout: self.options.timeout,
            action: self.options.on_timeout,
        }
    }

    fn enter(&mut self, phase: Phase) {
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

    fn end_phase(&self) {
        let ms = milliseconds(self.phase_began.elapsed());
        tracing::info!(ms, "phase ended");
    }

    fn record(&self, handover: Handover) -> Result<(), Error> {
        let record = SourceRecord {
            handover,
            destination: self.to.address(),
            host: self.host,
        };
        Ok(self.journal.record(self.options.id, &record)?)
    }

    /// Whether the total time is over and the migration to be given up for it.
    fn check_time(&self) -> Result<(), Error> {
        match self.options.timeout {
            Some(timeout)
                if self.options.on_timeout == TimeoutAction::Cancel
                    && self.began.elapsed() >= timeout =>
            {
                Err(Error::TimedOut(timeout))
            }
            _ => Ok(()),
        }
    }

    /// Whether the migration is still to go on: nobody ended it, and there is time.
    fn check_wanted(&self) -> Result<(), Error> {
        self.control.check()?;
        self.check_time()
    }

    /// Waits for the next message from the destination, other notes aside.
    fn answer(
        &self,
        link: &Link,
        operation: &'static str,
        patience: Duration,
    ) -> Result<Message, Error> {
        let until = Instant::now() + patience;
        loop {
            if !self.undo.commit_sent {
                self.check_time()?;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::NoAnswer {
                    operation,
                    waited: patience,
                });
            }
            let slice = left.min(Duration::from_millis(100));
            match link.session.next(&link.notes, slice)? {
                None => link.session.check_data()?,
                Some(Note::Message(Message::PassPlaced(_))) => {}
                Some(Note::Message(message)) => return Ok(message),
                Some(_) => {}
            }
        }
    }

    fn conclude(self, result: Result<End, Error>) -> Outcome {
        let control = self.control;
        let outcome = self.outcome(result);
        control.end(&outcome);
        outcome
    }

    fn outcome(mut self, result: Result<End, Error>) -> Outcome {
        self.end_phase();
        if !matches!(result, Ok(End::Completed)) {
            self.report.total_ms = milliseconds(self.began.elapsed());
        }
        self.report.encodings = self.counters.encodings();
        let error = match result {
            Ok(End::Completed) => {
                self.report.status = "completed".into();
                return Outcome::Completed(self.report);
            }
            Ok(End::Planned) => {
                self.report.status = "planned".into();
                return Outcome::Planned(self.report);
            }
            Err(error) => error,
        };
        let mut observation = crate::observation::Observation::new(
            Side::Source,
            "migration.failed",
            format!("migration failed in phase {}", self.phase.name()),
        )
        .in_phase(self.phase.name())
        .caused_by(error.observe(Side::Source));
        if self.undo.commit_sent {
            "migration.handover-unknown".clone_into(&mut observation.id);
            "it is not known whether the destination runs the guest"
                .clone_into(&mut observation.message);
            tracing::error!("{observation}");
            self.report.status = "handover-unknown".into();
            self.report.error = Some(observation);
            return Outcome::HandoverUnknown(self.report);
        }
        for failed in self.restore() {
            observation.causes.push(failed.observe(Side::Source));
        }
        self.report.verified = false;
        if matches!(error, Error::Cancelled) {
            tracing::info!("cancelled");
            self.report.status = "cancelled".into();
            self.report.error = Some(observation);
            return Outcome::Cancelled(self.report);
        }
        tracing::error!("{observation}");
        self.report.status = "failed".into();
        self.report.error = Some(observation);
        Outcome::Failed(self.report)
    }

    /// Gives the processors back to the vCPUs alone.
    fn stop_sharing(&mut self) {
        if std::mem::take(&mut self.undo.sharing) {
            self.vm.share_processors(0);
        }
    }

    /// Undoes the pause of the switch-over.
    fn resume_guest(&mut self) -> Result<(), Error> {
        if self.undo.paused {
            self.vm.resume().map_err(Error::vm("resume the guest"))?;
        }
        self.undo.paused = false;
        Ok(())
    }

    /// Records that the guest stayed, where a commit was recorded; else no record is needed.
    fn record_kept(&self) -> Result<(), Error> {
        let id = self.options.id;
        match self.journal.recorded(id)? {
            Some(_) => self.record(Handover::Kept),
            None => Ok(self.journal.discard(id, Side::Source)?),
        }
    }

    /// Makes the VM what it was before; what could not be undone.
    fn restore(&mut self) -> Vec<Error> {
        let mut failures = Vec::new();
        self.stop_sharing();
        failures.extend(self.resume_guest().err());
        if std::mem::take(&mut self.undo.logging) {
            let stopped = self.vm.stop_dirty_log();
            failures.extend(stopped.map_err(Error::vm("stop the dirty log")).err());
        }
        if std::mem::take(&mut self.undo.disks_offered) {
            let reclaimed = self.vm.reclaim_disks();
            failures.extend(reclaimed.map_err(Error::vm("reclaim the disks")).err());
        }
        failures.extend(self.record_kept().err());
        failures
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
