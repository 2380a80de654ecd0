//! Storage that is full, hangs, or has large blocks: file systems and devices of a test, which take rights of the
//! administrator.
#![allow(dead_code)] // Each test file uses its part.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

/// Runs a command that takes rights of the administrator; whether it was done, and its output.
pub fn command(name: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(name).args(arguments).output() {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
            println!("skipped: {name}: {why}");
            None
        }
        Err(error) => {
            println!("skipped: {name}: {error}");
            None
        }
    }
}

/// A file system that is mounted until this is dropped.
pub struct Mount(TempDir);

impl Mount {
    /// Mounts what `arguments` say.
    pub fn new(arguments: &[&str]) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let arguments = [arguments, &[dir.path().to_str().unwrap()]].concat();
        command("mount", &arguments).map(|_| Self(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = command("umount", &["--lazy", self.path().to_str().unwrap()]);
    }
}

/// A file system of its own, whose changes hang while it is frozen.
pub struct Freezing {
    mount: Mount,
    _image: TempDir,
    frozen: AtomicBool,
}

impl Freezing {
    pub fn new() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("storage");
        File::create(&path).unwrap().set_len(32 << 20).unwrap();
        let path = path.to_str().unwrap();
        command("mkfs.ext4", &["-q", path])?;
        Some(Self {
            mount: Mount::new(&["-o", "loop", path])?,
            _image: dir,
            frozen: AtomicBool::new(false),
        })
    }

    /// A file of so many zeroes, all of which have their place.
    pub fn disk(&self, size: u64) -> PathBuf {
        let path = self.mount.path().join("disk.raw");
        std::fs::write(&path, vec![0; size as usize]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        path
    }

    pub fn freeze(&self) {
        let at = self.mount.path().to_str().unwrap();
        command("fsfreeze", &["--freeze", at]).unwrap();
        self.frozen.store(true, Ordering::SeqCst);
    }

    pub fn thaw(&self) {
        if self.frozen.swap(false, Ordering::SeqCst) {
            let at = self.mount.path().to_str().unwrap();
            command("fsfreeze", &["--unfreeze", at]).unwrap();
        }
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        self.thaw();
    }
}
