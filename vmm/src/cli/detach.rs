//! `--detach`: the same command again in a session of its own, and its word that it runs.
//!
//! The child's standard output is a pipe that carries one line, the announcement; then the child lets
//! go of all that it shares with its parent's terminal.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use migration::observation::Observation;
use serde::{Deserialize, Serialize};

use control::exit::local;
use control::instance::VmStatus;
use control::runtime_dir::VmDir;

/// Bytes of an announcement.
const LIMIT: u64 = 1 << 20;

/// What the child says once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Announcement {
    /// The VM runs, or listens.
    Up(Box<VmStatus>),
    /// It does not, for this reason.
    Failed(Observation),
}

/// Starts this command line again, detached, and waits for its word.
///
/// # Errors
/// What the child observed, or `vm.start` when it ended without a word.
pub(super) fn start_detached() -> Result<VmStatus, Observation> {
    let failed = |what: &str, e: &dyn std::fmt::Display| local("vm.start", format!("{what}: {e}"));
    let program = std::env::current_exe().map_err(|e| failed("find this program", &e))?;
    let mut child = Command::new(program)
        .arg("--detached-child")
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed("start a process", &e))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(LIMIT)
            .read_to_string(&mut line)
            .map_err(|e| failed("hear from the VM's process", &e))?;
    }
    match serde_json::from_str(&line) {
        Ok(Announcement::Up(status)) => Ok(*status),
        Ok(Announcement::Failed(why)) => {
            let _ = child.wait();
            Err(why)
        }
        Err(_) => {
            let _ = child.kill();
            let end = child
                .wait()
                .map_err(|e| failed("wait for the VM's process", &e))?;
            Err(local(
                "vm.start",
                format!("the VM's process ended before the VM ran: {end}"),
            ))
        }
    }
}

/// The child's first step, once all paths that it was told are known from anywhere: a session of its own, so that the
/// terminal's signals do not reach it, and a folder that keeps no file system from being unmounted.
pub(super) fn leave_session() {
    // Fails only where it already leads a session, which is as good.
    let _ = rustix::process::setsid();
    // Where even that folder cannot be entered it stays where it is.
    let _ = rustix::process::chdir("/");
}

/// Says that the VM is up, and lets go of the parent's files; messages go to the log from here on.
///
/// # Errors
/// `vm.start` when the parent is gone.
pub(super) fn announce_up(status: &VmStatus, dir: &VmDir) -> Result<(), Observation> {
    announce(&Announcement::Up(Box::new(status.clone())))
        .and_then(|()| {
            let null = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            follow_log(dir)?;
            rustix::stdio::dup2_stdin(&null)?;
            // Last: its end is what the parent waits for.
            rustix::stdio::dup2_stdout(&null)?;
            Ok(())
        })
        .map_err(|e| local("vm.start", format!("announce the VM: {e}")))
}

/// Has standard error go to the log.
///
/// # Errors
/// What opening it gives.
pub(super) fn follow_log(dir: &VmDir) -> io::Result<()> {
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.vmm_log())?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// Says why there is no VM.
pub(super) fn announce_failed(why: &Observation) {
    let _ = announce(&Announcement::Failed(why.clone()));
}

fn announce(announcement: &Announcement) -> io::Result<()> {
    let line = serde_json::to_vec(announcement).map_err(io::Error::other)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}
