//! The program of the version before this one: guests move from it to this one and back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::target;

/// Path of that program, built once for all test programs; `tests/last-version` names its commit.
///
/// # Errors
/// When this checkout lacks the commit, with what to do about it, or when it does not build.
pub fn vmm() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow!(error.clone()))
}

fn build() -> Result<PathBuf> {
    build_in(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        &target::target_dir()?,
    )
}

/// Builds the one that `tests` names, below `target`.
fn build_in(tests: &Path, target: &Path) -> Result<PathBuf> {
    let output = Command::new("bash")
        .arg(tests.join("last-version.sh"))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .context("start bash to build the last version")?;
    ensure!(
        output.status.success(),
        "build the last version: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
    ensure!(path.is_file(), "{} is no program", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkout of one commit, with `last` as the last version; what building that says.
    fn refused(last: &str, path: Option<&Path>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let tests = folder.path().join("tests");
        std::fs::create_dir(&tests).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("last-version.sh");
        std::fs::copy(script, tests.join("last-version.sh")).unwrap();
        std::fs::write(tests.join("last-version"), last).unwrap();
        let git = Command::new("git")
            .args(["init", "--quiet"])
            .current_dir(&folder)
            .status();
        assert!(git.unwrap().success());
        let mut command = Command::new("/bin/bash");
        command
            .arg(tests.join("last-version.sh"))
            .env("CARGO_TARGET_DIR", folder.path().join("target"));
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn a_checkout_without_that_commit_says_how_to_get_it() {
        let said = refused("0123456789012345678901234567890123456789\n", None);
        assert!(said.contains("lacks 0123456789"), "{said}");
        assert!(said.contains("git fetch --unshallow"), "{said}");
    }

    #[test]
    fn a_machine_without_git_says_so() {
        // All that the script needs before, but no git.
        let programs = tempfile::tempdir().unwrap();
        for program in ["cat", "mkdir", "dirname", "flock"] {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(program))
                .find(|path| path.is_file())
                .unwrap();
            std::os::unix::fs::symlink(found, programs.path().join(program)).unwrap();
        }
        let commit = "0123456789012345678901234567890123456789\n";
        let said = refused(commit, Some(programs.path()));
        assert!(said.contains("install git"), "{said}");
    }

    #[test]
    fn what_is_no_commit_is_refused() {
        let said = refused("v0.1.0\n", None);
        assert!(said.contains("40 hexadecimal digits"), "{said}");
    }
}
