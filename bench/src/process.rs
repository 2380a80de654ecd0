//! Processes of this benchmark: each is ended by its id when it is dropped.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::error::BenchError;
use super::proc::Process;
use super::{interrupt, lifeline};

/// Most bytes of a failed command's standard error that are shown.
const STDERR_SHOWN: u64 = 2000;

/// A command that runs; killed and waited for when dropped.
pub(super) struct Running {
    child: Child,
    command: String,
    stderr: PathBuf,
}

impl Running {
    /// Starts `command`, called `shown` in errors. Its standard error goes to `stderr`, a new file.
    pub fn start(
        mut command: Command,
        shown: String,
        stderr: PathBuf,
        stdout: Stdio,
    ) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Process {
            action: "start",
            command: shown.clone(),
            source,
        };
        let errors = File::create_new(&stderr).map_err(failed)?;
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(errors)
            // Ctrl-C at the terminal reaches the benchmark only, which ends the others.
            .process_group(0);
        lifeline::tie(&mut command);
        let child = command.spawn().map_err(failed)?;
        Ok(Self {
            child,
            command: shown,
            stderr,
        })
    }

    /// The command as a user would type it.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// What `/proc` tells of it.
    pub fn proc(&self) -> Process {
        Process::new(self.child.id())
    }

    /// Its standard output, once, when it was started with a pipe.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Fails when the process has ended, or the benchmark is to end.
    pub fn check(&mut self) -> Result<(), BenchError> {
        interrupt::check()?;
        if self.has_ended()? {
            Err(self.ended())
        } else {
            Ok(())
        }
    }

    /// Whether the process has ended. It stays in `/proc` until it is dropped or waited for.
    pub fn has_ended(&self) -> Result<bool, BenchError> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let pid = rustix::process::Pid::from_child(&self.child);
        let status = waitid(WaitId::Pid(pid), options).map_err(|e| self.cannot_wait(e.into()))?;
        Ok(status.is_some())
    }

    /// Waits until the process has ended, without forgetting it.
    pub fn wait_ended(&mut self, deadline: Duration) -> Result<(), BenchError> {
        let until = Instant::now() + deadline;
        while !self.has_ended()? {
            interrupt::check()?;
            if Instant::now() >= until {
                return Err(self.deadline("the end", deadline));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// How it ended; waits for the end.
    pub fn status(&mut self) -> Result<ExitStatus, BenchError> {
        self.child.wait().map_err(|e| self.cannot_wait(e))
    }

    /// The error that this process ended when it should not have, or with a failure.
    pub fn ended(&mut self) -> BenchError {
        match self.status() {
            Ok(status) => BenchError::Ended {
                command: self.command.clone(),
                status,
                stderr: tail(&self.stderr).unwrap_or_default(),
            },
            Err(error) => error,
        }
    }

    /// The error that `wanted` did not happen in time.
    pub fn deadline(&self, wanted: &str, after: Duration) -> BenchError {
        BenchError::Deadline {
            command: self.command.clone(),
            wanted: wanted.to_owned(),
            seconds: after.as_secs(),
        }
    }

    fn cannot_wait(&self, source: io::Error) -> BenchError {
        BenchError::Process {
            action: "wait for",
            command: self.command.clone(),
            source,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a wait sleeps between two looks.
pub(super) const POLL: Duration = Duration::from_millis(5);

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let skip = file.metadata()?.len().saturating_sub(STDERR_SHOWN);
    file.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    file.take(STDERR_SHOWN).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Running {
        let stderr = dir.join("stderr");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Running::start(command, script.to_owned(), stderr, Stdio::null()).unwrap()
    }

    #[test]
    fn a_process_is_gone_once_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("exec sleep 1000", dir.path());
        process.check().unwrap();
        let folder = format!("/proc/{}", process.child.id());
        assert!(Path::new(&folder).exists());
        drop(process);
        assert!(!Path::new(&folder).exists());
    }

    #[test]
    fn an_early_end_is_told_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("echo no such thing >&2; exit 5", dir.path());
        process.wait_ended(Duration::from_secs(60)).unwrap();
        // What it used is known until it is forgotten.
        assert!(process.proc().cpu_seconds().is_ok());
        let error = process.check().unwrap_err();
        assert_eq!(error.id(), "host.resources");
        let text = error.to_string();
        assert!(text.contains("exit status: 5: no such thing"), "{text}");
    }
}
