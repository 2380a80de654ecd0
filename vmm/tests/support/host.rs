//! A host on which the command line drives VMs without a machine.
#![allow(dead_code)] // Each test file uses its part.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub const LIMIT: Duration = Duration::from_secs(30);

/// One "host".
pub struct Host {
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
    pub fn new() -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
        }
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        command.args(line.split_whitespace());
        command
            .env("VMM_RUNTIME_DIR", self.temp.path().join("rt"))
            .env_remove("VMM_STATE_DIR")
            .env_remove("VMM_LOG");
        command.stdin(Stdio::null());
        command
    }

    pub fn vmm(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub fn ok(&self, line: &str) -> String {
        let output = self.vmm(line);
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, line: &str) -> Vec<Value> {
        self.ok(line)
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    pub fn fails(&self, line: &str, code: i32, id: &str) {
        let output = self.vmm(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(id), "{line}: {said}");
    }

    /// Types on the console of a VM, and sees all that it shows until it ends.
    pub fn types(&self, name: &str, keys: &str) {
        let mut console = self
            .command(&format!("console {name}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = console.stdin.take().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        assert_eq!(end_of(console), Some(0));
    }

    /// Files that belong to no VM.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Process of a VM that runs.
    pub fn pid(&self, name: &str) -> Pid {
        let pid = self.json(&format!("status {name} --json"))[0]["pid"].as_i64();
        Pid::from_raw(pid.unwrap().try_into().unwrap()).unwrap()
    }

    /// The log of a VM's process.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder(name).join("vmm.log")).unwrap_or_default()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.temp.path().join("rt").join(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let listed = String::from_utf8(self.vmm("list --json").stdout).unwrap_or_default();
        for vm in listed
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            let name = vm["name"].as_str().unwrap_or_default();
            self.vmm(&format!("stop {name} --force"));
        }
    }
}

/// Waits until something is done.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Exit code of a process, once it has ended; `None` where a signal ended it.
pub fn end_of(mut child: Child) -> Option<i32> {
    let mut code = None;
    until("the process ends", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.unwrap().code()
}

/// Whether a process is still there; one that has ended and that nobody has waited for is not.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z')
    })
}

/// Sends a signal to a process of the test.
pub fn signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
}
