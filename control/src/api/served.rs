//! The VM as endpoints call it, and how many of them may at once.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::error::ApiError;
use crate::instance::Instance;
use crate::passed::{self, PassedFiles};

/// Requests at once that wait for something; others are short.
const WAITERS: usize = 32;
/// Threads for calls into the VM, enough for all waiters and some more, and for files that are closed.
pub(super) const BLOCKING_THREADS: usize = WAITERS + 16 + passed::CONNECTIONS;
/// Requests at once that may take long in the VM although nobody waits for something to happen there: more
/// would leave no thread for those that are short.
const SLOW: usize = 8;
/// How soon a wait notices that its client is gone.
pub(super) const SLICE: Duration = Duration::from_millis(500);

/// The VM, its files that wait, and the places of those that ask.
#[derive(Clone)]
pub(super) struct Vm {
    pub instance: Arc<dyn Instance>,
    waiters: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    pub files: Arc<PassedFiles>,
}

/// What an endpoint says.
pub(super) type Answer<T> = Result<Json<T>, ApiError>;

impl Vm {
    pub fn new(instance: Arc<dyn Instance>, files: Arc<PassedFiles>) -> Self {
        Self {
            instance,
            waiters: Arc::new(Semaphore::new(WAITERS)),
            slow: Arc::new(Semaphore::new(SLOW)),
            files,
        }
    }

    /// As [`Vm::call`], for what may take long.
    pub async fn call_slow<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Instance) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        // Never closed.
        let _turn = self.slow.acquire().await;
        self.call(what).await
    }

    /// Calls into the VM, which may block.
    pub async fn call<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Instance) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let instance = Arc::clone(&self.instance);
        spawn_blocking(move || what(&*instance))
            .await
            .map_err(|e| ApiError::new("internal.panic", format!("the operation failed: {e}")))
    }

    /// The place of one that waits.
    pub fn waiter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.waiters)
            .try_acquire_owned()
            .map_err(|_| ApiError::new("api.busy", format!("{WAITERS} clients already wait")))
    }
}

/// What a request carries.
pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::new("usage.body", e.to_string()))
}
