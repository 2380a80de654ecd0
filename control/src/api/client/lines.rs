//! Answers that come line by line, for as long as there is something to tell.

use std::marker::PhantomData;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method};
use migration::observation::Observation;
use serde::de::DeserializeOwned;

use super::connection::{Client, unreachable_vm};
use crate::api::body::NDJSON;

/// Bytes of one line, far beyond what a VM ever tells at once.
const LINE_LIMIT: usize = 64 << 20;

impl Client {
    /// Sends a request that is answered by lines.
    pub(super) async fn lines<T>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Lines<T>, Observation> {
        let response = self.watched(self.send(method, path, body, NDJSON)).await?;
        let (head, body) = response.into_parts();
        Ok(Lines {
            client: self.clone(),
            headers: head.headers,
            body,
            read: Vec::new(),
            carries: PhantomData,
        })
    }
}

/// What a VM tells, one object a line, as it comes in.
#[derive(Debug)]
pub struct Lines<T> {
    client: Client,
    headers: HeaderMap,
    body: Incoming,
    read: Vec<u8>,
    carries: PhantomData<fn() -> T>,
}

impl<T> Lines<T> {
    /// What the head of the answer says.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next line; `None` after the last.
    ///
    /// Safe to drop and call again: nothing that was read is lost.
    ///
    /// # Errors
    /// `vm.unreachable` when the connection breaks or carries something else; `vm.not-responding` when no
    /// line comes and the VM does not answer besides.
    pub async fn next(&mut self) -> Result<Option<T>, Observation> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let told = serde_json::from_slice(&line).map_err(|e| {
                    let why = format!("what it tells is not understood: {e}");
                    unreachable_vm(&self.client.name, why)
                })?;
                return Ok(Some(told));
            }
            if self.read.len() > LINE_LIMIT {
                return Err(unreachable_vm(&self.client.name, "its line has no end"));
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
