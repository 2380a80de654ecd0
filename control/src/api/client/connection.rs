//! The client, and how a request gets to its VM.

use std::io;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use migration::observation::{Observation, Side};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::instance::VmStatus;
use crate::runtime_dir::{Entry, RuntimeDir};

/// Longest that a process takes to listen, or to be gone once it listens no more.
pub(super) const PASSING: Duration = Duration::from_secs(2);
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a VM may take to tell its status, whatever else it does.
pub(super) const STATUS: Duration = Duration::from_secs(5);
/// How often a VM that takes its time with something else is asked for its status meanwhile.
const WATCH: Duration = Duration::from_secs(2);
/// Bytes of an answer.
const ANSWER_LIMIT: usize = 4 << 20;

const JSON: &str = "application/json";

pub(super) fn json(body: &impl Serialize) -> Result<Vec<u8>, Observation> {
    serde_json::to_vec(body)
        .map_err(|e| Observation::new(Side::Client, "usage.body", e.to_string()))
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
    pub(super) async fn watched<T>(
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
    pub(super) async fn silence(&self) -> Observation {
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

    pub(super) async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Observation> {
        let response = self.send(method, path, body, JSON).await?;
        self.read(response).await
    }

    pub(super) async fn send(
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
}
