//! The command line as a user drives it, over a VM without a machine.

#![allow(missing_docs)]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// One "host".
struct Host {
    temp: tempfile::TempDir,
}

/// The example binary beside the real one.
fn program() -> PathBuf {
    let real = Path::new(env!("CARGO_BIN_EXE_vmm"));
    let program = real.parent().unwrap().join("examples/fake_vmm");
    assert!(
        program.exists(),
        "{} is built by `cargo test -p vmm`",
        program.display()
    );
    program
}

impl Host {
    fn new() -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        command.args(line.split_whitespace());
        command
            .env("VMM_RUNTIME_DIR", self.temp.path().join("rt"))
            .env_remove("VMM_STATE_DIR")
            .env_remove("VMM_LOG");
        command.stdin(Stdio::null());
        command
    }

    fn vmm(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.vmm(line);
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Vec<Value> {
        self.ok(line)
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    fn fails(&self, line: &str, code: i32, id: &str) {
        let output = self.vmm(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(id), "{line}: {said}");
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.temp.path().join("rt").join(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for vm in self.json("list --json") {
            let name = vm["name"].as_str().unwrap().to_owned();
            self.vmm(&format!("stop {name} --force"));
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end_of(mut child: Child) -> Option<i32> {
    let mut code = None;
    until("the process ends", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.unwrap().code()
}

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
fn a_stopped_vm_leaves_nothing() {
    let host = Host::new();
    host.ok("run a --detach");
    assert!(host.ok("stop a").contains("stopped"));
    assert!(!host.folder("a").exists());
    host.ok("run a --detach");
    host.ok("stop a --force");
    host.fails("status a", 1, "vm.not-found");
    assert_eq!(host.ok("list --json"), "");
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
    assert!(host.folder("a").exists());
    host.fails("status a", 1, "vm.not-found");
    assert!(!host.folder("a").exists());
    host.ok("run a --detach");
}

#[test]
fn a_detached_vm_that_fails_leaves_its_reason() {
    let host = Host::new();
    host.ok("run a --detach");
    let mut console = host
        .command("console a")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    console
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"crash\n")
        .unwrap();
    assert_eq!(end_of(console), Some(0));
    host.fails("wait a", 1, "guest.crashed");
    let status = &host.json("status a --json")[0];
    assert_eq!(status["state"], "failed");
    assert_eq!(status["error"]["id"], "guest.crashed");
    assert!(host.folder("a").join("vmm.log").exists());
    host.ok("stop a");
    assert!(!host.folder("a").exists());
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
    assert!(!host.folder("a").exists());
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
        until("the VM runs", || host.vmm("status a").status.success());
        let pid = rustix::process::Pid::from_child(&run);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(end_of(run), Some(0), "{cmdline}");
        assert!(!host.folder("a").exists());
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
    host.fails("status a", 1, "vm.not-found");
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
fn completions_and_man_pages_are_generated() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(host.ok(&format!("completions {shell}")).contains("migrate"));
    }
    let man = host.temp.path().join("man");
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
