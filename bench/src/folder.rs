//! A folder of this benchmark's own, removed when it is no longer needed.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::BenchError;
use super::progress::progress;

/// A folder that nobody else uses; it is removed with all that is in it when this is dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// A new one within `base`.
    pub fn within(base: &Path) -> Result<Self, BenchError> {
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            let path = self.0.display();
            progress(format_args!(
                "vmm: the temporary folder {path} stays: {error}"
            ));
        }
    }
}
