//! Client of a VM's control socket.

use std::io;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use migration::observation::{Observation, Side};
use migration::progress::{Event, LimitChange};
use migration::request::MigrateRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::body::{Accepted, MIGRATION_ID, MigrationStarted, ResolveBody, StateAnswer, StopBody};
use crate::instance::{StopMode, VmState, VmStatus};
use crate::job::{Job, Jobs};
use crate::runtime_dir::{Entry, RuntimeDir};

/// Longest that a process takes to listen, or to be gone once it listens no more.
const PASSING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a VM may take to tell its status, whatever else it does.
const STATUS: Duration = Duration::from_secs(5);
/// How often a VM that takes its time with something else is asked for its status meanwhile.
const WATCH: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const ANSWER_LIMIT: usize = 4 << 20;
/// Bytes of one event, far beyond what a VM ever tells at once.
const EVENT_LIMIT: usize = 64 << 20;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

fn json(body: &impl Serialize) -> Result<Vec<u8>, Observation> {
    serde_json::to_vec(body)
        .map_err(|e| Observation::new(Side::Client, "usage.body", e.to_string()))
}

/// Where a job is; what can be no identifier names none.
fn job_path(id: &str, what: &str) -> Result<String, Observation> {
    let is_id = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || !id.chars().all(is_id) {
        return Jobs::default().find(id).map(|job| job.id);
    }
    Ok(format!("/vm/jobs/{id}{what}"))
}

/// Talks to one VM; every request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) runtime: RuntimeDir,
    pub(crate) name: String,
}

pub(crate) fn unreachable_vm(name: &str, why: impl std::fmt::Display) -> Observation {
    Observation::new(
        Side::Client,
        "vm.unreachable",
        format!("the VM {name:?} does not answer: {why}"),
    )
}

/// What a process does that does not answer, as far as the kernel tells.
fn plight(pid: u32) -> &'static str {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything.
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    match state {
        Some('T' | 't') => ": it was stopped, and `kill -CONT` lets it go on",
        Some('D') => ": it waits in the kernel, as for storage that does not answer",
        _ => "",
    }
}

impl Client {
    /// A client of the VM called `name`.
    pub fn new(runtime: &RuntimeDir, name: &str) -> Self {
        Self {
            runtime: runtime.clone(),
            name: name.to_owned(),
        }
    }

    /// Waits for an answer for as long as it takes, provided that the VM answers at all.
    async fn watched<T>(
        &self,
        answer: impl Future<Output = Result<T, Observation>>,
    ) -> Result<T, Observation> {
        tokio::select! {
            // Whoever answers is not silent.
            biased;
            answer = answer => answer,
            why = self.silence() => Err(why),
        }
    }

    /// Asks for the status again and again; ends when there is none in time, and says so. What a VM that
    /// has ended leaves of its last answer tells more than this would.
    async fn silence(&self) -> Observation {
        loop {
            sleep(WATCH).await;
            let asked = self.exchange::<VmStatus>(Method::GET, "/vm", Vec::new());
            if timeout(STATUS, asked).await.is_err() {
                return self.not_responding(STATUS);
            }
        }
    }

    pub(crate) fn not_responding(&self, waited: Duration) -> Observation {
        let (who, plight) = match self.runtime.find(&self.name) {
            Ok(Entry::Live { pid }) => (format!("process {pid} of the VM"), plight(pid)),
            _ => ("the VM".to_owned(), ""),
        };
        let message = format!(
            "{who} {:?} has not answered in {waited:?}{plight}",
            self.name
        );
        Observation::new(Side::Client, "vm.not-responding", message)
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Observation> {
        let response = self.send(method, path, body, JSON).await?;
        self.read(response).await
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
    /// other soon. One that takes no connection in is waited for without end: who asks has a deadline.
    pub(crate) async fn connect(&self) -> Result<tokio::net::UnixStream, Observation> {
        let deadline = Instant::now() + PASSING;
        let stream = loop {
            let e = match self.runtime.connect_control(&self.name) {
                Ok(stream) => break stream,
                Err(e) => e,
            };
            if e.kind() == io::ErrorKind::WouldBlock {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            let gone = matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            );
            return Err(match self.runtime.find(&self.name) {
                Err(why) => why,
                Ok(Entry::Ended(_)) => Observation::new(
                    Side::Client,
                    "vm.ended",
                    format!("the VM {:?} has ended: see `vmm status {0}`", self.name),
                ),
                Ok(Entry::Unreadable(why)) => *why,
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

    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Observation> {
        let body = body.map(json).transpose()?.unwrap_or_default();
        self.watched(self.exchange(method, path, body)).await
    }

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

    /// `POST /vm/migration`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn migrate(&self, request: &MigrateRequest) -> Result<MigrationStarted, Observation> {
        self.call(Method::POST, "/vm/migration", Some(request))
            .await
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
    pub async fn resolve(&self, body: &ResolveBody) -> Result<StateAnswer, Observation> {
        self.call(Method::POST, "/vm/migration/resolve", Some(body))
            .await
    }

    /// `PATCH /vm/migration/limits`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn set_limits(&self, limits: &LimitChange) -> Result<Accepted, Observation> {
        self.call(Method::PATCH, "/vm/migration/limits", Some(limits))
            .await
    }

    /// `GET /vm/jobs`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn jobs(&self) -> Result<Jobs, Observation> {
        self.call(Method::GET, "/vm/jobs", None::<&()>).await
    }

    /// `GET /vm/jobs/ID`
    ///
    /// # Errors
    /// `job.not-found`, and as for [`Client::status`].
    pub async fn job(&self, id: &str) -> Result<Job, Observation> {
        let path = job_path(id, "")?;
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// `POST /vm/jobs/ID/cancel`
    ///
    /// # Errors
    /// `job.not-found`, `job.concluded`, `migration.committing`, and as for [`Client::status`].
    pub async fn cancel_job(&self, id: &str) -> Result<Job, Observation> {
        let path = job_path(id, "/cancel")?;
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// `PATCH /vm/jobs/ID/limits`
    ///
    /// # Errors
    /// As for [`Client::cancel_job`], and `job.no-limits`.
    pub async fn set_job_limits(&self, id: &str, limits: &LimitChange) -> Result<Job, Observation> {
        let path = job_path(id, "/limits")?;
        self.call(Method::PATCH, &path, Some(limits)).await
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
        let response = self
            .watched(self.send(Method::GET, path, Vec::new(), NDJSON))
            .await?;
        Ok(self.events_of(response))
    }

    /// `POST /vm/migration`, answered by the migration's events.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn migrate_and_follow(
        &self,
        request: &MigrateRequest,
    ) -> Result<Events, Observation> {
        let begin = async |request: &MigrateRequest| {
            self.watched(self.send(Method::POST, "/vm/migration", json(request)?, NDJSON))
                .await
        };
        let response = match begin(request).await {
            // A VM that was started by version 0.1 looks names up by itself, and knows no addresses.
            Err(why) if why.id == "usage.body" && !request.addresses.is_empty() => {
                let of_0_1 = MigrateRequest {
                    addresses: Vec::new(),
                    ..request.clone()
                };
                begin(&of_0_1).await?
            }
            begun => begun?,
        };
        Ok(self.events_of(response))
    }

    fn events_of(&self, response: Response<Incoming>) -> Events {
        let id = response.headers().get(MIGRATION_ID);
        Events {
            migration_id: id.and_then(|id| id.to_str().ok()).map(str::to_owned),
            client: self.clone(),
            body: response.into_body(),
            read: Vec::new(),
        }
    }
}

/// Events of a migration as they come in.
#[derive(Debug)]
pub struct Events {
    client: Client,
    migration_id: Option<String>,
    body: Incoming,
    read: Vec<u8>,
}

impl Events {
    /// Identifier of the migration, where these events are the answer to its request.
    pub fn migration_id(&self) -> Option<&str> {
        self.migration_id.as_deref()
    }

    /// The next event; `None` after the last.
    ///
    /// Safe to drop and call again: nothing that was read is lost.
    ///
    /// # Errors
    /// `vm.unreachable` when the connection breaks or carries something else; `vm.not-responding` when no
    /// event comes and the VM does not answer besides.
    pub async fn next(&mut self) -> Result<Option<Event>, Observation> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let event = serde_json::from_slice(&line).map_err(|e| {
                    unreachable_vm(
                        &self.client.name,
                        format!("its event is not understood: {e}"),
                    )
                })?;
                return Ok(Some(event));
            }
            if self.read.len() > EVENT_LIMIT {
                return Err(unreachable_vm(&self.client.name, "its event has no end"));
            }
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                why = self.client.silence() => return Err(why),
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => return Err(unreachable_vm(&self.client.name, e)),
            }
        }
    }
}
