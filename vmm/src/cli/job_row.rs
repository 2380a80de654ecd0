//! A job as people read it.

use control::disk_move::ClassBytes;
use control::job::{Job, JobKind, JobOutcome, JobProgress, JobState};
use control::output::{Output, explain};
use control::units::{human_bytes, human_ms};
use migration::disk_bytes::DiskBytes;

/// Tells of one job, and why it failed.
pub(super) fn show(job: &Job, output: Output) {
    output.either(job, row(job));
    let failed = job.result.as_ref().and_then(|result| result.error.as_ref());
    if let Some(why) = failed.or(job.held_up_by.as_ref()) {
        output.line(explain(why).trim_end());
    }
}

/// One line that says what a job is and how far.
pub(super) fn row(job: &Job) -> String {
    let what = match (job.kind, &job.to) {
        (JobKind::Migration, Some(to)) => format!("migration to {to}"),
        (JobKind::Migration, None) => "migration to this host".into(),
        (JobKind::DiskMove, to) => format!(
            "disk {} to {}",
            job.disk.as_deref().unwrap_or_default(),
            to.as_deref().unwrap_or_default()
        ),
        (JobKind::DiskPull, _) => format!(
            "disk {} from {}",
            job.disk.as_deref().unwrap_or_default(),
            job.from.as_deref().unwrap_or_default()
        ),
    };
    format!("{}  {what}: {}", job.id, standing(job))
}

/// What has gone of one disk, by why it did, and how fast that goes.
pub(super) fn disk_row(disk: &DiskBytes) -> String {
    let DiskBytes {
        id,
        class_bytes,
        class_bytes_per_s: rate,
    } = disk;
    let class = |what: &str, bytes: u64, rate: Option<u64>| {
        let rate = rate.map(|rate| format!(" ({}/s)", human_bytes(rate as f64)));
        let (bytes, rate) = (human_bytes(bytes as f64), rate.unwrap_or_default());
        format!("{bytes} {what}{rate}")
    };
    let write = class(
        "written meanwhile",
        class_bytes.write,
        rate.map(|rate| rate.write),
    );
    let background = class(
        "copied",
        class_bytes.background,
        rate.map(|rate| rate.background),
    );
    match class_bytes.demand {
        0 => format!("disk {id}: {background}, {write}"),
        demand => {
            let demand = class("asked for", demand, rate.map(|rate| rate.demand));
            format!("disk {id}: {demand}, {background}, {write}")
        }
    }
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
        JobState::Running | JobState::Paused => {
            let name = match job.state {
                JobState::Paused => "paused",
                _ => "running",
            };
            let why = job.held_up_by.as_ref();
            let why = why.map_or_else(String::new, |why| format!(" ({})", why.id));
            format!("{name}{why}{}", progress(&job.progress))
        }
        JobState::Cancelling => "being cancelled".into(),
        JobState::Finishing => "about to end".into(),
        JobState::Resolving => "over, its destination is asked how it ended".into(),
        JobState::Concluded => ended.into(),
    }
}

fn progress(progress: &JobProgress) -> String {
    let JobProgress {
        phase,
        pass,
        done_bytes,
        total_bytes,
        eta_ms,
        class_bytes,
        reconnects,
        link_lost,
        waiting_ms,
    } = progress;
    let mut text = String::new();
    if let Some(phase) = phase {
        text.push_str(&format!(", {}", phase.name()));
    }
    if let Some(pass) = pass {
        text.push_str(&format!(", pass {pass}"));
    }
    if let (Some(done), Some(total)) = (done_bytes, total_bytes) {
        let (done, total) = (human_bytes(*done as f64), human_bytes(*total as f64));
        text.push_str(&format!(", {done} of {total}"));
    }
    if let Some(ClassBytes { write, .. }) = class_bytes.filter(|bytes| bytes.write > 0) {
        let written = human_bytes(write as f64);
        text.push_str(&format!(", {written} written meanwhile"));
    }
    if let Some(true) = link_lost {
        text.push_str(", the link is lost and a new one tried");
    }
    if let Some(times) = reconnects {
        text.push_str(&format!(", link made anew {times} times"));
    }
    if let Some(waiting) = waiting_ms {
        text.push_str(&format!(", waiting for {}", human_ms(*waiting as f64)));
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
        events.push(Event::LinkLost {
            observation: Observation::new(Side::Source, "migration.peer-lost", "gone"),
        });
        let is_told = |events: &[Event], what| row(&job(events)).contains(what);
        assert!(is_told(&events, ", the link is lost and a new one tried"));
        events.push(Event::Reconnected {
            reconnects: 2,
            ms: 5.0,
        });
        assert!(is_told(&events, ", link made anew 2 times"));
        assert!(!is_told(&events, "lost"));
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
    #[test]
    fn a_row_tells_why_a_mirror_waits_and_what_was_written_meanwhile() {
        let job = Job {
            kind: JobKind::DiskMove,
            state: JobState::Paused,
            disk: Some("data".into()),
            to: Some("/there".into()),
            held_up_by: Some(Observation::new(Side::Source, "disk.no-room", "full")),
            progress: JobProgress {
                pass: Some(1),
                class_bytes: Some(ClassBytes {
                    demand: 0,
                    write: 3 << 20,
                    background: 1 << 20,
                }),
                ..JobProgress::default()
            },
            ..Job::of_migration("7".into(), &[])
        };
        let expected =
            "7  disk data to /there: paused (disk.no-room), pass 1, 3.00 MiB written meanwhile";
        assert_eq!(row(&job), expected);
    }

    #[test]
    fn a_row_of_a_disk_tells_what_goes_by_why_it_does() {
        let bytes = |write, background| ClassBytes {
            demand: 0,
            write,
            background,
        };
        let mut disk = DiskBytes {
            id: "data".into(),
            class_bytes: bytes(1 << 20, 3 << 20),
            class_bytes_per_s: Some(bytes(0, 2 << 20)),
        };
        let expected =
            "disk data: 3.00 MiB copied (2.00 MiB/s), 1.00 MiB written meanwhile (0 B/s)";
        assert_eq!(disk_row(&disk), expected);
        disk.class_bytes_per_s = None;
        let expected = "disk data: 3.00 MiB copied, 1.00 MiB written meanwhile";
        assert_eq!(disk_row(&disk), expected);
    }
}
