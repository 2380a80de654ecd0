//! Two hosts on one machine: two runtime directories in a temporary folder.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use control::runtime_dir::RuntimeDir;

use super::error::BenchError;
use super::folder::Folder;
use super::process::Running;

/// One host.
pub(super) struct Host {
    /// Where its VMs live.
    pub runtime: RuntimeDir,
    path: PathBuf,
}

/// The hosts of this benchmark and what it needs to run commands on them. The folder is removed
/// when it is dropped, after the processes that were started on it.
pub(super) struct Hosts {
    /// The host that guests start on.
    pub source: Host,
    /// The host that they go to.
    pub destination: Host,
    program: PathBuf,
    folder: Folder,
    names: AtomicU32,
}

impl Hosts {
    /// Makes both hosts; `program` is the `vmm` that runs on them.
    pub fn new(program: PathBuf) -> Result<Self, BenchError> {
        let folder = Folder::within(&std::env::temp_dir())?;
        let host = |name| {
            let path = folder.path().join(name);
            let runtime = RuntimeDir::at(&path).map_err(BenchError::RuntimeDir)?;
            Ok::<_, BenchError>(Host { runtime, path })
        };
        Ok(Self {
            source: host("source")?,
            destination: host("destination")?,
            program,
            folder,
            names: AtomicU32::new(0),
        })
    }

    /// Runs a `vmm` command on a host.
    pub fn start(
        &self,
        host: &Host,
        arguments: &[&str],
        stdout: Stdio,
    ) -> Result<Running, BenchError> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("VMM_RUNTIME_DIR", &host.path)
            .env_remove("VMM_STATE_DIR");
        let shown = std::iter::once("vmm").chain(arguments.iter().copied());
        self.run(command, shown.collect::<Vec<_>>().join(" "), stdout)
    }

    /// Runs a command of another program, called `shown` in errors.
    pub fn run(
        &self,
        command: Command,
        shown: String,
        stdout: Stdio,
    ) -> Result<Running, BenchError> {
        let stderr = self.path("stderr");
        Running::start(command, shown, stderr, stdout)
    }

    /// Writes a file of the temporary folder, once; its path.
    pub fn file(&self, name: &str, contents: &[u8]) -> Result<PathBuf, BenchError> {
        let path = self.folder.path().join(name);
        if !path.exists() {
            std::fs::write(&path, contents).map_err(|e| BenchError::Folder(path.clone(), e))?;
        }
        Ok(path)
    }

    /// A path in the temporary folder that nothing else has: its name ends in `suffix`.
    pub fn path(&self, suffix: &str) -> PathBuf {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        self.folder.path().join(format!("{number}.{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_leave_nothing_behind() {
        let hosts = Hosts::new("/bin/true".into()).unwrap();
        let folder = hosts.folder.path().to_owned();
        let mut command = hosts
            .start(&hosts.source, &["list"], Stdio::null())
            .unwrap();
        assert!(command.status().unwrap().success());
        assert_eq!(command.command(), "vmm list");
        assert!(folder.join("source").is_dir() && folder.join("destination").is_dir());
        drop(command);
        drop(hosts);
        assert!(!folder.exists());
    }
}
