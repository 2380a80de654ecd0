//! What each endpoint does.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;

use super::body::{
    Accepted, LimitsBody, MigrateBody, MigrationStarted, StateAnswer, StopBody, WaitQuery,
};
use super::error::ApiError;
use crate::instance::{Instance, StopMode, VmState, VmStatus};

/// One JSON object a line.
const NDJSON: &str = "application/x-ndjson";
/// Bytes of a request's body.
const BODY_LIMIT: usize = 64 << 10;
/// Requests at once that wait for something; others are short.
const WAITERS: usize = 32;
/// Threads for calls into the VM: enough for all waiters and some more.
pub(super) const BLOCKING_THREADS: usize = WAITERS + 16;
/// How soon a wait notices that its client is gone.
const SLICE: Duration = Duration::from_millis(500);
/// Longest that one request may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

#[derive(Clone)]
struct Vm {
    instance: Arc<dyn Instance>,
    waiters: Arc<Semaphore>,
}

type Answer<T> = Result<Json<T>, ApiError>;

/// The API of one VM.
pub(super) fn router(instance: Arc<dyn Instance>) -> Router {
    let vm = Vm {
        instance,
        waiters: Arc::new(Semaphore::new(WAITERS)),
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
        .route("/openapi.json", get(openapi))
        .fallback(async || ApiError::new("usage.endpoint", "there is no such endpoint"))
        .method_not_allowed_fallback(async || {
            ApiError::new("usage.method", "the endpoint does not know this method")
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(vm)
}

impl Vm {
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

fn body<T: DeserializeOwned>(bytes: Result<Bytes, BytesRejection>) -> Result<T, ApiError> {
    let bytes = bytes.map_err(|e| {
        let id = match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => "usage.body-size",
            _ => "usage.body",
        };
        ApiError::new(id, e.body_text())
    })?;
    serde_json::from_slice(&bytes).map_err(|e| ApiError::new("usage.body", e.to_string()))
}

async fn status(State(vm): State<Vm>) -> Answer<VmStatus> {
    Ok(Json(vm.call(Instance::status).await?))
}

async fn pause(State(vm): State<Vm>) -> Answer<VmStatus> {
    vm.call(Instance::pause).await??;
    status(State(vm)).await
}

async fn resume(State(vm): State<Vm>) -> Answer<VmStatus> {
    vm.call(Instance::resume).await??;
    status(State(vm)).await
}

async fn stop(State(vm): State<Vm>, bytes: Result<Bytes, BytesRejection>) -> Answer<VmStatus> {
    let StopBody { mode } = body(bytes)?;
    let _waits = match mode {
        StopMode::Graceful => Some(vm.waiter()?),
        StopMode::Force => None,
    };
    vm.call(move |vm| vm.stop(mode)).await??;
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
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let request: MigrateBody = body(bytes)?;
    if request.streams.is_some_and(|n| !(1..=16).contains(&n)) {
        return Err(ApiError::new(
            "usage.streams",
            "1 to 16 streams are supported",
        ));
    }
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let follow = accept.is_some_and(|accept| accept.contains(NDJSON));
    let permit = if follow { Some(vm.waiter()?) } else { None };
    let id = vm.call(move |vm| vm.migrate(request.into())).await??;
    match permit {
        // A migration may be over, and this process about to end, before a second request is made.
        Some(permit) => stream_events(&vm, permit).await,
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

async fn resolve(State(vm): State<Vm>) -> Answer<StateAnswer> {
    let _waits = vm.waiter()?;
    let state: VmState = vm.call(Instance::resolve).await??;
    Ok(Json(StateAnswer { state }))
}

async fn limits(State(vm): State<Vm>, bytes: Result<Bytes, BytesRejection>) -> Answer<Accepted> {
    let change: LimitsBody = body(bytes)?;
    if change == LimitsBody::default() {
        return Err(ApiError::new("usage.body", "no limit is named"));
    }
    vm.call(move |vm| vm.set_limits(change.into())).await??;
    Ok(Json(Accepted {}))
}

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}
