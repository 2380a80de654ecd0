//! The control API over a socket, with a VM without a machine.

#![allow(missing_docs, dead_code)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/served.rs"]
mod served;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::api::client::Client;
use control::api::{ControlServer, Hangup};
use control::instance::{StopMode, VmState};
use control::passed::{FileAccess, FileKind, FileNote, FilesSocket};
use control::runtime_dir::RuntimeDir;
use migration::progress::{Event, LimitChange};
use migration::request::MigrateRequest;
use migration::units::{Rate, Span};
use served::{Host, block_on};

#[test]
fn a_vm_is_paused_resumed_and_stopped() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        assert_eq!(client.status().await.unwrap().state, VmState::Running);
        assert_eq!(client.pause().await.unwrap().state, VmState::Paused);
        assert_eq!(client.resume().await.unwrap().state, VmState::Running);
        assert_eq!(
            client.stop(StopMode::Graceful).await.unwrap().state,
            VmState::Stopped
        );
        assert_eq!(client.pause().await.unwrap_err().id, "vm.wrong-state");
    });
}

#[test]
fn waiting_ends_with_the_state_or_the_time() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        assert_eq!(
            client.wait(VmState::Running, 1).await.unwrap(),
            VmState::Running
        );
        let vm = Arc::clone(&host.vm);
        let waiting = client.wait(VmState::Running, 60_000);
        let change = async {
            tokio::task::yield_now().await;
            vm.set(VmState::Stopped, None);
        };
        let (state, ()) = tokio::join!(waiting, change);
        assert_eq!(state.unwrap(), VmState::Stopped);
    });
}

#[test]
fn a_migration_is_followed_to_its_report() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        assert_eq!(client.events().await.unwrap_err().id, "migration.none");
        client
            .migrate(&MigrateRequest::new("unix:/ok"))
            .await
            .unwrap();
        let mut events = client.events().await.unwrap();
        let mut seen = Vec::new();
        while let Some(event) = events.next().await.unwrap() {
            seen.push(event);
        }
        assert_eq!(seen.len(), 5);
        assert!(matches!(seen.last(), Some(Event::Completed(report)) if report.verified));
    });
    let request = host.vm.request().unwrap();
    assert_eq!(request, MigrateRequest::new("unix:/ok"));
}

#[test]
fn a_name_comes_with_what_it_stands_for() {
    let host = Host::new(VmState::Running);
    let body = "{\"to\":\"named:7\",\"addresses\":[\"192.0.2.1:7\",\"[2001:db8::1]:7\"],\"insecure\":true}";
    assert_eq!(host.post("POST", "/vm/migration", body).0, 202);
    let request = host.vm.request().unwrap();
    assert_eq!(request.to, "named:7");
    let sockets = request.addresses.iter().map(ToString::to_string);
    assert_eq!(
        sockets.collect::<Vec<_>>(),
        ["192.0.2.1:7", "[2001:db8::1]:7"]
    );
}

/// The command line may be newer than the process of a VM that runs for long.
#[test]
fn a_vm_that_knows_no_addresses_is_asked_without_them() {
    let temp = tempfile::tempdir().unwrap();
    let runtime = RuntimeDir::at(temp.path().join("rt")).unwrap();
    let dir = runtime.create(Some("old"), "vm").unwrap();
    let listener = dir.bind_control().unwrap();
    let answers = [
        (
            "400 Bad Request",
            "{\"id\":\"usage.body\",\"message\":\"unknown field `addresses`\",\"side\":\"source\",\"at_us\":1}",
        ),
        ("200 OK", "{\"event\":\"phase\",\"phase\":\"negotiate\"}\n"),
    ];
    let server = std::thread::spawn(move || {
        answers.map(|(status, body)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            let mut byte = [0];
            // The body is the last that comes, and ends with its brace.
            while !asked.contains("\r\n\r\n{") || !asked.ends_with('}') {
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0].into());
            }
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .unwrap();
            asked
        })
    });
    let request = MigrateRequest {
        addresses: vec!["192.0.2.1:7".parse().unwrap()],
        ..MigrateRequest::new("named:7")
    };
    let first = block_on(async {
        let client = Client::new(&runtime, "old");
        client.migrate_and_follow(&request).await?.next().await
    });
    assert!(matches!(first, Ok(Some(Event::Phase { .. }))), "{first:?}");
    let asked = server.join().unwrap();
    assert!(asked[0].contains("192.0.2.1:7"), "{}", asked[0]);
    assert!(!asked[1].contains("addresses"), "{}", asked[1]);
}

#[test]
fn a_running_migration_is_steered_and_cancelled() {
    let host = Host::new(VmState::Running);
    block_on(async {
        let client = host.client();
        client
            .migrate(&MigrateRequest::new("unix:/slow"))
            .await
            .unwrap();
        let mut events = client.events().await.unwrap();
        for _ in 0..4 {
            events.next().await.unwrap().unwrap();
        }
        let limits = LimitChange {
            downtime_limit: Some(Span(Duration::from_millis(50))),
            bandwidth: Some(Rate(None)),
            ..LimitChange::default()
        };
        client.set_limits(&limits).await.unwrap();
        assert_eq!(host.vm.limits(), Some(limits));
        client.cancel().await.unwrap();
        assert!(matches!(events.next().await, Ok(Some(Event::Cancelled(_)))));
        assert!(matches!(events.next().await, Ok(None)));
    });
}

#[test]
fn wrong_requests_get_one_clear_error() {
    let host = Host::new(VmState::Running);
    let big = format!("{{\"to\":\"{}\"}}", "x".repeat(100 << 10));
    for (method, path, body, status, id) in [
        ("GET", "/nothing", "", 404, "usage.endpoint"),
        ("DELETE", "/vm", "", 405, "usage.method"),
        ("POST", "/vm/stop", "", 400, "usage.body"),
        (
            "POST",
            "/vm/stop",
            "{\"mode\":\"rudely\"}",
            400,
            "usage.body",
        ),
        (
            "POST",
            "/vm/migration",
            "{\"to\":\"unix:/ok\",\"compress\":\"lz4\"}",
            400,
            "usage.body",
        ),
        (
            "POST",
            "/vm/migration",
            "{\"to\":\"unix:/ok\",\"streams\":99}",
            400,
            "usage.streams",
        ),
        (
            "POST",
            "/vm/migration",
            "{\"to\":\"127.0.0.1:0\"}",
            400,
            "usage.address",
        ),
        (
            "POST",
            "/vm/migration",
            "{\"to\":\"fd:3\"}",
            400,
            "usage.address",
        ),
        // A name that nobody has looked up.
        (
            "POST",
            "/vm/migration",
            "{\"to\":\"host:7\"}",
            400,
            "usage.address",
        ),
        (
            "POST",
            "/vm/migration/resolve",
            "{\"addresses\":[\"host:7\"]}",
            400,
            "usage.body",
        ),
        (
            "POST",
            "/vm/migration",
            "{\"to\":\"unix:/none\"}",
            400,
            "usage.address",
        ),
        ("POST", "/vm/migration", &big, 413, "usage.body-size"),
        ("POST", "/vm/migration/resolve", "", 409, "vm.wrong-state"),
        ("POST", "/vm/migration/cancel", "", 404, "migration.none"),
        ("PATCH", "/vm/migration/limits", "{}", 400, "usage.body"),
        ("GET", "/vm/jobs/7", "", 404, "job.not-found"),
        ("GET", "/vm/jobs/%ff", "", 404, "job.not-found"),
        ("GET", "/vm/jobs/", "", 404, "usage.endpoint"),
        ("PUT", "/vm/jobs", "", 405, "usage.method"),
        ("POST", "/vm/jobs/7/cancel", "", 404, "job.not-found"),
        (
            "PATCH",
            "/vm/jobs/7/limits",
            "{\"bandwidth_bytes_per_s\":7}",
            404,
            "job.not-found",
        ),
        ("PATCH", "/vm/jobs/7/limits", "{}", 400, "usage.body"),
        (
            "PATCH",
            "/vm/jobs/7/limits",
            "{\"writes\":7}",
            400,
            "usage.body",
        ),
        ("GET", "/vm/wait", "", 400, "usage.query"),
        (
            "GET",
            "/vm/wait?seen=running&timeout_ms=-1",
            "",
            400,
            "usage.query",
        ),
        (
            "GET",
            "/vm/wait?seen=running&timeout_ms=1&x=1",
            "",
            400,
            "usage.query",
        ),
    ] {
        let (code, answer) = host.post(method, path, body);
        assert_eq!(code, status, "{method} {path}: {answer}");
        let error: serde_json::Value = serde_json::from_str(&answer).expect(&answer);
        assert_eq!(error["id"], id, "{method} {path}");
    }
}

#[test]
fn garbage_on_the_socket_hurts_nobody() {
    let host = Host::new(VmState::Running);
    for garbage in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = host.runtime.connect_control("a").unwrap();
        let _ = stream.write_all(garbage.as_bytes());
    }
    assert_eq!(
        block_on(host.client().status()).unwrap().state,
        VmState::Running
    );
}

#[test]
fn clients_that_wait_do_not_keep_others_from_control() {
    let host = Host::new(VmState::Running);
    let waiting: Vec<_> = (0..80)
        .map(|_| {
            let mut stream = host.runtime.connect_control("a").unwrap();
            let line = "GET /vm/wait?seen=running&timeout_ms=600000 HTTP/1.1\r\nhost: a\r\n\r\n";
            stream.write_all(line.as_bytes()).unwrap();
            stream
        })
        .collect();
    block_on(async {
        assert_eq!(host.client().pause().await.unwrap().state, VmState::Paused);
        assert_eq!(
            host.client().resume().await.unwrap().state,
            VmState::Running
        );
    });
    drop(waiting);
}

#[test]
fn the_document_names_every_endpoint_and_error() {
    let host = Host::new(VmState::Running);
    let document = block_on(host.client().openapi()).unwrap();
    for path in [
        "/vm",
        "/vm/pause",
        "/vm/resume",
        "/vm/stop",
        "/vm/wait",
        "/vm/migration",
        "/vm/migration/events",
        "/vm/migration/cancel",
        "/vm/migration/resolve",
        "/vm/migration/limits",
        "/vm/jobs",
        "/vm/jobs/{id}",
        "/vm/jobs/{id}/events",
        "/vm/jobs/{id}/cancel",
        "/vm/jobs/{id}/limits",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert!(document["paths"]["/vm/jobs"]["post"].is_object());
    for schema in [
        "Observation",
        "Event",
        "Report",
        "VmStatus",
        "MigrateBody",
        "ResolveBody",
        "LimitsBody",
        "Job",
        "Jobs",
        "JobRequest",
    ] {
        assert!(
            document["components"]["schemas"][schema].is_object(),
            "{schema}"
        );
    }
}

#[test]
fn the_last_answers_are_given_before_the_server_ends() {
    let mut host = Host::new(VmState::Running);
    let mut stream = host.runtime.connect_control("a").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let line = "GET /vm/wait?seen=running&timeout_ms=600000 HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(line.as_bytes()).unwrap();
    // Its own answer shows that the request before it was taken.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline && block_on(host.client().status()).is_err() {}
    host.vm.set(VmState::Migrated, None);
    host.server.take().unwrap().finish();
    let files = FilesSocket::bind(&host.runtime.path().join("other-files.sock")).unwrap();
    let server = ControlServer::start(another_socket(&host), files, Hangup::Ignored);
    host.server = Some(server.unwrap());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.contains("\"migrated\""), "{answer}");
}

fn another_socket(host: &Host) -> std::os::unix::net::UnixListener {
    std::os::unix::net::UnixListener::bind(host.runtime.path().join("other.sock")).unwrap()
}

#[test]
fn files_are_passed_and_named_by_their_identifiers() {
    let host = Host::new(VmState::Running);
    let path = host.runtime.path().join("disk.raw");
    std::fs::write(&path, "content").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let note = |access| FileNote {
        kind: FileKind::Disk,
        access,
        name: path.display().to_string(),
    };
    block_on(async {
        let client = host.client();
        let mut passer = client.passer().await.unwrap();
        let two = [
            (note(FileAccess::Read), file.as_fd()),
            (note(FileAccess::Read), file.as_fd()),
        ];
        let ids = passer.pass(&two).await.unwrap();
        let kept = client.kept_files().await.unwrap().files;
        assert_eq!(kept.len(), 2);
        assert!(ids.iter().all(|id| kept.iter().any(|file| file.id == *id)));
        assert_eq!(kept[0].name, path.display().to_string());
        let refused = passer
            .pass(&[(note(FileAccess::ReadWrite), file.as_fd())])
            .await;
        assert_eq!(refused.unwrap_err().id, "file.access");
        let nine: Vec<_> = (0..9)
            .map(|_| (note(FileAccess::Read), file.as_fd()))
            .collect();
        let refused = passer.pass(&nine).await;
        assert_eq!(refused.unwrap_err().id, "file.too-many");
        client.let_go_file(ids[0]).await.unwrap();
        assert_eq!(
            client.let_go_file(ids[0]).await.unwrap_err().id,
            "file.unknown"
        );
        assert_eq!(client.kept_files().await.unwrap().files.len(), 1);
        drop(passer);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !client.kept_files().await.unwrap().files.is_empty() {
            assert!(Instant::now() < deadline, "what nobody has taken is kept");
        }
    });
    let (status, body) = host.post("DELETE", "/vm/files/1", "");
    assert_eq!(
        (status, body.contains("usage.file-id")),
        (400, true),
        "{body}"
    );
    let (status, _) = host.post("DELETE", &format!("/vm/files/{}", "0".repeat(32)), "");
    assert_eq!(status, 404);
}

#[test]
fn a_vm_of_an_earlier_version_takes_no_files() {
    let host = Host::new(VmState::Running);
    std::fs::remove_file(host.runtime.path().join("a/files.sock")).unwrap();
    block_on(async {
        let refused = host.client().passer().await.unwrap_err();
        assert_eq!(refused.id, "file.not-taken");
    });
}
