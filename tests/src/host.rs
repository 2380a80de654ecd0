//! A "host": a run-time directory of its own, so that several fit on one machine.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

use crate::binary;
use crate::eventually;
use crate::last_version;
use crate::network::Namespace;
use crate::process::{Outcome, Process};

/// Variable by which `vmm` finds its run-time directory.
const RUNTIME_VARIABLE: &str = "VMM_RUNTIME_DIR";
/// Variable that would make this machine's hosts share their records.
const STATE_VARIABLE: &str = "VMM_STATE_DIR";

/// Longest that a command may take which a test does not expect to wait.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// A host to run VMs on. When it is dropped, also by a failing test, every process that was started on
/// it is killed and its files are removed.
#[derive(Debug)]
pub struct Host {
    dir: tempfile::TempDir,
    binary: PathBuf,
    network: Option<Arc<Namespace>>,
    /// Variables of the environment that its commands do not see.
    hidden: &'static [&'static str],
    /// Variables that they are given.
    variables: Vec<(&'static str, String)>,
}

impl Host {
    /// A host with no VMs, running the `vmm` of this workspace.
    ///
    /// # Errors
    /// When `vmm` cannot be built or a temporary directory cannot be made.
    pub fn new() -> Result<Self> {
        Self::with_binary(binary::vmm()?)
    }

    /// A host with no VMs that runs the `vmm` of the version before this one. Its sandbox is as by default,
    /// whatever this run of the tests is to have: it cannot be mended any more.
    ///
    /// # Errors
    /// As [`last_version::vmm`], or when a temporary directory cannot be made.
    pub fn of_last_version() -> Result<Self> {
        let mut host = Self::with_binary(last_version::vmm()?)?;
        host.hidden = &["VMM_SANDBOX"];
        Ok(host)
    }

    /// A host with no VMs that runs `binary`.
    ///
    /// # Errors
    /// When a temporary directory cannot be made.
    pub fn with_binary(binary: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("vmm-host-")
            .tempdir()
            .context("make a temporary directory for a host")?;
        std::fs::create_dir(dir.path().join("run")).context("make the run-time directory")?;
        std::fs::create_dir(dir.path().join("output")).context("make the output directory")?;
        Ok(Self {
            dir,
            binary: binary.to_path_buf(),
            network: None,
            hidden: &[],
            variables: Vec::new(),
        })
    }

    /// The same host, on a network of its own instead of the machine's.
    #[must_use]
    pub fn within(self, network: Arc<Namespace>) -> Self {
        // `Self` ends processes when dropped, so it is changed and not taken apart.
        let mut this = self;
        this.network = Some(network);
        this
    }

    /// The same host, whose commands are given this variable.
    #[must_use]
    pub fn with(mut self, variable: &'static str, value: &str) -> Self {
        self.variables.push((variable, value.to_owned()));
        self
    }

    /// Directory for files of the test (sockets, disks); removed with the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `VMM_RUNTIME_DIR` of this host.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Log of a VM's serial port; empty as long as there is none.
    #[must_use]
    pub fn serial(&self, name: &str) -> String {
        let path = self.runtime_dir().join(name).join("serial.log");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// A `vmm` command on this host, to be changed before it is started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command(&self.binary),
            None => Command::new(&self.binary),
        };
        command
            .args(args)
            .env(RUNTIME_VARIABLE, self.runtime_dir())
            .env_remove(STATE_VARIABLE)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        for variable in self.hidden {
            command.env_remove(variable);
        }
        command
    }

    /// Runs a `vmm` command to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end within [`COMMAND_DEADLINE`].
    #[track_caller]
    pub fn vmm<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.vmm_within(COMMAND_DEADLINE, args)
    }

    /// Runs a `vmm` command to its end, which must come within `deadline`.
    ///
    /// # Panics
    /// When it cannot be started or does not end in time.
    #[track_caller]
    pub fn vmm_within<S: AsRef<OsStr>>(
        &self,
        deadline: Duration,
        args: impl IntoIterator<Item = S>,
    ) -> Outcome {
        match self.start(self.command(args)).finish(deadline) {
            Ok(outcome) => outcome,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Starts a `vmm` command and lets it run.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Process {
        self.start(self.command(args))
    }

    /// Starts a command that was made by [`Host::command`] and lets it run.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(&self, command: Command) -> Process {
        match Process::start(command, &self.dir.path().join("output")) {
            Ok(process) => process,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Processes of this host that are alive, detached ones included.
    ///
    /// They are known by their environment, which a daemon inherits whatever it does to its parentage.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut wanted = format!("{RUNTIME_VARIABLE}=").into_bytes();
        wanted.extend_from_slice(self.runtime_dir().as_os_str().as_encoded_bytes());
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            // A zombie's environment reads as empty, so it does not count as alive.
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|item| item == wanted))
        })
        .collect()
    }

    /// Names of what lies in the run-time directory, sorted: what a finished VM must not leave.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.runtime_dir())
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn kill_all(&self) {
        for pid in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended since it was seen.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Again and again, because one of them may have just started another, and one that changes
        // its program has no environment for a moment.
        let mut looks_without_one = 0;
        let gone = eventually(Duration::from_secs(10), || {
            self.kill_all();
            let none = self.processes().is_empty();
            looks_without_one = if none { looks_without_one + 1 } else { 0 };
            (looks_without_one == 3).then_some(())
        });
        if gone.is_none() {
            eprintln!(
                "processes of {} outlive their host",
                self.dir.path().display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell_host() -> Host {
        Host::with_binary(Path::new("/bin/sh")).unwrap()
    }

    /// A process that changes its program has no environment for a moment, so it is waited for.
    fn wait_for_process(host: &Host) -> Vec<u32> {
        eventually(Duration::from_secs(60), || {
            Some(host.processes()).filter(|processes| processes.len() == 1)
        })
        .unwrap()
    }

    #[test]
    fn command_sees_the_run_time_directory_of_its_host() {
        let host = shell_host();
        let outcome = host.vmm(["-c", "echo $VMM_RUNTIME_DIR"]).success();
        assert_eq!(
            outcome.stdout.trim_end(),
            host.runtime_dir().to_str().unwrap()
        );
    }

    #[test]
    fn detached_process_is_found_and_ends_with_its_host() {
        let host = shell_host();
        let _ = host
            .vmm(["-c", "sleep 600 >/dev/null 2>&1 & echo $!"])
            .success();
        let processes = wait_for_process(&host);
        drop(host);
        let path = format!("/proc/{}/environ", processes[0]);
        assert!(std::fs::read(path).unwrap_or_default().is_empty());
    }

    #[test]
    fn hosts_do_not_see_each_other() {
        let (one, other) = (shell_host(), shell_host());
        let _process = one.spawn(["-c", "exec sleep 600"]);
        assert_eq!(wait_for_process(&one).len(), 1);
        assert!(other.processes().is_empty());
    }

    #[test]
    fn serial_log_of_an_unknown_vm_is_empty() {
        let host = shell_host();
        assert_eq!(host.serial("nobody"), "");
        assert!(host.leftovers().is_empty());
    }
}
