//! Where cargo puts what it builds, seen from a running test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// cargo's target directory: the one above the profile's.
///
/// # Errors
/// When the test was moved out of the directory that it was built in.
pub fn target_dir() -> Result<PathBuf> {
    let profile = profile_dir()?;
    let target = profile
        .parent()
        .context("parent of the profile's directory")?;
    Ok(target.to_path_buf())
}

/// Directory of the running test's profile, where cargo leaves finished binaries.
///
/// # Errors
/// When the test was moved out of the directory that it was built in.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("path of the running test")?;
    profile_of(&exe).with_context(|| format!("{} does not lie where cargo builds", exe.display()))
}

/// Test executables lie in `deps` below the profile's directory, binaries right in it.
fn profile_of(exe: &Path) -> Option<PathBuf> {
    let dir = exe.parent()?;
    let dir = if dir.ends_with("deps") {
        dir.parent()?
    } else {
        dir
    };
    Some(dir.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_binaries_lie_in_their_profile() {
        for exe in ["/t/debug/deps/control-0", "/t/debug/vmm"] {
            assert_eq!(profile_of(Path::new(exe)).unwrap(), Path::new("/t/debug"));
        }
    }

    #[test]
    fn own_directories_exist() {
        assert!(target_dir().unwrap().is_dir());
        assert!(profile_dir().unwrap().is_dir());
    }
}
