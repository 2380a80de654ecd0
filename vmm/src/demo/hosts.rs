//! Two "hosts": two runtime directories in one temporary folder, and nothing left of them.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use control::api::client::Client;
use control::exit::local;
use control::instance::{StopMode, VmStatus};
use control::runtime_dir::{Entry, RuntimeDir};
use migration::observation::Observation;

/// How long a VM may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// One host.
pub(super) struct Host {
    pub runtime: RuntimeDir,
}

impl Host {
    pub fn client(&self, name: &str) -> Client {
        Client::new(&self.runtime, name)
    }

    /// Runs this program on this host and reads the status that it prints.
    pub async fn command(&self, args: &[&str]) -> Result<VmStatus, Observation> {
        let failed = |e: &dyn std::fmt::Display| local("demo.command", format!("run vmm: {e}"));
        let program = std::env::current_exe().map_err(|e| failed(&e))?;
        let mut command = Command::new(program);
        command
            .args(args)
            .arg("--json")
            .env("VMM_RUNTIME_DIR", self.runtime.path())
            .env_remove("VMM_STATE_DIR")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).map_err(|e| failed(&e));
        }
        let said: Option<Observation> = serde_json::from_slice::<serde_json::Value>(&output.stdout)
            .ok()
            .and_then(|mut answer| serde_json::from_value(answer["error"].take()).ok());
        Err(said.unwrap_or_else(|| failed(&output.status)))
    }

    async fn clean(&self) {
        for (name, entry) in self.runtime.list().unwrap_or_default() {
            if let Entry::Live { .. } = entry {
                let client = self.client(&name);
                let _ = tokio::time::timeout(END_LIMIT, client.stop(StopMode::Force)).await;
                let runtime = self.runtime.clone();
                let gone = move || runtime.wait_gone(&name, END_LIMIT);
                let _ = tokio::task::spawn_blocking(gone).await;
            }
        }
    }
}

/// The two hosts; their folder is removed with them.
pub(super) struct Hosts {
    folder: PathBuf,
    pub source: Host,
    pub destination: Host,
}

impl Hosts {
    pub fn new() -> Result<Self, Observation> {
        let folder = make_folder(&std::env::temp_dir())?;
        let host = |name| {
            Ok(Host {
                runtime: RuntimeDir::at(folder.join(name))?,
            })
        };
        let hosts = (host("source"), host("destination"));
        match hosts {
            (Ok(source), Ok(destination)) => Ok(Self {
                folder,
                source,
                destination,
            }),
            (Err(why), _) | (_, Err(why)) => {
                let _ = fs::remove_dir_all(&folder);
                Err(why)
            }
        }
    }

    /// Where both of them lie; for what they share.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends whatever runs on either host.
    pub async fn clean(&self) {
        self.source.clean().await;
        self.destination.clean().await;
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.source, &self.destination] {
            let live = host.runtime.list().unwrap_or_default();
            for (name, entry) in live {
                if let Entry::Live { pid } = entry {
                    eprintln!(
                        "vmm: {name} (process {pid}) still runs, in {}",
                        self.folder.display()
                    );
                    return;
                }
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn make_folder(parent: &Path) -> Result<PathBuf, Observation> {
    let mut tried = 0;
    loop {
        let folder = parent.join(format!("vmm-demo-{}-{tried}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && tried < 100 => tried += 1,
            Err(e) => {
                let message = format!("create {}: {e}", folder.display());
                return Err(local("host.runtime-dir", message));
            }
        }
    }
}
