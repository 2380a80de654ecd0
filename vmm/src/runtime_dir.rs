//! Where VMs of a host leave their sockets and logs, and how a name belongs to one process.
//!
//! ```text
//! ROOT/.lock                  held for moments, while folders come and go
//! ROOT/NAME/pid               locked (flock) by the process that holds the VM, names it
//! ROOT/NAME/control.sock      HTTP API
//! ROOT/NAME/console.sock      serial console
//! ROOT/NAME/serial.log        output of the guest
//! ROOT/NAME/vmm.log           log of the process
//! ROOT/NAME/failed.json       last status of a VM that failed
//! ```
//! Journals of hand-overs outlive their VMs and the host's boot: see `state_dir.rs`. Where
//! `$VMM_RUNTIME_DIR` makes a host of its own they are in ROOT too, as `migrations/`.
//!
//! The folder goes away when its VM ends well. When a detached VM fails, folder and logs stay for
//! `vmm status` to tell the reason, until the name is used again or `vmm stop` removes them. What a
//! killed process left is removed by whoever comes across it.

mod vm_dir;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migration::observation::{Observation, Side};
use rustix::fs::{FlockOperation, flock};

use crate::instance::VmStatus;
use crate::state_dir::{self, MIGRATIONS};

pub use vm_dir::VmDir;

const LOCK: &str = ".lock";
const PID: &str = "pid";
const CONTROL: &str = "control.sock";
const CONSOLE: &str = "console.sock";
const FAILED: &str = "failed.json";

/// Longest that a process may hold the lock of the whole directory before we call it stuck.
const ROOT_LOCK_LIMIT: Duration = Duration::from_secs(5);

fn failed(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Client, id, message)
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Observation {
    failed(
        "host.runtime-dir",
        format!("{what} {}: {error}", path.display()),
    )
}

/// The runtime directory: one "host".
#[derive(Debug, Clone)]
pub struct RuntimeDir {
    root: PathBuf,
    /// Where records that survive a restart are kept.
    state: Option<PathBuf>,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Entry {
    /// A live process holds the VM.
    Live {
        /// Its process id.
        pid: u32,
    },
    /// A VM that failed and left its logs.
    Failed(Box<VmStatus>),
}

impl RuntimeDir {
    /// The directory of this user: `$VMM_RUNTIME_DIR`, else `/run/vmm` for root, else
    /// `$XDG_RUNTIME_DIR/vmm`.
    ///
    /// # Errors
    /// `host.runtime-dir` when none of these exists or can be made.
    pub fn of_environment() -> Result<Self, Observation> {
        let set = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let root = if let Some(dir) = set("VMM_RUNTIME_DIR") {
            std::path::absolute(&dir).map_err(|e| io("resolve", &dir, &e))?
        } else if rustix::process::geteuid().is_root() {
            "/run/vmm".into()
        } else if let Some(dir) = set("XDG_RUNTIME_DIR") {
            dir.join("vmm")
        } else {
            return Err(failed(
                "host.runtime-dir",
                "no runtime directory: set VMM_RUNTIME_DIR or XDG_RUNTIME_DIR",
            ));
        };
        make_dir(&root)?;
        Ok(Self {
            root,
            state: state_dir::of_environment(),
        })
    }

    /// Uses `root`, also for what survives a restart; made with mode 0700 where it does not exist.
    ///
    /// # Errors
    /// `host.runtime-dir`.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self, Observation> {
        let root = root.into();
        make_dir(&root)?;
        Ok(Self {
            state: Some(root.clone()),
            root,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The file whose lock is held while folders come and go.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    /// Takes `name` (or `PREFIX-1`, `PREFIX-2`, …, the first that is free) for this process.
    ///
    /// # Errors
    /// `usage.name` for a name that is none, `vm.name-in-use` with the process that holds it,
    /// `host.runtime-dir`, `host.state-dir`.
    pub fn create(&self, name: Option<&str>, prefix: &str) -> Result<VmDir, Observation> {
        let state = self.state.as_ref().ok_or_else(state_dir::missing)?;
        let migrations = state.join(MIGRATIONS);
        if let Some(name) = name {
            check_name(name)?;
        }
        let _guard = self.lock()?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => self.free_name(prefix)?,
        };
        self.clear(&name)?;
        let path = self.root.join(&name);
        make_dir(&path)?;
        let pid_path = path.join(PID);
        let mut lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&pid_path)
            .map_err(|e| io("create", &pid_path, &e))?;
        // Others hold it for the moment of a look at most.
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| io("lock", &pid_path, &e.into()))?;
        writeln!(lock, "{}", std::process::id()).map_err(|e| io("write", &pid_path, &e))?;
        make_dir(&migrations)?;
        Ok(VmDir::new(self.clone(), migrations, name, lock))
    }

    fn free_name(&self, prefix: &str) -> Result<String, Observation> {
        for n in 1..=100_000_u32 {
            let name = format!("{prefix}-{n}");
            if self.holder(&name)?.is_none() && !self.root.join(&name).join(FAILED).exists() {
                return Ok(name);
            }
        }
        Err(failed("host.runtime-dir", "no name is free: give one"))
    }

    /// Removes what a dead process left under `name`; refuses when a live one holds it.
    fn clear(&self, name: &str) -> Result<(), Observation> {
        if let Some(pid) = self.holder(name)? {
            return Err(failed(
                "vm.name-in-use",
                format!("the name {name:?} is in use by process {pid}"),
            ));
        }
        let path = self.root.join(name);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &path, &e)),
            _ => Ok(()),
        }
    }

    /// Process that holds `name`; `None` when no live one does.
    fn holder(&self, name: &str) -> Result<Option<u32>, Observation> {
        let path = self.root.join(name).join(PID);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io("open", &path, &e)),
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let mut text = String::new();
        let _ = file.take(32).read_to_string(&mut text);
        Ok(Some(text.trim().parse().unwrap_or(0)))
    }

    /// All VMs by name; removes what killed processes left.
    ///
    /// # Errors
    /// `host.runtime-dir`.
    pub fn list(&self) -> Result<Vec<(String, Entry)>, Observation> {
        let _guard = self.lock()?;
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.root).map_err(|e| io("read", &self.root, &e))?;
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if check_name(&name).is_err() || !entry.path().is_dir() {
                continue;
            }
            if let Some(what) = self.sweep(&name)? {
                found.push((name, what));
            }
        }
        found.sort_by_key(|(name, _)| natural(name));
        Ok(found)
    }

    fn sweep(&self, name: &str) -> Result<Option<Entry>, Observation> {
        if let Some(pid) = self.holder(name)? {
            return Ok(Some(Entry::Live { pid }));
        }
        if let Some(status) = self.failed_status(name) {
            return Ok(Some(Entry::Failed(Box::new(status))));
        }
        self.clear(name)?;
        Ok(None)
    }

    fn failed_status(&self, name: &str) -> Option<VmStatus> {
        let text = fs::read(self.root.join(name).join(FAILED)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What `name` stands for.
    ///
    /// # Errors
    /// `vm.not-found`, `usage.name`, `host.runtime-dir`.
    pub fn find(&self, name: &str) -> Result<Entry, Observation> {
        check_name(name)?;
        let _guard = self.lock()?;
        self.sweep(name)?.ok_or_else(|| {
            failed(
                "vm.not-found",
                format!("no VM is called {name:?} in {}", self.root.display()),
            )
        })
    }

    /// Removes what a failed VM left.
    ///
    /// # Errors
    /// `vm.name-in-use` when it lives, `host.runtime-dir`.
    pub fn forget(&self, name: &str) -> Result<(), Observation> {
        check_name(name)?;
        let _guard = self.lock()?;
        self.clear(name)
    }

    /// Waits until no process holds `name`; false when `timeout` passed first.
    pub fn wait_gone(&self, name: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            match self.holder(name) {
                Ok(None) | Err(_) => return true,
                Ok(Some(_)) if Instant::now() >= deadline => return false,
                Ok(Some(_)) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Connects to the control socket of `name`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect_control(&self, name: &str) -> std::io::Result<UnixStream> {
        connect(&self.root.join(name), CONTROL)
    }

    /// Connects to the console of `name`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect_console(&self, name: &str) -> std::io::Result<UnixStream> {
        connect(&self.root.join(name), CONSOLE)
    }

    /// Path of the guest's output.
    pub fn serial_log(&self, name: &str) -> PathBuf {
        self.root.join(name).join("serial.log")
    }

    /// Path of the process's log.
    pub fn vmm_log(&self, name: &str) -> PathBuf {
        self.root.join(name).join("vmm.log")
    }

    fn lock(&self) -> Result<File, Observation> {
        let path = self.lock_file();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| io("open", &path, &e))?;
        let deadline = Instant::now() + ROOT_LOCK_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(io("lock", &path, &e.into())),
            }
        }
    }
}

/// Orders `vm-2` before `vm-10`.
fn natural(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().unwrap_or(0);
    (stem.to_owned(), number, name.to_owned())
}

/// Checks a name: 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit.
///
/// # Errors
/// `usage.name`.
pub fn check_name(name: &str) -> Result<(), Observation> {
    let fits = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name != MIGRATIONS;
    if fits {
        return Ok(());
    }
    Err(failed(
        "usage.name",
        format!("{name:?} is not a name: 1 to 64 letters, digits, '.', '_' or '-' are needed"),
    ))
}

fn make_dir(path: &Path) -> Result<(), Observation> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| io("create", path, &e))
}

/// A short way to a socket in `dir`: socket addresses hold 107 bytes, folders may be deeper.
fn short_path(dir: &Path, socket: &str) -> std::io::Result<(File, PathBuf)> {
    let dir = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd()).into();
    Ok((dir, path))
}

fn connect(dir: &Path, socket: &str) -> std::io::Result<UnixStream> {
    let (_dir, path) = short_path(dir, socket)?;
    UnixStream::connect(path)
}

#[cfg(test)]
mod tests;
