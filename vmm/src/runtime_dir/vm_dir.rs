//! The folder of one VM.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration::observation::Observation;

use super::{CONSOLE, CONTROL, FAILED, PID, RuntimeDir, check_name, failed, io, short_path};
use crate::instance::VmStatus;
use crate::state_dir::HOST_CPU;

#[derive(Debug)]
struct Inner {
    runtime: RuntimeDir,
    migrations: PathBuf,
    name: Mutex<String>,
    /// Open for as long as the name is ours.
    lock: File,
    keep: Mutex<bool>,
    /// Set once the folder is no longer this process's.
    removed: AtomicBool,
}

/// The folder of one VM, held by this process; removed when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct VmDir {
    inner: Arc<Inner>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VmDir {
    /// Takes over the folder of `name`, which the lock on its pid file makes ours.
    pub(super) fn new(runtime: RuntimeDir, migrations: PathBuf, name: String, lock: File) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime,
                migrations,
                name: Mutex::new(name),
                lock,
                keep: Mutex::new(false),
                removed: AtomicBool::new(false),
            }),
        }
    }

    /// Name of the VM.
    pub fn name(&self) -> String {
        locked(&self.inner.name).clone()
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.inner.runtime.root.join(self.name())
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
    /// `vm.name-in-use`, `usage.name`, `host.runtime-dir`; the old name is kept then.
    pub fn rename(&self, name: &str) -> Result<(), Observation> {
        check_name(name)?;
        let _guard = self.inner.runtime.lock()?;
        let mut current = locked(&self.inner.name);
        if *current == name {
            return Ok(());
        }
        self.inner.runtime.clear(name)?;
        let root = &self.inner.runtime.root;
        let (from, to) = (root.join(&*current), root.join(name));
        fs::rename(&from, &to).map_err(|e| io("rename", &from, &e))?;
        name.clone_into(&mut current);
        Ok(())
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

    fn bind(&self, socket: &str) -> Result<UnixListener, Observation> {
        let dir = self.path();
        let fail = |e| io("listen on", &dir.join(socket), &e);
        let (_dir, path) = short_path(&dir, socket).map_err(fail)?;
        let listener = UnixListener::bind(&path).map_err(fail)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(listener)
    }

    /// Path of the guest's output.
    pub fn serial_log(&self) -> PathBuf {
        self.inner.runtime.serial_log(&self.name())
    }

    /// Path of the process's log.
    pub fn vmm_log(&self) -> PathBuf {
        self.inner.runtime.vmm_log(&self.name())
    }

    /// Removes the folder at the VM's end, whoever still holds a handle; the last handle that is
    /// dropped does so too.
    pub fn close(&self) {
        self.inner.remove();
    }

    /// Keeps folder and logs after the end, with the last status, for a VM that failed.
    ///
    /// # Errors
    /// `host.runtime-dir` when the status cannot be written; the folder is removed then.
    pub fn keep_failed(&self, status: &VmStatus) -> Result<(), Observation> {
        let path = self.path().join(FAILED);
        let text = serde_json::to_vec(status)
            .map_err(|e| failed("host.runtime-dir", format!("describe the failure: {e}")))?;
        fs::write(&path, text).map_err(|e| io("write", &path, &e))?;
        *locked(&self.inner.keep) = true;
        Ok(())
    }
}

impl Inner {
    /// Removes the folder, or what is not to be kept of it; once.
    fn remove(&self) {
        if self.removed.swap(true, Ordering::SeqCst) {
            return;
        }
        let _guard = self.runtime.lock();
        let path = self.runtime.root.join(&*locked(&self.name));
        // A folder that somebody replaced by hand is not ours to remove.
        let ours = fs::metadata(path.join(PID))
            .is_ok_and(|on_disk| self.lock.metadata().is_ok_and(|m| m.ino() == on_disk.ino()));
        if !ours {
            return;
        }
        if *locked(&self.keep) {
            for socket in [CONTROL, CONSOLE] {
                let _ = fs::remove_file(path.join(socket));
            }
        } else {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.remove();
    }
}
