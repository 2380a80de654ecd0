//! The command line as a user drives it, over a VM without a machine.

#![allow(missing_docs)]

#[path = "support/host.rs"]
mod host;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use host::{Host, end_of, until};
use serde_json::Value;

#[test]
fn a_detached_vm_is_there_as_soon_as_run_returns() {
    let host = Host::new();
    for i in 1..=5 {
        assert!(
            host.ok("run --detach --cpus 4 --memory 128MiB")
                .contains(&format!("vm-{i} runs"))
        );
        let status = &host.json(&format!("status vm-{i} --json"))[0];
        assert_eq!(status["state"], "running");
        assert_eq!(status["cpus"], 4);
        assert_eq!(status["memory_bytes"], 128 << 20);
    }
    assert_eq!(host.json("list --json").len(), 5);
    assert!(host.ok("list").contains("vm-5"));
}

#[test]
fn a_stopped_vm_is_told_of_until_it_is_forgotten() {
    let host = Host::new();
    for (line, by) in [("stop a", "stop"), ("stop a --force", "stop --force")] {
        host.ok("run a --detach");
        assert!(host.ok(line).contains(&format!("stopped by `vmm {by}`")));
        let status = &host.json("status a --json")[0];
        assert_eq!(status["state"], "stopped");
        assert_eq!(status["end"]["how"], "stopped");
        assert_eq!(status["end"]["by"], by);
        assert_eq!(status["cpus"], 1);
        assert!(
            host.ok("status a")
                .contains(&format!("ended      stopped by `vmm {by}`, "))
        );
        assert_eq!(host.ok("list --json"), "");
        assert_eq!(host.json("list --all --json"), std::slice::from_ref(status));
        assert!(host.ok("list --all").contains("stopped by"));
        // It is over: nothing is to be done, and nothing can be.
        assert_eq!(host.json("wait a --json"), std::slice::from_ref(status));
        assert!(host.ok("stop a --force").contains("stopped by"));
        for line in [
            "pause a",
            "console a",
            "migrate a --to unix:/ok",
            "migrate a --cancel",
        ] {
            host.fails(line, 1, "vm.ended");
        }
        host.fails("wait a --state running", 1, "vm.ended");
        assert_eq!(&host.json("status a --json")[0], status);
    }
    assert!(host.ok("forget a").contains("forgotten"));
    assert!(!host.folder("a").exists());
    for line in ["status a", "logs a", "forget a", "stop a"] {
        host.fails(line, 1, "vm.not-found");
    }
    assert_eq!(host.ok("list --all --json"), "");
}

#[test]
fn a_name_is_free_when_its_end_is_told() {
    let host = Host::new();
    for _ in 0..20 {
        host.ok("run a --detach");
        // By a client that waits for nothing but the answer.
        let mut control = UnixStream::connect(host.folder("a").join("control.sock")).unwrap();
        let body = "{\"mode\":\"force\"}";
        write!(
            control,
            "POST /vm/stop HTTP/1.1\r\nhost: vmm\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = [0; 12];
        control.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        host.ok("run a --detach");
        let waiting = host.command("wait a --json").spawn().unwrap();
        host.ok("stop a");
        assert_eq!(end_of(waiting), Some(0));
        let ended = &host.json("list --all --json")[0];
        assert_eq!(ended["end"]["by"], "stop", "{ended}");
    }
}

#[test]
fn logs_are_read_and_followed_until_the_end_and_afterwards() {
    let host = Host::new();
    host.ok("run a --detach");
    let following = |line: &str| host.command(line).stdout(Stdio::piped()).spawn().unwrap();
    let console = following("logs a --follow");
    let lines = following("logs a --console -f --json");
    let log = following("logs a --vmm --follow");
    assert_eq!(host.ok("logs a"), "hello from the guest\n");
    assert!(host.ok("logs a --vmm").contains("the VM is up"));
    host.types("a", "once\npoweroff\n");
    let said = |child: Child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let all = "hello from the guest\nonce\npoweroff\n";
    assert_eq!(said(console), all);
    let objects: Vec<Value> = said(lines)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let expected: Vec<_> = all
        .lines()
        .map(|line| serde_json::json!({ "line": line }))
        .collect();
    assert_eq!(objects, expected);
    assert!(said(log).contains("the VM has ended"));
    for line in ["logs a", "logs a --follow", "logs a --console"] {
        assert_eq!(host.ok(line), all);
    }
    host.fails("logs a --console --vmm", 2, "");
    host.fails("logs b", 1, "vm.not-found");
}

#[test]
fn nothing_is_removed_that_vmm_did_not_make() {
    let host = Host::new();
    let album = host.folder("photos").join("2019");
    std::fs::create_dir_all(&album).unwrap();
    std::fs::write(album.join("a.jpg"), "x").unwrap();
    std::fs::create_dir(host.folder("empty")).unwrap();
    for name in ["photos", "empty"] {
        host.ok("list");
        host.ok("list --all");
        for command in [
            "status", "stop", "wait", "console", "logs", "forget", "pause", "jobs",
        ] {
            host.fails(&format!("{command} {name}"), 1, "vm.not-found");
        }
        for line in [
            format!("run {name}"),
            format!("run {name} --detach"),
            format!("receive --listen 127.0.0.1:0 --detach --name {name}"),
        ] {
            host.fails(&line, 1, "vm.foreign-folder");
        }
        assert!(host.folder(name).is_dir());
    }
    assert_eq!(std::fs::read(album.join("a.jpg")).unwrap(), b"x");
}

#[test]
fn a_live_vm_whose_files_were_cleaned_away_is_still_found() {
    let host = Host::new();
    host.ok("run a --detach");
    for file in ["pid", ".vmm", "serial.log", "vmm.log"] {
        std::fs::remove_file(host.folder("a").join(file)).unwrap();
        assert_eq!(host.json("list --json")[0]["state"], "running");
        assert_eq!(host.json("status a --json")[0]["state"], "running");
        host.fails("run a", 1, "vm.name-in-use");
        host.fails("forget a", 1, "vm.name-in-use");
    }
    host.ok("stop a");
    assert_eq!(host.json("status a --json")[0]["end"]["how"], "stopped");
    host.ok("run a --detach");
}

#[test]
fn errors_have_their_exit_codes() {
    let host = Host::new();
    host.ok("run a --detach");
    for (line, code, id) in [
        ("run a", 1, "vm.name-in-use"),
        ("run a --detach", 1, "vm.name-in-use"),
        ("run b --cmdline no-kvm", 5, "host.no-kvm"),
        ("run b --cmdline no-kvm --detach", 5, "host.no-kvm"),
        ("run b --cmdline bad-kernel --detach", 1, "boot.kernel"),
        ("run b --cmdline die --detach", 1, "vm.start"),
        ("run -b", 2, ""),
        ("run a/b --detach", 2, "usage.name"),
        ("run b --config /nowhere.toml", 2, "usage.config"),
        ("run b --memory 4097", 2, "usage.memory"),
        ("receive --listen here", 2, "usage.listen"),
        ("status none", 1, "vm.not-found"),
        ("migrate none --to unix:/ok", 1, "vm.not-found"),
        ("migrate a --to unix:/elsewhere", 2, "usage.address"),
        ("migrate a --cancel", 1, "migration.none"),
        ("resume none", 1, "vm.not-found"),
    ] {
        host.fails(line, code, id);
    }
    assert!(!host.folder("b").exists());
    let output = host.vmm("run a --json");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["error"]["id"], "vm.name-in-use");
    assert_eq!(error["exit_code"], 1);
}

#[test]
fn a_killed_vm_frees_its_name() {
    let host = Host::new();
    let child = host.command("run a").stdout(Stdio::null()).spawn().unwrap();
    until("the VM runs", || host.vmm("status a").status.success());
    let mut child = child;
    child.kill().unwrap();
    child.wait().unwrap();
    let status = &host.json("status a --json")[0];
    assert_eq!(status["state"], "failed");
    assert_eq!(status["end"]["how"], "killed");
    assert_eq!(status["error"]["id"], "vm.killed");
    assert!(!host.folder("a").join("control.sock").exists());
    assert_eq!(host.ok("logs a"), "hello from the guest\n");
    host.fails("wait a", 1, "vm.killed");
    host.ok("run a --detach");
}

#[test]
fn a_detached_vm_that_fails_leaves_its_reason() {
    let host = Host::new();
    host.ok("run a --detach");
    host.types("a", "crash\n");
    host.fails("wait a", 1, "guest.crashed");
    let status = &host.json("status a --json")[0];
    assert_eq!(status["state"], "failed");
    assert_eq!(status["error"]["id"], "guest.crashed");
    assert_eq!(status["end"]["how"], "crashed");
    assert!(host.ok("list --all").contains("crashed"));
    assert_eq!(host.ok("logs a"), "hello from the guest\ncrash\n");
    assert!(host.ok("logs a --vmm").contains("the VM failed"));
    host.ok("stop a");
    assert_eq!(&host.json("status a --json")[0], status);
}

#[test]
fn the_console_shows_what_was_printed_and_takes_keys() {
    let host = Host::new();
    host.ok("run a --detach");
    let mut console = host
        .command("console a")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    console
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"poweroff\n")
        .unwrap();
    let mut seen = String::new();
    console
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut seen)
        .unwrap();
    assert_eq!(seen, "hello from the guest\npoweroff\n");
    assert_eq!(end_of(console), Some(0));
}

#[test]
fn the_foreground_is_the_console_and_ends_with_the_guest() {
    let host = Host::new();
    let mut run = host
        .command("run a")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin
        .as_mut()
        .unwrap()
        .write_all(b"poweroff\n")
        .unwrap();
    let mut seen = String::new();
    run.stdout
        .take()
        .unwrap()
        .read_to_string(&mut seen)
        .unwrap();
    assert_eq!(seen, "hello from the guest\npoweroff\n");
    assert_eq!(end_of(run), Some(0));

    let mut run = host
        .command("run a")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    run.stdin.as_mut().unwrap().write_all(b"crash\n").unwrap();
    assert_eq!(end_of(run), Some(1));
    assert_eq!(host.json("status a --json")[0]["end"]["how"], "crashed");
}

#[test]
fn signals_stop_the_guest_gracefully_then_by_force() {
    let host = Host::new();
    for cmdline in ["hears", "deaf"] {
        let run = host
            .command(&format!("run a --cmdline {cmdline}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The one before has left its end under the name.
        until("the VM runs", || !host.json("list --json").is_empty());
        let pid = rustix::process::Pid::from_child(&run);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(end_of(run), Some(0), "{cmdline}");
        let status = &host.json("status a --json")[0];
        assert_eq!(status["end"]["by"], "SIGTERM", "{status}");
    }
}

#[test]
fn stopping_a_deaf_guest_says_what_to_do() {
    let host = Host::new();
    host.ok("run a --cmdline deaf --detach");
    host.fails("stop a", 1, "guest.no-power-off");
    assert_eq!(host.json("status a --json")[0]["state"], "running");
}

#[test]
fn receive_returns_when_it_listens() {
    let host = Host::new();
    assert_eq!(
        host.ok("receive --listen 127.0.0.1:0 --detach"),
        "incoming-1 listens at 127.0.0.1:4711\n"
    );
    let status = &host.json("status incoming-1 --json")[0];
    assert_eq!(status["state"], "incoming");
    assert_eq!(status["listen"], "127.0.0.1:4711");
    host.fails("wait incoming-1 --timeout 10ms", 1, "vm.wait-timeout");
    host.fails("stop incoming-1", 1, "vm.wrong-state");
    host.ok("stop incoming-1 --force");
    // There is nothing to tell of one that nobody named.
    host.fails("status incoming-1", 1, "vm.not-found");
    host.ok("receive --listen 127.0.0.1:0 --name b --detach");
    host.ok("stop b --force");
    assert_eq!(host.json("status b --json")[0]["end"]["how"], "stopped");
}

#[test]
fn migrations_end_with_their_exit_codes() {
    let host = Host::new();
    host.ok("run a --detach");
    let events = host.json("migrate a --to unix:/ok --plan --json");
    assert_eq!(events.last().unwrap()["event"], "completed");
    assert!(
        host.ok("migrate a --to unix:/ok --plan")
            .contains("can move")
    );
    host.fails(
        "migrate a --to unix:/fail",
        1,
        "at the destination no such disk [disk.open]",
    );
    assert_eq!(host.json("status a --json")[0]["state"], "running");
    let output = host.vmm("migrate a --to unix:/unknown");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--resolve"));
    assert!(host.ok("migrate a --resolve").contains("running"));
    assert!(host.ok("migrate a --to unix:/ok").contains("verified  yes"));
    let status = &host.json("status a --json")[0];
    assert_eq!(status["state"], "migrated");
    assert_eq!(status["end"]["to"], "unix:/ok");
    assert!(host.ok("wait a").contains("moved to unix:/ok"));
    // The guest lives on, elsewhere: it is not stopped.
    host.fails("stop a --force", 1, "moved to unix:/ok");
}

#[test]
fn a_success_is_a_success_however_its_events_arrive() {
    let host = Host::new();
    host.ok("run a --detach");
    for to in ["unix:/long", "unix:/mute"] {
        assert!(
            host.ok(&format!("migrate a --to {to}"))
                .contains("verified  yes"),
            "{to}"
        );
        let events = host.json(&format!("migrate a --to {to} --json"));
        assert_eq!(events.last().unwrap()["event"], "completed", "{to}");
    }
}

#[test]
fn an_interrupt_cancels_the_migration_and_not_the_guest() {
    let host = Host::new();
    host.ok("run a --detach");
    let mut migrate = host
        .command("migrate a --to unix:/slow --json")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = migrate.stdout.take().unwrap();
    // The first event tells that it runs and that signals are heard.
    stdout.read_exact(&mut [0]).unwrap();
    let pid = rustix::process::Pid::from_child(&migrate);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut events = String::new();
    stdout.read_to_string(&mut events).unwrap();
    assert!(
        events
            .lines()
            .last()
            .unwrap()
            .contains("\"event\":\"cancelled\""),
        "{events}"
    );
    assert_eq!(end_of(migrate), Some(4));
    assert_eq!(host.json("status a --json")[0]["state"], "running");
}

#[test]
fn a_job_is_followed_to_its_end_which_the_exit_code_tells() {
    let host = Host::new();
    host.ok("run a --detach");
    let id = "0123456789abcdef0123456789abcdef";
    let _ = host.vmm("migrate a --to unix:/fail");
    let follow = format!("jobs a {id} --follow");
    let failed = host.vmm(&follow);
    assert_eq!(failed.status.code(), Some(1));
    let told = String::from_utf8_lossy(&failed.stdout);
    assert!(
        told.contains("failed\n") && told.contains("[disk.open]"),
        "{told}"
    );
    host.fails(&format!("{follow} --cancel"), 2, "--cancel");
    host.fails("jobs a 7 --follow", 1, "job.not-found");
    let mut migrate = host.command("migrate a --to unix:/slow --json");
    let mut migrate = migrate.stdout(Stdio::piped()).spawn().unwrap();
    migrate
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0])
        .unwrap();
    let mut followed = host.command(&format!("{follow} --json"));
    let mut followed = followed.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    let stdout = followed.stdout.as_mut().unwrap();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    host.ok(&format!("jobs a {id} --cancel"));
    stdout.read_to_string(&mut told).unwrap();
    let last = told.lines().last().unwrap();
    assert!(last.contains("\"outcome\":\"cancelled\""), "{told}");
    assert_eq!((end_of(followed), end_of(migrate)), (Some(4), Some(4)));
}

#[test]
fn completions_and_man_pages_are_generated() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(host.ok(&format!("completions {shell}")).contains("migrate"));
    }
    let man = host.path().join("man");
    host.ok(&format!("man {}", man.display()));
    for page in ["vmm.1", "vmm-run.1", "vmm-migrate.1"] {
        assert!(man.join(page).exists(), "{page}");
    }
}

#[test]
fn logs_are_filtered_and_formatted() {
    let host = Host::new();
    let mut run = host
        .command("run a --log-format json -v")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.as_mut().unwrap().write_all(b"crash\n").unwrap();
    let mut log = String::new();
    run.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    end_of(run);
    assert!(
        log.lines()
            .any(|l| serde_json::from_str::<Value>(l).is_ok()),
        "{log}"
    );
}

#[test]
fn output_that_cannot_be_written_is_told_by_the_exit_code() {
    let host = Host::new();
    host.ok("run a --detach");
    for line in [
        "list",
        "list --json",
        "status a",
        "completions bash",
        "--version",
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let output = host.command(line).stdout(full.unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains("[output.write]"), "{line}: {said}");
    }
    // A reader that has seen enough is no failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = host.command("list").stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    host.ok("stop a --force");
}
