//! What the endpoints of jobs do.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use migration::observation::{Observation, Side};
use migration::progress::LimitChange;
use migration::request::MigrateRequest;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{DiskMoveJob, JobRequest};
use super::error::ApiError;
use super::served::{Answer, Vm, body};
use super::streams::{self, Next, wants_lines};
use crate::disk_move::{DeviceFiles, DeviceRequest, DiskMoveFiles, DiskMoveRequest};
use crate::instance::{Instance, VmStatus};
use crate::job::{Job, JobState, Jobs};
use crate::on_demand::OnDemandChange;
use crate::passed::{FileAccess, FileId, FileKind, PassedFiles};

/// Between two looks at a job that is followed: its progress is told so often at most. That its state changes is told
/// at once where the VM notices by itself.
const LOOK: Duration = Duration::from_millis(100);
/// Lines that wait for a client that follows a job: one that is slow is told less, and always the newest.
const AHEAD: usize = 1;

pub(super) type JobId = Result<Path<String>, PathRejection>;

/// What is no text at all is the identifier of no job.
fn job_id(id: JobId) -> String {
    id.map(|Path(id)| id).unwrap_or_default()
}

/// The limits that a request asks for.
pub(super) fn limit_change(bytes: &Bytes) -> Result<LimitChange, ApiError> {
    let change: LimitChange = body(bytes)?;
    if change == LimitChange::default() {
        return Err(ApiError::new("usage.body", "no limit is named"));
    }
    Ok(change)
}

pub(super) async fn jobs(State(vm): State<Vm>) -> Answer<Jobs> {
    Ok(Json(vm.call(Instance::jobs).await?))
}

pub(super) async fn begin(
    State(vm): State<Vm>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let request: JobRequest = body(&bytes)?;
    let permit = if wants_lines(&headers) {
        Some(vm.waiter()?)
    } else {
        None
    };
    let job = match request {
        JobRequest::Migration(request) => {
            let files = Arc::clone(&vm.files);
            let begun = move |vm: &dyn Instance| {
                let id = begin_migration(vm, &files, request)?;
                vm.jobs().find(&id)
            };
            vm.call_slow(begun).await??
        }
        JobRequest::DiskMove(DiskMoveJob { disk, request }) => {
            begin_disk_move(&vm, disk, request).await?
        }
    };
    let place = [(header::LOCATION, format!("/vm/jobs/{}", job.id))];
    Ok(match permit {
        Some(permit) => {
            let followed = follow_from(&vm, permit, job);
            (StatusCode::CREATED, place, followed).into_response()
        }
        None => (StatusCode::CREATED, place, Json(job)).into_response(),
    })
}

/// Begins a migration, with the files that it names.
pub(super) fn begin_migration(
    vm: &dyn Instance,
    files: &PassedFiles,
    request: MigrateRequest,
) -> Result<String, Observation> {
    let claim = |id: &String| {
        let id = id.parse::<FileId>();
        let id = id.map_err(|e| Observation::from_error(Side::Source, "usage.file-id", &e))?;
        files.claim(id, FileKind::Disk, FileAccess::ReadWrite)
    };
    let overlays = request.overlays.iter();
    let overlays = overlays.map(|of| of.files.iter().map(claim).collect::<Result<_, _>>());
    let overlays = overlays.collect::<Result<_, Observation>>()?;
    vm.migrate(request, overlays)
}

async fn begin_disk_move(vm: &Vm, disk: String, request: DiskMoveRequest) -> Result<Job, ApiError> {
    let files = Arc::clone(&vm.files);
    let begun = move |vm: &dyn Instance| {
        let job = request.id.clone();
        let claim_for = |file, access| files.claim(file, FileKind::Disk, access);
        let claim = |file| claim_for(file, FileAccess::ReadWrite);
        let device = |of: DeviceRequest| {
            Ok::<_, Observation>(DeviceFiles {
                exclusive: claim_for(of.exclusive, FileAccess::Read)?,
                below: of.below.map(claim).transpose()?,
            })
        };
        let overlays = request.overlays.iter().flat_map(|of| &of.files);
        let passed = DiskMoveFiles {
            image: claim(request.file)?,
            direct: request.direct.map(claim).transpose()?,
            device: request.device.map(device).transpose()?,
            map: request.map.map(claim).transpose()?,
            overlays: overlays.map(|id| claim(*id)).collect::<Result<_, _>>()?,
        };
        vm.move_disk(&disk, request, passed)?;
        vm.jobs().find(&job)
    };
    Ok(vm.call_slow(begun).await??)
}

pub(super) async fn move_disk(
    State(vm): State<Vm>,
    id: JobId,
    bytes: Bytes,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let request: DiskMoveRequest = body(&bytes)?;
    let job = begin_disk_move(&vm, job_id(id), request).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn change_on_demand(
    State(vm): State<Vm>,
    id: JobId,
    bytes: Bytes,
) -> Answer<VmStatus> {
    let id = job_id(id);
    let change: OnDemandChange = body(&bytes)?;
    if change == OnDemandChange::default() {
        return Err(ApiError::new("usage.body", "nothing is named that changes"));
    }
    // It waits for storage.
    let changed = move |vm: &dyn Instance| {
        vm.change_on_demand(&id, change)?;
        Ok::<_, Observation>(vm.status())
    };
    Ok(Json(vm.call_slow(changed).await??))
}

pub(super) async fn job(State(vm): State<Vm>, id: JobId) -> Answer<Job> {
    let id = job_id(id);
    Ok(Json(vm.call(move |vm| vm.jobs().find(&id)).await??))
}

pub(super) async fn follow(State(vm): State<Vm>, id: JobId) -> Result<Response, ApiError> {
    let permit = vm.waiter()?;
    let Json(job) = job(State(vm.clone()), id).await?;
    Ok(follow_from(&vm, permit, job))
}

/// Tells `first`, and the job as it is when it is another than was told last, until it is over.
fn follow_from(vm: &Vm, permit: OwnedSemaphorePermit, first: Job) -> Response {
    let instance = Arc::clone(&vm.instance);
    let mut told: Option<Job> = None;
    streams::answer(permit, AHEAD, move || {
        let job = match &told {
            None => first.clone(),
            Some(told) => match instance.wait_job(&told.id, told.state, LOOK) {
                Ok(job) => job,
                // It is over, and so many others are since that it is forgotten.
                Err(_) => return Next::End,
            },
        };
        if told.as_ref() == Some(&job) {
            return Next::Nothing;
        }
        told = Some(job.clone());
        match job.state {
            JobState::Concluded => Next::Last(job),
            _ => Next::Line(job),
        }
    })
}

pub(super) async fn cancel_job(
    State(vm): State<Vm>,
    id: JobId,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let id = job_id(id);
    let cancelled = move |vm: &dyn Instance| {
        vm.cancel_job(&id)?;
        vm.jobs().find(&id)
    };
    Ok((StatusCode::ACCEPTED, Json(vm.call(cancelled).await??)))
}

pub(super) async fn pause_job(State(vm): State<Vm>, id: JobId) -> Answer<Job> {
    let id = job_id(id);
    let paused = move |vm: &dyn Instance| {
        vm.pause_job(&id)?;
        vm.jobs().find(&id)
    };
    Ok(Json(vm.call(paused).await??))
}

pub(super) async fn resume_job(State(vm): State<Vm>, id: JobId) -> Answer<Job> {
    let id = job_id(id);
    let resumed = move |vm: &dyn Instance| {
        vm.resume_job(&id)?;
        vm.jobs().find(&id)
    };
    Ok(Json(vm.call(resumed).await??))
}

pub(super) async fn job_limits(State(vm): State<Vm>, id: JobId, bytes: Bytes) -> Answer<Job> {
    let id = job_id(id);
    let change = limit_change(&bytes)?;
    let changed = move |vm: &dyn Instance| {
        vm.set_job_limits(&id, change)?;
        vm.jobs().find(&id)
    };
    Ok(Json(vm.call(changed).await??))
}
