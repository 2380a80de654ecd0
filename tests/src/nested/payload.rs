//! What is brought to a host with hardware virtualization and run there.

use std::path::{Path, PathBuf};

/// A folder with a script, what the script needs, and programs of this machine.
#[derive(Debug, Default, Clone)]
pub struct Payload {
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) directories: Vec<String>,
    pub(super) programs: Vec<(String, PathBuf)>,
}

impl Payload {
    /// A payload whose `script` is run by busybox' shell in the payload's folder; 0 to 127 is its exit code. It finds
    /// its programs in `PATH`, and there is a folder of them alone in `PROGRAMS`, for those of which busybox has one
    /// of the same name.
    #[must_use]
    pub fn new(script: &str) -> Self {
        Self::default().file("run.sh", script.as_bytes())
    }

    /// Puts an executable file into the folder.
    #[must_use]
    pub fn file(mut self, name: &str, content: &[u8]) -> Self {
        self.files.push((name.to_owned(), content.to_vec()));
        self
    }

    /// Puts an empty directory into the folder.
    #[must_use]
    pub fn directory(mut self, name: &str) -> Self {
        self.directories.push(name.to_owned());
        self
    }

    /// Brings a program of this machine.
    #[must_use]
    pub fn program(mut self, name: &str, path: &Path) -> Self {
        self.programs.push((name.to_owned(), path.to_owned()));
        self
    }
}
