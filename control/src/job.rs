//! Work that the process of a VM does beside running its guest and that takes its time, told alike whatever it is.

use migration::disk_bytes::DiskBytes;
use migration::observation::{Observation, Side};
use migration::progress::{Event, LimitChange, Phase, Report};
use migration::wire::control::Resolution;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::disk_move::{ClassBytes, DiskMoveReport};

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// The guest moves to another host, or comes in from one.
    Migration,
    /// A disk moves to another image on this host.
    DiskMove,
    /// What a disk lacks comes from the host that serves it.
    DiskPull,
}

/// How far a job is, from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It is being done, and may be cancelled.
    Running,
    /// It waits until it is told to go on.
    Paused,
    /// It was cancelled, and undoes what it did.
    Cancelling,
    /// It is past the point up to which it may be cancelled, or about to be.
    Finishing,
    /// It is over, but only the other host knows how it ended, which is asked until it answers.
    Resolving,
    /// It is over.
    Concluded,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcome {
    /// What was asked for is done.
    Completed,
    /// It came to nothing, and the guest is as it was before.
    Failed,
    /// As failed, because somebody asked for it.
    Cancelled,
    /// Nobody here knows.
    Unknown,
}

/// How much of a job is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// The phase that a migration is in, or ended in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Which pass over the disk it is in, of a disk that moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<u32>,
    /// Bytes that have been sent, or copied; absent where this side does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// What they will be in the end, as far as is known now; it grows with what the guest writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Forecast of the time left, in milliseconds; absent where there is none, or no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<f64>,
    /// What went to the new image of a disk that moves, by class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_bytes: Option<ClassBytes>,
    /// How often the link of a migration was lost and made anew; absent where never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnects: Option<u32>,
    /// The link of a migration is lost, and a new one is tried or waited for; absent where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_lost: Option<bool>,
    /// For how long nothing has come of a disk that is pulled, in milliseconds, as whoever serves it is lost; absent where it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_ms: Option<u64>,
}

/// How a job ended, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobResult {
    /// How it ended.
    pub outcome: JobOutcome,
    /// Why it ended otherwise than completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Observation>,
    /// The figures of a migration; absent where its engine could tell none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// The figures of a disk that moved, or was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_move: Option<DiskMoveReport>,
}

/// One job, as it is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Identifier, 32 hexadecimal digits; of a migration, that of the migration on both hosts.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// How far it is.
    pub state: JobState,
    /// Where the guest is to go, as its user wrote it; absent where it comes in. The path of the image that a disk moves
    /// to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The disk that moves, or comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Where a disk comes from that is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How much is done.
    pub progress: JobProgress,
    /// What has gone of each disk that moves, by why it did, as far as this side counts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskBytes>,
    /// The limits in force; absent where somebody else has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitChange>,
    /// Why it does not go on, where nobody asked for that: one that is paused goes on when it is told to, and this is mended; a pull
    /// by itself, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_up_by: Option<Observation>,
    /// How it ended, once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
}

/// The jobs of a VM, those that run and the newest of those that ended, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Jobs {
    /// The jobs.
    pub jobs: Vec<Job>,
}

impl Jobs {
    /// The one called `id`.
    ///
    /// # Errors
    /// `job.not-found`.
    pub fn find(self, id: &str) -> Result<Job, Observation> {
        let found = self.jobs.into_iter().find(|job| job.id == id);
        found.ok_or_else(|| {
            let id: String = id.chars().take(64).collect();
            let what = format!("there is no job {id:?}: it was never here, or is long over");
            Observation::new(Side::Source, "job.not-found", what)
        })
    }
}

impl JobProgress {
    /// As far as `events` of a migration tell it.
    fn of(events: &[Event]) -> Self {
        let mut told = Self::default();
        for event in events {
            match event {
                Event::Phase { phase } => told.phase = Some(*phase),
                Event::Progress {
                    phase,
                    sent_bytes,
                    remaining_bytes,
                    eta_ms,
                    ..
                } => {
                    told.phase = Some(*phase);
                    told.done_bytes = Some(*sent_bytes);
                    told.total_bytes = Some(sent_bytes.saturating_add(*remaining_bytes));
                    told.eta_ms = *eta_ms;
                }
                Event::Completed(report) => {
                    told.done_bytes = Some(report.wire_bytes);
                    told.total_bytes = told.done_bytes;
                    told.eta_ms = None;
                }
                Event::Failed(_) | Event::Cancelled(_) => {
                    told.eta_ms = None;
                    told.link_lost = None;
                }
                Event::LinkLost { .. } => told.link_lost = Some(true),
                Event::Reconnected { reconnects, .. } => {
                    told.reconnects = Some(*reconnects);
                    told.link_lost = None;
                }
                Event::Iteration(_) | Event::Warning { .. } => {}
            }
        }
        told
    }
}

impl JobResult {
    /// How a job failed, or may have, that could tell no more than `why`.
    pub fn without_report(outcome: JobOutcome, why: Observation) -> Self {
        Self {
            outcome,
            error: Some(why),
            report: None,
            disk_move: None,
        }
    }

    /// What the last event of a migration tells; `None` for any other.
    fn of(event: &Event) -> Option<Self> {
        let (outcome, report) = match event {
            Event::Completed(report) => (JobOutcome::Completed, report),
            Event::Failed(report) if report.status == "handover-unknown" => {
                (JobOutcome::Unknown, report)
            }
            Event::Failed(report) => (JobOutcome::Failed, report),
            Event::Cancelled(report) => (JobOutcome::Cancelled, report),
            Event::Phase { .. }
            | Event::Iteration(_)
            | Event::Progress { .. }
            | Event::Warning { .. }
            | Event::LinkLost { .. }
            | Event::Reconnected { .. } => return None,
        };
        Some(Self {
            outcome,
            error: report.error.clone(),
            report: Some(report.clone()),
            disk_move: None,
        })
    }

    /// After the destination of a migration has answered whether it ran the guest.
    pub fn resolve(&mut self, answer: Resolution) {
        self.outcome = match answer {
            Resolution::Ran => JobOutcome::Completed,
            Resolution::NeverRan => JobOutcome::Failed,
        };
    }
}

impl Job {
    /// The migration `id`, as far as its `events` tell it.
    pub fn of_migration(id: String, events: &[Event]) -> Self {
        let progress = JobProgress::of(events);
        let result = events.last().and_then(JobResult::of);
        let state = match (&result, progress.phase) {
            (Some(_), _) => JobState::Concluded,
            (None, Some(phase)) if phase >= Phase::Commit => JobState::Finishing,
            (None, _) => JobState::Running,
        };
        Self {
            id,
            kind: JobKind::Migration,
            state,
            to: None,
            disk: None,
            from: None,
            progress,
            disks: Vec::new(),
            limits: None,
            held_up_by: None,
            result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(phase: Phase) -> Event {
        Event::Phase { phase }
    }

    fn report(status: &str) -> Report {
        Report {
            status: status.into(),
            wire_bytes: 77,
            ..Report::default()
        }
    }

    fn job(events: &[Event]) -> Job {
        Job::of_migration("0".repeat(32), events)
    }

    #[test]
    fn progress_is_that_of_the_newest_events() {
        let mut events = vec![phase(Phase::Negotiate)];
        assert_eq!(job(&events).progress.phase, Some(Phase::Negotiate));
        assert_eq!(job(&events).progress.done_bytes, None);
        for sent_bytes in [10, 20] {
            events.push(Event::Progress {
                phase: Phase::Precopy,
                iteration: 1,
                sent_bytes,
                remaining_bytes: 5,
                mib_per_s: 1.0,
                dirty_pages_per_s: 1.0,
                eta_ms: Some(9.0),
                forecast_downtime_ms: 1.0,
            });
        }
        let warning = Observation::new(Side::Source, "migration.not-converging", "busy");
        events.push(Event::Warning {
            observation: warning,
        });
        let told = job(&events).progress;
        assert_eq!(told.phase, Some(Phase::Precopy));
        assert_eq!((told.done_bytes, told.total_bytes), (Some(20), Some(25)));
        assert_eq!(told.eta_ms, Some(9.0));
        events.push(Event::Completed(report("completed")));
        let told = job(&events).progress;
        assert_eq!((told.done_bytes, told.total_bytes), (Some(77), Some(77)));
        assert_eq!(told.eta_ms, None);
    }

    #[test]
    fn state_and_outcome_are_what_the_events_say() {
        use JobOutcome::{Cancelled, Completed, Failed, Unknown};
        use JobState::{Concluded, Finishing, Running};
        let cases = [
            (None, Running, None),
            (Some(phase(Phase::Ready)), Running, None),
            (Some(phase(Phase::Commit)), Finishing, None),
            (Some(phase(Phase::Finish)), Finishing, None),
            (
                Some(Event::Completed(report("completed"))),
                Concluded,
                Some(Completed),
            ),
            (
                Some(Event::Completed(report("planned"))),
                Concluded,
                Some(Completed),
            ),
            (
                Some(Event::Failed(report("failed"))),
                Concluded,
                Some(Failed),
            ),
            (
                Some(Event::Failed(report("handover-unknown"))),
                Concluded,
                Some(Unknown),
            ),
            (
                Some(Event::Cancelled(report("cancelled"))),
                Concluded,
                Some(Cancelled),
            ),
        ];
        for (last, state, outcome) in cases {
            let told = job(last.as_slice());
            assert_eq!(told.state, state, "{last:?}");
            assert_eq!(
                told.result.map(|result| result.outcome),
                outcome,
                "{last:?}"
            );
        }
    }

    #[test]
    fn why_it_failed_is_told_where_every_kind_of_job_has_it() {
        let why = Observation::new(Side::Source, "migration.peer-lost", "gone");
        let failed = Report {
            error: Some(why.clone()),
            ..report("failed")
        };
        let result = job(&[Event::Failed(failed)]).result.unwrap();
        assert_eq!(result.error, Some(why));
    }

    #[test]
    fn the_answer_of_a_destination_settles_what_was_unknown() {
        for (answer, outcome) in [
            (Resolution::Ran, JobOutcome::Completed),
            (Resolution::NeverRan, JobOutcome::Failed),
        ] {
            let mut result = job(&[Event::Failed(report("handover-unknown"))])
                .result
                .unwrap();
            result.resolve(answer);
            assert_eq!(result.outcome, outcome);
        }
    }
}
