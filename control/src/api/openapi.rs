//! The OpenAPI document, from the types that are on the wire.

use utoipa::OpenApi;

use super::body::{
    Accepted, JobRequest, MigrationStarted, ResolveBody, StateAnswer, StopBody, WaitQuery,
};
use crate::disk_move::DiskMoveRequest;
use crate::instance::VmStatus;
use crate::job::{Job, Jobs};
use crate::on_demand::OnDemandChange;
use crate::passed::KeptFiles;
use migration::observation::Observation;
use migration::progress::{Event, LimitChange};
use migration::request::MigrateRequest;

/// The document that `/openapi.json` serves.
pub fn document() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vmm control API",
        description = "Controls one VM through its control socket. Errors are observations."
    ),
    paths(
        status,
        pause,
        resume,
        stop,
        wait,
        migrate,
        events,
        cancel,
        resolve,
        limits,
        jobs,
        begin_job,
        job,
        follow_job,
        cancel_job,
        pause_job,
        resume_job,
        job_limits,
        move_disk,
        change_on_demand,
        files,
        let_go
    ),
    components(schemas(Observation, Event))
)]
struct Api;

/// What the VM is doing.
#[utoipa::path(get, path = "/vm", responses((status = 200, body = VmStatus)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn status() {}

/// Stops the vCPUs.
#[utoipa::path(post, path = "/vm/pause", responses(
    (status = 200, body = VmStatus), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn pause() {}

/// Lets a paused VM run.
#[utoipa::path(post, path = "/vm/resume", responses(
    (status = 200, body = VmStatus), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn resume() {}

/// Ends the guest; answers when it has ended.
#[utoipa::path(post, path = "/vm/stop", request_body = StopBody, responses(
    (status = 200, body = VmStatus), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn stop() {}

/// Answers when the state is no longer `seen`, or the time has passed.
#[utoipa::path(get, path = "/vm/wait", params(WaitQuery), responses(
    (status = 200, body = StateAnswer), (status = 400, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn wait() {}

/// Begins a migration; its events tell the rest. With `accept: application/x-ndjson` they are the
/// answer.
#[utoipa::path(post, path = "/vm/migration", request_body = MigrateRequest, responses(
    (status = 202, body = MigrationStarted),
    (status = 200, body = Event, content_type = "application/x-ndjson"), (status = 400, body = Observation),
    (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn migrate() {}

/// Events of the migration from its beginning, one JSON object a line; ends after the last.
#[utoipa::path(get, path = "/vm/migration/events", responses(
    (status = 200, body = Event, content_type = "application/x-ndjson"),
    (status = 404, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn events() {}

/// Asks the migration to stop before commit; its last event tells whether it did.
#[utoipa::path(post, path = "/vm/migration/cancel", responses(
    (status = 202, body = Accepted), (status = 404, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn cancel() {}

/// Asks the destination whether it ran the guest, and acts on the answer.
#[utoipa::path(post, path = "/vm/migration/resolve", request_body = Option<ResolveBody>, responses(
    (status = 200, body = StateAnswer), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn resolve() {}

/// Changes limits of the migration that runs.
#[utoipa::path(patch, path = "/vm/migration/limits", request_body = LimitChange, responses(
    (status = 200, body = Accepted), (status = 404, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn limits() {}

/// Jobs that run and the newest of those that ended, the oldest first.
#[utoipa::path(get, path = "/vm/jobs", responses((status = 200, body = Jobs)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn jobs() {}

/// Begins a job of any kind. With `accept: application/x-ndjson` the answer is what `/vm/jobs/{id}/events` tells of it.
#[utoipa::path(post, path = "/vm/jobs", request_body = JobRequest, responses(
    (status = 201, body = Job, headers(("location" = String, description = "Where the job is"))),
    (status = 400, body = Observation), (status = 404, body = Observation), (status = 409, body = Observation),
    (status = 500, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn begin_job() {}

/// One job.
#[utoipa::path(get, path = "/vm/jobs/{id}", params(("id" = String, Path, description = "Of the job")),
    responses((status = 200, body = Job), (status = 404, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn job() {}

/// A job as it is, and as it is when it has changed, one JSON object a line; ends after the one that is `concluded`. Who
/// reads slowly is told less of what is between.
#[utoipa::path(get, path = "/vm/jobs/{id}/events", params(("id" = String, Path, description = "Of the job")),
    responses((status = 200, body = Job, content_type = "application/x-ndjson"), (status = 404, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn follow_job() {}

/// Asks a job to stop and undo what it did; its result tells whether it did.
#[utoipa::path(post, path = "/vm/jobs/{id}/cancel",
    params(("id" = String, Path, description = "Of the job")), responses(
    (status = 202, body = Job), (status = 404, body = Observation), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn cancel_job() {}

/// Has a job wait until it is told to go on.
#[utoipa::path(post, path = "/vm/jobs/{id}/pause",
    params(("id" = String, Path, description = "Of the job")), responses(
    (status = 200, body = Job), (status = 404, body = Observation), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn pause_job() {}

/// Lets a job go on that waits.
#[utoipa::path(post, path = "/vm/jobs/{id}/resume",
    params(("id" = String, Path, description = "Of the job")), responses(
    (status = 200, body = Job), (status = 404, body = Observation), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn resume_job() {}

/// Begins to move a disk to another image on this host, a file that was passed before; its job tells the rest.
#[utoipa::path(post, path = "/vm/disks/{id}/move", request_body = DiskMoveRequest,
    params(("id" = String, Path, description = "Of the disk")), responses(
    (status = 202, body = Job), (status = 400, body = Observation), (status = 404, body = Observation),
    (status = 409, body = Observation), (status = 500, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn move_disk() {}

/// Changes how what is missing is had of a disk of which another host serves a part; durable when it answers.
#[utoipa::path(patch, path = "/vm/disks/{id}/on-demand", request_body = OnDemandChange,
    params(("id" = String, Path, description = "Of the disk")), responses(
    (status = 200, body = VmStatus), (status = 400, body = Observation), (status = 404, body = Observation),
    (status = 409, body = Observation), (status = 500, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn change_on_demand() {}

/// Changes limits of a job that runs.
#[utoipa::path(patch, path = "/vm/jobs/{id}/limits", request_body = LimitChange,
    params(("id" = String, Path, description = "Of the job")), responses(
    (status = 200, body = Job), (status = 404, body = Observation), (status = 409, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn job_limits() {}

/// Files that the VM was passed and that no request has taken.
#[utoipa::path(get, path = "/vm/files", responses((status = 200, body = KeptFiles)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn files() {}

/// Has the VM close a file that it was passed.
#[utoipa::path(delete, path = "/vm/files/{id}", params(("id" = String, Path, description = "Identifier of the file")),
    responses((status = 200, body = Accepted), (status = 400, body = Observation), (status = 404, body = Observation)))]
#[expect(dead_code, reason = "describes the endpoint")]
fn let_go() {}
