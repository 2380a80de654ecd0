//! What the steps of a migration at its source share: whom they work for, and what is told of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::span::EnteredSpan;

use super::options::Options;
use super::policy::SwitchOverPolicy;
use crate::bandwidth::Bucket;
use crate::error::Error;
use crate::frames::Counters;
use crate::id::HostId;
use crate::journal::{Handover, Journal, SourceRecord};
use crate::observation::{Observation, Side};
use crate::outcome::Outcome;
use crate::progress::{Event, Iteration, Phase, Report, TimeoutAction};
use crate::session::{Session, Timing};
use crate::steering::Steering;
use crate::transport::Connect;
use crate::undo::{Failures, Undo};
use crate::vm::SourceVm;
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;

/// How the steps ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Planned,
}

/// How they ended with one.
#[derive(Debug)]
pub(super) enum Failed {
    /// The guest is where it was.
    Kept(Error),
    /// The destination was told to run the guest, and nobody knows whether it did.
    Unknown(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Kept(error)
    }
}

/// A migration under way.
pub(super) struct Course<'a> {
    pub vm: &'a dyn SourceVm,
    pub to: &'a dyn Connect,
    pub options: &'a Options,
    pub steering: &'a Steering,
    pub journal: &'a dyn Journal,
    /// Who decides over the switch-over.
    pub policy: &'a dyn SwitchOverPolicy,
    pub began: Instant,
    phase: Phase,
    phase_began: Instant,
    span: Option<EnteredSpan>,
    pub report: Report,
    pub counters: Arc<Counters>,
    pub bucket: Arc<Bucket>,
    /// The last session, which counts what goes over its control connection.
    session: Option<Arc<Session>>,
    /// What went over those before.
    control_bytes: u64,
    /// Who is given the guest, once it has told.
    pub host: Option<HostId>,
    /// When the guest was stopped.
    pub stopped_at: Option<Instant>,
    /// When it failed; what is undone after that takes its own time.
    failed_at: Option<Instant>,
    failures: Failures,
}

impl<'a> Course<'a> {
    pub fn new(
        vm: &'a dyn SourceVm,
        to: &'a dyn Connect,
        options: &'a Options,
        steering: &'a Steering,
        journal: &'a dyn Journal,
        policy: &'a dyn SwitchOverPolicy,
    ) -> Self {
        let now = Instant::now();
        Self {
            vm,
            to,
            options,
            steering,
            journal,
            policy,
            began: now,
            phase: Phase::Negotiate,
            phase_began: now,
            span: None,
            report: Report::at_source(options.id, vm.run_state()),
            counters: Arc::default(),
            bucket: Arc::default(),
            session: None,
            control_bytes: 0,
            host: None,
            stopped_at: None,
            failed_at: None,
            failures: Failures::default(),
        }
    }

    pub fn timing(&self) -> Timing {
        Timing {
            io: self.options.io_timeout,
            peer: self.options.peer_timeout,
        }
    }

    /// A link begins with `session`: whoever steers ends that.
    pub fn on_session(&mut self, session: &Arc<Session>) {
        let before = self.session.replace(session.clone());
        self.control_bytes += before.map_or(0, |it| it.control_bytes());
        self.steering.attach(session);
    }

    /// For how long a new link is tried when one is lost while the guest is copied, as its user wants and both can.
    pub fn reconnect_for(&self, agreed: Agreed) -> Option<Duration> {
        let time = self.options.request.reconnect_for.0;
        (agreed.has(Capabilities::NEW_LINK) && !time.is_zero()).then_some(time)
    }

    /// The total time that it may take.
    fn timeout(&self) -> Option<Duration> {
        self.options.deadline().timeout
    }

    /// The total time is over, and it ends for that.
    pub fn timed_out(&self) -> Error {
        Error::TimedOut(self.timeout().unwrap_or_default())
    }

    /// A pass of the running guest is over.
    pub fn iteration_ended(&mut self, iteration: Iteration) {
        self.report.add_iteration(iteration.clone());
        self.steering.emit(Event::Iteration(iteration));
    }

    /// Waits until the user changes something, at most for so long.
    pub fn wait_for_change(&self, time: Duration) {
        self.steering.wait_for_change(time);
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
        let ms = milliseconds(self.phase_began.elapsed());
        tracing::info!(ms, "phase ended");
    }

    pub fn record(&self, handover: Handover) -> Result<(), Error> {
        let record = SourceRecord {
            handover,
            destination: self.to.address(),
            host: self.host,
            overlay: None,
        };
        Ok(self.journal.record(self.options.id, &record)?)
    }

    /// An effect that `undo` undoes if the guest stays.
    pub fn undone_by(&self, undo: impl Fn() -> Result<(), Error> + 'a) -> Undo<'a> {
        Undo::by(&self.failures, undo)
    }

    fn is_time_over(&self) -> bool {
        let timeout = self.timeout();
        timeout.is_some_and(|timeout| self.began.elapsed() >= timeout)
    }

    /// Whether the total time is over, and the migration to end for that one way or the other.
    pub fn is_late(&self) -> bool {
        let ends = match self.options.request.on_timeout {
            TimeoutAction::Cancel | TimeoutAction::Stop => true,
            TimeoutAction::Mirror | TimeoutAction::OnDemand => false,
        };
        ends && self.is_time_over()
    }

    /// Whether the total time is over, and disks to go over to mirror for that.
    pub fn is_to_mirror(&self) -> bool {
        self.options.request.on_timeout == TimeoutAction::Mirror && self.is_time_over()
    }

    /// Whether the total time is over, and disks to go over to on-demand for that.
    pub fn is_to_leave_rests(&self) -> bool {
        self.options.request.on_timeout == TimeoutAction::OnDemand && self.is_time_over()
    }

    /// Whether the total time is over and the migration to be given up for it.
    pub fn check_time(&self) -> Result<(), Error> {
        if self.is_late() && self.options.request.on_timeout == TimeoutAction::Cancel {
            return Err(self.timed_out());
        }
        Ok(())
    }

    /// Whether the migration is still to go on: nobody ended it, and there is time.
    pub fn check_wanted(&self) -> Result<(), Error> {
        self.steering.check()?;
        self.check_time()
    }

    /// The guest runs at the destination, since `now`: notes when, and that it is gone from here.
    pub fn gone(&mut self, now: Instant) {
        self.report.total_ms = milliseconds(now - self.began);
        if let Some(stopped_at) = self.stopped_at {
            self.report.downtime_ms = Some(milliseconds(now - stopped_at));
        }
        if let Err(error) = self.record(Handover::Gone) {
            // The destination's record decides; ours only saves a question.
            self.steering.warn(error.observe(Side::Source));
        }
    }

    /// It has failed, from now on what was done is undone.
    pub fn failed(&mut self) {
        self.failed_at.get_or_insert_with(Instant::now);
    }

    /// Tells how all of it ended.
    pub fn conclude(self, result: Result<End, Failed>) -> Outcome {
        let steering = self.steering;
        let outcome = self.outcome(result);
        steering.end(&outcome);
        outcome
    }

    fn outcome(mut self, result: Result<End, Failed>) -> Outcome {
        self.end_phase();
        if !matches!(result, Ok(End::Completed)) {
            let ended = self.failed_at.unwrap_or_else(Instant::now);
            self.report.total_ms = milliseconds(ended - self.began);
        }
        self.report.encodings = self.counters.encodings();
        let steering_bytes = self.steering.disk_bytes();
        if let Some(disks) = &mut self.report.disks {
            self.counters.of_disks(disks);
            disks.by_disk = steering_bytes;
        }
        let control_bytes = self.session.as_ref().map_or(0, |it| it.control_bytes());
        self.report.wire_bytes = self.counters.wire_bytes() + self.control_bytes + control_bytes;
        if self.stopped_at.is_none() {
            self.report.run_state = self.vm.run_state();
        }
        let failed = match result {
            Ok(End::Completed) => {
                self.report.status = "completed".into();
                return Outcome::Completed(self.report);
            }
            Ok(End::Planned) => {
                self.report.status = "planned".into();
                return Outcome::Planned(self.report);
            }
            Err(failed) => failed,
        };
        let error = match &failed {
            Failed::Kept(error) | Failed::Unknown(error) => error,
        };
        let mut observation = Observation::new(
            Side::Source,
            "migration.failed",
            format!("migration failed in phase {}", self.phase.name()),
        )
        .in_phase(self.phase.name())
        .caused_by(error.observe(Side::Source));
        let is_cancelled = match failed {
            Failed::Unknown(_) => {
                "migration.handover-unknown".clone_into(&mut observation.id);
                "it is not known whether the destination runs the guest"
                    .clone_into(&mut observation.message);
                tracing::error!("{observation}");
                self.report.status = "handover-unknown".into();
                self.report.error = Some(observation);
                return Outcome::HandoverUnknown(self.report);
            }
            Failed::Kept(error) => matches!(error, Error::Cancelled),
        };
        for failed in self.failures.take() {
            observation.causes.push(failed.observe(Side::Source));
        }
        self.report.verified = false;
        if is_cancelled {
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
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
