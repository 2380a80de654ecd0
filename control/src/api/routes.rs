//! What each endpoint does.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use migration::request::MigrateRequest;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{
    Accepted, MIGRATION_ID, MigrationStarted, ResolveBody, StateAnswer, StopBody, WaitQuery,
};
use super::error::ApiError;
use super::jobs;
use super::kept::Kept;
use super::served::{Answer, SLICE, Vm, body};
use super::streams;
use crate::instance::{Instance, Requester, StopMode, VmState, VmStatus};
use crate::passed::{FileId, KeptFiles, PassedFiles};
use crate::places::Place;

/// Bytes of a request's body.
const BODY_LIMIT: usize = 64 << 10;
/// Lines of events that wait for a client that is slow.
const EVENTS_AHEAD: usize = 64;
/// Longest that one request may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The API of one VM.
pub(super) fn router(instance: Arc<dyn Instance>, files: Arc<PassedFiles>) -> Router {
    let vm = Vm::new(instance, files);
    Router::new()
        .route("/vm", get(status))
        .route("/vm/pause", post(pause))
        .route("/vm/resume", post(resume))
        .route("/vm/stop", post(stop))
        .route("/vm/wait", get(wait))
        .route("/vm/migration", post(migrate))
        .route("/vm/migration/events", get(events))
        .route("/vm/migration/cancel", post(cancel))
        .route("/vm/migration/resolve", post(resolve))
        .route("/vm/migration/limits", patch(limits))
        .route("/vm/jobs", get(jobs::jobs).post(jobs::begin))
        .route("/vm/jobs/{id}", get(jobs::job))
        .route("/vm/jobs/{id}/events", get(jobs::follow))
        .route("/vm/jobs/{id}/cancel", post(jobs::cancel_job))
        .route("/vm/jobs/{id}/pause", post(jobs::pause_job))
        .route("/vm/jobs/{id}/resume", post(jobs::resume_job))
        .route("/vm/jobs/{id}/limits", patch(jobs::job_limits))
        .route("/vm/disks/{id}/move", post(jobs::move_disk))
        .route("/vm/disks/{id}/on-demand", patch(jobs::change_on_demand))
        .route("/vm/files", get(kept_files))
        .route("/vm/files/{id}", delete(let_go))
        .route("/openapi.json", get(openapi))
        .fallback(async || ApiError::new("usage.endpoint", "there is no such endpoint"))
        .method_not_allowed_fallback(async || {
            ApiError::new("usage.method", "the endpoint does not know this method")
        })
        // The whole body has been read by then.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(in_its_place))
        .with_state(vm)
}

/// Reads the request, and keeps its connection's place for as long as it is being answered.
async fn in_its_place(
    ConnectInfo(place): ConnectInfo<Place>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = match to_bytes(body, BODY_LIMIT).await {
        Ok(bytes) => bytes,
        Err(e) => {
            let too_long = e.into_inner().is::<http_body_util::LengthLimitError>();
            let (id, message) = if too_long {
                ("usage.body-size", "the body is longer than 64 KiB")
            } else {
                ("usage.body", "the body cannot be read")
            };
            return ApiError::new(id, message).into_response();
        }
    };
    let busy = place.busy();
    let response = next
        .run(Request::from_parts(parts, Body::from(bytes)))
        .await;
    response.map(|body| Body::new(Kept::new(body, busy)))
}

async fn status(State(vm): State<Vm>) -> Answer<VmStatus> {
    Ok(Json(vm.call(Instance::status).await?))
}

async fn pause(State(vm): State<Vm>) -> Answer<VmStatus> {
    vm.call_slow(Instance::pause).await??;
    status(State(vm)).await
}

async fn resume(State(vm): State<Vm>) -> Answer<VmStatus> {
    vm.call_slow(Instance::resume).await??;
    status(State(vm)).await
}

async fn stop(State(vm): State<Vm>, bytes: Bytes) -> Answer<VmStatus> {
    let StopBody { mode } = body(&bytes)?;
    let _waits = match mode {
        StopMode::Graceful => Some(vm.waiter()?),
        StopMode::Force => None,
    };
    vm.call(move |vm| vm.stop(mode, Requester::Client))
        .await??;
    status(State(vm)).await
}

async fn wait(
    State(vm): State<Vm>,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Answer<StateAnswer> {
    let Query(WaitQuery { seen, timeout_ms }) =
        query.map_err(|e| ApiError::new("usage.query", e.body_text()))?;
    let _waits = vm.waiter()?;
    let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(LONGEST_WAIT);
    loop {
        let slice = deadline
            .saturating_duration_since(Instant::now())
            .min(SLICE);
        let state = vm.call(move |vm| vm.wait_change(seen, slice)).await?;
        if state != seen || Instant::now() >= deadline {
            return Ok(Json(StateAnswer { state }));
        }
    }
}

async fn migrate(
    State(vm): State<Vm>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let request: MigrateRequest = body(&bytes)?;
    let permit = if streams::wants_lines(&headers) {
        Some(vm.waiter()?)
    } else {
        None
    };
    let files = Arc::clone(&vm.files);
    let begun = move |vm: &dyn Instance| jobs::begin_migration(vm, &files, request);
    let id = vm.call_slow(begun).await??;
    match permit {
        // A migration may be over, and this process about to end, before a second request is made.
        Some(permit) => {
            Ok(([(MIGRATION_ID, id)], stream_events(&vm, permit).await?).into_response())
        }
        None => Ok((StatusCode::ACCEPTED, Json(MigrationStarted { id })).into_response()),
    }
}

async fn events(State(vm): State<Vm>) -> Result<Response, ApiError> {
    let permit = vm.waiter()?;
    stream_events(&vm, permit).await
}

async fn stream_events(vm: &Vm, permit: OwnedSemaphorePermit) -> Result<Response, ApiError> {
    let events = vm
        .call(Instance::migration_events)
        .await?
        .ok_or_else(|| ApiError::new("migration.none", "there was no migration"))?;
    Ok(streams::answer(
        permit,
        EVENTS_AHEAD,
        move || match events.recv_timeout(SLICE) {
            Ok(event) => streams::Next::Line(event),
            Err(RecvTimeoutError::Timeout) => streams::Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => streams::Next::End,
        },
    ))
}

async fn cancel(State(vm): State<Vm>) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    vm.call(Instance::cancel_migration).await??;
    Ok((StatusCode::ACCEPTED, Json(Accepted {})))
}

async fn resolve(State(vm): State<Vm>, bytes: Bytes) -> Answer<StateAnswer> {
    let ResolveBody { addresses } = if bytes.is_empty() {
        ResolveBody::default()
    } else {
        body(&bytes)?
    };
    let _waits = vm.waiter()?;
    let state: VmState = vm.call(move |vm| vm.resolve(addresses)).await??;
    Ok(Json(StateAnswer { state }))
}

async fn limits(State(vm): State<Vm>, bytes: Bytes) -> Answer<Accepted> {
    let change = jobs::limit_change(&bytes)?;
    vm.call(move |vm| vm.set_limits(change)).await??;
    Ok(Json(Accepted {}))
}

async fn kept_files(State(vm): State<Vm>) -> Json<KeptFiles> {
    Json(vm.files.list())
}

async fn let_go(State(vm): State<Vm>, Path(id): Path<String>) -> Answer<Accepted> {
    let id: FileId = id
        .parse()
        .map_err(|e| ApiError::new("usage.file-id", format!("{id:?}: {e}")))?;
    let file = vm.files.let_go(id)?;
    // Its storage may have to be waited for.
    vm.call_slow(move |_| drop(file)).await?;
    Ok(Json(Accepted {}))
}

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}
