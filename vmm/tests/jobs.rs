//! Jobs over the control API, with a VM without a machine.

#![allow(missing_docs, dead_code)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/served.rs"]
mod served;

use std::time::Duration;

use control::instance::VmState;
use control::job::{JobKind, JobOutcome, JobState, Jobs};
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
            bandwidth: None,
        };
        let job = client.set_job_limits(&id, &by_job).await.unwrap();
        assert_eq!(job.limits.unwrap().downtime_limit, downtime_limit);
        assert_eq!(host.vm.limits(), Some(by_job));
        let by_migration = LimitChange {
            downtime_limit: None,
            bandwidth,
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
