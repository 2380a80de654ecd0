//! The directory itself: which VMs are in it, and what anybody may do with one by its name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migration::observation::Observation;
use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::end;
use super::error::{failed, io};
use super::files::{CONSOLE, CONTROL, FILES};
use super::folder::{Folder, Found, Holder, Left, look};
use super::logs::{Log, LogReader};
use super::name::{check_name, natural};
use crate::instance::VmStatus;
use crate::state_dir::{self, MIGRATIONS, SERVING};

/// The file whose lock is held while folders come and go.
pub(super) const LOCK: &str = ".lock";
/// Longest that a process may hold the lock of the whole directory before we call it stuck.
const ROOT_LOCK_LIMIT: Duration = Duration::from_secs(5);

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
    /// A VM that has ended, and left its last status and its logs.
    Ended(Box<VmStatus>),
    /// Its folder cannot be looked at, for this reason.
    Unreadable(Box<Observation>),
}

/// What became of what a VM had left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgotten {
    /// It is gone.
    Wholly,
    /// What we made is gone; this is in the folder too, and stays with it.
    But(String),
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
    pub fn lock_file(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    /// Where journals of hand-overs are kept, if there is a place.
    pub fn migrations(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|state| state.join(MIGRATIONS))
    }

    /// Where records of disks that are served are kept.
    ///
    /// # Errors
    /// `host.state-dir` when there is no place; `host.runtime-dir` when it cannot be made.
    pub fn serving(&self) -> Result<PathBuf, Observation> {
        let state = self.state.as_ref().ok_or_else(state_dir::missing)?;
        let serving = state.join(SERVING);
        make_dir(&serving)?;
        Ok(serving)
    }

    pub(super) fn free_name(&self, prefix: &str) -> Result<String, Observation> {
        for n in 1..=100_000_u32 {
            let name = format!("{prefix}-{n}");
            if matches!(self.look(&name), Ok(Found::Nothing)) {
                return Ok(name);
            }
        }
        Err(failed("host.runtime-dir", "no name is free: give one"))
    }

    fn look(&self, name: &str) -> Result<Found, Observation> {
        let path = self.root.join(name);
        look(&path).map_err(|e| io("look at", &path, &e))
    }

    /// Makes `name` free: removes what is kept of a VM that ended. Refuses, and touches nothing, when a
    /// process holds it or something in the folder is not ours.
    pub(super) fn clear(&self, name: &str) -> Result<(), Observation> {
        let path = self.root.join(name);
        let foreign = |what: &str| {
            let message = format!(
                "{name:?} cannot be the name of a VM: {} is in the way, and stays ({what})",
                path.display()
            );
            failed("vm.foreign-folder", message)
        };
        let folder = match self.look(name)? {
            Found::Nothing => return Ok(()),
            Found::NotOurs(why) => return Err(foreign(why)),
            Found::Vm(_, Holder::Process(pid)) => {
                return Err(failed(
                    "vm.name-in-use",
                    format!("the name {name:?} is in use by process {pid}"),
                ));
            }
            Found::Vm(folder, Holder::Nobody(_)) => folder,
        };
        let not_ours = folder.foreign().map_err(|e| io("look at", &path, &e))?;
        if let Some(what) = not_ours {
            return Err(foreign(&format!("vmm did not make {what} in it")));
        }
        match folder.remove(&path).map_err(|e| io("remove", &path, &e))? {
            Left::Nothing => Ok(()),
            Left::Foreign(what) => Err(foreign(&format!("vmm did not make {what} in it"))),
        }
    }

    /// Removes the oldest ends where more are kept than there may be.
    pub(super) fn prune(&self) {
        let Ok(names) = self.names() else { return };
        let ends = names.into_iter().filter_map(|name| match self.look(&name) {
            Ok(Found::Vm(folder, Holder::Nobody(_))) => {
                Some((name, folder.written(&end::WHEN), folder.size()))
            }
            _ => None,
        });
        for name in end::surplus(ends.collect()) {
            let path = self.root.join(&name);
            let Ok(Found::Vm(folder, Holder::Nobody(_))) = self.look(&name) else {
                continue;
            };
            match folder.remove(&path) {
                Ok(Left::Nothing) => {}
                Ok(Left::Foreign(what)) => {
                    tracing::warn!(path = %path.display(), what, "the folder stays: not all is ours");
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "an old end stays"),
            }
        }
    }

    /// What may be names of VMs, in the order of a list.
    fn names(&self) -> Result<Vec<String>, Observation> {
        let entries = fs::read_dir(&self.root).map_err(|e| io("read", &self.root, &e))?;
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| check_name(name).is_ok())
            .collect();
        names.sort_by_key(|name| natural(name));
        Ok(names)
    }

    /// All VMs by name, those that have ended too; what is not ours is left out.
    ///
    /// # Errors
    /// `host.runtime-dir` when nothing can be told at all.
    pub fn list(&self) -> Result<Vec<(String, Entry)>, Observation> {
        let _guard = self.lock()?;
        self.prune();
        let mut found = Vec::new();
        for name in self.names()? {
            match self.entry(&name) {
                Ok(Some(entry)) => found.push((name, entry)),
                Ok(None) => {}
                Err(why) => found.push((name, Entry::Unreadable(Box::new(why)))),
            }
        }
        Ok(found)
    }

    fn entry(&self, name: &str) -> Result<Option<Entry>, Observation> {
        Ok(match self.look(name)? {
            Found::Nothing => None,
            Found::NotOurs(why) => {
                tracing::debug!(name, why, "not a VM");
                None
            }
            Found::Vm(_, Holder::Process(pid)) => Some(Entry::Live { pid }),
            Found::Vm(folder, Holder::Nobody(pid)) => {
                let status = end::of(&folder, name, pid)
                    .map_err(|e| io("read the end in", &self.root.join(name), &e))?;
                Some(Entry::Ended(Box::new(status)))
            }
        })
    }

    /// What `name` stands for.
    ///
    /// # Errors
    /// `vm.not-found`, `usage.name`, `host.runtime-dir`.
    pub fn find(&self, name: &str) -> Result<Entry, Observation> {
        check_name(name)?;
        let _guard = self.lock()?;
        self.entry(name)?.ok_or_else(|| self.not_found(name))
    }

    fn not_found(&self, name: &str) -> Observation {
        failed(
            "vm.not-found",
            format!("no VM is called {name:?} in {}", self.root.display()),
        )
    }

    /// Removes what a VM that has ended left.
    ///
    /// # Errors
    /// `vm.not-found`, `vm.name-in-use` when it lives, `usage.name`, `host.runtime-dir`.
    pub fn forget(&self, name: &str) -> Result<Forgotten, Observation> {
        check_name(name)?;
        let _guard = self.lock()?;
        match self.look(name)? {
            Found::Nothing | Found::NotOurs(_) => Err(self.not_found(name)),
            Found::Vm(_, Holder::Process(pid)) => Err(failed(
                "vm.name-in-use",
                format!("{name} has not ended: process {pid} has it"),
            )),
            Found::Vm(folder, Holder::Nobody(_)) => {
                let path = self.root.join(name);
                match folder.remove(&path).map_err(|e| io("remove", &path, &e))? {
                    Left::Nothing => Ok(Forgotten::Wholly),
                    Left::Foreign(what) => Ok(Forgotten::But(what)),
                }
            }
        }
    }

    /// Records that the process of `name`, which is gone, was killed by `by`.
    ///
    /// # Errors
    /// `usage.name`, `host.runtime-dir`.
    pub fn note_killed(&self, name: &str, by: &str) -> Result<(), Observation> {
        check_name(name)?;
        let _guard = self.lock()?;
        match self.look(name)? {
            Found::Vm(folder, Holder::Nobody(pid)) => end::note_killed(&folder, pid, by)
                .map_err(|e| io("record the end in", &self.root.join(name), &e)),
            _ => Ok(()),
        }
    }

    /// A log of `name`, which lives or has ended.
    ///
    /// # Errors
    /// `vm.not-found`, `usage.name`, `host.runtime-dir`.
    pub fn log(&self, name: &str, log: Log) -> Result<LogReader, Observation> {
        check_name(name)?;
        match self.look(name)? {
            Found::Nothing | Found::NotOurs(_) => Err(self.not_found(name)),
            Found::Vm(folder, _) => Ok(LogReader::new(folder, log)),
        }
    }

    /// Where a log of `name` is written.
    pub fn log_path(&self, name: &str, log: Log) -> PathBuf {
        self.root.join(name).join(log.file())
    }

    /// Waits until no process holds `name`; false when `timeout` passed first.
    pub fn wait_gone(&self, name: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while let Ok(Found::Vm(_, Holder::Process(_))) = self.look(name) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Connects to the control socket of `name`.
    ///
    /// # Errors
    /// What the kernel says; [`std::io::ErrorKind::WouldBlock`] when as many wait already as may, because
    /// the process takes none of them in.
    pub fn connect_control(&self, name: &str) -> std::io::Result<UnixStream> {
        connect_stream(&self.root.join(name), CONTROL)
    }

    /// Connects to the console of `name`.
    ///
    /// # Errors
    /// As for [`RuntimeDir::connect_control`].
    pub fn connect_console(&self, name: &str) -> std::io::Result<UnixStream> {
        connect_stream(&self.root.join(name), CONSOLE)
    }

    /// Connects to where files are passed to `name`: a socket of packets, which does not block.
    ///
    /// # Errors
    /// As for [`RuntimeDir::connect_control`].
    pub fn connect_files(&self, name: &str) -> std::io::Result<OwnedFd> {
        connect(&self.root.join(name), FILES, SocketType::SEQPACKET)
    }

    pub(super) fn lock(&self) -> Result<File, Observation> {
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

/// Makes a directory of this user, where it does not exist.
pub(super) fn make_dir(path: &Path) -> Result<(), Observation> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| io("create", path, &e))
}

fn connect_stream(dir: &Path, socket: &str) -> std::io::Result<UnixStream> {
    let stream = UnixStream::from(connect(dir, socket, SocketType::STREAM)?);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn connect(dir: &Path, socket: &str, kind: SocketType) -> std::io::Result<OwnedFd> {
    let folder = Folder::open_at(dir)?;
    // A connection to a process that takes none in would wait for it without end.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let to = SocketAddrUnix::new(folder.short_path(socket))?;
    rustix::net::connect(&client, &to)?;
    Ok(client)
}
