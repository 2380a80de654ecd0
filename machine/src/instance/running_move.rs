//! A disk that is being moved to another image: how it is steered, and told as a job.

use std::sync::Arc;

use block::copy::{Standing, Steering};
use control::disk_move::{ClassBytes, DiskMoveReport};
use control::job::{Job, JobKind, JobOutcome, JobProgress, JobResult, JobState};
use migration::MigrationId;
use migration::disk_bytes::DiskBytes;
use migration::observation::{Observation, Side};
use migration::progress::LimitChange;
use migration::units::{Rate, Span};

use crate::disks::write_limit::WriteLimit;
use crate::moving::disk_move::Told;

fn ending(message: impl Into<String>) -> Observation {
    Observation::new(Side::Source, "job.ending", message)
}

/// What steers a move, and tells of it.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) steering: Arc<Steering>,
    pub(super) told: Arc<Told>,
    /// Of one that is or may become a mirror.
    pub(super) writes: Option<Arc<WriteLimit>>,
}

/// A disk that is being moved.
pub(crate) struct RunningMove {
    pub(super) job: MigrationId,
    pub(super) began: u64,
    pub(super) disk: String,
    pub(super) to: String,
    pub(super) watched: Watched,
    /// Why it was given up, where nobody asked for that.
    pub(super) given_up: Option<Observation>,
}

impl RunningMove {
    /// Asks it to stop.
    pub(super) fn cancel(&self) -> Result<(), Observation> {
        if self.watched.steering.cancel() {
            return Ok(());
        }
        let message = match self.watched.steering.standing() {
            Standing::Running | Standing::Paused => {
                "it is too late: the disk is at its new image, and what that lacks comes from the old one; the job can be \
                 paused, and ends by itself"
            }
            Standing::Cancelled | Standing::Ending => {
                "it is too late: the disk is going over to its new image"
            }
        };
        Err(ending(message))
    }

    pub(super) fn pause(&self) -> Result<(), Observation> {
        self.steered(Steering::pause, "to be paused")
    }

    pub(super) fn resume(&self) -> Result<(), Observation> {
        self.steered(Steering::resume, "to go on")
    }

    fn steered(&self, act: impl Fn(&Steering) -> bool, what: &str) -> Result<(), Observation> {
        if act(&self.watched.steering) {
            return Ok(());
        }
        let message = format!("it is too late for the job {what}: it is about to end");
        Err(ending(message))
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// `usage.limits` where they are another disk's, or of a mirror, which this move never is.
    pub(super) fn set_limits(&self, change: LimitChange) -> Result<(), Observation> {
        let LimitChange {
            downtime_limit,
            bandwidth,
            writes,
            disk,
        } = change;
        if let Some(disk) = disk.filter(|disk| *disk != self.disk) {
            let message = format!(
                "the job {} moves disk {}, and not {disk}",
                self.job, self.disk
            );
            return Err(Observation::new(Side::Source, "usage.limits", message));
        }
        let limit_of_writes = match (writes, &self.watched.writes) {
            (Some(_), None) => {
                let message = "writes is of mirror, and this move never is one";
                return Err(Observation::new(Side::Source, "usage.limits", message));
            }
            (Some(Rate(rate)), Some(limit)) => Some((rate, limit)),
            (None, _) => None,
        };
        if let Some(Span(limit)) = downtime_limit {
            self.watched.steering.set_limit(limit);
        }
        if let Some(Rate(rate)) = bandwidth {
            self.watched.steering.set_bandwidth(rate);
        }
        if let Some((rate, limit)) = limit_of_writes {
            limit.set(rate);
        }
        Ok(())
    }

    /// As it is told.
    pub(super) fn told(&self) -> Job {
        let progress = self.watched.steering.progress();
        let class_bytes = ClassBytes {
            demand: 0,
            write: self.watched.told.written(),
            background: progress.done,
        };
        Job {
            id: self.job.to_string(),
            kind: JobKind::DiskMove,
            state: match self.watched.steering.standing() {
                Standing::Running => JobState::Running,
                Standing::Paused => JobState::Paused,
                Standing::Cancelled => JobState::Cancelling,
                Standing::Ending => JobState::Finishing,
            },
            to: Some(self.to.clone()),
            disk: Some(self.disk.clone()),
            from: None,
            progress: JobProgress {
                phase: None,
                pass: Some(progress.passes),
                done_bytes: Some(progress.done),
                total_bytes: Some(progress.total),
                eta_ms: progress.left().map(|left| left.as_secs_f64() * 1e3),
                class_bytes: Some(class_bytes),
                ..JobProgress::default()
            },
            disks: vec![DiskBytes {
                id: self.disk.clone(),
                class_bytes,
                class_bytes_per_s: Some(self.watched.told.rate(class_bytes)),
            }],
            limits: Some(LimitChange {
                downtime_limit: Some(Span(self.watched.steering.limit())),
                bandwidth: Some(Rate(self.watched.steering.bandwidth())),
                writes: (self.watched.writes.as_ref())
                    .and_then(|limit| limit.rate())
                    .map(|rate| Rate(Some(rate))),
                disk: None,
            }),
            held_up_by: self.watched.told.held_up_by(),
            result: None,
        }
    }

    /// As it is told when it is over.
    pub(super) fn ended(&self, report: DiskMoveReport, moved: Result<(), Observation>) -> Job {
        let cancelled = |why: &Observation| why.id == "job.cancelled";
        let outcome = match &moved {
            Ok(()) => JobOutcome::Completed,
            Err(why) if cancelled(why) => JobOutcome::Cancelled,
            Err(_) => JobOutcome::Failed,
        };
        let mut job = self.told();
        job.state = JobState::Concluded;
        job.progress.done_bytes = Some(report.copied_bytes);
        job.progress.pass = Some(report.passes);
        job.progress.eta_ms = None;
        job.progress.class_bytes = Some(report.class_bytes);
        job.disks = vec![DiskBytes {
            id: self.disk.clone(),
            class_bytes: report.class_bytes,
            class_bytes_per_s: None,
        }];
        job.held_up_by = None;
        if outcome == JobOutcome::Completed {
            job.progress.total_bytes = job.progress.done_bytes;
        }
        job.result = Some(JobResult {
            outcome,
            error: moved.err().filter(|why| !cancelled(why)),
            report: None,
            disk_move: Some(report),
        });
        job
    }
}
