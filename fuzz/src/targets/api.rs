//! The control socket: HTTP as it comes in, and the JSON of requests and answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use control::api::body::{JobRequest, ResolveBody, StopBody, WaitQuery};
use control::api::{ControlServer, Hangup};
use control::disk_move::{DiskMoveFiles, DiskMoveRequest};
use control::instance::{
    Ending, Instance, MigrationStatus, Requester, StopMode, VmEnd, VmState, VmStatus,
};
use control::job::{Job, JobState, Jobs};
use control::on_demand::OnDemandChange;
use control::passed::{FilesSocket, PassedFile};
use migration::observation::{Observation, Side};
use migration::progress::{Event, LimitChange, Limits, Report};
use migration::request::MigrateRequest;
use migration::steering::Events;
use migration::wire::control::Resolution;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::seeds::texts;
use crate::{Memory, Target};

const MEMORY: Memory = Memory {
    // What is asked for with the fewest bytes is the description of the whole API, which is made for each who asks.
    base: 16 << 20,
    per_byte: 1 << 10,
};

/// Bytes that a client sends.
pub(super) const HTTP: Target = Target {
    name: "http",
    run: http,
    seeds: http_seeds,
    words: &[
        "GET ",
        "POST ",
        "PATCH ",
        "/vm",
        "/vm/migration",
        "/vm/jobs",
        "/events",
        "/vm/wait?seen=running&timeout_ms=0",
        " HTTP/1.1\r\n",
        "\r\n\r\n",
        "content-length: ",
        "transfer-encoding: chunked\r\n",
        "accept: application/x-ndjson\r\n",
        "expect: 100-continue\r\n",
        "%00",
        "0\r\n\r\n",
    ],
    longest: 2048,
    memory: MEMORY,
};

/// Bodies of requests and of answers.
pub(super) const JSON: Target = Target {
    name: "json",
    run: json,
    seeds: json_seeds,
    words: &[
        "\"to\":",
        "\"kind\":\"migration\"",
        "\"kind\":\"disk-move\"",
        "\"causes\":[",
        "\"downtime_limit_ms\":",
        "\"mode\":\"force\"",
        "null",
        "1e999",
        "\"event\":",
        "\"phase\"",
        "\"report\":",
        "18446744073709551615",
        "-0.0",
    ],
    longest: 4096,
    memory: MEMORY,
};

/// A VM that agrees to everything at once.
struct Agreeable;

impl Instance for Agreeable {
    fn status(&self) -> VmStatus {
        VmStatus {
            name: "guest".into(),
            state: VmState::Running,
            pid: 1,
            cpus: 1,
            memory_bytes: 1 << 20,
            disks: Vec::new(),
            uptime_ms: 5,
            listen: None,
            migration: None,
            error: None,
            end: None,
            failed_migrations: 0,
            last_failure: None,
        }
    }

    fn pause(&self) -> Result<(), Observation> {
        Ok(())
    }

    fn resume(&self) -> Result<(), Observation> {
        Err(Observation::new(Side::Source, "vm.busy", "not now"))
    }

    fn stop(&self, _: StopMode, _: Requester) -> Result<(), Observation> {
        Ok(())
    }

    fn migrate(
        &self,
        request: MigrateRequest,
        _: Vec<Vec<PassedFile>>,
    ) -> Result<String, Observation> {
        request.endpoint()?;
        Ok("0".repeat(32))
    }

    fn migration_events(&self) -> Option<Events> {
        let (events, receiver) = Events::channel();
        events.tell(Event::Completed(Report::default()));
        Some(receiver)
    }

    fn cancel_migration(&self) -> Result<(), Observation> {
        Ok(())
    }

    fn jobs(&self) -> Jobs {
        let events = [Event::Completed(Report::default())];
        Jobs {
            jobs: vec![Job::of_migration("0".repeat(32), &events)],
        }
    }

    fn wait_job(&self, id: &str, _: JobState, _: Duration) -> Result<Job, Observation> {
        self.jobs().find(id)
    }

    fn cancel_job(&self, id: &str) -> Result<(), Observation> {
        self.jobs().find(id).map(drop)
    }

    fn set_job_limits(&self, id: &str, _: LimitChange) -> Result<(), Observation> {
        self.jobs().find(id).map(drop)
    }

    fn pause_job(&self, id: &str) -> Result<(), Observation> {
        self.jobs().find(id).map(drop)
    }

    fn resume_job(&self, id: &str) -> Result<(), Observation> {
        self.jobs().find(id).map(drop)
    }

    fn move_disk(
        &self,
        _: &str,
        request: DiskMoveRequest,
        _: DiskMoveFiles,
    ) -> Result<(), Observation> {
        self.jobs().find(&request.id).map(drop)
    }

    fn set_limits(&self, _: LimitChange) -> Result<(), Observation> {
        Ok(())
    }

    fn change_on_demand(&self, _: &str, _: OnDemandChange) -> Result<(), Observation> {
        Ok(())
    }

    fn resolve(&self, _: Vec<SocketAddr>) -> Result<VmState, Observation> {
        Ok(VmState::Paused)
    }

    fn wait_change(&self, seen: VmState, _: Duration) -> VmState {
        // Never the one that was seen, so that no request waits.
        if seen == VmState::Running {
            VmState::Stopped
        } else {
            VmState::Running
        }
    }

    fn wait_end(&self, _: &VmStatus, _: Duration) -> Option<VmStatus> {
        None
    }

    fn own_status(&self) -> VmStatus {
        self.status()
    }

    fn close_door(&self) {}

    fn tell_end(&self) {}
}

/// The socket of a server that lives as long as this process.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let files = FilesSocket::bind(&folder.path().join("files.sock")).expect("a socket");
        let mut server = ControlServer::start(listener, files, Hangup::Ignored).expect("a server");
        server.serve(Arc::new(Agreeable));
        // The server ends with the process; its folder goes when its last user does.
        FOLDER.set(folder).expect("set once");
        static SERVER: OnceLock<std::sync::Mutex<ControlServer>> = OnceLock::new();
        let _ = SERVER.set(std::sync::Mutex::new(server));
        path
    })
}

static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();

fn http(bytes: &[u8]) {
    let mut stream = UnixStream::connect(socket()).expect("the server listens");
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    // It may have closed already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if let Err(error) = read
        && error.kind() == std::io::ErrorKind::WouldBlock
    {
        panic!("the server neither answers nor closes");
    }
    if let Some(status) = answer.strip_prefix(b"HTTP/1.1 ") {
        assert!(!status.starts_with(b"5") || status.starts_with(b"503"));
    }
}

fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nhost: vmm\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body.as_bytes()].concat()
}

const DISK_MOVE: &str = r#"{"kind":"disk-move","disk":"data","id":"00000000000000000000000000000000","file":"00112233445566778899aabbccddeeff","path":"/b","format":"raw","content":"blank","reach":"this-host"}"#;

fn http_seeds() -> Vec<Vec<u8>> {
    let follow = "accept: application/x-ndjson\r\n";
    vec![
        request("GET /vm", "", ""),
        request("POST /vm/pause", "", ""),
        request("POST /vm/resume", "", ""),
        request("POST /vm/stop", "", r#"{"mode":"force"}"#),
        request("GET /vm/wait?seen=running&timeout_ms=5", "", ""),
        request("POST /vm/migration", "", r#"{"to":"h:1","streams":4}"#),
        request("POST /vm/migration", follow, r#"{"to":"h:1"}"#),
        request("GET /vm/migration/events", follow, ""),
        request("POST /vm/migration/cancel", "", ""),
        request("POST /vm/migration/resolve", "", ""),
        request(
            "PATCH /vm/migration/limits",
            "",
            r#"{"downtime_limit_ms":5}"#,
        ),
        request("GET /vm/jobs", "", ""),
        request("GET /vm/jobs/0", "", ""),
        request(
            "GET /vm/jobs/00000000000000000000000000000000/events",
            follow,
            "",
        ),
        request("POST /vm/jobs", "", r#"{"kind":"migration","to":"h:1"}"#),
        request(
            "POST /vm/jobs",
            follow,
            r#"{"kind":"migration","to":"h:1"}"#,
        ),
        request("POST /vm/jobs", "", DISK_MOVE),
        request("POST /vm/jobs/0/cancel", "", ""),
        request(
            "PATCH /vm/jobs/0/limits",
            "",
            r#"{"bandwidth_bytes_per_s":5}"#,
        ),
        request("GET /openapi.json", "", ""),
        b"POST /vm/stop HTTP/1.1\r\nhost: v\r\ntransfer-encoding: chunked\r\n\r\n\
          5\r\n{\"mod\r\nb\r\ne\":\"force\"}\r\n0\r\n\r\n"
            .to_vec(),
    ]
}

/// What is read is written as the same again.
fn again<T: Serialize + DeserializeOwned>(text: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(text).ok()?;
    let written = serde_json::to_value(&value).expect("what was read can be written");
    let read: T = serde_json::from_value(written.clone()).expect("what was written can be read");
    let rewritten = serde_json::to_value(&read).expect("what was read can be written");
    assert_eq!(rewritten, written);
    Some(value)
}

fn json(bytes: &[u8]) {
    if let Some(request) = again::<MigrateRequest>(bytes) {
        let _ = request.endpoint();
    }
    if let Some(change) = again::<LimitChange>(bytes) {
        let _ = Limits::default().changed(&change);
    }
    again::<JobRequest>(bytes);
    again::<StopBody>(bytes);
    again::<ResolveBody>(bytes);
    again::<WaitQuery>(bytes);
    again::<VmStatus>(bytes);
    again::<Jobs>(bytes);
    again::<Event>(bytes);
    if let Some(observation) = again::<Observation>(bytes) {
        let _ = (observation.root().id.len(), observation.to_string());
        let _ = control::api::http_status(&observation);
        let _ = control::output::explain(&observation);
    }
}

fn json_seeds() -> Vec<Vec<u8>> {
    let cause = Observation::new(Side::Source, "disk.open", "no such file");
    let failure = Observation::new(Side::Client, "vm.failed", "it failed").caused_by(cause);
    let report = Report {
        error: Some(failure.clone()),
        ..Report::default()
    };
    let status = VmStatus {
        migration: Some(MigrationStatus {
            id: Some("0".repeat(32)),
            to: Some("host:7".into()),
            last: Some(Event::Cancelled(report.clone())),
            resolution: Some(Resolution::NeverRan),
        }),
        end: Some(VmEnd {
            by: Some("stop".into()),
            to: Some("h:1".into()),
            ..VmEnd::new(Ending::Stopped)
        }),
        failed_migrations: 2,
        last_failure: Some(failure.clone()),
        ..Agreeable.status()
    };
    let mut seeds = texts(&[
        r#"{"to":"h:1","downtime_limit_ms":50,"bandwidth_bytes_per_s":5,"streams":4,"timeout_ms":7,"on_timeout":"stop","verify":"full","insecure":true,"plan":true}"#,
        r#"{"downtime_limit_ms":5,"bandwidth_bytes_per_s":0}"#,
        r#"{"mode":"graceful"}"#,
        r#"{"kind":"migration","to":"h:1","streams":4}"#,
        DISK_MOVE,
        r#"{"to":"h:1","disks":[{"mode":"precopy"},{"id":"data","mode":"auto","format":"qcow2","after":"delete"}]}"#,
        r#"{"seen":"paused","timeout_ms":3}"#,
    ]);
    let values = [
        serde_json::to_vec(&failure),
        serde_json::to_vec(&status),
        serde_json::to_vec(&Event::Failed(report)),
    ];
    seeds.extend(values.into_iter().flatten());
    seeds
}
