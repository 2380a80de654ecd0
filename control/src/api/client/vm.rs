//! What is asked of the VM itself.

use std::time::{Duration, Instant};

use hyper::Method;
use migration::observation::Observation;
use tokio::time::{sleep, timeout};

use super::connection::{Client, LOOK_AGAIN, PASSING, STATUS};
use crate::api::body::{StateAnswer, StopBody};
use crate::instance::{StopMode, VmState, VmStatus};
use crate::runtime_dir::Entry;

impl Client {
    /// `GET /vm`, or what a VM that has ended left instead of an answer.
    ///
    /// # Errors
    /// `vm.not-found`, `vm.unreachable`, `vm.not-responding`, or what the VM observed; so for all
    /// requests.
    pub async fn status(&self) -> Result<VmStatus, Observation> {
        self.status_within(STATUS).await
    }

    /// As [`Client::status`], for one who has no more time than `patience`.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn status_within(&self, patience: Duration) -> Result<VmStatus, Observation> {
        let asked = self.exchange(Method::GET, "/vm", Vec::new());
        let told = timeout(patience, asked)
            .await
            .unwrap_or_else(|_| Err(self.not_responding(patience)));
        let why = match told {
            Err(why) if matches!(why.id.as_str(), "vm.ended" | "vm.unreachable") => why,
            asked => return asked,
        };
        // It may have ended while it was asked: what it leaves is there once its process is gone.
        let deadline = Instant::now() + PASSING;
        loop {
            match self.runtime.find(&self.name)? {
                Entry::Ended(status) => return Ok(*status),
                Entry::Unreadable(why) => return Err(*why),
                Entry::Live { .. } if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                Entry::Live { .. } => return Err(why),
            }
        }
    }

    /// `POST /vm/pause`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn pause(&self) -> Result<VmStatus, Observation> {
        self.call(Method::POST, "/vm/pause", None::<&()>).await
    }

    /// `POST /vm/resume`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn resume(&self) -> Result<VmStatus, Observation> {
        self.call(Method::POST, "/vm/resume", None::<&()>).await
    }

    /// `POST /vm/stop`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn stop(&self, mode: StopMode) -> Result<VmStatus, Observation> {
        self.call(Method::POST, "/vm/stop", Some(&StopBody { mode }))
            .await
    }

    /// `GET /vm/wait`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn wait(&self, seen: VmState, timeout_ms: u64) -> Result<VmState, Observation> {
        let seen = serde_json::to_value(seen).ok();
        let seen = seen.as_ref().and_then(|v| v.as_str()).unwrap_or_default();
        let path = format!("/vm/wait?seen={seen}&timeout_ms={timeout_ms}");
        let answer: StateAnswer = self.call(Method::GET, &path, None::<&()>).await?;
        Ok(answer.state)
    }

    /// `GET /openapi.json`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn openapi(&self) -> Result<serde_json::Value, Observation> {
        self.call(Method::GET, "/openapi.json", None::<&()>).await
    }
}
