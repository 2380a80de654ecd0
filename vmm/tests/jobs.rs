//! Jobs over the control API, with a VM without a machine.

#![allow(missing_docs, dead_code)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/served.rs"]
mod served;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use control::api::body::{DiskMoveJob, JobRequest};
use control::api::client::Lines;
use control::disk_move::{
    DiskMoveMode, DiskMoveRequest, DiskPull, ImageFormat, StorageReach, TargetContent,
};
use control::instance::VmState;
use control::job::{Job, JobKind, JobOutcome, JobState, Jobs};
use control::passed::{FileAccess, FileId, FileKind, FileNote};
use migration::progress::{Event, LimitChange, Phase};
use migration::request::MigrateRequest;
use migration::units::{Rate, Span};
use served::{Host, block_on};

#[test]
fn a_migration_is_a_job_that_is_watched_steered_and_cancelled() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        assert_eq!(client.jobs().await.unwrap(), Jobs::default());
        let request = MigrateRequest {
            downtime_limit: Span(Duration::from_millis(70)),
            ..MigrateRequest::new("unix:/slow")
        };
        let id = client.migrate(&request).await.unwrap().id;
        let jobs = client.jobs().await.unwrap().jobs;
        assert_eq!(jobs, [client.job(&id).await.unwrap()]);
        let job = &jobs[0];
        assert_eq!(
            (job.kind, job.state),
            (JobKind::Migration, JobState::Running)
        );
        assert_eq!(job.to.as_deref(), Some("unix:/slow"));
        assert_eq!(job.progress.phase, Some(Phase::Precopy));
        assert_eq!(job.progress.done_bytes, Some(1 << 20));
        assert_eq!(job.progress.total_bytes, Some(64 << 20));
        assert_eq!(job.limits, Some(request.limits().into()));
        assert_eq!(job.result, None);

        // Either way leads to the same limits.
        let downtime_limit = Some(Span(Duration::from_millis(50)));
        let bandwidth = Some(Rate(Some(7)));
        let by_job = LimitChange {
            downtime_limit,
            ..LimitChange::default()
        };
        let job = client.set_job_limits(&id, &by_job).await.unwrap();
        assert_eq!(job.limits.unwrap().downtime_limit, downtime_limit);
        assert_eq!(host.vm.limits(), Some(by_job.clone()));
        let by_migration = LimitChange {
            bandwidth,
            ..LimitChange::default()
        };
        client.set_limits(&by_migration).await.unwrap();
        let limits = client.job(&id).await.unwrap().limits.unwrap();
        assert_eq!(limits.bandwidth, bandwidth);

        let mut events = client.events().await.unwrap();
        assert_eq!(client.cancel_job(&id).await.unwrap().id, id);
        let mut last = None;
        while let Some(event) = events.next().await.unwrap() {
            last = Some(event);
        }
        assert!(matches!(last, Some(Event::Cancelled(_))), "{last:?}");
        let job = client.job(&id).await.unwrap();
        assert_eq!(job.state, JobState::Concluded);
        let result = job.result.unwrap();
        assert_eq!(result.outcome, JobOutcome::Cancelled);
        assert_eq!(result.report.unwrap().migration_id, id);

        let over = [
            client.cancel_job(&id).await,
            client.set_job_limits(&id, &by_job).await,
        ];
        for refused in over {
            assert_eq!(refused.unwrap_err().id, "job.concluded");
        }
        // As for the old way to ask.
        assert_eq!(client.cancel().await.unwrap_err().id, "migration.none");
        for wrong in ["", "a/b", "../pause", "7", "%00"] {
            assert_eq!(client.job(wrong).await.unwrap_err().id, "job.not-found");
        }
    });
}

#[test]
fn a_cancelled_migration_is_a_cancelled_job_and_a_failed_one_says_why() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        client
            .migrate(&MigrateRequest::new("unix:/slow"))
            .await
            .unwrap();
        client.cancel().await.unwrap();
        let job = client.job(fake::ID).await.unwrap();
        assert_eq!(job.result.unwrap().outcome, JobOutcome::Cancelled);

        client
            .migrate(&MigrateRequest::new("unix:/fail"))
            .await
            .unwrap();
        let result = client.job(fake::ID).await.unwrap().result.unwrap();
        assert_eq!(result.outcome, JobOutcome::Failed);
        assert_eq!(result.error.unwrap().root().id, "disk.open");
    });
}

/// What programs read: names and numbers that are documented.
#[test]
fn a_job_is_told_in_the_words_of_the_page() {
    let host = Host::new(VmState::Running);
    let begin = "{\"to\":\"unix:/slow\",\"bandwidth_bytes_per_s\":5}";
    assert_eq!(host.post("POST", "/vm/migration", begin).0, 202);
    let (code, told) = host.post("GET", "/vm/jobs", "");
    assert_eq!(code, 200, "{told}");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let expected = serde_json::json!({ "jobs": [{
        "id": fake::ID,
        "kind": "migration",
        "state": "running",
        "to": "unix:/slow",
        "progress": {
            "phase": "precopy", "done_bytes": 1 << 20, "total_bytes": 64 << 20, "eta_ms": 70.0,
        },
        "limits": { "downtime_limit_ms": 300, "bandwidth_bytes_per_s": 5 },
    }]});
    assert_eq!(told, expected);
    let path = format!("/vm/jobs/{}/cancel", fake::ID);
    let (code, told) = host.post("POST", &path, "");
    assert_eq!(code, 202, "{told}");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["state"], "concluded");
    assert_eq!(told["result"]["outcome"], "cancelled");
    assert_eq!(host.post("POST", &path, "").0, 409);
}

fn migration(to: &str) -> JobRequest {
    JobRequest::Migration(MigrateRequest::new(to))
}

async fn all(mut lines: Lines<Job>) -> Vec<Job> {
    let mut told = Vec::new();
    while let Some(job) = lines.next().await.unwrap() {
        told.push(job);
    }
    told
}

#[test]
fn a_job_is_begun_by_its_kind_and_told_of_until_it_is_over() {
    let host = Host::new(VmState::Running);
    let begin = "{\"kind\":\"migration\",\"to\":\"unix:/slow\",\"streams\":3}";
    let head = format!(
        "POST /vm/jobs HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{begin}",
        begin.len()
    );
    let (code, head, told) = host.answer(&head);
    assert_eq!(code, 201, "{told}");
    let place = format!("/vm/jobs/{}", fake::ID);
    assert!(head.contains(&format!("location: {place}\r\n")), "{head}");
    let begun: Job = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (begun.kind, begun.state),
        (JobKind::Migration, JobState::Running)
    );
    assert_eq!(host.vm.request().unwrap().streams, Some(3));

    block_on(async {
        let client = host.client();
        let mut lines = client.follow_job(fake::ID).await.unwrap();
        assert_eq!(lines.next().await.unwrap(), Some(begun));
        let limits = LimitChange {
            bandwidth: Some(Rate(Some(7))),
            ..LimitChange::default()
        };
        client.set_job_limits(fake::ID, &limits).await.unwrap();
        let changed = lines.next().await.unwrap().unwrap();
        assert_eq!(changed.limits.unwrap().bandwidth, limits.bandwidth);
        client.cancel_job(fake::ID).await.unwrap();
        let rest = all(lines).await;
        assert_eq!(rest.len(), 1, "{rest:?}");
        let outcome = rest[0].result.as_ref().map(|result| result.outcome);
        assert_eq!(outcome, Some(JobOutcome::Cancelled));

        // Who comes late hears the end, and nothing else.
        let late = all(client.follow_job(fake::ID).await.unwrap()).await;
        assert_eq!(late, rest);
        for wrong in ["7", "../pause"] {
            let refused = client.follow_job(wrong).await.unwrap_err();
            assert_eq!(refused.id, "job.not-found");
        }
        // What comes of it is the answer, for one that would rather have that.
        let lines = client.begin_and_follow_job(&migration("unix:/fail")).await;
        let told = all(lines.unwrap()).await;
        let why = told[0]
            .result
            .as_ref()
            .and_then(|result| result.error.as_ref());
        assert_eq!(why.unwrap().root().id, "disk.open");
        let refused = client.begin_job(&migration("unix:/elsewhere")).await;
        assert_eq!(refused.unwrap_err().id, "usage.address");
    });
    for wrong in [
        "{}",
        "{\"kind\":\"backup\"}",
        "{\"kind\":\"migration\",\"to\":\"unix:/ok\",\"disk\":\"data\"}",
        "{\"kind\":\"disk-move\",\"disk\":\"data\"}",
    ] {
        let (code, told) = host.post("POST", "/vm/jobs", wrong);
        assert!(
            code == 400 && told.contains("usage.body"),
            "{wrong}: {told}"
        );
    }
}

#[test]
fn a_disk_moves_by_a_job_that_names_it() {
    let host = Host::new(VmState::Running);
    let path = host.runtime.path().join("new.raw");
    let file = File::create_new(&path).unwrap();
    drop(file);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let name = path.display().to_string();
    let request = |disk: &str, file: FileId| {
        JobRequest::DiskMove(DiskMoveJob {
            disk: disk.into(),
            request: DiskMoveRequest {
                id: "ab".repeat(16),
                file,
                direct: None,
                device: None,
                path: name.clone(),
                format: ImageFormat::Raw,
                content: TargetContent::Anything,
                reach: StorageReach::ThisHost,
                mode: DiskMoveMode::default(),
                on_not_converging: None,
                on_target_error: None,
                overlays: None,
                map: None,
                pull: DiskPull::default(),
                bandwidth: Rate(Some(9)),
                writes: Rate::default(),
                downtime_limit: Span(Duration::from_millis(50)),
            },
        })
    };
    block_on(async {
        let client = host.client();
        let mut passer = client.passer().await.unwrap();
        let note = FileNote {
            kind: FileKind::Disk,
            access: FileAccess::ReadWrite,
            name: name.clone(),
        };
        let notes = [(note.clone(), file.as_fd()), (note, file.as_fd())];
        let files = passer.pass(&notes).await.unwrap();
        let unknown = client.begin_job(&request("other", files[0])).await;
        assert_eq!(unknown.unwrap_err().id, "disk.unknown");
        // A request has taken it.
        let taken = client.begin_job(&request("data", files[0])).await;
        assert_eq!(taken.unwrap_err().id, "file.unknown");

        let job = client.begin_job(&request("data", files[1])).await.unwrap();
        assert_eq!(job.kind, JobKind::DiskMove);
        assert_eq!(job.disk.as_deref(), Some("data"));
        assert_eq!(job.to.as_ref(), Some(&name));
        assert_eq!(job.limits.unwrap().bandwidth, Some(Rate(Some(9))));
        client.cancel_job(&job.id).await.unwrap();
        let told = all(client.follow_job(&job.id).await.unwrap()).await;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].state, JobState::Concluded);
    });
}

/// It is told how the job is, not how it was: what nobody read meanwhile is not kept.
#[test]
fn who_reads_slowly_is_told_the_newest() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        let lines = client.begin_and_follow_job(&migration("unix:/slow")).await;
        let lines = lines.unwrap();
        for n in 1..=500 {
            let limits = LimitChange {
                bandwidth: Some(Rate(Some(n))),
                ..LimitChange::default()
            };
            client.set_job_limits(fake::ID, &limits).await.unwrap();
        }
        client.cancel_job(fake::ID).await.unwrap();
        let told = all(lines).await;
        assert!(told.len() < 250, "{}", told.len());
        let last = told.last().unwrap();
        assert_eq!(last.state, JobState::Concluded);
        assert_eq!(
            last.limits.clone().unwrap().bandwidth,
            Some(Rate(Some(500)))
        );
    });
}
