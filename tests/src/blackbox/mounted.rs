//! Small file systems that tests mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system of its own, as long as this lives.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// One of `size`, as `mount` reads it, at a folder that is made for it.
    ///
    /// # Errors
    /// Where this user cannot mount.
    pub fn at(path: PathBuf, size: &str) -> Result<Self, String> {
        fs::create_dir(&path).map_err(|e| e.to_string())?;
        let options = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        match mount {
            Ok(status) if status.success() => Ok(Self(path)),
            _ => Err("a file system cannot be mounted".into()),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Unmounts it, which the kernel refuses as long as anybody has anything there; whether it was.
    #[must_use]
    pub fn unmount(&self) -> bool {
        let unmounted = Command::new("umount").arg(&self.0).status();
        unmounted.is_ok_and(|status| status.success())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It may be unmounted already.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}
