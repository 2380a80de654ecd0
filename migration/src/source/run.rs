//! A migration under way at its source: what its phases share, and how it ends.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as JobSender};
use std::time::{Duration, Instant};

use tracing::span::EnteredSpan;

use super::costs::Costs;
use super::options::Options;
use crate::bandwidth::Bucket;
use crate::control::Control;
use crate::convergence::Deadline;
use crate::error::Error;
use crate::id::HostId;
use crate::journal::{Handover, Journal, SourceRecord};
use crate::observation::{Observation, Side};
use crate::outcome::Outcome;
use crate::pages::Counters;
use crate::pages::sender::Pass;
use crate::progress::{Phase, Report, TimeoutAction};
use crate::session::{Note, Session, Timing};
use crate::transport::Connect;
use crate::vm::{RunState, SourceVm};
use crate::wire::control::Message;

/// How the phases ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Planned,
}

/// What has to be undone on failure.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Undo {
    pub(super) disks_offered: bool,
    pub(super) logging: bool,
    pub(super) sharing: bool,
    pub(super) paused: bool,
    pub(super) commit_sent: bool,
}

/// A migration under way.
pub(super) struct Run<'a> {
    pub(super) vm: &'a dyn SourceVm,
    pub(super) to: &'a dyn Connect,
    pub(super) options: &'a Options,
    pub(super) control: &'a Control,
    pub(super) journal: &'a dyn Journal,
    pub(super) began: Instant,
    pub(super) phase: Phase,
    pub(super) phase_began: Instant,
    pub(super) span: Option<EnteredSpan>,
    pub(super) run_state: RunState,
    pub(super) undo: Undo,
    pub(super) report: Report,
    pub(super) counters: Arc<Counters>,
    pub(super) bucket: Arc<Bucket>,
    /// When the guest was stopped, and when the destination had loaded everything.
    pub(super) stopped_at: Option<Instant>,
    /// The last pass that the destination said it placed, and when that was heard.
    pub(super) heard: Option<(u32, Instant)>,
    pub(super) ready_at: Option<Instant>,
    /// What a switch-over costs beside the last pages, and when that was measured.
    pub(super) costs: Costs,
    pub(super) costs_measured: Option<Instant>,
    /// The newest forecast of the downtime.
    pub(super) forecast: Duration,
    /// Bytes that this side and the destination hash per second, where that matters and both are known.
    pub(super) hash_speeds: Option<[f64; 2]>,
    /// Disks of which the destination wants samples.
    pub(super) doubtful_disks: Vec<String>,
    pub(super) token: [u8; 16],
    /// Of the protocol, as both sides speak it.
    pub(super) version: u16,
    /// Who is given the guest, once it has told.
    pub(super) host: Option<HostId>,
}

/// The session and its notes, as the coordinating thread holds them.
pub(super) struct Link {
    pub(super) session: Arc<Session>,
    pub(super) notes: Receiver<Note>,
}

/// The data streams of a migration, as the coordinating thread holds them.
pub(super) struct Streams {
    pub jobs: Vec<JobSender<Arc<Pass>>>,
    /// What each stream's pages add to the digest.
    pub digests: Vec<u64>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
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
            costs: Costs::default(),
            costs_measured: None,
            forecast: Duration::ZERO,
            hash_speeds: None,
            doubtful_disks: Vec::new(),
            token: [0; 16],
            version: 0,
            host: None,
        }
    }

    pub(super) fn timing(&self) -> Timing {
        Timing {
            io: self.options.io_timeout,
            peer: self.options.peer_timeout,
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline {
            timeout: self.timeout(),
            action: self.options.request.on_timeout,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase) {
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

    pub(super) fn record(&self, handover: Handover) -> Result<(), Error> {
        let record = SourceRecord {
            handover,
            destination: self.to.address(),
            host: self.host,
        };
        Ok(self.journal.record(self.options.id, &record)?)
    }

    /// Total time; `None` is unlimited.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.options.request.timeout.map(|span| span.0)
    }

    /// Whether the total time is over.
    pub(super) fn is_late(&self) -> bool {
        self.timeout()
            .is_some_and(|timeout| self.began.elapsed() >= timeout)
    }

    /// Whether the total time is over and the migration to be given up for it.
    pub(super) fn check_time(&self) -> Result<(), Error> {
        if self.is_late() && self.options.request.on_timeout == TimeoutAction::Cancel {
            return Err(Error::TimedOut(self.timeout().unwrap_or_default()));
        }
        Ok(())
    }

    /// Whether the migration is still to go on: nobody ended it, and there is time.
    pub(super) fn check_wanted(&self) -> Result<(), Error> {
        self.control.check()?;
        self.check_time()
    }

    /// Waits for the next message from the destination, other notes aside.
    pub(super) fn answer(
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

    pub(super) fn conclude(self, result: Result<End, Error>) -> Outcome {
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
        if self.stopped_at.is_none() {
            self.report.run_state = self.vm.run_state();
        }
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
        let mut observation = Observation::new(
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
    pub(super) fn stop_sharing(&mut self) {
        if std::mem::take(&mut self.undo.sharing) {
            self.vm.share_processors(0);
        }
    }

    /// Undoes the pause of the switch-over.
    pub(super) fn resume_guest(&mut self) -> Result<(), Error> {
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

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(super) fn unexpected(message: &Message, expected: &str) -> Error {
    Error::Protocol(format!("it sent {} instead of {expected}", message.name()))
}
