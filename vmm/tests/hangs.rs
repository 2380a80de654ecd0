//! Commands have their time, whatever the process of a VM does or lacks.

#![allow(missing_docs)]

#[path = "support/host.rs"]
mod host;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use host::{Host, is_alive, signal, until};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};

/// Raises the number of files that this test may open.
fn open_many() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, most).unwrap();
}

fn open_files(pid: Pid) -> usize {
    let files = format!("/proc/{}/fd", pid.as_raw_nonzero());
    std::fs::read_dir(files).unwrap().count()
}

fn limit_files(pid: Pid, current: u64) -> Rlimit {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    prlimit(Some(pid), Resource::Nofile, limit).unwrap()
}

#[test]
fn every_command_returns_though_the_vm_does_not_answer() {
    let host = Host::new();
    host.ok("run a --detach");
    host.ok("run b --detach");
    let pid = host.pid("a");
    signal(pid, Signal::STOP);
    let silent = "vm.not-responding";
    let commands = [
        ("status a", 1, silent),
        ("pause a", 1, silent),
        ("resume a", 1, silent),
        ("stop a", 1, silent),
        ("console a", 1, silent),
        ("migrate a --to unix:/ok", 1, silent),
        ("migrate a --cancel", 1, silent),
        ("migrate a --resolve", 1, silent),
        ("migrate a --set bandwidth=1MiB/s", 1, silent),
        ("wait a --timeout 200ms", 1, "vm.wait-timeout"),
        ("run a --detach", 1, "vm.name-in-use"),
        ("list", 0, ""),
    ];
    let running: Vec<_> = commands
        .iter()
        .map(|(line, ..)| {
            let mut command = host.command(line);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for ((line, code, id), mut child) in commands.into_iter().zip(running) {
        until(line, || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(id), "{line}: {said}");
        if id == silent {
            assert!(said.contains("stopped"), "{line} does not say why: {said}");
        }
        if line == "list" {
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(shown.contains("a     does not answer"), "{shown}");
            assert!(shown.contains("b     running"), "{shown}");
        }
    }
    signal(pid, Signal::CONT);
}

#[test]
fn stop_by_force_ends_a_vm_that_does_not_answer() {
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    signal(pid, Signal::STOP);
    let began = Instant::now();
    assert!(host.ok("stop a --force").contains("killed"));
    // Five seconds, and what a busy machine adds.
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    until("the process ends", || !is_alive(pid));
    host.ok("run a --detach");
    assert_ne!(host.pid("a"), pid);
}

/// Fills the queue of a socket whose process takes nobody in.
fn fill_queue(socket: &Path) -> Vec<rustix::fd::OwnedFd> {
    let address = SocketAddrUnix::new(socket).unwrap();
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(rustix::io::Errno::AGAIN) => return waiting,
            Err(e) => panic!("{e}"),
        }
    }
}

/// A path that a socket's address can hold.
fn short(host: &Host, socket: &str) -> PathBuf {
    let link = host.path().join("f");
    let _ = std::os::unix::fs::symlink(host.folder("a"), &link);
    link.join(socket)
}

#[test]
fn a_full_queue_of_the_socket_holds_nobody_up() {
    open_many();
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    signal(pid, Signal::STOP);
    let waiting = fill_queue(&short(&host, "control.sock"));
    assert!(!waiting.is_empty());
    host.fails("status a", 1, "vm.not-responding");
    host.fails("wait a --timeout 100ms", 1, "vm.wait-timeout");
    signal(pid, Signal::CONT);
    assert_eq!(host.json("status a --json")[0]["state"], "running");
    drop(waiting);
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    open_many();
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    let socket = short(&host, "control.sock");
    // One that waits for an answer is not among those whose place is needed.
    let waiting = host
        .command("wait a --json")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut idle = Vec::new();
    for n in 0..1300 {
        let mut client = UnixStream::connect(&socket).unwrap();
        match n % 3 {
            0 => {}
            1 => client.write_all(b"GET /vm HTTP/1.1\r\nho").unwrap(),
            // Was answered, and stays.
            _ => {
                let _ = client.write_all(b"GET /vm HTTP/1.1\r\nhost: a\r\n\r\n");
                let _ = client.read(&mut [0; 16]);
            }
        }
        idle.push(client);
        if n % 100 == 0 {
            assert_eq!(host.json("status a --json")[0]["state"], "running");
        }
    }
    assert_eq!(host.json("status a --json")[0]["state"], "running");
    let files = open_files(pid);
    assert!(
        files < 256,
        "{files} files are open for clients that say nothing"
    );
    host.ok("stop a");
    let ended = waiting.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

/// Nanoseconds that the threads called `name` have had a processor.
fn ran(pid: Pid, name: &str) -> u64 {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    let tasks = std::fs::read_dir(tasks).unwrap().flatten();
    tasks
        .filter(|task| {
            let comm = std::fs::read_to_string(task.path().join("comm"));
            comm.is_ok_and(|comm| comm.trim() == name)
        })
        .map(|task| {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn a_vm_that_is_out_of_descriptors_neither_spins_nor_stays_deaf() {
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    let before = limit_files(pid, 3);
    let viewer = UnixStream::connect(short(&host, "console.sock")).unwrap();
    let client = UnixStream::connect(short(&host, "control.sock")).unwrap();
    until("it is told", || {
        let log = host.log("a");
        log.contains("viewer") && log.contains("client")
    });
    for thread in ["console", "control"] {
        let from = ran(pid, thread);
        std::thread::sleep(Duration::from_secs(2));
        let took = Duration::from_nanos(ran(pid, thread) - from);
        assert!(
            took < Duration::from_millis(200),
            "{thread} ran for {took:?}"
        );
    }
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    assert_eq!(host.json("status a --json")[0]["state"], "running");
    let mut shown = [0; 5];
    (&viewer).read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"hello");
    drop(client);
}

#[test]
fn a_migration_whose_vm_hangs_is_not_called_failed() {
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    let mut command = host.command("migrate a --to unix:/slow");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut migrate = command.spawn().unwrap();
    until("it has begun", || {
        host.json("status a --json")[0]["migration"].is_object()
    });
    signal(pid, Signal::STOP);
    until("it is given up", || migrate.try_wait().unwrap().is_some());
    signal(pid, Signal::CONT);
    let output = migrate.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for id in ["migration.outcome-unknown", "vm.not-responding"] {
        assert!(said.contains(id), "{id}: {said}");
    }
}
