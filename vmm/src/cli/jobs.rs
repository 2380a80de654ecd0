//! `vmm jobs`.

use control::api::client::Client;
use control::exit::Exit;
use control::job::{Job, JobKind, JobOutcome, JobProgress, JobState};
use control::output::{Output, explain};
use control::runtime_dir::RuntimeDir;
use control::units::{human_bytes, human_ms};
use migration::observation::Observation;

use super::args::JobsArgs;
use super::event_loop::block_on;

pub(super) fn run(
    args: &JobsArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let JobsArgs {
        name,
        id,
        cancel,
        set,
    } = args;
    let client = Client::new(runtime, name);
    let Some(id) = id else {
        for job in block_on(client.jobs())?.jobs {
            output.either(&job, row(&job));
        }
        return Ok(Exit::Done);
    };
    let job = match (cancel, set) {
        (true, _) => block_on(client.cancel_job(id))?,
        (false, Some(limits)) => block_on(client.set_job_limits(id, limits))?,
        (false, None) => block_on(client.job(id))?,
    };
    output.either(&job, row(&job));
    if let Some(why) = job.result.and_then(|result| result.error) {
        output.line(explain(&why).trim_end());
    }
    Ok(Exit::Done)
}

/// One line that says what a job is and how far.
fn row(job: &Job) -> String {
    let what = match (job.kind, &job.to) {
        (JobKind::Migration, Some(to)) => format!("migration to {to}"),
        (JobKind::Migration, None) => "migration to this host".into(),
    };
    format!("{}  {what}: {}", job.id, standing(job))
}

fn standing(job: &Job) -> String {
    let ended = match job.result.as_ref().map(|result| result.outcome) {
        Some(JobOutcome::Completed) => "completed",
        Some(JobOutcome::Failed) => "failed",
        Some(JobOutcome::Cancelled) => "cancelled",
        Some(JobOutcome::Unknown) => "ended, nobody here knows how",
        None => "",
    };
    match job.state {
        JobState::Running => format!("running{}", progress(&job.progress)),
        JobState::Cancelling => "being cancelled".into(),
        JobState::Finishing => "about to end".into(),
        JobState::Resolving => "over, its destination is asked how it ended".into(),
        JobState::Concluded => ended.into(),
    }
}

fn progress(progress: &JobProgress) -> String {
    let JobProgress {
        phase,
        done_bytes,
        total_bytes,
        eta_ms,
    } = progress;
    let mut text = String::new();
    if let Some(phase) = phase {
        text.push_str(&format!(", {}", phase.name()));
    }
    if let (Some(done), Some(total)) = (done_bytes, total_bytes) {
        let (done, total) = (human_bytes(*done as f64), human_bytes(*total as f64));
        text.push_str(&format!(", {done} of {total}"));
    }
    if let Some(left) = eta_ms {
        text.push_str(&format!(", {} left", human_ms(*left)));
    }
    text
}

#[cfg(test)]
mod tests {
    use migration::observation::{Observation, Side};
    use migration::progress::{Event, Phase, Report};

    use super::*;

    #[test]
    fn a_row_tells_how_far_a_job_is_or_how_it_ended() {
        let mut events = vec![Event::Phase {
            phase: Phase::Prepare,
        }];
        let job = |events: &[Event]| Job::of_migration("7".into(), events);
        let told = row(&job(&events));
        assert_eq!(told, "7  migration to this host: running, prepare");
        events.push(Event::Progress {
            phase: Phase::Precopy,
            iteration: 1,
            sent_bytes: 1 << 20,
            remaining_bytes: 3 << 20,
            mib_per_s: 1.0,
            dirty_pages_per_s: 1.0,
            eta_ms: Some(3000.0),
            forecast_downtime_ms: 1.0,
        });
        let leaving = Job {
            to: Some("h:1".into()),
            ..job(&events)
        };
        let told = row(&leaving);
        let expected = "7  migration to h:1: running, precopy, 1.00 MiB of 4.00 MiB, 3.00 s left";
        assert_eq!(told, expected);
        let failed = Report {
            status: "failed".into(),
            error: Some(Observation::new(
                Side::Source,
                "migration.peer-lost",
                "gone",
            )),
            ..Report::default()
        };
        events.push(Event::Failed(failed));
        assert_eq!(row(&job(&events)), "7  migration to this host: failed");
    }
}
