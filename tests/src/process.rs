//! Commands that are ended when they take too long, and background processes that are ended with the
//! test.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::eventually;

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How the command was called, for messages.
    pub command: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Exit code; 128 and the signal's number if a signal ended it, as shells count.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Gives the outcome back if the command succeeded.
    ///
    /// # Panics
    /// With all its output if it did not.
    #[must_use]
    #[track_caller]
    pub fn success(self) -> Self {
        self.expect_code(0)
    }

    /// Gives the outcome back if the command ended with `code`.
    ///
    /// # Panics
    /// With all its output if it did not.
    #[must_use]
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "exit code of {self}");
        self
    }

    /// The JSON objects that standard output holds, one a line.
    ///
    /// # Panics
    /// With all output if a line is not JSON.
    #[must_use]
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let lines = self.stdout.lines().filter(|line| !line.trim().is_empty());
        let parsed: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
        match parsed {
            Ok(values) => values,
            Err(error) => panic!("{error} in standard output of {self}"),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            status,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "`{command}` ({status})\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

/// A process that a test started; killed when dropped.
#[derive(Debug)]
pub struct Process {
    command: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with no input and its output in files below `dir`.
    ///
    /// Files, not pipes: nobody has to read them for the process to go on, and a process that outlives
    /// its parent keeps nobody waiting.
    ///
    /// # Errors
    /// When the files cannot be made or the process cannot be started.
    pub fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let (stdout, stdout_path) = output_file(dir, "stdout")?;
        let (stderr, stderr_path) = output_file(dir, "stderr")?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let described = describe(&command);
        let child = command
            .spawn()
            .with_context(|| format!("start {described}"))?;
        Ok(Self {
            command: described,
            child,
            stdout: stdout_path,
            stderr: stderr_path,
            status: None,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Ends it at once (SIGKILL); one that has ended already is left as it is.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            // The child is not reaped yet, so its id is still its own; a failure means it is gone.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When `deadline` passes first: the process is killed and what it wrote is in the message.
    pub fn finish(mut self, deadline: Duration) -> Result<Outcome> {
        let status = eventually(deadline, || self.try_wait());
        let Some(status) = status else {
            self.kill();
            bail!(
                "`{}` did not end in {deadline:?}\n--- stdout\n{}\n--- stderr\n{}",
                self.command,
                self.stdout(),
                self.stderr()
            );
        };
        Ok(Outcome {
            command: self.command.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        })
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn output_file(dir: &Path, suffix: &str) -> Result<(File, PathBuf)> {
    let file = tempfile::Builder::new()
        .prefix("command-")
        .suffix(&format!(".{suffix}"))
        .tempfile_in(dir)
        .with_context(|| format!("make an output file in {}", dir.display()))?;
    file.keep().context("keep the output file")
}

fn read_lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    // A file that cannot be read (its host was dropped) shows as empty in messages.
    let _ = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_code_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(shell("echo out; echo err >&2; exit 3"), dir.path()).unwrap();
        let outcome = process
            .finish(Duration::from_secs(60))
            .unwrap()
            .expect_code(3);
        assert_eq!(
            (outcome.stdout.as_str(), outcome.stderr.as_str()),
            ("out\n", "err\n")
        );
    }

    #[test]
    fn process_that_hangs_is_killed_and_what_it_said_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start(shell("echo before; exec sleep 600"), dir.path()).unwrap();
        eventually(Duration::from_secs(60), || {
            (process.stdout() == "before\n").then_some(())
        })
        .unwrap();
        assert!(process.is_running());
        let error = process.finish(Duration::ZERO).unwrap_err().to_string();
        assert!(
            error.contains("did not end") && error.contains("before"),
            "{error}"
        );
    }

    #[test]
    fn killed_process_shows_its_signal() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(shell("kill -KILL $$"), dir.path()).unwrap();
        assert_eq!(
            process.finish(Duration::from_secs(60)).unwrap().code(),
            128 + 9
        );
    }

    #[test]
    fn json_lines_are_parsed_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let process =
            Process::start(shell(r#"echo '{"a":1}'; echo; echo '{"a":2}'"#), dir.path()).unwrap();
        let lines = process
            .finish(Duration::from_secs(60))
            .unwrap()
            .success()
            .json_lines();
        assert_eq!(
            lines
                .iter()
                .map(|l| l["a"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [1, 2]
        );
    }
}
