//! Client of a VM's control socket.

use std::io;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use migration::observation::{Observation, Side};
use migration::progress::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::body::{Accepted, LimitsBody, MigrateBody, MigrationStarted, StateAnswer, StopBody};
use crate::instance::{StopMode, VmState, VmStatus};
use crate::runtime_dir::{Entry, RuntimeDir};

/// Longest that a process takes to listen, or to be gone once it listens no more.
const PASSING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Bytes of an answer.
const ANSWER_LIMIT: usize = 4 << 20;
/// Bytes of one event.
const EVENT_LIMIT: usize = 1 << 20;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

fn json(body: &impl Serialize) -> Result<Vec<u8>, Observation> {
    serde_json::to_vec(body)
        .map_err(|e| Observation::new(Side::Client, "usage.body", e.to_string()))
}

/// Talks to one VM; every request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    runtime: RuntimeDir,
    name: String,
}

fn unreachable_vm(name: &str, why: impl std::fmt::Display) -> Observation {
    Observation::new(
        Side::Client,
        "vm.unreachable",
        format!("the VM {name:?} does not answer: {why}"),
    )
}

impl Client {
    /// A client of the VM called `name`.
    pub fn new(runtime: &RuntimeDir, name: &str) -> Self {
        Self {
            runtime: runtime.clone(),
            name: name.to_owned(),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        accept: &str,
    ) -> Result<Response<Incoming>, Observation> {
        let stream = self.connect().await?;
        let broken = |e: hyper::Error| unreachable_vm(&self.name, e);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "vmm")
            .header("content-type", JSON)
            .header("accept", accept)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| unreachable_vm(&self.name, e))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        Err(self
            .read(response)
            .await
            .unwrap_or_else(|_| unreachable_vm(&self.name, format!("HTTP status {status}"))))
    }

    /// Connects. A process that is about to listen, or about to be gone, is waited for: it is one or the
    /// other soon.
    async fn connect(&self) -> Result<tokio::net::UnixStream, Observation> {
        let deadline = Instant::now() + PASSING;
        let stream = loop {
            let e = match self.runtime.connect_control(&self.name) {
                Ok(stream) => break stream,
                Err(e) => e,
            };
            let gone = matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            );
            return Err(match self.runtime.find(&self.name) {
                Err(why) => why,
                Ok(Entry::Failed(_)) => Observation::new(
                    Side::Client,
                    "vm.failed",
                    format!("the VM {:?} failed: see `vmm status {0}`", self.name),
                ),
                Ok(Entry::Live { .. }) if gone && Instant::now() < deadline => {
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                Ok(Entry::Live { pid }) if gone => {
                    unreachable_vm(&self.name, format!("process {pid} starts or ends"))
                }
                Ok(Entry::Live { .. }) => unreachable_vm(&self.name, e),
            });
        };
        stream
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(stream))
            .map_err(|e| unreachable_vm(&self.name, e))
    }

    async fn read<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, Observation> {
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|e| unreachable_vm(&self.name, e))?;
        serde_json::from_slice(&body.to_bytes())
            .map_err(|e| unreachable_vm(&self.name, format!("its answer is not understood: {e}")))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Observation> {
        let body = body.map(json).transpose()?.unwrap_or_default();
        let response = self.send(method, path, body, JSON).await?;
        self.read(response).await
    }

    /// `GET /vm`, or what a VM that has failed left instead of an answer.
    ///
    /// # Errors
    /// `vm.not-found`, `vm.unreachable`, or what the VM observed; so for all requests.
    pub async fn status(&self) -> Result<VmStatus, Observation> {
        let why = match self.call(Method::GET, "/vm", None::<&()>).await {
            Err(why) if matches!(why.id.as_str(), "vm.failed" | "vm.unreachable") => why,
            asked => return asked,
        };
        // It may have ended while it was asked: what it leaves is there once its process is gone.
        let deadline = Instant::now() + PASSING;
        loop {
            match self.runtime.find(&self.name)? {
                Entry::Failed(status) => return Ok(*status),
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

    /// `POST /vm/migration`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn migrate(&self, body: &MigrateBody) -> Result<MigrationStarted, Observation> {
        self.call(Method::POST, "/vm/migration", Some(body)).await
    }

    /// `POST /vm/migration/cancel`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn cancel(&self) -> Result<Accepted, Observation> {
        self.call(Method::POST, "/vm/migration/cancel", None::<&()>)
            .await
    }

    /// `POST /vm/migration/resolve`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn resolve(&self) -> Result<StateAnswer, Observation> {
        self.call(Method::POST, "/vm/migration/resolve", None::<&()>)
            .await
    }

    /// `PATCH /vm/migration/limits`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn set_limits(&self, limits: &LimitsBody) -> Result<Accepted, Observation> {
        self.call(Method::PATCH, "/vm/migration/limits", Some(limits))
            .await
    }

    /// `GET /openapi.json`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn openapi(&self) -> Result<serde_json::Value, Observation> {
        self.call(Method::GET, "/openapi.json", None::<&()>).await
    }

    /// `GET /vm/migration/events`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn events(&self) -> Result<Events, Observation> {
        let path = "/vm/migration/events";
        let response = self.send(Method::GET, path, Vec::new(), NDJSON).await?;
        Ok(self.events_of(response))
    }

    /// `POST /vm/migration`, answered by the migration's events.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn migrate_and_follow(&self, body: &MigrateBody) -> Result<Events, Observation> {
        let response = self
            .send(Method::POST, "/vm/migration", json(body)?, NDJSON)
            .await?;
        Ok(self.events_of(response))
    }

    fn events_of(&self, response: Response<Incoming>) -> Events {
        Events {
            name: self.name.clone(),
            body: response.into_body(),
            read: Vec::new(),
        }
    }
}

/// Events of a migration as they come in.
#[derive(Debug)]
pub struct Events {
    name: String,
    body: Incoming,
    read: Vec<u8>,
}

impl Events {
    /// The next event; `None` after the last.
    ///
    /// Safe to drop and call again: nothing that was read is lost.
    ///
    /// # Errors
    /// `vm.unreachable` when the connection breaks or carries something else.
    pub async fn next(&mut self) -> Result<Option<Event>, Observation> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let event = serde_json::from_slice(&line).map_err(|e| {
                    unreachable_vm(&self.name, format!("its event is not understood: {e}"))
                })?;
                return Ok(Some(event));
            }
            if self.read.len() > EVENT_LIMIT {
                return Err(unreachable_vm(&self.name, "its event has no end"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => return Err(unreachable_vm(&self.name, e)),
            }
        }
    }
}
