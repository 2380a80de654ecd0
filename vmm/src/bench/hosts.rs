//! Two hosts on one machine: two runtime directories in a temporary folder.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::BenchError;
use super::process::Running;
use crate::runtime_dir::RuntimeDir;

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
    commands: AtomicU32,
}

impl Hosts {
    /// Makes both hosts; `program` is the `vmm` that runs on them.
    pub fn new(program: PathBuf) -> Result<Self, BenchError> {
        let folder = Folder::new()?;
        let host = |name| {
            let path = folder.0.join(name);
            let runtime = RuntimeDir::at(&path).map_err(BenchError::RuntimeDir)?;
            Ok::<_, BenchError>(Host { runtime, path })
        };
        Ok(Self {
            source: host("source")?,
            destination: host("destination")?,
            program,
            folder,
            commands: AtomicU32::new(0),
        })
    }

    /// Runs a `vmm` command on a host.
    pub fn start(
        &self,
        host: &Host,
        arguments: &[&str],
        stdout: Stdio,
    ) -> Result<Running, BenchError> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let stderr = self.folder.0.join(format!("{number}.stderr"));
        Running::start(&self.program, arguments, &host.path, stderr, stdout)
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, BenchError> {
        let base = std::env::temp_dir();
        let mut number = 0;
        loop {
            let path = base.join(format!("vmm-bench-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // A killed benchmark that had our process id left it.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && number < 100 => number += 1,
                Err(e) => return Err(BenchError::Folder(path, e)),
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        if let Err(error) = std::fs::remove_dir_all(path) {
            tracing::warn!(path = %path.display(), %error, "a temporary folder stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_leave_nothing_behind() {
        let hosts = Hosts::new("/bin/true".into()).unwrap();
        let folder = hosts.folder.0.clone();
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
