//! What a test does with the VMs of a host.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::console::Console;
use super::guest::Guest;
use super::leftovers;
use super::wait::{PATIENCE, eventually, holds};
use crate::Host;
use crate::process::Outcome;

/// Kills one process that belongs to a test.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Ends one process that belongs to a test, as a crash does, and waits until nothing holds what it had.
///
/// # Panics
/// When it is not gone within [`super::wait::PATIENCE`].
#[track_caller]
pub fn crash(pid: u32) {
    kill(pid);
    // Its files are closed some time after its memory is gone; its first thread may be a zombie while others end.
    let proc = PathBuf::from(format!("/proc/{pid}"));
    holds("the process is gone", || {
        let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
        let threads = fs::read_dir(proc.join("task")).map_or(0, Iterator::count);
        stat.is_empty() || stat.contains(") Z ") && threads <= 1
    });
}

/// Sends a signal to one process that belongs to a test.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// The VMs of a host.
pub trait Vms {
    /// Folder of a VM.
    fn folder(&self, vm: &str) -> PathBuf;

    /// Starts a guest and follows its console; it has set everything up when this returns.
    fn run(&self, vm: &str, guest: &Guest) -> Console {
        self.run_with(vm, guest, |_| ())
    }

    /// As [`Vms::run`], with a command that is changed before.
    fn run_with(&self, vm: &str, guest: &Guest, change: impl FnOnce(&mut Command)) -> Console;

    /// Waits for a guest at `listen` under the name `vm`; the address to send it to.
    fn receive(&self, vm: &str, listen: &str) -> String {
        self.receive_with(vm, listen, &[])
    }

    /// As [`Vms::receive`], with more arguments.
    fn receive_with(&self, vm: &str, listen: &str, more: &[&str]) -> String;

    /// Status of a VM that exists.
    fn status(&self, vm: &str) -> Value;

    /// Jobs of a VM, the oldest first.
    fn jobs(&self, vm: &str) -> Vec<Value>;

    /// State of a VM; `None` when there is none of this name.
    fn state(&self, vm: &str) -> Option<String>;

    /// Waits until the VM is in `state`.
    fn wait_state(&self, vm: &str, state: &str);

    /// Process of a VM.
    fn pid(&self, vm: &str) -> u32;

    /// Types a byte on the guest's console.
    fn press(&self, vm: &str, key: u8);

    /// How a VM ended: its last status.
    fn ended(&self, vm: &str) -> Value;
    /// Checks that a receiver goes on waiting after a migration that failed, with nothing of it left; why
    /// it failed.
    fn waits_on(&self, vm: &str) -> Value;

    /// Ends a receiver that may still wait, or not, after a migration that failed; nothing is left then.
    fn waits_no_more(&self, vm: &str);

    /// Ends a VM by force.
    fn stop(&self, vm: &str);

    /// Ends the process of a VM as a crash does, and waits until nothing holds what it had: it may be run again.
    fn crash(&self, vm: &str);

    /// Waits until no process of the host is left, and checks that nothing else is but how its VMs ended.
    fn is_clean(&self);

    /// As [`Vms::is_clean`] after a process was killed, which tells nothing: whoever comes next does.
    fn is_swept(&self);

    /// Shows the ends of all logs, for whoever has to find out why a test failed.
    fn tell(&self);
}

impl Vms for Host {
    fn folder(&self, vm: &str) -> PathBuf {
        self.runtime_dir().join(vm)
    }

    #[track_caller]
    fn run_with(&self, vm: &str, guest: &Guest, change: impl FnOnce(&mut Command)) -> Console {
        let mut command = self.command(guest.run_args(vm));
        change(&mut command);
        let run = self.start(command).finish(PATIENCE);
        let _ = run.unwrap_or_else(|e| panic!("{e:#}")).success();
        let mut console = Console::of(self, vm);
        console.wait_ready();
        console
    }

    #[track_caller]
    fn receive_with(&self, vm: &str, listen: &str, more: &[&str]) -> String {
        let mut args = vec!["receive", "--listen", listen, "--name", vm, "--detach"];
        args.extend(more);
        let _ = self.vmm(args).success();
        let status = self.status(vm);
        assert_eq!(status["state"], "incoming", "{status}");
        status["listen"]
            .as_str()
            .expect("address in the status")
            .to_owned()
    }

    #[track_caller]
    fn status(&self, vm: &str) -> Value {
        one_json(&self.vmm(["status", vm, "--json"]).success())
    }

    #[track_caller]
    fn jobs(&self, vm: &str) -> Vec<Value> {
        self.vmm(["jobs", vm, "--json"]).success().json_lines()
    }

    #[track_caller]
    fn state(&self, vm: &str) -> Option<String> {
        let run = self.vmm(["status", vm, "--json"]);
        (run.code() == 0).then(|| one_json(&run)["state"].as_str().expect("state").to_owned())
    }

    #[track_caller]
    fn wait_state(&self, vm: &str, state: &str) {
        eventually(&format!("{vm} becomes {state}"), || {
            (self.state(vm).as_deref() == Some(state)).then_some(())
        });
    }

    #[track_caller]
    fn pid(&self, vm: &str) -> u32 {
        let status = self.status(vm);
        status["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .expect("pid")
    }

    #[track_caller]
    fn press(&self, vm: &str, key: u8) {
        let mut console =
            UnixStream::connect(self.folder(vm).join("console.sock")).expect("console");
        console.write_all(&[key]).expect("console takes a key");
    }

    #[track_caller]
    fn crash(&self, vm: &str) {
        crash(self.pid(vm));
    }

    #[track_caller]
    fn ended(&self, vm: &str) -> Value {
        let waited = self.vmm(["wait", vm, "--json"]);
        let status = waited.json_lines().into_iter().next();
        let status = status.unwrap_or_else(|| panic!("no status in {waited}"));
        assert!(status["end"]["how"].is_string(), "{status:#}");
        assert_eq!(self.status(vm), status);
        status
    }

    #[track_caller]
    fn waits_on(&self, vm: &str) -> Value {
        let mut status = Value::Null;
        holds("the receiver waits on", || {
            status = self.status(vm);
            status["failed_migrations"].as_u64() > Some(0)
        });
        assert_eq!(status["state"], "incoming", "{status:#}");
        let pid = self.pid(vm);
        holds("it has nothing of the migration", || {
            leftovers::memories(pid) == 0 && leftovers::machines(pid) == 0
        });
        status["last_failure"].clone()
    }

    #[track_caller]
    fn waits_no_more(&self, vm: &str) {
        if self.state(vm).is_some() {
            // It may end by itself at this moment.
            let _ = self.vmm(["stop", vm, "--force"]);
        }
        self.is_clean();
    }

    #[track_caller]
    fn stop(&self, vm: &str) {
        let _ = self.vmm(["stop", vm, "--force"]).success();
    }

    #[track_caller]
    fn is_clean(&self) {
        holds("all processes of the host end", || {
            self.processes().is_empty()
        });
        let left = leftovers::folders(&self.runtime_dir());
        assert!(left.is_empty(), "left on the host: {left:?}");
    }

    #[track_caller]
    fn is_swept(&self) {
        holds("all processes of the host end", || {
            self.processes().is_empty()
        });
        // A process is gone before the kernel has closed the lock that it held on its folder.
        holds("list tells how killed VMs ended", || {
            let _ = self.vmm(["list"]).success();
            leftovers::folders(&self.runtime_dir()).is_empty()
        });
        self.is_clean();
    }

    fn tell(&self) {
        let entries = fs::read_dir(self.runtime_dir());
        for folder in entries.into_iter().flatten().flatten().map(|e| e.path()) {
            for log in ["vmm.log", "serial.log", "end.json"] {
                let path = folder.join(log);
                if let Ok(text) = fs::read(&path) {
                    let text = String::from_utf8_lossy(&text);
                    let lines: Vec<_> = text.lines().collect();
                    let tail = lines[lines.len().saturating_sub(12)..].join("\n  ");
                    eprintln!("{}:\n  {tail}", path.display());
                }
            }
        }
    }
}

/// Standard output as the one JSON value that it must be.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn one_json(run: &Outcome) -> Value {
    let mut values = run.json_lines();
    assert_eq!(values.len(), 1, "one JSON line expected: {run}");
    values.remove(0)
}

/// What went wrong: one line that begins with the program's name, and below it, indented, why.
///
/// # Panics
/// When standard error holds anything else.
#[track_caller]
pub fn error_text(run: &Outcome) -> String {
    // What an older kernel cannot limit is told first.
    let mut lines = run
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("vmm: warning: "));
    let first = lines.find(|line| line.starts_with("vmm: "));
    let mut text = first
        .unwrap_or_else(|| panic!("no error line in {run}"))
        .to_owned();
    for line in lines {
        // What a failed migration means for the VM.
        if line.starts_with("vmm: ") && line.ends_with(" was not moved") {
            continue;
        }
        assert!(
            line.trim_start().starts_with("because "),
            "{line:?} is no part of one error in {run}"
        );
        text.push_str(line);
    }
    assert!(!run.stderr.contains("panicked"), "{run}");
    text
}

/// Checks that a run failed with `code` and one error that has all of `words`.
///
/// # Panics
/// When it did not.
#[track_caller]
pub fn fails(run: Outcome, code: i32, words: &[&str]) {
    let run = run.expect_code(code);
    let text = error_text(&run).to_lowercase();
    for word in words {
        assert!(
            text.contains(&word.to_lowercase()),
            "{word:?} is missing in {run}"
        );
    }
}
