//! The folder of one VM, held by this process: how it is taken, renamed and let go.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration::observation::Observation;
use rustix::fs::{FlockOperation, flock};

use super::end;
use super::error::io;
use super::files::{CONSOLE, CONTROL, FILES, SOCKETS};
use super::folder::{Folder, Left};
use super::logs::Log;
use super::name::check_name;
use super::root::{RuntimeDir, make_dir};
use crate::instance::VmStatus;
use crate::passed::FilesSocket;
use crate::state_dir::{self, HOST_CPU};

#[derive(Debug)]
struct Inner {
    runtime: RuntimeDir,
    migrations: PathBuf,
    name: Mutex<String>,
    naming: Naming,
    folder: Folder,
    /// Locked for as long as the name is ours.
    lock: File,
    /// Set once the folder is no longer this process's.
    closed: AtomicBool,
}

/// Where a VM's name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Its user gave it.
    Given,
    /// It was made up, or the guest brought it.
    Found,
}

/// The folder of one VM, held by this process until it is closed; removed when the last handle is dropped
/// before.
#[derive(Debug, Clone)]
pub struct VmDir {
    inner: Arc<Inner>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RuntimeDir {
    /// Takes `name` (or `PREFIX-1`, `PREFIX-2`, …, the first of which nothing is left) for this process.
    ///
    /// # Errors
    /// `usage.name` for a name that is none, `vm.name-in-use` with the process that holds it,
    /// `vm.foreign-folder`, `host.runtime-dir`, `host.state-dir`.
    pub fn create(&self, name: Option<&str>, prefix: &str) -> Result<VmDir, Observation> {
        let migrations = self.migrations().ok_or_else(state_dir::missing)?;
        if let Some(name) = name {
            check_name(name)?;
        }
        let _guard = self.lock()?;
        let (name, naming) = match name {
            Some(name) => (name.to_owned(), Naming::Given),
            None => (self.free_name(prefix)?, Naming::Found),
        };
        self.clear(&name)?;
        self.prune();
        make_dir(&migrations)?;
        let held = Folder::make(self.path(), &name).map_err(|(path, e)| io("create", &path, &e))?;
        Ok(VmDir::new(self.clone(), migrations, name, naming, held))
    }
}

impl VmDir {
    /// Takes over the folder of `name`, which `lock` makes ours.
    fn new(
        runtime: RuntimeDir,
        migrations: PathBuf,
        name: String,
        naming: Naming,
        (folder, lock): (Folder, File),
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime,
                migrations,
                name: Mutex::new(name),
                naming,
                folder,
                lock,
                closed: AtomicBool::new(false),
            }),
        }
    }

    /// Name of the VM.
    pub fn name(&self) -> String {
        locked(&self.inner.name).clone()
    }

    /// Where it got its first name from.
    pub fn naming(&self) -> Naming {
        self.inner.naming
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.inner.runtime.path().join(self.name())
    }

    /// The runtime directory that it is in.
    pub fn runtime(&self) -> &RuntimeDir {
        &self.inner.runtime
    }

    /// Where journals of hand-overs are kept; outlives the VM and the host's boot.
    pub fn migrations(&self) -> PathBuf {
        self.inner.migrations.clone()
    }

    /// File that says the most of its CPU that this host offers to guests; there may be none.
    pub fn host_cpu(&self) -> PathBuf {
        self.inner.migrations.with_file_name(HOST_CPU)
    }

    /// Renames the VM, as `receive` does when the guest that arrives brings its name. Open sockets
    /// and logs move along.
    ///
    /// # Errors
    /// `vm.name-in-use`, `vm.foreign-folder`, `usage.name`, `host.runtime-dir`; the old name is kept
    /// then.
    pub fn rename(&self, name: &str) -> Result<(), Observation> {
        check_name(name)?;
        let _guard = self.inner.runtime.lock()?;
        self.rename_locked(name)
    }

    fn rename_locked(&self, name: &str) -> Result<(), Observation> {
        let mut current = locked(&self.inner.name);
        if *current == name {
            return Ok(());
        }
        self.inner.runtime.clear(name)?;
        let root = self.inner.runtime.path();
        let (from, to) = (root.join(&*current), root.join(name));
        fs::rename(&from, &to).map_err(|e| io("rename", &from, &e))?;
        name.clone_into(&mut current);
        Ok(())
    }

    /// Gives the name up for `PREFIX-1`, `PREFIX-2`, ..., the first that is free.
    ///
    /// # Errors
    /// `host.runtime-dir`; the name is kept then.
    pub fn rename_to_free(&self, prefix: &str) -> Result<(), Observation> {
        let _guard = self.inner.runtime.lock()?;
        let free = self.inner.runtime.free_name(prefix)?;
        self.rename_locked(&free)
    }

    /// Listens on the control socket, mode 0600.
    ///
    /// # Errors
    /// `host.runtime-dir`.
    pub fn bind_control(&self) -> Result<UnixListener, Observation> {
        self.bind(CONTROL)
    }

    /// Listens on the console socket, mode 0600.
    ///
    /// # Errors
    /// `host.runtime-dir`.
    pub fn bind_console(&self) -> Result<UnixListener, Observation> {
        self.bind(CONSOLE)
    }

    /// Listens on the socket at which files are passed, mode 0600.
    ///
    /// # Errors
    /// `host.runtime-dir`.
    pub fn bind_files(&self) -> Result<FilesSocket, Observation> {
        self.bind_by(FILES, FilesSocket::bind)
    }

    fn bind(&self, socket: &str) -> Result<UnixListener, Observation> {
        self.bind_by(socket, |path| {
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        })
    }

    fn bind_by<T>(
        &self,
        socket: &str,
        bind: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, Observation> {
        bind(&self.inner.folder.short_path(socket))
            .map_err(|e| io("listen on", &self.path().join(socket), &e))
    }

    /// Path of the guest's output.
    pub fn serial_log(&self) -> PathBuf {
        self.path().join(Log::Console.file())
    }

    /// Path of the process's log.
    pub fn vmm_log(&self) -> PathBuf {
        self.path().join(Log::Process.file())
    }

    /// Removes the folder at the VM's end, whoever still holds a handle. The name is free then, though
    /// this process may live on.
    pub fn close(&self) {
        self.inner.close(None);
    }

    /// As [`VmDir::close`], but the logs are kept, with the last status, until the name is used again.
    pub fn close_as(&self, last: &VmStatus) {
        self.inner.close(Some(last));
    }
}

impl Inner {
    /// Lets go of the folder, once.
    fn close(&self, last: Option<&VmStatus>) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        // Who holds the lock too long does not keep the name from becoming free.
        let _guard = self.runtime.lock();
        let kept = last.is_some_and(|last| match self.keep(last) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the end of the VM is not recorded: its folder goes");
                false
            }
        });
        if !kept {
            let path = self.runtime.path().join(&*locked(&self.name));
            match self.folder.remove(&path) {
                Ok(Left::Nothing) => {}
                Ok(Left::Foreign(what)) => {
                    tracing::warn!(path = %path.display(), what, "the folder stays: not all is ours");
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the folder stays");
                }
            }
        }
        // The last step: whoever finds the name free finds everything else done.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }

    fn keep(&self, last: &VmStatus) -> io::Result<()> {
        end::write(&self.folder, last)?;
        for socket in SOCKETS {
            self.folder.unlink(socket)?;
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close(None);
    }
}
