//! Block devices over files, and the tools of others who use images.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::target;

/// A loop device over a file; it goes when this is dropped.
pub struct Loop(PathBuf);

impl Loop {
    /// Sets one up.
    ///
    /// # Errors
    /// Why this machine has none, for whoever skips a test.
    pub fn over(file: &Path) -> Result<Self, String> {
        Self::of_blocks(file, 512)
    }

    /// Sets one up that takes blocks of so many bytes alone.
    ///
    /// # Errors
    /// As [`Loop::over`].
    pub fn of_blocks(file: &Path, bytes: u32) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &bytes.to_string()])
            .arg(file)
            .output()
            .map_err(|e| format!("losetup: {e}"))?;
        if output.status.success() {
            let path = String::from_utf8_lossy(&output.stdout);
            Ok(Self(path.trim_end().into()))
        } else {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(format!("no loop device: {}", why.trim_end()))
        }
    }

    /// Its node.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Whoever still has it open keeps it until then.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

/// A copy of an image as it is now.
///
/// # Panics
/// When there is no room for it.
pub fn copy(image: &Path, to: PathBuf) -> PathBuf {
    // Also of a block device, of which `fs::copy` makes none.
    let copied = File::open(image)
        .and_then(|from| Ok((from, File::create(&to)?)))
        .and_then(|(mut from, mut to)| std::io::copy(&mut from, &mut to));
    copied.unwrap_or_else(|e| panic!("copy {}: {e}", image.display()));
    to
}

/// A program of QEMU's, `qemu-img` or another: that of the rig, else this machine's, if there is one.
pub fn qemu_program(name: &str) -> Option<Command> {
    let rig = target::target_dir().ok()?.join("rig/qemu");
    let unpacked = rig.join("usr/bin").join(name);
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    let libraries = libraries.map(|folder| rig.join(folder).display().to_string());
    let mut candidates = vec![Command::new(name)];
    if unpacked.exists() {
        let mut command = Command::new(unpacked);
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        candidates.insert(0, command);
    }
    candidates.into_iter().find_map(|mut command| {
        let version = command.arg("--version").output();
        version.is_ok_and(|o| o.status.success()).then(|| {
            let mut plain = Command::new(command.get_program());
            let variables = command.get_envs();
            plain.envs(variables.filter_map(|(name, value)| Some((name, value?))));
            plain.stdin(Stdio::null());
            plain
        })
    })
}
