//! Where cargo puts what it builds, seen from a running test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// cargo's target directory: the one above the running test that carries cargo's cache tag.
///
/// # Errors
/// When the test was moved out of the directory that it was built in.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("path of the running test")?;
    tagged_ancestor(&exe)
        .with_context(|| format!("{} lies in no target directory of cargo", exe.display()))
}

/// Directory of the running test's profile, where cargo leaves finished binaries.
///
/// # Errors
/// When the test was moved out of the directory that it was built in.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("path of the running test")?;
    let dir = exe.parent().context("directory of the running test")?;
    // Test executables lie in `deps` below it.
    let dir = if dir.ends_with("deps") {
        dir.parent().context("parent of deps")?
    } else {
        dir
    };
    Ok(dir.to_path_buf())
}

fn tagged_ancestor(path: &Path) -> Option<PathBuf> {
    path.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_directory_is_found_by_its_tag() {
        let dir = tempfile::tempdir().unwrap();
        let deps = dir.path().join("debug/deps");
        std::fs::create_dir_all(&deps).unwrap();
        std::fs::write(dir.path().join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(tagged_ancestor(&deps.join("test")).unwrap(), dir.path());
    }

    #[test]
    fn own_directories_exist() {
        assert!(target_dir().unwrap().is_dir());
        assert!(profile_dir().unwrap().is_dir());
    }
}
