//! A job that is followed to its end, and told of meanwhile.

use std::time::{Duration, Instant};

use control::api::client::{Client, Lines};
use control::exit::Exit;
use control::job::{Job, JobOutcome, JobState};
use control::output::Output;
use migration::observation::Observation;

use super::job_row::row;

/// How often it is told how far a job is that goes on.
const TOLD: Duration = Duration::from_secs(1);

/// A job as its VM tells of it.
pub(super) struct Followed<'f> {
    client: &'f Client,
    id: String,
    lines: Lines<Job>,
    output: Output,
    told: Option<(JobState, Instant)>,
}

impl<'f> Followed<'f> {
    /// The job `id`, of which `lines` tell.
    pub(super) fn new(
        client: &'f Client,
        id: impl Into<String>,
        lines: Lines<Job>,
        output: Output,
    ) -> Self {
        Self {
            client,
            id: id.into(),
            lines,
            output,
            told: None,
        }
    }

    /// The job when it is over; how far it is is told until then. Safe to drop and call again.
    ///
    /// # Errors
    /// When its VM tells no more of it.
    pub(super) async fn end(&mut self) -> Result<Job, Observation> {
        loop {
            match self.lines.next().await {
                Ok(Some(job)) if job.state == JobState::Concluded => return Ok(job),
                Ok(Some(job)) => self.tell(&job),
                // That the lines broke off says nothing about the job.
                Ok(None) | Err(_) => self.lines = self.client.follow_job(&self.id).await?,
            }
        }
    }

    fn tell(&mut self, job: &Job) {
        let is_news = |(state, at): (JobState, Instant)| state != job.state || at.elapsed() >= TOLD;
        if !self.told.is_none_or(is_news) {
            return;
        }
        self.told = Some((job.state, Instant::now()));
        self.output.object(job);
        if !self.output.is_json() {
            eprintln!("{}", row(job));
        }
    }
}

/// How the process ends that followed a job.
pub(super) fn exit_of_job(job: &Job) -> Exit {
    match job.result.as_ref().map(|result| result.outcome) {
        Some(JobOutcome::Completed) => Exit::Done,
        Some(JobOutcome::Cancelled) => Exit::Cancelled,
        Some(JobOutcome::Unknown) => Exit::NeedsResolve,
        Some(JobOutcome::Failed) | None => Exit::Failed,
    }
}
