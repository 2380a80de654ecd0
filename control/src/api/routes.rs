//! What each endpoint does.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use migration::progress::LimitChange;
use migration::request::MigrateRequest;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;

use super::body::{
    Accepted, MIGRATION_ID, MigrationStarted, ResolveBody, StateAnswer, StopBody, WaitQuery,
};
use super::error::ApiError;
use super::kept::Kept;
use crate::instance::{Instance, Requester, StopMode, VmState, VmStatus};
use crate::job::{Job, Jobs};
use crate::passed::{self, FileId, KeptFiles, PassedFiles};
use crate::places::Place;

/// One JSON object a line.
const NDJSON: &str = "application/x-ndjson";
/// Bytes of a request's body.
const BODY_LIMIT: usize = 64 << 10;
/// Requests at once that wait for something; others are short.
const WAITERS: usize = 32;
/// Threads for calls into the VM, enough for all waiters and some more, and for files that are closed.
pub(super) const BLOCKING_THREADS: usize = WAITERS + 16 + passed::CONNECTIONS;
/// Requests at once that may take long in the VM although nobody waits for something to happen there: more
/// would leave no thread for those that are short.
const SLOW: usize = 8;
/// How soon a wait notices that its client is gone.
const SLICE: Duration = Duration::from_millis(500);
/// Longest that one request may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

#[derive(Clone)]
struct Vm {
    instance: Arc<dyn Instance>,
    waiters: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    files: Arc<PassedFiles>,
}

type Answer<T> = Result<Json<T>, ApiError>;

/// The API of one VM.
pub(super) fn router(instance: Arc<dyn Instance>, files: Arc<PassedFiles>) -> Router {
    let vm = Vm {
        instance,
        waiters: Arc::new(Semaphore::new(WAITERS)),
        slow: Arc::new(Semaphore::new(SLOW)),
        files,
    };
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
        .route("/vm/jobs", get(jobs))
        .route("/vm/jobs/{id}", get(job))
        .route("/vm/jobs/{id}/cancel", post(cancel_job))
        .route("/vm/jobs/{id}/limits", patch(job_limits))
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

impl Vm {
    /// As [`Vm::call`], for what may take long.
    async fn call_slow<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Instance) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        // Never closed.
        let _turn = self.slow.acquire().await;
        self.call(what).await
    }

    /// Calls into the VM, which may block.
    async fn call<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Instance) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let instance = Arc::clone(&self.instance);
        spawn_blocking(move || what(&*instance))
            .await
            .map_err(|e| ApiError::new("internal.panic", format!("the operation failed: {e}")))
    }

    fn waiter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.waiters)
            .try_acquire_owned()
            .map_err(|_| ApiError::new("api.busy", format!("{WAITERS} clients already wait")))
    }
}

fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::new("usage.body", e.to_string()))
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
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let follow = accept.is_some_and(|accept| accept.contains(NDJSON));
    let permit = if follow { Some(vm.waiter()?) } else { None };
    let id = vm.call_slow(move |vm| vm.migrate(request)).await??;
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
    let (lines, stream) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(64);
    spawn_blocking(move || {
        let _permit = permit;
        loop {
            let event = match events.recv_timeout(SLICE) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) if lines.is_closed() => return,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Ok(mut line) = serde_json::to_vec(&event) else {
                return;
            };
            line.push(b'\n');
            if lines.blocking_send(Ok(line.into())).is_err() {
                return;
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(stream));
    Ok(([(header::CONTENT_TYPE, NDJSON)], body).into_response())
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

/// The limits that a request asks for.
fn limit_change(bytes: &Bytes) -> Result<LimitChange, ApiError> {
    let change: LimitChange = body(bytes)?;
    if change == LimitChange::default() {
        return Err(ApiError::new("usage.body", "no limit is named"));
    }
    Ok(change)
}

async fn limits(State(vm): State<Vm>, bytes: Bytes) -> Answer<Accepted> {
    let change = limit_change(&bytes)?;
    vm.call(move |vm| vm.set_limits(change)).await??;
    Ok(Json(Accepted {}))
}

type JobId = Result<Path<String>, PathRejection>;

/// What is no text at all is the identifier of no job.
fn job_id(id: JobId) -> String {
    id.map(|Path(id)| id).unwrap_or_default()
}

async fn jobs(State(vm): State<Vm>) -> Answer<Jobs> {
    Ok(Json(vm.call(Instance::jobs).await?))
}

async fn job(State(vm): State<Vm>, id: JobId) -> Answer<Job> {
    let id = job_id(id);
    Ok(Json(vm.call(move |vm| vm.jobs().find(&id)).await??))
}

async fn cancel_job(State(vm): State<Vm>, id: JobId) -> Result<(StatusCode, Json<Job>), ApiError> {
    let id = job_id(id);
    let cancelled = move |vm: &dyn Instance| {
        vm.cancel_job(&id)?;
        vm.jobs().find(&id)
    };
    Ok((StatusCode::ACCEPTED, Json(vm.call(cancelled).await??)))
}

async fn job_limits(State(vm): State<Vm>, id: JobId, bytes: Bytes) -> Answer<Job> {
    let id = job_id(id);
    let change = limit_change(&bytes)?;
    let changed = move |vm: &dyn Instance| {
        vm.set_job_limits(&id, change)?;
        vm.jobs().find(&id)
    };
    Ok(Json(vm.call(changed).await??))
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
