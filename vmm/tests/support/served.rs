//! A control socket with a VM without a machine behind it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use control::api::client::Client;
use control::api::{ControlServer, Hangup};
use control::instance::VmState;
use control::runtime_dir::{RuntimeDir, VmDir};

use super::fake::Fake;

pub struct Host {
    _temp: tempfile::TempDir,
    pub runtime: RuntimeDir,
    _dir: VmDir,
    pub vm: Arc<Fake>,
    pub server: Option<ControlServer>,
}

impl Host {
    pub fn new(state: VmState) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(temp.path().join("rt")).unwrap();
        let dir = runtime.create(Some("a"), "vm").unwrap();
        let vm = Arc::new(Fake::new("a", state, false));
        let mut server = ControlServer::start(
            dir.bind_control().unwrap(),
            dir.bind_files().unwrap(),
            Hangup::Ignored,
        )
        .unwrap();
        server.serve(Arc::clone(&vm) as _);
        Self {
            _temp: temp,
            runtime,
            _dir: dir,
            vm,
            server: Some(server),
        }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.runtime, "a")
    }

    /// Sends raw bytes and returns status code and body.
    pub fn raw(&self, request: &str) -> (u16, String) {
        let (status, _, body) = self.answer(request);
        (status, body)
    }

    /// Sends raw bytes and returns status code, head and body.
    pub fn answer(&self, request: &str) -> (u16, String, String) {
        let mut stream = self.runtime.connect_control("a").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // The server may answer and close before it has read all of a wrong request.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).expect(&answer).parse().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, format!("{head}\r\n"), body.to_owned())
    }

    pub fn post(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.take().unwrap().finish();
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
